//! Rows of services, endpoints and the kinds of networking.k8s.io.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde_json::Value;

use super::{age, labels, name, or, plain, selector, strings};
use crate::kinds::json::Read;

const SHOWN: usize = 3;

fn balancer(status: &Value) -> String {
    let addresses: BTreeSet<&str> = status
        .at("loadBalancer")
        .items("ingress")
        .iter()
        .map(|ingress| or(ingress.text("ip"), ingress.text("hostname")))
        .filter(|address| !address.is_empty())
        .collect();
    addresses.into_iter().collect::<Vec<_>>().join(",")
}

pub(super) fn service(object: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (object.at("spec"), object.at("status"));
    let externals = strings(spec, "externalIPs");
    let external = match spec.text("type") {
        "ClusterIP" | "NodePort" => or(&externals.join(","), "<none>").to_owned(),
        "LoadBalancer" => {
            let balancer = balancer(status);
            let mut all: Vec<&str> = balancer.split(',').filter(|address| !address.is_empty()).collect();
            all.extend(externals);
            or(&all.join(","), "<pending>").to_owned()
        }
        "ExternalName" => spec.text("externalName").to_owned(),
        _ => "<unknown>".to_owned(),
    };
    let ports: Vec<String> = spec
        .items("ports")
        .iter()
        .map(|port| match port.num("nodePort") {
            0 => format!("{}/{}", port.num("port"), port.text("protocol")),
            node => format!("{}:{node}/{}", port.num("port"), port.text("protocol")),
        })
        .collect();
    let internal = strings(spec, "clusterIPs").first().copied().unwrap_or("<none>");
    vec![
        name(object),
        spec.text("type").into(),
        internal.into(),
        external.into(),
        or(&ports.join(","), "<none>").into(),
        age(object, now),
        labels(spec.at("selector")),
    ]
}

fn host_port(ip: &str, port: i64) -> String {
    if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") }
}

pub(super) fn endpoints(object: &Value, now: Timestamp) -> Vec<Value> {
    let mut all = Vec::new();
    for subset in object.items("subsets") {
        let addresses = subset.items("addresses").iter().map(|address| address.text("ip"));
        if subset.items("ports").is_empty() {
            all.extend(addresses.clone().map(str::to_owned));
        }
        for port in subset.items("ports") {
            all.extend(addresses.clone().map(|ip| host_port(ip, port.num("port"))));
        }
    }
    let text = match object.items("subsets").is_empty() {
        true => "<none>".to_owned(),
        false => some(&all),
    };
    vec![name(object), text.into(), age(object, now)]
}

/// The first few, and how many there are beyond.
fn some(all: &[String]) -> String {
    let shown = all.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(",");
    match all.len() > SHOWN {
        true => format!("{shown} + {} more...", all.len() - SHOWN),
        false => shown,
    }
}

pub(super) fn endpoint_slice(object: &Value, now: Timestamp) -> Vec<Value> {
    let ports: Vec<String> = object
        .items("ports")
        .iter()
        .map(|port| match port.int("port") {
            Some(number) => number.to_string(),
            None if port.has("name") => port.text("name").to_owned(),
            None => "*".to_owned(),
        })
        .collect();
    let addresses: Vec<String> = object
        .items("endpoints")
        .iter()
        .flat_map(|endpoint| strings(endpoint, "addresses"))
        .map(str::to_owned)
        .collect();
    vec![
        name(object),
        object.text("addressType").into(),
        or(&some(&ports), "<unset>").into(),
        or(&some(&addresses), "<unset>").into(),
        age(object, now),
    ]
}

pub(super) fn ingress(object: &Value, now: Timestamp) -> Vec<Value> {
    let spec = object.at("spec");
    let class = if spec.has("ingressClassName") { spec.text("ingressClassName") } else { "<none>" };
    let ports = if spec.items("tls").is_empty() { "80" } else { "80, 443" };
    vec![
        name(object),
        class.into(),
        hosts(spec.items("rules")).into(),
        balancer(object.at("status")).into(),
        ports.into(),
        age(object, now),
    ]
}

fn hosts(rules: &[Value]) -> String {
    let mut list = Vec::new();
    let mut more = false;
    for rule in rules {
        more |= list.len() == SHOWN;
        if !more && !rule.text("host").is_empty() {
            list.push(rule.text("host"));
        }
    }
    match (list.is_empty(), more) {
        (true, _) => "*".to_owned(),
        (_, true) => format!("{} + {} more...", list.join(","), rules.len() - SHOWN),
        _ => list.join(","),
    }
}

pub(super) fn ingress_class(object: &Value, now: Timestamp) -> Vec<Value> {
    let spec = object.at("spec");
    let default =
        object.dig(&["metadata", "annotations"]).text("ingressclass.kubernetes.io/is-default-class");
    let mut shown = object.at("metadata").text("name").to_owned();
    if default == "true" {
        shown.push_str(" (default)");
    }
    let parameters = spec.at("parameters");
    let parameters = match (parameters.is_null(), parameters.has("apiGroup")) {
        (true, _) => "<none>".to_owned(),
        (_, false) => format!("{}/{}", parameters.text("kind"), parameters.text("name")),
        _ => {
            format!("{}.{}/{}", parameters.text("kind"), parameters.text("apiGroup"), parameters.text("name"))
        }
    };
    vec![shown.into(), spec.text("controller").into(), parameters.into(), age(object, now)]
}

pub(super) fn network_policy(object: &Value, now: Timestamp) -> Vec<Value> {
    let pods = match object.dig(&["spec", "podSelector"]) {
        Value::Null => "<none>".into(),
        pods => selector(pods),
    };
    vec![name(object), pods, age(object, now)]
}

pub(super) fn service_cidr(object: &Value, now: Timestamp) -> Vec<Value> {
    let ranges: Vec<String> = object.at("spec").items("cidrs").iter().map(plain).collect();
    vec![name(object), ranges.join(",").into(), age(object, now)]
}

pub(super) fn ip_address(object: &Value, _: Timestamp) -> Vec<Value> {
    let parent = object.dig(&["spec", "parentRef"]);
    let mut text = match (parent.is_null(), parent.text("group")) {
        (true, _) => return vec![name(object), "<none>".into()],
        (_, "") => parent.text("resource").to_lowercase(),
        (_, group) => format!("{}.{group}", parent.text("resource")).to_lowercase(),
    };
    if !parent.text("namespace").is_empty() {
        text = format!("{text}/{}", parent.text("namespace"));
    }
    vec![name(object), format!("{text}/{}", parent.text("name")).into()]
}
