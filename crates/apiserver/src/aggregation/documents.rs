//! What extension servers say of themselves: discovery and OpenAPI, fetched when an APIService appears or changes and every
//! minute after (upstream: `handler_discovery.go`, `controllers/openapi`, `controllers/openapiv3`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{ACCEPT, CONTENT_TYPE, HeaderValue};
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use parking_lot::RwLock;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::availability::aggregator;
use super::{Aggregator, Remote};
use crate::read::Read;
use crate::{ClusterRef, UserInfo, relay};

const LIMIT: Duration = Duration::from_secs(10);
/// The largest document that is read.
const LARGEST: usize = 32 << 20;
const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,\
    application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json";

/// What is known of one group and version.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Known {
    /// The resources in the form of aggregated discovery.
    pub resources: Vec<Value>,
    /// Whether the server answered when it was last asked.
    pub fresh: bool,
    /// The OpenAPI v3 documents: name and address on the server.
    pub v3: BTreeMap<String, String>,
    /// The OpenAPI v2 document.
    pub v2: Option<Arc<Value>>,
    /// The v3 document of a server that knows v2 alone.
    pub converted: Option<Bytes>,
}

/// By group and version.
#[derive(Default)]
pub struct Documents(RwLock<BTreeMap<(String, String), Known>>);

impl Documents {
    /// What is known of a group and version; nothing fresh before the first answer.
    pub fn of(&self, remote: &Remote) -> Known {
        let key = (remote.group.clone(), remote.version.clone());
        self.0.read().get(&key).cloned().unwrap_or_default()
    }

    /// Forgets what no APIService asks for.
    pub fn retain(&self, keep: impl Fn(&str, &str) -> bool) {
        self.0.write().retain(|(group, version), _| keep(group, version));
    }

    /// Tells whether this changed anything.
    fn set(&self, remote: &Remote, known: Known) -> bool {
        let key = (remote.group.clone(), remote.version.clone());
        let mut all = self.0.write();
        let changed = all.get(&key) != Some(&known);
        all.insert(key, known);
        changed
    }
}

impl Aggregator {
    /// Asks a server for its documents. On failure what was known stays, marked as stale.
    pub async fn fetch(&self, cluster: &ClusterRef, remote: &Remote) {
        let known = match self.discover(cluster, remote).await {
            Ok(resources) => {
                let mut v3 = self.v3_index(cluster, remote).await;
                let v2 = self.get(cluster, remote, &aggregator(), "/openapi/v2", "application/json").await;
                let v2 = v2.ok().and_then(|(_, body)| serde_json::from_slice(&body).ok()).map(Arc::new);
                let mut converted = None;
                if let Some(v2) = v2.as_deref().filter(|_| v3.is_empty()) {
                    let made = Bytes::from(super::convert::v3(v2, &remote.path()).to_string());
                    let name = remote.path().trim_start_matches('/').to_owned();
                    let hash: String = Sha256::digest(&made).iter().map(|b| format!("{b:02X}")).collect();
                    v3.insert(name.clone(), format!("/openapi/v3/{name}?hash={hash}"));
                    converted = Some(made);
                }
                Known { resources, fresh: true, v3, v2, converted }
            }
            Err(why) => {
                tracing::debug!(name = remote.name, why, "discovery not fetched");
                Known { fresh: false, ..self.documents.of(remote) }
            }
        };
        if self.documents.set(remote, known) {
            self.changed();
        }
    }

    /// Marks what is known of a server as stale.
    pub fn stale(&self, remote: &Remote) {
        let known = Known { fresh: false, ..self.documents.of(remote) };
        if self.documents.set(remote, known) {
            self.changed();
        }
    }

