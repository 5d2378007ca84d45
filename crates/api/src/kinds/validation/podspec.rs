//! The specification of a pod, in a Pod or in a template.

use std::collections::BTreeSet;

use serde_json::Value;

use super::common::{self, label, one_of, subdomain};
use super::container::{self, Context};
use super::resources::{self, Level};
use super::{scheduling, security, volumes};
use crate::field::{Errors, Path};
use crate::kinds::json::Read;
use crate::kinds::pod::totals;
use crate::names;

/// A template: labels, annotations and specification.
pub(crate) fn template(errors: &mut Errors, template: &Value, path: &Path<'_>) {
    let meta = template.at("metadata");
    common::labels(errors, meta.at("labels"), &path.child("labels"));
    common::annotations(errors, meta.at("annotations"), &path.child("annotations"));
    let at = path.child("spec");
    spec(errors, template.at("spec"), None, &at);
    if !template.at("spec").items("ephemeralContainers").is_empty() {
        errors
            .forbidden(&at.child("ephemeralContainers"), "ephemeral containers not allowed in pod template");
    }
}

/// A pod's specification; the metadata is that of a Pod, a template has none.
pub(crate) fn spec(errors: &mut Errors, spec: &Value, pod: Option<&Value>, path: &Path<'_>) {
    let name = pod.map(|pod| pod.at("metadata").text("name")).filter(|name| !name.is_empty());
    if !spec.has("terminationGracePeriodSeconds") {
        errors.required(&path.child("terminationGracePeriodSeconds"), "");
    }
    let volumes = volumes::volumes(errors, spec.items("volumes"), name, &path.child("volumes"));
    let claims = spec.items("resourceClaims").iter().map(|claim| claim.text("name")).collect();
    resource_claims(errors, spec, &path.child("resourceClaims"));
    let host_users = spec.at("hostUsers").as_bool().unwrap_or(true);
    let context = Context { spec, volumes, claims, host_users };
    container::regular(errors, &context, &path.child("containers"));
    container::init(errors, &context, &path.child("initContainers"));
    container::ephemeral(errors, &context, &path.child("ephemeralContainers"));
    pod_resources(errors, spec, &context.claims, &path.child("resources"));
    host_network_ports(errors, spec, pod.is_some(), path);
    one_of(
        errors,
        spec.text("restartPolicy"),
        &path.child("restartPolicy"),
        &["Always", "OnFailure", "Never"],
    );
    one_of(
        errors,
        spec.text("dnsPolicy"),
        &path.child("dnsPolicy"),
        &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"],
    );
    common::labels(errors, spec.at("nodeSelector"), &path.child("nodeSelector"));
    security::pod(errors, spec.at("securityContext"), spec, &path.child("securityContext"));
    scheduling::affinity(errors, spec.at("affinity"), &path.child("affinity"));
    dns_config(errors, spec, &path.child("dnsConfig"));
    let gates = path.child("readinessGates");
    for (index, gate) in spec.items("readinessGates").iter().enumerate() {
        let at = gates.index(index);
        common::label_name(errors, gate.text("conditionType"), &at.child("conditionType"));
    }
    scheduling_gates(errors, spec, &path.child("schedulingGates"));
    scheduling::spread_constraints(
        errors,
        spec.items("topologySpreadConstraints"),
        &path.child("topologySpreadConstraints"),
    );
    host_users_parts(errors, spec, path);
    host_name(errors, spec, path);
    for key in ["serviceAccountName", "nodeName", "priorityClassName", "runtimeClassName"] {
        let name = spec.text(key);
        if !name.is_empty() {
            subdomain(errors, name, &path.child(key));
        }
    }
    if let Some(seconds) =
        spec.int("activeDeadlineSeconds").filter(|s| !(1..=i64::from(i32::MAX)).contains(s))
    {
        errors.invalid(&path.child("activeDeadlineSeconds"), seconds, names::range(1, i32::MAX.into()));
    }
    for key in ["hostname", "subdomain"] {
        if !spec.text(key).is_empty() {
            label(errors, spec.text(key), &path.child(key));
        }
    }
    scheduling::tolerations(errors, spec.items("tolerations"), &path.child("tolerations"));
    let aliases = path.child("hostAliases");
    for (index, alias) in spec.items("hostAliases").iter().enumerate() {
        let at = aliases.index(index);
        common::ip(errors, alias.text("ip"), &at.child("ip"));
        let list = at.child("hostnames");
        for (index, name) in alias.items("hostnames").iter().filter_map(Value::as_str).enumerate() {
            subdomain(errors, name, &list.index(index));
        }
    }
    if spec.has("preemptionPolicy") {
        let policy = spec.text("preemptionPolicy");
        one_of(errors, policy, &path.child("preemptionPolicy"), &["PreemptLowerPriority", "Never"]);
    }
    if spec.has("overhead") {
        let overhead = serde_json::json!({"limits": spec.at("overhead")});
        let none = BTreeSet::new();
        resources::requirements(errors, &overhead, &none, &path.child("overhead"), Level::Container);
    }
    operating_system(errors, spec, path);
}

