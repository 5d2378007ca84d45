//! CustomResourceDefinitions at work: their conditions, the rows that they add to the registry, and their end. One task
//! follows the definitions in the cache; nothing is polled.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use api::custom::Definition;
use futures::FutureExt;
use futures::future::select_all;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::watch::Receiver;

use crate::read::Read;
use crate::registry::{Registry, Served};
use crate::server::Server;
use crate::webhook;

mod conditions;
mod convert;
mod finish;
mod review;
mod rows;
mod special;

pub use special::ROW;

const GROUP: &str = "apiextensions.k8s.io";
const RESOURCE: &str = "customresourcedefinitions";
/// After a failure everything is looked at again.
const RETRY: Duration = Duration::from_secs(2);

/// What has been made of one definition.
struct Built {
    /// What the rows depend on.
    of: Value,
    definition: Arc<Definition>,
    rows: Vec<Arc<Served>>,
    /// A row in the stored version, served or not, by which the instances are deleted.
    stored: Option<Arc<Served>>,
}

/// The definitions that are in force.
pub struct Definitions {
    client: Arc<webhook::Client>,
    built: Mutex<HashMap<String, Built>>,
}

impl Definitions {
    pub fn new(client: Arc<webhook::Client>) -> Self {
        Self { client, built: Mutex::default() }
    }

    /// Brings the rows of the registry up to date with definitions; rows whose definition has not changed stay.
    pub fn install(&self, registry: &Registry, objects: &[Value]) {
        let mut built = self.built.lock();
        let mut kept = HashMap::with_capacity(objects.len());
        for object in objects {
            let of = rows::essence(object);
            let name = object.name().to_owned();
            let made = match built.remove(&name).filter(|built| built.of == of) {
                Some(made) => made,
                None => match rows::build(object, registry, &self.client) {
                    Ok(made) => Built { of, ..made },
                    Err(error) => {
                        tracing::warn!(%name, %error, "a custom resource definition is not served");
                        continue;
                    }
                },
            };
            if conditions::is_true(object, "Terminating") {
                rows::close(&made);
            }
            kept.insert(name, made);
        }
        *built = kept;
        let mut all: Vec<Arc<Served>> = built.values().flat_map(|built| built.rows.clone()).collect();
        all.sort_by_key(|row| rows::order(row));
        registry.install(all);
    }

    fn stored(&self, name: &str) -> Option<(Arc<Definition>, Arc<Served>)> {
        let built = self.built.lock();
        let built = built.get(name)?;
        Some((built.definition.clone(), built.stored.clone()?))
    }
}

/// The definitions in the cache, oldest first.
fn objects(registry: &Registry) -> Vec<Value> {
    let Some(row) = registry.any(GROUP, RESOURCE) else { return Vec::new() };
    let mut all: Vec<Value> = row.cache.list("", None).0.iter().filter_map(|o| o.value().ok()).collect();
    all.sort_by(|a, b| {
        let age =
            |object: &Value| (object.text("metadata.creationTimestamp").to_owned(), object.name().to_owned());
        age(a).cmp(&age(b))
    });
    all
}

/// Serves what the store holds; done before the first request is answered.
pub fn load(registry: &Registry, definitions: &Definitions) {
    definitions.install(registry, &objects(registry));
}

/// Follows the definitions until the server stops.
pub async fn run(server: Weak<Server>) {
    let Some((mut bell, shutdown)) = server.upgrade().and_then(|server| {
        let row = server.registry.any(GROUP, RESOURCE)?;
        Some((row.cache.bell(), server.shutdown.clone()))
    }) else {
        return;
    };
    loop {
        bell.borrow_and_update();
        let Some(now) = server.upgrade() else { return };
        let (failed, mut others) = step(&now).await;
        drop(now);
        let instances = async {
            match others.is_empty() {
                true => std::future::pending().await,
                false => drop(select_all(others.iter_mut().map(|bell| bell.changed().boxed())).await),
            }
        };
        tokio::select! {
            changed = bell.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            () = instances => {}
            () = tokio::time::sleep(RETRY), if failed => {}
            () = shutdown.cancelled() => return,
        }
    }
}

/// Brings conditions, rows and ends up to date. The answer is whether something has to be tried again, and what else must be
/// waited for: the instances of definitions that are going.
async fn step(server: &Arc<Server>) -> (bool, Vec<Receiver<u64>>) {
    let mut objects = objects(&server.registry);
    let changed = conditions::settle(&mut objects);
    // Rows stand before anybody can read that the kind is established.
    server.definitions.install(&server.registry, &objects);
    let mut failed = false;
    for index in changed {
        if let Err(error) = conditions::write(server, &objects[index]).await {
            let conflict = error.code() == 409 || error.code() == 404;
            tracing::debug!(name = objects[index].name(), %error, "the status of a definition was not written");
            failed |= !conflict;
        }
    }
    let mut bells = Vec::new();
    for object in objects.iter().filter(|o| finish::is_going(o)) {
        match finish::step(server, object).await {
            Ok(Some(bell)) => bells.push(bell),
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(name = object.name(), %error, "a definition cannot go yet");
                failed |= error.code() != 409 && error.code() != 404;
            }
        }
    }
    (failed, bells)
}
