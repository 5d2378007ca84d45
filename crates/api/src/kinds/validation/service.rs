//! Service, Endpoints, EndpointSlice. A service is checked with the addresses and ports that it was given.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde_json::{Value, json};

use super::common::{self, label, label_name, labels, one_of, parse_ip, port_number_or_name, subdomain};
use crate::FieldError;
use crate::field::{Errors, Path};
use crate::kinds::json::{Read, same};
use crate::kinds::service::externally_accessible;
use crate::names;

const PROTOCOLS: [&str; 3] = ["SCTP", "TCP", "UDP"];
const FAMILIES: [&str; 2] = ["IPv4", "IPv6"];
const ONCE: &str = "may not change once set";

fn is_headless(spec: &Value) -> bool {
    spec.items("clusterIPs").first().is_some_and(|ip| ip == "None")
}

fn strings<'a>(holder: &'a Value, key: &str) -> Vec<&'a str> {
    holder.items(key).iter().filter_map(Value::as_str).collect()
}

pub(crate) fn service(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    let (spec, path) = (object.at("spec"), Path::new("spec"));
    let kind = spec.text("type");
    if spec.items("ports").is_empty() && !is_headless(spec) && kind != "ExternalName" {
        errors.required(&path.child("ports"), "");
    }
    by_type(&mut errors, spec, kind, &path);
    ports(&mut errors, spec, kind, &path.child("ports"));
    labels(&mut errors, spec.at("selector"), &path.child("selector"));
    affinity(&mut errors, spec, &path);
    if kind != "ExternalName" {
        cluster_ips(&mut errors, spec, &path);
    }
    let list = path.child("externalIPs");
    for (index, ip) in strings(spec, "externalIPs").into_iter().enumerate() {
        if common::ip(&mut errors, ip, &list.index(index)).is_some() {
            endpoint_ip(&mut errors, ip, &list.index(index));
        }
    }
    one_of(
        &mut errors,
        kind,
        &path.child("type"),
        &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"],
    );
    balancer(&mut errors, spec, kind, &path);
    traffic(&mut errors, spec, kind, &path);
    errors.0
}

fn by_type(errors: &mut Errors, spec: &Value, kind: &str, path: &Path<'_>) {
    match kind {
        "LoadBalancer" | "NodePort" if is_headless(spec) => {
            let detail = format!("may not be set to 'None' for {kind} services");
            errors.invalid(&path.child("clusterIPs").index(0), "None", detail);
        }
        "ExternalName" => {
            const DETAIL: &str = "may not be set for ExternalName services";
            for key in ["clusterIPs", "ipFamilies"] {
                if !spec.items(key).is_empty() {
                    errors.forbidden(&path.child(key), DETAIL);
                }
            }
            if spec.has("ipFamilyPolicy") {
                errors.forbidden(&path.child("ipFamilyPolicy"), DETAIL);
            }
            let name = spec.text("externalName");
            common::required_subdomain(
                errors,
                name.strip_suffix('.').unwrap_or(name),
                &path.child("externalName"),
            );
        }
        _ => {}
    }
}

fn ports(errors: &mut Errors, spec: &Value, kind: &str, path: &Path<'_>) {
    let ports = spec.items("ports");
    let (mut names, mut numbers, mut node_ports) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for (index, port) in ports.iter().enumerate() {
        let at = path.index(index);
        let (name, protocol) = (port.text("name"), port.text("protocol"));
        if name.is_empty() {
            if ports.len() > 1 {
                errors.required(&at.child("name"), "");
            }
        } else {
            label(errors, name, &at.child("name"));
            if !names.insert(name) {
                errors.duplicate(&at.child("name"), name);
            }
        }
        let number = port.num("port");
        for message in names::port_number(number) {
            errors.invalid(&at.child("port"), number, message);
        }
        one_of(errors, protocol, &at.child("protocol"), &PROTOCOLS);
        port_number_or_name(errors, port.at("targetPort"), &at.child("targetPort"));
        if let Some(application) = port.at("appProtocol").as_str() {
            label_name(errors, application, &at.child("appProtocol"));
        }
        let node_port = port.num("nodePort");
        if node_port != 0 {
            if kind == "ClusterIP" {
                errors.forbidden(&at.child("nodePort"), "may not be used when `type` is 'ClusterIP'");
            }
            if !node_ports.insert((protocol, node_port)) {
                errors.duplicate(&at.child("nodePort"), node_port);
            }
        }
        if !numbers.insert((protocol, number)) {
            errors.duplicate(&at, json!({"protocol": protocol, "port": number}));
        }
    }
}

