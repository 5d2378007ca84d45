//! Keeps claims, volumes and volume attributes classes that are in use from being deleted: a finalizer that is taken off
//! once nothing uses them any more.

use std::sync::Arc;

use informer::{Change, Informer, Key, Object, Queue};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::VolumeAttributesClass;
use kube::api::{Api, ListParams, ObjectMeta, PostParams};
use kube::{Client, Resource};
use serde::Serialize;

use super::{claim_name, volumes_of};
use crate::kit::error::found;
use crate::kit::pods::is_terminal;
use crate::kit::refs::is_controlled_by;
use crate::kit::{Context, Result};

const CLAIM: &str = "kubernetes.io/pvc-protection";
const VOLUME: &str = "kubernetes.io/pv-protection";
const CLASS: &str = "kubernetes.io/vac-protection";

/// What is to be done about an object's finalizer.
#[derive(Debug, PartialEq)]
enum Step {
    Nothing,
    Add,
    /// To be taken off if nothing uses the object.
    MayGo,
}

fn step(meta: &ObjectMeta, finalizer: &str) -> Step {
    let has = meta.finalizers.iter().flatten().any(|one| one == finalizer);
    match (meta.deletion_timestamp.is_some(), has) {
        (true, true) => Step::MayGo,
        (false, false) => Step::Add,
        _ => Step::Nothing,
    }
}

async fn write<K: Object + Serialize>(api: Api<K>, object: &K, finalizer: &str, add: bool) -> Result<()> {
    let mut new = object.clone();
    let finalizers = new.meta_mut().finalizers.get_or_insert_default();
    finalizers.retain(|one| one != finalizer);
    if add {
        finalizers.push(finalizer.to_owned());
    }
    let name = object.meta().name.clone().unwrap_or_default();
    found(api.replace(&name, &PostParams::default(), &new).await).map(drop)
}

/// Adds each object of a kind to a queue when it may need something done.
fn watch<K: Object + Resource<DynamicType = ()>>(
    informer: &Informer<K>,
    queue: &Arc<Queue<Key>>,
    finalizer: &'static str,
) {
    let to = queue.clone();
    informer.on_change(move |change| {
        if let Change::Applied { new, .. } = change
            && step(new.meta(), finalizer) != Step::Nothing
        {
            to.add(Key::of(new.as_ref()));
        }
    });
}

/// Whether the pod uses the claim. The kubelet starts no pod with a claim that is being deleted, so one without a node
/// never will.
fn uses(pod: &Pod, claim: &PersistentVolumeClaim) -> bool {
    let scheduled =
        pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref()).is_some_and(|node| !node.is_empty());
    // What has ended and is being deleted holds its own claims no longer.
    let over = is_terminal(pod) && pod.metadata.deletion_timestamp.is_some();
    scheduled
        && volumes_of(pod).any(|volume| {
            claim_name(pod, volume) == claim.metadata.name
                && (volume.ephemeral.is_none() || (!over && is_controlled_by(&claim.metadata, &pod.metadata)))
        })
}

/// Protects claims.
pub(crate) async fn claims(context: Context) {
    let claims = context.informer::<PersistentVolumeClaim>();
    let pods = context.informer::<Pod>();
    claims.synced().await;
    pods.synced().await;
    let queue = Queue::new();
    watch(&claims, &queue, CLAIM);
    let (to, all) = (queue.clone(), claims.clone());
    pods.on_change(move |change| {
        let over = matches!(change, Change::Deleted(_)) || is_terminal(change.latest());
        let pod = change.latest();
        for name in volumes_of(pod).filter_map(|volume| claim_name(pod, volume)).filter(|_| over) {
            let key = Key::new(pod.metadata.namespace.clone().unwrap_or_default(), name);
            if all.get(&key).is_some_and(|claim| claim.metadata.deletion_timestamp.is_some()) {
                to.add(key);
            }
        }
    });
    let client = context.client.clone();
    let sync = move |key: Key| {
        let (client, claims, pods) = (client.clone(), claims.clone(), pods.clone());
        async move { sync_claim(client, &claims, &pods, &key).await.map(|()| None) }
    };
    context.work("pvc-protection", 4, queue, sync).await;
}

async fn sync_claim(
    client: Client,
    claims: &Informer<PersistentVolumeClaim>,
    pods: &Informer<Pod>,
    key: &Key,
) -> Result<()> {
    let Some(claim) = claims.get(key) else { return Ok(()) };
    let step = step(&claim.metadata, CLAIM);
    if step == Step::MayGo {
        if pods.in_namespace(&key.namespace).iter().any(|pod| uses(pod, &claim)) {
            return Ok(());
        }
        // The cache may not yet show a pod that was just bound.
        let api = Api::<Pod>::namespaced(client.clone(), &key.namespace);
        if api.list(&ListParams::default()).await?.iter().any(|pod| uses(pod, &claim)) {
            return Ok(());
        }
    }
    if step != Step::Nothing {
        let api = Api::<PersistentVolumeClaim>::namespaced(client, &key.namespace);
        write(api, claim.as_ref(), CLAIM, step == Step::Add).await?;
    }
    Ok(())
}

