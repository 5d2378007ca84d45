//! Discovery: which groups, versions and resources are served, in the legacy and the aggregated form. Made from the rows.

use std::sync::Arc;

use base64::Engine;
use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::registry::{Registry, Rows, Served};

/// The aggregated documents, made once per set of rows.
#[derive(Default)]
pub struct Documents(Mutex<Option<Made>>);

struct Made {
    rows: Arc<Rows>,
    core: Document,
    groups: Document,
}

/// A body and its entity tag.
#[derive(Clone)]
pub struct Document {
    pub body: Bytes,
    pub etag: String,
}

impl Documents {
    /// The aggregated document of `/api` or `/apis`.
    pub fn aggregated(&self, registry: &Registry, core: bool) -> Document {
        let rows = arc_swap::Guard::into_inner(registry.rows());
        let mut made = self.0.lock();
        let stale = made.as_ref().is_none_or(|m| !Arc::ptr_eq(&m.rows, &rows));
        if stale {
            *made = Some(Made {
                core: document(&aggregated(&rows, true)),
                groups: document(&aggregated(&rows, false)),
                rows,
            });
        }
        let made = made.as_ref().expect("made above");
        if core { made.core.clone() } else { made.groups.clone() }
    }
}

fn document(value: &Value) -> Document {
    let body = Bytes::from(format!("{value}\n"));
    let digest = Sha256::digest(&body);
    let hex: String = digest.iter().map(|b| format!("{b:02X}")).collect();
    Document { body, etag: format!("\"{hex}\"") }
}

/// Groups with their versions, in the order of the rows; the rows of one version keep their order.
fn groups(rows: &Rows, core: bool) -> Vec<(String, Vec<String>)> {
    let mut groups: Vec<(String, Vec<String>)> = Vec::new();
    for row in rows.iter().filter(|r| r.group().is_empty() == core) {
        let version = row.resource.version.to_string();
        match groups.iter_mut().find(|(g, _)| g == row.group()) {
            Some((_, versions)) if versions.contains(&version) => {}
            Some((_, versions)) => versions.push(version),
            None => groups.push((row.group().to_owned(), vec![version])),
        }
    }
    for (_, versions) in &mut groups {
        versions.sort_by_key(|v| std::cmp::Reverse(priority(v)));
    }
    groups
}

/// Stable versions before beta before alpha, newer before older.
fn priority(version: &str) -> (u8, u32, u32) {
    let digits = |text: &str| text.parse().unwrap_or(0);
    let rest = version.strip_prefix('v').unwrap_or(version);
    if let Some((major, minor)) = rest.split_once("beta") {
        (1, digits(major), digits(minor))
    } else if let Some((major, minor)) = rest.split_once("alpha") {
        (0, digits(major), digits(minor))
    } else {
        (2, digits(rest), 0)
    }
}

fn aggregated(rows: &Rows, core: bool) -> Value {
    let items: Vec<Value> = groups(rows, core)
        .into_iter()
        .map(|(group, versions)| {
            let versions: Vec<Value> = versions
                .iter()
                .map(|version| {
                    let resources: Vec<Value> =
                        of_version(rows, &group, version).map(|row| aggregated_resource(row)).collect();
                    json!({"version": version, "resources": resources, "freshness": "Current"})
                })
                .collect();
            let metadata = if group.is_empty() { json!({}) } else { json!({"name": group}) };
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": "apidiscovery.k8s.io/v2",
        "metadata": {},
        "items": items,
    })
}

fn of_version<'a>(
    rows: &'a Rows,
    group: &'a str,
    version: &'a str,
) -> impl Iterator<Item = &'a Arc<Served>> + 'a {
    rows.iter().filter(move |r| r.group() == group && r.resource.version == version)
}

