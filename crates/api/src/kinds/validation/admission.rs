//! The kinds of admissionregistration.k8s.io, with the soundness of their expressions.

use serde_json::Value;

use super::common::{self, label_selector};
use super::core::service_reference;
use crate::FieldError;
use crate::expressions::{Compiler, Returns, Uses};
use crate::field::{Errors, Path};
use crate::kinds::json::Read;
use crate::names;

pub(crate) fn validating_webhooks(object: &Value) -> Vec<FieldError> {
    webhooks(object, false)
}

pub(crate) fn mutating_webhooks(object: &Value) -> Vec<FieldError> {
    webhooks(object, true)
}

fn webhooks(object: &Value, mutating: bool) -> Vec<FieldError> {
    let mut errors = Errors::new();
    let list = Path::new("webhooks");
    let all = object.items("webhooks");
    for (index, hook) in all.iter().enumerate() {
        let at = list.index(index);
        webhook(&mut errors, hook, &at);
        let reinvocation = hook.text("reinvocationPolicy");
        if mutating && hook.has("reinvocationPolicy") && !matches!(reinvocation, "Never" | "IfNeeded") {
            let known = ["IfNeeded", "Never"];
            errors.not_supported(&at.child("reinvocationPolicy"), reinvocation, &known);
        }
        let name = hook.text("name");
        if all[..index].iter().any(|other| other.text("name") == name) {
            errors.duplicate(&at.child("name"), name);
        }
    }
    errors.0
}

fn webhook(errors: &mut Errors, hook: &Value, at: &Path<'_>) {
    let (name, path) = (hook.text("name"), at.child("name"));
    if name.is_empty() {
        errors.required(&path, "");
    } else {
        let wrong = names::dns1123_subdomain(name);
        if !wrong.is_empty() {
            errors.invalid(&path, name, wrong.join(","));
        } else if name.split('.').count() < 3 {
            errors.invalid(&path, name, "should be a domain with at least three segments separated by dots");
        }
    }
    let versions = hook.items("admissionReviewVersions");
    let path = at.child("admissionReviewVersions");
    if versions.is_empty() {
        errors.required(&path, "must specify one of v1, v1beta1");
    } else {
        for (index, version) in versions.iter().filter_map(Value::as_str).enumerate() {
            errors.all_invalid(&path.index(index), version, names::dns1035_label(version));
        }
        if !versions.iter().any(|version| version == "v1" || version == "v1beta1") {
            let detail = "must include at least one of v1, v1beta1";
            errors.invalid(&path, versions.to_vec(), detail);
        }
    }
    rules(errors, hook.items("rules"), &at.child("rules"));
    choice(errors, hook, at, "failurePolicy", &["Fail", "Ignore"]);
    choice(errors, hook, at, "matchPolicy", &["Equivalent", "Exact"]);
    match hook.text("sideEffects") {
        "" => errors.required(&at.child("sideEffects"), "must specify one of None, NoneOnDryRun"),
        "None" | "NoneOnDryRun" => {}
        other => errors.not_supported(&at.child("sideEffects"), other, &["None", "NoneOnDryRun"]),
    }
    if let Some(seconds) = hook.int("timeoutSeconds").filter(|seconds| !(1..=30).contains(seconds)) {
        let detail = "the timeout value must be between 1 and 30 seconds";
        errors.invalid(&at.child("timeoutSeconds"), seconds, detail);
    }
    for key in ["namespaceSelector", "objectSelector"] {
        label_selector(errors, hook.at(key), &at.child(key));
    }
    let config = hook.at("clientConfig");
    let path = at.child("clientConfig");
    match (config.has("url"), config.has("service")) {
        (true, true) | (false, false) => {
            errors.required(&path, "exactly one of url or service is required");
        }
        (true, false) => url(errors, config.text("url"), &path.child("url")),
        (false, true) => service_reference(errors, config.at("service"), &path.child("service")),
    }
    match_conditions(errors, hook.items("matchConditions"), &at.child("matchConditions"), false);
}

fn choice(errors: &mut Errors, holder: &Value, path: &Path<'_>, key: &str, known: &[&str]) {
    if holder.has(key) && !known.contains(&holder.text(key)) {
        errors.not_supported(&path.child(key), holder.text(key), known);
    }
}