fn affinity(errors: &mut Errors, spec: &Value, path: &Path<'_>) {
    let kind = spec.text("sessionAffinity");
    one_of(errors, kind, &path.child("sessionAffinity"), &["ClientIP", "None"]);
    let config = spec.at("sessionAffinityConfig");
    let at = path.child("sessionAffinityConfig");
    match kind {
        "ClientIP" => {
            const DETAIL: &str = "when session affinity type is ClientIP";
            let client = at.child("clientIP");
            let timeout = client.child("timeoutSeconds");
            if config.is_null() {
                errors.required(&at, DETAIL);
            } else if !config.has("clientIP") {
                errors.required(&client, DETAIL);
            } else {
                match config.at("clientIP").int("timeoutSeconds") {
                    None => errors.required(&timeout, DETAIL),
                    Some(seconds) if !(1..=86400).contains(&seconds) => {
                        errors.invalid(&timeout, seconds, "must be greater than 0 and less than 86400");
                    }
                    Some(_) => {}
                }
            }
        }
        "None" if !config.is_null() => {
            errors.forbidden(&at, "must not be set when session affinity is None");
        }
        _ => {}
    }
}

fn cluster_ips(errors: &mut Errors, spec: &Value, path: &Path<'_>) {
    let ips = strings(spec, "clusterIPs");
    let at = path.child("clusterIPs");
    match (spec.text("clusterIP"), ips.first()) {
        ("", Some(_)) => {
            errors.invalid(&at, ips.clone(), "must be empty when `clusterIP` is not specified");
        }
        ("", None) => {}
        (_, None) => errors.required(&at, ""),
        (first, Some(own)) if first != *own => {
            errors.invalid(&at, ips.clone(), "first value must match `clusterIP`");
        }
        _ => {}
    }
    let families = strings(spec, "ipFamilies");
    let list = path.child("ipFamilies");
    for (index, family) in families.iter().enumerate() {
        if !FAMILIES.contains(family) {
            errors.not_supported(&list.index(index), *family, &FAMILIES);
        }
        if families[..index].contains(family) {
            errors.duplicate(&list.index(index), *family);
        }
    }
    let policy = spec.text("ipFamilyPolicy");
    let policies = ["PreferDualStack", "RequireDualStack", "SingleStack"];
    if spec.has("ipFamilyPolicy") && !policies.contains(&policy) {
        errors.not_supported(&path.child("ipFamilyPolicy"), policy, &policies);
    }
    let mut unreadable = false;
    let mut parsed = Vec::new();
    for (index, ip) in ips.iter().enumerate() {
        if index == 0 && *ip == "None" {
            if ips.len() > 1 {
                unreadable = true;
                errors.invalid(&at, ips.clone(), "'None' must be the first and only value");
            }
            continue;
        }
        match common::ip(errors, ip, &at.index(index)) {
            Some(ip) => parsed.push(ip),
            None => unreadable = true,
        }
    }
    if ips.len() > 2 {
        errors.invalid(&at, ips.clone(), "may only hold up to 2 values");
    }
    if unreadable {
        return;
    }
    let dual = parsed.iter().any(IpAddr::is_ipv4) && parsed.iter().any(IpAddr::is_ipv6);
    if ips.len() > 1 && !dual {
        errors.invalid(&at, ips.clone(), "may specify no more than one IP for each IP family");
    }
    for (index, (ip, family)) in parsed.iter().zip(&families).enumerate() {
        let fits = match *family {
            "IPv4" => ip.is_ipv4(),
            "IPv6" => ip.is_ipv6(),
            _ => true,
        };
        if !fits {
            let detail = format!("expected an {family} value as indicated by `ipFamilies[{index}]`");
            errors.invalid(&at.index(index), ips[index], detail);
        }
    }
}

