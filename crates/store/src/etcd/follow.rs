//! Watch streams of etcd: the one that feeds the window of recent events, and short ones that read older history.
//!
//! How far a stream has come is told by its events and, between them, by progress notifications. Members older than 3.4.25
//! and 3.5.8 may send a notification before the events that it covers (etcd-io/etcd#15220). At such a member the whole key
//! space is watched instead of the own prefix: each revision then has an event, and notifications are not needed.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::channel::mpsc;
use futures::future::BoxFuture;
use tonic::{Status, Streaming};

use super::api::{
    EVENT_DELETE, WatchCreateRequest, WatchKind, WatchProgressRequest, WatchRequest, WatchResponse,
};
use super::{Core, from_revision, key_value, prefix_end, to_revision};
use crate::watch::History;
use crate::{Error, Event, Result};

/// Between tries to open a stream.
const BACKOFF: Duration = Duration::from_millis(100);
/// Between requests for progress while somebody waits for it.
const NUDGE: Duration = Duration::from_millis(20);
/// A stream that does not come as far as a read needs in this time is given up for another member's.
const STALL: Duration = Duration::from_secs(2);
/// A stream that was silent for this long is asked for: members have been seen that forget a watch.
const SILENCE: Duration = Duration::from_secs(5);
/// How long a read of history may take.
const HISTORY: Duration = Duration::from_secs(10);

/// What a stream has brought.
struct Step {
    events: Vec<Event>,
    /// Every event up to here has been brought.
    complete: u64,
}

struct Stream {
    responses: Streaming<WatchResponse>,
    requests: mpsc::UnboundedSender<WatchRequest>,
    /// Whether progress notifications can be relied on.
    notified: bool,
    prefix: Bytes,
}

enum End {
    Compacted(u64),
    Broken(Status),
}

impl Stream {
    async fn open(core: &Core, member: usize, from: u64) -> Result<Stream, Status> {
        let version = core.client.version(member).await?;
        let notified = reliable_progress(&version);
        let (key, range_end) = match notified {
            true if !core.prefix.is_empty() => (core.prefix.clone(), prefix_end(&core.prefix)),
            // From the first key to the last.
            _ => (Bytes::from_static(b"\0"), Bytes::from_static(b"\0")),
        };
        let create = WatchCreateRequest {
            key,
            range_end,
            start_revision: to_revision(from),
            progress_notify: notified,
            prev_kv: true,
        };
        let (requests, receiver) = mpsc::unbounded();
        let _ = requests.unbounded_send(WatchRequest { request: Some(WatchKind::Create(create)) });
        let responses = core.client.watch(member, receiver).await?;
        Ok(Stream { responses, requests, notified, prefix: core.prefix.clone() })
    }

    /// Asks how far the stream has come. The answer may fail to come while it is catching up.
    fn ask_progress(&self) {
        if self.notified {
            let request = WatchKind::Progress(WatchProgressRequest {});
            let _ = self.requests.unbounded_send(WatchRequest { request: Some(request) });
        }
    }

    /// The next response that says something. Safe to cancel.
    async fn next(&mut self) -> Result<Step, End> {
        loop {
            let response = match self.responses.next().await {
                Some(Ok(response)) => response,
                Some(Err(status)) => return Err(End::Broken(status)),
                None => return Err(End::Broken(Status::unavailable("the stream ended"))),
            };
            if response.canceled {
                return Err(match response.compact_revision {
                    0 => End::Broken(Status::unavailable(response.cancel_reason)),
                    compacted => End::Compacted(from_revision(compacted)),
                });
            }
            if response.created {
                continue;
            }
            let revision = response.header.map_or(0, |header| from_revision(header.revision));
            let last = response.events.last().and_then(|event| event.kv.as_ref());
            match last {
                Some(last) => {
                    let complete = from_revision(last.mod_revision);
                    let own = response.events.into_iter().filter_map(|event| change(event, &self.prefix));
                    return Ok(Step { events: own.collect(), complete });
                }
                None if self.notified => return Ok(Step { events: Vec::new(), complete: revision }),
                None => {}
            }
        }
    }
}

/// Whether a notification of this version never runs ahead of the events.
fn reliable_progress(version: &str) -> bool {
    let mut numbers = version.split(['.', '-', '+']).map(|part| part.parse::<u32>().unwrap_or(0));
    let mut next = || numbers.next().unwrap_or(0);
    match (next(), next(), next()) {
        (3, 4, patch) => patch >= 25,
        (3, 5, patch) => patch >= 8,
        (major, minor, _) => (major, minor) > (3, 5),
    }
}

/// An event under the prefix, with keys as the store's users know them.
fn change(event: super::api::Event, prefix: &[u8]) -> Option<Event> {
    let kv = event.kv?;
    if !kv.key.starts_with(prefix) {
        return None;
    }
    let revision = from_revision(kv.mod_revision);
    let key = kv.key.slice(prefix.len()..);
    let current = (event.kind != EVENT_DELETE).then(|| key_value(kv, prefix.len()));
    let previous = event.prev_kv.map(|kv| key_value(kv, prefix.len()));
    Some(Event { revision, key, current, previous })
}

