//! Containers of a pod.

use std::collections::BTreeSet;

use serde_json::Value;

use super::common::{self, one_of, required};
use super::resources::{self, Level};
use super::volumes::Volumes;
use super::{probes, security};
use crate::field::{Errors, Path};
use crate::kinds::json::Read;
use crate::names;

const PROTOCOLS: [&str; 3] = ["SCTP", "TCP", "UDP"];
const ENV_PATHS: [&str; 9] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
const EPHEMERAL_FIELDS: [&str; 19] = [
    "name",
    "image",
    "command",
    "args",
    "workingDir",
    "env",
    "envFrom",
    "volumeMounts",
    "volumeDevices",
    "imagePullPolicy",
    "terminationMessagePath",
    "terminationMessagePolicy",
    "securityContext",
    "stdin",
    "stdinOnce",
    "tty",
    "targetContainerName",
    "resources",
    "resizePolicy",
];

/// What the checks of a container have to know of its pod.
pub(crate) struct Context<'a> {
    pub spec: &'a Value,
    pub volumes: Volumes<'a>,
    pub claims: BTreeSet<&'a str>,
    pub host_users: bool,
}

pub(crate) fn regular(errors: &mut Errors, context: &Context<'_>, path: &Path<'_>) {
    let containers = context.spec.items("containers");
    if containers.is_empty() {
        errors.required(path, "");
    }
    let mut names = BTreeSet::new();
    for (index, container) in containers.iter().enumerate() {
        let at = path.index(index);
        common_parts(errors, container, context, &at);
        let name = container.text("name");
        if !names.insert(name) {
            errors.duplicate(&at.child("name"), name);
        }
        probes::all(errors, container, context.spec, &at);
        restart_rules(errors, container, &at);
    }
    host_ports(errors, containers, path);
}

pub(crate) fn init(errors: &mut Errors, context: &Context<'_>, path: &Path<'_>) {
    const ONLY_SIDECARS: &str = "may not be set for init containers without restartPolicy=Always";
    let mut names: BTreeSet<&str> = context.spec.items("containers").iter().map(|c| c.text("name")).collect();
    for (index, container) in context.spec.items("initContainers").iter().enumerate() {
        let at = path.index(index);
        common_parts(errors, container, context, &at);
        restart_rules(errors, container, &at);
        let name = container.text("name");
        if names.contains(name) {
            errors.duplicate(&at.child("name"), name);
        } else if !name.is_empty() {
            names.insert(name);
        }
        host_ports(errors, std::slice::from_ref(container), path);
        if container.text("restartPolicy") == "Always" {
            probes::all(errors, container, context.spec, &at);
            continue;
        }
        for part in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
            if container.has(part) {
                errors.forbidden(&at.child(part), ONLY_SIDECARS);
            }
        }
        let policies = at.child("resizePolicy");
        for (index, policy) in container.items("resizePolicy").iter().enumerate() {
            if policy.text("restartPolicy") == "RestartContainer" {
                errors.invalid(
                    &policies.index(index).child("restartPolicy"),
                    "RestartContainer",
                    "must not be set to 'RestartContainer' for non-sidecar initContainers",
                );
            }
        }
    }
}

pub(crate) fn ephemeral(errors: &mut Errors, context: &Context<'_>, path: &Path<'_>) {
    const NOT_EPHEMERAL: &str = "cannot be set for an Ephemeral Container";
    let spec = context.spec;
    let others: BTreeSet<&str> =
        spec.items("containers").iter().chain(spec.items("initContainers")).map(|c| c.text("name")).collect();
    let mut names = others.clone();
    for (index, container) in spec.items("ephemeralContainers").iter().enumerate() {
        let at = path.index(index);
        common_parts(errors, container, context, &at);
        no_padding(errors, container, &at);
        let name = container.text("name");
        if !names.insert(name) {
            errors.duplicate(&at.child("name"), name);
        }
        let target = container.text("targetContainerName");
        if !target.is_empty() && !others.contains(target) {
            errors.not_found(&at.child("targetContainerName"), target);
        }
        for (field, value) in container.as_object().into_iter().flatten() {
            let allowed =
                EPHEMERAL_FIELDS.contains(&field.as_str()) && field != "resources" && field != "resizePolicy";
            if !allowed && !value.is_empty_value() {
                errors.forbidden(&at.child(field), NOT_EPHEMERAL);
            }
        }
        let mounts = at.child("volumeMounts");
        for (index, mount) in container.items("volumeMounts").iter().enumerate() {
            for part in ["subPath", "subPathExpr"] {
                if !mount.text(part).is_empty() {
                    errors.forbidden(&mounts.index(index).child(part), NOT_EPHEMERAL);
                }
            }
        }
    }
}

