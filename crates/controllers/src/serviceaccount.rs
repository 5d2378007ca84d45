//! What every namespace must have: the `default` ServiceAccount and the cluster's CA certificate.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use informer::{Informer, Key, Queue};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use kube::Client;
use kube::api::{Api, ObjectMeta, PostParams};

use crate::kit::{Context, Error, Result};

const ROOT_CA: &str = "kube-root-ca.crt";
const DESCRIPTION: (&str, &str) = (
    "kubernetes.io/description",
    "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the \
     internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes \
     clusters.",
);

fn is_active(namespaces: &Informer<Namespace>, name: &str) -> bool {
    namespaces.find("", name).is_some_and(|namespace| {
        namespace.metadata.deletion_timestamp.is_none()
            && namespace.status.as_ref().and_then(|status| status.phase.as_deref()) != Some("Terminating")
    })
}

fn ignore_expected(result: std::result::Result<(), kube::Error>) -> Result<Option<Duration>> {
    match result.map_err(Error::from) {
        Err(error) if !error.is_already_exists() && !error.is_namespace_terminating() => Err(error),
        _ => Ok(None),
    }
}

/// Keeps a ServiceAccount `default` in each namespace.
pub(crate) async fn accounts(context: Context) {
    let namespaces = context.informer::<Namespace>();
    let accounts = context.informers.selected::<ServiceAccount>("metadata.name=default");
    let queue = Queue::new();
    let to = queue.clone();
    accounts.on_change(move |change| {
        to.add(Key::new("", change.latest().metadata.namespace.clone().unwrap_or_default()));
    });
    accounts.synced().await;
    let to = queue.clone();
    namespaces.on_change(move |change| to.add(Key::of(change.latest().as_ref())));
    let client = context.client.clone();
    let sync = move |key: Key| {
        let (client, accounts, namespaces) = (client.clone(), accounts.clone(), namespaces.clone());
        async move {
            if !is_active(&namespaces, &key.name) || accounts.find(&key.name, "default").is_some() {
                return Ok(None);
            }
            let account = ServiceAccount {
                metadata: ObjectMeta { name: Some("default".into()), ..ObjectMeta::default() },
                ..ServiceAccount::default()
            };
            let api = Api::<ServiceAccount>::namespaced(client, &key.name);
            ignore_expected(api.create(&PostParams::default(), &account).await.map(drop))
        }
    };
    context.work("serviceaccount", 4, queue, sync).await;
}

/// Keeps the ConfigMap with the CA certificate in each namespace.
pub(crate) async fn root_ca(context: Context) {
    if context.config.root_ca.is_empty() {
        return;
    }
    let namespaces = context.informer::<Namespace>();
    let maps = context.informers.selected::<ConfigMap>(&format!("metadata.name={ROOT_CA}"));
    let queue = Queue::new();
    let to = queue.clone();
    maps.on_change(move |change| {
        to.add(Key::new("", change.latest().metadata.namespace.clone().unwrap_or_default()));
    });
    maps.synced().await;
    let to = queue.clone();
    namespaces.on_change(move |change| to.add(Key::of(change.latest().as_ref())));
    let publisher = Arc::new(Publisher {
        client: context.client.clone(),
        namespaces,
        maps,
        data: BTreeMap::from([("ca.crt".to_owned(), context.config.root_ca.clone())]),
    });
    let sync = move |key: Key| {
        let publisher = publisher.clone();
        async move { publisher.sync(&key.name).await }
    };
    context.work("rootca", 4, queue, sync).await;
}

struct Publisher {
    client: Client,
    namespaces: Arc<Informer<Namespace>>,
    maps: Arc<Informer<ConfigMap>>,
    data: BTreeMap<String, String>,
}

impl Publisher {
    async fn sync(&self, namespace: &str) -> Result<Option<Duration>> {
        if !is_active(&self.namespaces, namespace) {
            return Ok(None);
        }
        let api = Api::<ConfigMap>::namespaced(self.client.clone(), namespace);
        let described = [(DESCRIPTION.0.to_owned(), DESCRIPTION.1.to_owned())];
        match self.maps.find(namespace, ROOT_CA) {
            None => {
                let map = ConfigMap {
                    metadata: ObjectMeta {
                        name: Some(ROOT_CA.into()),
                        annotations: Some(described.into()),
                        ..ObjectMeta::default()
                    },
                    data: Some(self.data.clone()),
                    ..ConfigMap::default()
                };
                ignore_expected(api.create(&PostParams::default(), &map).await.map(drop))
            }
            Some(map) => {
                let annotations = map.metadata.annotations.as_ref();
                let is_described = annotations
                    .and_then(|all| all.get(DESCRIPTION.0))
                    .is_some_and(|text| text == DESCRIPTION.1);
                if map.data.as_ref() == Some(&self.data) && is_described {
                    return Ok(None);
                }
                let mut copy = map.as_ref().clone();
                copy.data = Some(self.data.clone());
                copy.metadata.annotations.get_or_insert_default().extend(described);
                api.replace(ROOT_CA, &PostParams::default(), &copy).await?;
                Ok(None)
            }
        }
    }
}
