//! Sums of resources: what a pod's containers ask for together (upstream: `component-helpers/resource`).

use std::collections::BTreeMap;

use serde_json::Value;

use crate::quantity::Quantity;
use crate::read::Read;

/// Amounts by resource name.
pub type Amounts = BTreeMap<String, Quantity>;

/// Reads a map of quantities; what is none is left to validation.
pub fn read(map: &Value) -> Amounts {
    let entries = map.as_object().into_iter().flatten();
    entries.filter_map(|(name, value)| Some((name.clone(), parse(value)?))).collect()
}

/// One quantity, given as text or number.
pub fn parse(value: &Value) -> Option<Quantity> {
    match value {
        Value::String(text) => text.parse().ok(),
        Value::Number(number) => number.to_string().parse().ok(),
        _ => None,
    }
}

/// Adds every amount of `more`.
pub fn add(to: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        let sum = to.get(name).map_or_else(|| amount.clone(), |own| own.add(amount));
        to.insert(name.clone(), sum);
    }
}

/// Raises every amount to that of `other`.
fn raise(to: &mut Amounts, other: &Amounts) {
    for (name, amount) in other {
        if to.get(name).is_none_or(|own| own < amount) {
            to.insert(name.clone(), amount.clone());
        }
    }
}

/// The pod's requests (`requests`) or limits (`limits`): the sum of the containers and sidecars, or what the largest init
/// container needs beside the sidecars before it, if that is more; then what is said of the pod as a whole.
pub fn of_pod(spec: &Value, which: &str) -> Amounts {
    let own = |container: &Value| read(container.at("resources").at(which));
    let mut total = Amounts::new();
    for container in spec.items("containers") {
        add(&mut total, &own(container));
    }
    let (mut sidecars, mut largest) = (Amounts::new(), Amounts::new());
    for container in spec.items("initContainers") {
        let mut needs = own(container);
        if container.text("restartPolicy") == "Always" {
            add(&mut total, &needs);
            add(&mut sidecars, &needs);
            needs = sidecars.clone();
        } else {
            add(&mut needs, &sidecars);
        }
        raise(&mut largest, &needs);
    }
    raise(&mut total, &largest);
    for (name, amount) in read(spec.at("resources").at(which)) {
        if matches!(name.as_str(), "cpu" | "memory") || name.starts_with("hugepages-") {
            total.insert(name, amount);
        }
    }
    total
}
