//! The kinds of resource.k8s.io.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use serde_json::Value;

use super::common::{self, immutable, label, required_subdomain};
use super::{scheduling, storage};
use crate::FieldError;
use crate::field::{Errors, Path};
use crate::kinds::json::Read;

pub(crate) fn claim(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    let path = Path::new("spec");
    claim_spec(&mut errors, object.at("spec"), &path);
    errors.0
}

pub(crate) fn claim_template(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    let (spec, path) = (object.at("spec"), Path::new("spec"));
    let meta = path.child("metadata");
    common::labels(&mut errors, spec.at("metadata").at("labels"), &meta.child("labels"));
    common::annotations(&mut errors, spec.at("metadata").at("annotations"), &meta.child("annotations"));
    claim_spec(&mut errors, spec.at("spec"), &path.child("spec"));
    errors.0
}

/// The specification stays.
pub(crate) fn same_spec(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    immutable(&mut errors, new.at("spec"), old.at("spec"), &Path::new("spec"));
    errors.0
}

fn claim_spec(errors: &mut Errors, spec: &Value, path: &Path<'_>) {
    let devices = spec.at("devices");
    let path = path.child("devices");
    let requests = devices.items("requests");
    let list = path.child("requests");
    if requests.len() > 32 {
        errors.too_many(&list, requests.len(), 32);
        return;
    }
    let mut names = BTreeSet::new();
    for (index, request) in requests.iter().enumerate() {
        let at = list.index(index);
        device_request(errors, request, &at);
        if !names.insert(request.text("name")) {
            errors.duplicate(&at, request.text("name"));
        }
    }
    let constraints = path.child("constraints");
    if devices.items("constraints").len() > 32 {
        errors.too_many(&constraints, devices.items("constraints").len(), 32);
    }
    for (index, constraint) in devices.items("constraints").iter().enumerate() {
        let at = constraints.index(index);
        request_names(errors, constraint, requests, &at.child("requests"));
        if !constraint.has("matchAttribute") && !constraint.has("distinctAttribute") {
            errors.required(&at.child("matchAttribute"), "");
        }
    }
    let configs = path.child("config");
    for (index, config) in devices.items("config").iter().enumerate() {
        let at = configs.index(index);
        request_names(errors, config, requests, &at.child("requests"));
        opaque(errors, config, &at.child("opaque"));
    }
}

fn device_request(errors: &mut Errors, request: &Value, path: &Path<'_>) {
    label(errors, request.text("name"), &path.child("name"));
    let (exactly, available) = (request.at("exactly"), request.items("firstAvailable"));
    match (exactly.is_null(), available.is_empty()) {
        (true, true) => errors.required(path, "exactly one of `exactly` or `firstAvailable` is required"),
        (false, false) => errors.invalid(
            path,
            Value::Null,
            "exactly one of `exactly` or `firstAvailable` is required, but multiple fields are set",
        ),
        (false, true) => exact_request(errors, exactly, &path.child("exactly")),
        (true, false) => {
            let list = path.child("firstAvailable");
            if available.len() > 8 {
                errors.too_many(&list, available.len(), 8);
                return;
            }
            let mut names = BTreeSet::new();
            for (index, request) in available.iter().enumerate() {
                let at = list.index(index);
                label(errors, request.text("name"), &at.child("name"));
                exact_request(errors, request, &at);
                if !names.insert(request.text("name")) {
                    errors.duplicate(&at, request.text("name"));
                }
            }
        }
    }
}

fn exact_request(errors: &mut Errors, request: &Value, path: &Path<'_>) {
    required_subdomain(errors, request.text("deviceClassName"), &path.child("deviceClassName"));
    selectors(errors, request, &path.child("selectors"));
    let count = request.num("count");
    match request.text("allocationMode") {
        "All" if count != 0 => {
            let detail = "must not be specified when allocationMode is 'All'";
            errors.invalid(&path.child("count"), count, detail);
        }
        "All" => {}
        "ExactCount" => common::positive_count(errors, count, &path.child("count")),
        other => errors.not_supported(&path.child("allocationMode"), other, &["All", "ExactCount"]),
    }
    let list = path.child("tolerations");
    for (index, toleration) in request.items("tolerations").iter().enumerate() {
        let at = list.index(index);
        if !toleration.text("key").is_empty() {
            common::label_name(errors, toleration.text("key"), &at.child("key"));
        }
        match toleration.text("operator") {
            "Exists" if !toleration.text("value").is_empty() => {
                let detail = "must be empty for operator `Exists`";
                errors.invalid(&at.child("value"), toleration.text("value"), detail);
            }
            "Exists" | "Equal" => {}
            other => errors.not_supported(&at.child("operator"), other, &["Equal", "Exists"]),
        }
    }
}

