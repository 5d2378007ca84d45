//! ServiceCIDRs: each is ready as soon as it is seen, and goes only when no address of a Service would be left without a
//! range (KEP-1880).

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use informer::{Change, Informer, Key, Queue};
use ipnet::IpNet;
use k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::Client;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;

use crate::kit::error::found;
use crate::kit::{Context, Result, now, plus_seconds, time, until};

const FINALIZER: &str = "networking.k8s.io/service-cidr-finalizer";
const MANAGED_BY: &str = "ipaddress.kubernetes.io/managed-by";
const ALLOCATOR: &str = "ipallocator.k8s.io";
/// So long allocators may still give out addresses of a range that is being deleted.
const GRACE_SECONDS: i64 = 10;

struct Controller {
    client: Client,
    ranges: Arc<Informer<ServiceCIDR>>,
    addresses: Arc<Informer<IPAddress>>,
}

fn cidrs(range: &ServiceCIDR) -> impl Iterator<Item = IpNet> {
    let texts = range.spec.iter().flat_map(|spec| spec.cidrs.iter().flatten());
    texts.filter_map(|text| text.parse().ok())
}

/// Runs the controller.
pub(crate) async fn run(context: Context) {
    let this = Arc::new(Controller {
        client: context.client.clone(),
        ranges: context.informer(),
        addresses: context.informer(),
    });
    this.ranges.synced().await;
    this.addresses.synced().await;
    let queue = Queue::new();
    let (to, all) = (queue.clone(), this.ranges.clone());
    this.ranges.on_change(move |change| {
        to.add(Key::of(change.latest().as_ref()));
        // A range beside it may be free to go now, or must not any more.
        all.list().iter().filter(|one| leaving(one)).for_each(|one| to.add(Key::of(one.as_ref())));
    });
    let (to, all) = (queue.clone(), this.ranges.clone());
    this.addresses.on_change(move |change| {
        let Change::Deleted(_) = change else { return };
        all.list().iter().filter(|one| leaving(one)).for_each(|one| to.add(Key::of(one.as_ref())));
    });
    let sync = move |key: Key| {
        let this = this.clone();
        async move { this.sync(&key.name).await }
    };
    context.work("service-cidr-controller", 2, queue, sync).await;
}

fn leaving(range: &ServiceCIDR) -> bool {
    range.metadata.deletion_timestamp.is_some()
}

/// Whether every address given out stays within some range when this one is gone.
fn can_go(range: &ServiceCIDR, all: &[Arc<ServiceCIDR>], addresses: &[IpAddr]) -> bool {
    let others: Vec<IpNet> = all
        .iter()
        .filter(|one| one.metadata.name != range.metadata.name)
        .flat_map(|one| cidrs(one))
        .collect();
    cidrs(range).all(|own| {
        others.iter().any(|other| other.contains(&own))
            || addresses
                .iter()
                .filter(|address| own.contains(*address))
                .all(|address| others.iter().any(|other| other.contains(address)))
    })
}

impl Controller {
    async fn sync(&self, name: &str) -> Result<Option<Duration>> {
        let Some(range) = self.ranges.get(&Key::new("", name)) else { return Ok(None) };
        let api = Api::<ServiceCIDR>::all(self.client.clone());
        let has = range.metadata.finalizers.iter().flatten().any(|one| one == FINALIZER);
        let Some(deleted) = &range.metadata.deletion_timestamp else {
            if !has {
                let patch = Patch::Strategic(json!({"metadata": {"finalizers": [FINALIZER]}}));
                found(api.patch(name, &PatchParams::default(), &patch).await)?;
            }
            return self.set_ready(&api, &range, "True", "", "Kubernetes Service CIDR is ready").await;
        };
        if !has {
            return Ok(None);
        }
        let managed = |address: &Arc<IPAddress>| {
            let labels = address.metadata.labels.as_ref();
            let ours = labels.and_then(|labels| labels.get(MANAGED_BY)).is_some_and(|by| by == ALLOCATOR);
            address.metadata.name.as_ref().filter(|_| ours)?.parse().ok()
        };
        let addresses: Vec<IpAddr> = self.addresses.list().iter().filter_map(managed).collect();
        if !can_go(&range, &self.ranges.list(), &addresses) {
            let message = "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new ServiceCIDR";
            return self.set_ready(&api, &range, "False", "Terminating", message).await;
        }
        if let Some(left) = until(plus_seconds(deleted.0, GRACE_SECONDS), now()) {
            return Ok(Some(left));
        }
        let patch =
            Patch::Strategic(json!({"metadata": {"$deleteFromPrimitiveList/finalizers": [FINALIZER]}}));
        found(api.patch(name, &PatchParams::default(), &patch).await)?;
        Ok(None)
    }

    async fn set_ready(
        &self,
        api: &Api<ServiceCIDR>,
        range: &ServiceCIDR,
        status: &str,
        reason: &str,
        message: &str,
    ) -> Result<Option<Duration>> {
        let conditions = range.status.as_ref().and_then(|status| status.conditions.as_ref());
        let old = conditions.into_iter().flatten().find(|one| one.type_ == "Ready");
        // The server that made its own range ready has said so in its own words.
        if old.is_some_and(|old| old.status == status && old.reason == reason) {
            return Ok(None);
        }
        let since = old.filter(|old| old.status == status).map(|old| old.last_transition_time.clone());
        let condition = Condition {
            type_: "Ready".into(),
            status: status.into(),
            reason: reason.into(),
            message: message.into(),
            last_transition_time: since.unwrap_or_else(|| time(now())),
            observed_generation: None,
        };
        let mut new = range.clone();
        let conditions = new.status.get_or_insert_default().conditions.get_or_insert_default();
        conditions.retain(|one| one.type_ != "Ready");
        conditions.push(condition);
        let name = range.metadata.name.as_deref().unwrap_or_default();
        found(api.replace_status(name, &PostParams::default(), &new).await)?;
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_goes_when_others_hold_its_addresses() {
        let range = |name: &str, cidrs: &[&str]| -> Arc<ServiceCIDR> {
            let range = json!({"metadata": {"name": name}, "spec": {"cidrs": cidrs}});
            Arc::new(serde_json::from_value(range).expect("a range"))
        };
        let check = |all: &[Arc<ServiceCIDR>], addresses: &[&str], expected: bool| {
            let addresses: Vec<IpAddr> =
                addresses.iter().map(|address| address.parse().expect("an address")).collect();
            assert_eq!(can_go(&all[0], all, &addresses), expected, "{addresses:?}");
        };
        let own = range("own", &["10.0.1.0/24"]);
        check(std::slice::from_ref(&own), &[], true);
        check(std::slice::from_ref(&own), &["10.0.1.5"], false);
        check(std::slice::from_ref(&own), &["10.0.2.5"], true);
        check(&[own.clone(), range("whole", &["10.0.0.0/16"])], &["10.0.1.5"], true);
        check(&[own, range("half", &["10.0.1.0/25"])], &["10.0.1.5", "10.0.1.200"], false);
    }
}
