//! Evicts pods whose devices have NoExecute taints that the claim does not tolerate, or no longer does (KEP-5055).

use std::sync::Arc;
use std::time::Duration;

use informer::{Change, EventType, Informer, Key, Queue, Recorder, reference};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Taint, Toleration};
use k8s_openapi::api::resource::v1::{
    DeviceRequestAllocationResult, DeviceTaint, ResourceClaim, ResourceSlice,
};
use kube::Client;
use scheduling::selector::tolerates;

use crate::kit::pods::is_terminal;
use crate::kit::{Context, Result, now, plus_seconds, until};
use crate::node::disrupt;

struct Controller {
    client: Client,
    recorder: Recorder,
    pods: Arc<Informer<Pod>>,
    claims: Arc<Informer<ResourceClaim>>,
    slices: Arc<Informer<ResourceSlice>>,
}

/// Runs the controller. Its keys are claims.
pub(crate) async fn run(context: Context) {
    let this = Arc::new(Controller {
        client: context.client.clone(),
        recorder: context.recorder("device-taint-eviction"),
        pods: context.informer(),
        claims: context.informer(),
        slices: context.informer(),
    });
    this.pods.synced().await;
    this.claims.synced().await;
    this.slices.synced().await;
    let queue = Queue::new();
    let to = queue.clone();
    this.claims.on_change(move |change| {
        if let Change::Applied { new, .. } = change
            && new.status.as_ref().is_some_and(|status| status.reserved_for.is_some())
        {
            to.add(Key::of(new.as_ref()));
        }
    });
    let (to, claims) = (queue.clone(), this.claims.clone());
    this.slices.on_change(move |change| {
        let Change::Applied { new, .. } = change else { return };
        for claim in claims.list() {
            let of_pool = |one: &DeviceRequestAllocationResult| {
                one.driver == new.spec.driver && one.pool == new.spec.pool.name
            };
            if devices(&claim).iter().any(of_pool) {
                to.add(Key::of(claim.as_ref()));
            }
        }
    });
    let sync = move |key: Key| {
        let this = this.clone();
        async move { this.sync(&key).await }
    };
    context.work("device-taint-eviction", 4, queue, sync).await;
}

fn devices(claim: &ResourceClaim) -> &[DeviceRequestAllocationResult] {
    let allocation = claim.status.as_ref().and_then(|status| status.allocation.as_ref());
    let devices = allocation.and_then(|allocation| allocation.devices.as_ref());
    devices.and_then(|devices| devices.results.as_deref()).unwrap_or_default()
}

/// When the taint puts an end to the use of the device; `None` for never.
fn end(
    taint: &DeviceTaint,
    device: &DeviceRequestAllocationResult,
    allocated: Timestamp,
) -> Option<Timestamp> {
    if taint.effect != "NoExecute" {
        return None;
    }
    let own = Taint {
        key: taint.key.clone(),
        value: taint.value.clone(),
        effect: taint.effect.clone(),
        time_added: None,
    };
    let matching: Vec<_> = device
        .tolerations
        .iter()
        .flatten()
        .filter(|one| {
            let toleration = Toleration {
                key: one.key.clone(),
                value: one.value.clone(),
                effect: one.effect.clone(),
                operator: one.operator.clone(),
                toleration_seconds: None,
            };
            tolerates(&toleration, &own)
        })
        .collect();
    // The time of a toleration does not run before the device is used.
    let since = taint.time_added.as_ref().map_or(allocated, |time| time.0.max(allocated));
    if matching.is_empty() {
        return Some(since);
    }
    let seconds = matching.iter().filter_map(|one| one.toleration_seconds).map(|one| one.max(0)).min()?;
    Some(plus_seconds(since, seconds))
}

impl Controller {
    /// The taints of a device, from the newest generation of its pool.
    fn taints(&self, device: &DeviceRequestAllocationResult) -> Vec<DeviceTaint> {
        let slices = self.slices.list();
        let of_pool: Vec<_> = slices
            .iter()
            .filter(|slice| slice.spec.driver == device.driver && slice.spec.pool.name == device.pool)
            .collect();
        let newest = of_pool.iter().map(|slice| slice.spec.pool.generation).max();
        let current = of_pool.into_iter().filter(|slice| Some(slice.spec.pool.generation) == newest);
        let mut all = current.flat_map(|slice| slice.spec.devices.iter().flatten());
        let found = all.find(|one| one.name == device.device);
        found.and_then(|one| one.taints.clone()).unwrap_or_default()
    }

    async fn sync(&self, key: &Key) -> Result<Option<Duration>> {
        let Some(claim) = self.claims.get(key) else { return Ok(None) };
        let allocation = claim.status.as_ref().and_then(|status| status.allocation.as_ref());
        let allocated = allocation.and_then(|one| one.allocation_timestamp.as_ref());
        let allocated =
            allocated.or(claim.metadata.creation_timestamp.as_ref()).map_or_else(now, |time| time.0);
        let ends = devices(&claim).iter().flat_map(|device| {
            self.taints(device)
                .into_iter()
                .filter_map(|taint| end(&taint, device, allocated))
                .collect::<Vec<_>>()
        });
        let Some(first) = ends.min() else { return Ok(None) };
        if let Some(left) = until(first, now()) {
            return Ok(Some(left));
        }
        for user in claim.status.iter().flat_map(|status| status.reserved_for.iter().flatten()) {
            let pod = self.pods.find(&key.namespace, &user.name).filter(|pod| {
                user.resource == "pods"
                    && pod.metadata.uid.as_ref() == Some(&user.uid)
                    && pod.metadata.deletion_timestamp.is_none()
                    && !is_terminal(pod)
            });
            let Some(pod) = pod else { continue };
            let about = reference(pod.as_ref());
            self.recorder.event(
                about,
                EventType::Normal,
                "DeviceTaintManagerEviction",
                "Marking for deletion",
            );
            let why = "Device Taint manager: deleting due to NoExecute taint";
            disrupt(&self.client, &pod, "DeletionByDeviceTaintManager", why, false).await?;
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn tolerations_put_the_end_off() {
        let at = |text: &str| text.parse::<Timestamp>().expect("a time");
        let allocated = at("2026-01-01T00:00:00Z");
        let check = |effect: &str, tolerations: Value, expected: Option<&str>| {
            let taint: DeviceTaint = serde_json::from_value(
                json!({"key": "broken", "effect": effect, "timeAdded": "2026-01-01T00:01:00Z"}),
            )
            .expect("a taint");
            let device: DeviceRequestAllocationResult = serde_json::from_value(json!({
                "driver": "d", "pool": "p", "device": "x", "request": "r", "tolerations": tolerations}))
            .expect("a device");
            assert_eq!(end(&taint, &device, allocated), expected.map(at));
        };
        check("NoExecute", json!([]), Some("2026-01-01T00:01:00Z"));
        check("NoSchedule", json!([]), None);
        check("NoExecute", json!([{"key": "broken", "operator": "Exists"}]), None);
        let some = json!([{"key": "broken", "operator": "Exists", "tolerationSeconds": 60}]);
        check("NoExecute", some, Some("2026-01-01T00:02:00Z"));
    }
}
