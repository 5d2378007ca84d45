//! The OpenAPI v3 document of an extension server that knows v2 alone, made out of that (upstream:
//! `kube-openapi/pkg/openapiconv`).

use serde_json::{Map, Value, json};

use super::documents::references;
use crate::read::Read;

const METHODS: [&str; 7] = ["get", "put", "post", "delete", "options", "head", "patch"];

/// The document of what is at a path and below (`/apis/GROUP/VERSION`), with the definitions that it needs.
pub fn v3(v2: &Value, base: &str) -> Value {
    let below = format!("{base}/");
    let mut paths = Map::new();
    for (path, item) in v2.at("paths").as_object().into_iter().flatten() {
        if path == base || path.starts_with(&below) {
            paths.insert(path.clone(), path_item(item));
        }
    }
    let mut paths = Value::Object(paths);
    let mut needed = Vec::new();
    references(&paths, &mut needed);
    let mut schemas = Map::new();
    let mut at = 0;
    while let Some(name) = needed.get(at).cloned() {
        at += 1;
        if let Some(definition) = v2.at("definitions").get(&name) {
            references(definition, &mut needed);
            schemas.insert(name, definition.clone());
        }
    }
    let mut schemas = Value::Object(schemas);
    point_elsewhere(&mut paths);
    point_elsewhere(&mut schemas);
    let mut components = json!({"schemas": schemas});
    if let Some(security) = v2.get("securityDefinitions").and_then(Value::as_object) {
        let all = security.iter().map(|(name, scheme)| (name.clone(), security_scheme(scheme)));
        components["securitySchemes"] = Value::Object(all.collect());
    }
    let info = v2.get("info").cloned().unwrap_or_else(|| json!({"title": base, "version": "unversioned"}));
    json!({"openapi": "3.0.0", "info": info, "paths": paths, "components": components})
}

fn path_item(item: &Value) -> Value {
    let mut made = extensions(item);
    for method in METHODS {
        if let Some(operation) = item.get(method) {
            made.insert(method.to_owned(), self::operation(operation));
        }
    }
    let parameters: Vec<Value> = item.items("parameters").iter().map(parameter).collect();
    if !parameters.is_empty() {
        made.insert("parameters".to_owned(), parameters.into());
    }
    Value::Object(made)
}

/// What is kept as it is: fields of the field's own extensions.
fn extensions(of: &Value) -> Map<String, Value> {
    let all = of.as_object().into_iter().flatten();
    all.filter(|(key, _)| key.starts_with("x-")).map(|(key, value)| (key.clone(), value.clone())).collect()
}

fn operation(operation: &Value) -> Value {
    let mut made = extensions(operation);
    for key in ["description", "externalDocs", "tags", "summary", "deprecated", "operationId"] {
        if let Some(value) = operation.get(key) {
            made.insert(key.to_owned(), value.clone());
        }
    }
    let mut parameters = Vec::new();
    for given in operation.items("parameters") {
        match given.get("schema").filter(|_| given.text("in") == "body" || given.text("name") == "body") {
            Some(schema) => {
                let content = content(schema, operation.items("consumes"));
                made.insert("requestBody".to_owned(), json!({"content": content}));
            }
            None => parameters.push(parameter(given)),
        }
    }
    if !parameters.is_empty() {
        made.insert("parameters".to_owned(), parameters.into());
    }
    let mut responses = Map::new();
    for (code, response) in operation.at("responses").as_object().into_iter().flatten() {
        let mut answer = extensions(response);
        answer.insert("description".to_owned(), response.text("description").into());
        if let Some(schema) = response.get("schema") {
            answer.insert("content".to_owned(), content(schema, operation.items("produces")));
        }
        responses.insert(code.clone(), Value::Object(answer));
    }
    made.insert("responses".to_owned(), Value::Object(responses));
    Value::Object(made)
}

/// One schema under each media type.
fn content(schema: &Value, types: &[Value]) -> Value {
    let types = types.iter().filter_map(Value::as_str);
    Value::Object(types.map(|kind| (kind.to_owned(), json!({"schema": schema}))).collect())
}

