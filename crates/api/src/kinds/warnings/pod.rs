//! Pods and pod templates.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::{address, fractional, selectors, storage, workloads};
use crate::kinds::json::Read;

const SECCOMP_POD: &str = "seccomp.security.alpha.kubernetes.io/pod";
const SECCOMP_CONTAINER: &str = "container.seccomp.security.alpha.kubernetes.io/";
const APP_ARMOR: &str = "container.apparmor.security.beta.kubernetes.io/";

/// A new pod. Updates are told nothing: people seldom write pods, and components write them often.
pub(super) fn create(new: &Value, old: Option<&Value>) -> Vec<String> {
    let mut out = Vec::new();
    if old.is_none() {
        workloads::name(&mut out, new, "the Pod's hostname");
        warn(&mut out, new, "");
    }
    out
}

/// The addresses of a pod's status.
pub(super) fn status(pod: &Value) -> Vec<String> {
    let mut out = Vec::new();
    for list in ["podIPs", "hostIPs"] {
        for (index, one) in pod.at("status").items(list).iter().enumerate() {
            out.extend(address::ip(&format!("status.{list}[{index}].ip"), one.text("ip")));
        }
    }
    out
}

/// A template at a path.
pub(super) fn template(out: &mut Vec<String>, template: &Value, path: &str) {
    warn(out, template, &format!("{path}."));
}

/// A container and its path.
type Placed<'a> = (String, &'a Value);

fn containers<'a>(spec: &'a Value, at: &str) -> Vec<Placed<'a>> {
    let lists = ["initContainers", "containers", "ephemeralContainers"];
    let placed = lists.into_iter().flat_map(|list| {
        let each = spec.items(list).iter().enumerate();
        each.map(move |(index, container)| (format!("{at}spec.{list}[{index}]"), container))
    });
    placed.collect()
}

/// `at` is the path of the template with a dot behind it, or empty for a pod.
fn warn(out: &mut Vec<String>, pod: &Value, at: &str) {
    let spec = pod.at("spec");
    let annotations = pod.at("metadata").at("annotations");
    scheduling(out, spec, at);
    for (key, told) in [
        (
            "scheduler.alpha.kubernetes.io/critical-pod",
            "non-functional in v1.16+; use the \"priorityClassName\" field instead",
        ),
        (
            "security.alpha.kubernetes.io/sysctls",
            "non-functional in v1.11+; use the \"sysctls\" field instead",
        ),
        (
            "security.alpha.kubernetes.io/unsafe-sysctls",
            "non-functional in v1.11+; use the \"sysctls\" field instead",
        ),
    ] {
        if annotations.has(key) {
            out.push(format!("{at}metadata.annotations[{key}]: {told}"));
        }
    }
    volumes(out, spec, at);
    repeated(out, spec, at);
    for resource in ["memory", "ephemeral-storage"] {
        fractional(out, spec.at("overhead"), resource, &format!("{at}spec.overhead"));
    }
    let seccomp = |holder: &Value| holder.at("securityContext").has("seccompProfile");
    let unused = |key: &str| {
        format!(
            "{at}metadata.annotations[{key}]: non-functional in v1.27+; use the \"seccompProfile\" field instead"
        )
    };
    if !seccomp(spec) && annotations.has(SECCOMP_POD) {
        out.push(unused(SECCOMP_POD));
    }
    let all = containers(spec, at);
    for (path, container) in &all {
        let key = format!("{SECCOMP_CONTAINER}{}", container.text("name"));
        if !seccomp(container) && annotations.has(&key) {
            out.push(unused(&key));
        }
        let key = format!("{APP_ARMOR}{}", container.text("name"));
        let profile = "appArmorProfile";
        if annotations.has(&key) && !container.at("securityContext").has(profile) {
            let meant = app_armor(annotations.text(&key));
            let same = meant.as_ref() == spec.at("securityContext").get(profile).filter(|p| !p.is_null());
            // Nothing is told of an annotation that says what the pod says.
            if meant.is_none() || !same {
                out.push(format!(
                    "{at}metadata.annotations[{key}]: deprecated since v1.30; use the \"appArmorProfile\" field instead"
                ));
            }
        }
        for resource in ["memory", "ephemeral-storage"] {
            for list in ["limits", "requests"] {
                let amounts = container.at("resources").at(list);
                fractional(out, amounts, resource, &format!("{path}.resources.{list}"));
            }
        }
        environment(out, container, path);
    }
    ports(out, &all);
    port_names(out, &all);
    if spec.num("terminationGracePeriodSeconds") < 0 {
        out.push(format!(
            "{at}spec.terminationGracePeriodSeconds: must be >= 0; negative values are invalid and will be treated as 1"
        ));
    }
    affinity(out, spec, at);
    for (index, server) in spec.at("dnsConfig").items("nameservers").iter().enumerate() {
        let path = format!("{at}spec.dnsConfig.nameservers[{index}]");
        out.extend(address::ip(&path, server.as_str().unwrap_or_default()));
    }
    for (index, alias) in spec.items("hostAliases").iter().enumerate() {
        out.extend(address::ip(&format!("{at}spec.hostAliases[{index}].ip"), alias.text("ip")));
    }
}