fn selectors(errors: &mut Errors, holder: &Value, path: &Path<'_>) {
    let selectors = holder.items("selectors");
    if selectors.len() > 32 {
        errors.too_many(path, selectors.len(), 32);
    }
    for (index, selector) in selectors.iter().enumerate() {
        let at = path.index(index);
        if !selector.has("cel") {
            errors.required(&at.child("cel"), "");
            continue;
        }
        expression(errors, selector.at("cel").text("expression"), &at.child("cel").child("expression"));
    }
}

/// The longest expression of a selector, in bytes, and the most that it may cost.
const MAX_EXPRESSION: usize = 10 * 1024;
const MAX_COST: u64 = 1_000_000;

/// What selectors of devices are compiled in: the variable `device`, and `cel.bind`.
static SELECTORS: LazyLock<cel::Env> = LazyLock::new(|| {
    use cel::{Decl, Type};
    let by_domain = |values: Decl| Decl::map(values.at_most(32)).at_most(32);
    let quantity = Decl::plain(Type::object("kubernetes.Quantity"));
    let device = Decl::object(
        "kubernetes.DRADevice",
        [
            ("driver", Decl::plain(Type::String).at_most(63)),
            ("allowMultipleAllocations", Decl::plain(Type::Bool).at_most(1)),
            ("attributes", by_domain(Decl::map(Decl::dynamic().at_most(64)).selecting_values())),
            ("capacity", by_domain(Decl::map(quantity))),
        ],
    );
    cel::Env::new().with_bind().with_data("device", device.into())
});

fn expression(errors: &mut Errors, text: &str, path: &Path<'_>) {
    if text.len() > MAX_EXPRESSION {
        errors.too_long(path, MAX_EXPRESSION);
        return;
    }
    match SELECTORS.compile(text) {
        Err(why) => errors.invalid(path, text, why.detail()),
        Ok(program) if !matches!(program.result_type(), cel::Type::Bool | cel::Type::Dyn) => {
            let detail = format!("must evaluate to bool or the unknown type, not {}", program.result_type());
            errors.invalid(path, text, detail);
        }
        Ok(program) if program.max_cost() > MAX_COST => {
            errors.forbidden(path, "too complex, exceeds cost limit");
        }
        Ok(_) => {}
    }
}

fn request_names(errors: &mut Errors, holder: &Value, requests: &[Value], path: &Path<'_>) {
    let mut seen = BTreeSet::new();
    for (index, name) in holder.items("requests").iter().filter_map(Value::as_str).enumerate() {
        let (main, sub) = name.split_once('/').unwrap_or((name, ""));
        let request = requests.iter().find(|request| request.text("name") == main);
        let known = request.is_some_and(|request| {
            sub.is_empty() || request.items("firstAvailable").iter().any(|r| r.text("name") == sub)
        });
        if !known {
            errors.invalid(&path.index(index), name, "must be the name of a request in the claim");
        }
        if !seen.insert(name) {
            errors.duplicate(&path.index(index), name);
        }
    }
}

fn opaque(errors: &mut Errors, config: &Value, path: &Path<'_>) {
    match config.at("opaque") {
        Value::Null => errors.required(path, ""),
        opaque => {
            storage::driver_name(errors, opaque.text("driver"), &path.child("driver"));
            match opaque.at("parameters") {
                Value::Null => errors.required(&path.child("parameters"), ""),
                Value::Object(_) => {}
                other => {
                    errors.invalid(&path.child("parameters"), other.clone(), "must be a valid JSON object")
                }
            }
        }
    }
}

pub(crate) fn class(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    let (spec, path) = (object.at("spec"), Path::new("spec"));
    selectors(&mut errors, spec, &path.child("selectors"));
    let list = path.child("config");
    for (index, config) in spec.items("config").iter().enumerate() {
        let at = list.index(index);
        opaque(&mut errors, config, &at.child("opaque"));
    }
    errors.0
}

