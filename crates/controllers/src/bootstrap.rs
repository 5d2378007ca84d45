//! Bootstrap tokens: those that have ended are deleted, and the others sign the ConfigMap `cluster-info`, by which a
//! machine that knows such a token can tell the cluster's real address and authority (upstream: `pkg/controller/bootstrap`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use informer::{Informer, Key, Queue};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::Client;
use kube::api::{Api, DeleteParams, PostParams, Preconditions};

use crate::kit::error::found;
use crate::kit::{Context, Result, now, until};

const NAMESPACE: &str = "kube-system";
const PREFIX: &str = "bootstrap-token-";
const KIND: &str = "bootstrap.kubernetes.io/token";
const INFO: (&str, &str) = ("kube-public", "cluster-info");
const SIGNATURE: &str = "jws-kubeconfig-";

fn text(secret: &Secret, key: &str) -> String {
    let data = secret.data.as_ref().and_then(|data| data.get(key));
    data.map(|bytes| String::from_utf8_lossy(&bytes.0).into_owned()).unwrap_or_default()
}

fn is_token(secret: &Secret) -> bool {
    secret.type_.as_deref() == Some(KIND) && secret.metadata.namespace.as_deref() == Some(NAMESPACE)
}

/// When a token ends; one that says so in a form that nobody understands has ended.
fn expiration(secret: &Secret) -> Option<Timestamp> {
    match text(secret, "expiration").as_str() {
        "" => None,
        other => Some(other.parse().unwrap_or(Timestamp::MIN)),
    }
}

/// Deletes tokens that have ended.
pub(crate) async fn clean(context: Context) {
    let secrets = context.informers.selected::<Secret>(&format!("type={KIND}"));
    let queue = Queue::new();
    let to = queue.clone();
    secrets.on_change(move |change| {
        if is_token(change.latest()) {
            to.add(Key::of(change.latest().as_ref()));
        }
    });
    let client = context.client.clone();
    let sync = move |key: Key| remove_ended(client.clone(), secrets.clone(), key);
    context.work("tokencleaner", 1, queue, sync).await;
}

async fn remove_ended(client: Client, secrets: Arc<Informer<Secret>>, key: Key) -> Result<Option<Duration>> {
    let Some(secret) = secrets.get(&key) else { return Ok(None) };
    let Some(end) = expiration(&secret) else { return Ok(None) };
    let left = until(end, now());
    if left.is_some() {
        return Ok(left);
    }
    let precondition = Preconditions { uid: secret.metadata.uid.clone(), resource_version: None };
    let params = DeleteParams::default().preconditions(precondition);
    found(Api::<Secret>::namespaced(client, NAMESPACE).delete(&key.name, &params).await)?;
    Ok(None)
}

/// Keeps the signatures in `cluster-info`.
pub(crate) async fn sign(context: Context) {
    let secrets = context.informers.selected::<Secret>(&format!("type={KIND}"));
    let maps = context.informers.selected::<ConfigMap>(&format!("metadata.name={}", INFO.1));
    let queue = Queue::new();
    let key = Key::new(INFO.0, INFO.1);
    let (to, own) = (queue.clone(), key.clone());
    secrets.on_change(move |_| to.add(own.clone()));
    let (to, own) = (queue.clone(), key.clone());
    maps.on_change(move |change| {
        if Key::of(change.latest().as_ref()) == own {
            to.add(own.clone());
        }
    });
    secrets.synced().await;
    let client = context.client.clone();
    let sync = move |key: Key| update_signatures(client.clone(), secrets.clone(), maps.clone(), key);
    context.work("bootstrapsigner", 1, queue, sync).await;
}

async fn update_signatures(
    client: Client,
    secrets: Arc<Informer<Secret>>,
    maps: Arc<Informer<ConfigMap>>,
    key: Key,
) -> Result<Option<Duration>> {
    let Some(map) = maps.get(&key) else { return Ok(None) };
    let now = now();
    let tokens = tokens(secrets.list().iter().map(AsRef::as_ref), now);
    // Signatures of tokens that end must go by then.
    let next = secrets.list().iter().filter_map(|s| until(expiration(s)?, now)).min();
    let Some(data) = map.data.as_ref().and_then(|data| signed(data, &tokens)) else { return Ok(next) };
    let changed = ConfigMap { data: Some(data), ..(*map).clone() };
    let api = Api::<ConfigMap>::namespaced(client, &key.namespace);
    found(api.replace(&key.name, &PostParams::default(), &changed).await)?;
    Ok(next)
}