/// The profile that an old annotation means.
fn app_armor(annotation: &str) -> Option<Value> {
    match annotation {
        "unconfined" => Some(json!({"type": "Unconfined"})),
        "runtime/default" => Some(json!({"type": "RuntimeDefault"})),
        other => {
            let name = other.strip_prefix("localhost/").filter(|name| !name.is_empty())?;
            Some(json!({"type": "Localhost", "localhostProfile": name}))
        }
    }
}

fn scheduling(out: &mut Vec<String>, spec: &Value, at: &str) {
    for (key, _) in spec.entries("nodeSelector") {
        if let Some(told) = selectors::deprecated(key) {
            out.push(format!("{at}spec.nodeSelector[{key}]: {told}"));
        }
    }
    let node = spec.dig(&["affinity", "nodeAffinity"]);
    let path = format!("{at}spec.affinity.nodeAffinity");
    let required = "requiredDuringSchedulingIgnoredDuringExecution";
    selectors::terms(out, node.at(required), &format!("{path}.{required}"));
    let preferred = "preferredDuringSchedulingIgnoredDuringExecution";
    for (index, term) in node.items(preferred).iter().enumerate() {
        selectors::term(out, term.at("preference"), true, &format!("{path}.{preferred}[{index}].preference"));
    }
    for (index, constraint) in spec.items("topologySpreadConstraints").iter().enumerate() {
        let path = format!("{at}spec.topologySpreadConstraints[{index}]");
        let key = constraint.text("topologyKey");
        if let Some(told) = selectors::deprecated(key) {
            out.push(format!("{path}.topologyKey: {key} is {told}"));
        }
        null_selector(out, constraint, &path);
    }
}

fn null_selector(out: &mut Vec<String>, holder: &Value, path: &str) {
    if !holder.has("labelSelector") {
        out.push(format!("{path}.labelSelector: a null labelSelector results in matching no pod"));
    }
}

fn affinity(out: &mut Vec<String>, spec: &Value, at: &str) {
    for kind in ["podAffinity", "podAntiAffinity"] {
        let affinity = spec.at("affinity").at(kind);
        let required = "requiredDuringSchedulingIgnoredDuringExecution";
        for (index, term) in affinity.items(required).iter().enumerate() {
            null_selector(out, term, &format!("{at}spec.affinity.{kind}.{required}[{index}]"));
        }
        let preferred = "preferredDuringSchedulingIgnoredDuringExecution";
        for (index, term) in affinity.items(preferred).iter().enumerate() {
            let path = format!("{at}spec.affinity.{kind}.{preferred}[{index}].podAffinityTerm");
            null_selector(out, term.at("podAffinityTerm"), &path);
        }
    }
}

