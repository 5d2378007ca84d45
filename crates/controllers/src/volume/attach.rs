//! Attaches volumes to the nodes whose pods use them, and detaches them after: a VolumeAttachment per volume and node tells
//! the volume's CSI driver, the node's status tells its kubelet (upstream: `pkg/controller/volume/attachdetach`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use informer::{Change, EventType, Informer, Key, Queue, Recorder, reference};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::{CSIDriver, VolumeAttachment};
use kube::Client;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::{claim_name, volumes_of};
use crate::kit::error::found;
use crate::kit::pods::is_terminal;
use crate::kit::{Context, Error, Result, now, plus_seconds, until};

const MANAGED: &str = "volumes.kubernetes.io/controller-managed-attach-detach";
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";
/// How long a node that is not well may go on using a volume that no pod there needs.
const LONGEST_USE: i64 = 360;

/// A volume as one node uses it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Use {
    volume: String,
    driver: String,
    handle: String,
}

impl Use {
    fn of(volume: &PersistentVolume) -> Option<Self> {
        let csi = volume.spec.as_ref()?.csi.as_ref()?;
        let name = volume.metadata.name.clone()?;
        Some(Self { volume: name, driver: csi.driver.clone(), handle: csi.volume_handle.clone() })
    }

    /// The name of the attachment, the same for whoever makes it.
    fn attachment(&self, node: &str) -> String {
        let hash = Sha256::digest(format!("{}{}{node}", self.handle, self.driver));
        let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("csi-{hex}")
    }

    /// What the volume is called in the status of nodes.
    fn unique_name(&self) -> String {
        format!("kubernetes.io/csi/{}^{}", self.driver, self.handle)
    }
}

struct Controller {
    client: Client,
    recorder: Recorder,
    pods: Arc<Informer<Pod>>,
    nodes: Arc<Informer<Node>>,
    claims: Arc<Informer<PersistentVolumeClaim>>,
    volumes: Arc<Informer<PersistentVolume>>,
    drivers: Arc<Informer<CSIDriver>>,
    attachments: Arc<Informer<VolumeAttachment>>,
    queue: Arc<Queue<Key>>,
}

/// Runs the controller. Its keys are nodes.
pub(crate) async fn run(context: Context) {
    let this = Arc::new(Controller {
        client: context.client.clone(),
        recorder: context.recorder("attachdetach-controller"),
        pods: context.informer(),
        nodes: context.informer(),
        claims: context.informer(),
        volumes: context.informer(),
        drivers: context.informer(),
        attachments: context.informer(),
        queue: Queue::new(),
    });
    this.pods.synced().await;
    this.nodes.synced().await;
    this.claims.synced().await;
    this.volumes.synced().await;
    this.drivers.synced().await;
    this.attachments.synced().await;
    let to = this.clone();
    this.pods.on_change(move |change| {
        let node = change.latest().spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default();
        let stays = matches!(change, Change::Applied { old: Some(old), new }
            if old.spec.as_ref().map(|spec| &spec.node_name) == new.spec.as_ref().map(|spec| &spec.node_name)
                && is_terminal(old) == is_terminal(new));
        let attaches = volumes_of(change.latest()).any(|one| claim_name(change.latest(), one).is_some());
        if !node.is_empty() && attaches && !stays {
            to.queue.add(Key::new("", node));
        }
    });
    let to = this.clone();
    this.nodes.on_change(move |change| {
        let in_use = |node: &Node| node.status.clone().unwrap_or_default().volumes_in_use;
        if let Change::Applied { old: Some(old), new } = change
            && in_use(old) == in_use(new)
            && old.spec == new.spec
        {
            return;
        }
        to.queue.add(Key::of(change.latest().as_ref()));
    });
    let to = this.clone();
    this.attachments.on_change(move |change| {
        let latest = change.latest();
        to.queue.add(Key::new("", latest.spec.node_name.clone()));
        if let Change::Deleted(_) = change {
            // Another node may wait for the volume.
            to.all_nodes();
        }
    });
    let to = this.clone();
    this.claims.on_change(move |change| {
        let claim = change.latest();
        let volume =
            |claim: &PersistentVolumeClaim| claim.spec.as_ref().and_then(|spec| spec.volume_name.clone());
        if let Change::Applied { old, new } = change
            && old.and_then(|old| volume(old)) != volume(new)
        {
            to.nodes_of(claim);
        }
    });
    let queue = this.queue.clone();
    let sync = move |key: Key| {
        let this = this.clone();
        async move { this.sync(&key.name).await }
    };
    context.work("attachdetach", 8, queue, sync).await;
}