/// The tokens that may sign: id and secret.
fn tokens<'a>(secrets: impl Iterator<Item = &'a Secret>, now: Timestamp) -> BTreeMap<String, String> {
    let usable = |secret: &Secret| {
        let (id, own) = (text(secret, "token-id"), text(secret, "token-secret"));
        let named = secret.metadata.name.as_deref().and_then(|n| n.strip_prefix(PREFIX)) == Some(id.as_str());
        let plain = |s: &str, length: usize| {
            s.len() == length && s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        };
        let good = is_token(secret)
            && named
            && plain(&id, 6)
            && !own.is_empty()
            && expiration(secret).is_none_or(|end| end > now)
            && text(secret, "usage-bootstrap-signing") == "true";
        good.then_some((id, own))
    };
    secrets.filter_map(usable).collect()
}

/// The data with the signatures of these tokens and no others; `None` if it is so already.
fn signed(
    data: &BTreeMap<String, String>,
    tokens: &BTreeMap<String, String>,
) -> Option<BTreeMap<String, String>> {
    let content = data.get("kubeconfig")?;
    let mut new: BTreeMap<String, String> = data
        .iter()
        .filter(|(key, _)| !key.starts_with(SIGNATURE))
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect();
    for (id, secret) in tokens {
        new.insert(format!("{SIGNATURE}{id}"), pki::detached_signature(content, id, secret));
    }
    (new != *data).then_some(new)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;

    use super::*;

    fn token(id: &str, more: &[(&str, &str)]) -> Secret {
        let mut secret = Secret { type_: Some(KIND.to_owned()), ..Secret::default() };
        secret.metadata.name = Some(format!("{PREFIX}{id}"));
        secret.metadata.namespace = Some(NAMESPACE.to_owned());
        let own =
            [("token-id", id), ("token-secret", "0123456789abcdef"), ("usage-bootstrap-signing", "true")];
        let data = own.iter().chain(more).map(|(k, v)| ((*k).to_owned(), ByteString(v.as_bytes().to_vec())));
        secret.data = Some(data.collect());
        secret
    }

    #[test]
    fn tokens_in_force_sign_and_others_do_not() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().expect("a time");
        let check = |secret: Secret, expect: bool| {
            let name = secret.metadata.name.clone();
            assert_eq!(!tokens(std::iter::once(&secret), now).is_empty(), expect, "{name:?}");
        };
        check(token("abcdef", &[]), true);
        check(token("abcdef", &[("expiration", "2026-01-01T00:00:01Z")]), true);
        check(token("abcdef", &[("expiration", "2025-12-31T00:00:00Z")]), false);
        check(token("abcdef", &[("expiration", "soon")]), false);
        check(token("abcdef", &[("usage-bootstrap-signing", "false")]), false);
        check(token("abcdef", &[("token-id", "fedcba")]), false);
        check(token("ABCDEF", &[]), false);
        check(Secret { type_: Some("Opaque".to_owned()), ..token("abcdef", &[]) }, false);
    }

    #[test]
    fn signatures_come_and_go_with_their_tokens() {
        let data = BTreeMap::from([
            ("kubeconfig".to_owned(), "content".to_owned()),
            ("jws-kubeconfig-gone00".to_owned(), "x".to_owned()),
        ]);
        let tokens = BTreeMap::from([("abcdef".to_owned(), "0123456789abcdef".to_owned())]);
        let new = signed(&data, &tokens).expect("changed");
        assert_eq!(new.keys().collect::<Vec<_>>(), ["jws-kubeconfig-abcdef", "kubeconfig"]);
        assert_eq!(signed(&new, &tokens), None);
        assert_eq!(signed(&BTreeMap::new(), &tokens), None);
    }
}
