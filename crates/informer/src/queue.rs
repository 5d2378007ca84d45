//! A work queue: a key waits in it once however often it is added, is worked on by one worker at a time,
//! and comes back later after a failure, each time twice as late. Its size is bounded by the number of keys.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::fmt::{Debug, Display};
use std::future::Future;
use std::hash::Hash;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::meters::{self, Queued, UnderWay};

const FIRST_RETRY: Duration = Duration::from_millis(5);
const LAST_RETRY: Duration = Duration::from_secs(1000);

struct State<T> {
    ready: VecDeque<T>,
    /// In `ready`, or added again while being worked on; since when.
    dirty: HashMap<T, Instant>,
    /// Since when.
    working: HashMap<T, Instant>,
    later: BinaryHeap<Reverse<(Instant, T)>>,
    /// The earliest time at which a key in `later` is due; other entries of that key are stale.
    due: HashMap<T, Instant>,
    failures: HashMap<T, u32>,
    /// Keys that were added before the queue was counted under a name.
    uncounted: u64,
}

/// The queue; share it by `Arc`.
pub struct Queue<T> {
    state: Mutex<State<T>>,
    wake: Notify,
    /// Known once the queue is worked on.
    meters: OnceLock<Queued>,
}

impl<T: Clone + Eq + Ord + Hash> Default for Queue<T> {
    fn default() -> Self {
        Self {
            state: Mutex::new(State {
                ready: VecDeque::new(),
                dirty: HashMap::new(),
                working: HashMap::new(),
                later: BinaryHeap::new(),
                due: HashMap::new(),
                failures: HashMap::new(),
                uncounted: 0,
            }),
            wake: Notify::new(),
            meters: OnceLock::new(),
        }
    }
}

impl<T: Clone + Eq + Ord + Hash> Queue<T> {
    /// An empty queue.
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// Adds a key now.
    pub fn add(&self, key: T) {
        let mut state = self.state.lock();
        let woken = state.add(key);
        self.count(&mut state);
        drop(state);
        if woken {
            self.wake.notify_one();
        }
    }

    /// Counts what was added, once the queue has a name.
    fn count(&self, state: &mut State<T>) {
        if let Some(meters) = self.meters.get() {
            meters.adds.add(std::mem::take(&mut state.uncounted));
        }
    }

    /// Adds a key after a delay; of several delays the shortest counts.
    pub fn add_after(&self, key: T, delay: Duration) {
        if delay.is_zero() {
            return self.add(key);
        }
        let mut state = self.state.lock();
        let at = Instant::now() + delay;
        if state.due.get(&key).is_some_and(|due| *due <= at) {
            return;
        }
        state.due.insert(key.clone(), at);
        state.later.push(Reverse((at, key)));
        drop(state);
        self.wake.notify_one();
    }

    /// Adds a key after its back-off, which doubles.
    pub fn add_rate_limited(&self, key: T) {
        if let Some(meters) = self.meters.get() {
            meters.retries.increment();
        }
        let delay = self.next_delay(&key);
        self.add_after(key, delay);
    }

    fn next_delay(&self, key: &T) -> Duration {
        let mut state = self.state.lock();
        let failures = state.failures.entry(key.clone()).or_default();
        let factor = 1u32.checked_shl(*failures).unwrap_or(u32::MAX);
        *failures += 1;
        FIRST_RETRY.saturating_mul(factor).min(LAST_RETRY)
    }

    /// Ends a key's back-off.
    pub fn forget(&self, key: &T) {
        self.state.lock().failures.remove(key);
    }

    /// How often in a row a key has failed.
    pub fn failures(&self, key: &T) -> u32 {
        self.state.lock().failures.get(key).copied().unwrap_or_default()
    }

    /// The next key to work on. Call [`Queue::done`] with it afterwards.
    pub async fn next(&self) -> T {
        loop {
            let due = {
                let mut state = self.state.lock();
                let now = Instant::now();
                let due = state.promote(now);
                self.count(&mut state);
                if let Some(key) = state.ready.pop_front() {
                    let since = state.dirty.remove(&key);
                    state.working.insert(key.clone(), now);
                    if let (Some(meters), Some(since)) = (self.meters.get(), since) {
                        meters.waited.observe(now.duration_since(since).as_secs_f64());
                    }
                    return key;
                }
                due
            };
            match due {
                Some(at) => tokio::select! {
                    () = self.wake.notified() => {}
                    () = tokio::time::sleep_until(at) => {}
                },
                None => self.wake.notified().await,
            }
        }
    }

