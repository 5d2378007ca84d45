//! A v3 document in gnostic's protobuf form (`openapi.v3.Document`), made out of its JSON. Extensions, defaults of no simple
//! type and enumerations are carried as YAML text; JSON is YAML.

use serde_json::Value;

use crate::proto::wire::Writer;

/// The whole document.
pub(super) fn document(value: &Value) -> Vec<u8> {
    let mut out = Writer::default();
    out.text(1, &value["openapi"]);
    out.message(2, |w| {
        w.text(1, &value["info"]["title"]);
        w.text(2, &value["info"]["description"]);
        w.text(6, &value["info"]["version"]);
    });
    out.message(4, |w| named(1, &value["paths"], w, path_item));
    out.message(5, |w| {
        let components = &value["components"];
        w.message(1, |w| named(1, &components["schemas"], w, schema_or_reference));
        w.message(7, |w| {
            named(1, &components["securitySchemes"], w, |scheme, w| {
                w.message(1, |w| {
                    for (number, key) in [(1, "type"), (2, "description"), (3, "name"), (4, "in")] {
                        w.text(number, &scheme[key]);
                    }
                    w.extensions(9, scheme);
                });
            });
        });
    });
    out.bytes
}

/// The members of an object as pairs of name and value.
fn named(number: u32, map: &Value, out: &mut Writer, write: impl Fn(&Value, &mut Writer)) {
    for (name, value) in map.as_object().into_iter().flatten().filter(|(name, _)| !name.starts_with("x-")) {
        out.message(number, |w| {
            w.bytes(1, name.as_bytes());
            w.message(2, |w| write(value, w));
        });
    }
}

fn path_item(item: &Value, out: &mut Writer) {
    let methods = ["get", "put", "post", "delete", "options", "head", "patch", "trace"];
    for (number, method) in (4..).zip(methods) {
        if let Some(value) = item.get(method) {
            out.message(number, |w| operation(value, w));
        }
    }
    parameters(13, &item["parameters"], out);
    out.extensions(14, item);
}

fn operation(value: &Value, out: &mut Writer) {
    out.texts(1, &value["tags"]);
    out.text(2, &value["summary"]);
    out.text(3, &value["description"]);
    out.text(5, &value["operationId"]);
    parameters(6, &value["parameters"], out);
    if let Some(body) = value.get("requestBody") {
        out.message(7, |w| {
            w.message(1, |w| {
                w.text(1, &body["description"]);
                content(2, body, w);
                w.flag(3, &body["required"]);
            });
        });
    }
    out.message(8, |w| {
        named(2, &value["responses"], w, |response, w| {
            w.message(1, |w| {
                w.text(1, &response["description"]);
                content(3, response, w);
            });
        });
    });
    out.flag(10, &value["deprecated"]);
    out.extensions(13, value);
}

fn content(number: u32, holder: &Value, out: &mut Writer) {
    if let Some(content) = holder.get("content") {
        out.message(number, |w| {
            named(1, content, w, |media, w| {
                if let Some(schema) = media.get("schema") {
                    w.message(1, |w| schema_or_reference(schema, w));
                }
            });
        });
    }
}

fn parameters(number: u32, list: &Value, out: &mut Writer) {
    for value in list.as_array().into_iter().flatten() {
        out.message(number, |w| match value.get("$ref") {
            Some(reference) => w.message(2, |w| w.text(1, reference)),
            None => w.message(1, |w| {
                w.text(1, &value["name"]);
                w.text(2, &value["in"]);
                w.text(3, &value["description"]);
                w.flag(4, &value["required"]);
                if let Some(schema) = value.get("schema") {
                    w.message(10, |w| schema_or_reference(schema, w));
                }
            }),
        });
    }
}

fn schema_or_reference(value: &Value, out: &mut Writer) {
    match value.get("$ref") {
        Some(reference) => out.message(2, |w| w.text(1, reference)),
        None => out.message(1, |w| schema(value, w)),
    }
}

fn number(number: u32, value: &Value, out: &mut Writer) {
    if let Some(value) = value.as_f64().filter(|value| *value != 0.0) {
        out.double(number, value);
    }
}

fn count(number: u32, value: &Value, out: &mut Writer) {
    if let Some(value) = value.as_i64().filter(|value| *value != 0) {
        out.int(number, value);
    }
}

fn schema(value: &Value, out: &mut Writer) {
    out.flag(1, &value["nullable"]);
    out.text(9, &value["title"]);
    number(10, &value["multipleOf"], out);
    number(11, &value["maximum"], out);
    out.flag(12, &value["exclusiveMaximum"]);
    number(13, &value["minimum"], out);
    out.flag(14, &value["exclusiveMinimum"]);
    count(15, &value["maxLength"], out);
    count(16, &value["minLength"], out);
    out.text(17, &value["pattern"]);
    count(18, &value["maxItems"], out);
    count(19, &value["minItems"], out);
    out.flag(20, &value["uniqueItems"]);
    count(21, &value["maxProperties"], out);
    count(22, &value["minProperties"], out);
    out.texts(23, &value["required"]);
    value["enum"].as_array().into_iter().flatten().for_each(|one| out.any(24, one));
    out.text(25, &value["type"]);
    for (number, key) in [(26, "allOf"), (27, "oneOf"), (28, "anyOf")] {
        for one in value[key].as_array().into_iter().flatten() {
            out.message(number, |w| schema_or_reference(one, w));
        }
    }
    if let Some(not) = value.get("not") {
        out.message(29, |w| schema(not, w));
    }
    if let Some(items) = value.get("items") {
        out.message(30, |w| w.message(1, |w| schema_or_reference(items, w)));
    }
    if value["properties"].is_object() {
        out.message(31, |w| named(1, &value["properties"], w, schema_or_reference));
    }
    match value.get("additionalProperties") {
        None => {}
        Some(Value::Bool(allowed)) => out.message(32, |w| w.int(2, (*allowed).into())),
        Some(inner) => out.message(32, |w| w.message(1, |w| schema_or_reference(inner, w))),
    }
    match value.get("default") {
        Some(Value::Bool(on)) => out.message(33, |w| w.int(2, (*on).into())),
        Some(Value::String(text)) => out.message(33, |w| w.bytes(3, text.as_bytes())),
        Some(Value::Number(given)) => {
            out.message(33, |w| w.double(1, given.as_f64().unwrap_or_default()));
        }
        // The form has no place for others.
        _ => {}
    }
    out.text(34, &value["description"]);
    out.text(35, &value["format"]);
    out.extensions(36, value);
}
