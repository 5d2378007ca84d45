//! What the cluster knows of this node's drivers: the CSINode object, and an annotation and topology labels of the Node.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::storage::v1::{CSINode, CSINodeDriver, CSINodeSpec, VolumeNodeResources};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use plugins::csi::NodeGetInfoResponse;
use serde_json::{Value, json};

use super::Csi;

/// Names each driver's id of the node, as JSON.
const NODE_IDS: &str = "csi.volume.kubernetes.io/nodeid";
/// Volume types of old whose volumes CSI drivers serve: all of them, as for upstream's kubelet.
const MIGRATED: (&str, &str) = (
    "storage.alpha.kubernetes.io/migrated-plugins",
    "kubernetes.io/aws-ebs,kubernetes.io/azure-disk,kubernetes.io/azure-file,kubernetes.io/cinder,\
     kubernetes.io/gce-pd,kubernetes.io/portworx-volume,kubernetes.io/vsphere-volume",
);
/// Tries of one write that others get in the way of.
const TRIES: u32 = 6;

impl Csi {
    /// Sees to it that there is a CSINode of this very Node, as long as the kubelet runs.
    pub(super) async fn keep_csi_node(&self) {
        let mut node = self.node.clone();
        let mut made_for = None;
        loop {
            let uid = node.borrow_and_update().as_deref().and_then(|node| node.metadata.uid.clone());
            if let Some(uid) = uid.filter(|uid| made_for.as_ref() != Some(uid)) {
                match self.own_csi_node(&uid).await {
                    Ok(_) => {
                        // What registered with the Node before has to be told of this one.
                        if made_for.replace(uid).is_some() {
                            self.introduce_all().await;
                        }
                    }
                    Err(error) => {
                        tracing::debug!(%error, "cannot make the CSINode yet");
                        tokio::time::sleep(Duration::from_millis(500)).await;
                        continue;
                    }
                }
            }
            if node.changed().await.is_err() {
                return;
            }
        }
    }

    async fn introduce_all(&self) {
        let names: Vec<String> = self.registered.lock().keys().cloned().collect();
        for name in names {
            if let Err(error) = self.introduce(&name).await {
                tracing::warn!(error, name, "cannot bring the CSINode up to date");
            }
        }
    }

    /// The CSINode, made if it is missing or belongs to an earlier Node of the name.
    async fn own_csi_node(&self, uid: &str) -> Result<CSINode, kube::Error> {
        let api: Api<CSINode> = Api::all(self.client.clone());
        if let Some(found) = api.get_opt(&self.node_name).await? {
            let owners = found.metadata.owner_references.iter().flatten();
            if owners.clone().any(|owner| owner.kind == "Node" && owner.uid == uid) {
                return Ok(found);
            }
            api.delete(&self.node_name, &DeleteParams::default()).await?;
        }
        let owner = OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Node".to_owned(),
            name: self.node_name.clone(),
            uid: uid.to_owned(),
            ..OwnerReference::default()
        };
        let object = CSINode {
            metadata: ObjectMeta {
                name: Some(self.node_name.clone()),
                annotations: Some([(MIGRATED.0.to_owned(), MIGRATED.1.to_owned())].into()),
                owner_references: Some(vec![owner]),
                ..ObjectMeta::default()
            },
            spec: CSINodeSpec { drivers: Vec::new() },
        };
        api.create(&PostParams::default(), &object).await
    }

    /// Writes what a driver says of this node.
    pub(super) async fn install(&self, name: &str, info: &NodeGetInfoResponse) -> Result<(), String> {
        let topology: BTreeMap<String, String> =
            info.accessible_topology.iter().flat_map(|topology| topology.segments.clone()).collect();
        self.change_node(|node| introduced(node, name, &info.node_id, &topology)).await?;
        let limit = i32::try_from(info.max_volumes_per_node).unwrap_or(i32::MAX);
        let driver = CSINodeDriver {
            name: name.to_owned(),
            node_id: info.node_id.clone(),
            topology_keys: (!topology.is_empty()).then(|| topology.into_keys().collect()),
            allocatable: (limit > 0).then_some(VolumeNodeResources { count: Some(limit) }),
        };
        self.change_csi_node(name, Some(driver)).await
    }

    /// Takes a driver out again.
    pub(super) async fn uninstall(&self, name: &str) {
        let gone = async {
            self.change_csi_node(name, None).await?;
            self.change_node(|node| Ok(forgotten(node, name))).await
        };
        if let Err(error) = gone.await {
            tracing::warn!(error, name, "cannot take a driver out of the CSINode");
        }
    }

    async fn change_node(
        &self,
        change: impl Fn(&Node) -> Result<Option<Value>, String>,
    ) -> Result<(), String> {
        let api: Api<Node> = Api::all(self.client.clone());
        let mut error = String::new();
        for attempt in 0..TRIES {
            pause(attempt).await;
            let node = match api.get(&self.node_name).await {
                Ok(node) => node,
                Err(failed) => {
                    error = format!("cannot read the Node: {failed}");
                    continue;
                }
            };
            let Some(mut patch) = change(&node)? else { return Ok(()) };
            patch["metadata"]["resourceVersion"] = json!(node.metadata.resource_version);
            match api.patch(&self.node_name, &PatchParams::default(), &Patch::Merge(&patch)).await {
                Ok(_) => return Ok(()),
                Err(failed) => error = format!("cannot write the Node: {failed}"),
            }
        }
        Err(error)
    }

    async fn change_csi_node(&self, name: &str, driver: Option<CSINodeDriver>) -> Result<(), String> {
        let api: Api<CSINode> = Api::all(self.client.clone());
        let mut error = String::new();
        for attempt in 0..TRIES {
            pause(attempt).await;
            let uid = self.node.borrow().as_deref().and_then(|node| node.metadata.uid.clone());
            let Some(uid) = uid else {
                error = "the Node is not registered yet".to_owned();
                continue;
            };
            let mut object = match self.own_csi_node(&uid).await {
                Ok(object) => object,
                Err(failed) => {
                    error = format!("cannot read the CSINode: {failed}");
                    continue;
                }
            };
            let before = object.spec.drivers.clone();
            object.spec.drivers.retain(|one| one.name != name);
            object.spec.drivers.extend(driver.clone());
            let set = |drivers: &[CSINodeDriver]| -> BTreeSet<String> {
                drivers.iter().map(|driver| json!(driver).to_string()).collect()
            };
            if set(&before) == set(&object.spec.drivers) {
                return Ok(());
            }
            match api.replace(&self.node_name, &PostParams::default(), &object).await {
                Ok(_) => return Ok(()),
                Err(failed) => error = format!("cannot write the CSINode: {failed}"),
            }
        }
        Err(error)
    }
}

