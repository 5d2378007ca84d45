//! PodSecurity: the labels of a namespace say how much its pods may do (KEP-2579). Pods are refused by the enforced level;
//! warnings are given for pods and for what makes pods.

mod checks;
mod fields;

use std::collections::BTreeMap;
use std::fmt;

use api::{FieldError, FieldErrorKind};
use serde_json::Value;

use super::Scene;
use crate::read::Read;
use crate::{Operation, Status};
use checks::Findings;

const LABEL: &str = "pod-security.kubernetes.io/";
/// Existing pods that are looked at when a namespace becomes stricter.
const MAX_PODS: usize = 3000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    Privileged,
    Baseline,
    Restricted,
}

/// A level as of a minor version; `None` is the latest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rank {
    level: Level,
    minor: Option<u32>,
}

impl fmt::Display for Rank {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = match self.level {
            Level::Privileged => "privileged",
            Level::Baseline => "baseline",
            Level::Restricted => "restricted",
        };
        match self.minor {
            None => write!(f, "{level}:latest"),
            Some(minor) => write!(f, "{level}:v1.{minor}"),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Policy {
    pub enforce: Rank,
    pub audit: Rank,
    pub warn: Rank,
}

impl Policy {
    /// The policy that the labels of a namespace ask for, and what is wrong with them.
    pub(super) fn of(namespace: &Value) -> (Self, Vec<FieldError>) {
        let open = Rank { level: Level::Privileged, minor: None };
        let mut policy = Self { enforce: open, audit: open, warn: open };
        let mut errors = Vec::new();
        let mut read = |mode: &str, rank: &mut Rank, on_error: Level| {
            let mut good = false;
            if let Some(text) = namespace.label(&format!("{LABEL}{mode}")) {
                rank.level = match text {
                    "privileged" => Level::Privileged,
                    "baseline" => Level::Baseline,
                    "restricted" => Level::Restricted,
                    _ => {
                        let detail = "must be one of privileged, baseline, restricted";
                        errors.push(invalid(&format!("{LABEL}{mode}"), text, detail));
                        on_error
                    }
                };
                good = matches!(text, "privileged" | "baseline" | "restricted");
            }
            let key = format!("{LABEL}{mode}-version");
            if let Some(text) = namespace.label(&key) {
                rank.minor = match text.strip_prefix("v1.") {
                    _ if text == "latest" => None,
                    Some(minor) if is_number(minor) => minor.parse().ok(),
                    _ => {
                        errors.push(invalid(&key, text, "must be \"latest\" or \"v1.x\""));
                        None
                    }
                };
            }
            good
        };
        let enforced = read("enforce", &mut policy.enforce, Level::Restricted);
        read("audit", &mut policy.audit, Level::Privileged);
        read("warn", &mut policy.warn, Level::Privileged);
        let says = |key: &str| namespace.label(&format!("{LABEL}{key}")).is_some();
        if enforced && !says("warn") && policy.enforce.level > policy.warn.level {
            policy.warn.level = policy.enforce.level;
            if !says("warn-version") {
                policy.warn.minor = policy.enforce.minor;
            }
        }
        (policy, errors)
    }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'))
}

fn invalid(label: &str, value: &str, detail: &str) -> FieldError {
    FieldError::new(FieldErrorKind::Invalid, format!("metadata.labels[{label}]"), value, detail)
}

pub(super) fn validate(scene: &Scene<'_>, object: &Value, old: Option<&Value>) -> Result<(), Status> {
    let attributes = scene.request.attributes;
    let (group, resource) = (attributes.group.as_str(), attributes.resource.as_str());
    let subresource = attributes.subresource.as_str();
    match (group, resource) {
        ("", "namespaces") if subresource.is_empty() => namespace(scene, object, old),
        ("", "pods") => {
            let ignored = ["exec", "attach", "binding", "eviction", "log", "portforward", "proxy", "status"];
            if ignored.contains(&subresource) {
                return Ok(());
            }
            pod(scene, object, old)
        }
        _ if !subresource.is_empty() => Ok(()),
        ("", "replicationcontrollers")
        | ("apps", "replicasets" | "deployments" | "statefulsets" | "daemonsets")
        | ("batch", "jobs") => {
            workload(scene, object.at("spec.template"));
            Ok(())
        }
        ("", "podtemplates") => {
            workload(scene, object.at("template"));
            Ok(())
        }
        ("batch", "cronjobs") => {
            workload(scene, object.at("spec.jobTemplate.spec.template"));
            Ok(())
        }
        _ => Ok(()),
    }
}

fn namespace(scene: &Scene<'_>, object: &Value, old: Option<&Value>) -> Result<(), Status> {
    let (new, errors) = Policy::of(object);
    let refuse = |errors: &[FieldError]| Err(Status::invalid("", "Namespace", scene.name(object), errors));
    let Some(old) = old.filter(|_| scene.operation() == Operation::Update) else {
        return if errors.is_empty() { Ok(()) } else { refuse(&errors) };
    };
    let (before, old_errors) = Policy::of(old);
    if !errors.is_empty() && errors != old_errors {
        return refuse(&errors);
    }
    let relaxed = new.enforce.minor == before.enforce.minor && new.enforce.level <= before.enforce.level;
    if new.enforce == before.enforce || new.enforce.level == Level::Privileged || relaxed {
        return Ok(());
    }
    for warning in existing_pods(scene, object.name(), new.enforce) {
        scene.request.warn(warning);
    }
    Ok(())
}

/// What to warn of when the pods that are there do not fit a new level. Pods of one controller are alike: the first of each
/// comes before the others.
fn existing_pods(scene: &Scene<'_>, namespace: &str, enforce: Rank) -> Vec<String> {
    let pods = scene.cluster.list("", "pods", Some(namespace)).items;
    let total = pods.len();
    let mut seen = std::collections::HashSet::new();
    let (first, rest): (Vec<_>, Vec<_>) = pods.into_iter().partition(|pod| {
        let owners = pod.items("metadata.ownerReferences");
        let owner = owners.iter().find(|o| o.at("controller").as_bool() == Some(true));
        owner.is_none_or(|owner| seen.insert(owner.text("uid").to_owned()))
    });
    let mut found: BTreeMap<String, (String, usize)> = BTreeMap::new();
    for pod in first.iter().chain(&rest).take(MAX_PODS) {
        let findings = checks::evaluate(enforce, pod.at("metadata"), pod.at("spec"));
        if findings.is_empty() {
            continue;
        }
        let entry = found.entry(findings.reasons()).or_insert_with(|| (pod.name().to_owned(), 0));
        entry.1 += 1;
        if pod.name() < entry.0.as_str() {
            entry.0 = pod.name().to_owned();
        }
    }
    let mut warnings = Vec::new();
    if total > MAX_PODS {
        warnings.push(format!(
            "new PodSecurity enforce level only checked against the first {MAX_PODS} of {total} existing pods"
        ));
    }
    if !found.is_empty() {
        warnings.push(format!(
            "existing pods in namespace {namespace:?} violate the new PodSecurity enforce level \"{enforce}\""
        ));
    }
    let mut lines: Vec<String> = found
        .into_iter()
        .map(|(reasons, (name, count))| match count {
            1 => format!("{name}: {reasons}"),
            2 => format!("{name} (and 1 other pod): {reasons}"),
            n => format!("{name} (and {} other pods): {reasons}", n - 1),
        })
        .collect();
    lines.sort();
    warnings.extend(lines);
    warnings
}

fn policy_of(scene: &Scene<'_>) -> Option<Policy> {
    let namespace = scene.cluster.get("", "namespaces", "", scene.namespace())?;
    Some(Policy::of(&namespace).0)
}

fn pod(scene: &Scene<'_>, pod: &Value, old: Option<&Value>) -> Result<(), Status> {
    let policy = policy_of(scene)
        .ok_or_else(|| Status::internal(format!("failed to lookup namespace {:?}", scene.namespace())))?;
    if [policy.enforce, policy.audit, policy.warn].iter().all(|r| r.level == Level::Privileged) {
        return Ok(());
    }
    if scene.operation() == Operation::Update && old.is_some_and(|old| !is_significant(pod, old)) {
        return Ok(());
    }
    let findings = checks::evaluate(policy.enforce, pod.at("metadata"), pod.at("spec"));
    if !findings.is_empty() {
        let why = format!("violates PodSecurity \"{}\": {}", policy.enforce, findings.details());
        return Err(scene.forbid(pod, why));
    }
    if policy.warn != policy.enforce {
        warn(scene, policy.warn, &checks::evaluate(policy.warn, pod.at("metadata"), pod.at("spec")));
    }
    Ok(())
}

fn workload(scene: &Scene<'_>, template: &Value) {
    let Some(policy) = policy_of(scene) else { return };
    if policy.warn.level != Level::Privileged && !template.is_null() {
        let findings = checks::evaluate(policy.warn, template.at("metadata"), template.at("spec"));
        warn(scene, policy.warn, &findings);
    }
}

fn warn(scene: &Scene<'_>, rank: Rank, findings: &Findings) {
    if !findings.is_empty() {
        scene.request.warn(format!("would violate PodSecurity \"{rank}\": {}", findings.details()));
    }
}

/// Whether an update changes something that the checks look at: images, and containers that come or go.
fn is_significant(new: &Value, old: &Value) -> bool {
    let (new, old) = (new.at("spec"), old.at("spec"));
    let changed = |key: &str| {
        let (new, old) = (new.items(key), old.items(key));
        new.len() != old.len() || new.iter().zip(old).any(|(n, o)| n.text("image") != o.text("image"))
    };
    changed("containers")
        || changed("initContainers")
        || new.items("ephemeralContainers").iter().any(|container| {
            let before = old.items("ephemeralContainers").iter();
            let mut before = before.filter(|o| o.text("name") == container.text("name"));
            before.next().is_none_or(|o| o.text("image") != container.text("image"))
        })
}