fn aggregated_resource(row: &Served) -> Value {
    let resource = &row.resource;
    let mut value = json!({
        "resource": resource.plural,
        "responseKind": {"group": "", "version": "", "kind": resource.kind},
        "scope": if resource.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": resource.singular,
        "verbs": resource.verbs,
    });
    if !resource.short_names.is_empty() {
        value["shortNames"] = json!(resource.short_names);
    }
    if !resource.categories.is_empty() {
        value["categories"] = json!(resource.categories);
    }
    if !resource.subresources.is_empty() {
        let subresources: Vec<Value> = resource
            .subresources
            .iter()
            .map(|s| {
                let foreign = s.group != resource.group || s.version != resource.version;
                let (group, version) = if foreign { (&*s.group, &*s.version) } else { ("", "") };
                json!({
                    "subresource": s.name,
                    "responseKind": {"group": group, "version": version, "kind": s.kind},
                    "verbs": s.verbs,
                })
            })
            .collect();
        value["subresources"] = subresources.into();
    }
    value
}

fn group_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

fn api_group(group: &str, versions: &[String]) -> Value {
    let of = |v: &String| json!({"groupVersion": group_version(group, v), "version": v});
    json!({
        "name": group,
        "versions": versions.iter().map(of).collect::<Vec<_>>(),
        "preferredVersion": versions.first().map(of),
    })
}

/// `/apis`.
pub fn group_list(rows: &Rows) -> Value {
    let groups: Vec<Value> = groups(rows, false).iter().map(|(g, v)| api_group(g, v)).collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `/apis/GROUP`.
pub fn group(rows: &Rows, name: &str) -> Option<Value> {
    let (group, versions) = groups(rows, false).into_iter().find(|(g, _)| g == name)?;
    let mut value = api_group(&group, &versions);
    value["kind"] = "APIGroup".into();
    value["apiVersion"] = "v1".into();
    Some(value)
}

/// `/api`.
pub fn core_versions(address: &str) -> Value {
    json!({
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}],
    })
}

/// The resources of a group and version.
pub fn resource_list(rows: &Rows, group: &str, version: &str) -> Option<Value> {
    if !rows.has_version(group, version) {
        return None;
    }
    let mut resources = Vec::new();
    for row in of_version(rows, group, version) {
        let resource = &row.resource;
        let mut value = json!({
            "name": resource.plural,
            "singularName": resource.singular,
            "namespaced": resource.namespaced,
            "kind": resource.kind,
            "verbs": resource.verbs,
        });
        if !resource.short_names.is_empty() {
            value["shortNames"] = json!(resource.short_names);
        }
        if !resource.categories.is_empty() {
            value["categories"] = json!(resource.categories);
        }
        if resource.has_verb("watch") {
            value["storageVersionHash"] = storage_hash(rows, row).into();
        }
        resources.push(value);
        for s in &resource.subresources {
            let mut value = json!({
                "name": format!("{}/{}", resource.plural, s.name),
                "singularName": "",
                "namespaced": resource.namespaced,
                "kind": s.kind,
                "verbs": s.verbs,
            });
            if s.group != resource.group || s.version != resource.version {
                value["group"] = json!(s.group);
                value["version"] = json!(s.version);
                if s.group.is_empty() {
                    value.as_object_mut().map(|v| v.remove("group"));
                }
            }
            resources.push(value);
        }
    }
    let mut list = json!({
        "kind": "APIResourceList",
        "groupVersion": group_version(group, version),
        "resources": resources,
    });
    if !group.is_empty() {
        list["apiVersion"] = "v1".into();
    }
    Some(list)
}

/// Names the version that objects are stored in.
fn storage_hash(rows: &Rows, row: &Served) -> String {
    let stored = match row.primary {
        true => row,
        false => rows.iter().find(|r| r.primary && r.storage == row.storage).map_or(row, |r| r.as_ref()),
    };
    let resource = &stored.resource;
    // These are stored one version behind, so that the release before can read them.
    let version = match (&*resource.group, &*resource.plural) {
        ("admissionregistration.k8s.io", "mutatingadmissionpolicies" | "mutatingadmissionpolicybindings") => {
            "v1beta1"
        }
        _ => &resource.version,
    };
    let text = format!("{}/{version}/{}", resource.group, resource.kind);
    base64::engine::general_purpose::STANDARD.encode(&Sha256::digest(text.as_bytes())[..8])
}