async fn pause(attempt: u32) {
    if attempt > 0 {
        tokio::time::sleep(Duration::from_millis(20 << (2 * attempt).min(10))).await;
    }
}

fn node_ids(node: &Node) -> BTreeMap<String, String> {
    let text = node.metadata.annotations.as_ref().and_then(|all| all.get(NODE_IDS));
    text.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
}

/// The change of the Node that tells a driver's id and topology; `None` if it says so already.
fn introduced(
    node: &Node,
    name: &str,
    id: &str,
    topology: &BTreeMap<String, String>,
) -> Result<Option<Value>, String> {
    let none = BTreeMap::new();
    let labels = node.metadata.labels.as_ref().unwrap_or(&none);
    for (key, value) in topology {
        if let Some(found) = labels.get(key).filter(|found| *found != value) {
            return Err(format!(
                "detected topology value collision: driver reported {key:?}:{value:?} but existing label is {key:?}:{found:?}"
            ));
        }
    }
    let mut ids = node_ids(node);
    let old = ids.insert(name.to_owned(), id.to_owned());
    if old.as_deref() == Some(id) && topology.keys().all(|key| labels.contains_key(key)) {
        return Ok(None);
    }
    Ok(Some(json!({"metadata": {"annotations": {NODE_IDS: json!(ids).to_string()}, "labels": topology}})))
}

fn forgotten(node: &Node, name: &str) -> Option<Value> {
    let mut ids = node_ids(node);
    ids.remove(name)?;
    let text = if ids.is_empty() { Value::Null } else { json!(json!(ids).to_string()) };
    Some(json!({"metadata": {"annotations": {NODE_IDS: text}}}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_node_tells_of_its_drivers() {
        let node = |ids: Value, zone: Value| -> Node {
            serde_json::from_value(
                json!({"metadata": {"annotations": {NODE_IDS: ids}, "labels": {"zone": zone}}}),
            )
            .expect("a node")
        };
        let topology = BTreeMap::from([("zone".to_owned(), "a".to_owned())]);
        let told = node(json!(r#"{"x.io":"n"}"#), json!("a"));
        assert_eq!(introduced(&told, "x.io", "n", &topology), Ok(None));
        let patch = introduced(&told, "y.io", "m", &topology).expect("no collision").expect("a change");
        assert_eq!(patch["metadata"]["annotations"][NODE_IDS], r#"{"x.io":"n","y.io":"m"}"#);
        assert!(introduced(&node(json!("{}"), json!("b")), "x.io", "n", &topology).is_err());
        assert_eq!(forgotten(&told, "x.io"), Some(json!({"metadata": {"annotations": {NODE_IDS: null}}})));
        assert_eq!(forgotten(&told, "z.io"), None);
    }
}
