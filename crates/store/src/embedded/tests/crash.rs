//! Crashes under load, checked against a recorded history: `kill -9` of a process that writes, and power cuts that tear
//! what was not yet synced. `CARRACK_CRASH_CYCLES` sets how many of each (50; the nightly run has 1,000).

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use redb::StorageBackend;

use super::super::Embedded;
use super::{Options, bytes, open, put};
use crate::contract::delete;
use crate::{Compare, Event, Store, Txn, TxnOutcome};

const WRITERS: usize = 4;

fn cycles() -> u64 {
    std::env::var("CARRACK_CRASH_CYCLES").map_or(50, |text| text.parse().expect("a number of cycles"))
}

/// One line of the history.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Line {
    /// The store opened at this revision.
    Opened(u64),
    /// A write of a key was acknowledged: the revision, the key, the value (none: a deletion).
    Acknowledged(u64, String, Option<String>),
    /// A watch brought an event: the revision, the key, the value and the revision before it.
    Seen(u64, String, Option<String>, u64),
}

impl Line {
    fn of(event: &Event) -> Line {
        let text = |bytes: &bytes::Bytes| String::from_utf8_lossy(bytes).into_owned();
        let value = event.current.as_ref().map(|kv| text(&kv.value));
        let before = event.previous.as_ref().map_or(0, |kv| kv.mod_revision);
        Line::Seen(event.revision, text(&event.key), value, before)
    }

    fn print(&self) -> String {
        let or_dash = |value: &Option<String>| value.clone().unwrap_or("-".into());
        match self {
            Line::Opened(at) => format!("opened {at}"),
            Line::Acknowledged(at, key, value) => format!("ack {at} {key} {}", or_dash(value)),
            Line::Seen(at, key, value, before) => format!("saw {at} {key} {} {before}", or_dash(value)),
        }
    }

    /// A line that is not part of the history, or was cut short by the kill, is none.
    fn parse(text: &str) -> Option<Line> {
        let text = text.strip_suffix('\n')?;
        let words: Vec<&str> = text.split(' ').collect();
        let value = |word: &str| (word != "-").then(|| word.to_owned());
        match words[..] {
            ["opened", at] => Some(Line::Opened(at.parse().ok()?)),
            ["ack", at, key, written] => {
                Some(Line::Acknowledged(at.parse().ok()?, key.into(), value(written)))
            }
            ["saw", at, key, written, before] => {
                Some(Line::Seen(at.parse().ok()?, key.into(), value(written), before.parse().ok()?))
            }
            _ => None,
        }
    }
}

/// What all lives of a store have told, and whether it fits together.
#[derive(Default)]
struct History {
    /// What each revision wrote, by key: from acknowledgements and from watches.
    written: BTreeMap<(u64, String), Option<String>>,
    newest: u64,
    /// Where the watch of the present life stands, and each key's last revision (0: deleted) as it has seen them.
    position: u64,
    keys: HashMap<String, u64>,
    acknowledged: u64,
}

impl History {
    fn add(&mut self, line: Line) {
        match line {
            Line::Opened(at) => {
                assert!(at >= self.newest, "revision {} was lost: the store is at {at}", self.newest);
                // Each life's watch begins at the beginning.
                (self.position, self.keys) = (0, HashMap::new());
            }
            Line::Acknowledged(at, key, value) => {
                self.acknowledged += 1;
                self.note(at, key, value);
            }
            Line::Seen(at, key, value, before) => {
                assert!(at >= self.position, "revision {at} came after {}", self.position);
                self.position = at;
                let known = self.keys.insert(key.clone(), if value.is_some() { at } else { 0 });
                if let Some(known) = known {
                    assert_eq!(known, before, "the watch left out a change of {key} before {at}");
                }
                self.note(at, key, value);
            }
        }
    }

    fn note(&mut self, at: u64, key: String, value: Option<String>) {
        self.newest = self.newest.max(at);
        let known = self.written.entry((at, key)).or_insert_with(|| value.clone());
        assert_eq!(*known, value, "revision {at} was used twice");
    }

    /// Compares everything that is still kept with what was told.
    async fn check(&self, store: &Store, compacted: u64) {
        let mut watch = store.watch(bytes("/"), compacted + 1).await.expect("is kept");
        let mut found: BTreeMap<(u64, String), Option<String>> = BTreeMap::new();
        while found.last_key_value().is_none_or(|((at, _), _)| *at < store.revision()) {
            for event in watch.next().await.expect("open").expect("kept").iter() {
                let Line::Seen(at, key, value, _) = Line::of(event) else { unreachable!() };
                found.insert((at, key), value);
            }
        }
        for (at, value) in self.written.range((compacted + 1, String::new())..) {
            assert_eq!(found.get(at), Some(value), "{at:?} is not what was acknowledged or seen");
        }
    }
}

