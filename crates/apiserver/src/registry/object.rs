//! One object as the cache holds it: its JSON once, in the form of a watch frame, so that a get, a list item and an event
//! are slices of the same bytes.
//!
//! The stored form puts `kind`, `apiVersion` and `metadata` first and leaves `metadata.resourceVersion` out, because it is
//! not known before the commit. It is spliced in as the first member of `metadata` when the object is read.

use std::sync::{Arc, OnceLock};

use bytes::{BufMut, Bytes, BytesMut};
use parking_lot::Mutex;
use schema::Str;
use serde::Deserialize;
use serde_json::{Map, Value};
use tokio::sync::OnceCell;

use crate::Status;

/// What happened to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Added,
    Modified,
    Deleted,
}

impl Change {
    fn head(self) -> &'static [u8] {
        match self {
            Self::Added => b"{\"type\":\"ADDED\",\"object\":",
            Self::Modified => b"{\"type\":\"MODIFIED\",\"object\":",
            Self::Deleted => b"{\"type\":\"DELETED\",\"object\":",
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
        }
    }
}

const METADATA: &[u8] = b"\"metadata\":{";
const VERSION: &[u8] = b"\"resourceVersion\":\"";

/// What selectors look at, each once somebody has selected by it.
#[derive(Debug, Default)]
struct Selectable {
    labels: OnceLock<Vec<(String, String)>>,
    fields: OnceLock<Vec<(Str, String)>>,
}

/// The part of an object's metadata that selectors look at.
#[derive(Deserialize)]
struct Labelled {
    #[serde(default)]
    labels: Option<Map<String, Value>>,
}

/// The object as a version shows it, once somebody has asked; `None` if as it is stored.
pub type View = Arc<OnceCell<Option<Arc<Object>>>>;

/// Versions of one object that are remembered; more than this many rows are rarely read at once.
const VIEWS: usize = 4;

/// An object at a revision.
#[derive(Debug)]
pub struct Object {
    /// `namespace/name`, or `name` of a cluster-wide object.
    pub key: Arc<str>,
    pub revision: u64,
    change: Change,
    frame: Bytes,
    /// Where `"metadata":{` begins in the JSON.
    metadata: u32,
    selectable: OnceLock<Box<Selectable>>,
    views: OnceLock<Box<Mutex<Vec<(u64, View)>>>>,
}

impl Object {
    /// From the stored form.
    pub fn from_stored(key: Arc<str>, revision: u64, stored: &[u8], change: Change) -> Result<Self, Status> {
        let metadata =
            find(stored, METADATA).ok_or_else(|| Status::internal("a stored object has no metadata"))?;
        Ok(Self::splice(key, revision, stored, metadata, metadata + METADATA.len(), change))
    }

    /// `stored[..metadata + len]`, then the version, then `stored[rest..]`.
    fn splice(
        key: Arc<str>,
        revision: u64,
        stored: &[u8],
        metadata: usize,
        rest: usize,
        change: Change,
    ) -> Self {
        let head = change.head();
        let mut frame = BytesMut::with_capacity(head.len() + stored.len() + 48);
        frame.put_slice(head);
        frame.put_slice(&stored[..metadata + METADATA.len()]);
        // Revision 0 is an object that was not written.
        if revision > 0 {
            frame.put_slice(VERSION);
            let mut digits = [0u8; 20];
            frame.put_slice(decimal(revision, &mut digits));
            frame.put_slice(if stored.get(rest) == Some(&b'}') { b"\"" } else { b"\"," });
        }
        frame.put_slice(&stored[rest..]);
        frame.put_slice(b"}\n");
        let metadata = u32::try_from(metadata).unwrap_or(0);
        let (selectable, views) = (OnceLock::new(), OnceLock::new());
        Self { key, revision, change, frame: frame.freeze(), metadata, selectable, views }
    }