    async fn discover(&self, cluster: &ClusterRef, remote: &Remote) -> Result<Vec<Value>, String> {
        let asked = self.get(cluster, remote, &aggregator(), "/apis", AGGREGATED).await;
        if let Ok((media_type, body)) = asked
            && media_type.contains("as=APIGroupDiscoveryList")
        {
            let list: Value = serde_json::from_slice(&body).map_err(|e| e.to_string())?;
            let group = list.items("items").iter().find(|g| g.name() == remote.group);
            let versions = group.map_or(&[][..], |g| g.items("versions"));
            let version = versions.iter().find(|v| v.text("version") == remote.version);
            return Ok(version.map(|v| v.items("resources").to_vec()).unwrap_or_default());
        }
        let (_, body) = self.get(cluster, remote, &aggregator(), &remote.path(), "application/json").await?;
        let list: Value = serde_json::from_slice(&body).map_err(|e| e.to_string())?;
        Ok(from_legacy(list.items("resources")))
    }

    async fn v3_index(&self, cluster: &ClusterRef, remote: &Remote) -> BTreeMap<String, String> {
        let asked = self.get(cluster, remote, &aggregator(), "/openapi/v3", "application/json").await;
        let index: Value =
            asked.ok().and_then(|(_, body)| serde_json::from_slice(&body).ok()).unwrap_or_default();
        let own = format!("apis/{}", remote.group);
        let below = format!("{own}/{}", remote.version);
        let paths = index.at("paths").as_object().into_iter().flatten();
        paths
            .filter(|(name, _)| **name == own || **name == below)
            .map(|(name, at)| (name.clone(), at.text("serverRelativeURL").to_owned()))
            .filter(|(_, url)| url.starts_with("/openapi/v3/"))
            .collect()
    }

    /// One OpenAPI v3 document of an extension server, if there is one under this name.
    pub async fn v3(&self, cluster: &ClusterRef, name: &str) -> Option<Bytes> {
        let remotes: Vec<Arc<Remote>> = self.table().remotes().cloned().collect();
        for remote in remotes {
            let known = self.documents.of(&remote);
            if let Some(url) = known.v3.get(name) {
                if known.converted.is_some() {
                    return known.converted;
                }
                let answer = self.get(cluster, &remote, &aggregator(), url, "application/json").await;
                return answer.ok().map(|(_, body)| body);
            }
        }
        None
    }

    /// Media type and body of a document.
    async fn get(
        &self,
        cluster: &ClusterRef,
        remote: &Remote,
        user: &UserInfo,
        path: &str,
        accept: &'static str,
    ) -> Result<(String, Bytes), String> {
        let mut request = Request::new(relay::full(Bytes::new()));
        request.headers_mut().insert(ACCEPT, HeaderValue::from_static(accept));
        let job = async {
            let response = self.send(cluster, remote, user, request, path, None).await;
            let response = response.map_err(|status| status.message().to_owned())?;
            if response.status() != StatusCode::OK {
                return Err(format!("{path}: the server answered with {}", response.status().as_u16()));
            }
            let media_type = response.headers().get(CONTENT_TYPE).and_then(|h| h.to_str().ok());
            let media_type = media_type.unwrap_or_default().to_owned();
            let mut body = response.into_body();
            let mut all = BytesMut::new();
            while let Some(frame) = body.frame().await {
                let Ok(frame) = frame;
                if let Ok(data) = frame.into_data() {
                    if all.len() + data.len() > LARGEST {
                        return Err(format!("{path}: the document is larger than {LARGEST} bytes"));
                    }
                    all.extend_from_slice(&data);
                }
            }
            Ok((media_type, all.freeze()))
        };
        match tokio::time::timeout(LIMIT, job).await {
            Ok(result) => result,
            Err(_) => Err(format!("{path}: request timed out")),
        }
    }
}

