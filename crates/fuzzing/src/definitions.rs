//! CustomResourceDefinitions: a schema through validation, publication and service, and an object of the kind through
//! pruning, defaults and validation.

use api::custom::{Definition, serve};
use schema::FieldValidation;
use serde_json::{Value, json};

fn definition(schema: &Value) -> Value {
    let names = json!({"plural": "foos", "singular": "foo", "kind": "Foo", "listKind": "FooList"});
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "foos.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced", "names": names, "conversion": {"strategy": "None"},
            "versions": [{
                "name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema},
                "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.n", "statusReplicasPath": ".status.n"}},
                "additionalPrinterColumns": [{"name": "A", "type": "string", "jsonPath": ".spec.a[0]"}],
                "selectableFields": [{"jsonPath": ".spec.s"}],
            }]},
        "status": {"acceptedNames": names, "storedVersions": ["v1"],
            "conditions": [{"type": "Established", "status": "True"}]},
    })
}

/// A schema, and after NUL bytes an object and what was there before it.
pub fn schema(data: &[u8]) {
    let mut parts = data
        .split(|byte| *byte == 0)
        .map(|part| schema::decode_any(part, FieldValidation::Ignore).map(|decoded| decoded.value));
    let Some(Ok(given)) = parts.next() else { return };
    let Some(row) = api::resources().find("apiextensions.k8s.io", "v1", "customresourcedefinitions") else {
        return;
    };
    let Ok(decoded) = row.decode_value(&definition(&given), FieldValidation::Warn) else { return };
    let mut defined = decoded.value;
    row.complete(&mut defined);
    row.strategy.validate(&defined);
    row.strategy.validate_update(&defined, &defined);
    row.strategy.warnings(&defined, None);
    // What an older server has let through is served as well as it can be.
    let Ok(read) = Definition::read(&defined) else { return };
    let versions = serve(&read);
    let Some(version) = versions.first() else { return };
    let kind = &version.resource;
    let routes = [kind.route()];
    schema::openapi::v2(&routes, "fuzz");
    schema::openapi::v3(&routes, "fuzz");
    let objects = [parts.next(), parts.next()].map(|given| {
        let mut object = given.and_then(Result::ok).filter(Value::is_object).unwrap_or_else(|| json!({}));
        object["apiVersion"] = "example.com/v1".into();
        object["kind"] = "Foo".into();
        object["metadata"]["name"] = "a".into();
        object
    });
    let [new, old] = objects;
    let decode =
        |object: &Value| kind.decode_value(object, FieldValidation::Warn).map(|decoded| decoded.value);
    let (Ok(mut new), Ok(mut old)) = (decode(&new), decode(&old)) else { return };
    for object in [&mut new, &mut old] {
        kind.complete(object);
        version.rules.prune_stored(object);
        version.rules.fill(object);
    }
    let strategy = &kind.strategy;
    strategy.validate(&new);
    strategy.prepare_update(&mut new, &old);
    strategy.validate_update(&new, &old);
    strategy.prepare_status(&mut new, &old);
    strategy.validate_status(&new, &old);
    strategy.fields(&new);
    strategy.row(&new, jiff::Timestamp::UNIX_EPOCH);
    kind.normalize(&mut new);
    // Pruning what is pruned changes nothing.
    let mut again = new.clone();
    version.rules.prune_stored(&mut again);
    assert_eq!(again, new, "pruning twice is not pruning once");
}

pub const SCHEMAS: &[&[u8]] = &[
    b"{\"type\":\"object\",\"properties\":{\"spec\":{\"type\":\"object\",\"required\":[\"s\"],\"properties\":{\"s\":{\"type\":\"string\",\"maxLength\":5,\"pattern\":\"^a+$\",\"default\":\"a\"},\"n\":{\"type\":\"integer\",\"minimum\":1,\"x-kubernetes-validations\":[{\"rule\":\"self > 0\",\"messageExpression\":\"'got ' + string(self)\"}]},\"a\":{\"type\":\"array\",\"x-kubernetes-list-type\":\"set\",\"items\":{\"type\":\"string\",\"format\":\"ipv4\"}}}}}}\0{\"spec\":{\"s\":\"aa\",\"n\":2,\"a\":[\"1.2.3.4\"],\"z\":1}}\0{\"spec\":{\"s\":\"b\"}}",
    b"{\"type\":\"object\",\"properties\":{\"spec\":{\"type\":\"object\",\"properties\":{\"s\":{\"type\":\"string\"},\"l\":{\"type\":\"array\",\"maxItems\":4,\"x-kubernetes-list-type\":\"map\",\"x-kubernetes-list-map-keys\":[\"k\"],\"items\":{\"type\":\"object\",\"required\":[\"k\"],\"properties\":{\"k\":{\"type\":\"string\",\"maxLength\":9},\"v\":{\"type\":\"integer\",\"default\":3,\"x-kubernetes-validations\":[{\"rule\":\"self >= oldSelf\"}]}}}}}}}}\0{\"spec\":{\"l\":[{\"k\":\"x\",\"v\":1},{\"k\":\"y\"}]}}\0{\"spec\":{\"l\":[{\"k\":\"y\",\"v\":9}]}}",
    b"{\"type\":\"object\",\"x-kubernetes-preserve-unknown-fields\":true,\"properties\":{\"spec\":{\"type\":\"object\",\"nullable\":true,\"properties\":{\"s\":{\"type\":\"string\",\"enum\":[\"a\",\"b\"]},\"e\":{\"type\":\"object\",\"x-kubernetes-embedded-resource\":true,\"x-kubernetes-preserve-unknown-fields\":true},\"i\":{\"x-kubernetes-int-or-string\":true},\"m\":{\"type\":\"object\",\"additionalProperties\":{\"type\":\"number\",\"multipleOf\":0.5}}},\"oneOf\":[{\"required\":[\"e\"]},{\"required\":[\"m\"],\"not\":{\"required\":[\"i\"]}}]}}}\0{\"spec\":{\"e\":{\"apiVersion\":\"v1\",\"kind\":\"Pod\",\"metadata\":{\"name\":\"x\",\"labels\":null}},\"i\":\"5%\",\"m\":{\"a\":1.5,\"b\":null}}}",
    b"{\"type\":\"object\",\"properties\":{\"spec\":{\"type\":\"object\",\"default\":{\"s\":\"x\"},\"x-kubernetes-map-type\":\"atomic\",\"properties\":{\"s\":{\"type\":\"string\",\"default\":\"y\"},\"o\":{\"type\":\"object\",\"default\":{},\"properties\":{\"b\":{\"type\":\"boolean\",\"default\":true}}}},\"x-kubernetes-validations\":[{\"rule\":\"!has(oldSelf.s) || self.s == oldSelf.s\",\"fieldPath\":\".s\",\"reason\":\"FieldValueForbidden\",\"message\":\"fixed\"},{\"rule\":\"oldSelf.hasValue() || true\",\"optionalOldSelf\":true}]},\"status\":{\"type\":\"object\",\"x-kubernetes-preserve-unknown-fields\":true,\"properties\":{\"n\":{\"type\":\"integer\",\"format\":\"int32\"}}}}}\0{\"spec\":{\"s\":\"z\"},\"status\":{\"n\":1,\"c\":[1]}}\0{\"spec\":{\"s\":\"w\"}}",
];