    /// The same content at another revision: what a DELETED event carries.
    pub fn at(&self, revision: u64, change: Change) -> Self {
        let json = self.json();
        let start = self.metadata as usize + METADATA.len();
        let mut rest = start;
        if json[start..].starts_with(VERSION) {
            rest += VERSION.len();
            while json.get(rest).is_some_and(u8::is_ascii_digit) {
                rest += 1;
            }
            rest += 1;
            if json.get(rest) == Some(&b',') {
                rest += 1;
            }
        }
        Self::splice(self.key.clone(), revision, &json, self.metadata as usize, rest, change)
    }

    /// The object as JSON.
    pub fn json(&self) -> Bytes {
        self.frame.slice(self.change.head().len()..self.frame.len() - 2)
    }

    /// A watch frame of this object.
    pub fn frame(&self, change: Change) -> Bytes {
        if change == self.change {
            return self.frame.clone();
        }
        let json = self.json();
        let mut frame = BytesMut::with_capacity(json.len() + 32);
        frame.put_slice(change.head());
        frame.put_slice(&json);
        frame.put_slice(b"}\n");
        frame.freeze()
    }

    /// The JSON behind the opening brace, without kind and apiVersion: how items stand in a list of a built-in kind.
    pub fn item(&self) -> &[u8] {
        &self.frame[self.change.head().len() + self.metadata as usize..self.frame.len() - 2]
    }

    /// The object as a tree.
    pub fn value(&self) -> Result<Value, Status> {
        serde_json::from_slice(&self.json()).map_err(|e| Status::internal(format!("stored object: {e}")))
    }

    /// The labels. They are read without the rest of the object.
    pub fn labels(&self) -> &[(String, String)] {
        self.selectable.get_or_init(Box::default).labels.get_or_init(|| {
            let metadata = &self.json()[self.metadata as usize + METADATA.len() - 1..];
            // What follows the metadata is not looked at.
            let mut reader = serde_json::Deserializer::from_slice(metadata);
            let labels = Labelled::deserialize(&mut reader).ok().and_then(|read| read.labels);
            let text = |value: Value| match value {
                Value::String(text) => text,
                _ => String::new(),
            };
            labels.into_iter().flatten().map(|(key, value)| (key, text(value))).collect()
        })
    }

    /// The label of a key.
    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels().iter().find(|(known, _)| known == key).map(|(_, value)| value.as_str())
    }

    /// The fields that the kind can be selected by, beside name and namespace.
    pub fn fields(&self, behavior: &api::Behavior) -> &[(Str, String)] {
        self.selectable.get_or_init(Box::default).fields.get_or_init(|| {
            let value = self.value().unwrap_or_default();
            behavior.fields(&value)
        })
    }

    /// What a row of this number shows of the object.
    pub fn view(&self, row: u64) -> View {
        let mut views = self.views.get_or_init(Box::default).lock();
        if let Some((_, view)) = views.iter().find(|(of, _)| *of == row) {
            return view.clone();
        }
        if views.len() >= VIEWS {
            views.remove(0);
        }
        let view = View::default();
        views.push((row, view.clone()));
        view
    }

    /// The same object with other content, in its stored form.
    pub fn with(&self, stored: &[u8]) -> Result<Self, Status> {
        Self::from_stored(self.key.clone(), self.revision, stored, self.change)
    }

    /// The whole JSON behind the opening brace.
    pub fn whole(&self) -> &[u8] {
        &self.frame[self.change.head().len() + 1..self.frame.len() - 2]
    }

    /// Bytes held by this object.
    pub fn size(&self) -> usize {
        self.frame.len() + self.key.len() + 96
    }

    pub fn namespace(&self) -> &str {
        self.key.split_once('/').map_or("", |(namespace, _)| namespace)
    }

    pub fn name(&self) -> &str {
        self.key.split_once('/').map_or(&self.key, |(_, name)| name)
    }
}