/// Protects volumes.
pub(crate) async fn volumes(context: Context) {
    let volumes = context.informer::<PersistentVolume>();
    volumes.synced().await;
    let queue = Queue::new();
    watch(&volumes, &queue, VOLUME);
    let client = context.client.clone();
    let sync = move |key: Key| {
        let (client, volumes) = (client.clone(), volumes.clone());
        async move {
            let Some(volume) = volumes.get(&key) else { return Ok(None) };
            let step = step(&volume.metadata, VOLUME);
            let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref());
            if step == Step::Add || (step == Step::MayGo && phase != Some("Bound")) {
                write(Api::all(client), volume.as_ref(), VOLUME, step == Step::Add).await?;
            }
            Ok(None)
        }
    };
    context.work("pv-protection", 4, queue, sync).await;
}

fn class_of_volume(volume: &PersistentVolume) -> Option<&str> {
    volume.spec.as_ref()?.volume_attributes_class_name.as_deref()
}

fn classes_of_claim(claim: &PersistentVolumeClaim) -> [Option<&str>; 3] {
    let status = claim.status.as_ref();
    let target = status.and_then(|status| status.modify_volume_status.as_ref());
    [
        claim.spec.as_ref().and_then(|spec| spec.volume_attributes_class_name.as_deref()),
        status.and_then(|status| status.current_volume_attributes_class_name.as_deref()),
        target.and_then(|target| target.target_volume_attributes_class_name.as_deref()),
    ]
}

/// Protects volume attributes classes.
pub(crate) async fn classes(context: Context) {
    let classes = context.informer::<VolumeAttributesClass>();
    let claims = context.informer::<PersistentVolumeClaim>();
    let volumes = context.informer::<PersistentVolume>();
    classes.synced().await;
    claims.synced().await;
    volumes.synced().await;
    let queue = Queue::new();
    watch(&classes, &queue, CLASS);
    // A class that an object does not name any more may be free.
    let to = queue.clone();
    volumes.on_change(move |change| {
        let (old, new) = match change {
            Change::Applied { old, new } => (old.map(|old| old.as_ref()), Some(new.as_ref())),
            Change::Deleted(old) => (Some(old.as_ref()), None),
        };
        let left =
            old.and_then(class_of_volume).filter(|class| Some(*class) != new.and_then(class_of_volume));
        left.into_iter().for_each(|class| to.add(Key::new("", class)));
    });
    let to = queue.clone();
    claims.on_change(move |change| {
        let (old, new) = match change {
            Change::Applied { old: Some(old), new } => (old, classes_of_claim(new)),
            Change::Applied { .. } => return,
            Change::Deleted(old) => (old, [None; 3]),
        };
        let left = classes_of_claim(old).into_iter().flatten().filter(|class| !new.contains(&Some(*class)));
        left.for_each(|class| to.add(Key::new("", class)));
    });
    let client = context.client.clone();
    let sync = move |key: Key| {
        let (client, classes) = (client.clone(), classes.clone());
        let (claims, volumes) = (claims.clone(), volumes.clone());
        async move {
            let Some(class) = classes.get(&key) else { return Ok(None) };
            let step = step(&class.metadata, CLASS);
            let name = Some(key.name.as_str());
            let used = || {
                volumes.list().iter().any(|volume| class_of_volume(volume) == name)
                    || claims.list().iter().any(|claim| classes_of_claim(claim).contains(&name))
            };
            if step == Step::Add || (step == Step::MayGo && !used()) {
                write(Api::all(client), class.as_ref(), CLASS, step == Step::Add).await?;
            }
            Ok(None)
        }
    };
    context.work("vac-protection", 2, queue, sync).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_pods_with_a_node_use_a_claim() {
        let claim: PersistentVolumeClaim =
            serde_json::from_value(json!({"metadata": {"name": "p-data", "namespace": "d"}}))
                .expect("a claim");
        let check = |pod: serde_json::Value, expected: bool| {
            let pod: Pod = serde_json::from_value(pod.clone()).expect("a pod");
            assert_eq!(uses(&pod, &claim), expected);
        };
        let volumes = json!([{"name": "v", "persistentVolumeClaim": {"claimName": "p-data"}}]);
        check(json!({"spec": {"nodeName": "n", "containers": [], "volumes": volumes}}), true);
        check(json!({"spec": {"containers": [], "volumes": volumes}}), false);
        // Not the claim that was made for the pod.
        let volumes = json!([{"name": "data", "ephemeral": {}}]);
        check(
            json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n", "containers": [], "volumes": volumes}}),
            false,
        );
    }

    #[test]
    fn finalizers_come_and_go() {
        let check = |meta: serde_json::Value, expected: Step| {
            let meta: ObjectMeta = serde_json::from_value(meta).expect("metadata");
            assert_eq!(step(&meta, CLAIM), expected);
        };
        check(json!({}), Step::Add);
        check(json!({"finalizers": [CLAIM]}), Step::Nothing);
        check(json!({"finalizers": [CLAIM], "deletionTimestamp": "2026-01-01T00:00:00Z"}), Step::MayGo);
        check(json!({"deletionTimestamp": "2026-01-01T00:00:00Z"}), Step::Nothing);
    }
}
