//! Three members under load while one is killed and one is cut off. Every key's history must be linearizable, whether it was
//! read from etcd or from a mirror that a watch feeds, and no watch may leave a change out.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::time::Instant;

use super::linearizable::{Action, NEVER, Operation, check};
use super::members::{Cluster, settled};
use super::{Options, connect};
use crate::contract::{bytes, put};
use crate::{Compare, Store, Txn, TxnOutcome};

const KEYS: u64 = 4;
const WORKERS: u64 = 9;

/// What the API server keeps: the state as a watch tells it.
struct Mirror {
    store: Store,
    /// Each key's value and revision.
    state: Arc<Mutex<HashMap<String, (u64, u64)>>>,
    progress: tokio::sync::watch::Receiver<u64>,
    reader: tokio::task::JoinHandle<()>,
}

impl Mirror {
    async fn of(store: Store) -> Mirror {
        let mut watch = store.watch(bytes("/"), 2).await.expect("nothing is compacted");
        let state = Arc::new(Mutex::new(HashMap::<String, (u64, u64)>::new()));
        let (progress, shared) = (watch.progress(), state.clone());
        let reader = tokio::spawn(async move {
            while let Some(events) = watch.next().await {
                let events = match events {
                    Ok(events) => events,
                    // The history could not be read just now; nothing of it is lost.
                    Err(crate::Error::Unavailable { .. }) => continue,
                    Err(error) => panic!("{error}"),
                };
                for event in events.iter() {
                    let key = String::from_utf8_lossy(&event.key).into_owned();
                    let kv = event.current.as_ref().expect("nothing is deleted");
                    let value = String::from_utf8_lossy(&kv.value).parse().expect("a number");
                    let before = shared.lock().insert(key.clone(), (value, event.revision));
                    let known = before.map_or(0, |(_, revision)| revision);
                    let told = event.previous.as_ref().map_or(0, |kv| kv.mod_revision);
                    assert_eq!(known, told, "the watch left out a change of {key} before {}", event.revision);
                }
            }
        });
        Mirror { store, state, progress, reader }
    }

    /// A read from memory that is as new as the cluster.
    async fn read(&self, key: &str) -> Option<u64> {
        let newest = self.store.newest().await.ok()?;
        let mut progress = self.progress.clone();
        let reached = progress.wait_for(|reached| *reached >= newest);
        tokio::time::timeout(Duration::from_secs(5), reached).await.ok()?.ok()?;
        Some(self.state.lock().get(key).map_or(0, |(value, _)| *value))
    }
}

struct Load {
    mirrors: Vec<Mirror>,
    started: Instant,
    histories: Vec<Mutex<Vec<Operation>>>,
    next: AtomicU64,
    stop: AtomicBool,
}

impl Load {
    fn now(&self) -> u64 {
        self.started.elapsed().as_nanos() as u64
    }

    async fn work(&self, worker: u64) {
        let mirror = &self.mirrors[(worker % 3) as usize];
        let mut random = StdRng::seed_from_u64(worker);
        while !self.stop.load(Ordering::Relaxed) {
            let number = random.random_range(0..KEYS);
            let key = format!("/k{number}");
            let called = self.now();
            let seen = if random.random_bool(0.5) {
                mirror.read(&key).await.map(|value| (value, None))
            } else {
                let read = mirror.store.get(bytes(&key), None).await.ok();
                let value =
                    |kv: &crate::KeyValue| String::from_utf8_lossy(&kv.value).parse().expect("a number");
                read.map(|(kv, _)| (kv.as_ref().map_or(0, value), Some(kv.map_or(0, |kv| kv.mod_revision))))
            };
            let Some((value, revision)) = seen else { continue };
            self.note(number, called, self.now(), Action::Read(value));
            let Some(revision) = revision.filter(|_| random.random_bool(0.6)) else { continue };
            let new = self.next.fetch_add(1, Ordering::Relaxed);
            let txn = Txn {
                compare: vec![Compare { key: bytes(&key), mod_revision: revision }],
                ops: vec![put(&key, &new.to_string())],
            };
            let called = self.now();
            match mirror.store.txn(txn).await {
                Ok(TxnOutcome::Committed { .. }) => {
                    self.note(number, called, self.now(), Action::Swap(value, new));
                }
                Ok(TxnOutcome::Conflict { current, .. }) => {
                    let found = current[0]
                        .as_ref()
                        .map_or(0, |kv| String::from_utf8_lossy(&kv.value).parse().expect("a number"));
                    self.note(number, called, self.now(), Action::Refused(value, found));
                }
                Err(_) => self.note(number, called, NEVER, Action::Swap(value, new)),
            }
        }
    }

    fn note(&self, key: u64, called: u64, returned: u64, action: Action) {
        self.histories[key as usize].lock().push(Operation { called, returned, action });
    }

    fn operations(&self) -> usize {
        self.histories.iter().map(|history| history.lock().len()).sum()
    }

    /// Lets the load go on until it has made progress.
    async fn progress(&self, operations: usize) {
        let until = self.operations() + operations;
        while self.operations() < until {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_and_writes_stay_linearizable_while_members_die_and_are_cut_off() {
    let mut cluster = Cluster::of_three().await;
    let first = settled(&cluster).await;
    let mut mirrors = vec![Mirror::of(first).await];
    for member in 1..3 {
        let store = connect(Options { window_events: 64, ..Options::new(cluster.urls(member)) }).await;
        mirrors.push(Mirror::of(store.expect("answers")).await);
    }
    let load = Arc::new(Load {
        mirrors,
        started: Instant::now(),
        histories: (0..KEYS).map(|_| Mutex::default()).collect(),
        next: AtomicU64::new(1),
        stop: AtomicBool::new(false),
    });
    let mut workers = tokio::task::JoinSet::new();
    for worker in 0..WORKERS {
        let load = load.clone();
        workers.spawn(async move { load.work(worker).await });
    }
    for round in 0..3 {
        load.progress(60).await;
        cluster.cut_off(round, true);
        // Long enough for the others to elect a leader, and for the member that was cut off to notice.
        tokio::time::sleep(Duration::from_millis(1500)).await;
        load.progress(60).await;
        cluster.cut_off(round, false);
        load.progress(60).await;
        let victim = (round + 1) % 3;
        cluster.members[victim].kill();
        load.progress(60).await;
        cluster.members[victim].restart();
    }
    load.progress(60).await;
    load.stop.store(true, Ordering::Relaxed);
    while let Some(done) = workers.join_next().await {
        done.expect("no worker panics");
    }
    for (key, history) in load.histories.iter().enumerate() {
        let history = history.lock();
        assert!(check(&history), "the history of key {key} is not linearizable: {history:#?}");
    }
    // All mirrors come to the same end.
    let newest = load.mirrors[0].store.newest().await.expect("answers");
    for mirror in &load.mirrors {
        let mut progress = mirror.progress.clone();
        let reached = progress.wait_for(|reached| *reached >= newest);
        if tokio::time::timeout(Duration::from_secs(60), reached).await.is_err() {
            let (seen, told) = (mirror.store.revision(), *mirror.progress.borrow());
            panic!("a mirror stays at {told}, its window at {seen}; etcd is at {newest}");
        }
        let own = mirror.state.lock().clone();
        assert_eq!(own, *load.mirrors[0].state.lock());
        assert!(!mirror.reader.is_finished(), "a watch failed");
    }
}