/// The stored form of an object.
pub fn encode(value: &Value) -> Result<Bytes, Status> {
    let internal = |e: serde_json::Error| Status::internal(e);
    let map = value.as_object().ok_or_else(|| Status::internal("the object is not a JSON object"))?;
    let mut out = Vec::with_capacity(1024);
    out.extend_from_slice(b"{\"kind\":");
    serde_json::to_writer(&mut out, map.get("kind").unwrap_or(&Value::Null)).map_err(internal)?;
    out.extend_from_slice(b",\"apiVersion\":");
    serde_json::to_writer(&mut out, map.get("apiVersion").unwrap_or(&Value::Null)).map_err(internal)?;
    out.extend_from_slice(b",\"metadata\":{");
    let empty = Map::new();
    let metadata = map.get("metadata").and_then(Value::as_object).unwrap_or(&empty);
    members(&mut out, metadata, |key| key != "resourceVersion", true).map_err(internal)?;
    out.push(b'}');
    members(&mut out, map, |key| !matches!(key, "kind" | "apiVersion" | "metadata"), false)
        .map_err(internal)?;
    out.push(b'}');
    Ok(out.into())
}

fn members(
    out: &mut Vec<u8>,
    map: &Map<String, Value>,
    keep: impl Fn(&str) -> bool,
    mut first: bool,
) -> Result<(), serde_json::Error> {
    for (key, value) in map.iter().filter(|(key, _)| keep(key)) {
        if !std::mem::take(&mut first) {
            out.push(b',');
        }
        serde_json::to_writer(&mut *out, key)?;
        out.push(b':');
        match key.as_str() {
            "managedFields" => out.extend_from_slice(schema::managed::entries_text(value).as_bytes()),
            _ => serde_json::to_writer(&mut *out, value)?,
        }
    }
    Ok(())
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|w| w == needle)
}

fn decimal(mut number: u64, digits: &mut [u8; 20]) -> &[u8] {
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            return &digits[at..];
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(value: &Value, revision: u64) -> Object {
        let stored = encode(value).expect("an object");
        Object::from_stored("n/a".into(), revision, &stored, Change::Added).expect("metadata")
    }

    #[test]
    fn the_version_is_spliced_into_the_metadata() {
        let value = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"metadata": "{"},
            "metadata": {"name": "a", "resourceVersion": "3"}});
        let mut want = value.clone();
        want["metadata"]["resourceVersion"] = "712".into();
        assert_eq!(object(&value, 712).value().expect("json"), want);
        let deleted = object(&value, 712).at(9, Change::Deleted);
        want["metadata"]["resourceVersion"] = "9".into();
        assert_eq!(deleted.value().expect("json"), want);
        let frame: Value = serde_json::from_slice(&deleted.frame(Change::Deleted)).expect("a frame");
        assert_eq!(frame, json!({"type": "DELETED", "object": want}));
    }

    #[test]
    fn labels_are_read_without_the_rest() {
        let check = |metadata: Value, expect: &[(&str, &str)]| {
            let value =
                json!({"kind": "K", "metadata": metadata, "spec": {"metadata": {"labels": {"x": "y"}}}});
            let object = object(&value, 7);
            let labels: Vec<_> = object.labels().iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
            assert_eq!(labels, expect, "{value}");
        };
        check(json!({"name": "a", "managedFields": [{"f": {"labels": {}}}]}), &[]);
        check(json!({"labels": null}), &[]);
        check(json!({"labels": {"a": "b", "c\n": ""}, "name": "a"}), &[("a", "b"), ("c\n", "")]);
        check(json!({}), &[]);
    }

    #[test]
    fn an_item_has_no_kind() {
        let value = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {}});
        let item = [b"{".as_slice(), object(&value, 5).item()].concat();
        let item: Value = serde_json::from_slice(&item).expect("json");
        assert_eq!(item, json!({"metadata": {"resourceVersion": "5"}}));
    }
}
