//! The ConfigMap by which extension servers learn whom to trust: `extension-apiserver-authentication` in kube-system, kept
//! current (upstream: `controlplane/controller/clusterauthenticationtrust`).

use serde_json::{Map, Value, json};

use crate::read::{Read, object_mut};
use crate::{ClusterRef, Status};

pub const NAMESPACE: &str = "kube-system";
pub const NAME: &str = "extension-apiserver-authentication";

/// What it holds.
#[derive(Clone, Debug, Default)]
pub(crate) struct TrustMap(Map<String, Value>);

impl TrustMap {
    /// `client_ca` and `proxy_ca` are PEM; `proxy_names` are the common names of front proxies, all if there are none.
    pub(crate) fn new(client_ca: &str, proxy_ca: &str, proxy_names: &[String]) -> Self {
        let list = |names: &[&str]| json!(names).to_string();
        let data = json!({
            "client-ca-file": client_ca,
            "requestheader-allowed-names": json!(proxy_names).to_string(),
            "requestheader-client-ca-file": proxy_ca,
            "requestheader-extra-headers-prefix": list(&["X-Remote-Extra-"]),
            "requestheader-group-headers": list(&["X-Remote-Group"]),
            "requestheader-uid-headers": list(&["X-Remote-Uid"]),
            "requestheader-username-headers": list(&["X-Remote-User"]),
        });
        match data {
            Value::Object(data) => Self(data),
            _ => Self::default(),
        }
    }
}

/// Certificates that others have added and that are not ours; several servers may share the map.
fn union(present: &str, own: &str) -> String {
    let mut all = own.to_owned();
    for block in present.split_inclusive("-----END CERTIFICATE-----") {
        let block = block.trim();
        if block.starts_with("-----BEGIN CERTIFICATE-----") && !own.contains(block) {
            if !all.ends_with('\n') {
                all.push('\n');
            }
            all.push_str(block);
            all.push('\n');
        }
    }
    all
}

/// Makes the map, or puts back what it lacks.
pub(crate) async fn ensure(cluster: &ClusterRef, wanted: &TrustMap) -> Result<(), Status> {
    if wanted.0.is_empty() {
        return Ok(());
    }
    let done = match cluster.get("", "configmaps", NAMESPACE, NAME) {
        None => {
            let object = json!({
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": NAME, "namespace": NAMESPACE},
                "data": wanted.0,
            });
            cluster.create("", "v1", "configmaps", NAMESPACE, object).await
        }
        Some(present) => {
            let mut new = (*present).clone();
            let data = object_mut(&mut new, "data");
            for (key, value) in &wanted.0 {
                let value = match key.as_str() {
                    "client-ca-file" | "requestheader-client-ca-file" => {
                        let before = data.get(key).and_then(Value::as_str).unwrap_or_default();
                        union(before, value.as_str().unwrap_or_default()).into()
                    }
                    _ => value.clone(),
                };
                data.insert(key.clone(), value);
            }
            if new == *present || present.has("metadata.deletionTimestamp") {
                return Ok(());
            }
            cluster.update("", "v1", "configmaps", NAMESPACE, new).await
        }
    };
    match done {
        Err(status) if !matches!(status.reason(), "AlreadyExists" | "Conflict") => Err(status),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::FakeCluster;

    #[tokio::test]
    async fn the_map_is_made_and_mended_and_keeps_what_others_added() {
        let fake = FakeCluster::new();
        let cluster = fake.shared();
        let block = |text: &str| format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n");
        let wanted = TrustMap::new(&block("own"), &block("proxy"), &["front-proxy-client".to_owned()]);
        ensure(&cluster, &wanted).await.expect("made");
        let map = || cluster.get("", "configmaps", NAMESPACE, NAME).expect("there");
        assert_eq!(map().text("data.client-ca-file"), block("own"));
        assert_eq!(map().text("data.requestheader-allowed-names"), "[\"front-proxy-client\"]");
        let mut changed = (*map()).clone();
        changed["data"] = json!({"client-ca-file": block("other"), "x": "y"});
        fake.put("", "configmaps", changed);
        ensure(&cluster, &wanted).await.expect("mended");
        assert_eq!(map().text("data.client-ca-file"), block("own") + &block("other"));
        assert_eq!(map().text("data.requestheader-client-ca-file"), block("proxy"));
        assert_eq!(map().text("data.x"), "y");
    }
}
