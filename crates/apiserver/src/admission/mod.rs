//! Admission: what is filled into an object, and what is refused, between authorization and validation. The plug-ins run in
//! upstream's order (`pkg/kubeapiserver/options/plugins.go`); a row of the table is one plug-in.

mod certificates;
mod classes;
pub(crate) mod dynamic;
mod lifecycle;
mod limits;
mod node;
mod priority;
mod quota;
mod security;
mod service_account;
mod storage;
#[cfg(test)]
mod tests;
mod tolerations;

use std::sync::Arc;
use std::time::Instant;

pub(crate) use api::quota::amounts;
use futures::future::{BoxFuture, FutureExt};
use parking_lot::Mutex;
use serde_json::Value;

use crate::authz::Authorizer;
use crate::hooks::Home;
use crate::metrics::metrics;
use crate::read::Read;
use crate::{AdmissionRequest, Admit, ClusterRef, Gvk, Gvr, Operation, Status, webhook};
use dynamic::Dynamic;
use dynamic::matching::Matched;
use dynamic::rounds::Rounds;

/// What a plug-in works with.
#[derive(Clone, Copy)]
pub(super) struct Scene<'a> {
    pub cluster: &'a ClusterRef,
    pub authorizer: &'a Arc<Authorizer>,
    pub request: &'a AdmissionRequest<'a>,
    pub locks: &'a quota::Locks,
    pub dynamic: &'a Dynamic,
    /// How far mutating admission has come.
    pub rounds: &'a Mutex<Rounds>,
}

type Mutate = fn(&Scene<'_>, &mut Value, Option<&Value>) -> Result<(), Status>;
type Validate = fn(&Scene<'_>, &Value, Option<&Value>) -> Result<(), Status>;
type MutateLater =
    for<'a> fn(Scene<'a>, &'a mut Value, Option<&'a Value>) -> BoxFuture<'a, Result<(), Status>>;
type ValidateLater = for<'a> fn(Scene<'a>, &'a Value, Option<&'a Value>) -> BoxFuture<'a, Result<(), Status>>;

/// One thing that a plug-in does. Those that may have to wait for the cache return a future.
enum Step {
    Mutate(Mutate),
    MutateLater(MutateLater),
    Validate(Validate),
    ValidateLater(ValidateLater),
}

struct Plugin {
    name: &'static str,
    operations: &'static [Operation],
    steps: &'static [Step],
}

use Operation::{Connect, Create, Delete, Update};
use Step::{Mutate as M, MutateLater as ML, Validate as V, ValidateLater as VL};

/// The plug-ins that are on by default, in order, and NodeRestriction, which upstream's installers switch on.
const PLUGINS: &[Plugin] = &[
    row("NamespaceLifecycle", &[Create, Update, Delete], &[ML(lifecycle::admit)]),
    row("LimitRanger", &[Create, Update], &[M(limits::admit), V(limits::validate)]),
    row("ServiceAccount", &[Create, Update], &[ML(service_account::admit), V(service_account::validate)]),
    row("NodeRestriction", &[Create, Update, Delete], &[ML(node::admit)]),
    row("TaintNodesByCondition", &[Create], &[M(tolerations::taint_node)]),
    row("PodSecurity", &[Create, Update], &[V(security::validate)]),
    row("Priority", &[Create, Update], &[M(priority::admit), V(priority::validate)]),
    row("DefaultTolerationSeconds", &[Create, Update], &[M(tolerations::default_seconds)]),
    row("DefaultStorageClass", &[Create], &[M(storage::default_class)]),
    row("StorageObjectInUseProtection", &[Create], &[M(storage::protect)]),
    row("PersistentVolumeClaimResize", &[Update], &[V(storage::resize)]),
    row("RuntimeClass", &[Create], &[ML(classes::runtime), V(classes::overhead)]),
    row(
        "CertificateApproval, CertificateSigning, CertificateSubjectRestriction",
        &[Create, Update],
        &[VL(certificates::validate)],
    ),
    row("DefaultIngressClass", &[Create], &[M(classes::ingress)]),
    row("PodTopologyLabels", &[Create], &[M(classes::topology)]),
    row("PodResizeValidator", &[Update], &[V(classes::pod_resize)]),
    row("MutatingAdmissionPolicy", ALL, &[ML(dynamic::policies::mutate)]),
    row("MutatingAdmissionWebhook", ALL, &[ML(dynamic::webhooks::mutate)]),
    row("ValidatingAdmissionPolicy", ALL, &[VL(dynamic::policies::validate)]),
    row("ValidatingAdmissionWebhook", ALL, &[VL(dynamic::webhooks::validate)]),
    row("ResourceQuota", &[Create, Update], &[VL(quota::validate)]),
];

