//! ResourceQuota: what a namespace may use altogether. A request is checked against what the quotas say is used, and charged
//! to them before it goes on; a controller counts again what is really there (upstream: `admission/plugin/resourcequota`).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Weak};

use api::quota::amounts::{self, Amounts};
use api::quota::{Charge, compute, in_scope, is_ignored, terminating};
use futures::future::{BoxFuture, FutureExt};
use parking_lot::Mutex;
use serde_json::{Map, Value, json};

use super::Scene;
use crate::read::{Read, object_mut};
use crate::{Operation, Status};

/// How often a charge is tried again when somebody else has written the quota meanwhile.
const TRIES: usize = 8;

/// One lock per namespace that is being charged, so that requests queue up rather than collide.
#[derive(Default)]
pub(crate) struct Locks(Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>);

impl Locks {
    fn of(&self, namespace: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.0.lock();
        if let Some(lock) = locks.get(namespace).and_then(Weak::upgrade) {
            return lock;
        }
        locks.retain(|_, lock| lock.strong_count() > 0);
        let lock = Arc::new(tokio::sync::Mutex::new(()));
        locks.insert(namespace.to_owned(), Arc::downgrade(&lock));
        lock
    }
}

pub(super) fn validate<'a>(
    scene: Scene<'a>,
    object: &'a Value,
    old: Option<&'a Value>,
) -> BoxFuture<'a, Result<(), Status>> {
    async move {
        let attributes = scene.request.attributes;
        let (group, resource) = (attributes.group.as_str(), attributes.resource.as_str());
        let namespace = scene.namespace();
        let charge = Charge::of(group, resource);
        if namespace.is_empty()
            || is_ignored(group, resource)
            || !handles(&scene, charge, object, old)
            || scene.cluster.list("", "resourcequotas", Some(namespace)).items.is_empty()
        {
            return Ok(());
        }
        let lock = scene.locks.of(namespace);
        let _guard = lock.lock().await;
        let mut result = Ok(());
        for _ in 0..TRIES {
            // What was charged a moment ago must be seen, and a quota that has just been given its limits.
            scene.cluster.fresh("", "resourcequotas").await;
            let quotas = scene.cluster.list("", "resourcequotas", Some(namespace)).items;
            let charged = check(&scene, charge, &quotas, object, old)?;
            if scene.request.dry_run {
                return Ok(());
            }
            result = write(&scene, charged).await;
            match &result {
                Err(status) if status.reason() == "Conflict" => {}
                _ => break,
            }
        }
        result
    }
    .boxed()
}

fn handles(scene: &Scene<'_>, charge: Charge, object: &Value, old: Option<&Value>) -> bool {
    let (create, update) = (scene.operation() == Operation::Create, scene.operation() == Operation::Update);
    match (charge, scene.request.attributes.subresource.as_str()) {
        (Charge::Pod, "") => create || old.is_some_and(|old| terminating(old) != terminating(object)),
        (Charge::Pod, "resize") => update,
        (Charge::Service | Charge::Claim | Charge::Devices, "") => create || update,
        (Charge::Claim, "status") => old
            .is_some_and(|old| old.at("status.allocatedResources") != object.at("status.allocatedResources")),
        (Charge::Count, "") => create,
        _ => false,
    }
}

