//! Amounts of resources: what a pod asks for and what a node has. CPU counts in thousandths, all else in
//! units; a fraction is rounded up, as `Quantity.MilliValue` and `Quantity.Value` do upstream.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// What a container without a request counts as when nodes are compared (never when they are filtered).
const ASSUMED_CPU: i64 = 100;
const ASSUMED_MEMORY: i64 = 200 * 1024 * 1024;

/// An amount of each resource.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// Thousandths of a CPU.
    pub cpu: i64,
    /// Bytes.
    pub memory: i64,
    /// Bytes.
    pub ephemeral_storage: i64,
    /// The number of pods (nodes only).
    pub pods: i64,
    /// Extended resources, huge pages and attachable volumes, by name.
    pub scalar: BTreeMap<String, i64>,
}

impl Resources {
    /// Reads a resource list; amounts that cannot be read count as none.
    pub fn from_list(list: &BTreeMap<String, Quantity>) -> Self {
        let mut sum = Self::default();
        for (name, quantity) in list {
            sum.set(name, quantity);
        }
        sum
    }

    fn set(&mut self, name: &str, quantity: &Quantity) {
        match name {
            "cpu" => self.cpu = milli_value(quantity),
            "memory" => self.memory = value(quantity),
            "ephemeral-storage" => self.ephemeral_storage = value(quantity),
            "pods" => self.pods = value(quantity),
            _ => {
                self.scalar.insert(name.to_owned(), value(quantity));
            }
        }
    }

    /// Adds another amount.
    pub fn add(&mut self, other: &Self) {
        self.cpu += other.cpu;
        self.memory += other.memory;
        self.ephemeral_storage += other.ephemeral_storage;
        for (name, amount) in &other.scalar {
            *self.scalar.entry(name.clone()).or_default() += amount;
        }
    }

    /// Takes another amount away.
    pub fn subtract(&mut self, other: &Self) {
        self.cpu -= other.cpu;
        self.memory -= other.memory;
        self.ephemeral_storage -= other.ephemeral_storage;
        for (name, amount) in &other.scalar {
            *self.scalar.entry(name.clone()).or_default() -= amount;
        }
    }

    fn raise_to(&mut self, other: &Self) {
        self.cpu = self.cpu.max(other.cpu);
        self.memory = self.memory.max(other.memory);
        self.ephemeral_storage = self.ephemeral_storage.max(other.ephemeral_storage);
        for (name, amount) in &other.scalar {
            let most = self.scalar.entry(name.clone()).or_default();
            *most = (*most).max(*amount);
        }
    }
}

/// What a pod asks for: the sum of its containers and restartable init containers, or the most that an init
/// container needs beside those started before it, if that is more; then the pod's own request where it is set
/// (KEP-2837), then the overhead. KEP-753 gives the rule for restartable init containers.
pub fn request(pod: &Pod) -> Resources {
    combine(pod, |container| container_requests(container).map(Resources::from_list).unwrap_or_default())
}

/// As [`request`], CPU and memory only, but a container without a request counts as a small one.
pub fn assumed_request(pod: &Pod) -> (i64, i64) {
    let sum = combine(pod, |container| {
        let list = container_requests(container);
        let asked = list.map(Resources::from_list).unwrap_or_default();
        let has = |name| list.is_some_and(|list| list.contains_key(name));
        Resources {
            cpu: if has("cpu") { asked.cpu } else { ASSUMED_CPU },
            memory: if has("memory") { asked.memory } else { ASSUMED_MEMORY },
            ..Resources::default()
        }
    });
    (sum.cpu, sum.memory)
}

fn container_requests(container: &Container) -> Option<&BTreeMap<String, Quantity>> {
    container.resources.as_ref()?.requests.as_ref()
}

fn combine(pod: &Pod, one: impl Fn(&Container) -> Resources) -> Resources {
    let Some(spec) = &pod.spec else { return Resources::default() };
    let mut sum = Resources::default();
    for container in &spec.containers {
        sum.add(&one(container));
    }
    let mut restartable = Resources::default();
    let mut most = Resources::default();
    for container in spec.init_containers.iter().flatten() {
        let mut asked = one(container);
        if container.restart_policy.as_deref() == Some("Always") {
            sum.add(&asked);
            restartable.add(&asked);
            most.raise_to(&restartable);
        } else {
            asked.add(&restartable);
            most.raise_to(&asked);
        }
    }
    sum.raise_to(&most);
    if let Some(ResourceRequirements { requests: Some(requests), .. }) = &spec.resources {
        for (name, quantity) in requests {
            sum.set(name, quantity);
        }
    }
    if let Some(overhead) = &spec.overhead {
        sum.add(&Resources::from_list(overhead));
    }
    sum.pods = 0;
    sum
}

