//! The end of a namespace: everything in it is deleted, pods first, and when nothing is left the namespace is
//! let go (KEP-5080 for the order).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use informer::{Change, Informer, Key, Queue};
use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition, Pod};
use kube::Client;
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, PostParams};

use crate::kit::discovery::{Kind, kinds};
use crate::kit::error::found;
use crate::kit::pods::is_terminal;
use crate::kit::{Context, Error, Result, now, seconds_since, time};

const FINALIZER: &str = "kubernetes";
/// How long content with finalizers is given before it is looked at again.
const FINALIZER_SECONDS: i64 = 15;

/// What is left, and what went wrong.
#[derive(Default)]
struct Report {
    remaining: BTreeMap<String, usize>,
    finalizers: BTreeMap<String, usize>,
    errors: Vec<String>,
    discovery: Option<String>,
    /// Seconds until it makes sense to look again.
    estimate: i64,
}

struct Controller {
    client: Client,
    namespaces: Arc<Informer<Namespace>>,
    pods: Arc<Informer<Pod>>,
}

/// Runs the controller.
pub(crate) async fn run(context: Context) {
    let this = Arc::new(Controller {
        client: context.client.clone(),
        namespaces: context.informer(),
        pods: context.informer(),
    });
    let queue = Queue::new();
    let to = queue.clone();
    this.namespaces.on_change(move |change| {
        if let Change::Applied { new, .. } = change
            && new.metadata.deletion_timestamp.is_some()
        {
            to.add(Key::of(new.as_ref()));
        }
    });
    let (to, namespaces) = (queue.clone(), this.namespaces.clone());
    this.pods.on_change(move |change| {
        if let Change::Deleted(pod) = change {
            let key = Key::new("", pod.metadata.namespace.clone().unwrap_or_default());
            if namespaces.get(&key).is_some_and(|namespace| namespace.metadata.deletion_timestamp.is_some()) {
                to.add(key);
            }
        }
    });
    let sync = move |key: Key| {
        let this = this.clone();
        async move { this.sync(key).await }
    };
    context.work("namespace", 10, queue, sync).await;
}

impl Controller {
    async fn sync(&self, key: Key) -> Result<Option<Duration>> {
        let cached = self.namespaces.get(&key);
        if cached.is_none_or(|namespace| namespace.metadata.deletion_timestamp.is_none()) {
            return Ok(None);
        }
        let api = Api::<Namespace>::all(self.client.clone());
        // The cache may lag behind the finalizers that others remove.
        let Some(mut namespace) = api.get_opt(&key.name).await? else { return Ok(None) };
        let finalizers = namespace.spec.clone().unwrap_or_default().finalizers.unwrap_or_default();
        if namespace.metadata.deletion_timestamp.is_none() || finalizers.is_empty() {
            return Ok(None);
        }
        let status = namespace.status.get_or_insert_default();
        if status.phase.as_deref() != Some("Terminating") {
            status.phase = Some("Terminating".into());
            namespace = api.replace_status(&key.name, &PostParams::default(), &namespace).await?;
        }
        let report = self.delete_content(&namespace).await;
        let status = namespace.status.get_or_insert_default();
        let conditions = status.conditions.get_or_insert_default();
        if update_conditions(conditions, &report) {
            match found(api.replace_status(&key.name, &PostParams::default(), &namespace).await) {
                Ok(Some(written)) => namespace = written,
                Ok(None) => return Ok(None),
                Err(error) => tracing::debug!(namespace = key.name, %error, "conditions were not written"),
            }
        }
        if let Some(error) = report.errors.into_iter().next() {
            return Err(Error::Remains(error));
        }
        if report.estimate > 0 || !report.remaining.is_empty() {
            let seconds = u64::try_from(report.estimate / 2 + 1).unwrap_or(1);
            return Ok(Some(Duration::from_secs(seconds)));
        }
        let spec = namespace.spec.get_or_insert_default();
        spec.finalizers = Some(finalizers.into_iter().filter(|one| one != FINALIZER).collect());
        found(api.replace_subresource("finalize", &key.name, &PostParams::default(), &namespace).await)?;
        Ok(None)
    }

