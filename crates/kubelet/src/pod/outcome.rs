//! What a worker makes of the results of its actions: what succeeded is noted, what failed is told and tried again later.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::start::StartError;
use super::{CLEAN, DELETE, Done, POD, RESIZE, Restarting, SANDBOX, STATUS, Stage, VOLUMES, Worker, api};
use crate::plan::Start;
use crate::status::Waiting;
use crate::{events, podutil, static_pods};

impl Worker {
    pub(super) fn back_off(&mut self, key: &str, first: Duration, most: Duration) {
        let tries = self.retry.get(key).map_or(0, |(_, tries)| *tries);
        let delay = first.saturating_mul(1 << tries.min(10)).min(most);
        self.retry.insert(key.to_owned(), (Instant::now() + delay, tries + 1));
    }

    pub(super) fn note(&mut self, done: Done) {
        match done {
            Done::Volumes(Ok(mut mounted)) => {
                self.busy.remove(VOLUMES);
                self.retry.remove(VOLUMES);
                self.held = std::mem::take(&mut mounted.held);
                self.inbox.set_volumes(mounted.paths.clone());
                self.mounted = Some(Arc::new(mounted));
            }
            Done::Volumes(Err((volume, error))) => {
                self.busy.remove(VOLUMES);
                let message = format!("MountVolume.SetUp failed for volume {volume:?} : {error}");
                self.context.recorder.warning(events::pod(&self.pod), "FailedMount", message);
                self.back_off(VOLUMES, Duration::from_millis(500), Duration::from_secs(15));
            }
            Done::Sandbox(result) => {
                self.busy.remove(SANDBOX);
                match result {
                    Ok(id) => {
                        self.retry.remove(SANDBOX);
                        self.sandboxes.insert(0, id);
                    }
                    Err(error) => {
                        let message = format!("Failed to create pod sandbox: {error}");
                        self.context.recorder.warning(
                            events::pod(&self.pod),
                            "FailedCreatePodSandBox",
                            message,
                        );
                        self.back_off(SANDBOX, Duration::from_secs(1), Duration::from_secs(30));
                    }
                }
                self.dirty = true;
            }
            Done::Start(start, result) => self.note_start(&start, result),
            Done::Kill(name) => {
                self.busy.remove(&name);
                self.dirty = true;
            }
            Done::KillPod(result) => {
                self.busy.remove(POD);
                self.killing = None;
                self.dirty = true;
                if let Err(error) = result {
                    let message = format!("error killing pod: {error}");
                    self.context.recorder.warning(events::pod(&self.pod), "FailedKillPod", message);
                    self.back_off(POD, Duration::from_millis(500), Duration::from_secs(10));
                }
            }
            Done::Resize(result) => {
                self.busy.remove(RESIZE);
                self.dirty = true;
                match result {
                    Ok(()) => {
                        self.retry.remove(RESIZE);
                        self.resize.error = None;
                        let message = "Pod resize completed";
                        self.context.recorder.normal(events::pod(&self.pod), "ResizeCompleted", message);
                    }
                    Err(error) => {
                        let message = format!("Error resizing the pod: {error}");
                        self.context.recorder.warning(events::pod(&self.pod), "ResizeError", message);
                        self.resize.error = Some(error);
                        self.back_off(RESIZE, Duration::from_secs(1), Duration::from_secs(30));
                    }
                }
            }
            Done::Reset(result) => {
                self.busy.remove(POD);
                self.dirty = true;
                match result {
                    Ok(()) => {
                        self.restarting = Restarting::Starting;
                        self.waiting.clear();
                        self.retry.clear();
                    }
                    Err(error) => {
                        tracing::warn!(
                            error,
                            pod = podutil::name(&self.pod),
                            "cannot restart all containers"
                        );
                        self.back_off(POD, Duration::from_millis(500), Duration::from_secs(10));
                    }
                }
            }
            Done::Clean(result) => {
                self.busy.remove(CLEAN);
                match result {
                    Ok(()) => self.stage = Stage::Finished,
                    Err(error) => {
                        tracing::warn!(error, pod = podutil::name(&self.pod), "cannot clean up after a pod");
                        self.back_off(CLEAN, Duration::from_millis(20), Duration::from_secs(10));
                    }
                }
            }
            Done::Status(status, result) => {
                self.busy.remove(STATUS);
                match result {
                    Ok(()) => {
                        self.retry.remove(STATUS);
                        self.sent = *status;
                    }
                    Err(error) if api::gone(&error) && static_pods::is_static(&self.pod) => {
                        self.mirror = None
                    }
                    Err(error) if api::gone(&error) => self.removed = true,
                    Err(error) => {
                        tracing::warn!(%error, pod = podutil::name(&self.pod), "cannot write a pod's status");
                        self.back_off(STATUS, Duration::from_millis(200), Duration::from_secs(10));
                    }
                }
            }
            Done::Delete(result) => {
                self.busy.remove(DELETE);
                match result {
                    Ok(()) => self.deleted = true,
                    Err(error) => {
                        tracing::warn!(%error, pod = podutil::name(&self.pod), "cannot delete a pod");
                        self.back_off(DELETE, Duration::from_millis(200), Duration::from_secs(10));
                    }
                }
            }
        }
    }

    fn note_start(&mut self, start: &Start, result: Result<(), StartError>) {
        self.busy.remove(&start.name);
        self.starting.remove(&start.name);
        self.dirty = true;
        let Err(error) = result else {
            self.waiting.remove(&start.name);
            self.retry.remove(&start.name);
            return;
        };
        let key = format!("image/{}", start.name);
        let waiting = error.waiting;
        if error.pulled {
            // The error itself is shown for a moment, then that we back off because of it.
            let now = Timestamp::now();
            self.backoffs.next(&key, now, now);
            let delay =
                self.backoffs.remaining(&key, now, now).map_or(Duration::from_secs(10), |(left, _)| left);
            let image = podutil::container(&self.pod, &start.name).and_then(|(found, _)| found.image);
            let text = format!("Back-off pulling image {:?}", image.unwrap_or_default());
            let object = events::container(&self.pod, start.kind, &start.name);
            self.context.recorder.normal(object, "BackOff", text.clone());
            self.retry.insert(start.name.clone(), (Instant::now() + delay, 0));
            let shown =
                self.waiting.get(&start.name).is_some_and(|waiting| waiting.reason.starts_with("ErrImage"));
            let waiting = if shown {
                let message = format!("{text}: {}: {}", waiting.reason, waiting.message);
                Waiting { reason: "ImagePullBackOff".to_owned(), message }
            } else {
                // The first failure is tried again soon, so that a registry's hiccup costs little.
                self.retry.insert(start.name.clone(), (Instant::now() + Duration::from_secs(2), 0));
                waiting
            };
            self.waiting.insert(start.name.clone(), waiting);
            return;
        }
        self.waiting.insert(start.name.clone(), waiting);
        self.back_off(&start.name, Duration::from_secs(1), Duration::from_secs(10));
    }
}
