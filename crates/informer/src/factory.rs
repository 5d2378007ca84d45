//! One informer per kind for the whole process, started when first asked for.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::sync::Arc;

use futures::{StreamExt, pin_mut};
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::cache::{Informer, Key, Object};

/// By kind and field selector.
type Running = HashMap<(TypeId, String), Arc<dyn Any + Send + Sync>>;

/// Gives out the shared informers of a client. Cloning shares.
#[derive(Clone)]
pub struct Factory {
    client: Client,
    shutdown: CancellationToken,
    running: Arc<Mutex<Running>>,
}

impl Factory {
    /// A factory whose watches end when `shutdown` is cancelled.
    pub fn new(client: Client, shutdown: CancellationToken) -> Self {
        Self { client, shutdown, running: Arc::default() }
    }

    /// The client that the watches use.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// The informer of a kind over all namespaces.
    pub fn informer<K: Object>(&self) -> Arc<Informer<K>> {
        self.selected("")
    }

    /// The informer of those objects of a kind that a field selector selects.
    pub fn selected<K: Object>(&self, fields: &str) -> Arc<Informer<K>> {
        let mut running = self.running.lock();
        let id = (TypeId::of::<K>(), fields.to_owned());
        if let Some(informer) = running.get(&id) {
            return informer.clone().downcast().expect("stored under its own type");
        }
        let informer = Arc::new(Informer::<K>::default());
        running.insert(id, informer.clone());
        let api = Api::<K>::all(self.client.clone());
        let fields = (!fields.is_empty()).then(|| fields.to_owned());
        tokio::spawn(follow(api, fields, informer.clone(), self.shutdown.clone()));
        informer
    }
}

async fn follow<K: Object>(
    api: Api<K>,
    fields: Option<String>,
    informer: Arc<Informer<K>>,
    shutdown: CancellationToken,
) {
    let config = watcher::Config { field_selector: fields, ..watcher::Config::default() };
    let events = crate::follow(api, config);
    pin_mut!(events);
    let mut listed = Vec::new();
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            () = shutdown.cancelled() => return,
        };
        match event {
            Some(Ok(Event::Init)) => listed.clear(),
            Some(Ok(Event::InitApply(mut object))) => {
                object.meta_mut().managed_fields = None;
                listed.push(object);
            }
            Some(Ok(Event::InitDone)) => informer.replace(std::mem::take(&mut listed)),
            Some(Ok(Event::Apply(object))) => informer.apply(object),
            Some(Ok(Event::Delete(object))) => informer.delete(&Key::of(&object)),
            Some(Err(error)) => {
                tracing::debug!(kind = %K::kind(&K::DynamicType::default()), %error, "watch interrupted");
            }
            None => return,
        }
    }
}