    async fn delete_content(&self, namespace: &Namespace) -> Report {
        let mut report = Report::default();
        let kinds = match kinds(&self.client).await {
            Ok(kinds) => kinds,
            Err(error) => {
                report.discovery = Some(error.to_string());
                report.errors.push(error.to_string());
                return report;
            }
        };
        let deletable: Vec<Kind> = kinds
            .into_iter()
            .filter(|kind| kind.namespaced && kind.can("delete") && kind.can("list"))
            .collect();
        let is_pods = |kind: &Kind| kind.resource.group.is_empty() && kind.resource.plural == "pods";
        for kind in deletable.iter().filter(|kind| is_pods(kind)) {
            self.delete_kind(namespace, kind, self.grace(namespace), &mut report).await;
            if !report.remaining.is_empty() {
                return report;
            }
        }
        for kind in deletable.iter().filter(|kind| !is_pods(kind)) {
            self.delete_kind(namespace, kind, 0, &mut report).await;
        }
        report
    }

    /// The longest grace period of the pods, unless it has passed.
    fn grace(&self, namespace: &Namespace) -> i64 {
        let name = namespace.metadata.name.as_deref().unwrap_or_default();
        let pods = self.pods.in_namespace(name);
        let longest = pods
            .iter()
            .filter(|pod| !is_terminal(pod))
            .filter_map(|pod| pod.spec.as_ref()?.termination_grace_period_seconds)
            .max()
            .unwrap_or_default();
        let since = namespace.metadata.deletion_timestamp.as_ref().map_or(0, |at| seconds_since(at.0, now()));
        if since >= longest { 0 } else { longest }
    }

    async fn delete_kind(&self, namespace: &Namespace, kind: &Kind, grace: i64, report: &mut Report) {
        let name = namespace.metadata.name.as_deref().unwrap_or_default();
        let api = Api::<DynamicObject>::namespaced_with(self.client.clone(), name, &kind.resource);
        let listed = async {
            let before = api.list_metadata(&ListParams::default()).await?;
            if before.items.is_empty() {
                return Ok(before);
            }
            let params = DeleteParams::background();
            if kind.can("deletecollection") {
                api.delete_collection(&params, &ListParams::default()).await?;
            } else {
                for object in &before.items {
                    let name = object.metadata.name.as_deref().unwrap_or_default();
                    match api.delete(name, &params).await {
                        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 405) => {}
                        Err(error) => return Err(error),
                        Ok(_) => {}
                    }
                }
            }
            api.list_metadata(&ListParams::default()).await
        };
        let left = match listed.await {
            Ok(left) => left.items,
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 405) => return,
            Err(error) => {
                report.errors.push(Error::from(error).message());
                return;
            }
        };
        if left.is_empty() {
            return;
        }
        let (group, plural) = (&kind.resource.group, &kind.resource.plural);
        report.remaining.insert(format!("{plural}.{group}"), left.len());
        let finalizers: Vec<_> =
            left.iter().flat_map(|one| one.metadata.finalizers.iter().flatten()).collect();
        if grace > 0 {
            report.estimate = report.estimate.max(grace);
        } else if !finalizers.is_empty() {
            report.estimate = report.estimate.max(FINALIZER_SECONDS);
        } else if group.is_empty() && plural == "pods" {
            // They are ending; their deletion wakes us.
            report.estimate = report.estimate.max(1);
        } else {
            report.errors.push(format!(
                "unexpected items still remain in namespace: {name} for gvr: {group}/{}, Resource={plural}",
                kind.resource.version
            ));
        }
        for finalizer in finalizers {
            *report.finalizers.entry(finalizer.clone()).or_default() += 1;
        }
    }
}