const ALL: &[Operation] = &[Create, Update, Delete, Connect];

const fn row(name: &'static str, operations: &'static [Operation], steps: &'static [Step]) -> Plugin {
    Plugin { name, operations, steps }
}

/// The chain of the built-in plug-ins, with the check against granting more than one has at its end.
pub struct Admission {
    cluster: ClusterRef,
    authorizer: Arc<Authorizer>,
    locks: quota::Locks,
    dynamic: Dynamic,
}

impl Admission {
    /// Admission over this view of the cluster; webhooks are called with the client.
    pub fn new(cluster: ClusterRef, authorizer: Arc<Authorizer>, client: Arc<webhook::Client>) -> Self {
        let dynamic = Dynamic::new(client);
        Self { cluster, authorizer, locks: quota::Locks::default(), dynamic }
    }

    fn scene<'a>(&'a self, request: &'a AdmissionRequest<'a>, rounds: &'a Mutex<Rounds>) -> Scene<'a> {
        let (cluster, authorizer, locks) = (&self.cluster, &self.authorizer, &self.locks);
        Scene { cluster, authorizer, request, locks, dynamic: &self.dynamic, rounds }
    }
}

fn count(plugin: &Plugin, operation: Operation, kind: &str, before: Instant, rejected: bool) {
    let rejected = if rejected { "true" } else { "false" };
    let labels = [plugin.name, operation.name(), rejected, kind];
    metrics().admission_controller.with(&labels).observe(before.elapsed().as_secs_f64());
}

/// One run of the mutating plug-ins.
async fn run(scene: Scene<'_>, object: &mut Value, old: Option<&Value>) -> Result<(), Status> {
    let mut before = Instant::now();
    for plugin in PLUGINS.iter().filter(|p| p.operations.contains(&scene.request.operation)) {
        for step in plugin.steps {
            let result = match step {
                M(mutate) => mutate(&scene, object, old),
                ML(mutate) => mutate(scene, object, old).await,
                V(_) | VL(_) => continue,
            };
            let before = std::mem::replace(&mut before, Instant::now());
            count(plugin, scene.request.operation, "admit", before, result.is_err());
            result.inspect_err(|status| tracing::debug!(plugin.name, %status, "refused"))?;
        }
    }
    Ok(())
}

