//! What reaches a pod's worker from outside, and what it tells to the outside.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::status::Verdict;

/// What reaches a worker from outside.
#[derive(Default)]
pub(crate) struct Inbox {
    news: Mutex<News>,
    notify: Notify,
    /// Nothing of the pod runs any more.
    quiet: AtomicBool,
    /// Where the pod's volumes lie on the node, by name.
    paths: Mutex<BTreeMap<String, PathBuf>>,
}

/// What has come.
#[derive(Default)]
pub(super) struct News {
    pub(super) pod: Option<Arc<Pod>>,
    pub(super) removed: bool,
    pub(super) runtime: bool,
    /// The copy in the API, of a static pod.
    pub(super) mirror: Option<Option<Arc<Pod>>>,
    pub(super) evict: Option<(Verdict, i64)>,
}

impl Inbox {
    pub(crate) fn update(&self, pod: Arc<Pod>) {
        self.news.lock().pod = Some(pod);
        self.notify.notify_one();
    }

    /// The pod fails for the node's needs, with `grace` seconds to end by itself.
    pub(crate) fn evict(&self, verdict: Verdict, grace: i64) {
        self.news.lock().evict = Some((verdict, grace));
        self.notify.notify_one();
    }

    /// Where the pod's volumes lie, once they are set up.
    pub(crate) fn volumes(&self) -> BTreeMap<String, PathBuf> {
        self.paths.lock().clone()
    }

    pub(super) fn set_volumes(&self, paths: BTreeMap<String, PathBuf>) {
        *self.paths.lock() = paths;
    }

    /// Takes what has come since the last call.
    pub(super) fn take(&self) -> News {
        std::mem::take(&mut *self.news.lock())
    }

    /// Resolves once something has come.
    pub(super) async fn notified(&self) {
        self.notify.notified().await;
    }

    pub(super) fn set_quiet(&self) {
        self.quiet.store(true, Ordering::Relaxed);
    }

    /// Whether nothing of the pod runs any more.
    pub(crate) fn is_quiet(&self) -> bool {
        self.quiet.load(Ordering::Relaxed)
    }

    /// What the API has of a static pod.
    pub(crate) fn mirror(&self, copy: Option<Arc<Pod>>) {
        self.news.lock().mirror = Some(copy);
        self.notify.notify_one();
    }

    /// The object is gone from the API.
    pub(crate) fn remove(&self) {
        self.news.lock().removed = true;
        self.notify.notify_one();
    }

    /// Something happened to the pod's containers.
    pub(crate) fn runtime_changed(&self) {
        self.news.lock().runtime = true;
        self.notify.notify_one();
    }
}