fn balancer(errors: &mut Errors, spec: &Value, kind: &str, path: &Path<'_>) {
    const DETAIL: &str = "may only be used when `type` is 'LoadBalancer'";
    let is_balancer = kind == "LoadBalancer";
    let ranges = strings(spec, "loadBalancerSourceRanges");
    let at = path.child("LoadBalancerSourceRanges");
    if !ranges.is_empty() && !is_balancer {
        errors.forbidden(&at, DETAIL);
    }
    for (index, range) in ranges.into_iter().enumerate() {
        common::cidr(errors, range.trim(), &at.index(index));
    }
    if spec.has("allocateLoadBalancerNodePorts") && !is_balancer {
        errors.forbidden(&path.child("allocateLoadBalancerNodePorts"), DETAIL);
    }
    if is_balancer && !spec.has("allocateLoadBalancerNodePorts") {
        errors.required(&Path::new("allocateLoadBalancerNodePorts"), "");
    }
    match (spec.at("loadBalancerClass").as_str(), is_balancer) {
        (Some(class), true) => label_name(errors, class, &path.child("loadBalancerClass")),
        (Some(_), false) => errors.forbidden(&path.child("loadBalancerClass"), DETAIL),
        (None, _) => {}
    }
}

fn traffic(errors: &mut Errors, spec: &Value, kind: &str, path: &Path<'_>) {
    let (external, at) = (spec.text("externalTrafficPolicy"), path.child("externalTrafficPolicy"));
    if externally_accessible(spec) {
        one_of(errors, external, &at, &["Cluster", "Local"]);
    } else if !external.is_empty() {
        errors.invalid(&at, external, "may only be set for externally-accessible services");
    }
    let (port, at) = (spec.num("healthCheckNodePort"), path.child("healthCheckNodePort"));
    if kind == "LoadBalancer" && external == "Local" {
        match port {
            0 => errors.required(&at, ""),
            port => {
                for message in names::port_number(port) {
                    errors.invalid(&at, port, message);
                }
            }
        }
    } else if port != 0 {
        errors.invalid(
            &at,
            port,
            "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'",
        );
    }
    let at = path.child("internalTrafficPolicy");
    match spec.at("internalTrafficPolicy").as_str() {
        None if matches!(kind, "NodePort" | "LoadBalancer" | "ClusterIP") => errors.required(&at, ""),
        Some(policy) if !matches!(policy, "Cluster" | "Local") => {
            errors.not_supported(&at, policy, &["Cluster", "Local"]);
        }
        _ => {}
    }
    let distributions = ["PreferClose", "PreferSameZone", "PreferSameNode"];
    if let Some(own) = spec.at("trafficDistribution").as_str().filter(|own| !distributions.contains(own)) {
        errors.not_supported(&path.child("trafficDistribution"), own, &distributions);
    }
}

pub(crate) fn service_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    let path = Path::new("spec");
    let (spec, before) = (new.at("spec"), old.at("spec"));
    let named = |spec: &Value| spec.text("type") == "ExternalName";
    if !named(spec) && !named(before) {
        if !(is_headless(spec) && is_headless(before)) {
            changed_addresses(&mut errors, spec, before, &path);
        }
        if !is_headless(spec) && !is_headless(before) {
            changed_families(&mut errors, spec, before, &path);
        }
    }
    let balancer = |spec: &Value| spec.text("type") == "LoadBalancer";
    if balancer(spec)
        && balancer(before)
        && !same(spec.at("loadBalancerClass"), before.at("loadBalancerClass"))
    {
        errors.invalid(&path.child("loadBalancerClass"), spec.at("loadBalancerClass").clone(), ONCE);
    }
    let checked = |spec: &Value| balancer(spec) && spec.text("externalTrafficPolicy") == "Local";
    if checked(spec)
        && checked(before)
        && spec.num("healthCheckNodePort") != before.num("healthCheckNodePort")
    {
        errors.forbidden(&path.child("healthCheckNodePort"), common::IMMUTABLE);
    }
    errors.0
}

fn changed_addresses(errors: &mut Errors, spec: &Value, before: &Value, path: &Path<'_>) {
    let (new, old) = (strings(spec, "clusterIPs"), strings(before, "clusterIPs"));
    let at = path.child("clusterIPs");
    if new.len() == old.len() {
        for (index, (a, b)) in new.iter().zip(&old).enumerate() {
            if a != b {
                errors.invalid(&at.index(index), new.clone(), ONCE);
            }
        }
        return;
    }
    if new.is_empty() {
        errors.invalid(&at.index(0), new.clone(), "primary clusterIP can not be unset");
    }
    if let (Some(a), Some(b)) = (new.first(), old.first())
        && a != b
    {
        errors.invalid(&at.index(0), new.clone(), ONCE);
    }
    if new.len() == 1 && old.len() > 1 && spec.text("ipFamilyPolicy") != "SingleStack" {
        errors.invalid(
            &path.child("ipFamilyPolicy"),
            spec.at("ipFamilyPolicy").clone(),
            "must be set to 'SingleStack' when releasing the secondary clusterIP",
        );
    }
}

