//! What is refused in claims and slices.

use serde_json::{Value, json};

use super::*;
use crate::FieldError;

fn fields(errors: Vec<FieldError>) -> Vec<String> {
    errors.into_iter().map(|e| e.field).collect()
}

#[test]
fn slices() {
    let check = |device: Value, want: &[&str]| {
        let slice = json!({"spec": {"driver": "d.example.com", "nodeName": "n", "devices": [device],
            "pool": {"name": "p", "generation": 1, "resourceSliceCount": 1}}});
        let want: Vec<String> = want.iter().map(|f| format!("spec.devices[0]{f}")).collect();
        assert_eq!(fields(slice_(&slice)), want);
    };
    fn slice_(slice: &Value) -> Vec<FieldError> {
        super::slice(slice)
    }
    check(json!({"name": "g", "attributes": {"d.example.com/a": {"version": "1.0.0-rc.1+b"}}}), &[]);
    check(json!({"name": "g", "attributes": {"a": {"version": "01.0.0"}}}), &[".attributes[a].version"]);
    check(json!({"name": "g", "attributes": {"a": {}}}), &[".attributes[a]"]);
    check(json!({"name": "g", "attributes": {"a": {"int": 1, "bool": true}}}), &[".attributes[a]"]);
    check(json!({"name": "g", "attributes": {"a-b": {"int": 1}}}), &[".attributes"]);
    check(json!({"name": "g", "allNodes": true}), &[""]);
    check(
        json!({"name": "g", "capacity": {"m": {"value": "1Gi", "requestPolicy": {}}}}),
        &[".capacity[m].requestPolicy"],
    );
    let policy = json!({"default": "3", "validRange": {"min": "1", "step": "3"}});
    check(
        json!({"name": "g", "allowMultipleAllocations": true, "capacity": {"m": {"value": "10", "requestPolicy": policy}}}),
        &[".capacity[m].requestPolicy.validRange.step"],
    );
    check(json!({"name": "g", "bindingConditions": ["a"]}), &[".bindingFailureConditions"]);
}

#[test]
fn statuses() {
    let claim = |status: Value| {
        json!({"metadata": {}, "status": status,
            "spec": {"devices": {"requests": [{"name": "r", "exactly": {"deviceClassName": "c"}}]}}})
    };
    let result = |request: &str| json!({"devices": {"results": [{"request": request, "driver": "d", "pool": "p", "device": "g"}]}});
    let check = |new: Value, old: Value, want: &[&str]| {
        assert_eq!(fields(claim_status(&claim(new), &claim(old))), want);
    };
    let consumer = json!([{"resource": "pods", "name": "p", "uid": "u"}]);
    check(json!({"reservedFor": consumer}), json!({}), &["status.reservedFor"]);
    check(json!({"reservedFor": consumer, "allocation": result("r")}), json!({}), &[]);
    check(json!({"allocation": result("z")}), json!({}), &["status.allocation.devices.results[0].request"]);
    check(json!({"allocation": result("z")}), json!({"allocation": result("r")}), &["status.allocation"]);
    let device = |name: &str| json!([{"driver": "d", "pool": "p", "device": name}]);
    check(json!({"allocation": result("r"), "devices": device("g")}), json!({}), &[]);
    check(json!({"allocation": result("r"), "devices": device("h")}), json!({}), &["status.devices[0]"]);
}
