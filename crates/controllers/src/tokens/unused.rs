//! Tokens in Secrets that were made without being asked for and that nobody has used for a year: first they are marked as no
//! longer valid, and when nobody has missed them for another year they go (KEP-2800; upstream:
//! `legacy_serviceaccount_token_cleaner.go`).

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use informer::Informer;
use jiff::civil::Date;
use jiff::{Span, Timestamp};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, ServiceAccount};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::json;

use super::{KIND, NAME, UID, annotation};
use crate::kit::error::found;
use crate::kit::{Context, Result, now};

const MAP: &str = "kube-apiserver-legacy-service-account-token-tracking";
const LAST_USED: &str = "kubernetes.io/legacy-token-last-used";
const INVALID_SINCE: &str = "kubernetes.io/legacy-token-invalid-since";
/// How long a token must have been unused.
const PERIOD: i32 = 365;
const INTERVAL: Duration = Duration::from_secs(24 * 3600);

/// Looks once a day.
pub(crate) async fn run(context: Context) {
    let seen = Seen {
        secrets: context.informers.selected::<Secret>(&format!("type={KIND}")),
        accounts: context.informer::<ServiceAccount>(),
        pods: context.informer::<Pod>(),
    };
    seen.secrets.synced().await;
    seen.accounts.synced().await;
    seen.pods.synced().await;
    let mut tick = tokio::time::interval(INTERVAL);
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = context.shutdown.cancelled() => return,
        }
        if let Err(error) = clean(&context, &seen, now()).await {
            tracing::warn!(%error, "unused tokens are not looked for; tomorrow again");
        }
    }
}

/// What the cleaner sees of the cluster.
struct Seen {
    secrets: Arc<Informer<Secret>>,
    accounts: Arc<Informer<ServiceAccount>>,
    pods: Arc<Informer<Pod>>,
}

/// What is to be done with a Secret.
#[derive(Debug, PartialEq, Eq)]
enum Action {
    Keep,
    Mark,
    Delete,
}

fn day(at: Timestamp) -> Date {
    at.to_zoned(jiff::tz::TimeZone::UTC).date()
}

fn plan(
    secret: &Secret,
    account: Option<&ServiceAccount>,
    mounted: &HashSet<String>,
    now: Timestamp,
) -> Action {
    let Ok(limit) = day(now).checked_sub(Span::new().days(PERIOD)) else { return Action::Keep };
    let metadata = &secret.metadata;
    let young = metadata.creation_timestamp.as_ref().is_none_or(|at| day(at.0) >= limit);
    if young || metadata.deletion_timestamp.is_some() {
        return Action::Keep;
    }
    let label = |key: &str| secret.labels().get(key);
    match label(LAST_USED).map(|date| date.parse::<Date>()) {
        // Without the label it was never used since that is noted.
        None => {}
        Some(Ok(date)) if date < limit => {}
        Some(_) => return Action::Keep,
    }
    // One that a person made is that person's.
    let name = secret.name_any();
    let referenced = account.is_some_and(|account| {
        account.secrets.iter().flatten().any(|reference| reference.name.as_deref() == Some(&name))
    });
    if !referenced || mounted.contains(&name) {
        return Action::Keep;
    }
    match label(INVALID_SINCE).and_then(|date| date.parse::<Date>().ok()) {
        None => Action::Mark,
        Some(date) if date >= limit => Action::Keep,
        Some(_) => Action::Delete,
    }
}

/// The Secrets that a pod's volumes, environment and pulls name.
fn secrets_of(pod: &Pod) -> Vec<String> {
    let mut names = Vec::new();
    let Some(spec) = &pod.spec else { return names };
    names.extend(spec.image_pull_secrets.iter().flatten().map(|one| one.name.clone()));
    for volume in spec.volumes.iter().flatten() {
        names.extend(volume.secret.as_ref().and_then(|secret| secret.secret_name.clone()));
        for source in volume.projected.iter().flat_map(|p| p.sources.iter().flatten()) {
            names.extend(source.secret.as_ref().map(|secret| secret.name.clone()));
        }
    }
    let init = spec.init_containers.iter().flatten();
    for container in spec.containers.iter().chain(init) {
        for variable in container.env.iter().flatten() {
            let from = variable.value_from.as_ref().and_then(|from| from.secret_key_ref.as_ref());
            names.extend(from.map(|key| key.name.clone()));
        }
        for from in container.env_from.iter().flatten() {
            names.extend(from.secret_ref.as_ref().map(|secret| secret.name.clone()));
        }
    }
    names
}

