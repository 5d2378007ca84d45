use schema::structural::Schema;
use serde_json::{Value, json};

use super::*;

fn read(schema: &Value) -> Schema {
    Schema::read(schema).expect("a schema")
}

fn causes(errors: &[FieldError]) -> Vec<String> {
    errors.iter().map(|one| format!("{:?} {}: {}", one.kind, one.field, one.detail)).collect()
}

/// A schema of an object with `spec`, whose properties and rules these are.
fn spec(properties: Value, rules: Value) -> Value {
    json!({"type": "object", "properties": {"spec": {
        "type": "object", "properties": properties, "x-kubernetes-validations": rules}}})
}

#[test]
fn rules_of_a_definition_are_found_fault_with() {
    let check = |rules: Value, wanted: &[&str]| {
        let schema = spec(
            json!({
                "a": {"type": "string", "maxLength": 10},
                "many": {"type": "array", "items": {"type": "string"}},
                "l": {"type": "array", "items": {"type": "object", "properties": {"x": {"type": "integer"}}}}
            }),
            rules.clone(),
        );
        let errors = check_definition("s", &read(&schema), &Before::default());
        let found = causes(&errors);
        assert_eq!(found.len(), wanted.len(), "{rules}: {found:#?}");
        for (found, wanted) in found.iter().zip(wanted) {
            let found = found.replace("s.properties[spec].x-kubernetes-validations[0]", "@");
            assert!(found.starts_with(wanted), "{rules}: {found}");
        }
    };
    check(json!([{"rule": "self.a == 'x'"}]), &[]);
    check(json!([{"rule": "  "}]), &[]);
    check(
        json!([{"rule": "self.b == 'x'"}]),
        &["Invalid @.rule: compilation failed: ERROR: <input>:1:5: undefined field 'b'"],
    );
    check(json!([{"rule": "self.a"}]), &["Invalid @.rule: cel expression must evaluate to a bool"]);
    check(
        json!([{"rule": "int('a') == 1"}]),
        &["Invalid @.rule: program instantiation failed: type conversion error from 'string' to 'int'"],
    );
    check(
        json!([{"rule": "true", "messageExpression": "1"}]),
        &["Invalid @.messageExpression: messageExpression must evaluate to a string"],
    );
    check(
        json!([{"rule": "true", "messageExpression": "self.b"}]),
        &["Invalid @.messageExpression: messageExpression compilation failed: ERROR:"],
    );
    check(
        json!([{"rule": "self.many.all(x, self.many.all(y, x == y))"}]),
        &[
            "Forbidden @.rule: estimated rule cost exceeds budget by factor of more than 100x",
            "Forbidden @.rule: contributed to estimated rule cost total exceeding cost limit",
            "Forbidden s: x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema exceeds budget",
        ],
    );
    check(
        json!([{"rule": "self.a == 'x'", "optionalOldSelf": true}]),
        &["Invalid @.optionalOldSelf: may not be set if oldSelf is not used in rule"],
    );
    check(json!([{"rule": "oldSelf.?a.hasValue() || true", "optionalOldSelf": true}]), &[]);
    check(json!([{"rule": "self == oldSelf"}]), &[]);
    let schema = json!({"type": "object", "properties": {"l": {"type": "array", "maxItems": 3, "items": {
        "type": "integer", "x-kubernetes-validations": [{"rule": "self >= oldSelf"}]}}}});
    let errors = check_definition("s", &read(&schema), &Before::default());
    assert_eq!(
        causes(&errors),
        [
            "Invalid s.properties[l].items.x-kubernetes-validations[0].rule: oldSelf cannot be used on the uncorrelatable \
          portion of the schema within s.properties[l]"
        ]
    );
}

