//! The kinds of networking.k8s.io.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;

use super::common::{self, immutable, label_selector, parse_ip, subdomain};
use crate::FieldError;
use crate::field::{Errors, Path};
use crate::kinds::json::{Read, same};
use crate::names;

pub(crate) fn ingress(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    let (spec, path) = (object.at("spec"), Path::new("spec"));
    if spec.items("rules").is_empty() && !spec.has("defaultBackend") {
        errors.invalid(&path, Value::Null, "either `defaultBackend` or `rules` must be specified");
    }
    if spec.has("defaultBackend") {
        backend(&mut errors, spec.at("defaultBackend"), &path.child("defaultBackend"));
    }
    let list = path.child("rules");
    for (index, rule) in spec.items("rules").iter().enumerate() {
        let at = list.index(index);
        let host = rule.text("host");
        if !host.is_empty() {
            if parse_ip(host).is_some() {
                errors.invalid(&at.child("host"), host, "must be a DNS name, not an IP address");
            }
            host_name(&mut errors, host, &at.child("host"));
        }
        if rule.has("http") {
            let at = at.child("http");
            http(&mut errors, rule.at("http"), &at);
        }
    }
    let list = path.child("tls");
    for (index, tls) in spec.items("tls").iter().enumerate() {
        let at = list.index(index);
        let hosts = at.child("hosts");
        for (index, host) in tls.items("hosts").iter().filter_map(Value::as_str).enumerate() {
            host_name(&mut errors, host, &hosts.index(index));
        }
        if !tls.text("secretName").is_empty() {
            subdomain(&mut errors, tls.text("secretName"), &at.child("secretName"));
        }
    }
    if spec.has("ingressClassName") {
        subdomain(&mut errors, spec.text("ingressClassName"), &path.child("ingressClassName"));
    }
    errors.0
}

fn host_name(errors: &mut Errors, host: &str, path: &Path<'_>) {
    match host.contains('*') {
        true => errors.all_invalid(path, host, names::wildcard_subdomain(host)),
        false => subdomain(errors, host, path),
    }
}

fn http(errors: &mut Errors, http: &Value, path: &Path<'_>) {
    let list = path.child("paths");
    if http.items("paths").is_empty() {
        errors.required(&list, "");
    }
    for (index, rule) in http.items("paths").iter().enumerate() {
        let at = list.index(index);
        let target = rule.text("path");
        let Some(kind) = rule.at("pathType").as_str() else {
            errors.required(&at.child("pathType"), "pathType must be specified");
            continue;
        };
        let absolute = target.starts_with('/');
        match kind {
            "Exact" | "Prefix" => {
                if !absolute {
                    errors.invalid(&at.child("path"), target, "must be an absolute path");
                }
                for part in ["//", "/./", "/../", "%2f", "%2F"].iter().filter(|part| target.contains(**part))
                {
                    errors.invalid(&at.child("path"), target, format!("must not contain '{part}'"));
                }
                for end in ["/..", "/."].iter().filter(|end| target.ends_with(**end)) {
                    errors.invalid(&at.child("path"), target, format!("cannot end with '{end}'"));
                }
            }
            "ImplementationSpecific" => {
                if !target.is_empty() && !absolute {
                    errors.invalid(&at.child("path"), target, "must be an absolute path");
                }
            }
            other => {
                let known = ["Exact", "ImplementationSpecific", "Prefix"];
                errors.not_supported(&at.child("pathType"), other, &known);
            }
        }
        backend(errors, rule.at("backend"), &at.child("backend"));
    }
}

fn backend(errors: &mut Errors, backend: &Value, path: &Path<'_>) {
    let (resource, service) = (backend.at("resource"), backend.at("service"));
    match (resource.is_null(), service.is_null()) {
        (false, false) => errors.invalid(path, "", "cannot set both resource and service backends"),
        (true, true) => errors.invalid(path, "", "resource or service backend is required"),
        (false, true) => {
            let at = path.child("resource");
            common::required(errors, resource, &at, "kind");
            common::required(errors, resource, &at, "name");
        }
        (true, false) => {
            let at = path.child("service");
            match service.text("name") {
                "" => errors.required(&at.child("name"), ""),
                name => common::label(errors, name, &at.child("name")),
            }
            let port = service.at("port");
            let at = at.child("port");
            match (port.text("name"), port.num("number")) {
                ("", 0) => errors.required(path, "port name or number is required"),
                ("", number) => {
                    for message in names::port_number(number) {
                        errors.invalid(&at.child("number"), number, message);
                    }
                }
                (name, 0) => errors.all_invalid(&at.child("name"), name, names::port_name(name)),
                _ => errors.invalid(path, "", "cannot set both port name & port number"),
            }
        }
    }
}