/// Brings the five conditions up to date; whether any changed.
fn update_conditions(conditions: &mut Vec<NamespaceCondition>, report: &Report) -> bool {
    let list = |of: &BTreeMap<String, usize>, verb: &str| {
        let all: Vec<String> =
            of.iter().map(|(name, count)| format!("{name} {verb} {count} resource instances")).collect();
        (!all.is_empty()).then(|| all.join(", "))
    };
    let mut errors = report.errors.clone();
    errors.sort();
    let count = errors.len();
    let failed = (count > 0)
        .then(|| format!("Failed to delete all resource types, {count} remaining: {}", errors.join(", ")));
    type Trouble = (&'static str, Option<String>);
    let rows: [(&str, (&str, &str), Trouble); 5] = [
        (
            "NamespaceDeletionDiscoveryFailure",
            ("ResourcesDiscovered", "All resources successfully discovered"),
            ("DiscoveryFailed", report.discovery.clone()),
        ),
        (
            "NamespaceDeletionGroupVersionParsingFailure",
            ("ParsedGroupVersions", "All legacy kube types successfully parsed"),
            ("GroupVersionParsingFailed", None),
        ),
        (
            "NamespaceDeletionContentFailure",
            ("ContentDeleted", "All content successfully deleted, may be waiting on finalization"),
            ("ContentDeletionFailed", failed),
        ),
        (
            "NamespaceContentRemaining",
            ("ContentRemoved", "All content successfully removed"),
            (
                "SomeResourcesRemain",
                list(&report.remaining, "has").map(|list| format!("Some resources are remaining: {list}")),
            ),
        ),
        (
            "NamespaceFinalizersRemaining",
            ("ContentHasNoFinalizers", "All content-preserving finalizers finished"),
            (
                "SomeFinalizersRemain",
                list(&report.finalizers, "in")
                    .map(|list| format!("Some content in the namespace has finalizers remaining: {list}")),
            ),
        ),
    ];
    let mut changed = false;
    for (kind, fine, (reason, trouble)) in rows {
        let (status, reason, message) = match trouble {
            Some(message) => ("True", reason, message),
            None => ("False", fine.0, fine.1.to_owned()),
        };
        let old = conditions.iter_mut().find(|one| one.type_ == kind);
        let same = old.as_ref().is_some_and(|old| {
            old.status == status
                && old.reason.as_deref() == Some(reason)
                && old.message.as_deref() == Some(message.as_str())
        });
        if same {
            continue;
        }
        changed = true;
        let since =
            old.as_ref().filter(|old| old.status == status).and_then(|old| old.last_transition_time.clone());
        let new = NamespaceCondition {
            type_: kind.into(),
            status: status.into(),
            reason: Some(reason.into()),
            message: Some(message),
            last_transition_time: since.or_else(|| Some(time(now()))),
        };
        match old {
            Some(old) => *old = new,
            None => conditions.push(new),
        }
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_say_what_remains_and_then_that_nothing_does() {
        let mut conditions = Vec::new();
        let mut report = Report::default();
        report.remaining.insert("pods.".into(), 2);
        report.finalizers.insert("example.com/f".into(), 1);
        assert!(update_conditions(&mut conditions, &report));
        assert!(!update_conditions(&mut conditions, &report));
        let message = |conditions: &[NamespaceCondition], kind: &str| {
            conditions
                .iter()
                .find(|one| one.type_ == kind)
                .and_then(|one| one.message.clone())
                .unwrap_or_default()
        };
        assert_eq!(
            message(&conditions, "NamespaceContentRemaining"),
            "Some resources are remaining: pods. has 2 resource instances"
        );
        assert_eq!(
            message(&conditions, "NamespaceFinalizersRemaining"),
            "Some content in the namespace has finalizers remaining: example.com/f in 1 resource instances"
        );
        assert!(update_conditions(&mut conditions, &Report::default()));
        assert!(conditions.iter().all(|one| one.status == "False"));
        assert_eq!(conditions.len(), 5);
    }
}