impl Controller {
    fn all_nodes(&self) {
        self.nodes.list().iter().for_each(|node| self.queue.add(Key::of(node.as_ref())));
    }

    fn nodes_of(&self, claim: &PersistentVolumeClaim) {
        for pod in self.pods.in_namespace(claim.metadata.namespace.as_deref().unwrap_or_default()) {
            let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default();
            if !node.is_empty() && volumes_of(&pod).any(|one| claim_name(&pod, one) == claim.metadata.name) {
                self.queue.add(Key::new("", node));
            }
        }
    }

    fn attaches(&self, driver: &str) -> bool {
        let driver = self.drivers.get(&Key::new("", driver));
        driver.is_none_or(|driver| driver.spec.attach_required != Some(false))
    }

    /// What the pods of a node need, each with one of the pods.
    fn wanted(&self, node: &str) -> BTreeMap<Use, Arc<Pod>> {
        let mut wanted = BTreeMap::new();
        for pod in self.pods.on_node(node).into_iter().filter(|pod| !is_terminal(pod)) {
            let namespace = pod.metadata.namespace.clone().unwrap_or_default();
            for name in volumes_of(&pod).filter_map(|volume| claim_name(&pod, volume)) {
                let claim = self.claims.find(&namespace, &name);
                let volume = claim.and_then(|claim| claim.spec.as_ref()?.volume_name.clone());
                let volume = volume.and_then(|name| self.volumes.get(&Key::new("", name)));
                if let Some(one) =
                    volume.and_then(|volume| Use::of(&volume)).filter(|one| self.attaches(&one.driver))
                {
                    wanted.insert(one, pod.clone());
                }
            }
        }
        wanted
    }

    /// Whether another node has a volume that only one node may have.
    fn is_elsewhere(&self, one: &Use, node: &str) -> bool {
        let volume = self.volumes.get(&Key::new("", one.volume.clone()));
        let modes = volume.and_then(|volume| volume.spec.as_ref()?.access_modes.clone()).unwrap_or_default();
        let shared = modes.iter().any(|mode| matches!(mode.as_str(), "ReadWriteMany" | "ReadOnlyMany"));
        !shared
            && self.attachments.list().iter().any(|other| {
                other.spec.node_name != node
                    && other.spec.source.persistent_volume_name.as_deref() == Some(&one.volume)
            })
    }

    async fn sync(&self, name: &str) -> Result<Option<Duration>> {
        let node = self.nodes.get(&Key::new("", name));
        let managed = node.as_ref().is_none_or(|node| {
            let annotations = node.metadata.annotations.as_ref();
            annotations.and_then(|all| all.get(MANAGED)).is_some_and(|value| value == "true")
        });
        if !managed {
            return Ok(None);
        }
        let wanted = if node.is_some() { self.wanted(name) } else { BTreeMap::new() };
        let mut attached = BTreeSet::new();
        let mut surplus = Vec::new();
        let mut lost = Vec::new();
        for attachment in self.attachments.list().into_iter().filter(|one| one.spec.node_name == name) {
            let volume = attachment.spec.source.persistent_volume_name.clone().unwrap_or_default();
            let Some(one) = self.volumes.get(&Key::new("", volume)).and_then(|volume| Use::of(&volume))
            else {
                // Its volume was deleted while it was attached.
                let leaving = attachment.metadata.deletion_timestamp.is_some();
                if !leaving && is_made_here(&attachment) && !is_reported(node.as_deref(), &attachment) {
                    lost.push(attachment);
                }
                continue;
            };
            // Those that others make are theirs.
            if attachment.metadata.name.as_deref() != Some(&one.attachment(name)) {
                continue;
            }
            let is = attachment.status.as_ref().is_some_and(|status| status.attached);
            let leaving = attachment.metadata.deletion_timestamp.is_some();
            if wanted.contains_key(&one) && !leaving {
                if is {
                    attached.insert(one.unique_name());
                } else if let Some(pod) = wanted.get(&one) {
                    self.tell_failure(&attachment, &one, pod);
                }
            } else if !leaving {
                surplus.push((attachment, one));
            }
        }
        let mut again = None;
        let mut going = lost;
        for (attachment, one) in surplus {
            match node.as_ref().and_then(|node| held_until(node, &one)) {
                Some(at) => {
                    attached.insert(one.unique_name());
                    if let Some(left) = at.and_then(|at| until(at, now())) {
                        again = Some(again.map_or(left, |again: Duration| again.min(left)));
                    } else if at.is_some() {
                        going.push(attachment);
                    }
                }
                None => going.push(attachment),
            }
        }
        if let Some(node) = &node {
            self.report(node, &attached, &wanted).await?;
        }
        let api = Api::<VolumeAttachment>::all(self.client.clone());
        for attachment in going {
            let name = attachment.metadata.name.as_deref().unwrap_or_default();
            found(api.delete(name, &DeleteParams::default()).await)?;
        }
        for (one, pod) in &wanted {
            self.attach(&api, name, one, pod).await?;
        }
        Ok(again)
    }