/// Feeds the window until the store is dropped.
pub(super) async fn run(core: Arc<Core>) {
    loop {
        let member = core.client.current();
        let ended = match Stream::open(&core, member, core.hub.revision() + 1).await {
            Ok(stream) => feed(&core, stream).await,
            Err(status) => End::Broken(status),
        };
        match ended {
            End::Compacted(revision) => {
                tracing::warn!(revision, "etcd has compacted what was not read yet; starting anew");
                // Watches that were behind find nothing in the window, ask the history, and are told.
                let now = core.read_newest().await;
                match now {
                    Ok(now) => core.hub.reset(now),
                    Err(error) => tracing::warn!(%error, "etcd does not answer"),
                }
            }
            End::Broken(status) => {
                tracing::warn!(%status, "the watch on etcd broke off; going on at another member");
                core.client.turn_from(member);
            }
        }
        tokio::time::sleep(BACKOFF).await;
    }
}

async fn feed(core: &Core, mut stream: Stream) -> End {
    loop {
        let step = tokio::select! {
            step = stream.next() => step,
            behind = core.wanted_beyond_window() => {
                match catch_up(core, &mut stream, behind).await {
                    Ok(()) => continue,
                    Err(end) => return end,
                }
            }
            () = tokio::time::sleep(SILENCE) => {
                match core.read_newest().await {
                    Ok(newest) => core.want(newest),
                    Err(error) => tracing::debug!(%error, "etcd does not answer"),
                }
                continue;
            }
        };
        match step {
            Ok(step) => publish(core, step),
            Err(end) => return end,
        }
    }
}

/// Reads on until `wanted` has come.
async fn catch_up(core: &Core, stream: &mut Stream, wanted: u64) -> Result<(), End> {
    let deadline = tokio::time::Instant::now() + STALL;
    stream.ask_progress();
    while core.hub.revision() < wanted {
        match tokio::time::timeout(NUDGE, stream.next()).await {
            Ok(step) => publish(core, step?),
            Err(_) if tokio::time::Instant::now() > deadline => {
                return Err(End::Broken(Status::unavailable("the stream stays behind")));
            }
            Err(_) => stream.ask_progress(),
        }
    }
    Ok(())
}

fn publish(core: &Core, step: Step) {
    let known = core.hub.revision();
    if step.complete > known {
        // A stream opened anew may repeat nothing; it begins right after what is known.
        core.hub.publish(known + 1, step.complete, step.events);
    }
}

/// Older events, read by a stream of their own.
pub(super) struct Past(pub Arc<Core>);

impl History for Past {
    fn events(&self, prefix: Bytes, from: u64, limit: usize) -> BoxFuture<'_, Result<(Vec<Event>, u64)>> {
        Box::pin(async move {
            match tokio::time::timeout(HISTORY, self.read(prefix, from, limit)).await {
                Ok(answer) => answer,
                Err(_) => Err(Error::Unavailable {
                    context: "reading the history from etcd",
                    source: "no answer in time".into(),
                }),
            }
        })
    }
}

impl Past {
    async fn read(&self, prefix: Bytes, from: u64, limit: usize) -> Result<(Vec<Event>, u64)> {
        let core = &self.0;
        let target = core.hub.revision();
        let (mut events, mut next) = (Vec::new(), from);
        // Revision 1 is that of an empty store.
        while next.max(2) <= target && events.len() < limit {
            let member = core.client.current();
            let mut stream = match Stream::open(core, member, next).await {
                Ok(stream) => stream,
                Err(status) => {
                    tracing::debug!(%status, "etcd did not answer; asking another member");
                    core.client.turn_from(member);
                    tokio::time::sleep(BACKOFF).await;
                    continue;
                }
            };
            while next <= target && events.len() < limit {
                match tokio::time::timeout(NUDGE, stream.next()).await {
                    Ok(Ok(step)) => {
                        next = next.max(step.complete + 1);
                        events.extend(step.events.into_iter().filter(|one| one.key.starts_with(&prefix)));
                    }
                    Ok(Err(End::Compacted(compacted))) => {
                        core.note_compacted(compacted);
                        return Err(Error::Compacted { requested: next, compacted });
                    }
                    Ok(Err(End::Broken(status))) => match super::client::refused(&status, "reading") {
                        Error::Compacted { .. } => {
                            return Err(Error::Compacted { requested: next, compacted: core.compacted() });
                        }
                        _ => break,
                    },
                    Err(_) => stream.ask_progress(),
                }
            }
        }
        Ok((events, next))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_members_notify_too_early() {
        for (version, reliable) in [
            ("3.4.23", false),
            ("3.4.25", true),
            ("3.5.7", false),
            ("3.5.8", true),
            ("3.5.21-rc.1", true),
            ("3.6.0", true),
            ("4.0.0", true),
            ("3.3.27", false),
            ("", false),
        ] {
            assert_eq!(reliable_progress(version), reliable, "{version}");
        }
    }
}
