//! The sizes that the sets of a deployment should have. Pure.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, ReplicaSet};

use super::revision::{self, MAXIMUM};
use super::spec_of;
use crate::kit::intstr;

pub(super) fn desired(spec: &DeploymentSpec) -> i32 {
    spec.replicas.unwrap_or(1)
}

pub(super) fn size(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

pub(super) fn available(set: &ReplicaSet) -> i32 {
    set.status.as_ref().and_then(|status| status.available_replicas).unwrap_or_default()
}

pub(super) fn is_recreate(spec: &DeploymentSpec) -> bool {
    spec.strategy.as_ref().and_then(|strategy| strategy.type_.as_deref()) == Some("Recreate")
}

fn fenceposts(spec: &DeploymentSpec) -> (i32, i32) {
    let rolling = spec.strategy.as_ref().and_then(|strategy| strategy.rolling_update.as_ref());
    intstr::fenceposts(
        rolling.and_then(|rolling| rolling.max_surge.as_ref()),
        rolling.and_then(|rolling| rolling.max_unavailable.as_ref()),
        desired(spec),
    )
}

/// How many pods there may be beyond those desired.
pub(super) fn max_surge(spec: &DeploymentSpec) -> i32 {
    if is_recreate(spec) { 0 } else { fenceposts(spec).0 }
}

/// How many of those desired may be missing.
pub(super) fn max_unavailable(spec: &DeploymentSpec) -> i32 {
    if is_recreate(spec) || desired(spec) == 0 { 0 } else { fenceposts(spec).1.min(desired(spec)) }
}

/// The size of the new set: as large as the surge allows beside the others, which are `total` pods in all.
pub(super) fn new_size(spec: &DeploymentSpec, current: i32, total: i32) -> i32 {
    if is_recreate(spec) {
        return desired(spec);
    }
    let most = desired(spec) + max_surge(spec);
    if total >= most { current } else { current + (most - total).min(desired(spec) - current) }
}

type Sizes = Vec<(Arc<ReplicaSet>, i32)>;

/// The next sizes of the old sets: first without their broken pods, then as small as availability allows.
pub(super) fn shrink(spec: &DeploymentSpec, new: &ReplicaSet, old: &[Arc<ReplicaSet>]) -> Sizes {
    let mut old: Vec<(Arc<ReplicaSet>, i32)> =
        old.iter().filter(|set| size(set) > 0).map(|set| (set.clone(), size(set))).collect();
    old.sort_by_key(|(set, _)| revision::age(set));
    let total: i32 = old.iter().map(|(_, size)| size).sum::<i32>() + size(new);
    let least = desired(spec) - max_unavailable(spec);
    let mut room = total - least - (size(new) - available(new));
    if old.is_empty() || room <= 0 {
        return Vec::new();
    }
    for (set, size) in &mut old {
        let broken = (*size - available(set)).clamp(0, room.max(0));
        *size -= broken;
        room -= broken;
    }
    let all_available = available(new) + old.iter().map(|(set, _)| available(set)).sum::<i32>();
    let mut surplus = (all_available - least).max(0);
    for (_, size) in &mut old {
        let fewer = (*size).min(surplus);
        *size -= fewer;
        surplus -= fewer;
    }
    old.into_iter().filter(|(set, now)| *now != size(set)).collect()
}

/// Whether the new set has taken over entirely.
fn is_saturated(spec: &DeploymentSpec, new: &ReplicaSet) -> bool {
    size(new) == desired(spec)
        && revision::number(new, revision::DESIRED) == Some(desired(spec))
        && available(new) == desired(spec)
}

/// The sizes after a change of the deployment's own size: one set takes it all; several share it in proportion,
/// so that a rollout that is under way does not become riskier.
pub(super) fn scale(
    deployment: &Deployment,
    new: Option<&Arc<ReplicaSet>>,
    old: &[Arc<ReplicaSet>],
) -> Sizes {
    let spec = spec_of(deployment);
    let mut active: Vec<_> = old.iter().chain(new).filter(|set| size(set) > 0).cloned().collect();
    if active.len() < 2 {
        let newest = old.iter().max_by_key(|set| revision::age(set));
        let Some(one) = active.pop().or_else(|| new.or(newest).cloned()) else { return Vec::new() };
        let wanted = desired(&spec);
        return if size(&one) == wanted { Vec::new() } else { vec![(one, wanted)] };
    }
    if new.is_some_and(|new| is_saturated(&spec, new)) {
        return old.iter().filter(|set| size(set) > 0).map(|set| (set.clone(), 0)).collect();
    }
    if is_recreate(&spec) {
        return Vec::new();
    }
    let allowed = if desired(&spec) > 0 { desired(&spec) + max_surge(&spec) } else { 0 };
    let to_add = allowed - active.iter().map(|set| size(set)).sum::<i32>();
    // The largest first; of equals the newer when growing, the older when shrinking.
    active.sort_by(|a, b| {
        let ages = revision::age(a).cmp(&revision::age(b));
        size(b).cmp(&size(a)).then(if to_add > 0 { ages.reverse() } else { ages })
    });
    let mut added = 0;
    let mut sizes: Sizes = Vec::new();
    for set in active {
        let share = share(deployment, &set, to_add, added);
        added += share;
        sizes.push((set.clone(), size(&set) + share));
    }
    if let Some((_, largest)) = sizes.first_mut() {
        *largest = (*largest + to_add - added).max(0);
    }
    sizes
}

fn share(deployment: &Deployment, set: &ReplicaSet, to_add: i32, added: i32) -> i32 {
    let spec = spec_of(deployment);
    if to_add == added {
        return 0;
    }
    let fraction = if desired(&spec) == 0 {
        -size(set)
    } else {
        let total = deployment.status.as_ref().and_then(|status| status.replicas).unwrap_or_default();
        let before = revision::number(set, MAXIMUM).filter(|before| *before != 0).unwrap_or(total);
        if before == 0 {
            return 0;
        }
        let now = f64::from(size(set)) * f64::from(desired(&spec) + max_surge(&spec)) / f64::from(before);
        now.round() as i32 - size(set)
    };
    if to_add > 0 { fraction.min(to_add - added) } else { fraction.max(to_add - added) }
}

#[cfg(test)]
mod tests;
