//! A definition's versions, from the definition to the row.

use schema::FieldValidation;
use serde_json::{Value, json};

use super::{Definition, serve};
use crate::Resource;
use crate::kinds::strategy_for;

fn definition(schema: &Value, more: &Value) -> Value {
    let mut version = json!({"name": "v1", "served": true, "storage": true,
        "schema": {"openAPIV3Schema": schema}});
    for (key, value) in more.as_object().into_iter().flatten() {
        version[key] = value.clone();
    }
    let names = json!({"plural": "foos", "singular": "foo", "kind": "Foo", "listKind": "FooList"});
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "foos.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced", "names": names, "versions": [version],
            "conversion": {"strategy": "None"}},
        "status": {"acceptedNames": names, "storedVersions": ["v1"],
            "conditions": [{"type": "Established", "status": "True"}]},
    })
}

fn resource(schema: &Value, more: &Value) -> Resource {
    let definition = Definition::read(&definition(schema, more)).expect("a definition");
    let served = serve(&definition);
    (*served[0].resource).clone()
}

fn spec(properties: &Value) -> Value {
    json!({"type": "object", "properties": {"spec": {"type": "object", "properties": properties}}})
}

fn object(spec: &Value) -> Value {
    json!({"apiVersion": "example.com/v1", "kind": "Foo", "metadata": {"name": "a"}, "spec": spec})
}

#[test]
fn unknown_fields_are_pruned_and_told() {
    let check = |schema: &Value, given: &Value, expect: &Value, told: &[&str]| {
        let resource = resource(schema, &json!({}));
        let decoded = resource.decode_value(&object(given), FieldValidation::Warn).expect("an object");
        assert_eq!(decoded.value["spec"], *expect);
        let told: Vec<String> = told.iter().map(|path| format!("unknown field {path:?}")).collect();
        assert_eq!(decoded.warnings, told);
    };
    let a = spec(&json!({"a": {"type": "string"}}));
    check(&a, &json!({"a": "x", "b": 1}), &json!({"a": "x"}), &["spec.b"]);
    let list = spec(&json!({"l": {"type": "array", "items": {"type": "object",
        "properties": {"k": {"type": "string"}}}}}));
    check(&list, &json!({"l": [{"k": "x", "z": 1}]}), &json!({"l": [{"k": "x"}]}), &["spec.l[0].z"]);
    let open = spec(&json!({"o": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}));
    check(&open, &json!({"o": {"z": {"y": 1}}}), &json!({"o": {"z": {"y": 1}}}), &[]);
    let null = spec(&json!({"a": {"type": "string"}, "n": {"type": "string", "nullable": true}}));
    check(&null, &json!({"a": null, "n": null}), &json!({"n": null}), &[]);
}

#[test]
fn defaults_fill_in() {
    let schema = spec(&json!({
        "a": {"type": "string", "default": "x"},
        "o": {"type": "object", "default": {}, "properties": {"b": {"type": "integer", "default": 3}}},
    }));
    let resource = resource(&schema, &json!({}));
    let mut value = object(&json!({"a": null}));
    resource.complete(&mut value);
    assert_eq!(value["spec"], json!({"a": "x", "o": {"b": 3}}));
}