/// An image's name in a pod has no blanks around it; in templates old objects may have them.
pub(crate) fn no_padding(errors: &mut Errors, container: &Value, path: &Path<'_>) {
    let image = container.text("image");
    if image.trim() != image {
        errors.invalid(&path.child("image"), image, "must not have leading or trailing whitespace");
    }
}

fn common_parts(errors: &mut Errors, container: &Value, context: &Context<'_>, path: &Path<'_>) {
    match container.text("name") {
        "" => errors.required(&path.child("name"), ""),
        name => common::label(errors, name, &path.child("name")),
    }
    required(errors, container, path, "image");
    one_of(
        errors,
        container.text("terminationMessagePolicy"),
        &path.child("terminationMessagePolicy"),
        &["File", "FallbackToLogsOnError"],
    );
    ports(errors, container.items("ports"), &path.child("ports"));
    env(errors, container.items("env"), &path.child("env"));
    env_from(errors, container.items("envFrom"), &path.child("envFrom"));
    mounts(errors, container, context, &path.child("volumeMounts"));
    devices(errors, container, context, &path.child("volumeDevices"));
    one_of(
        errors,
        container.text("imagePullPolicy"),
        &path.child("imagePullPolicy"),
        &["Always", "IfNotPresent", "Never"],
    );
    let resources = container.at("resources");
    resources::requirements(errors, resources, &context.claims, &path.child("resources"), Level::Container);
    resize_policy(errors, container, context.spec, &path.child("resizePolicy"));
    security::container(
        errors,
        container.at("securityContext"),
        &path.child("securityContext"),
        context.host_users,
    );
}

fn ports(errors: &mut Errors, ports: &[Value], path: &Path<'_>) {
    let mut names = BTreeSet::new();
    for (index, port) in ports.iter().enumerate() {
        let at = path.index(index);
        let name = port.text("name");
        if !name.is_empty() {
            let wrong = names::port_name(name);
            if !wrong.is_empty() {
                errors.all_invalid(&at.child("name"), name, wrong);
            } else if !names.insert(name) {
                errors.duplicate(&at.child("name"), name);
            }
        }
        match port.num("containerPort") {
            0 => errors.required(&at.child("containerPort"), ""),
            _ => common::port_number_or_name(errors, port.at("containerPort"), &at.child("containerPort")),
        }
        if port.num("hostPort") != 0 {
            common::port_number_or_name(errors, port.at("hostPort"), &at.child("hostPort"));
        }
        one_of(errors, port.text("protocol"), &at.child("protocol"), &PROTOCOLS);
    }
}

fn host_ports(errors: &mut Errors, containers: &[Value], path: &Path<'_>) {
    let mut taken = BTreeSet::new();
    for (index, container) in containers.iter().enumerate() {
        let at = path.index(index);
        let ports = at.child("ports");
        for (index, port) in container.items("ports").iter().enumerate() {
            let number = port.num("hostPort");
            if number == 0 {
                continue;
            }
            let key = format!("{}/{}/{number}", port.text("protocol"), port.text("hostIP"));
            if !taken.insert(key.clone()) {
                errors.duplicate(&ports.index(index).child("hostPort"), key);
            }
        }
    }
}

fn env(errors: &mut Errors, vars: &[Value], path: &Path<'_>) {
    for (index, var) in vars.iter().enumerate() {
        let at = path.index(index);
        match var.text("name") {
            "" => errors.required(&at.child("name"), ""),
            name => errors.all_invalid(&at.child("name"), name, names::env_var_name(name)),
        }
        if var.has("valueFrom") {
            value_from(errors, var, &at.child("valueFrom"));
        }
    }
}