pub(crate) fn slice(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    let (spec, path) = (object.at("spec"), Path::new("spec"));
    storage::driver_name(&mut errors, spec.text("driver"), &path.child("driver"));
    let (pool, at) = (spec.at("pool"), path.child("pool"));
    pool_name(&mut errors, pool.text("name"), &at.child("name"));
    common::positive_count(&mut errors, pool.num("resourceSliceCount"), &at.child("resourceSliceCount"));
    if pool.num("generation") < 0 {
        let detail = "must be greater than or equal to zero";
        errors.invalid(&at.child("generation"), pool.num("generation"), detail);
    }
    node_choice(&mut errors, spec, &path);
    if spec.has("sharedCounters") && spec.has("devices") {
        errors.invalid(&path, "", "only one of `sharedCounters` or `devices` is allowed");
    }
    let devices = spec.items("devices");
    let list = path.child("devices");
    let advanced =
        devices.iter().any(|d| !d.items("taints").is_empty() || !d.items("consumesCounters").is_empty());
    let most = if advanced { 64 } else { 128 };
    if devices.len() > most {
        errors.too_many(&list, devices.len(), most);
        return errors.0;
    }
    let mut names = BTreeSet::new();
    for (index, device) in devices.iter().enumerate() {
        let at = list.index(index);
        let name = device.text("name");
        label(&mut errors, name, &at.child("name"));
        let attributes = at.child("attributes");
        for (key, attribute) in device.entries("attributes") {
            let at = attributes.key(key);
            for kind in ["string", "version"] {
                if attribute.text(kind).len() > 64 {
                    errors.too_long(&at.child(kind), 64);
                }
            }
        }
        let taints = at.child("taints");
        for (index, taint) in device.items("taints").iter().enumerate() {
            let at = taints.index(index);
            common::label_name(&mut errors, taint.text("key"), &at.child("key"));
            let known = ["NoExecute", "NoSchedule", "None"];
            common::one_of(&mut errors, taint.text("effect"), &at.child("effect"), &known);
        }
        if !names.insert(name) {
            errors.duplicate(&at, name);
        }
    }
    errors.0
}

fn pool_name(errors: &mut Errors, name: &str, path: &Path<'_>) {
    if name.is_empty() {
        errors.required(path, "");
        return;
    }
    if name.len() > 253 {
        errors.too_long(path, 253);
    }
    for part in name.split('/') {
        common::subdomain(errors, part, path);
    }
}

fn node_choice(errors: &mut Errors, spec: &Value, path: &Path<'_>) {
    const ONE: &str =
        "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required";
    let mut set = Vec::new();
    if let Some(name) = spec.at("nodeName").as_str() {
        if name.is_empty() {
            let detail = "must be either unset or set to a non-empty string";
            errors.invalid(&path.child("nodeName"), name, detail);
        } else {
            set.push("`nodeName`");
            common::subdomain(errors, name, &path.child("nodeName"));
        }
    }
    if spec.has("nodeSelector") {
        set.push("`nodeSelector`");
        let at = path.child("nodeSelector");
        scheduling::node_selector(errors, spec.at("nodeSelector"), &at);
    }
    for (key, told) in [("allNodes", "`allNodes`"), ("perDeviceNodeSelection", "`perDeviceNodeSelection`")] {
        match spec.at(key).as_bool() {
            Some(true) => set.push(told),
            Some(false) => {
                errors.invalid(&path.child(key), false, "must be either unset or set to true");
            }
            None => {}
        }
    }
    match set.len() {
        0 => errors.required(path, ONE),
        1 => {}
        _ => {
            let detail = format!("{ONE}, but multiple fields are set");
            errors.invalid(path, format!("{{{}}}", set.join(", ")), detail);
        }
    }
}

pub(crate) fn slice_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    let path = Path::new("spec");
    let (spec, before) = (new.at("spec"), old.at("spec"));
    let pool = path.child("pool");
    immutable(&mut errors, spec.at("pool").at("name"), before.at("pool").at("name"), &pool.child("name"));
    for key in ["driver", "nodeName"] {
        immutable(&mut errors, spec.at(key), before.at(key), &path.child(key));
    }
    errors.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_are_compiled() {
        let check = |text: &str, wanted: &str| {
            let mut errors = Errors::new();
            expression(&mut errors, text, &Path::new("e"));
            let found =
                errors.0.first().map(|one| format!("{:?} {}", one.kind, one.detail)).unwrap_or_default();
            assert!(found.starts_with(wanted) && found.is_empty() == wanted.is_empty(), "{text}: {found}");
        };
        check("device.driver == 'a.example.com'", "");
        check(
            "device.attributes['a.example.com'].model == 'x' && device.capacity['a.example.com'].memory.compareTo(quantity('1Gi')) >= 0",
            "",
        );
        check("cel.bind(dra, device.attributes['a.example.com'], dra.one && dra.other)", "");
        check("device.attributes['a.example.com'].ok", "");
        check("device.attributes['a.example.com'].x == device.attributes['b.example.com'].y", "");
        check("'model' in device.attributes['a.example.com']", "");
        check("device.driver", "Invalid must evaluate to bool or the unknown type, not string");
        check("device.foo", "Invalid compilation failed: ERROR: <input>:1:7: undefined field 'foo'");
        check("", "Invalid compilation failed: ERROR: <input>:1:1: Syntax error: mismatched input '<EOF>'");
        check(&format!("'{}' == ''", "x".repeat(MAX_EXPRESSION)), "TooLong");
        let all = "device.attributes['a'].map(a, device.attributes['a'].map(b, device.attributes['a'].map(c, a + b + c)))";
        check(&format!("{all}.size() == {all}.map(x, {all}).size()"), "Forbidden too complex");
    }
}
