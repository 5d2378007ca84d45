//! The paths of the documents: which verbs a resource has, with which parameters.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::definitions::{meta, reference};
use super::{Dialect, Route};
use crate::types::{Kind, Str, TypeId};

const JSON_TYPES: [&str; 3] = ["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];
const WATCH_TYPES: [&str; 2] =
    ["application/json;stream=watch", "application/vnd.kubernetes.protobuf;stream=watch"];
const PATCH_TYPES: [&str; 4] = [
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
];
const CUSTOM_PATCH_TYPES: [&str; 3] =
    ["application/json-patch+json", "application/merge-patch+json", "application/apply-patch+yaml"];
const LIST: [(&str, &str); 11] = [
    ("allowWatchBookmarks", "boolean"),
    ("continue", "string"),
    ("fieldSelector", "string"),
    ("labelSelector", "string"),
    ("limit", "integer"),
    ("pretty", "string"),
    ("resourceVersion", "string"),
    ("resourceVersionMatch", "string"),
    ("sendInitialEvents", "boolean"),
    ("timeoutSeconds", "integer"),
    ("watch", "boolean"),
];
const WRITE: [(&str, &str); 3] =
    [("dryRun", "string"), ("fieldManager", "string"), ("fieldValidation", "string")];
const DELETE: [(&str, &str); 5] = [
    ("dryRun", "string"),
    ("gracePeriodSeconds", "integer"),
    ("ignoreStoreReadErrorWithClusterBreakingPotential", "boolean"),
    ("orphanDependents", "boolean"),
    ("propagationPolicy", "string"),
];
const FORCE: (&str, &str) = ("force", "boolean");

/// Calls `emit` with every path and its item.
pub(super) fn each(routes: &[Route<'_>], dialect: Dialect, emit: &mut dyn FnMut(&str, Value)) {
    let mut seen = BTreeSet::new();
    for route in routes {
        let paths = Paths { route, dialect };
        if seen.insert(route.document())
            && let Some(item) = paths.resources()
        {
            emit(&format!("/{}/", route.document()), item);
        }
        paths.each(emit);
    }
}

struct Paths<'r> {
    route: &'r Route<'r>,
    dialect: Dialect,
}

/// What an operation is about.
struct Operation<'o> {
    /// The verb as operation ids name it (`read`, `list`, ...).
    name: &'o str,
    action: &'o str,
    suffix: &'o str,
    kind: &'o Kind,
    query: Vec<(&'o str, &'o str)>,
    /// The type of the body, by name, and its media types.
    body: Option<(String, &'o [&'o str])>,
    answer: Option<TypeId>,
    codes: &'o [&'o str],
    streams: bool,
}

fn has(verbs: &[Str], verb: &str) -> bool {
    verbs.iter().any(|v| v == verb)
}

