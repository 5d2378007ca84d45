//! The three metrics APIs, as aggregated servers offer them: of resources, of objects in the cluster, and of anything else.
//! Values are in thousandths.

use api::quantity::Quantity;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::autoscaling::v2::CrossVersionObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::Client;
use serde_json::Value;

use super::calculate::{Sample, Samples};
use crate::kit::{Error, now};

/// Samples that do not say over how long they were taken.
const WINDOW: SignedDuration = SignedDuration::from_mins(1);

pub(super) type Result<T> = std::result::Result<T, String>;

fn escape(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

async fn get(client: &Client, path: &str) -> Result<Value> {
    let request = http::Request::get(path).body(Vec::new()).map_err(|error| error.to_string())?;
    client.request::<Value>(request).await.map_err(|error| Error::from(error).message())
}

fn milli(value: &Value) -> Option<i64> {
    let quantity: Quantity = match value {
        Value::String(text) => text.parse().ok()?,
        Value::Number(number) => number.to_string().parse().ok()?,
        _ => return None,
    };
    Some(quantity.milli_value())
}

fn items(list: &Value) -> &[Value] {
    list["items"].as_array().map_or(&[], Vec::as_slice)
}

fn time(value: &Value) -> Timestamp {
    value.as_str().and_then(|text| text.parse().ok()).unwrap_or_else(now)
}

/// Go's form of a duration (`1m30s`), as metrics carry it.
fn duration(text: &str) -> Option<SignedDuration> {
    text.parse().ok()
}

/// What the selected pods use of a resource, or one container of each.
pub(super) async fn of_resource(
    client: &Client,
    namespace: &str,
    resource: &str,
    selector: &str,
    container: Option<&str>,
) -> Result<Samples> {
    let selector = escape(selector);
    let path = format!("/apis/metrics.k8s.io/v1beta1/namespaces/{namespace}/pods?labelSelector={selector}");
    let list = get(client, &path)
        .await
        .map_err(|error| format!("unable to fetch metrics from resource metrics API: {error}"))?;
    if items(&list).is_empty() {
        return Err("no metrics returned from resource metrics API".into());
    }
    usage(&list, resource, container)
}

fn usage(list: &Value, resource: &str, container: Option<&str>) -> Result<Samples> {
    let mut samples = Samples::new();
    for pod in items(list) {
        let name = pod["metadata"]["name"].as_str().unwrap_or_default();
        let all = pod["containers"].as_array().map_or(&[][..], Vec::as_slice);
        let mut counted: Vec<&Value> =
            all.iter().filter(|one| container.is_none_or(|container| one["name"] == container)).collect();
        if container.is_some() && counted.is_empty() {
            let namespace = pod["metadata"]["namespace"].as_str().unwrap_or_default();
            let container = container.unwrap_or_default();
            return Err(format!("container {container} not present in metrics for pod {namespace}/{name}"));
        }
        // What is said of the pod as a whole by some servers.
        counted.retain(|one| one["name"] != "POD");
        let values: Option<Vec<i64>> = counted.iter().map(|one| milli(&one["usage"][resource])).collect();
        // A pod of which a part is not known is not known.
        let Some(values) = values.filter(|values| !values.is_empty()) else { continue };
        let sample = Sample {
            value: values.into_iter().fold(0, i64::saturating_add),
            at: time(&pod["timestamp"]),
            window: pod["window"].as_str().and_then(duration).unwrap_or(WINDOW),
        };
        samples.insert(name.to_owned(), sample);
    }
    Ok(samples)
}

fn selector_text(selector: Option<&LabelSelector>) -> Result<String> {
    let Some(selector) = selector else { return Ok(String::new()) };
    let json = serde_json::to_value(selector).map_err(|error| error.to_string())?;
    Ok(api::labels::Selector::from_json(&json)?.to_string())
}

async fn custom(client: &Client, path: &str) -> Result<Value> {
    let group = get(client, "/apis/custom.metrics.k8s.io").await;
    let no_api = |error: String| format!("unable to fetch metrics from custom metrics API: {error}");
    let group = group.map_err(no_api)?;
    let version = group["preferredVersion"]["version"].as_str().unwrap_or("v1beta2").to_owned();
    get(client, &format!("/apis/custom.metrics.k8s.io/{version}/{path}")).await.map_err(no_api)
}

/// A metric of each of the selected pods.
pub(super) async fn of_pods(
    client: &Client,
    namespace: &str,
    metric: &str,
    selector: &str,
    of_metric: Option<&LabelSelector>,
) -> Result<Samples> {
    let (metric, selector) = (escape(metric), escape(selector));
    let more = escape(&selector_text(of_metric)?);
    let path =
        format!("namespaces/{namespace}/pods/*/{metric}?labelSelector={selector}&metricLabelSelector={more}");
    let list = custom(client, &path).await?;
    if items(&list).is_empty() {
        return Err("no metrics returned from custom metrics API".into());
    }
    let mut samples = Samples::new();
    for item in items(&list) {
        let (Some(name), Some(value)) = (item["describedObject"]["name"].as_str(), milli(&item["value"]))
        else {
            continue;
        };
        let window = item["windowSeconds"].as_i64().map_or(WINDOW, SignedDuration::from_secs);
        samples.insert(name.to_owned(), Sample { value, at: time(&item["timestamp"]), window });
    }
    Ok(samples)
}

/// A metric of one object, whose resource is `plural` or `plural.group`.
pub(super) async fn of_object(
    client: &Client,
    namespace: &str,
    metric: &str,
    object: &CrossVersionObjectReference,
    resource: &str,
    of_metric: Option<&LabelSelector>,
) -> Result<i64> {
    let (metric, more) = (escape(metric), escape(&selector_text(of_metric)?));
    let name = escape(&object.name);
    let path = if resource == "namespaces" {
        format!("namespaces/{name}/metrics/{metric}?metricLabelSelector={more}")
    } else {
        format!("namespaces/{namespace}/{resource}/{name}/{metric}?metricLabelSelector={more}")
    };
    let list = custom(client, &path).await?;
    // One object's metric comes as a list of one.
    let item = items(&list).first().unwrap_or(&list);
    milli(&item["value"]).ok_or_else(|| "no metrics returned from custom metrics API".into())
}

/// A metric of something outside the cluster, summed over all of its series.
pub(super) async fn external(
    client: &Client,
    namespace: &str,
    metric: &str,
    selector: Option<&LabelSelector>,
) -> Result<i64> {
    let (metric, selector) = (escape(metric), escape(&selector_text(selector)?));
    let path = format!(
        "/apis/external.metrics.k8s.io/v1beta1/namespaces/{namespace}/{metric}?labelSelector={selector}"
    );
    let list = get(client, &path)
        .await
        .map_err(|error| format!("unable to fetch metrics from external metrics API: {error}"))?;
    if items(&list).is_empty() {
        return Err("no metrics returned from external metrics API".into());
    }
    Ok(items(&list).iter().filter_map(|item| milli(&item["value"])).fold(0, i64::saturating_add))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_use_of_pods_is_that_of_their_containers() {
        let list = json!({"items": [
            {"metadata": {"name": "a", "namespace": "d"}, "timestamp": "2026-01-01T00:00:00Z", "window": "30s",
             "containers": [{"name": "x", "usage": {"cpu": "100m"}}, {"name": "y", "usage": {"cpu": "1"}}]},
            {"metadata": {"name": "b", "namespace": "d"},
             "containers": [{"name": "x", "usage": {"memory": "1Mi"}}]},
        ]});
        let all = usage(&list, "cpu", None).expect("samples");
        assert_eq!(all.len(), 1);
        assert_eq!((all["a"].value, all["a"].window), (1100, SignedDuration::from_secs(30)));
        assert_eq!(usage(&list, "cpu", Some("x")).expect("samples")["a"].value, 100);
        let missing = usage(&list, "cpu", Some("y")).map(|_| ());
        assert_eq!(missing, Err("container y not present in metrics for pod d/b".into()));
    }

    #[test]
    fn selectors_are_escaped() {
        assert_eq!(escape("a=b,c in (d)"), "a%3Db%2Cc%20in%20%28d%29");
    }
}
