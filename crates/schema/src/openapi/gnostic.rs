//! A v2 document in gnostic's protobuf form (`openapi.v2.Document`). Extensions are carried as YAML text; JSON is YAML.

use serde_json::Value;

use crate::proto::wire::Writer;

/// A document that is being written. Definitions must come after all paths.
pub(super) struct Document {
    out: Writer,
    paths: Writer,
    definitions: Writer,
}

impl Document {
    pub fn new(info: &Value) -> Self {
        let mut out = Writer::default();
        out.bytes(1, b"2.0");
        out.message(2, |w| {
            w.text(1, &info["title"]);
            w.text(2, &info["version"]);
        });
        Self { out, paths: Writer::default(), definitions: Writer::default() }
    }

    pub fn path(&mut self, path: &str, item: &Value) {
        self.paths.message(2, |w| {
            w.bytes(1, path.as_bytes());
            w.message(2, |w| path_item(item, w));
        });
    }

    pub fn definition(&mut self, name: &str, definition: &Value) {
        self.definitions.message(1, |w| {
            w.bytes(1, name.as_bytes());
            w.message(2, |w| schema(definition, w));
        });
    }

    pub fn finish(mut self) -> Vec<u8> {
        self.out.bytes(8, &self.paths.bytes);
        self.out.bytes(9, &self.definitions.bytes);
        self.out.message(12, |w| {
            w.message(1, |w| {
                w.bytes(1, b"BearerToken");
                w.bytes(2, b"");
            });
        });
        self.out.message(13, |w| {
            w.message(1, |w| {
                w.bytes(1, b"BearerToken");
                w.message(2, |w| {
                    w.message(2, |w| {
                        w.bytes(1, b"apiKey");
                        w.bytes(2, b"authorization");
                        w.bytes(3, b"header");
                        w.bytes(4, b"Bearer Token authentication");
                    });
                });
            });
        });
        self.out.bytes
    }
}

impl Writer {
    pub(super) fn message(&mut self, number: u32, write: impl FnOnce(&mut Writer)) {
        let mut inner = Writer::default();
        write(&mut inner);
        self.bytes(number, &inner.bytes);
    }

    pub(super) fn text(&mut self, number: u32, value: &Value) {
        if let Some(text) = value.as_str() {
            self.bytes(number, text.as_bytes());
        }
    }

    pub(super) fn texts(&mut self, number: u32, value: &Value) {
        value.as_array().into_iter().flatten().for_each(|v| self.text(number, v));
    }

    pub(super) fn flag(&mut self, number: u32, value: &Value) {
        if value.as_bool() == Some(true) {
            self.int(number, 1);
        }
    }

    pub(super) fn any(&mut self, number: u32, value: &Value) {
        self.message(number, |w| w.bytes(2, format!("{value}\n").as_bytes()));
    }

    pub(super) fn extensions(&mut self, number: u32, value: &Value) {
        for (name, value) in value.as_object().into_iter().flatten().filter(|(k, _)| k.starts_with("x-")) {
            self.message(number, |w| {
                w.bytes(1, name.as_bytes());
                w.any(2, value);
            });
        }
    }
}

fn path_item(item: &Value, out: &mut Writer) {
    for (number, method) in (2..).zip(["get", "put", "post", "delete", "options", "head", "patch"]) {
        if let Some(value) = item.get(method) {
            out.message(number, |w| operation(value, w));
        }
    }
    parameters(9, &item["parameters"], out);
}

fn operation(value: &Value, out: &mut Writer) {
    out.texts(1, &value["tags"]);
    out.text(5, &value["operationId"]);
    out.texts(6, &value["produces"]);
    out.texts(7, &value["consumes"]);
    parameters(8, &value["parameters"], out);
    out.message(9, |w| {
        for (code, response) in value["responses"].as_object().into_iter().flatten() {
            w.message(1, |w| {
                w.bytes(1, code.as_bytes());
                w.message(2, |w| {
                    w.message(1, |w| {
                        w.text(1, &response["description"]);
                        if let Some(answer) = response.get("schema") {
                            w.message(2, |w| w.message(1, |w| schema(answer, w)));
                        }
                    });
                });
            });
        }
    });
    out.texts(10, &value["schemes"]);
    out.extensions(13, value);
}

fn parameters(number: u32, list: &Value, out: &mut Writer) {
    for value in list.as_array().into_iter().flatten() {
        out.message(number, |w| w.message(1, |w| parameter(value, w)));
    }
}

fn parameter(value: &Value, out: &mut Writer) {
    if value["in"] == "body" {
        out.message(1, |w| {
            w.text(2, &value["name"]);
            w.text(3, &value["in"]);
            w.flag(4, &value["required"]);
            w.message(5, |w| schema(&value["schema"], w));
        });
        return;
    }
    let path = value["in"] == "path";
    let (place, ty, unique) = if path { (4, 5, 19) } else { (3, 6, 20) };
    out.message(2, |w| {
        w.message(place, |w| {
            w.flag(1, &value["required"]);
            w.text(2, &value["in"]);
            w.text(4, &value["name"]);
            w.text(ty, &value["type"]);
            w.flag(unique, &value["uniqueItems"]);
        });
    });
}

fn schema(value: &Value, out: &mut Writer) {
    out.text(1, &value["$ref"]);
    out.text(2, &value["format"]);
    out.text(4, &value["description"]);
    if let Some(default) = value.get("default") {
        out.any(5, default);
    }
    out.texts(19, &value["required"]);
    if let Some(inner) = value.get("additionalProperties") {
        out.message(21, |w| match inner.as_bool() {
            Some(allowed) => w.int(2, allowed.into()),
            None => w.message(1, |w| schema(inner, w)),
        });
    }
    if value["type"].is_string() {
        out.message(22, |w| w.text(1, &value["type"]));
    }
    if let Some(items) = value.get("items") {
        out.message(23, |w| w.message(1, |w| schema(items, w)));
    }
    if let Some(properties) = value["properties"].as_object() {
        out.message(25, |w| {
            for (name, property) in properties {
                w.message(1, |w| {
                    w.bytes(1, name.as_bytes());
                    w.message(2, |w| schema(property, w));
                });
            }
        });
    }
    out.extensions(31, value);
}