fn changed_families(errors: &mut Errors, spec: &Value, before: &Value, path: &Path<'_>) {
    let (new, old) = (strings(spec, "ipFamilies"), strings(before, "ipFamilies"));
    let at = path.child("ipFamilies");
    if new.len() == old.len() {
        for _ in new.iter().zip(&old).filter(|(a, b)| a != b) {
            errors.invalid(&at.index(0), new.clone(), ONCE);
        }
        return;
    }
    if new.len() < old.len() && spec.items("clusterIPs").is_empty() {
        errors.invalid(&at.index(0), new.clone(), "primary ipFamily can not be unset");
    }
    if let (Some(a), Some(b)) = (new.first(), old.first())
        && a != b
    {
        errors.invalid(&at.index(0), strings(spec, "clusterIPs"), ONCE);
    }
    if new.len() == 1 && old.len() > 1 && spec.text("ipFamilyPolicy") != "SingleStack" {
        errors.invalid(
            &path.child("ipFamilyPolicy"),
            spec.at("ipFamilyPolicy").clone(),
            "must be set to 'SingleStack' when releasing the secondary ipFamily",
        );
    }
}

/// An address that traffic may be sent to.
fn endpoint_ip(errors: &mut Errors, text: &str, path: &Path<'_>) {
    let Some(ip) = parse_ip(text) else {
        errors.invalid(path, text, "must be a valid IP address");
        return;
    };
    let (link_local, multicast) = match ip {
        IpAddr::V4(ip) => (ip.is_link_local(), ip.octets()[..3] == [224, 0, 0]),
        IpAddr::V6(ip) => (ip.segments()[0] & 0xffc0 == 0xfe80, ip.segments()[0] & 0xff0f == 0xff02),
    };
    if ip.is_unspecified() {
        errors.invalid(path, text, format!("may not be unspecified ({text})"));
    }
    if ip.is_loopback() {
        errors.invalid(path, text, "may not be in the loopback range (127.0.0.0/8, ::1/128)");
    }
    if link_local {
        errors.invalid(path, text, "may not be in the link-local range (169.254.0.0/16, fe80::/10)");
    }
    if multicast {
        let detail = "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)";
        errors.invalid(path, text, detail);
    }
}

pub(crate) fn endpoints(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    let path = Path::new("subsets");
    for (index, subset) in object.items("subsets").iter().enumerate() {
        let at = path.index(index);
        if subset.items("addresses").is_empty() && subset.items("notReadyAddresses").is_empty() {
            errors.required(&at, "must specify `addresses` or `notReadyAddresses`");
        }
        for list in ["addresses", "notReadyAddresses"] {
            let list_path = at.child(list);
            for (index, address) in subset.items(list).iter().enumerate() {
                let at = list_path.index(index);
                let ip = address.text("ip");
                if common::ip(&mut errors, ip, &at.child("ip")).is_some() {
                    endpoint_ip(&mut errors, ip, &at.child("ip"));
                }
                if !address.text("hostname").is_empty() {
                    label(&mut errors, address.text("hostname"), &at.child("hostname"));
                }
                if address.has("nodeName") {
                    subdomain(&mut errors, address.text("nodeName"), &at.child("nodeName"));
                }
            }
        }
        let list = at.child("ports");
        let named = subset.items("ports").len() > 1;
        for (index, port) in subset.items("ports").iter().enumerate() {
            let at = list.index(index);
            match port.text("name") {
                "" if named => errors.required(&at.child("name"), ""),
                "" => {}
                name => label(&mut errors, name, &at.child("name")),
            }
            let number = port.num("port");
            for message in names::port_number(number) {
                errors.invalid(&at.child("port"), number, message);
            }
            one_of(&mut errors, port.text("protocol"), &at.child("protocol"), &PROTOCOLS);
            if let Some(application) = port.at("appProtocol").as_str() {
                label_name(&mut errors, application, &at.child("appProtocol"));
            }
        }
    }
    errors.0
}

