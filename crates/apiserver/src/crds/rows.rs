//! From a definition to rows of the registry.

use std::collections::HashMap;
use std::sync::Arc;

use api::custom::{Definition, DefinitionError, serve};
use serde_json::{Value, json};

use super::convert::Way;
use super::{Built, GROUP, RESOURCE, conditions};
use crate::read::Read;
use crate::registry::{Anchor, Form, Registry, Served};
use crate::server::Server;
use crate::webhook;

/// Why nothing is created any more.
const CLOSED: &str = "create not allowed while custom resource definition is terminating";

/// The row of the definitions themselves.
pub fn definitions(server: &Server) -> Option<Arc<Served>> {
    server.registry.any(GROUP, RESOURCE)
}

/// What the rows of a definition depend on.
pub fn essence(object: &Value) -> Value {
    json!([
        object.uid(),
        object.at("spec"),
        object.at("status.acceptedNames"),
        conditions::is_true(object, "Established"),
    ])
}

/// Where the instances of a definition are stored: group and plural name.
pub fn storage(registry: &Registry, group: &str, plural: &str) -> (String, String) {
    let built_in = registry.any(group, plural).is_some_and(|row| !row.resource.strategy.is_custom());
    // A version that is added to a built-in resource has objects of its own: the others must not go with it.
    let plural = if built_in { format!("{plural}.custom") } else { plural.to_owned() };
    (group.to_owned(), plural)
}

/// The rows of a definition; none if it is not established.
pub fn build(
    object: &Value,
    registry: &Registry,
    client: &Arc<webhook::Client>,
) -> Result<Built, DefinitionError> {
    let definition = Arc::new(Definition::read(object)?);
    let mut built = Built { of: Value::Null, definition: definition.clone(), rows: Vec::new(), stored: None };
    if !definition.established {
        return Ok(built);
    }
    let versions = serve(&definition);
    let shapes: HashMap<String, _> = versions
        .iter()
        .map(|v| (v.resource.version.to_string(), (v.rules.clone(), v.resource.type_id)))
        .collect();
    let shapes = Arc::new(shapes);
    let own = registry.any(GROUP, RESOURCE);
    let storage = storage(registry, &definition.group, &definition.names.plural);
    let cache = registry.caches.of(&storage.0, &storage.1, registry.applied());
    for version in versions {
        let way = Way::new(&definition, &shapes, &version.resource.version, client);
        let form = Form::Custom(Arc::new(way));
        let mut row =
            Served::new(version.resource.clone(), cache.clone(), storage.clone(), version.storage, form);
        row.since = object.text("metadata.resourceVersion").parse().unwrap_or(0);
        row.deprecation = version.deprecation.map(Into::into);
        row.anchor = own.as_ref().map(|own| Anchor::new(own, object.name(), object.uid(), CLOSED));
        let row = Arc::new(row);
        if version.storage {
            built.stored = Some(row.clone());
        }
        if version.served {
            built.rows.push(row);
        }
    }
    Ok(built)
}

/// Lets nothing be created any more; watches go on until the end.
pub fn close(built: &Built) {
    for row in built.rows.iter().chain(&built.stored) {
        row.closed.get_or_init(|| CLOSED);
    }
}

/// The order of discovery: by group, then newest version first, then by name.
pub fn order(row: &Served) -> (String, std::cmp::Reverse<(u8, u32, u32)>, String) {
    let priority = crate::discovery::age(&row.resource.version);
    (row.group().to_owned(), std::cmp::Reverse(priority), row.plural().to_owned())
}
