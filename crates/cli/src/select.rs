//! From what was typed to objects: `pods`, `pod a b`, `deploy/web`, `-f file`, `-l app=web`.

use http::Request;
use serde_json::Value;

use crate::Error;
use crate::args::Selection;
use crate::connect::Connection;
use crate::discovery::{Discovery, Resource};
use crate::error::NoMatch;
use crate::manifest;

/// One resource in one namespace, by names or all that the selectors choose.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub resource: Resource,
    /// None for all namespaces and for resources without.
    pub namespace: Option<String>,
    /// Empty: the collection.
    pub names: Vec<String>,
}

impl Target {
    /// The path of one object.
    pub fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.resource.path(self.namespace.as_deref()))
    }

    /// The path and query of the collection.
    pub fn collection(&self, selection: &Selection, more: &[(&str, &str)]) -> String {
        let mut query = url::Query::default();
        query.add("labelSelector", selection.selector.as_deref());
        query.add("fieldSelector", selection.field_selector.as_deref());
        for (name, value) in more {
            query.add(name, Some(value));
        }
        format!("{}{}", self.resource.path(self.namespace.as_deref()), query.finish())
    }
}

/// What the words and files of a selection mean.
pub(crate) fn targets(
    connection: &Connection,
    discovery: &Discovery,
    selection: &Selection,
) -> Result<Vec<Target>, Error> {
    let namespace = |resource: &Resource| {
        (resource.namespaced && !selection.all_namespaces).then(|| connection.namespace.clone())
    };
    let mut targets = Vec::new();
    for object in manifests(selection)? {
        let resource = resource_of(discovery, &object)?.clone();
        let own = Some(object.text("/metadata/namespace")).filter(|own| !own.is_empty()).map(str::to_owned);
        let namespace = resource.namespaced.then(|| own.unwrap_or_else(|| connection.namespace.clone()));
        targets.push(Target { resource, namespace, names: vec![object.name().to_owned()] });
    }
    let mut words = selection.targets.iter();
    let Some(first) = selection.targets.first() else {
        return if targets.is_empty() {
            Err(Error::Usage("name the resources: TYPE, TYPE NAME, TYPE/NAME, or -f FILE".into()))
        } else {
            Ok(targets)
        };
    };
    if first.contains('/') {
        for word in words {
            let Some((kind, name)) = word.split_once('/') else {
                return Err(Error::Usage("there is no need to specify a resource type as a separate argument when passing arguments in resource/name form".into()));
            };
            let resource = discovery.find(kind)?.clone();
            targets.push(Target { namespace: namespace(&resource), resource, names: vec![name.to_owned()] });
        }
        return Ok(targets);
    }
    words.next();
    let names: Vec<String> = words.cloned().collect();
    if !names.is_empty() && selection.all_namespaces {
        return Err(Error::Usage("a resource cannot be retrieved by name across all namespaces".into()));
    }
    for word in first.split(',') {
        let category = discovery.category(word);
        let resources = if category.is_empty() { vec![discovery.find(word)?] } else { category };
        for resource in resources {
            let target =
                Target { resource: resource.clone(), namespace: namespace(resource), names: names.clone() };
            targets.push(target);
        }
    }
    Ok(targets)
}

fn manifests(selection: &Selection) -> Result<Vec<manifest::Object>, Error> {
    if selection.filename.is_empty() {
        return Ok(Vec::new());
    }
    manifest::read(&selection.filename, selection.recursive)
}

/// The resource that serves an object of a manifest.
pub(crate) fn resource_of<'a>(
    discovery: &'a Discovery,
    object: &manifest::Object,
) -> Result<&'a Resource, Error> {
    let (version, kind) = (object.text("/apiVersion"), object.text("/kind"));
    discovery.by_kind(version, kind).ok_or_else(|| {
        Error::NoMatch(Box::new(NoMatch {
            name: object.name().to_owned(),
            namespace: object.text("/metadata/namespace").to_owned(),
            path: object.path.clone(),
            kind: kind.to_owned(),
            version: version.to_owned(),
            hint: discovery.hint(kind),
        }))
    })
}

/// Reads one document from the server.
pub(crate) async fn fetch(connection: &Connection, path: &str, accept: &str) -> Result<Value, Error> {
    let request = Request::get(path).header("Accept", accept).body(Vec::new());
    let request = request.map_err(|error| Error::Usage(format!("{path}: {error}")))?;
    Ok(connection.client.request(request).await?)
}

/// Query strings.
pub(crate) mod url {
    /// A query under construction.
    #[derive(Default)]
    pub struct Query(String);

    impl Query {
        /// Adds a parameter unless it has no value.
        pub fn add(&mut self, name: &str, value: Option<&str>) {
            let Some(value) = value else { return };
            self.0.push(if self.0.is_empty() { '?' } else { '&' });
            self.0.push_str(name);
            self.0.push('=');
            for byte in value.bytes() {
                match byte {
                    b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                        self.0.push(char::from(byte));
                    }
                    _ => self.0.push_str(&format!("%{byte:02X}")),
                }
            }
        }

        /// The query with its question mark, or nothing.
        pub fn finish(self) -> String {
            self.0
        }
    }
}
