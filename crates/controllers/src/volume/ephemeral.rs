//! Makes the claims of generic ephemeral volumes: each is the pod's own and goes with it.

use std::sync::Arc;

use informer::{Change, EventType, Informer, Key, Queue, Recorder, reference};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::Client;
use kube::api::{Api, ObjectMeta, PostParams};

use super::{claim_name, volumes_of};
use crate::kit::refs::{is_controlled_by, reference_to};
use crate::kit::{Context, Error, Result};

struct Controller {
    client: Client,
    recorder: Recorder,
    pods: Arc<Informer<Pod>>,
    claims: Arc<Informer<PersistentVolumeClaim>>,
}

/// Runs the controller.
pub(crate) async fn run(context: Context) {
    let this = Arc::new(Controller {
        client: context.client.clone(),
        recorder: context.recorder("ephemeral_volume"),
        pods: context.informer(),
        claims: context.informer(),
    });
    this.claims.synced().await;
    let queue = Queue::new();
    let to = queue.clone();
    this.pods.on_change(move |change| {
        if let Change::Applied { new, .. } = change
            && new.metadata.deletion_timestamp.is_none()
            && volumes_of(new).any(|volume| volume.ephemeral.is_some())
        {
            to.add(Key::of(new.as_ref()));
        }
    });
    let (to, pods) = (queue.clone(), this.pods.clone());
    this.claims.on_change(move |change| {
        let Change::Deleted(claim) = change else { return };
        for owner in claim.metadata.owner_references.iter().flatten().filter(|owner| owner.kind == "Pod") {
            let key = Key::new(claim.metadata.namespace.clone().unwrap_or_default(), owner.name.clone());
            if pods.get(&key).is_some() {
                to.add(key);
            }
        }
    });
    let sync = move |key: Key| {
        let this = this.clone();
        async move { this.sync(&key).await.map(|()| None) }
    };
    context.work("ephemeral-volume", 4, queue, sync).await;
}

impl Controller {
    async fn sync(&self, key: &Key) -> Result<()> {
        let Some(pod) = self.pods.get(key).filter(|pod| pod.metadata.deletion_timestamp.is_none()) else {
            return Ok(());
        };
        for volume in volumes_of(&pod) {
            let Some(ephemeral) = &volume.ephemeral else { continue };
            let name = claim_name(&pod, volume).unwrap_or_default();
            let made = match self.claims.find(&key.namespace, &name) {
                Some(claim) if is_controlled_by(&claim.metadata, &pod.metadata) => continue,
                Some(_) => Err(format!("PVC {name} was not created for pod {key} (pod is not owner)")),
                None => {
                    self.make(&pod, ephemeral, &name).await.map_err(|e| format!("create PVC {name}: {e}"))
                }
            };
            if let Err(why) = made {
                let message = format!("ephemeral volume {}: {why}", volume.name);
                let about = reference(pod.as_ref());
                self.recorder.event(about, EventType::Warning, "FailedBinding", message.clone());
                return Err(Error::Remains(message));
            }
        }
        Ok(())
    }

    async fn make(
        &self,
        pod: &Pod,
        volume: &k8s_openapi::api::core::v1::EphemeralVolumeSource,
        name: &str,
    ) -> std::result::Result<(), String> {
        let template = volume.volume_claim_template.clone().unwrap_or_default();
        let meta = template.metadata.unwrap_or_default();
        let claim = PersistentVolumeClaim {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                labels: meta.labels,
                annotations: meta.annotations,
                owner_references: Some(vec![reference_to(pod)]),
                ..ObjectMeta::default()
            },
            spec: Some(template.spec),
            status: None,
        };
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let api = Api::<PersistentVolumeClaim>::namespaced(self.client.clone(), namespace);
        match api.create(&PostParams::default(), &claim).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) => Err(status.message.clone()),
            Err(error) => Err(error.to_string()),
        }
    }
}
