//! The downward API: fields of the pod and resources of its containers as text.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Container, ObjectFieldSelector, Pod, ResourceFieldSelector};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::podutil::{self, spec};
use crate::quantity;

/// A reference that means nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DownwardError {
    #[error("unsupported fieldPath: {0}")]
    Field(String),
    #[error("unsupported container resource: {0}")]
    Resource(String),
    #[error("container {0} not found")]
    Container(String),
}

/// What fields of the status are taken from.
pub(crate) struct Addresses<'a> {
    pub pod: &'a [String],
    pub host: &'a [IpAddr],
}

/// The text of a field.
pub(crate) fn field(
    pod: &Pod,
    addresses: &Addresses<'_>,
    selector: &ObjectFieldSelector,
) -> Result<String, DownwardError> {
    let path = selector.field_path.as_str();
    let hosts = || addresses.host.iter().map(IpAddr::to_string).collect::<Vec<_>>();
    let metadata = &pod.metadata;
    if let Some((map, key)) = subscript(path) {
        let entries = match map {
            "metadata.labels" => &metadata.labels,
            "metadata.annotations" => &metadata.annotations,
            _ => return Err(DownwardError::Field(path.to_owned())),
        };
        return Ok(entries.as_ref().and_then(|entries| entries.get(key)).cloned().unwrap_or_default());
    }
    Ok(match path {
        "metadata.name" => podutil::name(pod).to_owned(),
        "metadata.namespace" => podutil::namespace(pod).to_owned(),
        "metadata.uid" => podutil::uid(pod).to_owned(),
        "metadata.labels" => lines(metadata.labels.as_ref()),
        "metadata.annotations" => lines(metadata.annotations.as_ref()),
        "spec.nodeName" => spec(pod).node_name.clone().unwrap_or_default(),
        "spec.serviceAccountName" => spec(pod).service_account_name.clone().unwrap_or_default(),
        "status.hostIP" => hosts().first().cloned().unwrap_or_default(),
        "status.hostIPs" => hosts().join(","),
        "status.podIP" => addresses.pod.first().cloned().unwrap_or_default(),
        "status.podIPs" => addresses.pod.join(","),
        _ => return Err(DownwardError::Field(path.to_owned())),
    })
}

/// Splits `metadata.labels['key']`.
fn subscript(path: &str) -> Option<(&str, &str)> {
    let (map, rest) = path.split_once('[')?;
    let key = rest.strip_suffix(']')?;
    Some((map, key.strip_prefix('\'')?.strip_suffix('\'')?))
}

fn lines(map: Option<&BTreeMap<String, String>>) -> String {
    let lines: Vec<String> = map
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", serde_json::Value::from(value.as_str())))
        .collect();
    lines.join("\n")
}

/// The text of a resource amount, in units of its divisor, rounded up. `allocatable` stands in for limits that are not set.
pub(crate) fn resource(
    pod: &Pod,
    container: &Container,
    selector: &ResourceFieldSelector,
    allocatable: &BTreeMap<String, Quantity>,
) -> Result<String, DownwardError> {
    let named;
    let container = match selector.container_name.as_deref().filter(|name| !name.is_empty()) {
        Some(name) if name != container.name => {
            let found =
                podutil::container(pod, name).ok_or_else(|| DownwardError::Container(name.to_owned()))?;
            named = found.0;
            &named
        }
        _ => container,
    };
    let unsupported = || DownwardError::Resource(selector.resource.clone());
    let (list, name) = selector.resource.split_once('.').ok_or_else(unsupported)?;
    let resources = container.resources.as_ref();
    let found = match list {
        "limits" => resources.and_then(|resources| resources.limits.as_ref()?.get(name)).or_else(|| {
            allocatable.get(name).filter(|_| matches!(name, "cpu" | "memory" | "ephemeral-storage"))
        }),
        "requests" => resources.and_then(|resources| resources.requests.as_ref()?.get(name)),
        _ => return Err(unsupported()),
    };
    let divisor = selector.divisor.as_ref();
    let (amount, unit) = if name == "cpu" {
        (
            found.and_then(quantity::milli),
            divisor.and_then(quantity::milli).filter(|unit| *unit > 0).unwrap_or(1000),
        )
    } else {
        (
            found.and_then(quantity::value),
            divisor.and_then(quantity::value).filter(|unit| *unit > 0).unwrap_or(1),
        )
    };
    let amount = amount.unwrap_or(0);
    Ok((amount / unit + i64::from(amount % unit > 0)).to_string())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod() -> Pod {
        let pod = json!({"metadata": {"name": "p", "labels": {"a": "1", "b": "x\"y"}}, "spec": {"containers": [
            {"name": "c", "resources": {"limits": {"cpu": "1500m", "memory": "64Mi"}}}]}});
        serde_json::from_value(pod).expect("a pod")
    }

    #[test]
    fn fields() {
        let host = ["192.0.2.1".parse().expect("an address")];
        let addresses = Addresses { pod: &["10.0.0.1".to_owned(), "fd00::1".to_owned()], host: &host };
        for (path, expected) in [
            ("metadata.name", "p"),
            ("metadata.labels['a']", "1"),
            ("metadata.labels", "a=\"1\"\nb=\"x\\\"y\""),
            ("status.podIPs", "10.0.0.1,fd00::1"),
            ("status.hostIP", "192.0.2.1"),
        ] {
            let selector = ObjectFieldSelector { api_version: None, field_path: path.to_owned() };
            assert_eq!(field(&pod(), &addresses, &selector).expect("known field"), expected);
        }
    }

    #[test]
    fn resources_are_divided_and_rounded_up() {
        let pod = pod();
        let container = &spec(&pod).containers[0];
        let allocatable = BTreeMap::from([("cpu".to_owned(), Quantity("4".to_owned()))]);
        for (name, divisor, expected) in [
            ("limits.cpu", "1", "2"),
            ("limits.cpu", "1m", "1500"),
            ("limits.memory", "1Mi", "64"),
            ("requests.cpu", "1", "0"),
        ] {
            let selector = ResourceFieldSelector {
                container_name: None,
                divisor: Some(Quantity(divisor.to_owned())),
                resource: name.to_owned(),
            };
            assert_eq!(
                resource(&pod, container, &selector, &allocatable).expect("known"),
                expected,
                "{name}"
            );
        }
    }
}
