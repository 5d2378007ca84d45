//! Send windows of a connection and its streams.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};

use tokio::sync::Notify;

const DEFAULT_WINDOW: i64 = 64 * 1024;

/// Counts what may still be sent; waits only when the peer takes part in flow control.
pub(super) struct Windows {
    state: Mutex<State>,
    changed: Notify,
}

struct State {
    /// The peer has sent SETTINGS or WINDOW_UPDATE.
    binding: bool,
    abandoned: bool,
    initial: i64,
    session: i64,
    streams: HashMap<u32, i64>,
}

impl Default for Windows {
    fn default() -> Self {
        Windows {
            state: Mutex::new(State {
                binding: false,
                abandoned: false,
                initial: DEFAULT_WINDOW,
                session: DEFAULT_WINDOW,
                streams: HashMap::new(),
            }),
            changed: Notify::new(),
        }
    }
}

impl Windows {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub(super) fn open(&self, stream: u32) {
        let mut state = self.state();
        let initial = state.initial;
        state.streams.insert(stream, initial);
    }

    pub(super) fn forget(&self, stream: u32) {
        self.state().streams.remove(&stream);
        self.changed.notify_waiters();
    }

    pub(super) fn abandon(&self) {
        self.state().abandoned = true;
        self.changed.notify_waiters();
    }

    pub(super) fn initial(&self, window: u32) {
        {
            let mut state = self.state();
            let change = i64::from(window) - state.initial;
            state.initial = i64::from(window);
            state.binding = true;
            state.streams.values_mut().for_each(|left| *left += change);
        }
        self.changed.notify_waiters();
    }

    pub(super) fn add(&self, stream: u32, delta: u32) {
        {
            let mut state = self.state();
            state.binding = true;
            if stream == 0 {
                state.session += i64::from(delta);
            } else if let Some(left) = state.streams.get_mut(&stream) {
                *left += i64::from(delta);
            }
        }
        self.changed.notify_waiters();
    }

    /// Waits until some of `wanted` bytes may be sent on `stream`; `None` if the stream is gone.
    pub(super) async fn take(&self, stream: u32, wanted: usize) -> Option<usize> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let mut state = self.state();
                if state.abandoned {
                    return None;
                }
                let left = *state.streams.get(&stream)?;
                let granted = if state.binding {
                    (wanted as i64).min(left).min(state.session).max(0)
                } else {
                    wanted as i64
                };
                if granted > 0 {
                    state.session -= granted;
                    state.streams.insert(stream, left - granted);
                    return Some(granted as usize);
                }
            }
            changed.await;
        }
    }
}
