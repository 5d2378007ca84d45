//! One informer per kind for the whole process, started when first asked for. Lists are streamed
//! (`sendInitialEvents`) where the server can, and paged where it refuses.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, pin_mut};
use kube::runtime::watcher::{self, Event, InitialListStrategy};
use kube::{Api, Client};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::cache::{Informer, Key, Object};

const FIRST_RETRY: Duration = Duration::from_millis(20);
const LAST_RETRY: Duration = Duration::from_secs(10);

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
    let mut strategy = InitialListStrategy::StreamingList;
    while !shutdown.is_cancelled() {
        let config = watcher::Config {
            initial_list_strategy: strategy.clone(),
            page_size: match strategy {
                InitialListStrategy::ListWatch => Some(500),
                InitialListStrategy::StreamingList => None,
            },
            field_selector: fields.clone(),
            ..watcher::Config::default()
        };
        if !follow_with(&api, &informer, config, &shutdown).await {
            return;
        }
        strategy = InitialListStrategy::ListWatch;
    }
}

/// Runs until shutdown (false) or until the server turns out not to stream lists (true).
async fn follow_with<K: Object>(
    api: &Api<K>,
    informer: &Informer<K>,
    config: watcher::Config,
    shutdown: &CancellationToken,
) -> bool {
    let streaming = config.initial_list_strategy == InitialListStrategy::StreamingList;
    let events = watcher::watcher(api.clone(), config);
    pin_mut!(events);
    let mut listed = Vec::new();
    let mut wait = FIRST_RETRY;
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            () = shutdown.cancelled() => return false,
        };
        match event {
            Some(Ok(event)) => {
                wait = FIRST_RETRY;
                match event {
                    Event::Init => listed.clear(),
                    Event::InitApply(mut object) => {
                        object.meta_mut().managed_fields = None;
                        listed.push(object);
                    }
                    Event::InitDone => informer.replace(std::mem::take(&mut listed)),
                    Event::Apply(object) => informer.apply(object),
                    Event::Delete(object) => informer.delete(&Key::of(&object)),
                }
            }
            Some(Err(error)) => {
                tracing::debug!(kind = %K::kind(&K::DynamicType::default()), %error, "watch interrupted");
                if streaming && !informer.has_synced() && refused(&error) {
                    return true;
                }
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    () = shutdown.cancelled() => return false,
                }
                wait = (wait * 2).min(LAST_RETRY);
            }
            None => return false,
        }
    }
}

fn refused(error: &watcher::Error) -> bool {
    let status = match error {
        watcher::Error::WatchStartFailed(kube::Error::Api(status)) => status,
        watcher::Error::WatchError(status) => status,
        _ => return false,
    };
    matches!(status.code, 400 | 406 | 422 | 500 | 501)
}
