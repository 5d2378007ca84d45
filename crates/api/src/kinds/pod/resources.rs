//! What a pod's containers ask for together.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::kinds::json::Read;
use crate::quantity::Quantity;

/// The prefix of huge page resources.
pub(crate) const HUGE_PAGES: &str = "hugepages-";

#[derive(Clone, Copy)]
pub(crate) enum List {
    Requests,
    Limits,
}

type Amounts = BTreeMap<String, Quantity>;

/// The sum over the containers, or what the init containers need at their peak where that is more. Init containers that
/// keep running (restartPolicy Always) count among both.
pub(crate) fn aggregate(spec: &Value, list: List) -> Amounts {
    let key = match list {
        List::Requests => "requests",
        List::Limits => "limits",
    };
    let amounts = |container: &Value| -> Amounts {
        container
            .at("resources")
            .entries(key)
            .into_iter()
            .filter_map(|(name, value)| Some((name.clone(), value.as_str()?.parse().ok()?)))
            .collect()
    };
    let mut total = Amounts::new();
    for container in spec.items("containers") {
        add(&mut total, &amounts(container));
    }
    let mut sidecars = Amounts::new();
    let mut peak = Amounts::new();
    for container in spec.items("initContainers") {
        let mut own = amounts(container);
        if container.text("restartPolicy") == "Always" {
            add(&mut total, &own);
            add(&mut sidecars, &own);
            raise(&mut peak, &sidecars);
        } else {
            add(&mut own, &sidecars);
            raise(&mut peak, &own);
        }
    }
    raise(&mut total, &peak);
    total
}

fn add(to: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        let sum = to.get(name).map_or_else(|| amount.clone(), |have| have.add(amount));
        to.insert(name.clone(), sum);
    }
}

fn raise(to: &mut Amounts, other: &Amounts) {
    for (name, amount) in other {
        if to.get(name).is_none_or(|have| have < amount) {
            to.insert(name.clone(), amount.clone());
        }
    }
}