fn resource_claims(errors: &mut Errors, spec: &Value, path: &Path<'_>) {
    let mut names = BTreeSet::new();
    for (index, claim) in spec.items("resourceClaims").iter().enumerate() {
        let at = path.index(index);
        match claim.text("name") {
            "" => errors.required(&at.child("name"), ""),
            name if !names.insert(name) => errors.duplicate(&at.child("name"), name),
            name => label(errors, name, &at.child("name")),
        }
        let sources = ["resourceClaimName", "resourceClaimTemplateName"];
        match sources.iter().filter(|source| claim.has(source)).count() {
            0 => errors.invalid(
                &at,
                claim.clone(),
                "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`",
            ),
            1 => {}
            _ => errors.invalid(
                &at,
                claim.clone(),
                "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified",
            ),
        }
        for source in sources.iter().filter(|source| claim.has(source)) {
            subdomain(errors, claim.text(source), &at.child(source));
        }
    }
}

fn pod_resources(errors: &mut Errors, spec: &Value, claims: &BTreeSet<&str>, path: &Path<'_>) {
    let resources = spec.at("resources");
    if !resources.is_object() {
        return;
    }
    if spec.at("os").text("name") == "windows" {
        errors.forbidden(path, "may not be set for a windows pod");
        return;
    }
    if resources.has("claims") {
        errors.forbidden(&path.child("claims"), "claims may not be set for Resources at pod-level");
    }
    resources::requirements(errors, resources, claims, path, Level::Pod);
    let requests = path.child("requests");
    for (name, total) in totals(spec, "requests") {
        if let Some(own) = resources::quantity(resources.at("requests").at(&name)).filter(|own| total > *own)
        {
            let detail = format!("must be greater than or equal to aggregate container requests of {total}");
            errors.invalid(&requests.key(&name), own.to_string(), detail);
        }
    }
    let list = path.child("containers");
    for (index, container) in spec.items("containers").iter().enumerate() {
        for (name, value) in container.at("resources").entries("limits") {
            let limit = resources::quantity(resources.at("limits").at(name));
            if let (Some(own), Some(limit)) = (resources::quantity(value), limit)
                && own > limit
            {
                let detail = format!("must be less than or equal to pod limits of {limit}");
                errors.invalid(&list.index(index).key(name).child("limits"), own.to_string(), detail);
            }
        }
    }
}

fn host_network_ports(errors: &mut Errors, spec: &Value, is_pod: bool, path: &Path<'_>) {
    if !spec.flag("hostNetwork") {
        return;
    }
    let list = path.child("containers");
    for (index, container) in spec.items("containers").iter().enumerate() {
        let at = list.index(index);
        let ports = at.child("ports");
        for (index, port) in container.items("ports").iter().enumerate() {
            let (host, own) = (port.num("hostPort"), port.num("containerPort"));
            if (is_pod || host != 0) && host != own {
                errors.invalid(
                    &ports.index(index).child("hostPort"),
                    host,
                    "must match `containerPort` when `hostNetwork` is true",
                );
            }
        }
    }
}

fn dns_config(errors: &mut Errors, spec: &Value, path: &Path<'_>) {
    let config = spec.at("dnsConfig");
    if spec.text("dnsPolicy") == "None" {
        if config.is_null() {
            errors.required(path, "must provide `dnsConfig` when `dnsPolicy` is None");
            return;
        }
        if config.items("nameservers").is_empty() {
            let detail = "must provide at least one DNS nameserver when `dnsPolicy` is None";
            errors.required(&path.child("nameservers"), detail);
            return;
        }
    }
    let servers = config.items("nameservers");
    let at = path.child("nameservers");
    if servers.len() > 3 {
        errors.invalid(&at, servers.to_vec(), "must not have more than 3 nameservers");
    }
    for (index, server) in servers.iter().filter_map(Value::as_str).enumerate() {
        common::ip(errors, server, &at.index(index));
    }
    let searches: Vec<&str> = config.items("searches").iter().filter_map(Value::as_str).collect();
    let at = path.child("searches");
    if searches.len() > 32 {
        errors.invalid(&at, searches.clone(), "must not have more than 32 search paths");
    }
    if searches.join(" ").len() > 2048 {
        let detail = "must not have more than 2048 characters (including spaces) in the search list";
        errors.invalid(&at, searches.clone(), detail);
    }
    for (index, search) in searches.into_iter().enumerate().filter(|(_, search)| *search != ".") {
        let bare = search.strip_suffix('.').unwrap_or(search);
        errors.all_invalid(&at.index(index), bare, names::subdomain_with_underscores(bare));
    }
    let at = path.child("options");
    for (index, option) in config.items("options").iter().enumerate() {
        if option.text("name").is_empty() {
            errors.required(&at.index(index), "must not be empty");
        }
    }
}

