//! Fills the caches: reads the whole store once, then follows one watch over it. `applied` tells how far; a read that must
//! be as new as the store waits for that, which costs no I/O.

use std::sync::Arc;

use bytes::Bytes;
use store::{Event, Store};
use tokio_util::sync::CancellationToken;

use super::Caches;
use super::object::{Change, Object};
use crate::{Status, Transform};

/// All keys of the API server begin with this.
pub const PREFIX: &[u8] = b"/registry/";
const PAGE: usize = 2000;

/// Turns stored bytes into objects.
#[derive(Clone)]
pub struct Codec {
    pub transform: Option<Arc<dyn Transform>>,
}

impl Codec {
    /// The plain stored form.
    pub fn open(&self, group: &str, resource: &str, key: &[u8], sealed: &Bytes) -> Result<Bytes, Status> {
        match &self.transform {
            Some(transform) => transform.open(group, resource, key, sealed.clone()),
            None => Ok(sealed.clone()),
        }
    }

    /// What is put into the store.
    pub fn seal(&self, group: &str, resource: &str, key: &[u8], plain: Bytes) -> Result<Bytes, Status> {
        match &self.transform {
            Some(transform) => transform.seal(group, resource, key, plain),
            None => Ok(plain),
        }
    }

    /// Fetches the keys that some of these values need; of nearly all of them none do, and nothing is waited for.
    pub async fn ready<'a>(&self, values: impl Iterator<Item = &'a Bytes>) {
        let Some(transform) = &self.transform else { return };
        let missing: Vec<Bytes> = values.filter(|value| transform.unprepared(value)).cloned().collect();
        if !missing.is_empty() {
            transform.prepare(&missing).await;
        }
    }

    /// An object from a store value.
    pub fn object(
        &self,
        (group, resource, key): (&str, &str, &str),
        store_key: &[u8],
        value: &Bytes,
        revision: u64,
        change: Change,
    ) -> Result<Object, Status> {
        let plain = self.open(group, resource, store_key, value)?;
        Object::from_stored(key.into(), revision, &plain, change)
    }
}

/// Group, resource and object key of a store key.
pub fn split(key: &[u8]) -> Option<(&str, &str, &str)> {
    let rest = std::str::from_utf8(key.strip_prefix(PREFIX)?).ok()?;
    let (group, rest) = rest.split_once('/')?;
    let (resource, key) = rest.split_once('/')?;
    Some((if group == "core" { "" } else { group }, resource, key))
}

/// The store key of an object.
pub fn join(group: &str, resource: &str, key: &str) -> Bytes {
    let group = if group.is_empty() { "core" } else { group };
    [PREFIX, group.as_bytes(), b"/", resource.as_bytes(), b"/", key.as_bytes()].concat().into()
}

/// Reads everything into the caches; the revision that they then stand at.
pub async fn load(store: &Store, caches: &Caches, codec: &Codec) -> Result<u64, store::Error> {
    let prefix = Bytes::from_static(PREFIX);
    let revision = store.revision();
    let mut from = None;
    loop {
        let page = store.range(prefix.clone(), from.take(), PAGE, Some(revision)).await?;
        codec.ready(page.items.iter().map(|kv| &kv.value)).await;
        for kv in &page.items {
            let Some((group, resource, key)) = split(&kv.key) else { continue };
            match codec.object((group, resource, key), &kv.key, &kv.value, kv.mod_revision, Change::Added) {
                Ok(object) => caches.of(group, resource, revision).load(object),
                Err(error) => {
                    tracing::error!(key = %String::from_utf8_lossy(&kv.key), %error, "unreadable object")
                }
            }
        }
        match page.items.last() {
            Some(last) if page.more => from = Some([last.key.as_ref(), b"\0"].concat().into()),
            _ => return Ok(revision),
        }
    }
}

/// Follows the store until it closes or the server stops.
pub async fn follow(store: Store, caches: Arc<Caches>, codec: Codec, from: u64, shutdown: CancellationToken) {
    let mut next = from + 1;
    while !shutdown.is_cancelled() {
        let mut watch = match store.watch(Bytes::from_static(PREFIX), next).await {
            Ok(watch) => watch,
            Err(error) => {
                tracing::error!(%error, "the cache lost the store's history; restart the server");
                return;
            }
        };
        let mut progress = watch.progress();
        let seen = tokio::spawn({
            let caches = caches.clone();
            async move {
                loop {
                    let revision = *progress.borrow_and_update();
                    caches.applied(revision);
                    if progress.changed().await.is_err() {
                        return;
                    }
                }
            }
        });
        loop {
            let batch = tokio::select! {
                batch = watch.next() => batch,
                () = shutdown.cancelled() => break,
            };
            match batch {
                Some(Ok(events)) => {
                    codec.ready(values(&events)).await;
                    apply(&caches, &codec, &events);
                    if let Some(last) = events.last() {
                        next = last.revision + 1;
                        caches.applied(last.revision);
                    }
                }
                Some(Err(error)) => {
                    tracing::error!(%error, "the store's watch broke off");
                    break;
                }
                None => {
                    seen.abort();
                    return;
                }
            }
        }
        seen.abort();
    }
}

/// All values of events.
pub fn values(events: &[Event]) -> impl Iterator<Item = &Bytes> {
    events.iter().flat_map(|e| e.current.iter().chain(&e.previous)).map(|kv| &kv.value)
}

fn apply(caches: &Caches, codec: &Codec, events: &[Event]) {
    let mut rest = events;
    while let Some(first) = rest.first() {
        let Some((group, resource, _)) = split(&first.key) else {
            rest = &rest[1..];
            continue;
        };
        let same = |e: &Event| split(&e.key).is_some_and(|(g, r, _)| g == group && r == resource);
        let run = rest.iter().position(|e| !same(e)).unwrap_or(rest.len());
        let cache = caches.of(group, resource, first.revision - 1);
        cache.apply(rest[..run].iter().filter_map(|event| {
            let (_, _, key) = split(&event.key)?;
            let object = event.current.as_ref().map(|kv| {
                let change = if event.previous.is_some() { Change::Modified } else { Change::Added };
                codec.object((group, resource, key), &kv.key, &kv.value, kv.mod_revision, change)
            });
            match object.transpose() {
                Ok(object) => Some((Arc::from(key), event.revision, object)),
                Err(error) => {
                    tracing::error!(%key, %error, "unreadable object");
                    None
                }
            }
        }));
        rest = &rest[run..];
    }
}
