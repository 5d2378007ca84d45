//! OpenAPI documents from the type table and a list of routes: v2 as JSON and in gnostic's protobuf form, v3 by group and
//! version. Documents are written piece by piece, so that none is ever held as a tree.

mod definitions;
mod described;
mod gnostic;
mod gnostic3;
mod paths;

use serde_json::{Value, json};

use crate::types::{Kind, Str, TypeId, Types};

/// The media type of [`v2_protobuf`] in answers. Clients ask for it with an at sign before `v1.0`, which no Content-Type may
/// hold.
pub const V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
/// The same of v3 documents.
pub const V3_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v3.v1.0+protobuf";

/// Which of the two dialects is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dialect {
    V2,
    V3,
}

/// A resource as the documents show it.
#[derive(Clone, Debug)]
pub struct Route<'a> {
    /// The table that the type numbers belong to.
    pub types: &'a Types,
    pub group: &'a str,
    pub version: &'a str,
    pub plural: &'a str,
    pub namespaced: bool,
    pub verbs: &'a [Str],
    pub kind: Kind,
    pub type_id: TypeId,
    pub list_type_id: Option<TypeId>,
    pub subresources: Vec<SubRoute<'a>>,
    /// The kind was defined while the server runs: no protobuf, no strategic merge patch.
    pub custom: bool,
}

/// A subresource as the documents show it.
#[derive(Clone, Debug)]
pub struct SubRoute<'a> {
    pub name: &'a str,
    pub verbs: &'a [Str],
    pub kind: Kind,
    /// `None` for connections (exec, proxy and the like).
    pub type_id: Option<TypeId>,
}

impl Route<'_> {
    /// `api/v1` or `apis/apps/v1`: the key of the route's v3 document.
    pub fn document(&self) -> String {
        document(self.group, self.version)
    }
}

/// `api/v1` or `apis/apps/v1`.
pub fn document(group: &str, version: &str) -> String {
    match group {
        "" => format!("api/{version}"),
        group => format!("apis/{group}/{version}"),
    }
}

fn info(version: &str) -> Value {
    json!({"title": "Kubernetes", "version": version})
}

fn security() -> Value {
    json!({"BearerToken": {
        "type": "apiKey", "name": "authorization", "in": "header", "description": "Bearer Token authentication",
    }})
}

/// Writes `"name": value` members of an object that is open in `out`.
struct Members<'o> {
    out: &'o mut String,
    first: bool,
}

impl<'o> Members<'o> {
    fn open(out: &'o mut String) -> Self {
        out.push('{');
        Self { out, first: true }
    }

    fn key(&mut self, name: &str) -> &mut String {
        if !std::mem::take(&mut self.first) {
            self.out.push(',');
        }
        self.out.push_str(&Value::from(name).to_string());
        self.out.push(':');
        self.out
    }

    fn member(&mut self, name: &str, value: &Value) {
        self.key(name).push_str(&value.to_string());
    }

    fn close(self) {
        self.out.push('}');
    }
}

/// The whole v2 document as JSON.
pub fn v2(routes: &[Route<'_>], version: &str) -> String {
    let mut out = String::new();
    let mut top = Members::open(&mut out);
    top.member("swagger", &"2.0".into());
    top.member("info", &info(version));
    let mut paths = Members::open(top.key("paths"));
    paths::each(routes, Dialect::V2, &mut |path, item| paths.member(path, &item));
    paths.close();
    let mut types = Members::open(top.key("definitions"));
    definitions::each(routes, Dialect::V2, &mut |name, schema| types.member(name, &schema));
    types.close();
    top.member("securityDefinitions", &security());
    top.member("security", &json!([{"BearerToken": []}]));
    top.close();
    out
}

/// The whole v2 document in the protobuf form that older clients ask for.
pub fn v2_protobuf(routes: &[Route<'_>], version: &str) -> Vec<u8> {
    let mut document = gnostic::Document::new(&info(version));
    paths::each(routes, Dialect::V2, &mut |path, item| document.path(path, &item));
    definitions::each(routes, Dialect::V2, &mut |name, schema| document.definition(name, &schema));
    document.finish()
}

/// The v3 document of one group and version, which all of `routes` belong to.
pub fn v3(routes: &[Route<'_>], version: &str) -> String {
    let mut out = String::new();
    let mut top = Members::open(&mut out);
    top.member("openapi", &"3.0.0".into());
    top.member("info", &info(version));
    let mut paths = Members::open(top.key("paths"));
    paths::each(routes, Dialect::V3, &mut |path, item| paths.member(path, &item));
    paths.close();
    let mut components = Members::open(top.key("components"));
    let mut types = Members::open(components.key("schemas"));
    definitions::each(routes, Dialect::V3, &mut |name, schema| types.member(name, &schema));
    types.close();
    components.member("securitySchemes", &security());
    components.close();
    top.close();
    out
}

/// A v3 document in protobuf, out of its JSON; none if that is no JSON.
pub fn v3_protobuf(json: &[u8]) -> Option<Vec<u8>> {
    Some(gnostic3::document(&serde_json::from_slice(json).ok()?))
}

/// The index at `/openapi/v3`: each document's address with the hash of its text.
pub fn v3_index<'a>(documents: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let mut out = String::new();
    let mut top = Members::open(&mut out);
    let mut paths = Members::open(top.key("paths"));
    for (document, hash) in documents {
        let address = format!("/openapi/v3/{document}?hash={hash}");
        paths.member(document, &json!({"serverRelativeURL": address}));
    }
    paths.close();
    top.close();
    out
}

#[cfg(test)]
mod tests;