fn value_from(errors: &mut Errors, var: &Value, path: &Path<'_>) {
    let from = var.at("valueFrom");
    let mut sources = 0;
    for kind in ["fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef"] {
        let source = from.at(kind);
        if source.is_null() {
            continue;
        }
        sources += 1;
        let at = path.child(kind);
        match kind {
            "fieldRef" => field_selector(errors, source, &ENV_PATHS, &at),
            "resourceFieldRef" => resource_field_selector(errors, source, &at, false),
            "fileKeyRef" => {
                required(errors, source, &at, "key");
                required(errors, source, &at, "volumeName");
                required(errors, source, &at, "path");
            }
            _ => {
                common::subdomain(errors, source.text("name"), &at.child("name"));
                match source.text("key") {
                    "" => errors.required(&at.child("key"), ""),
                    key => errors.all_invalid(&at.child("key"), key, names::config_map_key(key)),
                }
            }
        }
    }
    if sources == 0 {
        errors.invalid(
            path,
            "",
            "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`",
        );
    } else if !var.text("value").is_empty() {
        errors.invalid(path, "", "may not be specified when `value` is not empty");
    } else if sources > 1 {
        errors.invalid(path, "", "may not have more than one field specified at a time");
    }
}

fn env_from(errors: &mut Errors, list: &[Value], path: &Path<'_>) {
    for (index, from) in list.iter().enumerate() {
        let at = path.index(index);
        let prefix = from.text("prefix");
        if !prefix.is_empty() {
            errors.all_invalid(&at.child("prefix"), prefix, names::env_var_name(prefix));
        }
        let mut sources = 0;
        for kind in ["configMapRef", "secretRef"] {
            if from.has(kind) {
                sources += 1;
                let at = at.child(kind);
                common::required_subdomain(errors, from.at(kind).text("name"), &at.child("name"));
            }
        }
        match sources {
            0 => errors.invalid(path, "", "must specify one of: `configMapRef` or `secretRef`"),
            1 => {}
            _ => errors.invalid(path, "", "may not have more than one field specified at a time"),
        }
    }
}

/// A field of the pod, as environment variables and the downward API take it.
pub(crate) fn field_selector(errors: &mut Errors, field: &Value, known: &[&str], path: &Path<'_>) {
    const CONVERTIBLE: [&str; 13] = [
        "metadata.annotations",
        "metadata.labels",
        "metadata.name",
        "metadata.namespace",
        "metadata.uid",
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.serviceAccountName",
        "spec.schedulerName",
        "status.phase",
        "status.hostIP",
        "status.hostIPs",
        "status.podIP",
    ];
    let at = path.child("fieldPath");
    let target = field.text("fieldPath");
    if field.text("apiVersion").is_empty() {
        errors.required(&path.child("apiVersion"), "");
        return;
    }
    if target.is_empty() {
        errors.required(&at, "");
        return;
    }
    let subscript = target.strip_suffix("']").and_then(|text| text.split_once("['"));
    let unknown = |label: &str| format!("error converting fieldPath: field label not supported: {label}");
    if field.text("apiVersion") != "v1" {
        let detail =
            format!("error converting fieldPath: unsupported pod version: {}", field.text("apiVersion"));
        errors.invalid(&at, target, detail);
        return;
    }
    match subscript {
        Some(("metadata.annotations", key)) => common::label_name(errors, &key.to_lowercase(), path),
        Some(("metadata.labels", key)) => common::label_name(errors, key, path),
        Some(_) => {
            let detail =
                format!("error converting fieldPath: field label does not support subscript: {target}");
            errors.invalid(&at, target, detail);
        }
        None if known.contains(&target) => {}
        None if CONVERTIBLE.contains(&target) || matches!(target, "status.podIPs" | "spec.host") => {
            let mut sorted = known.to_vec();
            sorted.sort_unstable();
            errors.not_supported(&at, target, &sorted);
        }
        None => errors.invalid(&at, target, unknown(target)),
    }
}

