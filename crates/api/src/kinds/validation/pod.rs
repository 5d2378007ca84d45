//! Pod: create, update and the subresources that write it.

use serde_json::Value;

use super::common;
use super::{container, podspec, scheduling};
use crate::FieldError;
use crate::field::{Errors, Path};
use crate::kinds::json::{Read, Write, keep, same};
use crate::kinds::pod::qos_class;
use crate::names;

const UPDATABLE: &str = "`spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// A pod as it is, on create and on every write.
pub(crate) fn validate(pod: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    whole(&mut errors, pod);
    errors.0
}

fn whole(errors: &mut Errors, pod: &Value) {
    let path = Path::new("spec");
    let spec = pod.at("spec");
    podspec::spec(errors, spec, Some(pod), &path);
    if spec.text("serviceAccountName").is_empty() {
        let list = path.child("volumes");
        for (index, volume) in spec.items("volumes").iter().enumerate() {
            let at = list.index(index);
            let at = at.child("projected");
            let at = at.child("sources");
            for (index, source) in volume.at("projected").items("sources").iter().enumerate() {
                if source.has("serviceAccountToken") {
                    errors.forbidden(
                        &at.index(index).child("serviceAccountToken"),
                        "must not be specified when serviceAccountName is not set",
                    );
                }
            }
        }
    }
    for list in ["containers", "initContainers"] {
        let at = path.child(list);
        for (index, container) in spec.items(list).iter().enumerate() {
            container::no_padding(errors, container, &at.index(index));
        }
    }
}

/// What only a new pod may not have.
pub(crate) fn validate_create(pod: &Value) -> Vec<FieldError> {
    let mut errors = Errors(validate(pod));
    let path = Path::new("spec");
    let spec = pod.at("spec");
    if !spec.items("ephemeralContainers").is_empty() {
        errors.forbidden(&path.child("ephemeralContainers"), "cannot be set on create");
    }
    if !spec.text("nodeName").is_empty() && !spec.items("schedulingGates").is_empty() {
        let detail = "cannot be set until all schedulingGates have been cleared";
        errors.forbidden(&path.child("nodeName"), detail);
    }
    errors.0
}

pub(crate) fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    let path = Path::new("spec");
    let (spec, old_spec) = (new.at("spec"), old.at("spec"));
    for list in ["containers", "initContainers"] {
        if spec.items(list).len() != old_spec.items(list).len() {
            errors.forbidden(&path.child(list), "pod updates may not add or remove containers");
            return errors.0;
        }
    }
    if !deadline(&mut errors, spec, old_spec, &path.child("activeDeadlineSeconds")) {
        return errors.0;
    }
    scheduling::only_added_tolerations(
        &mut errors,
        spec.items("tolerations"),
        old_spec.items("tolerations"),
        &path.child("tolerations"),
    );
    let gates = path.child("schedulingGates");
    for (index, gate) in spec.items("schedulingGates").iter().enumerate() {
        let name = gate.text("name");
        if !old_spec.items("schedulingGates").iter().any(|old| old.text("name") == name) {
            let detail = format!("only deletion is allowed, but found new scheduling gate '{name}'");
            errors.forbidden(&gates.index(index).child("name"), detail);
        }
    }
    if same(spec, old_spec) {
        return errors.0;
    }
    let munged = munge(&mut errors, spec, old_spec, &path);
    if !same(&munged, old_spec) {
        errors.forbidden(&path, format!("pod updates may not change fields other than {UPDATABLE}"));
    }
    errors.0
}

fn deadline(errors: &mut Errors, spec: &Value, old: &Value, path: &Path<'_>) -> bool {
    match (spec.int("activeDeadlineSeconds"), old.int("activeDeadlineSeconds")) {
        (Some(new), _) if !(0..=i64::from(i32::MAX)).contains(&new) => {
            errors.invalid(path, new, names::range(0, i32::MAX.into()));
            false
        }
        (Some(new), Some(old)) if old < new => {
            errors.invalid(path, new, "must be less than or equal to previous value");
            false
        }
        (None, Some(_)) => {
            errors.invalid(path, Value::Null, "must not update from a positive integer to nil value");
            true
        }
        _ => true,
    }
}