/// The resources of an APIResourceList in the form of aggregated discovery
/// (upstream: `ConvertGroupVersionIntoToDiscovery`).
fn from_legacy(list: &[Value]) -> Vec<Value> {
    let kind =
        |r: &Value| json!({"group": r.text("group"), "version": r.text("version"), "kind": r.text("kind")});
    let mut resources: Vec<Value> = Vec::new();
    for resource in list.iter().filter(|r| !r.text("name").contains('/')) {
        let namespaced = resource.at("namespaced").as_bool() == Some(true);
        let mut made = json!({
            "resource": resource.text("name"),
            "responseKind": kind(resource),
            "scope": if namespaced { "Namespaced" } else { "Cluster" },
            "singularResource": resource.text("singularName"),
            "verbs": resource.items("verbs"),
        });
        for key in ["shortNames", "categories"] {
            if !resource.items(key).is_empty() {
                made[key] = resource.items(key).into();
            }
        }
        let name = resource.text("name");
        let parts: Vec<Value> = list
            .iter()
            .filter_map(|s| Some((s, s.text("name").strip_prefix(name)?.strip_prefix('/')?)))
            .map(|(s, part)| json!({"subresource": part, "responseKind": kind(s), "verbs": s.items("verbs")}))
            .collect();
        if !parts.is_empty() {
            made["subresources"] = parts.into();
        }
        resources.push(made);
    }
    resources
}

/// Adds the paths of an extension server, and the definitions that they need, to an OpenAPI v2 document. A definition of
/// the same name that says something else is renamed (upstream: `MergeSpecsIgnorePathConflictRenamingDefinitions`).
pub fn merge_v2(into: &mut Value, other: &Value, remote: &Remote) {
    let mut text = other.clone();
    let below = format!("{}/", remote.path());
    let exact = remote.path();
    if let Some(paths) = text.get_mut("paths").and_then(Value::as_object_mut) {
        paths.retain(|path, _| *path == exact || path.starts_with(&below) || *path == format!("{exact}/"));
    }
    let mut needed = Vec::new();
    references(text.at("paths"), &mut needed);
    let mut at = 0;
    while let Some(name) = needed.get(at).cloned() {
        at += 1;
        if let Some(definition) = other.at("definitions").get(&name) {
            references(definition, &mut needed);
        }
    }
    let mut renamed: BTreeMap<String, String> = BTreeMap::new();
    let own = into.get("definitions").cloned().unwrap_or_default();
    for name in &needed {
        let Some(definition) = other.at("definitions").get(name) else { continue };
        if own.get(name).is_some_and(|present| present != definition) {
            let free = (2..).map(|n| format!("{name}_v{n}")).find(|n| own.get(n).is_none());
            renamed.insert(name.clone(), free.unwrap_or_else(|| name.clone()));
        }
    }
    for name in &needed {
        let Some(definition) = other.at("definitions").get(name) else { continue };
        let mut definition = definition.clone();
        rename(&mut definition, &renamed);
        let name = renamed.get(name).unwrap_or(name);
        into["definitions"][name.as_str()] = definition;
    }
    let mut paths = text.get("paths").cloned().unwrap_or_default();
    rename(&mut paths, &renamed);
    for (path, item) in paths.as_object().into_iter().flatten() {
        let present = into["paths"].get(path).is_some();
        if !present {
            into["paths"][path.as_str()] = item.clone();
        }
    }
}

const REFERENCE: &str = "#/definitions/";

pub fn references(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (key, inner) in map {
                match inner.as_str().filter(|_| key == "$ref").and_then(|r| r.strip_prefix(REFERENCE)) {
                    Some(name) if !found.iter().any(|f| f == name) => found.push(name.to_owned()),
                    _ => references(inner, found),
                }
            }
        }
        Value::Array(list) => list.iter().for_each(|inner| references(inner, found)),
        _ => {}
    }
}

fn rename(value: &mut Value, names: &BTreeMap<String, String>) {
    match value {
        Value::Object(map) => {
            for (key, inner) in map.iter_mut() {
                let new = inner
                    .as_str()
                    .filter(|_| key == "$ref")
                    .and_then(|r| names.get(r.strip_prefix(REFERENCE)?))
                    .map(|name| format!("{REFERENCE}{name}"));
                match new {
                    Some(new) => *inner = new.into(),
                    None => rename(inner, names),
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(|inner| rename(inner, names)),
        _ => {}
    }
}
