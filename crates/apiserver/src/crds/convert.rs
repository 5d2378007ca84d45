//! The ways of custom resources between what is stored and what is served.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use api::custom::{Conversion, Definition, Shape};
use futures::FutureExt;
use futures::future::BoxFuture;
use schema::TypeId;
use serde_json::Value;

use super::review;
use crate::registry::Convert;
use crate::{Status, webhook};

type Shapes = HashMap<String, (Arc<dyn Shape>, TypeId)>;

/// The ways to and from one version.
pub struct Way {
    definition: Arc<Definition>,
    shapes: Arc<Shapes>,
    version: String,
    /// Weak, because the client looks at the registry that this way is a part of.
    client: Weak<webhook::Client>,
}

/// The version of an object, without the group.
fn version_of(object: &Value) -> &str {
    let api_version = object.get("apiVersion").and_then(Value::as_str).unwrap_or_default();
    api_version.rsplit('/').next().unwrap_or_default()
}

impl Way {
    pub fn new(
        definition: &Arc<Definition>,
        shapes: &Arc<Shapes>,
        version: &str,
        client: &Arc<webhook::Client>,
    ) -> Self {
        Self {
            definition: definition.clone(),
            shapes: shapes.clone(),
            version: version.to_owned(),
            client: Arc::downgrade(client),
        }
    }

    /// An object from the store, in the version that it is stored in.
    fn stored(&self, object: &mut Value) {
        if let Some((shape, _)) = self.shapes.get(version_of(object)) {
            shape.prune_stored(object);
            shape.fill(object);
        }
    }

    /// Puts another version's name on an object.
    fn rename(&self, object: &mut Value, version: &str) {
        object["apiVersion"] = format!("{}/{version}", self.definition.group).into();
    }

    /// Objects in another version.
    async fn convert(&self, mut objects: Vec<Value>, version: &str) -> Result<Vec<Value>, Status> {
        match &self.definition.conversion {
            Conversion::None => objects.iter_mut().for_each(|object| self.rename(object, version)),
            Conversion::Webhook { client_config, review_versions } => {
                let wanted = format!("{}/{version}", self.definition.group);
                let asked: Vec<usize> =
                    (0..objects.len()).filter(|i| version_of(&objects[*i]) != version).collect();
                if !asked.is_empty() {
                    let originals: Vec<Value> = asked.iter().map(|i| objects[*i].clone()).collect();
                    let stopping = || Status::unavailable("the server is shutting down");
                    let client = self.client.upgrade().ok_or_else(stopping)?;
                    let hook = review::Hook { client: &client, client_config, review_versions };
                    let converted = hook.convert(&originals, &wanted).await?;
                    for (index, object) in asked.into_iter().zip(converted) {
                        objects[index] = object;
                    }
                }
            }
        }
        if let Some((shape, _)) = self.shapes.get(version) {
            for object in &mut objects {
                shape.prune_converted(object).map_err(|e| Status::internal(e.message()))?;
            }
        }
        Ok(objects)
    }

    /// One object, if it is not in that version already.
    async fn to(&self, object: Value, version: &str) -> Result<Value, Status> {
        if version_of(&object) == version {
            return Ok(object);
        }
        let converted = self.convert(vec![object], version).await?;
        converted.into_iter().next().ok_or_else(|| Status::internal("a conversion lost an object"))
    }
}

impl Convert for Way {
    fn read<'a>(&'a self, mut objects: Vec<Value>) -> BoxFuture<'a, Result<Vec<Value>, Status>> {
        async move {
            objects.iter_mut().for_each(|object| self.stored(object));
            if objects.iter().all(|object| version_of(object) == self.version) {
                return Ok(objects);
            }
            self.convert(objects, &self.version).await
        }
        .boxed()
    }

    fn read_now(&self, mut object: Value) -> Option<Value> {
        self.stored(&mut object);
        if version_of(&object) == self.version {
            return Some(object);
        }
        if self.definition.conversion != Conversion::None {
            return None;
        }
        self.rename(&mut object, &self.version);
        self.shapes.get(&self.version)?.0.prune_converted(&mut object).ok()?;
        Some(object)
    }

    fn store<'a>(&'a self, object: Value) -> BoxFuture<'a, Result<Value, Status>> {
        async move {
            let storage = self.definition.storage().map_or(self.version.as_str(), |v| v.name.as_str());
            self.to(object, storage).await
        }
        .boxed()
    }

    fn other<'a>(
        &'a self,
        object: Value,
        version: &'a str,
    ) -> BoxFuture<'a, Result<Option<(TypeId, Value)>, Status>> {
        async move {
            let Some((group, version)) = version.split_once('/') else { return Ok(None) };
            let Some((_, id)) = self.shapes.get(version).filter(|_| group == self.definition.group) else {
                return Ok(None);
            };
            Ok(Some((*id, self.to(object, version).await?)))
        }
        .boxed()
    }
}