/// The new specification with everything put back that may change.
fn munge(errors: &mut Errors, spec: &Value, old: &Value, path: &Path<'_>) -> Value {
    let mut munged = spec.clone();
    for list in ["containers", "initContainers"] {
        let olds = old.items(list);
        for (container, old) in munged.items_mut(list).iter_mut().zip(olds) {
            keep(container, old, "image");
        }
    }
    for key in ["activeDeadlineSeconds", "schedulingGates", "tolerations"] {
        keep(&mut munged, old, key);
    }
    let key = "terminationGracePeriodSeconds";
    if old.int(key).is_some_and(|seconds| seconds < 0) && munged.int(key) == Some(1) {
        keep(&mut munged, old, key);
    }
    if !old.items("schedulingGates").is_empty() {
        gated(errors, &mut munged, old, path);
    }
    munged
}

/// While it is gated, a pod may be narrowed to fewer nodes.
fn gated(errors: &mut Errors, munged: &mut Value, old: &Value, path: &Path<'_>) {
    if !same(munged.at("nodeSelector"), old.at("nodeSelector")) {
        let kept = old
            .entries("nodeSelector")
            .iter()
            .all(|(key, value)| munged.at("nodeSelector").get(*key) == Some(value));
        if !kept {
            errors.invalid(
                &path.child("nodeSelector"),
                munged.at("nodeSelector").clone(),
                "only additions are allowed (no mutations or deletions)",
            );
        }
        keep(munged, old, "nodeSelector");
    }
    let required = "requiredDuringSchedulingIgnoredDuringExecution";
    let (new_node, old_node) =
        (munged.at("affinity").at("nodeAffinity").clone(), old.at("affinity").at("nodeAffinity").clone());
    if same(&new_node, &old_node) {
        return;
    }
    let (new_terms, old_terms) =
        (new_node.at(required).items("nodeSelectorTerms"), old_node.at(required).items("nodeSelectorTerms"));
    let at = path.child("affinity");
    let at = at.child("nodeAffinity");
    let at = at.child(required);
    if !old_terms.is_empty() {
        if new_terms.len() != old_terms.len() {
            errors.invalid(
                &at.child("nodeSelectorTerms"),
                new_terms.to_vec(),
                "no additions/deletions to non-empty NodeSelectorTerms list are allowed",
            );
        }
        let list = at.child("nodeSelectorTerms");
        for (index, (new, old)) in new_terms.iter().zip(old_terms).enumerate() {
            let only_added = |key: &str| {
                old.items(key)
                    .iter()
                    .enumerate()
                    .all(|(index, old)| new.items(key).get(index).is_some_and(|new| same(new, old)))
            };
            if !only_added("matchExpressions") || !only_added("matchFields") {
                errors.invalid(
                    &list.index(index),
                    new.clone(),
                    "only additions are allowed (no mutations or deletions)",
                );
            }
        }
    }
    match old.at("affinity") {
        Value::Null if munged.at("affinity").as_object().is_some_and(|map| map.len() == 1) => {
            munged.take_key("affinity");
        }
        affinity => {
            let affinity = affinity.clone();
            keep(munged.child("affinity"), &affinity, "nodeAffinity");
        }
    }
}

