//! Secrets of the type `kubernetes.io/service-account-token`: each is filled with a token of the ServiceAccount that it
//! names, and goes with it (upstream: `tokens_controller.go`).

mod unused;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use informer::{Informer, Key, Queue};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use kube::Client;
use kube::api::{Api, DeleteParams, PostParams, Preconditions};
use serde_json::json;

use crate::kit::error::found;
use crate::kit::{Context, Result};

const KIND: &str = "kubernetes.io/service-account-token";
const NAME: &str = "kubernetes.io/service-account.name";
const UID: &str = "kubernetes.io/service-account.uid";

pub(crate) use unused::run as unused;

/// Runs the controller; without a signing key it does nothing.
pub(crate) async fn run(context: Context) {
    let Some(key) = context.config.account_key.clone() else { return };
    let secrets = context.informers.selected::<Secret>(&format!("type={KIND}"));
    let accounts = context.informer::<ServiceAccount>();
    let queue = Queue::new();
    let to = queue.clone();
    secrets.on_change(move |change| to.add(Key::of(change.latest().as_ref())));
    let (to, own) = (queue.clone(), secrets.clone());
    accounts.on_change(move |change| {
        let account = change.latest();
        let name = account.metadata.name.as_deref().unwrap_or_default();
        for secret in own.in_namespace(account.metadata.namespace.as_deref().unwrap_or_default()) {
            if annotation(&secret, NAME) == name {
                to.add(Key::of(secret.as_ref()));
            }
        }
    });
    accounts.synced().await;
    let filler = Arc::new(Filler {
        client: context.client.clone(),
        secrets,
        accounts,
        key,
        root_ca: context.config.root_ca.clone(),
    });
    let sync = move |key: Key| {
        let filler = filler.clone();
        async move { filler.sync(&key).await }
    };
    context.work("serviceaccounttokens", 4, queue, sync).await;
}

fn annotation<'a>(secret: &'a Secret, key: &str) -> &'a str {
    secret.metadata.annotations.as_ref().and_then(|all| all.get(key)).map_or("", String::as_str)
}

struct Filler {
    client: Client,
    secrets: Arc<Informer<Secret>>,
    accounts: Arc<Informer<ServiceAccount>>,
    key: Arc<pki::Key>,
    root_ca: String,
}

impl Filler {
    async fn sync(&self, key: &Key) -> Result<Option<Duration>> {
        let Some(secret) = self.secrets.get(key) else { return Ok(None) };
        let (name, uid) = (annotation(&secret, NAME), annotation(&secret, UID));
        if name.is_empty() {
            return Ok(None);
        }
        let api = Api::<Secret>::namespaced(self.client.clone(), &key.namespace);
        let account = match self.accounts.find(&key.namespace, name) {
            Some(account) => Some(account),
            // The cache may not have seen it yet.
            None => Api::<ServiceAccount>::namespaced(self.client.clone(), &key.namespace)
                .get_opt(name)
                .await?
                .map(Arc::new),
        };
        let fits = account.as_ref().is_some_and(|a| uid.is_empty() || a.metadata.uid.as_deref() == Some(uid));
        let Some(account) = account.filter(|_| fits) else {
            let precondition = Preconditions {
                uid: secret.metadata.uid.clone(),
                resource_version: secret.metadata.resource_version.clone(),
            };
            let params = DeleteParams::default().preconditions(precondition);
            found(api.delete(&key.name, &params).await)?;
            return Ok(None);
        };
        let Some(filled) = self.filled(&secret, &account) else { return Ok(None) };
        found(api.replace(&key.name, &PostParams::default(), &filled).await)?;
        Ok(None)
    }

    /// The secret with what it lacks; `None` if it lacks nothing.
    fn filled(&self, secret: &Secret, account: &ServiceAccount) -> Option<Secret> {
        let mut new = secret.clone();
        let data: &mut BTreeMap<String, ByteString> = new.data.get_or_insert_default();
        let namespace = account.metadata.namespace.clone().unwrap_or_default();
        if !self.root_ca.is_empty() {
            data.insert("ca.crt".to_owned(), ByteString(self.root_ca.clone().into_bytes()));
        }
        if data.get("namespace").is_none_or(|n| n.0.is_empty()) {
            data.insert("namespace".to_owned(), ByteString(namespace.into_bytes()));
        }
        if data.get("token").is_none_or(|t| t.0.is_empty()) {
            let token = pki::sign_token(&self.key, &claims(secret, account)).ok()?;
            data.insert("token".to_owned(), ByteString(token.into_bytes()));
        }
        let annotations = new.metadata.annotations.get_or_insert_default();
        annotations.insert(UID.to_owned(), account.metadata.uid.clone().unwrap_or_default());
        (new != *secret).then_some(new)
    }
}

fn claims(secret: &Secret, account: &ServiceAccount) -> String {
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    let (namespace, name) = (text(&account.metadata.namespace), text(&account.metadata.name));
    json!({
        "iss": "kubernetes/serviceaccount",
        "kubernetes.io/serviceaccount/namespace": namespace,
        "kubernetes.io/serviceaccount/secret.name": text(&secret.metadata.name),
        "kubernetes.io/serviceaccount/service-account.name": name,
        "kubernetes.io/serviceaccount/service-account.uid": text(&account.metadata.uid),
        "sub": format!("system:serviceaccount:{namespace}:{name}"),
    })
    .to_string()
}