pub(crate) fn ingress_class(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    let (spec, path) = (object.at("spec"), Path::new("spec"));
    let (name, at) = (spec.text("controller"), path.child("controller"));
    if name.len() > 250 {
        errors.too_long(&at, 250);
    }
    match name.split_once('/') {
        _ if name.is_empty() => errors.required(&at, ""),
        Some((host, rest)) if !host.is_empty() && !rest.is_empty() => {
            subdomain(&mut errors, host, &at);
            if !names::is_http_path(rest) {
                errors.invalid(&at, rest, "Invalid path");
            }
        }
        _ => errors.invalid(&at, name, "must be a domain-prefixed path (such as \"acme.io/foo\")"),
    }
    let parameters = spec.at("parameters");
    if parameters.is_object() {
        let at = path.child("parameters");
        common::required(&mut errors, parameters, &at, "kind");
        common::required(&mut errors, parameters, &at, "name");
        let (scope, namespace) = (parameters.text("scope"), parameters.text("namespace"));
        match scope {
            "" => errors.required(&at.child("scope"), ""),
            "Namespace" if namespace.is_empty() => {
                let detail = "`parameters.scope` is set to 'Namespace'";
                errors.required(&at.child("namespace"), detail);
            }
            "Cluster" if parameters.has("namespace") => {
                let detail = "`parameters.scope` is set to 'Cluster'";
                errors.forbidden(&at.child("namespace"), detail);
            }
            "Namespace" | "Cluster" => {}
            other => errors.not_supported(&at.child("scope"), other, &["Cluster", "Namespace"]),
        }
    }
    errors.0
}

pub(crate) fn ingress_class_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    let path = Path::new("spec");
    immutable(
        &mut errors,
        new.at("spec").at("controller"),
        old.at("spec").at("controller"),
        &path.child("controller"),
    );
    errors.0
}

pub(crate) fn network_policy(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    let (spec, path) = (object.at("spec"), Path::new("spec"));
    label_selector(&mut errors, spec.at("podSelector"), &path.child("podSelector"));
    for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
        let list = path.child(direction);
        for (index, rule) in spec.items(direction).iter().enumerate() {
            let at = list.index(index);
            let ports = at.child("ports");
            for (index, port) in rule.items("ports").iter().enumerate() {
                policy_port(&mut errors, port, &ports.index(index));
            }
            let list = at.child(peers);
            for (index, peer) in rule.items(peers).iter().enumerate() {
                policy_peer(&mut errors, peer, &list.index(index));
            }
        }
    }
    let types = spec.items("policyTypes");
    let list = path.child("policyTypes");
    if types.len() > 2 {
        errors.invalid(&list, types.to_vec(), "may not specify more than two policyTypes");
        return errors.0;
    }
    for (index, kind) in types.iter().filter_map(Value::as_str).enumerate() {
        if !matches!(kind, "Ingress" | "Egress") {
            errors.not_supported(&list.index(index), kind, &["Ingress", "Egress"]);
        }
    }
    errors.0
}

fn policy_port(errors: &mut Errors, port: &Value, path: &Path<'_>) {
    let protocol = port.text("protocol");
    if port.has("protocol") && !matches!(protocol, "TCP" | "UDP" | "SCTP") {
        errors.not_supported(&path.child("protocol"), protocol, &["TCP", "UDP", "SCTP"]);
    }
    let (number, end) = (port.at("port"), port.int("endPort"));
    let at = path.child("endPort");
    if !number.is_null() {
        common::port_number_or_name(errors, number, &path.child("port"));
    }
    let Some(end) = end else { return };
    match number {
        Value::Null => errors.invalid(&at, end, "may not be specified when `port` is not specified"),
        Value::String(_) => errors.invalid(&at, end, "may not be specified when `port` is non-numeric"),
        number => {
            if number.as_i64().is_some_and(|number| end < number) {
                errors.invalid(&at, number.clone(), "must be greater than or equal to `port`");
            }
            for message in names::port_number(end) {
                errors.invalid(&at, end, message);
            }
        }
    }
}