pub(crate) fn validate_status(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    let path = Path::new("status");
    let (status, old_status, spec) = (new.at("status"), old.at("status"), old.at("spec"));
    let list = path.child("conditions");
    for (index, condition) in status.items("conditions").iter().enumerate() {
        let at = list.index(index);
        if condition.num("observedGeneration") < 0 {
            let value = condition.num("observedGeneration");
            errors.invalid(&at.child("observedGeneration"), value, "must be a non-negative integer");
        }
        if !matches!(condition.text("type"), "PodScheduled" | "Ready" | "Initialized") {
            common::label_name(&mut errors, condition.text("type"), &at.child("Type"));
        }
    }
    let nominated = status.text("nominatedNodeName");
    if !nominated.is_empty() && nominated != old_status.text("nominatedNodeName") {
        let at = path.child("nominatedNodeName");
        common::subdomain(&mut errors, nominated, &at);
        if !spec.text("nodeName").is_empty() {
            errors.forbidden(&at, "may not be set on pods that are already bound to a node");
        }
    }
    if status.num("observedGeneration") < 0 {
        let value = status.num("observedGeneration");
        errors.invalid(&path.child("observedGeneration"), value, "must be a non-negative integer");
    }
    common::immutable(&mut errors, status.at("qosClass"), old_status.at("qosClass"), &path.child("qosClass"));
    for (list, containers) in
        [("containerStatuses", "containers"), ("initContainerStatuses", "initContainers")]
    {
        let at = path.child(list);
        transitions(&mut errors, status.items(list), old_status.items(list), spec, containers, &at);
    }
    for list in ["podIPs", "hostIPs"] {
        addresses(&mut errors, status, old_status, list, &path.child(list));
    }
    errors.0
}

fn transitions(errors: &mut Errors, new: &[Value], old: &[Value], spec: &Value, list: &str, path: &Path<'_>) {
    for (index, before) in old.iter().enumerate() {
        let terminated = before.at("state").at("terminated");
        if terminated.is_null() {
            continue;
        }
        let Some(after) = new.iter().find(|status| status.text("name") == before.text("name")) else {
            continue;
        };
        if after.at("state").has("terminated") {
            continue;
        }
        let own = spec.items(list).iter().find(|c| c.text("name") == before.text("name"));
        if !own.is_some_and(|own| may_restart(own, spec, terminated.num("exitCode"))) {
            errors.forbidden(
                &path.index(index).child("state"),
                "may not be transitioned to non-terminated state",
            );
        }
    }
}

/// Whether a container that ended with a code is started again.
fn may_restart(container: &Value, spec: &Value, code: i64) -> bool {
    for rule in container.items("restartPolicyRules") {
        let codes = rule.at("exitCodes");
        let listed = codes.items("values").iter().any(|value| value.as_i64() == Some(code));
        if listed == (codes.text("operator") == "In") {
            return true;
        }
    }
    let own = container.text("restartPolicy");
    match if own.is_empty() { spec.text("restartPolicy") } else { own } {
        "Always" => true,
        "OnFailure" => code != 0,
        _ => false,
    }
}

fn addresses(errors: &mut Errors, status: &Value, old: &Value, list: &str, path: &Path<'_>) {
    let mut families = Vec::new();
    for (index, address) in status.items(list).iter().enumerate() {
        let text = address.text("ip");
        let known = old.items(list).iter().any(|old| old.text("ip") == text);
        let ip = if known { common::parse_ip(text) } else { common::ip(errors, text, &path.index(index)) };
        families.extend(ip.map(|ip| ip.is_ipv4()));
    }
    if status.items(list).len() > 1 && (families.len() != 2 || families[0] == families[1]) {
        let detail = "may specify no more than one IP for each IP family";
        errors.invalid(path, status.at(list).clone(), detail);
    }
}

/// An update through `ephemeralcontainers`: containers may be added, never changed or removed.
pub fn validate_ephemeral_containers(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors(validate(new));
    let path = Path::new("spec");
    let path = path.child("ephemeralContainers");
    for before in old.at("spec").items("ephemeralContainers") {
        let name = before.text("name");
        let after = new.at("spec").items("ephemeralContainers").iter().find(|c| c.text("name") == name);
        match after {
            None => {
                errors
                    .forbidden(&path, format!("existing ephemeral containers {name:?} may not be removed\n"));
            }
            Some(after) if !same(before, after) => {
                errors
                    .forbidden(&path, format!("existing ephemeral containers {name:?} may not be changed\n"));
            }
            Some(_) => {}
        }
    }
    errors.0
}