fn volumes(out: &mut Vec<String>, spec: &Value, at: &str) {
    const OLD: [(&str, &str); 9] = [
        ("photonPersistentDisk", "deprecated in v1.11, non-functional in v1.16+"),
        ("gitRepo", "deprecated in v1.11, and disabled by default in v1.33+"),
        ("scaleIO", "deprecated in v1.16, non-functional in v1.22+"),
        ("flocker", "deprecated in v1.22, non-functional in v1.25+"),
        ("storageos", "deprecated in v1.22, non-functional in v1.25+"),
        ("quobyte", "deprecated in v1.22, non-functional in v1.25+"),
        ("glusterfs", "deprecated in v1.25, non-functional in v1.26+"),
        ("cephfs", "deprecated in v1.28, non-functional in v1.31+"),
        ("rbd", "deprecated in v1.28, non-functional in v1.31+"),
    ];
    for (index, volume) in spec.items("volumes").iter().enumerate() {
        let path = format!("{at}spec.volumes[{index}]");
        for (key, told) in OLD.iter().filter(|(key, _)| volume.has(key)) {
            let shown = if *key == "storageos" { "storageOS" } else { key };
            out.push(format!("{path}.{shown}: {told}"));
        }
        let claim = volume.dig(&["ephemeral", "volumeClaimTemplate", "spec"]);
        storage::claim_spec(out, claim, &format!("{path}.ephemeral.volumeClaimTemplate.spec"));
    }
    for volume in spec.items("volumes") {
        overlaps(out, volume);
    }
}

/// A path inside a volume, and what puts it there.
#[derive(PartialEq)]
struct File {
    path: String,
    source: String,
}

impl std::fmt::Display for File {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.path)?;
        if self.source.is_empty() { Ok(()) } else { write!(f, " ({})", self.source) }
    }
}

fn files(holder: &Value, source: &str) -> Vec<File> {
    let file = |item: &Value| File { path: item.text("path").to_owned(), source: source.to_owned() };
    holder.items("items").iter().map(file).collect()
}

fn overlaps(out: &mut Vec<String>, volume: &Value) {
    let name = volume.text("name");
    for (key, named, by) in
        [("configMap", "ConfigMap", "name"), ("secret", "Secret", "secretName"), ("downwardAPI", "", "")]
    {
        let holder = volume.at(key);
        let told = match named {
            "" => "DownwardAPI".to_owned(),
            named => format!("{named} {:?}", holder.text(by)),
        };
        collisions(out, name, &told, files(holder, ""));
    }
    if !volume.has("projected") {
        return;
    }
    let mut all = Vec::new();
    for source in volume.at("projected").items("sources") {
        let sources = [
            "configMap",
            "secret",
            "downwardAPI",
            "serviceAccountToken",
            "clusterTrustBundle",
            "podCertificate",
        ];
        match sources.into_iter().find(|key| source.has(key)) {
            None => out.push(format!("volume {name:?} (Projected) has no sources provided")),
            Some(key) => all.extend(projected(key, source.at(key))),
        }
    }
    collisions(out, name, "Projected", all);
}

fn projected(key: &str, part: &Value) -> Vec<File> {
    let one = |field: &str, source: String| {
        let path = part.text(field).to_owned();
        if path.is_empty() { Vec::new() } else { vec![File { path, source }] }
    };
    match key {
        "configMap" => files(part, &format!("ConfigMap {:?}", part.text("name"))),
        "secret" => files(part, &format!("Secret {:?}", part.text("name"))),
        "downwardAPI" => files(part, "DownwardAPI"),
        "serviceAccountToken" => one("path", "ServiceAccountToken".to_owned()),
        "clusterTrustBundle" => {
            let name = if part.has("name") { part.text("name") } else { part.text("signerName") };
            one("path", format!("ClusterTrustBundle {name:?}"))
        }
        _ => {
            let parts = [
                ("certificateChainPath", "PodCertificate chain"),
                ("keyPath", "PodCertificate key"),
                ("credentialBundlePath", "PodCertificate credential bundle"),
            ];
            parts.into_iter().flat_map(|(field, source)| one(field, source.to_owned())).collect()
        }
    }
}

/// Most collisions of one volume that are told: with many equal paths there would be one for each pair.
const MOST: usize = 100;

