//! Fills the caches: reads the whole store once, then follows one watch over it. `applied` tells how far; a read that must
//! be as new as the store waits for that, which costs no I/O.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use store::{Event, Store};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::Caches;
use super::object::{Change, Object};
use crate::metrics::metrics;
use crate::{Status, Transform};

/// All keys of the API server begin with this.
pub const PREFIX: &[u8] = b"/registry/";
const PAGE: usize = 2000;
/// Before a failed watch is tried again.
const RETRY: Duration = Duration::from_millis(200);

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

/// Follows the store until it closes or the server stops. What cannot be followed, and what `reload` names because it does
/// not agree with the store, is read anew.
pub async fn follow(
    store: Store,
    caches: Arc<Caches>,
    codec: Codec,
    from: u64,
    mut reload: mpsc::Receiver<(String, String)>,
    shutdown: CancellationToken,
) {
    let mut next = from + 1;
    while !shutdown.is_cancelled() {
        let mut watch = match store.watch(Bytes::from_static(PREFIX), next).await {
            Ok(watch) => watch,
            Err(error) => {
                next = recover(&store, &caches, &codec, next, &error).await;
                continue;
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
        let failed = loop {
            let batch = tokio::select! {
                batch = watch.next() => batch,
                Some((group, resource)) = reload.recv() => {
                    // Between two batches the cache is exactly at the revision before the next.
                    if let Err(error) = refill(&store, &caches, &codec, (&group, &resource), next - 1).await {
                        tracing::error!(%error, group, resource, "a cache could not be read anew");
                    }
                    continue;
                }
                () = shutdown.cancelled() => break None,
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
                Some(Err(error)) => break Some(error),
                None => {
                    seen.abort();
                    return;
                }
            }
        };
        seen.abort();
        if let Some(error) = failed {
            next = recover(&store, &caches, &codec, next, &error).await;
        }
    }
}

/// All values of events.
pub fn values(events: &[Event]) -> impl Iterator<Item = &Bytes> {
    events.iter().flat_map(|e| e.current.iter().chain(&e.previous)).map(|kv| &kv.value)
}

/// After a failed watch: where to go on. History that is gone is jumped over by reading all caches anew, which ends their
/// watchers.
async fn recover(store: &Store, caches: &Caches, codec: &Codec, next: u64, error: &store::Error) -> u64 {
    if !matches!(error, store::Error::Compacted { .. }) {
        tracing::warn!(%error, "the store's watch broke off");
        tokio::time::sleep(RETRY).await;
        return next;
    }
    tracing::warn!(%error, "the caches lost the store's history and are read anew");
    let read = async {
        let revision = store.newest().await?;
        for (group, resource) in caches.names() {
            refill(store, caches, codec, (&group, &resource), revision).await?;
        }
        Ok::<_, store::Error>(revision)
    };
    match read.await {
        Ok(revision) => {
            caches.applied(revision);
            revision + 1
        }
        Err(error) => {
            tracing::warn!(%error, "the store could not be read");
            tokio::time::sleep(RETRY).await;
            next
        }
    }
}

/// Reads one resource anew, as it is at a revision.
async fn refill(
    store: &Store,
    caches: &Caches,
    codec: &Codec,
    (group, resource): (&str, &str),
    revision: u64,
) -> Result<(), store::Error> {
    let (mut objects, mut from) = (Vec::new(), None);
    loop {
        let page = store.range(join(group, resource, ""), from.take(), PAGE, Some(revision)).await?;
        codec.ready(page.items.iter().map(|kv| &kv.value)).await;
        for kv in &page.items {
            let Some((_, _, key)) = split(&kv.key) else { continue };
            match codec.object((group, resource, key), &kv.key, &kv.value, kv.mod_revision, Change::Added) {
                Ok(object) => objects.push(object),
                Err(error) => tracing::error!(%key, %error, "unreadable object"),
            }
        }
        match page.items.last() {
            Some(last) if page.more => from = Some([last.key.as_ref(), b"\0"].concat().into()),
            _ => break,
        }
    }
    caches.of(group, resource, revision).replace(objects, revision);
    Ok(())
}

/// Applies one batch. A resource's events are applied together, so that no watcher sees half of a revision.
fn apply(caches: &Caches, codec: &Codec, events: &[Event]) {
    let mut groups: Vec<((&str, &str), Vec<&Event>)> = Vec::new();
    for event in events {
        let Some((group, resource, _)) = split(&event.key) else { continue };
        match groups.iter_mut().rev().find(|(names, _)| *names == (group, resource)) {
            Some((_, own)) => own.push(event),
            None => groups.push(((group, resource), vec![event])),
        }
    }
    for ((group, resource), events) in groups {
        metrics().storage_events.with(&[group, resource]).add(events.len() as u64);
        let cache = caches.of(group, resource, events[0].revision - 1);
        cache.apply(events.into_iter().filter_map(|event| {
            let (_, _, key) = split(&event.key)?;
            let object = event.current.as_ref().map(|kv| {
                let change = if kv.version > 1 { Change::Modified } else { Change::Added };
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
    }
}
