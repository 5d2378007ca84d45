//! What the server does by itself: it forgets old revisions and expired Events, repairs what is told of addresses, and
//! compares its caches with the store.

use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, StreamExt};
use jiff::Timestamp;

use crate::expiry::Expiry;
use crate::metrics::metrics;
use crate::registry::Written;
use crate::server::Server;

/// How often the caches are compared with the store.
const COMPARISON: Duration = Duration::from_secs(300);
const EXPIRY: Duration = Duration::from_secs(60);
/// Expired Events that are removed side by side.
const REMOVALS: usize = 64;
const REPAIR: Duration = Duration::from_secs(180);

/// Runs until it is dropped.
pub async fn run(server: Arc<Server>) {
    let window = server.config.compaction_interval;
    // Without compaction the timer still ticks, but rarely.
    let mut compaction = tokio::time::interval(if window.is_zero() { COMPARISON } else { window });
    let mut comparison = tokio::time::interval(COMPARISON);
    comparison.reset();
    let mut expiry = tokio::time::interval(EXPIRY);
    let mut repair = tokio::time::interval(REPAIR);
    let mut keep = None;
    let mut expired = Expiry::default();
    loop {
        tokio::select! {
            _ = compaction.tick() => {
                // What was current one interval ago stays readable.
                let revision = server.registry.store.revision();
                if let Some(old) = keep.replace(revision)
                    && !window.is_zero()
                {
                    match server.registry.store.compact(old).await {
                        Ok(()) => server.registry.caches.forget(old),
                        Err(error) => tracing::warn!(%error, "compaction failed"),
                    }
                }
            }
            _ = comparison.tick() => {
                server.registry.compare(|group, resource, agreed| {
                    if let Err(error) = &agreed {
                        tracing::debug!(%error, group, resource, "the store was not compared with the cache");
                    }
                    let status = match agreed {
                        Ok(true) => "success",
                        Ok(false) => "failure",
                        Err(_) => "error",
                    };
                    metrics().consistency_checks.with(&[group, resource, status]).increment();
                }).await;
            }
            _ = expiry.tick() => expire_events(&server, &mut expired).await,
            _ = repair.tick() => {
                let _turn = server.allocators.turn().await;
                crate::special::repair_addresses(&server).await;
            }
            () = server.shutdown.cancelled() => return,
        }
    }
}

async fn expire_events(server: &Server, expiry: &mut Expiry) {
    let Some(row) = server.registry.any("", "events") else { return };
    let ttl = i64::try_from(server.config.event_ttl).unwrap_or(i64::MAX / 4);
    let now = Timestamp::now().as_second();
    let removals = expiry.due(&row.cache, ttl, now).into_iter().map(|object| async {
        let removed = server.registry.remove(&row, &object.key, object.revision).await;
        (object, removed)
    });
    // Many at once, so that they share commits.
    let mut removals = stream::iter(removals).buffer_unordered(REMOVALS);
    while let Some((object, removed)) = removals.next().await {
        match removed {
            Ok(Written::At(_) | Written::Conflict(None)) => {}
            // It has been written meanwhile.
            Ok(Written::Conflict(Some(_))) => expiry.again(&object, now),
            Err(error) => {
                tracing::debug!(name = object.name(), %error, "an expired event stays");
                expiry.again(&object, now);
            }
        }
    }
}
