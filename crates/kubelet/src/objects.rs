//! ConfigMaps and Secrets that pods of this node refer to: each is fetched once, then watched while any pod holds it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::runtime::watcher::watch_object;
use kube::{Api, Client};
use parking_lot::Mutex;
use tokio::sync::watch;

/// Which kind of object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    ConfigMap,
    Secret,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Kind::ConfigMap => "configmap",
            Kind::Secret => "secret",
        }
    }
}

/// An object's content.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Data {
    /// Keys that may become environment variables.
    pub data: BTreeMap<String, Vec<u8>>,
    /// The object's uid.
    pub uid: String,
    /// `binaryData` of a ConfigMap.
    pub binary: BTreeMap<String, Vec<u8>>,
}

impl Data {
    /// The value of a key, of either sort.
    pub(crate) fn get(&self, key: &str) -> Option<&Vec<u8>> {
        self.data.get(key).or_else(|| self.binary.get(key))
    }

    /// All keys with their values.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&String, &Vec<u8>)> {
        self.data.iter().chain(self.binary.iter())
    }
}

/// What is known of an object.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum State {
    Pending,
    Missing,
    Failed(String),
    Present(Arc<Data>),
}

/// A held object; it is watched until the last holder drops it.
pub(crate) type Held = watch::Receiver<State>;

/// Why an object cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ObjectError {
    #[error("{} {name:?} not found", kind.word())]
    Missing { kind: Kind, name: String },
    #[error("couldn't get {} {namespace}/{name}: {reason}", kind.word())]
    Failed { kind: Kind, namespace: String, name: String, reason: String },
}

type Key = (Kind, String, String);

/// The node's cache of objects.
#[derive(Clone)]
pub(crate) struct Objects {
    client: Client,
    /// The receivers here are not holders: a task ends when only they are left.
    known: Arc<Mutex<HashMap<Key, Held>>>,
}

impl Objects {
    pub(crate) fn new(client: Client) -> Self {
        Objects { client, known: Arc::default() }
    }

    /// Holds an object; its state may still be pending.
    pub(crate) fn hold(&self, kind: Kind, namespace: &str, name: &str) -> Held {
        let key = (kind, namespace.to_owned(), name.to_owned());
        let mut known = self.known.lock();
        if let Some(held) = known.get(&key) {
            return held.clone();
        }
        let (sender, held) = watch::channel(State::Pending);
        known.insert(key.clone(), held.clone());
        drop(known);
        tokio::spawn(self.clone().follow(key, sender));
        held
    }

    /// The object as it is now; waits for the first answer.
    pub(crate) async fn get(
        &self,
        kind: Kind,
        namespace: &str,
        name: &str,
    ) -> Result<Arc<Data>, ObjectError> {
        let mut held = self.hold(kind, namespace, name);
        resolve(&mut held, kind, namespace, name).await
    }

    async fn follow(self, key: Key, sender: watch::Sender<State>) {
        let (kind, namespace, name) = &key;
        match kind {
            Kind::ConfigMap => {
                let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
                self.run(&key, &sender, api, name, config_map).await;
            }
            Kind::Secret => {
                let api: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
                self.run(&key, &sender, api, name, secret).await;
            }
        }
    }

    async fn run<K>(
        &self,
        key: &Key,
        sender: &watch::Sender<State>,
        api: Api<K>,
        name: &str,
        convert: fn(K) -> Data,
    ) where
        K: kube::Resource<DynamicType = ()>
            + Clone
            + serde::de::DeserializeOwned
            + std::fmt::Debug
            + Send
            + 'static,
    {
        // A plain get is the quickest first answer. The node's right to read follows the pod's binding by a moment, so
        // refusals right at the start are tried again at once.
        let mut patience = 5;
        let first = loop {
            match api.get_opt(name).await {
                Ok(Some(object)) => break State::Present(Arc::new(convert(object))),
                Ok(None) => break State::Missing,
                Err(error) if patience == 0 => break State::Failed(error.to_string()),
                Err(_) => {
                    patience -= 1;
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        };
        sender.send_replace(first);
        let mut objects = std::pin::pin!(watch_object(api, name));
        // How long an object nobody holds stays known, so that pods started one after another share it.
        let mut idle = tokio::time::interval(Duration::from_secs(30));
        idle.tick().await;
        loop {
            tokio::select! {
                next = objects.next() => match next {
                    Some(Ok(object)) => {
                        let state = object.map_or(State::Missing, |object| State::Present(Arc::new(convert(object))));
                        sender.send_if_modified(|current| {
                            let changed = *current != state;
                            *current = state;
                            changed
                        });
                    }
                    Some(Err(error)) => {
                        tracing::debug!(%error, name, "watching an object failed");
                        tokio::time::sleep(Duration::from_secs(1)).await;
                    }
                    None => break,
                },
                _ = idle.tick() => {
                    let mut known = self.known.lock();
                    if sender.receiver_count() <= 1 {
                        known.remove(key);
                        return;
                    }
                }
            }
        }
        self.known.lock().remove(key);
    }
}

/// Waits for an answer about a held object.
pub(crate) async fn resolve(
    held: &mut Held,
    kind: Kind,
    namespace: &str,
    name: &str,
) -> Result<Arc<Data>, ObjectError> {
    let failed = |reason: String| ObjectError::Failed {
        kind,
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        reason,
    };
    let state = held
        .wait_for(|state| *state != State::Pending)
        .await
        .map_err(|_| failed("the kubelet is stopping".to_owned()))?
        .clone();
    match state {
        State::Present(data) => Ok(data),
        State::Failed(reason) => Err(failed(reason)),
        State::Pending | State::Missing => Err(ObjectError::Missing { kind, name: name.to_owned() }),
    }
}

fn config_map(object: ConfigMap) -> Data {
    let uid = object.metadata.uid.unwrap_or_default();
    let text = object.data.unwrap_or_default();
    let binary = object.binary_data.unwrap_or_default();
    Data {
        uid,
        data: text.into_iter().map(|(key, value)| (key, value.into_bytes())).collect(),
        binary: binary.into_iter().map(|(key, value)| (key, value.0)).collect(),
    }
}

fn secret(object: Secret) -> Data {
    let uid = object.metadata.uid.unwrap_or_default();
    let data = object.data.unwrap_or_default();
    Data { uid, data: data.into_iter().map(|(key, value)| (key, value.0)).collect(), binary: BTreeMap::new() }
}
