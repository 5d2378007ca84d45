//! Discovery: which groups, versions and resources are served, in the legacy and the aggregated form. Made from the rows.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine;
use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::aggregation::{self, Aggregator, Table};
use crate::registry::{Registry, Rows, Served};

/// The aggregated documents, made once per set of rows and state of the aggregation layer.
#[derive(Default)]
pub struct Documents(Mutex<Option<Made>>);

struct Made {
    rows: Arc<Rows>,
    generation: u64,
    core: Document,
    groups: Document,
}

/// A body and its entity tag.
#[derive(Clone)]
pub struct Document {
    pub body: Bytes,
    pub etag: String,
}

/// What discovery is made from: the rows that are served here, and the extension servers.
pub struct Sources<'a> {
    pub rows: &'a Rows,
    pub table: &'a Table,
}

impl Documents {
    /// The aggregated document of `/api` or `/apis`.
    pub fn aggregated(&self, registry: &Registry, aggregator: &Aggregator, core: bool) -> Document {
        let rows = arc_swap::Guard::into_inner(registry.rows());
        let generation = aggregator.generation();
        let mut made = self.0.lock();
        let stale = made.as_ref().is_none_or(|m| !Arc::ptr_eq(&m.rows, &rows) || m.generation != generation);
        if stale {
            let table = aggregator.table();
            let sources = Sources { rows: &rows, table: &table };
            *made = Some(Made {
                core: document(&aggregated(&sources, aggregator, true)),
                groups: document(&aggregated(&sources, aggregator, false)),
                generation,
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

/// Which of the two forms of discovery is made: they order groups of the same priority differently.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Legacy,
    Aggregated,
}

/// Groups with their versions, by the priorities of their APIServices.
fn groups(sources: &Sources<'_>, core: bool, form: Form) -> Vec<(String, Vec<String>)> {
    let mut found: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let rows = sources.rows.iter().map(|r| (r.group(), r.resource.version.as_ref()));
    let remotes = sources.table.remotes().map(|r| (r.group.as_str(), r.version.as_str()));
    for (group, version) in rows.chain(remotes).filter(|(group, _)| group.is_empty() == core) {
        let versions = found.entry(group).or_default();
        if !versions.contains(&version) {
            versions.push(version);
        }
    }
    let priorities = |group: &str, version: &str| {
        let own = if group == aggregation::GROUP { None } else { sources.table.priorities(group, version) };
        own.or_else(|| aggregation::built_in_priorities(group, version)).unwrap_or(aggregation::CUSTOM)
    };
    let mut groups: Vec<_> = found
        .into_iter()
        .map(|(group, mut versions)| {
            versions.sort_by_key(|v| (Reverse(priorities(group, v).1), Reverse(age(v)), *v));
            let key = |v: &&str| {
                let name = if form == Form::Legacy { format!("{v}.{group}") } else { group.to_owned() };
                (Reverse(priorities(group, v).0), name)
            };
            let place = versions.iter().map(key).min();
            (place, group.to_owned(), versions.into_iter().map(str::to_owned).collect::<Vec<_>>())
        })
        .collect();
    groups.sort();
    groups.into_iter().map(|(_, group, versions)| (group, versions)).collect()
}

/// Stable versions before beta before alpha before others, newer before older.
pub(crate) fn age(version: &str) -> (u8, u32, u32) {
    let read = || {
        let rest = version.strip_prefix('v')?;
        let split = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (major, tail) = rest.split_at(split);
        let major = major.parse().ok()?;
        Some(match (tail.strip_prefix("beta"), tail.strip_prefix("alpha")) {
            _ if tail.is_empty() => (3, major, 0),
            (Some(minor), _) => (2, major, minor.parse().ok()?),
            (_, Some(minor)) => (1, major, minor.parse().ok()?),
            _ => return None,
        })
    };
    read().unwrap_or((0, 0, 0))
}

fn aggregated(sources: &Sources<'_>, aggregator: &Aggregator, core: bool) -> Value {
    let rows = sources.rows;
    let items: Vec<Value> = groups(sources, core, Form::Aggregated)
        .into_iter()
        .map(|(group, versions)| {
            let versions: Vec<Value> = versions
                .iter()
                .map(|version| {
                    if let Some(remote) = sources.table.remote(&group, version)
                        && !rows.has_version(&group, version)
                    {
                        let known = aggregator.documents.of(remote);
                        let freshness = if known.fresh { "Current" } else { "Stale" };
                        let mut entry = json!({"version": version});
                        if !known.resources.is_empty() {
                            entry["resources"] = known.resources.into();
                        }
                        entry["freshness"] = freshness.into();
                        return entry;
                    }
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
pub fn group_list(sources: &Sources<'_>) -> Value {
    let groups: Vec<Value> =
        groups(sources, false, Form::Legacy).iter().map(|(g, v)| api_group(g, v)).collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `/apis/GROUP`.
pub fn group(sources: &Sources<'_>, name: &str) -> Option<Value> {
    let (group, versions) = groups(sources, false, Form::Legacy).into_iter().find(|(g, _)| g == name)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_by_their_names() {
        let mut versions = ["foo10", "v1alpha1", "v2", "v10", "v1beta2", "foo1", "v11alpha2", "v3beta1"];
        versions.sort_by_key(|v| (Reverse(age(v)), *v));
        assert_eq!(versions, ["v10", "v2", "v3beta1", "v1beta2", "v11alpha2", "v1alpha1", "foo1", "foo10"]);
    }
}