impl Admit for Admission {
    fn mutate<'a>(
        &'a self,
        request: &'a AdmissionRequest<'a>,
        object: &'a mut Value,
        old: Option<&'a Value>,
    ) -> BoxFuture<'a, Result<(), Status>> {
        async move {
            let rounds = Mutex::default();
            let scene = self.scene(request, &rounds);
            run(scene, object, old).await?;
            // Plug-ins may see the object again as webhooks and policies have left it, once.
            if scene.rounds.lock().wanted {
                scene.rounds.lock().again = true;
                run(scene, object, old).await?;
            }
            certificates::sign_with_name(&scene, object);
            if matches!(request.operation, Create | Update) {
                self.authorizer.check_escalation(request.attributes, object, old).await?;
            }
            Ok(())
        }
        .boxed()
    }

    fn validate<'a>(
        &'a self,
        request: &'a AdmissionRequest<'a>,
        object: &'a Value,
        old: Option<&'a Value>,
    ) -> BoxFuture<'a, Result<(), Status>> {
        async move {
            let rounds = Mutex::default();
            let scene = self.scene(request, &rounds);
            let mut before = Instant::now();
            for plugin in PLUGINS.iter().filter(|p| p.operations.contains(&request.operation)) {
                for step in plugin.steps {
                    let result = match step {
                        V(validate) => validate(&scene, object, old),
                        VL(validate) => validate(scene, object, old).await,
                        M(_) | ML(_) => continue,
                    };
                    let before = std::mem::replace(&mut before, Instant::now());
                    count(plugin, request.operation, "validate", before, result.is_err());
                    result.inspect_err(|status| tracing::debug!(plugin.name, %status, "refused"))?;
                }
            }
            Ok(())
        }
        .boxed()
    }

    fn home(&self, request: &AdmissionRequest<'_>, object: &Value) -> Result<Option<Home>, Status> {
        lifecycle::home(&self.scene(request, &Mutex::default()), object)
    }
}

impl<'a> Scene<'a> {
    /// Whether the request is for this resource itself, or for this subresource of it (`pods`, `pods/status`).
    pub(crate) fn is(&self, group: &str, resource: &str) -> bool {
        let attributes = self.request.attributes;
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        attributes.group == group && attributes.resource == resource && attributes.subresource == subresource
    }

    /// The operation.
    pub(crate) fn operation(&self) -> Operation {
        self.request.operation
    }

    /// What the request itself is for.
    pub(crate) fn own(&self) -> Matched {
        let (request, attributes) = (self.request, self.request.attributes);
        Matched {
            resource: Gvr {
                group: attributes.group.clone(),
                version: attributes.version.clone(),
                resource: attributes.resource.clone(),
            },
            kind: Gvk {
                group: request.group.to_owned(),
                version: request.version.to_owned(),
                kind: request.kind.to_owned(),
            },
        }
    }

    /// The name of the object as reviews tell it: of the URL, or of a new object its own.
    pub(crate) fn object_name<'b>(&self, object: &'b Value) -> &'b str
    where
        'a: 'b,
    {
        let attributes = self.request.attributes;
        let own = attributes.name.is_empty() && self.operation() == Operation::Create;
        if own { object.name() } else { &attributes.name }
    }

    /// The namespace as reviews tell it: that of the request, and of a namespace its own name.
    pub(crate) fn namespace_name<'b>(&self, object: &'b Value) -> &'b str
    where
        'a: 'b,
    {
        let attributes = self.request.attributes;
        let own = attributes.namespace.is_empty()
            && attributes.resource == "namespaces"
            && attributes.group.is_empty();
        if own { self.object_name(object) } else { &attributes.namespace }
    }

    /// The namespace of the request.
    pub(crate) fn namespace(&self) -> &'a str {
        &self.request.attributes.namespace
    }

    /// The name of the object: of the URL, else its own, else its prefix.
    pub(crate) fn name<'b>(&self, object: &'b Value) -> &'b str
    where
        'a: 'b,
    {
        let candidates = [
            self.request.attributes.name.as_str(),
            object.name(),
            object.text("metadata.generateName"),
            "Unknown",
        ];
        candidates.into_iter().find(|name| !name.is_empty()).unwrap_or_default()
    }

    /// The 403 of a plug-in.
    pub(crate) fn forbid(&self, object: &Value, why: impl std::fmt::Display) -> Status {
        let attributes = self.request.attributes;
        Status::forbidden(&attributes.group, &attributes.resource, self.name(object), why)
    }

    /// An object of the core group; a second look is taken once the cache is as new as the store.
    pub(crate) async fn find(&self, resource: &str, namespace: &str, name: &str) -> Option<Arc<Value>> {
        if let Some(found) = self.cluster.get("", resource, namespace, name) {
            return Some(found);
        }
        self.cluster.fresh("", resource).await;
        self.cluster.get("", resource, namespace, name)
    }
}