pub(crate) fn url(errors: &mut Errors, text: &str, path: &Path<'_>) {
    const FORM: &str = "; desired format: https://host[/path]";
    let Some((scheme, rest)) = text.split_once("://") else {
        errors.invalid(path, text, format!("'https' is the only allowed URL scheme{FORM}"));
        return;
    };
    if scheme != "https" {
        errors.invalid(path, text, format!("'https' is the only allowed URL scheme{FORM}"));
    }
    let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if host.is_empty() {
        errors.invalid(path, text, format!("host must be specified{FORM}"));
    }
    if host.contains('@') {
        errors.invalid(path, text, "user information is not permitted in the URL");
    }
    if rest.contains('#') {
        errors.invalid(path, text, "fragments are not permitted in the URL");
    }
    if rest.contains('?') {
        errors.invalid(path, text, "query parameters are not permitted in the URL");
    }
}

pub(crate) fn rules(errors: &mut Errors, rules: &[Value], path: &Path<'_>) {
    const OPERATIONS: [&str; 5] = ["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];
    for (index, rule) in rules.iter().enumerate() {
        let at = path.index(index);
        let strings = |key: &str| -> Vec<String> {
            rule.items(key).iter().filter_map(Value::as_str).map(str::to_owned).collect()
        };
        let operations = strings("operations");
        let list = at.child("operations");
        if operations.is_empty() {
            errors.required(&list, "");
        }
        if operations.len() > 1 && operations.iter().any(|operation| operation == "*") {
            let detail = "if '*' is present, must not specify other operations";
            errors.invalid(&list, operations.clone(), detail);
        }
        for (index, operation) in operations.iter().enumerate() {
            if !OPERATIONS.contains(&operation.as_str()) {
                errors.not_supported(&list.index(index), operation.as_str(), &OPERATIONS);
            }
        }
        for key in ["apiGroups", "apiVersions", "resources"] {
            let values = strings(key);
            let list = at.child(key);
            if values.is_empty() {
                errors.required(&list, "");
            }
            if values.len() > 1 && key != "resources" && values.iter().any(|value| value == "*") {
                let what = if key == "apiGroups" { "API groups" } else { "API versions" };
                let detail = format!("if '*' is present, must not specify other {what}");
                errors.invalid(&list, values.clone(), detail);
            }
            for (index, value) in values.iter().enumerate().filter(|(_, value)| value.is_empty()) {
                if key != "apiGroups" {
                    errors.required(&list.index(index), value.clone());
                }
            }
        }
        resources(errors, &strings("resources"), &at.child("resources"));
        let scope = rule.text("scope");
        if rule.has("scope") && !matches!(scope, "*" | "Cluster" | "Namespaced") {
            errors.not_supported(&at.child("scope"), scope, &["*", "Cluster", "Namespaced"]);
        }
    }
}

fn resources(errors: &mut Errors, resources: &[String], path: &Path<'_>) {
    let whole = resources.iter().any(|resource| resource == "*/*");
    if whole && resources.len() > 1 {
        errors.invalid(path, resources.to_vec(), "if '*/*' is present, must not specify other resources");
        return;
    }
    for (index, resource) in resources.iter().enumerate() {
        let at = path.index(index);
        let (main, sub) = resource.split_once('/').unwrap_or((resource, ""));
        let has = |text: &str| resources.iter().any(|other| other == text);
        if !sub.is_empty() && main != "*" && sub != "*" && has(&format!("{main}/*")) {
            let detail = format!("if '{main}/*' is present, must not specify {resource}");
            errors.invalid(&at, resource.as_str(), detail);
        }
        if sub.is_empty() && main != "*" && has("*") {
            let detail = "if '*' is present, must not specify other resources without subresources";
            errors.invalid(path, resources.to_vec(), detail);
            return;
        }
    }
}

fn match_conditions(errors: &mut Errors, conditions: &[Value], path: &Path<'_>, params: bool) {
    if conditions.len() > 64 {
        errors.too_many(path, conditions.len(), 64);
    }
    let uses = Uses { params, authorizer: true, patch: false };
    for (index, condition) in conditions.iter().enumerate() {
        let at = path.index(index);
        let expression = condition.text("expression").trim();
        match expression {
            "" => errors.required(&at.child("expression"), ""),
            _ => compiles(
                errors,
                &Compiler::plain(),
                expression,
                (uses, Returns::Bool),
                &at.child("expression"),
            ),
        }
        let name = condition.text("name");
        match name {
            "" => errors.required(&at.child("name"), ""),
            name => errors.all_invalid(&at.child("name"), name, names::qualified_name(name)),
        }
        if !name.is_empty() && conditions[..index].iter().any(|other| other.text("name") == name) {
            errors.duplicate(&at.child("name"), name);
        }
    }
}

/// An expression that does not compile is told in the compiler's words.
fn compiles(
    errors: &mut Errors,
    compiler: &Compiler,
    expression: &str,
    (uses, returns): (Uses, Returns),
    path: &Path<'_>,
) {
    if let Err(why) = compiler.compile(expression, uses, returns) {
        errors.invalid(path, expression, why);
    }
}

/// What both kinds of policies have. The compiler knows their variables then.
fn policy(errors: &mut Errors, spec: &Value, path: &Path<'_>, mutating: bool) -> (Compiler, Uses) {
    match spec.text("failurePolicy") {
        "" => errors.required(&path.child("failurePolicy"), ""),
        "Fail" | "Ignore" => {}
        other => errors.not_supported(&path.child("failurePolicy"), other, &["Fail", "Ignore"]),
    }
    let kind = spec.at("paramKind");
    if kind.is_object() {
        param_kind(errors, kind, &path.child("paramKind"));
    }
    let at = path.child("matchConstraints");
    match spec.at("matchConstraints") {
        Value::Null => errors.required(&at, ""),
        constraints => {
            match_resources(errors, constraints, &at);
            if constraints.items("resourceRules").is_empty() {
                errors.required(&at.child("resourceRules"), "");
            }
            if mutating {
                mutable(errors, constraints, &at);
            }
        }
    }
    let params = kind.is_object();
    match_conditions(errors, spec.items("matchConditions"), &path.child("matchConditions"), params);
    let uses = Uses { params, authorizer: true, patch: false };
    let variables = spec.items("variables");
    let known = mutating || !variables.is_empty();
    let mut compiler = if known { Compiler::with_variables() } else { Compiler::plain() };
    let list = path.child("variables");
    for (index, variable) in variables.iter().enumerate() {
        let at = list.index(index);
        let name = variable.text("name");
        if name.trim().is_empty() {
            errors.required(&at.child("name"), "name is not specified");
        } else if !is_identifier(name) {
            errors.invalid(&at.child("name"), name, "must be a valid CEL identifier");
        }
        let expression = variable.text("expression");
        if expression.trim().is_empty() {
            errors.required(&at.child("expression"), "expression is not specified");
        } else if let Err(why) = compiler.variable(name, expression, uses) {
            errors.invalid(&at.child("expression"), expression, why);
        }
    }
    (compiler, uses)
}

/// Whether CEL takes a name for a variable.
fn is_identifier(name: &str) -> bool {
    names::c_identifier(name).is_empty() && !cel::is_reserved(name)
}

fn param_kind(errors: &mut Errors, kind: &Value, path: &Path<'_>) {
    let (at, api_version) = (path.child("apiVersion"), kind.text("apiVersion"));
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    if api_version.is_empty() {
        errors.required(&at, "");
    } else if version.contains('/') {
        errors.invalid(&at, api_version, format!("unexpected GroupVersion string: {api_version}"));
    } else {
        if !group.is_empty() {
            let wrong = names::dns1123_subdomain(group);
            if !wrong.is_empty() {
                errors.invalid(&at, group, wrong.join(","));
            }
        }
        if version.is_empty() {
            errors.invalid(&at, api_version, "version must be specified");
        } else {
            let wrong = names::dns1035_label(version);
            if !wrong.is_empty() {
                errors.invalid(&at, version, wrong.join(","));
            }
        }
    }
    let (at, kind) = (path.child("kind"), kind.text("kind"));
    if kind.is_empty() {
        errors.required(&at, "");
    } else {
        let wrong = names::dns1035_label(&kind.to_lowercase());
        if !wrong.is_empty() {
            errors.invalid(
                &at,
                kind,
                format!("may have mixed case, but should otherwise match: {}", wrong.join(",")),
            );
        }
    }
}

/// Only what is written can be changed.
fn mutable(errors: &mut Errors, matches: &Value, path: &Path<'_>) {
    let at = path.child("resourceRules");
    let at = at.child("operations");
    for rule in matches.items("resourceRules") {
        for operation in rule.items("operations").iter().filter_map(Value::as_str) {
            if !matches!(operation, "*" | "CREATE" | "UPDATE" | "CONNECT") {
                errors.not_supported(&at, operation, &["*", "CONNECT", "CREATE", "UPDATE"]);
            }
        }
    }
}

fn match_resources(errors: &mut Errors, holder: &Value, path: &Path<'_>) {
    choice(errors, holder, path, "matchPolicy", &["Equivalent", "Exact"]);
    for key in ["namespaceSelector", "objectSelector"] {
        label_selector(errors, holder.at(key), &path.child(key));
    }
    for key in ["resourceRules", "excludeResourceRules"] {
        rules(errors, holder.items(key), &path.child(key));
    }
}

pub(crate) fn validating_policy(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    let (spec, path) = (object.at("spec"), Path::new("spec"));
    let (compiler, uses) = policy(&mut errors, spec, &path, false);
    let (validations, annotations) = (spec.items("validations"), spec.items("auditAnnotations"));
    if validations.is_empty() && annotations.is_empty() {
        const DETAIL: &str = "validations or auditAnnotations must contain at least one item";
        errors.required(&path.child("validations"), DETAIL);
        errors.required(&path.child("auditAnnotations"), DETAIL);
    }
    let list = path.child("validations");
    for (index, one) in validations.iter().enumerate() {
        validation(&mut errors, &compiler, uses, one, &list.index(index));
    }
    let list = path.child("auditAnnotations");
    if annotations.len() > 20 {
        errors.invalid(&list, annotations.to_vec(), "must not have more than 20 auditAnnotations");
    }
    let name = object.at("metadata").text("name");
    for (index, annotation) in annotations.iter().enumerate() {
        let at = list.index(index);
        let key = annotation.text("key");
        match name {
            "" => errors.invalid(&at.child("key"), key, "requires metadata.name be non-empty"),
            name => {
                let whole = format!("{name}/{key}");
                errors.all_invalid(&at.child("key"), &whole, names::qualified_name(&whole));
            }
        }
        let (path, expression) = (at.child("valueExpression"), annotation.text("valueExpression"));
        match expression.trim() {
            "" => errors.required(&path, "valueExpression is not specified"),
            long if long.len() > 5 << 10 => errors.required(&path, "must not exceed 5120 bytes in length"),
            trimmed => {
                if let Err(why) = compiler.compile(trimmed, uses, Returns::StringOrNull) {
                    errors.invalid(&path, expression, why);
                }
            }
        }
        if annotations[..index].iter().any(|other| other.text("key") == key) {
            errors.duplicate(&at.child("key"), key);
        }
    }
    errors.0
}

fn validation(errors: &mut Errors, compiler: &Compiler, uses: Uses, one: &Value, at: &Path<'_>) {
    let expression = one.text("expression");
    match expression.trim() {
        "" => errors.required(&at.child("expression"), "expression is not specified"),
        _ => compiles(errors, compiler, expression, (uses, Returns::Bool), &at.child("expression")),
    }
    let (path, expression) = (at.child("messageExpression"), one.text("messageExpression"));
    if !expression.is_empty() && expression.trim().is_empty() {
        errors.invalid(&path, expression, "must be non-empty if specified");
    } else if !expression.is_empty() {
        let uses = Uses { authorizer: false, ..uses };
        compiles(errors, compiler, expression, (uses, Returns::String), &path);
    }
    let (path, message) = (at.child("message"), one.text("message"));
    if !message.is_empty() && message.trim().is_empty() {
        errors.invalid(&path, message, "must be non-empty if specified");
    } else if message.trim().contains(['\n', '\r']) {
        errors.invalid(&path, message, "must not contain line breaks");
    }
    choice(errors, one, at, "reason", &["Forbidden", "Invalid", "RequestEntityTooLarge"]);
}

pub(crate) fn mutating_policy(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    let (spec, path) = (object.at("spec"), Path::new("spec"));
    let (compiler, uses) = policy(&mut errors, spec, &path, true);
    let uses = Uses { patch: true, ..uses };
    let list = path.child("mutations");
    if spec.items("mutations").is_empty() {
        errors.required(&list, "mutations must contain at least one item");
    }
    const WAYS: [(&str, &str, Returns); 2] = [
        ("ApplyConfiguration", "applyConfiguration", Returns::Object),
        ("JSONPatch", "jsonPatch", Returns::Patches),
    ];
    for (index, mutation) in spec.items("mutations").iter().enumerate() {
        let at = list.index(index);
        let patch_type = mutation.text("patchType");
        let Some((_, own, returns)) = WAYS.iter().find(|way| way.0 == patch_type) else {
            match patch_type {
                "" => errors.required(&at.child("patchType"), ""),
                other => {
                    let known = ["ApplyConfiguration", "JSONPatch"];
                    errors.not_supported(&at.child("patchType"), other, &known);
                }
            }
            continue;
        };
        let part = at.child(own);
        match mutation.at(own) {
            Value::Null => {
                errors.required(&part, format!("must be specified when patchType is {patch_type}"));
            }
            given => match given.text("expression").trim() {
                "" => errors.required(&part.child("expression"), ""),
                expression => {
                    let path = part.child("expression");
                    compiles(&mut errors, &compiler, expression, (uses, *returns), &path);
                }
            },
        }
        for (_, other, _) in WAYS.iter().filter(|way| way.0 != patch_type && mutation.has(way.1)) {
            let detail = format!("must not be specified when patchType is {patch_type}");
            errors.invalid(&at.child(other), format!("{{{other}}}"), detail);
        }
    }
    common::one_of(
        &mut errors,
        spec.text("reinvocationPolicy"),
        &path.child("reinvocationPolicy"),
        &["IfNeeded", "Never"],
    );
    errors.0
}

fn binding(errors: &mut Errors, spec: &Value, path: &Path<'_>) {
    match spec.text("policyName") {
        "" => errors.required(&path.child("policyName"), ""),
        name => common::subdomain(errors, name, &path.child("policyName")),
    }
    let parameter = spec.at("paramRef");
    if parameter.is_object() {
        let at = path.child("paramRef");
        let (name, selector) = (parameter.text("name"), parameter.has("selector"));
        if !name.is_empty() {
            errors.all_invalid(&at.child("name"), name, names::path_segment(name));
            if selector {
                errors.forbidden(&at.child("name"), "name and selector are mutually exclusive");
            }
        }
        if selector {
            label_selector(errors, parameter.at("selector"), &at.child("selector"));
            if !name.is_empty() {
                errors.forbidden(&at.child("selector"), "name and selector are mutually exclusive");
            }
        } else if name.is_empty() {
            errors.required(&at, "one of name or selector must be specified");
        }
        let action = parameter.text("parameterNotFoundAction");
        common::one_of(errors, action, &at.child("parameterNotFoundAction"), &["Allow", "Deny"]);
    }
    if spec.at("matchResources").is_object() {
        match_resources(errors, spec.at("matchResources"), &path.child("matchResources"));
    }
}

pub(crate) fn validating_binding(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    let (spec, path) = (object.at("spec"), Path::new("spec"));
    binding(&mut errors, spec, &path);
    let actions: Vec<&str> = spec.items("validationActions").iter().filter_map(Value::as_str).collect();
    let list = path.child("validationActions");
    if actions.is_empty() {
        errors.required(&list, "at least one validation action is required");
    }
    for (index, action) in actions.iter().enumerate() {
        if !matches!(*action, "Audit" | "Deny" | "Warn") {
            errors.not_supported(&list.index(index), *action, &["Audit", "Deny", "Warn"]);
        }
        if actions[..index].contains(action) {
            errors.duplicate(&list.index(index), *action);
        }
    }
    if actions.contains(&"Deny") && actions.contains(&"Warn") {
        let detail = "must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves no purpose)";
        errors.invalid(&list, actions, detail);
    }
    errors.0
}

pub(crate) fn mutating_binding(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    let (spec, path) = (object.at("spec"), Path::new("spec"));
    binding(&mut errors, spec, &path);
    mutable(&mut errors, spec.at("matchResources"), &path.child("matchResources"));
    errors.0
}