async fn clean(context: &Context, seen: &Seen, now: Timestamp) -> Result<()> {
    let maps = Api::<ConfigMap>::namespaced(context.client.clone(), "kube-system");
    let since = maps.get_opt(MAP).await?.and_then(|map| map.data?.get("since")?.parse::<Date>().ok());
    // Not known, or not for long enough: what was not seen may have been used.
    let known = since.and_then(|since| since.checked_add(Span::new().days(PERIOD + 1)).ok());
    if known.is_none_or(|known| day(now) < known) {
        return Ok(());
    }
    let mut mounted: BTreeMap<String, HashSet<String>> = BTreeMap::new();
    for secret in seen.secrets.list() {
        let (namespace, name) = (secret.namespace().unwrap_or_default(), secret.name_any());
        let account = seen.accounts.find(&namespace, annotation(&secret, NAME));
        let uid = annotation(&secret, UID);
        let account = account.filter(|a| uid.is_empty() || a.metadata.uid.as_deref() == Some(uid));
        if !mounted.contains_key(&namespace) {
            let pods = seen.pods.in_namespace(&namespace);
            mounted.insert(namespace.clone(), pods.iter().flat_map(|pod| secrets_of(pod)).collect());
        }
        let own = Api::<Secret>::namespaced(context.client.clone(), &namespace);
        match plan(&secret, account.as_deref(), &mounted[&namespace], now) {
            Action::Keep => {}
            Action::Mark => {
                let labels = json!({INVALID_SINCE: day(now).to_string()});
                let patch = json!({"metadata": {"uid": secret.metadata.uid, "labels": labels}});
                found(own.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await)?;
                tracing::info!(namespace, name, "an unused token is no longer valid");
            }
            Action::Delete => {
                let resource_version = secret.metadata.resource_version.clone();
                let precondition = Preconditions { uid: None, resource_version };
                let params = DeleteParams::default().preconditions(precondition);
                found(own.delete(&name, &params).await)?;
                tracing::info!(namespace, name, "an unused token is deleted");
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn what_nobody_uses_is_marked_and_then_goes() {
        let now: Timestamp = "2026-06-15T12:00:00Z".parse().expect("a time");
        let account: ServiceAccount =
            serde_json::from_value(json!({"metadata": {"name": "a"}, "secrets": [{"name": "s"}]}))
                .expect("an account");
        let check = |created: &str, labels: Value, mounted: &[&str], expect: Action| {
            let created = format!("{created}T00:00:00Z");
            let secret = json!({"metadata": {"name": "s", "creationTimestamp": created, "labels": labels}});
            let secret: Secret = serde_json::from_value(secret).expect("a secret");
            let mounted = mounted.iter().map(|name| (*name).to_owned()).collect();
            assert_eq!(plan(&secret, Some(&account), &mounted, now), expect, "{created} {labels}");
        };
        check("2020-01-01", json!({}), &[], Action::Mark);
        check("2026-01-01", json!({}), &[], Action::Keep);
        check("2020-01-01", json!({}), &["s"], Action::Keep);
        check("2020-01-01", json!({LAST_USED: "2026-01-01"}), &[], Action::Keep);
        check("2020-01-01", json!({LAST_USED: "2025-06-14"}), &[], Action::Mark);
        check("2020-01-01", json!({LAST_USED: "yesterday"}), &[], Action::Keep);
        check("2020-01-01", json!({INVALID_SINCE: "2026-01-01"}), &[], Action::Keep);
        check("2020-01-01", json!({INVALID_SINCE: "2024-01-01"}), &[], Action::Delete);
        check("2020-01-01", json!({INVALID_SINCE: "never"}), &[], Action::Mark);
        let alone: Secret = serde_json::from_value(
            json!({"metadata": {"name": "own", "creationTimestamp": "2020-01-01T00:00:00Z"}}),
        )
        .expect("a secret");
        assert_eq!(plan(&alone, Some(&account), &HashSet::new(), now), Action::Keep);
        assert_eq!(plan(&alone, None, &HashSet::new(), now), Action::Keep);
    }

    #[test]
    fn pods_name_secrets_in_many_places() {
        let pod = json!({"metadata": {}, "spec": {
            "imagePullSecrets": [{"name": "a"}],
            "volumes": [{"name": "v", "secret": {"secretName": "b"}},
                {"name": "w", "projected": {"sources": [{"secret": {"name": "c"}}]}}],
            "initContainers": [{"name": "i", "envFrom": [{"secretRef": {"name": "d"}}]}],
            "containers": [{"name": "c", "env": [
                {"name": "E", "valueFrom": {"secretKeyRef": {"name": "e", "key": "k"}}}]}],
        }});
        let mut names = secrets_of(&serde_json::from_value(pod).expect("a pod"));
        names.sort();
        assert_eq!(names, ["a", "b", "c", "d", "e"]);
    }
}
