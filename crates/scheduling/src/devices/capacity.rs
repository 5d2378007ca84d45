//! How much of a device's capacity a request takes (KEP-5075): what it asks for, brought to what the device's policy allows.

use std::collections::BTreeMap;

use api::quantity::Format;
use k8s_openapi::api::resource::v1::{
    CapacityRequestPolicy, CapacityRequestPolicyRange, CapacityRequirements, Device, DeviceCapacity,
};

use super::{Exact, exact};

/// Amounts by the capacity's name.
pub(super) type Amounts = BTreeMap<String, Exact>;

/// What the request takes of each capacity of the device; `None` if the device has not all that is asked for, or its policy
/// forbids the amount.
pub(super) fn consumed(wanted: Option<&CapacityRequirements>, device: &Device) -> Option<Amounts> {
    let asked = wanted.and_then(|wanted| wanted.requests.as_ref());
    let has = |name: &String| device.capacity.as_ref().is_some_and(|all| all.contains_key(name));
    if !asked.into_iter().flatten().all(|(name, _)| has(name)) {
        return None;
    }
    let mut taken = Amounts::new();
    for (name, capacity) in device.capacity.iter().flatten() {
        let asked = asked.and_then(|asked| asked.get(name)).map(exact);
        let amount = amount(asked, capacity);
        if capacity.request_policy.as_ref().is_some_and(|policy| forbids(policy, &amount)) {
            return None;
        }
        taken.insert(name.clone(), amount);
    }
    Some(taken)
}

/// Whether the device has room for the amount beside what others take of it.
pub(super) fn fits(amounts: &Amounts, others: &[Option<&Amounts>], device: &Device) -> bool {
    device.capacity.iter().flatten().all(|(name, capacity)| {
        let of = |amounts: &&Amounts| amounts.get(name).cloned();
        let others = others.iter().flatten().filter_map(of);
        let sum = others.chain(amounts.get(name).cloned()).reduce(|a, b| a.add(&b));
        sum.is_none_or(|sum| sum <= exact(&capacity.value))
    })
}

fn amount(asked: Option<Exact>, capacity: &DeviceCapacity) -> Exact {
    let policy = capacity.request_policy.as_ref();
    let Some(asked) = asked else {
        let default = policy.and_then(|policy| policy.default.as_ref());
        return exact(default.unwrap_or(&capacity.value));
    };
    if let Some(range) = policy.and_then(|policy| policy.valid_range.as_ref()) {
        return round_up(asked, range);
    }
    let values = policy.and_then(|policy| policy.valid_values.as_ref());
    values.into_iter().flatten().map(exact).find(|value| asked <= *value).unwrap_or(asked)
}

fn round_up(asked: Exact, range: &CapacityRequestPolicyRange) -> Exact {
    let least = exact(&range.min);
    if asked < least {
        return least;
    }
    let step = range.step.as_ref().map_or(0, |step| exact(step).value());
    if step <= 0 {
        return asked;
    }
    let least = least.value();
    let steps = (i128::from(asked.value()) - i128::from(least) + i128::from(step) - 1) / i128::from(step);
    let sum = i128::from(least) + steps * i128::from(step);
    Exact::new(i64::try_from(sum).unwrap_or(i64::MAX), Format::BinarySi)
}

fn forbids(policy: &CapacityRequestPolicy, amount: &Exact) -> bool {
    if policy.default.as_ref().is_some_and(|default| exact(default) == *amount) {
        return false;
    }
    if let Some(range) = &policy.valid_range {
        let step = range.step.as_ref().map_or(0, |step| exact(step).value());
        return range.max.as_ref().is_some_and(|most| *amount > exact(most))
            || (step > 0
                && (i128::from(amount.value()) - i128::from(exact(&range.min).value())) % i128::from(step)
                    != 0);
    }
    let values = policy.valid_values.as_deref().unwrap_or_default();
    !values.is_empty() && !values.iter().any(|value| exact(value) == *amount)
}