#[test]
fn objects_are_found_fault_with() {
    let schema = spec(
        json!({
            "a": {"type": "integer", "x-kubernetes-validations": [{"rule": "self > 0"}]},
            "b": {"type": "integer"},
            "imm": {"type": "string", "x-kubernetes-validations": [{"rule": "self == oldSelf", "message": "fixed"}]},
            "ios": {"x-kubernetes-int-or-string": true},
            "map": {"type": "object", "additionalProperties": {
                "type": "string", "x-kubernetes-validations": [{"rule": "self != ''", "reason": "FieldValueRequired"}]}},
            "list": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"], "items": {
                "type": "object", "properties": {"k": {"type": "string"}, "v": {
                    "type": "integer", "x-kubernetes-validations": [{"rule": "self >= oldSelf"}]}}}}
        }),
        json!([
            {"rule": "!has(self.b) || self.a < self.b", "fieldPath": ".b", "reason": "FieldValueForbidden",
             "messageExpression": "'b must be more than ' + string(self.a)"},
            {"rule": "!has(self.ios) || self.ios + 1 > 1"}
        ]),
    );
    let rules = Rules::compile(&read(&schema)).expect("rules");
    let check = |new: Value, old: Value, wanted: &[&str]| {
        let new = json!({"spec": new});
        let old = (!old.is_null()).then(|| json!({"spec": old}));
        assert_eq!(causes(&rules.validate(&new, old.as_ref()).errors), wanted, "{new}");
    };
    check(json!({"a": 1, "b": 2}), Value::Null, &[]);
    check(json!({"a": 0}), Value::Null, &["Invalid spec.a: failed rule: self > 0"]);
    check(json!({"a": 3, "b": 2}), Value::Null, &["Forbidden spec.b: b must be more than 3"]);
    check(
        json!({"a": 1, "ios": "x"}),
        Value::Null,
        &[
            "Invalid spec: 'no such overload': call arguments did not match a supported operator, function or macro \
           signature for rule: !has(self.ios) || self.ios + 1 > 1",
        ],
    );
    check(json!({"a": 1, "map": {"x": ""}}), Value::Null, &["Required spec.map[x]: failed rule: self != ''"]);
    // Rules over old values wait for one.
    check(json!({"a": 1, "imm": "x"}), Value::Null, &[]);
    check(json!({"a": 1, "imm": "x"}), json!({"a": 1}), &[]);
    check(json!({"a": 1, "imm": "x"}), json!({"a": 1, "imm": "y"}), &["Invalid spec.imm: fixed"]);
    let list = |v: i64| json!({"a": 1, "list": [{"k": "x", "v": v}]});
    check(list(2), list(1), &[]);
    check(list(1), list(2), &["Invalid spec.list[0].v: failed rule: self >= oldSelf"]);
    // What was wrong before and has not changed is only warned of.
    check(json!({"a": 0, "imm": "x"}), json!({"a": 0}), &[]);
    let same = json!({"spec": {"a": 3, "b": 2}});
    let labelled = json!({"metadata": {"labels": {"x": "y"}}, "spec": {"a": 3, "b": 2}});
    let found = rules.validate(&labelled, Some(&same));
    assert_eq!(found.warnings, ["spec.b: Forbidden: b must be more than 3"]);
    check(json!({"a": -1}), json!({"a": 0}), &["Invalid spec.a: failed rule: self > 0"]);
}

#[test]
fn an_object_has_one_budget() {
    let schema = json!({"type": "object", "properties": {"l": {"type": "array", "items": {
        "type": "array", "items": {"type": "integer"},
        "x-kubernetes-validations": [{"rule": "self.all(x, self.all(y, x == y))"}]}}}});
    let rules = Rules::compile(&read(&schema)).expect("rules");
    let object = |lists: usize, len: usize| json!({"l": vec![vec![1; len]; lists]});
    let found = causes(&rules.validate(&object(1, 1000), None).errors);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].contains("call cost exceeds limit"), "{found:?}");
    let found = causes(&rules.validate(&object(200, 100), None).errors);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].contains("running out of cost budget"), "{found:?}");
}

#[test]
fn a_resource_has_its_names() {
    let schema = json!({"type": "object", "x-kubernetes-validations": [
        {"rule": "self.metadata.name.startsWith('a')"}, {"rule": "self.kind == 'Foo'"}]});
    let rules = Rules::compile(&read(&schema)).expect("rules");
    let object =
        |name: &str| json!({"kind": "Foo", "apiVersion": "v1", "metadata": {"name": name, "labels": {}}});
    assert!(rules.validate(&object("abc"), None).errors.is_empty());
    assert_eq!(
        causes(&rules.validate(&object("b"), None).errors),
        ["Invalid <nil>: failed rule: self.metadata.name.startsWith('a')"]
    );
}