fn scheduling_gates(errors: &mut Errors, spec: &Value, path: &Path<'_>) {
    let mut seen = BTreeSet::new();
    for (index, gate) in spec.items("schedulingGates").iter().enumerate() {
        let name = gate.text("name");
        common::label_name(errors, name, &path.index(index));
        if !seen.insert(name) {
            errors.duplicate(&path.index(index), name);
        }
    }
}

fn host_users_parts(errors: &mut Errors, spec: &Value, path: &Path<'_>) {
    if spec.at("hostUsers").as_bool() != Some(false) {
        return;
    }
    const DETAIL: &str = "when `hostUsers` is false";
    for (key, told) in [("hostNetwork", "hostNetwork"), ("hostPID", "HostPID"), ("hostIPC", "HostIPC")] {
        if spec.flag(key) {
            errors.forbidden(&path.child(told), DETAIL);
        }
    }
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        let at = path.child(list);
        for (index, container) in spec.items(list).iter().enumerate() {
            if !container.items("volumeDevices").is_empty() {
                errors.forbidden(&at.index(index).child("volumeDevices"), DETAIL);
            }
        }
    }
}

fn host_name(errors: &mut Errors, spec: &Value, path: &Path<'_>) {
    let Some(name) = spec.at("hostnameOverride").as_str() else { return };
    let at = path.child("hostnameOverride");
    if spec.flag("setHostnameAsFQDN") {
        errors.forbidden(&at, "may not be specified when setHostnameAsFQDN is true");
    }
    if spec.flag("hostNetwork") {
        errors.forbidden(&at, "may not be specified when hostNetwork is true");
    }
    if name.len() > 64 {
        errors.too_long(&at, 64);
    }
    subdomain(errors, name, &at);
}

fn operating_system(errors: &mut Errors, spec: &Value, path: &Path<'_>) {
    let os = spec.at("os");
    if os.is_null() {
        return;
    }
    let at = path.child("os");
    match os.text("name") {
        "" => errors.required(&at.child("name"), ""),
        "linux" => {
            if spec.at("securityContext").has("windowsOptions") {
                let at = path.child("securityContext");
                errors
                    .forbidden(&at.child("windowsOptions"), "windows options cannot be set for a linux pod");
            }
            for list in ["initContainers", "containers", "ephemeralContainers"] {
                let at = path.child(list);
                for (index, container) in spec.items(list).iter().enumerate() {
                    if container.at("securityContext").has("windowsOptions") {
                        let at = at.index(index);
                        let detail = "windows options cannot be set for a linux pod";
                        errors.forbidden(&at.child("securityContext").child("windowsOptions"), detail);
                    }
                }
            }
        }
        "windows" => windows(errors, spec, path),
        name => errors.not_supported(&at, name, &["linux", "windows"]),
    }
}

fn windows(errors: &mut Errors, spec: &Value, path: &Path<'_>) {
    const DETAIL: &str = "cannot be set for a windows pod";
    for key in ["hostUsers", "shareProcessNamespace"] {
        if spec.has(key) {
            errors.forbidden(&path.child(key), DETAIL);
        }
    }
    for key in ["hostPID", "hostIPC"] {
        if spec.flag(key) {
            errors.forbidden(&path.child(key), DETAIL);
        }
    }
    let at = path.child("securityContext");
    for key in [
        "appArmorProfile",
        "seLinuxOptions",
        "seccompProfile",
        "fsGroup",
        "fsGroupChangePolicy",
        "sysctls",
        "runAsUser",
        "runAsGroup",
        "supplementalGroups",
        "supplementalGroupsPolicy",
        "seLinuxChangePolicy",
    ] {
        if spec.at("securityContext").has(key) {
            errors.forbidden(&at.child(key), DETAIL);
        }
    }
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        let list_path = path.child(list);
        for (index, container) in spec.items(list).iter().enumerate() {
            let at = list_path.index(index);
            let at = at.child("securityContext");
            for key in [
                "appArmorProfile",
                "seLinuxOptions",
                "seccompProfile",
                "capabilities",
                "readOnlyRootFilesystem",
                "privileged",
                "allowPrivilegeEscalation",
                "procMount",
                "runAsUser",
                "runAsGroup",
            ] {
                if container.at("securityContext").has(key) {
                    errors.forbidden(&at.child(key), DETAIL);
                }
            }
        }
    }
}