/// The amount in whole units, rounded up.
pub fn value(quantity: &Quantity) -> i64 {
    nano(&quantity.0).map_or(0, |nano| clamp(div_up(nano, 1_000_000_000)))
}

/// The amount in thousandths, rounded up.
pub fn milli_value(quantity: &Quantity) -> i64 {
    nano(&quantity.0).map_or(0, |nano| clamp(div_up(nano, 1_000_000)))
}

fn clamp(number: i128) -> i64 {
    i64::try_from(number).unwrap_or(if number > 0 { i64::MAX } else { i64::MIN })
}

fn div_up(number: i128, by: i128) -> i128 {
    number.div_euclid(by) + i128::from(number.rem_euclid(by) != 0)
}

/// The amount in billionths, rounded up; `None` if it is not a quantity.
fn nano(text: &str) -> Option<i128> {
    let end =
        text.find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '+' | '-'))).unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (negative, number) = match number.as_bytes().first()? {
        b'-' => (true, &number[1..]),
        b'+' => (false, &number[1..]),
        _ => (false, number),
    };
    let (binary, mut exponent) = match suffix {
        "n" => (0, -9),
        "u" => (0, -6),
        "m" => (0, -3),
        "" => (0, 0),
        "k" => (0, 3),
        "M" => (0, 6),
        "G" => (0, 9),
        "T" => (0, 12),
        "P" => (0, 15),
        "E" => (0, 18),
        "Ki" => (10, 0),
        "Mi" => (20, 0),
        "Gi" => (30, 0),
        "Ti" => (40, 0),
        "Pi" => (50, 0),
        "Ei" => (60, 0),
        _ => (0, suffix.strip_prefix(['e', 'E'])?.parse::<i32>().ok()?),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    // Digits past the twelfth after the point are below any use here.
    let fraction = &fraction[..fraction.len().min(12)];
    exponent -= i32::try_from(fraction.len()).ok()?;
    let digits: i128 = format!("{whole}{fraction}").parse().ok()?;
    let scaled = digits.checked_mul(1 << binary)?;
    let exponent = exponent + 9;
    let power = 10i128.checked_pow(exponent.unsigned_abs())?;
    let scaled = if exponent >= 0 { scaled.checked_mul(power)? } else { div_up(scaled, power) };
    Some(if negative { -scaled } else { scaled })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn quantities() {
        for (text, units, milli) in [
            ("1", 1, 1000),
            ("100m", 1, 100),
            ("1.5", 2, 1500),
            ("1Ki", 1024, 1_024_000),
            ("0.5Gi", 536_870_912, 536_870_912_000),
            ("1e3", 1000, 1_000_000),
            ("2E", 2_000_000_000_000_000_000, i64::MAX),
            ("1n", 1, 1),
            ("-1", -1, -1000),
            ("nonsense", 0, 0),
        ] {
            let quantity = Quantity(text.into());
            assert_eq!((value(&quantity), milli_value(&quantity)), (units, milli), "{text}");
        }
    }

    #[test]
    fn init_containers_sidecars_and_overhead() {
        let asks = |cpu: &str| json!({"requests": {"cpu": cpu}});
        let pod: Pod = serde_json::from_value(json!({"spec": {
            "initContainers": [
                {"name": "i1", "resources": asks("2")},
                {"name": "s1", "resources": asks("1"), "restartPolicy": "Always"},
                {"name": "i2", "resources": asks("3")},
            ],
            "containers": [{"name": "c1", "resources": asks("500m")}, {"name": "c2"}],
            "overhead": {"cpu": "10m"},
        }}))
        .expect("a pod");
        // The second init container runs beside the sidecar: 3 + 1 is more than 0.5 + 1.
        assert_eq!(request(&pod).cpu, 4010);
        assert_eq!(assumed_request(&pod).0, 4010);
    }
}
