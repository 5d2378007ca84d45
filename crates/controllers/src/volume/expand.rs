//! Claims that ask for more than their volume has: all volumes are grown by drivers outside, which are waited for.

use std::sync::Arc;

use informer::{Change, EventType, Informer, Key, Queue, Recorder, reference};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};

use super::rules::requested;
use crate::kit::Context;

struct Controller {
    recorder: Recorder,
    volumes: Arc<Informer<PersistentVolume>>,
    claims: Arc<Informer<PersistentVolumeClaim>>,
}

/// Runs the controller.
pub(crate) async fn run(context: Context) {
    let this = Arc::new(Controller {
        recorder: context.recorder("volume_expand"),
        volumes: context.informer(),
        claims: context.informer(),
    });
    this.volumes.synced().await;
    let queue = Queue::new();
    let to = queue.clone();
    this.claims.on_change(move |change| {
        if let Change::Applied { old, new } = change
            && old.is_none_or(|old| requested(old) != requested(new))
            && grows(new)
        {
            to.add(Key::of(new.as_ref()));
        }
    });
    let sync = move |key: Key| {
        let this = this.clone();
        async move {
            this.sync(&key);
            Ok(None)
        }
    };
    context.work("volume-expand", 2, queue, sync).await;
}

/// Whether a bound claim asks for more than it has.
fn grows(claim: &PersistentVolumeClaim) -> bool {
    let Some(status) = claim.status.as_ref().filter(|status| status.phase.as_deref() == Some("Bound")) else {
        return false;
    };
    let has = status.capacity.as_ref().and_then(|all| all.get("storage"));
    let has = has.and_then(|has| has.0.parse::<api::quantity::Quantity>().ok());
    has.is_none_or(|has| requested(claim) > has)
}

impl Controller {
    fn sync(&self, key: &Key) {
        let Some(claim) = self.claims.get(key).filter(|claim| grows(claim)) else { return };
        let name = claim.spec.as_ref().and_then(|spec| spec.volume_name.clone()).unwrap_or_default();
        let volume = self.volumes.get(&Key::new("", name));
        let to = volume.as_ref().and_then(|volume| volume.spec.as_ref()?.claim_ref.as_ref());
        if to.is_some_and(|to| to.uid == claim.metadata.uid) {
            let message = "waiting for an external controller to expand this PVC";
            self.recorder.event(reference(claim.as_ref()), EventType::Normal, "ExternalExpanding", message);
        }
    }
}