/// The quotas that the request changes, with what will be used; or why it is refused.
fn check(
    scene: &Scene<'_>,
    charge: Charge,
    quotas: &[Arc<Value>],
    object: &Value,
    old: Option<&Value>,
) -> Result<Vec<Value>, Status> {
    let attributes = scene.request.attributes;
    let (group, resource) = (attributes.group.as_str(), attributes.resource.as_str());
    let now = jiff::Timestamp::now();
    let used_by = |object: &Value| charge.usage(group, resource, object, now);
    let usage = used_by(object);
    let negative: Vec<&str> =
        usage.iter().filter(|(_, amount)| amount.is_negative()).map(|(name, _)| name.as_str()).collect();
    if !negative.is_empty() {
        let why = format!("quota usage is negative for resource(s): {}", negative.join(","));
        return Err(scene.forbid(object, why));
    }
    let before = old.filter(|old| {
        scene.operation() == Operation::Update && !old.text("metadata.resourceVersion").is_empty()
    });
    let mut charged = Vec::new();
    for quota in quotas {
        let hard = amounts::read(quota.at("status.hard"));
        let concerned: BTreeSet<&str> =
            hard.keys().map(String::as_str).filter(|name| charge.concerns(group, resource, name)).collect();
        if concerned.is_empty() || !in_scope(quota, charge, object) {
            continue;
        }
        let name = quota.name();
        if charge == Charge::Pod {
            required(object, &concerned)
                .map_err(|why| scene.forbid(object, format!("failed quota: {name}: {why}")))?;
        }
        let used = amounts::read(quota.at("status.used"));
        if concerned.iter().any(|resource| !used.contains_key(*resource)) {
            let list: Vec<&str> = concerned.iter().copied().collect();
            let why = format!("status unknown for quota: {name}, resources: {}", list.join(","));
            return Err(scene.forbid(object, why));
        }
        let mut delta = usage.clone();
        if let Some(before) = before.filter(|before| in_scope(quota, charge, before)) {
            for (name, amount) in used_by(before) {
                if let Some(now) = delta.get(&name) {
                    let more = now.sub(&amount);
                    delta.insert(name, more);
                }
            }
        }
        delta.retain(|name, amount| hard.contains_key(name) && !amount.is_zero() && !amount.is_negative());
        if delta.is_empty() {
            continue;
        }
        let mut after = used.clone();
        amounts::add(&mut after, &delta);
        if attributes.subresource != "status" {
            let over: Vec<&String> = delta.keys().filter(|name| after[*name] > hard[*name]).collect();
            if !over.is_empty() {
                let why = format!(
                    "exceeded quota: {name}, requested: {}, used: {}, limited: {}",
                    shown(&delta, &over),
                    shown(&used, &over),
                    shown(&hard, &over)
                );
                return Err(scene.forbid(object, why));
            }
        }
        let mut new = (**quota).clone();
        let after: Map<String, Value> =
            after.into_iter().map(|(name, amount)| (name, json!(amount.to_string()))).collect();
        object_mut(&mut new, "status").insert("used".into(), after.into());
        charged.push(new);
    }
    Ok(charged)
}

async fn write(scene: &Scene<'_>, charged: Vec<Value>) -> Result<(), Status> {
    for quota in charged {
        let namespace = scene.namespace();
        match scene.cluster.update_status("", "v1", "resourcequotas", namespace, quota).await {
            Ok(_) => {}
            // It binds nobody any more.
            Err(status) if status.code() == 404 => {}
            Err(status) => return Err(status),
        }
    }
    Ok(())
}

fn shown(amounts: &Amounts, names: &[&String]) -> String {
    let one = |name: &&String| amounts.get(*name).map(|amount| format!("{name}={amount}"));
    names.iter().filter_map(one).collect::<Vec<_>>().join(",")
}

/// A quota on cpu or memory demands that every container says what it needs.
fn required(pod: &Value, concerned: &BTreeSet<&str>) -> Result<(), String> {
    const DEMANDED: [&str; 6] =
        ["cpu", "memory", "requests.cpu", "requests.memory", "limits.cpu", "limits.memory"];
    if pod.at("spec.resources").as_object().is_some_and(|map| !map.is_empty()) {
        return Ok(());
    }
    let mut missing: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let spec = pod.at("spec");
    for container in spec.items("containers").iter().chain(spec.items("initContainers")) {
        let requests = amounts::read(container.at("resources.requests"));
        let limits = amounts::read(container.at("resources.limits"));
        let own = compute(&requests, &limits);
        for name in DEMANDED.iter().filter(|name| concerned.contains(*name)) {
            if !own.contains_key(*name) {
                missing.entry(name).or_default().insert(container.text("name"));
            }
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    let parts: Vec<String> = missing
        .into_iter()
        .map(|(name, who)| format!("{name} for: {}", who.into_iter().collect::<Vec<_>>().join(",")))
        .collect();
    Err(format!("must specify {}", parts.join("; ")))
}