/// Writes, deletes, watches and compacts until the process is killed or the store fails.
async fn live(store: &Store, life: u64, from: u64, tell: &(dyn Fn(Line) + Sync)) {
    tell(Line::Opened(store.revision()));
    let watch = async {
        let mut watch = store.watch(bytes("/"), from).await.expect("is kept");
        while let Some(Ok(events)) = watch.next().await {
            events.iter().for_each(|event| tell(Line::of(event)));
        }
    };
    let writers = (0..WRITERS).map(|writer| async move {
        let mut random = StdRng::seed_from_u64(life * 16 + writer as u64);
        for n in 0.. {
            let key = format!("/w{writer}/{}", random.random_range(0..3));
            let Ok((old, _)) = store.get(bytes(&key), None).await else { return };
            // Long values reach over several pages.
            let value = format!("{life}.{n}.{}", "x".repeat(random.random_range(0..6000)));
            let value = (old.is_none() || random.random_bool(0.9)).then_some(value);
            let op = value.as_ref().map_or_else(|| delete(&key), |value| put(&key, value));
            let second = format!("/pair{writer}");
            let also = value.as_ref().map(|value| put(&second, value));
            let compare = Compare { key: bytes(&key), mod_revision: old.map_or(0, |kv| kv.mod_revision) };
            let ops = std::iter::once(op).chain(also).collect();
            match store.txn(Txn { compare: vec![compare], ops }).await {
                Ok(TxnOutcome::Committed { revision }) => {
                    if value.is_some() {
                        tell(Line::Acknowledged(revision, second, value.clone()));
                    }
                    tell(Line::Acknowledged(revision, key, value));
                }
                Ok(conflict) => panic!("nobody else writes this key: {conflict:?}"),
                Err(_) => return,
            }
        }
    });
    let all = futures::future::join_all(writers);
    futures::future::select(Box::pin(watch), Box::pin(all)).await;
}

/// Where the watch of a life begins: compactions go up to here from time to time.
fn compact_to(random: &mut StdRng, newest: u64, compacted: u64) -> u64 {
    if random.random_bool(0.2) { random.random_range(compacted..=newest.max(compacted)) } else { compacted }
}

/// The other half of the test below: a process that writes until it is killed.
#[tokio::test]
async fn writer_process() {
    let Ok(told) = std::env::var("CARRACK_STORE_CRASH_TEST") else { return };
    let (life, rest) = told.split_once(' ').expect("life, compacted, path");
    let (compacted, path) = rest.split_once(' ').expect("life, compacted, path");
    let (life, compacted): (u64, u64) = (life.parse().expect("life"), compacted.parse().expect("revision"));
    let store = open(Path::new(path)).expect("opens after a crash");
    println!();
    if compacted > 0 {
        store.compact(compacted).await.expect("compacts");
    }
    let tell = |line: Line| {
        // One write a line: a kill between two leaves whole lines.
        let mut out = std::io::stdout().lock();
        out.write_all(format!("{}\n", line.print()).as_bytes()).expect("the parent reads");
        out.flush().expect("the parent reads");
    };
    live(&store, life, compacted + 1, &tell).await;
}

#[test]
fn kill_at_any_moment_loses_no_acknowledged_write() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("store");
    let mut random = StdRng::seed_from_u64(11);
    let mut history = History::default();
    let mut compacted = 0;
    for life in 0..cycles() {
        compacted = compact_to(&mut random, history.newest, compacted);
        let mut child = std::process::Command::new(std::env::current_exe().expect("the test's own file"))
            .args(["embedded::tests::crash::writer_process", "--exact", "--nocapture"])
            .env("CARRACK_STORE_CRASH_TEST", format!("{life} {compacted} {}", path.display()))
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("starts");
        let mut out = BufReader::new(child.stdout.take().expect("piped"));
        let (until, before) = (random.random_range(1..60), history.acknowledged);
        let mut text = String::new();
        let mut killed = false;
        loop {
            text.clear();
            if out.read_line(&mut text).expect("text") == 0 {
                break;
            }
            if let Some(line) = Line::parse(&text) {
                history.add(line);
            }
            if !killed && history.acknowledged >= before + until {
                // What it had told before it died is read on.
                child.kill().expect("it is our child");
                killed = true;
            }
        }
        assert!(killed, "the writer ended by itself");
        child.wait().expect("it is our child");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(async { history.check(&open(&path).expect("opens"), compacted).await });
}