fn collisions(out: &mut Vec<String>, volume: &str, told: &str, files: Vec<File>) {
    let mut seen: Vec<File> = Vec::new();
    let mut found = 0;
    for mut file in files {
        file.path.truncate(file.path.trim_end_matches('/').len());
        if file.path.is_empty() {
            continue;
        }
        let below = |outer: &str, inner: &str| {
            inner.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        for other in &seen {
            if found < MOST && (below(&other.path, &file.path) || below(&file.path, &other.path)) {
                out.push(format!("volume {volume:?} ({told}): overlapping paths: {file} with {other}"));
                found += 1;
            }
        }
        if found < MOST {
            seen.push(file);
        }
    }
}

fn repeated(out: &mut Vec<String>, spec: &Value, at: &str) {
    let lists = [("hostAliases", "ip"), ("imagePullSecrets", "name")];
    for (list, key) in lists {
        let mut seen = BTreeSet::new();
        for (index, item) in spec.items(list).iter().enumerate() {
            if !seen.insert(item.text(key)) {
                out.push(format!("{at}spec.{list}[{index}].{key}: duplicate {key} {:?}", item.text(key)));
            }
        }
    }
    for (index, secret) in spec.items("imagePullSecrets").iter().enumerate() {
        if secret.text("name").is_empty() {
            out.push(format!("{at}spec.imagePullSecrets[{index}].name: invalid empty name \"\""));
        }
    }
}

fn environment(out: &mut Vec<String>, container: &Value, path: &str) {
    let mut seen = BTreeSet::new();
    for (index, variable) in container.items("env").iter().enumerate() {
        let (name, value) = (variable.text("name"), variable.text("value"));
        if seen.insert(name) {
            continue;
        }
        // A later value may build on the earlier one: `$(X)` is replaced by it.
        let before = format!("$({name})");
        if variable.has("valueFrom") || value == before || !value.contains(&before) {
            out.push(format!(
                "{path}.env[{index}]: hides previous definition of {name:?}, which may be dropped when using apply"
            ));
        }
    }
}

fn ports(out: &mut Vec<String>, containers: &[Placed<'_>]) {
    let mut seen: BTreeMap<(i64, &str), Vec<(String, &Value)>> = BTreeMap::new();
    for (path, container) in containers {
        for (index, port) in container.items("ports").iter().enumerate() {
            let at = format!("{path}.ports[{index}]");
            let (ip, host) = (port.text("hostIP"), port.num("hostPort"));
            if !ip.is_empty() && host == 0 {
                out.push(format!(
                    "{at}: hostIP set without hostPort: {{Name:{} HostPort:{host} ContainerPort:{} Protocol:{} HostIP:{ip}}}",
                    port.text("name"),
                    port.num("containerPort"),
                    port.text("protocol"),
                ));
            }
            let others = seen.entry((port.num("containerPort"), port.text("protocol"))).or_default();
            for (other, earlier) in others.iter().take(MOST) {
                let (other_ip, other_host) = (earlier.text("hostIP"), earlier.num("hostPort"));
                let told = if (ip, host) == (other_ip, other_host) {
                    "duplicate"
                } else if host == 0 || other_host == 0 {
                    "overlapping"
                } else if host == other_host && ip.is_empty() != other_ip.is_empty() {
                    "dangerously ambiguous"
                } else {
                    continue;
                };
                out.push(format!("{at}: {told} port definition with {other}"));
            }
            others.push((at, port));
        }
    }
}

fn port_names(out: &mut Vec<String>, containers: &[Placed<'_>]) {
    let mut seen: BTreeMap<&str, String> = BTreeMap::new();
    for (path, container) in containers {
        for (index, port) in container.items("ports").iter().enumerate() {
            let (name, at) = (port.text("name"), format!("{path}.ports[{index}]"));
            if name.is_empty() {
                continue;
            }
            match seen.get(name) {
                Some(first) => out.push(format!(
                    "{at}: duplicate port name {name:?} with {first}, services and probes that select ports by name will \
                     use {first}"
                )),
                None => {
                    seen.insert(name, at);
                }
            }
        }
    }
}