fn policy_peer(errors: &mut Errors, peer: &Value, path: &Path<'_>) {
    let selectors = ["podSelector", "namespaceSelector"];
    for key in selectors {
        label_selector(errors, peer.at(key), &path.child(key));
    }
    let chosen = selectors.iter().any(|key| peer.has(key));
    if !peer.has("ipBlock") {
        if !chosen {
            errors.required(path, "must specify a peer");
        }
        return;
    }
    ip_block(errors, peer.at("ipBlock"), &path.child("ipBlock"));
    if chosen {
        errors.forbidden(path, "may not specify both ipBlock and another peer");
    }
}

fn ip_block(errors: &mut Errors, block: &Value, path: &Path<'_>) {
    let range = block.text("cidr");
    if range.is_empty() {
        errors.required(&path.child("cidr"), "");
        return;
    }
    common::cidr(errors, range, &path.child("cidr"));
    let Ok(whole) = range.parse::<IpNet>() else { return };
    let list = path.child("except");
    for (index, text) in block.items("except").iter().filter_map(Value::as_str).enumerate() {
        let at = list.index(index);
        common::cidr(errors, text, &at);
        let Ok(part) = text.parse::<IpNet>() else { continue };
        if !whole.contains(&part.addr()) || whole.prefix_len() >= part.prefix_len() {
            errors.invalid(&at, text, "must be a strict subset of `cidr`");
        }
    }
}

pub(crate) fn service_cidr(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    let path = Path::new("spec");
    let list = path.child("cidrs");
    let ranges: Vec<&str> = object.at("spec").items("cidrs").iter().filter_map(Value::as_str).collect();
    if ranges.is_empty() {
        errors.required(&list, "at least one CIDR required");
        return errors.0;
    }
    if ranges.len() > 2 {
        errors.invalid(&list, ranges, "may only hold up to 2 values");
        return errors.0;
    }
    for (index, range) in ranges.iter().enumerate() {
        match range.parse::<IpNet>() {
            Err(_) => common::cidr(&mut errors, range, &list.index(index)),
            Ok(net) if net.addr() != net.network() || net.to_string() != *range => {
                let detail = format!("must be in canonical form ({:?})", net.trunc().to_string());
                errors.invalid(&list.index(index), *range, detail);
            }
            Ok(_) => {}
        }
    }
    if let [a, b] = ranges.as_slice()
        && a.contains(':') == b.contains(':')
    {
        let detail =
            "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/96";
        errors.invalid(&list, ranges, detail);
    }
    errors.0
}

pub(crate) fn service_cidr_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    let path = Path::new("spec");
    let list = path.child("cidrs");
    let (new, old) = (new.at("spec").items("cidrs"), old.at("spec").items("cidrs"));
    for (index, (a, b)) in new.iter().zip(old).enumerate() {
        if a != b {
            errors.invalid(&list.index(index), a.clone(), common::IMMUTABLE);
        }
    }
    errors.0
}

/// The name of an IPAddress is the address in canonical form.
pub(crate) fn ip_address_name(name: &str) -> Vec<String> {
    match name.parse::<IpAddr>() {
        Ok(ip) if ip.to_string() == name => Vec::new(),
        Ok(_) => vec!["must be a canonical form IP address".to_owned()],
        Err(_) => vec!["must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".to_owned()],
    }
}

pub(crate) fn ip_address(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    let path = Path::new("spec");
    let at = path.child("parentRef");
    let parent = object.at("spec").at("parentRef");
    if parent.is_null() {
        errors.required(&at, "");
        return errors.0;
    }
    if !parent.text("group").is_empty() {
        subdomain(&mut errors, parent.text("group"), &at.child("group"));
    }
    for key in ["resource", "name"] {
        match parent.text(key) {
            "" => errors.required(&at.child(key), ""),
            name => errors.all_invalid(&at.child(key), name, names::path_segment(name)),
        }
    }
    errors.0
}

pub(crate) fn ip_address_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    let path = Path::new("spec");
    if !same(new.at("spec"), old.at("spec")) {
        errors.invalid(&path.child("parentRef"), new.at("spec").at("parentRef").clone(), common::IMMUTABLE);
    }
    errors.0
}
