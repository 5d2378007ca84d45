//! The copies of static pods in the API: made for each static pod, made anew when the manifest changed or somebody deleted
//! them, and taken away with it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Api;
use kube::api::{DeleteParams, PostParams, Preconditions};
use tokio::task::JoinSet;

use crate::context::Shared;
use crate::podutil::{self, name, namespace, uid};
use crate::static_pods::{self, HASH, annotation};

/// Namespace and name.
type Name = (String, String);

/// What is to be done about one name.
#[derive(Debug, PartialEq, Eq)]
enum Action {
    Create,
    Delete,
}

/// The copies that the API has.
#[derive(Default)]
pub(crate) struct Mirrors {
    known: HashMap<Name, Arc<Pod>>,
    under_way: HashSet<Name>,
    pub tasks: JoinSet<Name>,
}

pub(crate) fn full_name(pod: &Pod) -> Name {
    (namespace(pod).to_owned(), name(pod).to_owned())
}

impl Mirrors {
    /// Notes what the API has now.
    pub(crate) fn apply(&mut self, pod: Arc<Pod>) {
        self.known.insert(full_name(&pod), pod);
    }

    /// The API's copy is gone.
    pub(crate) fn remove(&mut self, pod: &Pod) {
        let name = full_name(pod);
        if self.known.get(&name).is_some_and(|known| uid(known) == uid(pod)) {
            self.known.remove(&name);
        }
    }

    /// Only these are left in the API.
    pub(crate) fn retain(&mut self, uids: &HashSet<&str>) {
        self.known.retain(|_, pod| uids.contains(uid(pod)));
    }

    /// The copy that shows this static pod.
    pub(crate) fn of(&self, pod: &Pod) -> Option<Arc<Pod>> {
        self.known.get(&full_name(pod)).filter(|copy| good(copy, pod)).cloned()
    }

    /// An action ended; what it changed comes through the watch.
    pub(crate) fn ended(&mut self, name: &Name) {
        self.under_way.remove(name);
    }

    /// Starts what brings the copies in step with `statics`; `running` are static pods on their way out, whose copies stay
    /// until they are gone.
    pub(crate) fn sync(
        &mut self,
        context: &Shared,
        node: Option<&Node>,
        statics: &[Arc<Pod>],
        running: &HashSet<Name>,
    ) {
        for (name, action) in self.plan(statics, running) {
            self.under_way.insert(name.clone());
            let context = context.clone();
            let known = self.known.get(&name).cloned();
            let wanted = statics.iter().find(|pod| full_name(pod) == name).map(|pod| {
                let node_uid = node.and_then(|node| node.metadata.uid.as_deref());
                static_pods::mirror_of(pod, node_uid, &context.config.node_name)
            });
            self.tasks.spawn(async move {
                let api: Api<Pod> = Api::namespaced(context.config.client.clone(), &name.0);
                let result = match (action, wanted, known) {
                    (Action::Create, Some(pod), _) => api.create(&PostParams::default(), &pod).await.map(drop),
                    (Action::Delete, _, Some(copy)) => {
                        let preconditions =
                            Preconditions { uid: copy.metadata.uid.clone(), resource_version: None };
                        let params = DeleteParams {
                            grace_period_seconds: Some(0),
                            preconditions: Some(preconditions),
                            ..DeleteParams::default()
                        };
                        api.delete(&name.1, &params).await.map(drop)
                    }
                    _ => Ok(()),
                };
                match result {
                    Ok(()) => {}
                    Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
                    Err(error) => {
                        tracing::warn!(%error, pod = name.1, "cannot keep the copy of a static pod in the API");
                        tokio::time::sleep(Duration::from_secs(5)).await;
                    }
                }
                name
            });
        }
    }

    fn plan(&self, statics: &[Arc<Pod>], running: &HashSet<Name>) -> Vec<(Name, Action)> {
        let mut actions = Vec::new();
        for pod in statics {
            let name = full_name(pod);
            match self.known.get(&name) {
                None => actions.push((name, Action::Create)),
                Some(copy) if !good(copy, pod) => actions.push((name, Action::Delete)),
                Some(_) => {}
            }
        }
        for name in self.known.keys() {
            if !running.contains(name) && !statics.iter().any(|pod| full_name(pod) == *name) {
                actions.push((name.clone(), Action::Delete));
            }
        }
        actions.retain(|(name, _)| !self.under_way.contains(name));
        actions
    }
}

/// Whether the copy shows this very pod and is to stay.
fn good(copy: &Pod, pod: &Pod) -> bool {
    static_pods::mirrored(copy) == annotation(pod, HASH) && !podutil::deleting(copy)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, key: &str, hash: &str) -> Arc<Pod> {
        let meta = json!({"name": name, "namespace": "n", "uid": hash, "annotations": {key: hash}});
        Arc::new(serde_json::from_value(json!({"metadata": meta})).expect("a pod"))
    }

    #[test]
    fn copies_follow_their_pods() {
        let copy = |name: &str, hash: &str| pod(name, static_pods::MIRROR, hash);
        let mut mirrors = Mirrors::default();
        for copy in [copy("same", "1"), copy("old", "1"), copy("gone", "1"), copy("ending", "1")] {
            mirrors.apply(copy);
        }
        let statics =
            ["same", "old", "new"].map(|name| pod(name, HASH, if name == "same" { "1" } else { "2" }));
        let name = |name: &str| ("n".to_owned(), name.to_owned());
        let mut plan = mirrors.plan(&statics, &HashSet::from([name("ending")]));
        plan.sort_by(|a, b| a.0.cmp(&b.0));
        let expected =
            [(name("gone"), Action::Delete), (name("new"), Action::Create), (name("old"), Action::Delete)];
        assert_eq!(plan, expected);
    }
}