#[test]
fn values_are_judged() {
    let check = |properties: &Value, given: &Value, expect: &[(&str, &str)]| {
        let resource = resource(&spec(properties), &json!({}));
        let found = resource.strategy.validate(&object(given));
        let found: Vec<(&str, &str)> = found.iter().map(|e| (e.kind.reason(), e.field.as_str())).collect();
        assert_eq!(found, expect, "{given}");
    };
    let invalid = "FieldValueInvalid";
    let a = |schema: Value| json!({"a": schema});
    check(&a(json!({"type": "string"})), &json!({"a": 1}), &[("FieldValueTypeInvalid", "spec.a")]);
    check(&a(json!({"type": "string", "maxLength": 1})), &json!({"a": "é"}), &[]);
    check(
        &a(json!({"type": "string", "maxLength": 1})),
        &json!({"a": "xy"}),
        &[("FieldValueTooLong", "spec.a")],
    );
    check(&a(json!({"type": "string", "pattern": "^\\d+$"})), &json!({"a": "x"}), &[(invalid, "spec.a")]);
    check(
        &a(json!({"type": "string", "format": "ipv4"})),
        &json!({"a": "::1"}),
        &[("FieldValueTypeInvalid", "spec.a")],
    );
    check(
        &a(json!({"type": "string", "enum": ["x"]})),
        &json!({"a": "y"}),
        &[("FieldValueNotSupported", "spec.a")],
    );
    check(&a(json!({"type": "integer", "maximum": 3})), &json!({"a": 4}), &[(invalid, "spec.a")]);
    check(
        &a(json!({"type": "integer"})),
        &json!({"a": 1.5}),
        &[("FieldValueTypeInvalid", "spec.a"), (invalid, "<nil>")],
    );
    check(&a(json!({"x-kubernetes-int-or-string": true})), &json!({"a": "50%"}), &[]);
    let set = a(json!({"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "set"}));
    check(&set, &json!({"a": ["x", "y", "x"]}), &[("FieldValueDuplicate", "spec.a[2]")]);
    let required = a(json!({"type": "object", "required": ["b"], "properties": {"b": {"type": "string"}}}));
    check(&required, &json!({"a": {}}), &[("FieldValueRequired", "spec.a.b")]);
}

#[test]
fn what_has_not_changed_is_not_judged_again() {
    let schema = spec(&json!({"a": {"type": "string", "maxLength": 1}, "b": {"type": "string"}}));
    let resource = resource(&schema, &json!({}));
    let check = |old: Value, new: Value, expect: usize| {
        assert_eq!(resource.strategy.validate_update(&object(&new), &object(&old)).errors.len(), expect);
    };
    check(json!({"a": "long", "b": "x"}), json!({"a": "long", "b": "y"}), 0);
    check(json!({"a": "long"}), json!({"a": "longer"}), 1);
}

#[test]
fn columns_follow_their_paths() {
    let columns = json!({"additionalPrinterColumns": [
        {"name": "A", "type": "string", "jsonPath": ".spec.a"},
        {"name": "Ready", "type": "string", "jsonPath": ".spec.l[?(@.type==\"Ready\")].status"},
        {"name": "Bad", "type": "string", "jsonPath": ".spec.l["},
        {"name": "N", "type": "integer", "jsonPath": ".spec.l[0].n"},
    ]});
    let resource =
        resource(&json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}), &columns);
    let given = json!({"a": {"b": 1}, "l": [{"type": "Up", "n": 7}, {"type": "Ready", "status": "True"}]});
    let row = resource.strategy.row(&object(&given), jiff::Timestamp::UNIX_EPOCH);
    assert_eq!(row, [json!("a"), json!("{\"b\":1}"), json!("True"), Value::Null, json!(7)]);
}

#[test]
fn schemas_must_be_structural() {
    let strategy = strategy_for("apiextensions.k8s.io", "CustomResourceDefinition").expect("a strategy");
    let check = |schema: Value, expect: &[(&str, &str)]| {
        let found = (strategy.validate)(&definition(&schema, &json!({})));
        let found: Vec<(String, &str)> = found
            .iter()
            .map(|e| (e.field.replace("spec.validation.openAPIV3Schema", ""), e.kind.reason()))
            .collect();
        let expect: Vec<(String, &str)> = expect.iter().map(|(f, r)| ((*f).to_owned(), *r)).collect();
        assert_eq!(found, expect, "{schema}");
    };
    let (required, forbidden) = ("FieldValueRequired", "FieldValueForbidden");
    check(json!({"type": "object"}), &[]);
    check(json!({}), &[(".type", required)]);
    check(
        json!({"type": "object", "properties": {"a": {"type": "array"}}}),
        &[(".properties[a].items", required)],
    );
    check(
        json!({"type": "object", "properties": {"a": {"type": "string", "anyOf": [{"type": "integer"}]}}}),
        &[(".properties[a].anyOf[0].type", forbidden)],
    );
    check(
        json!({"type": "object", "properties": {"metadata": {"type": "object", "properties": {
            "labels": {"type": "object"}}}}}),
        &[(".properties[metadata]", forbidden)],
    );
    check(
        json!({"type": "object", "properties": {"a": {"type": "integer", "default": "x"}}}),
        &[(".properties[a].default", "FieldValueTypeInvalid")],
    );
}
