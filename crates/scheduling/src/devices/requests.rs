//! What claims ask for: each request with its alternatives, and the devices that constraints tie together.

use std::sync::Arc;

use k8s_openapi::api::resource::v1::{
    CapacityRequirements, Device, DeviceAttribute, DeviceClass, DeviceSelector, DeviceTaint,
    DeviceToleration, ResourceClaim,
};

use super::Inventory;

/// Devices of a claim, at most (`AllocationResultsMaxSize`).
pub(super) const MOST_RESULTS: usize = 32;

/// How many devices are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Amount {
    Exactly(usize),
    /// Each that matches, and at least one.
    All,
}

/// A request, or one of its alternatives.
#[derive(Debug)]
pub(super) struct Wanted<'a> {
    /// `request`, or `request/alternative`: how results and constraints name it.
    pub name: String,
    pub class: &'a DeviceClass,
    pub selectors: &'a [DeviceSelector],
    pub tolerations: &'a [DeviceToleration],
    pub capacity: Option<&'a CapacityRequirements>,
    pub amount: Amount,
    pub admin: bool,
}

/// A request of a claim with its alternatives, the preferred first; one that has none is its own.
#[derive(Debug)]
pub(super) struct Request<'a> {
    pub name: &'a str,
    pub alternatives: Vec<Wanted<'a>>,
}

/// A claim that is to be allocated.
#[derive(Debug)]
pub(super) struct Asked<'a> {
    pub claim: &'a ResourceClaim,
    pub requests: Vec<Request<'a>>,
    pub constraints: Vec<Constraint<'a>>,
}

/// A constraint over devices of a claim.
#[derive(Debug)]
pub(super) struct Constraint<'a> {
    requests: &'a [String],
    attribute: &'a str,
    /// All values differ, rather than being the same.
    distinct: bool,
}

impl Constraint<'_> {
    /// Whether it is about devices of the request.
    fn binds(&self, request: &str) -> bool {
        let main = request.split('/').next().unwrap_or_default();
        self.requests.is_empty() || self.requests.iter().any(|name| name == request || name == main)
    }

    /// Whether it still holds when the device, of the driver, joins those that were chosen.
    pub(super) fn allows<'d>(
        &self,
        request: &str,
        driver: &str,
        device: &Device,
        chosen: impl Iterator<Item = (&'d str, &'d str, &'d Device)>,
    ) -> bool {
        if !self.binds(request) {
            return true;
        }
        let Some(value) = attribute(driver, device, self.attribute) else { return false };
        let mut others = chosen.filter(|(request, _, _)| self.binds(request));
        others.all(|(_, driver, device)| {
            attribute(driver, device, self.attribute)
                .is_some_and(|other| is_known(value) && (value == other) != self.distinct)
        })
    }
}

/// Whether the value is of a kind that can be compared.
fn is_known(value: &DeviceAttribute) -> bool {
    value.string.is_some() || value.int.is_some() || value.bool.is_some() || value.version.is_some()
}

/// The attribute of a qualified name; one without a domain is of the driver's.
fn attribute<'a>(driver: &str, device: &'a Device, name: &str) -> Option<&'a DeviceAttribute> {
    let attributes = device.attributes.as_ref()?;
    attributes.get(name).or_else(|| {
        let (domain, plain) = name.split_once('/')?;
        (domain == driver).then(|| attributes.get(plain)).flatten()
    })
}

