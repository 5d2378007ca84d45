//! Admission that users configure: webhooks and policies. Their configurations are compiled when the watch cache shows a
//! change, never for a request.

pub(crate) mod conditions;
mod expression;
pub(crate) mod matching;
pub(crate) mod policies;
mod review;
pub(crate) mod rounds;
pub(crate) mod webhooks;

use std::borrow::Cow;
use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use schema::FieldValidation;
use serde_json::Value;

use super::Scene;
use crate::{ClusterRef, Status, webhook};
use matching::Matched;
use policies::Policy;
use webhooks::Hook;

const GROUP: &str = "admissionregistration.k8s.io";

/// What is compiled from all objects of some resources, as long as none of them changes.
pub(crate) struct Compiled<T> {
    resources: &'static [&'static str],
    now: ArcSwap<(Vec<u64>, Arc<T>)>,
    compiling: Mutex<()>,
}

impl<T: Default> Compiled<T> {
    fn new(resources: &'static [&'static str]) -> Self {
        Self {
            resources,
            now: ArcSwap::from_pointee((Vec::new(), Arc::default())),
            compiling: Mutex::default(),
        }
    }

    /// The compiled form of what the cache holds now.
    pub fn get(&self, cluster: &ClusterRef, compile: impl FnOnce(&ClusterRef, &T) -> T) -> Arc<T> {
        let changed = || -> Vec<u64> { self.resources.iter().map(|r| cluster.changed(GROUP, r)).collect() };
        let now = self.now.load();
        if now.0 == changed() {
            return now.1.clone();
        }
        let _guard = self.compiling.lock();
        // Taken before the objects are read: what changes meanwhile is seen by the next request.
        let at = changed();
        let now = self.now.load();
        if now.0 == at {
            return now.1.clone();
        }
        let fresh = Arc::new(compile(cluster, &now.1));
        self.now.store(Arc::new((at, fresh.clone())));
        fresh
    }
}

/// The webhooks and policies in force, and how they are called.
pub(crate) struct Dynamic {
    client: Arc<webhook::Client>,
    mutating: Compiled<Vec<Hook>>,
    validating: Compiled<Vec<Hook>>,
    mutating_policies: Compiled<Vec<Policy>>,
    validating_policies: Compiled<Vec<Policy>>,
}

impl Dynamic {
    pub fn new(client: Arc<webhook::Client>) -> Self {
        Self {
            client,
            mutating: Compiled::new(&[webhooks::MUTATING]),
            validating: Compiled::new(&[webhooks::VALIDATING]),
            mutating_policies: Compiled::new(&policies::MUTATING),
            validating_policies: Compiled::new(&policies::VALIDATING),
        }
    }
}

/// The objects of a request in the version that somebody wants to see them in.
pub(crate) struct Form<'a> {
    pub object: Cow<'a, Value>,
    pub old: Option<Cow<'a, Value>>,
}

impl<'a> Form<'a> {
    pub async fn of(
        scene: &Scene<'_>,
        matched: &Matched,
        object: &'a Value,
        old: Option<&'a Value>,
    ) -> Result<Form<'a>, Status> {
        if matched.kind == scene.own().kind {
            return Ok(Self { object: Cow::Borrowed(object), old: old.map(Cow::Borrowed) });
        }
        let own = scene.own().resource;
        let convert = async |value: &Value| match value {
            Value::Null => Ok(Value::Null),
            value => scene.cluster.convert(&own, &matched.resource, value.clone()).await,
        };
        let object = Cow::Owned(convert(object).await?);
        let old = match old {
            Some(old) => Some(Cow::Owned(convert(old).await?)),
            None => None,
        };
        Ok(Self { object, old })
    }
}

/// Takes over what a webhook or a policy made of an object in the version of `matched`: what the kind does not know goes,
/// what is missing is defaulted, and the object returns into the request's version. Whether it changed.
pub(crate) async fn take_over(
    scene: &Scene<'_>,
    matched: &Matched,
    before: &Value,
    after: Value,
    object: &mut Value,
    validation: FieldValidation,
) -> Result<bool, Status> {
    let subresource = &scene.request.attributes.subresource;
    let cluster = scene.cluster;
    let after = cluster.complete(&matched.resource, subresource, &matched.kind, after, validation);
    let after = after.map_err(|e| Status::internal(e.message()))?;
    let changed = after != *before;
    if changed {
        let own = scene.own();
        *object = match own.kind == matched.kind {
            true => after,
            false => cluster.convert(&matched.resource, &own.resource, after).await?,
        };
    }
    Ok(changed)
}