    /// Ends work on a key; if it was added meanwhile it is ready again.
    pub fn done(&self, key: &T) {
        let mut state = self.state.lock();
        let since = state.working.remove(key);
        if let (Some(meters), Some(since)) = (self.meters.get(), since) {
            meters.worked.observe(since.elapsed().as_secs_f64());
        }
        if state.dirty.contains_key(key) {
            state.ready.push_back(key.clone());
            drop(state);
            self.wake.notify_one();
        }
    }
}

impl<T: Clone + Eq + Ord + Hash> State<T> {
    fn add(&mut self, key: T) -> bool {
        if self.dirty.contains_key(&key) {
            return false;
        }
        self.uncounted += 1;
        self.dirty.insert(key.clone(), Instant::now());
        if self.working.contains_key(&key) {
            return false;
        }
        self.ready.push_back(key);
        true
    }

    fn promote(&mut self, now: Instant) -> Option<Instant> {
        while let Some(Reverse((at, _))) = self.later.peek() {
            if *at > now {
                return Some(*at);
            }
            if let Some(Reverse((at, key))) = self.later.pop()
                && self.due.get(&key) == Some(&at)
            {
                self.due.remove(&key);
                self.add(key);
            }
        }
        None
    }
}

impl<T: Clone + Eq + Ord + Hash + Display + Debug + Send + Sync + 'static> Queue<T> {
    /// Works on keys with at most `limit` at a time until `shutdown`. `work` returns when the key should be
    /// looked at again, if time alone can change its outcome; an error brings it back after its back-off.
    pub async fn run<F, R, E>(
        self: Arc<Self>,
        name: &'static str,
        limit: usize,
        shutdown: CancellationToken,
        work: F,
    ) where
        F: Fn(T) -> R + Send + Sync + 'static,
        R: Future<Output = Result<Option<Duration>, E>> + Send + 'static,
        E: Display + Send + 'static,
    {
        let _ = self.meters.set(Queued::new(name));
        let own: Arc<dyn UnderWay> = self.clone();
        meters::watch(name, Arc::downgrade(&own));
        let work = Arc::new(work);
        let slots = Arc::new(Semaphore::new(limit));
        loop {
            let slot = slots.clone().acquire_owned().await.expect("the semaphore is never closed");
            let key = tokio::select! {
                key = self.next() => key,
                () = shutdown.cancelled() => break,
            };
            let (queue, work) = (self.clone(), work.clone());
            tokio::spawn(async move {
                // Ends work also if `work` panics.
                let guard = Guard { queue: &queue, key: &key };
                match work(key.clone()).await {
                    Ok(again) => {
                        queue.forget(&key);
                        if let Some(delay) = again {
                            queue.add_after(key.clone(), delay);
                        }
                    }
                    Err(error) => {
                        tracing::debug!(controller = name, %key, %error, "will try again");
                        queue.add_rate_limited(key.clone());
                    }
                }
                drop(guard);
                drop(slot);
            });
        }
        // Lets what is under way finish.
        let _ = slots.acquire_many(u32::try_from(limit).unwrap_or(u32::MAX)).await;
    }
}

impl<T: Clone + Eq + Ord + Hash + Send + Sync> UnderWay for Queue<T> {
    fn under_way(&self) -> (Vec<Duration>, usize) {
        let state = self.state.lock();
        (state.working.values().map(Instant::elapsed).collect(), state.ready.len())
    }
}

struct Guard<'a, T: Clone + Eq + Ord + Hash> {
    queue: &'a Queue<T>,
    key: &'a T,
}

impl<T: Clone + Eq + Ord + Hash> Drop for Guard<'_, T> {
    fn drop(&mut self) {
        self.queue.done(self.key);
    }
}

#[cfg(test)]
mod tests;