/// Reads what a claim asks for.
///
/// # Errors
/// If no node can ever satisfy it as it is.
pub(super) fn read<'a>(inventory: &'a Inventory, claim: &'a ResourceClaim) -> Result<Asked<'a>, String> {
    let name = claim.metadata.name.as_deref().unwrap_or_default();
    let devices = claim.spec.devices.as_ref();
    let class_of = |class: &str, request: &str| -> Result<&'a DeviceClass, String> {
        let found = inventory.class(class).map(Arc::as_ref);
        found.ok_or_else(|| format!("request {request}: device class {class} does not exist"))
    };
    let amount_of = |mode: Option<&str>, count: Option<i64>, request: &str| match mode {
        Some("All") => Ok(Amount::All),
        None | Some("" | "ExactCount") => {
            // None stands for one; more than a result can hold are never found.
            Ok(Amount::Exactly(usize::try_from(count.unwrap_or(1)).unwrap_or(usize::MAX)))
        }
        Some(mode) => Err(format!("claim {name}, request {request}: unsupported count mode {mode}")),
    };
    let mut requests = Vec::new();
    for request in devices.iter().flat_map(|devices| devices.requests.iter().flatten()) {
        let mut alternatives = Vec::new();
        if let Some(one) = &request.exactly {
            alternatives.push(Wanted {
                name: request.name.clone(),
                class: class_of(&one.device_class_name, &request.name)?,
                selectors: one.selectors.as_deref().unwrap_or_default(),
                tolerations: one.tolerations.as_deref().unwrap_or_default(),
                capacity: one.capacity.as_ref(),
                amount: amount_of(one.allocation_mode.as_deref(), one.count, &request.name)?,
                admin: one.admin_access == Some(true),
            });
        }
        for one in request.first_available.iter().flatten() {
            let full = format!("{}/{}", request.name, one.name);
            alternatives.push(Wanted {
                class: class_of(&one.device_class_name, &full)?,
                selectors: one.selectors.as_deref().unwrap_or_default(),
                tolerations: one.tolerations.as_deref().unwrap_or_default(),
                capacity: one.capacity.as_ref(),
                amount: amount_of(one.allocation_mode.as_deref(), one.count, &full)?,
                admin: false,
                name: full,
            });
        }
        if alternatives.is_empty() {
            return Err(format!("resource claim {name}, request {}: unknown request type", request.name));
        }
        for wanted in &alternatives {
            if let Some(at) = wanted.selectors.iter().position(|selector| selector.cel.is_none()) {
                return Err(format!(
                    "claim {name}, request {}, selector #{at}: CEL expression empty (unsupported selector type?)",
                    wanted.name
                ));
            }
        }
        requests.push(Request { name: &request.name, alternatives });
    }
    let least = |request: &Request<'_>| {
        let one = |wanted: &Wanted<'_>| match wanted.amount {
            Amount::Exactly(count) => count,
            Amount::All => 1,
        };
        request.alternatives.iter().map(one).min().unwrap_or_default()
    };
    let total = requests.iter().map(least).fold(0, usize::saturating_add);
    if total > MOST_RESULTS {
        return Err(format!(
            "claim {name}: number of requested devices {total} exceeds the claim limit of {MOST_RESULTS}"
        ));
    }
    let mut constraints = Vec::new();
    let listed = devices.iter().flat_map(|devices| devices.constraints.iter().flatten());
    for (at, one) in listed.enumerate() {
        let (attribute, distinct) = match (&one.match_attribute, &one.distinct_attribute) {
            (Some(attribute), _) => (attribute, false),
            (None, Some(attribute)) => (attribute, true),
            (None, None) => {
                return Err(format!(
                    "claim {name}, constraint #{at}: empty constraint (unsupported constraint type?)"
                ));
            }
        };
        let requests = one.requests.as_deref().unwrap_or_default();
        constraints.push(Constraint { requests, attribute, distinct });
    }
    Ok(Asked { claim, requests, constraints })
}

/// Whether a taint of the device keeps the request away from it.
pub(super) fn is_tainted(device: &Device, tolerations: &[DeviceToleration]) -> bool {
    let mut taints = device.taints.iter().flatten();
    taints.any(|taint| {
        // Effects that are not known here do nothing.
        matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute")
            && !tolerations.iter().any(|toleration| tolerates(toleration, taint))
    })
}

fn tolerates(toleration: &DeviceToleration, taint: &DeviceTaint) -> bool {
    let is = |wanted: &Option<String>, real: &str| {
        wanted.as_deref().is_none_or(|wanted| wanted.is_empty() || wanted == real)
    };
    is(&toleration.effect, &taint.effect)
        && is(&toleration.key, &taint.key)
        && match toleration.operator.as_deref() {
            Some("Exists") => true,
            None | Some("" | "Equal") => {
                toleration.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default()
            }
            Some(_) => false,
        }
}