pub(crate) fn endpoint_slice(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    let kind = object.text("addressType");
    one_of(&mut errors, kind, &Path::new("addressType"), &["FQDN", "IPv4", "IPv6"]);
    let list = Path::new("endpoints");
    let endpoints = object.items("endpoints");
    if endpoints.len() > 1000 {
        errors.too_many(&list, endpoints.len(), 1000);
    }
    for (index, endpoint) in endpoints.iter().enumerate() {
        let at = list.index(index);
        slice_endpoint(&mut errors, endpoint, kind, &at);
    }
    slice_ports(&mut errors, object.items("ports"), &Path::new("ports"));
    errors.0
}

fn slice_endpoint(errors: &mut Errors, endpoint: &Value, kind: &str, at: &Path<'_>) {
    let addresses = strings(endpoint, "addresses");
    let path = at.child("addresses");
    if addresses.is_empty() {
        errors.required(&path, "must contain at least 1 address");
    } else if addresses.len() > 100 {
        errors.too_many(&path, addresses.len(), 100);
    }
    for (index, address) in addresses.into_iter().enumerate() {
        let at = path.index(index);
        match kind {
            "FQDN" => subdomain(errors, address, &at),
            "IPv4" | "IPv6" => {
                let Some(ip) = common::ip(errors, address, &at) else { continue };
                // Upstream names the list here, not its element.
                if ip.is_ipv4() != (kind == "IPv4") {
                    errors.invalid(&path, address, format!("must be an {kind} address"));
                }
                endpoint_ip(errors, address, &at);
            }
            _ => {}
        }
    }
    if endpoint.has("nodeName") {
        subdomain(errors, endpoint.text("nodeName"), &at.child("nodeName"));
    }
    let topology = at.child("deprecatedTopology");
    labels(errors, endpoint.at("deprecatedTopology"), &topology);
    if endpoint.entries("deprecatedTopology").len() > 16 {
        errors.too_many(&topology, endpoint.entries("deprecatedTopology").len(), 16);
    }
    if endpoint.at("deprecatedTopology").has("kubernetes.io/hostname") {
        errors.invalid(
            &topology.key("kubernetes.io/hostname"),
            endpoint.at("deprecatedTopology").at("kubernetes.io/hostname").clone(),
            "may not be set unless nodeName is set to same value",
        );
    }
    if endpoint.has("hostname") {
        label(errors, endpoint.text("hostname"), &at.child("hostname"));
    }
    let hints = at.child("hints");
    for (list, most) in [("forZones", 8), ("forNodes", 8)] {
        let entries = endpoint.at("hints").items(list);
        let path = hints.child(list);
        if entries.len() > most {
            errors.too_many(&path, entries.len(), most);
        }
        let mut seen = BTreeSet::new();
        for (index, entry) in entries.iter().enumerate() {
            let name = entry.text("name");
            let at = path.index(index);
            if !seen.insert(name) {
                errors.duplicate(&at.child("name"), name);
            }
            match list {
                "forZones" => errors.all_invalid(&at.child("name"), name, names::label_value(name)),
                _ => subdomain(errors, name, &at.child("name")),
            }
        }
    }
}

fn slice_ports(errors: &mut Errors, ports: &[Value], path: &Path<'_>) {
    if ports.len() > 20_000 {
        errors.too_many(path, ports.len(), 20_000);
    }
    let mut seen = BTreeSet::new();
    for (index, port) in ports.iter().enumerate() {
        let at = path.index(index);
        let name = port.text("name");
        if !name.is_empty() {
            label(errors, name, &at.child("name"));
        }
        if !seen.insert(name) {
            errors.duplicate(&at.child("name"), name);
        }
        one_of(errors, port.text("protocol"), &at.child("protocol"), &PROTOCOLS);
        if let Some(number) = port.int("port") {
            for message in names::port_number(number) {
                errors.invalid(&at.child("port"), number, message);
            }
        }
        if let Some(application) = port.at("appProtocol").as_str() {
            label_name(errors, application, &at.child("appProtocol"));
        }
    }
}

pub(crate) fn endpoint_slice_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    common::immutable(&mut errors, new.at("addressType"), old.at("addressType"), &Path::new("addressType"));
    errors.0
}
