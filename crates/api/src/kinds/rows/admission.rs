//! Rows of the kinds of admissionregistration.k8s.io.

use jiff::Timestamp;
use serde_json::Value;

use super::{age, name, selector};
use crate::kinds::json::Read;

pub(super) fn webhooks(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), object.items("webhooks").len().into(), age(object, now)]
}

pub(super) fn policy(object: &Value, now: Timestamp) -> Vec<Value> {
    let spec = object.at("spec");
    let rules = spec.items("validations").len() + spec.items("mutations").len();
    let parameter = match spec.at("paramKind") {
        Value::Null => "<unset>".to_owned(),
        kind => format!("{}/{}", kind.text("apiVersion"), kind.text("kind")),
    };
    vec![name(object), rules.into(), parameter.into(), age(object, now)]
}

pub(super) fn binding(object: &Value, now: Timestamp) -> Vec<Value> {
    let spec = object.at("spec");
    let reference = spec.at("paramRef");
    let parameter: Value = match (reference.text("namespace"), reference.text("name")) {
        ("", "") | (_, "") if reference.has("selector") => selector(reference.at("selector")),
        (_, "") => "<unset>".into(),
        ("", parameter) => format!("*/{parameter}").into(),
        (namespace, parameter) => format!("{namespace}/{parameter}").into(),
    };
    vec![name(object), spec.text("policyName").into(), parameter, age(object, now)]
}