    async fn attach(&self, api: &Api<VolumeAttachment>, node: &str, one: &Use, pod: &Pod) -> Result<()> {
        let attachment = one.attachment(node);
        if self.attachments.get(&Key::new("", attachment.clone())).is_some() {
            return Ok(());
        }
        if self.is_elsewhere(one, node) {
            let users = self.users_elsewhere(one, node);
            let why = if users.is_empty() {
                "Volume is already exclusively attached to one node and can't be attached to another"
                    .to_owned()
            } else {
                format!("Volume is already used by pod(s) {}", users.join(", "))
            };
            let message = format!("Multi-Attach error for volume {:?} {why}", one.volume);
            self.recorder.event(reference(pod), EventType::Warning, "FailedAttachVolume", message);
            return Ok(());
        }
        let object = json!({
            "apiVersion": "storage.k8s.io/v1",
            "kind": "VolumeAttachment",
            "metadata": {"name": attachment},
            "spec": {
                "attacher": one.driver, "nodeName": node, "source": {"persistentVolumeName": one.volume},
            },
        });
        let object: VolumeAttachment = serde_json::from_value(object)?;
        match api.create(&PostParams::default(), &object).await.map_err(Error::from) {
            Err(error) if !error.is_already_exists() => Err(error),
            _ => Ok(()),
        }
    }

    /// Passes on why the driver does not attach a volume.
    fn tell_failure(&self, attachment: &VolumeAttachment, one: &Use, pod: &Pod) {
        let error = attachment.status.as_ref().and_then(|status| status.attach_error.as_ref());
        if let Some(message) = error.and_then(|error| error.message.as_ref()) {
            let message = format!("AttachVolume.Attach failed for volume {:?} : {message}", one.volume);
            self.recorder.event(reference(pod), EventType::Warning, "FailedAttachVolume", message);
        }
    }

    /// Pods on other nodes that use the volume.
    fn users_elsewhere(&self, one: &Use, node: &str) -> Vec<String> {
        let volume = self.volumes.get(&Key::new("", one.volume.clone()));
        let to = volume.and_then(|volume| volume.spec.as_ref()?.claim_ref.clone()).unwrap_or_default();
        let pods = self.pods.in_namespace(to.namespace.as_deref().unwrap_or_default());
        let uses = |pod: &Pod| {
            let on = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default();
            let mut claims = volumes_of(pod).filter_map(|one| claim_name(pod, one));
            !on.is_empty() && on != node && claims.any(|claim| Some(claim) == to.name)
        };
        pods.iter().filter(|pod| uses(pod)).filter_map(|pod| pod.metadata.name.clone()).collect()
    }

    /// Tells the kubelet what is attached, and the pods what they waited for.
    async fn report(
        &self,
        node: &Node,
        attached: &BTreeSet<String>,
        wanted: &BTreeMap<Use, Arc<Pod>>,
    ) -> Result<()> {
        let listed = node.status.as_ref().and_then(|status| status.volumes_attached.as_ref());
        let now: BTreeSet<String> = listed.into_iter().flatten().map(|one| one.name.clone()).collect();
        if now == *attached {
            return Ok(());
        }
        let list: Vec<_> = attached.iter().map(|name| json!({"name": name, "devicePath": ""})).collect();
        let patch = Patch::Merge(json!({"status": {"volumesAttached": list}}));
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let api = Api::<Node>::all(self.client.clone());
        found(api.patch_status(name, &PatchParams::default(), &patch).await)?;
        for (one, pod) in wanted {
            if attached.contains(&one.unique_name()) && !now.contains(&one.unique_name()) {
                let message = format!("AttachVolume.Attach succeeded for volume {:?} ", one.volume);
                self.recorder.event(
                    reference(pod.as_ref()),
                    EventType::Normal,
                    "SuccessfulAttachVolume",
                    message,
                );
            }
        }
        Ok(())
    }
}