/// A resource of a container, as environment variables and the downward API take it.
pub(crate) fn resource_field_selector(errors: &mut Errors, field: &Value, path: &Path<'_>, volume: bool) {
    const KNOWN: [&str; 6] = [
        "limits.cpu",
        "limits.ephemeral-storage",
        "limits.memory",
        "requests.cpu",
        "requests.ephemeral-storage",
        "requests.memory",
    ];
    let resource = field.text("resource");
    let huge = resource.starts_with("limits.hugepages-") || resource.starts_with("requests.hugepages-");
    if volume && field.text("containerName").is_empty() {
        errors.required(&path.child("containerName"), "");
    } else if resource.is_empty() {
        errors.required(&path.child("resource"), "");
    } else if !KNOWN.contains(&resource) && !huge {
        errors.not_supported(&path.child("resource"), resource, &KNOWN);
    }
    let Some(divisor) = resources::quantity(field.at("divisor")).filter(|divisor| !divisor.is_zero()) else {
        return;
    };
    let divisor = divisor.to_string();
    let bytes = ["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"];
    let of_bytes = "1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei";
    let (fits, values, what) = match resource.split_once('.').map(|(_, name)| name) {
        Some("cpu") => (matches!(divisor.as_str(), "1m" | "1"), "1m and 1", "cpu resource"),
        Some("memory") => (bytes.contains(&divisor.as_str()), of_bytes, "memory resource"),
        Some("ephemeral-storage") => {
            (bytes.contains(&divisor.as_str()), of_bytes, "local ephemeral storage resource")
        }
        _ if huge => (bytes.contains(&divisor.as_str()), of_bytes, "hugepages resource"),
        _ => return,
    };
    if !fits {
        let detail = format!("only divisor's values {values} are supported with the {what}");
        errors.invalid(&path.child("divisor"), resource, detail);
    }
}

fn mounts(errors: &mut Errors, container: &Value, context: &Context<'_>, path: &Path<'_>) {
    let devices = container.items("volumeDevices");
    let mut points = BTreeSet::new();
    for (index, mount) in container.items("volumeMounts").iter().enumerate() {
        let at = path.index(index);
        let (name, point) = (mount.text("name"), mount.text("mountPath"));
        if name.is_empty() {
            errors.required(&at.child("name"), "");
        }
        if !context.volumes.contains_key(name) {
            errors.not_found(&at.child("name"), name);
        }
        if point.is_empty() {
            errors.required(&at.child("mountPath"), "");
        }
        if !points.insert(point) {
            errors.invalid(&at.child("mountPath"), point, "must be unique");
        }
        if devices.iter().any(|device| device.text("name") == name) {
            errors.invalid(&at.child("name"), name, "must not already exist in volumeDevices");
        }
        if devices.iter().any(|device| device.text("devicePath") == point) {
            let detail = "must not already exist as a path in volumeDevices";
            errors.invalid(&at.child("mountPath"), point, detail);
        }
        // Upstream names the list here, not its element.
        let (sub, expression) = (mount.text("subPath"), mount.text("subPathExpr"));
        if !sub.is_empty() {
            common::local_path(errors, sub, &path.child("subPath"));
        }
        if !expression.is_empty() {
            if !sub.is_empty() {
                let detail = "subPathExpr and subPath are mutually exclusive";
                errors.invalid(&at.child("subPathExpr"), expression, detail);
            }
            common::local_path(errors, expression, &path.child("subPathExpr"));
        }
        propagation(errors, mount, container, path);
    }
}

fn propagation(errors: &mut Errors, mount: &Value, container: &Value, path: &Path<'_>) {
    let at = path.child("mountPropagation");
    let mode = mount.text("mountPropagation");
    let known = ["Bidirectional", "HostToContainer", "None"];
    if mount.has("mountPropagation") {
        if !known.contains(&mode) {
            errors.not_supported(&at, mode, &known);
        }
        if mode == "Bidirectional" && !container.at("securityContext").flag("privileged") {
            let detail = "Bidirectional mount propagation is available only to privileged containers";
            errors.forbidden(&at, detail);
        }
    }
    let at = path.child("recursiveReadOnly");
    match mount.text("recursiveReadOnly") {
        "" | "Disabled" => {}
        "Enabled" | "IfPossible" => {
            if !mount.flag("readOnly") {
                errors.forbidden(&at, "may only be specified when readOnly is true");
            }
            if !matches!(mode, "" | "None") {
                errors.forbidden(&at, "may only be specified when mountPropagation is None or not specified");
            }
        }
        other => errors.not_supported(&at, other, &["Disabled", "Enabled", "IfPossible"]),
    }
}