impl Paths<'_> {
    fn each(&self, emit: &mut dyn FnMut(&str, Value)) {
        let route = self.route;
        let root = format!("/{}", route.document());
        let plain = format!("{root}/{}", route.plural);
        let collection = match route.namespaced {
            true => format!("{root}/namespaces/{{namespace}}/{}", route.plural),
            false => plain.clone(),
        };
        let item = self.collection();
        if !item.is_empty() {
            emit(&collection, self.item(item, false));
        }
        if route.namespaced && has(route.verbs, "list") {
            let mut item = Map::new();
            let list = self.operation(self.list("ForAllNamespaces"));
            item.insert("get".to_owned(), list);
            emit(&plain, Value::Object(item));
        }
        let one = format!("{collection}/{{name}}");
        let item = self.object();
        if !item.is_empty() {
            emit(&one, self.item(item, true));
        }
        for (index, sub) in route.subresources.iter().enumerate() {
            let item = self.subresource(index, "");
            if !item.is_empty() {
                emit(&format!("{one}/{}", sub.name), self.item(item, true));
            }
            // What takes every method passes a path on.
            if sub.type_id.is_none() && has(sub.verbs, "patch") {
                let mut item = self.item(self.subresource(index, "WithPath"), true);
                if let Some(parameters) = item["parameters"].as_array_mut() {
                    let mut path = self.parameter("path", "string", "path");
                    path["required"] = true.into();
                    parameters.push(path);
                }
                emit(&format!("{one}/{}/{{path}}", sub.name), item);
            }
        }
        if has(route.verbs, "watch") {
            self.watches(&root, emit);
        }
    }

    /// The old paths of watches, which clients made from these documents may still use.
    fn watches(&self, root: &str, emit: &mut dyn FnMut(&str, Value)) {
        let route = self.route;
        let plain = format!("{root}/watch/{}", route.plural);
        let collection = match route.namespaced {
            true => format!("{root}/watch/namespaces/{{namespace}}/{}", route.plural),
            false => plain.clone(),
        };
        let mut add = |path: &str, suffix: &str, action: &str, named: bool, spaced: bool| {
            let watch = Operation {
                name: "watch",
                action,
                suffix,
                kind: &route.kind,
                query: Vec::new(),
                body: None,
                answer: route.types.by_name(&meta("WatchEvent")),
                codes: &["200"],
                streams: true,
            };
            let mut item = Map::new();
            item.insert("get".to_owned(), self.operation(watch));
            let mut item = self.item(item, named);
            if let Some(parameters) = item["parameters"].as_array_mut() {
                // The namespace is only a part of some of the paths.
                parameters.retain(|p| spaced || p["name"] != "namespace");
                let more = LIST.iter().filter(|(name, _)| *name != "pretty");
                parameters.extend(more.map(|(name, ty)| self.parameter(name, ty, "query")));
                parameters.sort_by(|a, b| a["name"].as_str().cmp(&b["name"].as_str()));
            }
            emit(path, item);
        };
        let spaced = route.namespaced;
        if has(route.verbs, "list") {
            add(&collection, "List", "watchlist", false, spaced);
        }
        if has(route.verbs, "get") {
            add(&format!("{collection}/{{name}}"), "", "watch", true, spaced);
        }
        if spaced && has(route.verbs, "list") {
            add(&plain, "ListForAllNamespaces", "watchlist", false, false);
        }
    }

    /// The list of a group version's resources.
    fn resources(&self) -> Option<Value> {
        let list = meta("APIResourceList");
        self.route.types.by_name(&list)?;
        let answer = reference(&list, self.dialect);
        let response = match self.dialect {
            Dialect::V2 => json!({"description": "OK", "schema": answer}),
            Dialect::V3 => json!({"description": "OK", "content": content(&JSON_TYPES, &answer)}),
        };
        let mut get = json!({
            "operationId": format!("get{}APIResources", self.group(true)),
            "responses": {"200": response, "401": {"description": "Unauthorized"}},
            "tags": [self.tag()],
        });
        if self.dialect == Dialect::V2 {
            get["consumes"] = json!(JSON_TYPES);
            get["produces"] = json!(JSON_TYPES);
            get["schemes"] = json!(["https"]);
        }
        Some(json!({"get": get}))
    }

    /// The group and version in the names of operations: `RbacAuthorizationV1`; of tags: `rbacAuthorization`.
    fn group(&self, whole: bool) -> String {
        let group = match self.route.group.strip_suffix(".k8s.io").unwrap_or(self.route.group) {
            "" => "core",
            group => group,
        };
        let mut words = group.split(|c: char| !c.is_ascii_alphanumeric());
        let first = words.next().unwrap_or_default();
        let rest: String = words.map(capital).collect();
        if whole {
            format!("{}{rest}{}", capital(first), capital(self.route.version))
        } else {
            format!("{first}{rest}")
        }
    }

    fn tag(&self) -> String {
        format!("{}_{}", self.group(false), self.route.version)
    }

    fn list(&self, suffix: &'static str) -> Operation<'_> {
        Operation {
            name: "list",
            action: "list",
            suffix,
            kind: &self.route.kind,
            query: LIST.to_vec(),
            body: None,
            answer: self.route.list_type_id,
            codes: &["200"],
            streams: true,
        }
    }

    fn type_name(&self, id: TypeId) -> String {
        self.route.types.get(id).name.to_string()
    }

    fn collection(&self) -> Map<String, Value> {
        let route = self.route;
        let mut item = Map::new();
        if has(route.verbs, "list") {
            item.insert("get".to_owned(), self.operation(self.list("")));
        }
        if has(route.verbs, "create") {
            let create =
                self.write("create", "post", "", &route.kind, Some(route.type_id), &["200", "201", "202"]);
            item.insert("post".to_owned(), self.operation(create));
        }
        if has(route.verbs, "deletecollection") {
            let mut query =
                LIST.iter().filter(|(name, _)| !name.contains("atch")).copied().collect::<Vec<_>>();
            query.extend(DELETE);
            let delete = Operation {
                name: "deleteCollection",
                action: "deletecollection",
                suffix: "",
                kind: &route.kind,
                query,
                body: Some((meta("DeleteOptions"), &["*/*"])),
                answer: route.types.by_name(&meta("Status")),
                codes: &["200"],
                streams: false,
            };
            item.insert("delete".to_owned(), self.operation(delete));
        }
        item
    }

    fn object(&self) -> Map<String, Value> {
        let route = self.route;
        let mut item = Map::new();
        self.read_and_write(&mut item, route.verbs, "", &route.kind, Some(route.type_id));
        if has(route.verbs, "delete") {
            let delete = Operation {
                name: "delete",
                action: "delete",
                suffix: "",
                kind: &route.kind,
                query: DELETE.to_vec(),
                body: Some((meta("DeleteOptions"), &["*/*"])),
                answer: route.types.by_name(&meta("Status")),
                codes: &["200", "202"],
                streams: false,
            };
            item.insert("delete".to_owned(), self.operation(delete));
        }
        item
    }

    fn subresource(&self, index: usize, more: &str) -> Map<String, Value> {
        let sub = &self.route.subresources[index];
        let suffix: String = sub.name.split('/').map(capital).collect();
        let suffix = format!("{suffix}{more}");
        let mut item = Map::new();
        if sub.type_id.is_some() {
            self.read_and_write(&mut item, sub.verbs, &suffix, &sub.kind, sub.type_id);
            if has(sub.verbs, "create") {
                let create =
                    self.write("create", "post", &suffix, &sub.kind, sub.type_id, &["200", "201", "202"]);
                item.insert("post".to_owned(), self.operation(create));
            }
            return item;
        }
        // Methods that are no verbs belong to what takes every method.
        for (verb, method, name) in [
            ("get", "get", "connectGet"),
            ("create", "post", "connectPost"),
            ("update", "put", "connectPut"),
            ("delete", "delete", "connectDelete"),
            ("patch", "patch", "connectPatch"),
            ("patch", "options", "connectOptions"),
            ("patch", "head", "connectHead"),
        ] {
            if has(sub.verbs, verb) {
                let connect = Operation {
                    name,
                    action: "connect",
                    suffix: &suffix,
                    kind: &sub.kind,
                    query: Vec::new(),
                    body: None,
                    answer: None,
                    codes: &["200"],
                    streams: false,
                };
                item.insert(method.to_owned(), self.operation(connect));
            }
        }
        item
    }

    fn read_and_write(
        &self,
        item: &mut Map<String, Value>,
        verbs: &[Str],
        suffix: &str,
        kind: &Kind,
        ty: Option<TypeId>,
    ) {
        if has(verbs, "get") {
            let mut read = self.write("read", "get", suffix, kind, ty, &["200"]);
            read.body = None;
            read.query.clear();
            item.insert("get".to_owned(), self.operation(read));
        }
        if has(verbs, "update") {
            let replace = self.write("replace", "put", suffix, kind, ty, &["200", "201"]);
            item.insert("put".to_owned(), self.operation(replace));
        }
        if has(verbs, "patch") {
            let mut patch = self.write("patch", "patch", suffix, kind, ty, &["200", "201"]);
            let types: &[&str] = if self.route.custom { &CUSTOM_PATCH_TYPES } else { &PATCH_TYPES };
            patch.body = Some((meta("Patch"), types));
            patch.query.push(FORCE);
            item.insert("patch".to_owned(), self.operation(patch));
        }
    }

    fn write<'o>(
        &self,
        name: &'o str,
        action: &'o str,
        suffix: &'o str,
        kind: &'o Kind,
        ty: Option<TypeId>,
        codes: &'o [&'o str],
    ) -> Operation<'o> {
        Operation {
            name,
            action,
            suffix,
            kind,
            query: WRITE.to_vec(),
            body: ty.map(|id| (self.type_name(id), &["*/*"][..])),
            answer: ty,
            codes,
            streams: false,
        }
    }

    fn item(&self, mut item: Map<String, Value>, named: bool) -> Value {
        let mut parameters = Vec::new();
        for (name, on) in [("name", named), ("namespace", self.route.namespaced)] {
            if on {
                let mut parameter = self.parameter(name, "string", "path");
                parameter["required"] = true.into();
                parameters.push(parameter);
            }
        }
        parameters.push(self.parameter("pretty", "string", "query"));
        item.insert("parameters".to_owned(), parameters.into());
        Value::Object(item)
    }

    fn parameter(&self, name: &str, ty: &str, place: &str) -> Value {
        match self.dialect {
            Dialect::V2 => json!({"name": name, "in": place, "type": ty, "uniqueItems": true}),
            Dialect::V3 => json!({"name": name, "in": place, "schema": {"type": ty, "uniqueItems": true}}),
        }
    }

    fn operation(&self, operation: Operation<'_>) -> Value {
        let route = self.route;
        let group = self.group(true);
        let scope = if route.namespaced && !operation.suffix.ends_with("ForAllNamespaces") {
            "Namespaced"
        } else {
            ""
        };
        // `deleteCollection` and `connectGet` have the group in the middle.
        let split = operation.name.find(char::is_uppercase).unwrap_or(operation.name.len());
        let (verb, more) = operation.name.split_at(split);
        let id = format!("{verb}{group}{more}{scope}{}{}", route.kind.kind, operation.suffix);
        let kind = operation.kind;
        let mut out = json!({
            "operationId": id,
            "tags": [self.tag()],
            "x-kubernetes-action": operation.action,
            "x-kubernetes-group-version-kind": {"group": kind.group, "version": kind.version, "kind": kind.kind},
        });
        let mut parameters: Vec<Value> = operation
            .query
            .iter()
            .filter(|(name, _)| *name != "pretty" || operation.suffix == "ForAllNamespaces")
            .map(|(name, ty)| self.parameter(name, ty, "query"))
            .collect();
        let streams = WATCH_TYPES.iter().filter(|_| operation.streams);
        let plain = |media: &&str| !route.custom || !media.contains("protobuf");
        let answers: Vec<&str> = JSON_TYPES.iter().chain(streams).copied().filter(plain).collect();
        let answer = match operation.answer {
            Some(id) => reference(&self.type_name(id), self.dialect),
            None => json!({"type": "string"}),
        };
        let mut responses = Map::new();
        for code in operation.codes {
            let described = match *code {
                "201" => "Created",
                "202" => "Accepted",
                _ => "OK",
            };
            let response = match self.dialect {
                Dialect::V2 => json!({"description": described, "schema": answer}),
                Dialect::V3 => {
                    let kinds = if operation.answer.is_some() { answers.as_slice() } else { &["*/*"] };
                    json!({"description": described, "content": content(kinds, &answer)})
                }
            };
            responses.insert((*code).to_owned(), response);
        }
        responses.insert("401".to_owned(), json!({"description": "Unauthorized"}));
        out["responses"] = Value::Object(responses);
        if self.dialect == Dialect::V2 {
            out["consumes"] = json!(operation.body.as_ref().map_or(&["*/*"][..], |(_, types)| types));
            out["produces"] = if operation.answer.is_some() { json!(answers) } else { json!(["*/*"]) };
            out["schemes"] = json!(["https"]);
        }
        if let Some((body, media)) = operation.body {
            let schema = reference(&body, self.dialect);
            let required = !body.ends_with("DeleteOptions");
            match self.dialect {
                Dialect::V2 => {
                    let mut parameter = json!({"name": "body", "in": "body", "schema": schema});
                    if required {
                        parameter["required"] = true.into();
                    }
                    parameters.insert(0, parameter);
                }
                Dialect::V3 => {
                    out["requestBody"] = json!({"content": content(media, &schema)});
                    if required {
                        out["requestBody"]["required"] = true.into();
                    }
                }
            }
        }
        if !parameters.is_empty() {
            out["parameters"] = parameters.into();
        }
        out
    }
}

fn content(media: &[&str], schema: &Value) -> Value {
    media.iter().map(|m| ((*m).to_owned(), json!({"schema": schema}))).collect::<Map<_, _>>().into()
}

fn capital(word: &str) -> String {
    let mut chars = word.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}