/// A disk that forgets, at a power cut, any part of what was not synced.
#[derive(Clone, Debug, Default)]
struct Disk(Arc<Mutex<Sectors>>);

#[derive(Debug, Default)]
struct Sectors {
    /// What a reader sees.
    now: Vec<u8>,
    /// What is safe.
    synced: Vec<u8>,
    /// Writes since the last sync.
    pending: Vec<(usize, Vec<u8>)>,
    off: bool,
}

const SECTOR: usize = 512;

impl Disk {
    /// What is found when the power is back: what was synced, and of each sector written since either version.
    fn power_cut(&self, random: &mut StdRng) -> Disk {
        let mut sectors = self.0.lock();
        sectors.off = true;
        let mut found = sectors.synced.clone();
        let share = random.random_range(0.0..1.0);
        for (offset, data) in &sectors.pending {
            let mut at = 0;
            while at < data.len() {
                let end = (at + SECTOR - (offset + at) % SECTOR).min(data.len());
                if random.random_bool(share) {
                    let place = offset + at..offset + end;
                    if found.len() < place.end {
                        found.resize(place.end, 0);
                    }
                    found[place].copy_from_slice(&data[at..end]);
                }
                at = end;
            }
        }
        // The length of the file may have reached the disk without what was to lie there.
        if random.random_bool(0.5) && found.len() < sectors.now.len() {
            found.resize(sectors.now.len(), 0);
        }
        let synced = found.clone();
        Disk(Arc::new(Mutex::new(Sectors { now: found, synced, pending: Vec::new(), off: false })))
    }

    fn use_it(&self) -> std::io::Result<parking_lot::MutexGuard<'_, Sectors>> {
        let sectors = self.0.lock();
        if sectors.off { Err(std::io::Error::other("the power is off")) } else { Ok(sectors) }
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> std::io::Result<u64> {
        Ok(self.use_it()?.now.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        let offset = offset as usize;
        out.copy_from_slice(&self.use_it()?.now[offset..offset + out.len()]);
        Ok(())
    }

    fn set_len(&self, len: u64) -> std::io::Result<()> {
        self.use_it()?.now.resize(len as usize, 0);
        Ok(())
    }

    fn sync_data(&self) -> std::io::Result<()> {
        let mut sectors = self.use_it()?;
        let Sectors { now, synced, pending, .. } = &mut *sectors;
        synced.resize(now.len(), 0);
        for (offset, data) in pending.drain(..) {
            let end = (offset + data.len()).min(synced.len());
            synced[offset.min(end)..end].copy_from_slice(&now[offset.min(end)..end]);
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        let mut sectors = self.use_it()?;
        let offset = offset as usize;
        if sectors.now.len() < offset + data.len() {
            sectors.now.resize(offset + data.len(), 0);
        }
        sectors.now[offset..offset + data.len()].copy_from_slice(data);
        sectors.pending.push((offset, data.to_vec()));
        Ok(())
    }
}

#[test]
fn a_power_cut_that_tears_writes_loses_no_acknowledged_write() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut random = StdRng::seed_from_u64(13);
    let history = Mutex::new(History::default());
    let mut compacted = 0;
    let mut disk = Disk::default();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().expect("a runtime");
    for life in 0..cycles() {
        let options = Options { window_events: 8, ..Options::default() };
        let database = redb::Database::builder().create_with_backend(disk.clone()).expect("opens");
        let store = Embedded::with_database(database, &folder.path().join("store"), options).expect("opens");
        let store: Store = Arc::new(store);
        compacted = compact_to(&mut random, history.lock().newest, compacted);
        let left = AtomicU64::new(random.random_range(1..120));
        let next = Mutex::new(None);
        let tell = |line: Line| {
            // Nothing that is told after the cut counts: the process is gone with the power.
            if next.lock().is_some() {
                return;
            }
            history.lock().add(line);
            if left.fetch_sub(1, Ordering::AcqRel) == 1 {
                *next.lock() = Some(disk.power_cut(&mut StdRng::seed_from_u64(life)));
            }
        };
        runtime.block_on(async {
            if compacted > 0 {
                store.compact(compacted).await.expect("compacts");
            }
            live(&store, life, compacted + 1, &tell).await;
        });
        drop(store);
        disk = next.into_inner().expect("the power was cut");
    }
    let database = redb::Database::builder().create_with_backend(disk).expect("opens");
    let store = Embedded::with_database(database, &folder.path().join("store"), Options::default());
    let store: Store = Arc::new(store.expect("opens"));
    runtime.block_on(history.into_inner().check(&store, compacted));
}