/// An update through `resize`: only CPU and memory may change.
pub fn validate_resize(new: &Value, old: &Value) -> Vec<FieldError> {
    const ONLY: &str = "only cpu and memory resources are mutable";
    let mut errors = Errors(validate(new));
    let none = Path::new("<nil>");
    if old.dig(&["metadata", "annotations"]).has("kubernetes.io/config.mirror") {
        errors.0.clear();
        errors.forbidden(&none, "static pods cannot be resized");
        return errors.0;
    }
    if old.dig(&["spec", "os"]).text("name") == "windows" {
        errors.0.clear();
        errors.forbidden(&none, "windows pods cannot be resized");
        return errors.0;
    }
    let path = Path::new("spec");
    let old_class = match old.at("status").text("qosClass") {
        "" => qos_class(old),
        class => class,
    };
    if old_class != qos_class(new) {
        errors.invalid(
            &path,
            new.at("status").text("qosClass"),
            "Pod QOS Class may not change as a result of resizing",
        );
    }
    let running = old.at("status").items("containerStatuses").iter().find(|c| c.at("state").has("running"));
    if running.is_some_and(|container| !container.has("resources")) {
        errors.forbidden(&path, "Pod running on node without support for resize");
    }
    if !same_order(&mut errors, new.at("spec"), old.at("spec"), &path) {
        return errors.0;
    }
    let mut munged = new.at("spec").clone();
    for list in ["initContainers", "containers"] {
        let at = path.child(list);
        let olds = old.at("spec").items(list);
        for (index, (container, before)) in munged.items_mut(list).iter_mut().zip(olds).enumerate() {
            let at = at.index(index);
            removed(&mut errors, container, before, &at.child("resources"));
            put_back(container, before);
            if !same(container, before) {
                match list {
                    "containers" => errors.forbidden(&path, ONLY),
                    _ => errors.forbidden(
                        &at,
                        "only cpu and memory resources for init or sidecar containers are mutable",
                    ),
                }
            }
        }
    }
    let pod_level = |pod: &Value| pod.at("spec").at("resources").clone();
    if !same(&pod_level(new), &pod_level(old)) {
        put_back(&mut munged, old.at("spec"));
    }
    if errors.is_empty() && !same(&munged, old.at("spec")) {
        errors.forbidden(&path, ONLY);
    }
    errors.0
}

fn same_order(errors: &mut Errors, new: &Value, old: &Value, path: &Path<'_>) -> bool {
    let before = errors.0.len();
    for list in ["containers", "initContainers"] {
        let at = path.child(list);
        if new.items(list).len() != old.items(list).len() {
            errors.forbidden(&at, format!("{list} may not be added or removed on resize"));
            continue;
        }
        for (index, (new, old)) in new.items(list).iter().zip(old.items(list)).enumerate() {
            if new.text("name") != old.text("name") {
                let detail = format!("{list} may not be renamed or reordered on resize");
                errors.forbidden(&at.index(index).child("name"), detail);
            }
        }
    }
    errors.0.len() == before
}

fn removed(errors: &mut Errors, new: &Value, old: &Value, path: &Path<'_>) {
    for list in ["requests", "limits"] {
        let gone =
            old.at("resources").entries(list).iter().any(|(name, _)| !new.at("resources").at(list).has(name));
        if gone {
            errors.forbidden(&path.child(list), format!("resource {list} cannot be removed"));
        }
    }
}

/// Puts back CPU, memory and the resize policy.
fn put_back(container: &mut Value, old: &Value) {
    keep(container, old, "resizePolicy");
    let before = old.at("resources");
    if !container.has("resources") && before.is_null() {
        return;
    }
    let resources = container.child("resources");
    for list in ["requests", "limits"] {
        if !resources.has(list) && !before.has(list) {
            continue;
        }
        let amounts = resources.child(list);
        for name in ["cpu", "memory"] {
            keep(amounts, before.at(list), name);
        }
        if amounts.is_empty_value() && !before.has(list) {
            resources.take_key(list);
        }
    }
    if resources.is_empty_value() && !old.has("resources") {
        container.take_key("resources");
    }
}

/// Every write, and what a create may not bring; a stored pod has a resourceVersion.
pub(crate) fn validate_write(pod: &Value) -> Vec<FieldError> {
    match pod.at("metadata").text("resourceVersion") {
        "" => validate_create(pod),
        _ => validate(pod),
    }
}