fn parameter(given: &Value) -> Value {
    let mut made = extensions(given);
    for key in ["name", "description", "in", "required", "allowEmptyValue", "$ref"] {
        if let Some(value) = given.get(key) {
            made.insert(key.to_owned(), value.clone());
        }
    }
    let schema = given.get("schema").cloned().unwrap_or_else(|| {
        let simple = ["type", "format", "uniqueItems"].into_iter();
        let kept = simple.filter_map(|key| Some((key.to_owned(), given.get(key)?.clone())));
        Value::Object(kept.collect())
    });
    if !made.contains_key("$ref") {
        made.insert("schema".to_owned(), schema);
    }
    Value::Object(made)
}

fn security_scheme(scheme: &Value) -> Value {
    let mut made = extensions(scheme);
    for key in ["description", "type", "name", "in"] {
        if let Some(value) = scheme.get(key) {
            made.insert(key.to_owned(), value.clone());
        }
    }
    let flow = scheme.text("flow");
    if !flow.is_empty() {
        let mut urls = json!({"scopes": scheme.get("scopes").cloned().unwrap_or_default()});
        for key in ["authorizationUrl", "tokenUrl"] {
            if let Some(value) = scheme.get(key) {
                urls[key] = value.clone();
            }
        }
        made.insert("flows".to_owned(), json!({flow: urls}));
    }
    Value::Object(made)
}

/// Moves references to where v3 keeps what they name.
fn point_elsewhere(value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (key, inner) in map.iter_mut() {
                match inner {
                    Value::String(text) if key == "$ref" => {
                        for (from, to) in [
                            ("#/definitions/", "#/components/schemas/"),
                            ("#/parameters/", "#/components/parameters/"),
                            ("#/responses/", "#/components/responses/"),
                        ] {
                            if let Some(name) = text.strip_prefix(from) {
                                *text = format!("{to}{name}");
                                break;
                            }
                        }
                    }
                    inner => point_elsewhere(inner),
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(point_elsewhere),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_v2_document_becomes_one_of_v3() {
        let v2 = json!({
            "swagger": "2.0",
            "info": {"title": "ext", "version": "1"},
            "paths": {
                "/apis/g.io/v1/things/{name}": {
                    "parameters": [{"name": "name", "in": "path", "required": true, "type": "string", "uniqueItems": true}],
                    "put": {
                        "operationId": "replace", "consumes": ["*/*"], "produces": ["application/json"],
                        "parameters": [
                            {"name": "body", "in": "body", "schema": {"$ref": "#/definitions/Thing"}},
                            {"name": "dryRun", "in": "query", "type": "string"},
                        ],
                        "responses": {"200": {"description": "OK", "schema": {"$ref": "#/definitions/Thing"}}},
                        "x-kubernetes-action": "put",
                    },
                },
                "/apis/other/v1": {"get": {"responses": {}}},
            },
            "definitions": {
                "Thing": {"type": "object", "properties": {"part": {"$ref": "#/definitions/Part"}}},
                "Part": {"type": "string"},
                "Unused": {"type": "object"},
            },
        });
        let thing = json!({"schema": {"$ref": "#/components/schemas/Thing"}});
        let expect = json!({
            "openapi": "3.0.0",
            "info": {"title": "ext", "version": "1"},
            "paths": {"/apis/g.io/v1/things/{name}": {
                "parameters": [{"name": "name", "in": "path", "required": true,
                    "schema": {"type": "string", "uniqueItems": true}}],
                "put": {
                    "operationId": "replace",
                    "parameters": [{"name": "dryRun", "in": "query", "schema": {"type": "string"}}],
                    "requestBody": {"content": {"*/*": thing}},
                    "responses": {"200": {"description": "OK", "content": {"application/json": thing}}},
                    "x-kubernetes-action": "put",
                },
            }},
            "components": {"schemas": {
                "Thing": {"type": "object", "properties": {"part": {"$ref": "#/components/schemas/Part"}}},
                "Part": {"type": "string"},
            }},
        });
        assert_eq!(v3(&v2, "/apis/g.io/v1"), expect);
    }
}