fn devices(errors: &mut Errors, container: &Value, context: &Context<'_>, path: &Path<'_>) {
    let mounts = container.items("volumeMounts");
    let (mut names, mut points) = (BTreeSet::new(), BTreeSet::new());
    for (index, device) in container.items("volumeDevices").iter().enumerate() {
        let at = path.index(index);
        let (name, point) = (device.text("name"), device.text("devicePath"));
        if name.is_empty() {
            errors.required(&at.child("name"), "");
        }
        if names.contains(name) {
            errors.invalid(&at.child("name"), name, "must be unique");
        }
        match context.volumes.get(name) {
            None => errors.not_found(&at.child("name"), name),
            Some(volume) if !volume.has("persistentVolumeClaim") && !volume.has("ephemeral") => errors
                .invalid(
                    &at.child("name"),
                    name,
                    "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode",
                ),
            Some(_) => {}
        }
        if point.is_empty() {
            errors.required(&at.child("devicePath"), "");
        }
        if points.contains(point) {
            errors.invalid(&at.child("devicePath"), point, "must be unique");
        }
        if point.split('/').any(|part| part == "..") {
            errors.invalid(&at.child("devicePath"), point, "can not contain backsteps ('..')");
        } else {
            points.insert(point);
        }
        if mounts.iter().any(|mount| mount.text("name") == name) {
            errors.invalid(&at.child("name"), name, "must not already exist in volumeMounts");
        }
        if mounts.iter().any(|mount| mount.text("mountPath") == point) {
            let detail = "must not already exist as a path in volumeMounts";
            errors.invalid(&at.child("devicePath"), point, detail);
        }
        if !name.is_empty() {
            names.insert(name);
        }
    }
}

fn resize_policy(errors: &mut Errors, container: &Value, spec: &Value, path: &Path<'_>) {
    let mut seen = BTreeSet::new();
    for (index, policy) in container.items("resizePolicy").iter().enumerate() {
        let (resource, restart) = (policy.text("resourceName"), policy.text("restartPolicy"));
        if !seen.insert(resource) {
            errors.duplicate(&path.index(index), resource);
        }
        one_of(errors, resource, path, &["cpu", "memory"]);
        one_of(errors, restart, path, &["NotRequired", "RestartContainer"]);
        if spec.text("restartPolicy") == "Never" && restart != "NotRequired" {
            errors.invalid(path, restart, "must be 'NotRequired' when pod `restartPolicy` is 'Never'");
        }
    }
}

fn restart_rules(errors: &mut Errors, container: &Value, path: &Path<'_>) {
    let rules = container.items("restartPolicyRules");
    let policy = container.text("restartPolicy");
    if !container.has("restartPolicy") {
        if !rules.is_empty() {
            let detail = "must specify restartPolicy when restart rules are used";
            errors.required(&path.child("restartPolicy"), detail);
        }
    } else if !matches!(policy, "Always" | "Never" | "OnFailure") {
        errors.not_supported(&path.child("restartPolicy"), policy, &["Always", "Never", "OnFailure"]);
    }
    let list = path.child("restartPolicyRules");
    if rules.len() > 20 {
        errors.too_many(&list, rules.len(), 20);
    }
    for (index, rule) in rules.iter().enumerate() {
        let at = list.index(index);
        let action = rule.text("action");
        if !matches!(action, "Restart" | "RestartAllContainers") {
            errors.not_supported(&at.child("action"), action, &["Restart", "RestartAllContainers"]);
        }
        let codes = rule.at("exitCodes");
        let at = at.child("exitCodes");
        if codes.is_null() {
            errors.required(&at, "must be specified");
            continue;
        }
        if !matches!(codes.text("operator"), "In" | "NotIn") {
            errors.not_supported(&at.child("operator"), codes.text("operator"), &["In", "NotIn"]);
        }
        if codes.items("values").len() > 255 {
            errors.too_many(&at.child("values"), codes.items("values").len(), 255);
        }
    }
}