/// Whether the attachment's name is one that this controller gives.
fn is_made_here(attachment: &VolumeAttachment) -> bool {
    let name = attachment.metadata.name.as_deref().unwrap_or_default();
    name.strip_prefix("csi-")
        .is_some_and(|hash| hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// Whether the node says that it uses what is attached.
fn is_reported(node: Option<&Node>, attachment: &VolumeAttachment) -> bool {
    let driver = &attachment.spec.attacher;
    let in_use = node.and_then(|node| node.status.as_ref()?.volumes_in_use.as_ref());
    in_use.into_iter().flatten().any(|name| {
        let handle = name.strip_prefix("kubernetes.io/csi/").and_then(|name| name.split_once('^'));
        handle.filter(|(of, _)| of == driver).is_some_and(|(_, handle)| {
            let one = Use { volume: String::new(), driver: driver.clone(), handle: handle.to_owned() };
            attachment.metadata.name.as_deref() == Some(&one.attachment(&attachment.spec.node_name))
        })
    })
}

/// While the node says that it uses the volume it is left; when the node is not well, only until the time inside. `None`:
/// it may be detached at once.
fn held_until(node: &Node, one: &Use) -> Option<Option<Timestamp>> {
    let status = node.status.as_ref()?;
    if !status.volumes_in_use.iter().flatten().any(|name| *name == one.unique_name()) {
        return None;
    }
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
    if taints.into_iter().flatten().any(|taint| taint.key == OUT_OF_SERVICE) {
        return None;
    }
    let ready = status.conditions.iter().flatten().find(|condition| condition.type_ == "Ready");
    match ready {
        Some(ready) if ready.status != "True" => {
            let since = ready.last_transition_time.as_ref().map_or_else(now, |time| time.0);
            Some(Some(plus_seconds(since, LONGEST_USE)))
        }
        _ => Some(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one() -> Use {
        Use { volume: "pv".into(), driver: "csi.example.com".into(), handle: "h".into() }
    }

    #[test]
    fn names_are_those_that_drivers_expect() {
        let name = one().attachment("node");
        assert!(name.starts_with("csi-") && name.len() == 68, "{name}");
        assert_eq!(one().unique_name(), "kubernetes.io/csi/csi.example.com^h");
    }

    #[test]
    fn an_attachment_without_its_volume_goes_once_the_node_lets_go() {
        let attachment: VolumeAttachment = serde_json::from_value(json!({
            "metadata": {"name": one().attachment("node")},
            "spec": {"attacher": "csi.example.com", "nodeName": "node", "source": {"persistentVolumeName": "pv"}},
        }))
        .expect("an attachment");
        let node = |in_use: serde_json::Value| -> Node {
            serde_json::from_value(json!({"status": {"volumesInUse": in_use}})).expect("a node")
        };
        assert!(is_made_here(&attachment));
        assert!(is_reported(Some(&node(json!([one().unique_name()]))), &attachment));
        assert!(!is_reported(Some(&node(json!(["kubernetes.io/csi/csi.example.com^other"]))), &attachment));
        assert!(!is_reported(None, &attachment));
    }

    #[test]
    fn a_node_holds_what_it_uses_while_it_is_well() {
        let node = |ready: &str, in_use: bool, taints: serde_json::Value| -> Node {
            let in_use = if in_use { json!([one().unique_name()]) } else { json!([]) };
            serde_json::from_value(json!({"spec": {"taints": taints}, "status": {"volumesInUse": in_use,
                "conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": "2026-01-01T00:00:00Z"}]}}))
            .expect("a node")
        };
        assert_eq!(held_until(&node("True", false, json!([])), &one()), None);
        assert_eq!(held_until(&node("True", true, json!([])), &one()), Some(None));
        let end = "2026-01-01T00:06:00Z".parse().expect("a time");
        assert_eq!(held_until(&node("Unknown", true, json!([])), &one()), Some(Some(end)));
        let out = json!([{"key": OUT_OF_SERVICE, "effect": "NoExecute"}]);
        assert_eq!(held_until(&node("Unknown", true, out), &one()), None);
    }
}
