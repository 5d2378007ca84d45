use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{Options, open, open_with};
use crate::{Compare, Error, Op, Store, Txn, TxnOutcome};

fn put(key: &str, value: &str) -> Op {
    Op::Put { key: Bytes::copy_from_slice(key.as_bytes()), value: Bytes::copy_from_slice(value.as_bytes()) }
}

fn delete(key: &str) -> Op {
    Op::Delete { key: Bytes::copy_from_slice(key.as_bytes()) }
}

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

async fn write(store: &Store, ops: Vec<Op>) -> u64 {
    match store.txn(Txn { compare: Vec::new(), ops }).await.expect("the write succeeds") {
        TxnOutcome::Committed { revision } => revision,
        other => panic!("{other:?}"),
    }
}

async fn value(store: &Store, key: &str, at: Option<u64>) -> Option<String> {
    let found = store.get(bytes(key), at).await.expect("the read succeeds").0;
    found.map(|found| String::from_utf8(found.value.to_vec()).expect("the tests write text"))
}

async fn keys(
    store: &Store,
    prefix: &str,
    from: Option<&str>,
    limit: usize,
    at: Option<u64>,
) -> (String, bool) {
    let range = store.range(bytes(prefix), from.map(bytes), limit, at).await.expect("the read succeeds");
    let names: Vec<_> =
        range.items.iter().map(|item| String::from_utf8_lossy(&item.key).into_owned()).collect();
    (names.join(" "), range.more)
}

#[tokio::test]
async fn writes_are_read_back_at_every_revision_and_after_reopening() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("store");
    let store = open(&path).expect("opens");
    assert_eq!(store.revision(), 1);
    assert_eq!(write(&store, vec![put("/a/1", "one")]).await, 2);
    assert_eq!(write(&store, vec![put("/a/1", "two"), put("/a/2", "x"), put("/b/1", "y")]).await, 3);
    assert_eq!(write(&store, vec![delete("/a/1")]).await, 4);
    assert_eq!(write(&store, vec![delete("/none")]).await, 4, "a write of nothing takes no revision");
    drop(store);
    let store = open(&path).expect("opens again");
    assert_eq!(store.revision(), 4);
    assert_eq!(value(&store, "/a/1", Some(2)).await.as_deref(), Some("one"));
    assert_eq!(value(&store, "/a/1", Some(3)).await.as_deref(), Some("two"));
    assert_eq!(value(&store, "/a/1", None).await, None);
    assert_eq!(keys(&store, "/a/", None, 0, None).await, ("/a/2".into(), false));
    assert_eq!(keys(&store, "/a/", None, 0, Some(3)).await, ("/a/1 /a/2".into(), false));
    assert_eq!(keys(&store, "/", None, 1, Some(3)).await, ("/a/1".into(), true));
    assert_eq!(keys(&store, "/", Some("/a/1\0"), 2, Some(3)).await, ("/a/2 /b/1".into(), false));
    assert!(matches!(store.get(bytes("/a/1"), Some(9)).await, Err(Error::FutureRevision { .. })));
}

#[tokio::test]
async fn a_failed_comparison_writes_nothing_and_tells_what_is_there() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let store = open(&folder.path().join("store")).expect("opens");
    let create = |value| Txn {
        compare: vec![Compare { key: bytes("/k"), mod_revision: 0 }],
        ops: vec![put("/k", value), put("/other", value)],
    };
    assert!(matches!(store.txn(create("1")).await, Ok(TxnOutcome::Committed { revision: 2 })));
    match store.txn(create("2")).await {
        Ok(TxnOutcome::Conflict { revision: 2, current }) => {
            let found = current[0].as_ref().expect("the key is there");
            assert_eq!((found.value.as_ref(), found.mod_revision, found.version), (b"1".as_ref(), 2, 1));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(value(&store, "/other", None).await.as_deref(), Some("1"));
    let twice = Txn { compare: Vec::new(), ops: vec![put("/k", "a"), delete("/k")] };
    assert!(matches!(store.txn(twice).await, Err(Error::DuplicateKey(_))));
}

#[tokio::test]
async fn a_watch_sees_history_and_future_in_order_even_when_it_fell_behind_the_window() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let options = Options { window_events: 4, ..Options::default() };
    let store = open_with(&folder.path().join("store"), options).expect("opens");
    for n in 0..20 {
        write(&store, vec![put("/w/a", &n.to_string()), put("/x/a", "other")]).await;
    }
    let mut watch = store.watch(bytes("/w/"), 2).await.expect("nothing is compacted");
    let mut seen = Vec::new();
    while seen.len() < 20 {
        for event in watch.next().await.expect("open").expect("kept").iter() {
            let old = event.previous.as_ref().map(|previous| previous.mod_revision);
            assert_eq!(old, (event.revision > 2).then(|| event.revision - 1));
            seen.push(event.revision);
        }
    }
    assert_eq!(seen, (2..=21).collect::<Vec<_>>());
    let progress = watch.progress();
    let (next, ()) = tokio::join!(watch.next(), async {
        write(&store, vec![put("/x/a", "unrelated")]).await;
        write(&store, vec![delete("/w/a")]).await;
    });
    let events = next.expect("open").expect("kept");
    assert!(events[0].current.is_none() && events[0].revision == 23);
    assert_eq!(*progress.borrow(), 22, "what was returned last has not been dealt with yet");
}

#[tokio::test]
async fn progress_follows_writes_that_do_not_concern_the_watch() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let store = open(&folder.path().join("store")).expect("opens");
    let mut watch = store.watch(bytes("/w/"), 2).await.expect("nothing is compacted");
    let mut progress = watch.progress();
    let reader = tokio::spawn(async move { watch.next().await.is_none() });
    for _ in 0..10 {
        write(&store, vec![put("/x", "1")]).await;
    }
    progress.wait_for(|reached| *reached == 11).await.expect("the watch lives");
    drop(store);
    assert!(reader.await.expect("the reader ends"), "a closed store ends its watches");
}

#[tokio::test]
async fn compaction_keeps_what_is_current_and_refuses_what_is_gone() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let options = Options { window_events: 0, ..Options::default() };
    let store = open_with(&folder.path().join("store"), options).expect("opens");
    write(&store, vec![put("/gone", "1")]).await;
    write(&store, vec![put("/kept", "1"), delete("/gone")]).await;
    write(&store, vec![put("/new", "1")]).await;
    write(&store, vec![put("/new", "2")]).await;
    store.compact(4).await.expect("compacts");
    assert_eq!(value(&store, "/kept", None).await.as_deref(), Some("1"));
    assert_eq!(value(&store, "/new", Some(4)).await.as_deref(), Some("1"));
    assert!(matches!(store.get(bytes("/kept"), Some(3)).await, Err(Error::Compacted { .. })));
    assert!(matches!(store.watch(bytes("/"), 4).await, Err(Error::Compacted { compacted: 4, .. })));
    let mut watch = store.watch(bytes("/"), 5).await.expect("5 is kept");
    assert_eq!(watch.next().await.expect("open").expect("kept")[0].revision, 5);
    store.compact(5).await.expect("compacts further");
    assert_eq!(value(&store, "/new", None).await.as_deref(), Some("2"));
    assert_eq!(keys(&store, "/", None, 0, None).await.0, "/kept /new");
}

#[tokio::test]
async fn a_backup_is_restored_as_an_ordinary_change() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let store = open(&folder.path().join("store")).expect("opens");
    write(&store, vec![put("/same", "1"), put("/changed", "1"), put("/lost", "1")]).await;
    let file = folder.path().join("backup");
    store.backup(file.clone()).await.expect("the backup is written");
    write(&store, vec![put("/changed", "2"), delete("/lost"), put("/added", "1")]).await;
    let mut watch = store.watch(bytes("/"), 4).await.expect("4 is next");
    assert_eq!(store.restore(file).await.expect("the backup is read"), 4);
    assert_eq!(keys(&store, "/", None, 0, None).await.0, "/changed /lost /same");
    assert_eq!(value(&store, "/changed", None).await.as_deref(), Some("1"));
    assert_eq!(watch.next().await.expect("open").expect("kept").len(), 3);
    assert!(store.restore(folder.path().join("absent")).await.is_err());
}

#[tokio::test]
async fn a_full_disk_refuses_writes_and_goes_on_reading() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("store");
    write(&open(&path).expect("opens"), vec![put("/k", "1")]).await;
    let options = Options { disk_reserve: u64::MAX / 2, ..Options::default() };
    let store = open_with(&path, options).expect("opens");
    let refused = store.txn(Txn { compare: Vec::new(), ops: vec![put("/k", "2")] }).await;
    assert!(matches!(refused, Err(Error::NoSpace { .. })));
    assert_eq!(value(&store, "/k", None).await.as_deref(), Some("1"));
}

/// Random histories against a plain map, read at every revision, with compactions in between.
#[tokio::test]
async fn agrees_with_a_model() {
    let mut random = StdRng::seed_from_u64(7);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let options = Options { window_events: 8, ..Options::default() };
    let store = open_with(&folder.path().join("store"), options).expect("opens");
    let mut states: BTreeMap<u64, BTreeMap<String, String>> = BTreeMap::from([(1, BTreeMap::new())]);
    let mut oldest = 0;
    for round in 0..300 {
        let mut state = states[&store.revision()].clone();
        let mut ops = BTreeMap::new();
        for _ in 0..random.random_range(1..4) {
            let key = format!("/k/{}", random.random_range(0..12));
            let op = if random.random_bool(0.3) { delete(&key) } else { put(&key, &round.to_string()) };
            ops.insert(key, op);
        }
        for (key, op) in &ops {
            match op {
                Op::Put { .. } => state.insert(key.clone(), round.to_string()),
                Op::Delete { .. } => state.remove(key),
            };
        }
        let revision = write(&store, ops.into_values().collect()).await;
        states.insert(revision, state);
        if random.random_bool(0.05) {
            oldest = random.random_range(oldest..=revision).max(oldest);
            store.compact(oldest).await.expect("compacts");
        }
        let at = random.random_range(oldest.max(1)..=revision);
        let expected = states.range(..=at).next_back().expect("revision 1 is there").1;
        let range = store.range(bytes("/k/"), None, 0, Some(at)).await.expect("kept");
        let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
        let found: BTreeMap<_, _> = range.items.iter().map(|kv| (text(&kv.key), text(&kv.value))).collect();
        assert_eq!(&found, expected, "at revision {at}");
    }
}

/// The other half of the test below: a process that writes until it is killed.
#[tokio::test]
async fn writer_process() {
    let Some(path) = std::env::var_os("CARRACK_STORE_CRASH_TEST") else { return };
    let store = open(Path::new(&path)).expect("opens after a crash");
    let start = store.revision();
    println!("\nopened {start}");
    let writers = (0..4).map(|writer| {
        let store = &store;
        async move {
            loop {
                let key = format!("/w{writer}");
                let old = store.get(bytes(&key), None).await.expect("reads").0;
                let n: u64 = old
                    .as_ref()
                    .map_or(0, |kv| String::from_utf8_lossy(&kv.value).parse().expect("a number"));
                let txn = Txn {
                    compare: vec![Compare {
                        key: bytes(&key),
                        mod_revision: old.map_or(0, |kv| kv.mod_revision),
                    }],
                    ops: vec![put(&key, &(n + 1).to_string())],
                };
                match store.txn(txn).await.expect("writes") {
                    TxnOutcome::Committed { revision } => println!("ack {writer} {} {revision}", n + 1),
                    other => panic!("{other:?}"),
                }
            }
        }
    });
    let _: Vec<()> = futures::future::join_all(writers).await;
}

#[test]
fn kill_at_any_moment_loses_no_acknowledged_write() {
    use std::io::{BufRead, BufReader};
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("store");
    let mut random = StdRng::seed_from_u64(11);
    let mut counts = [0u64; 4];
    let mut newest = 1;
    for _ in 0..100 {
        let mut child = std::process::Command::new(std::env::current_exe().expect("the test's own file"))
            .args(["embedded::tests::writer_process", "--exact", "--nocapture"])
            .env("CARRACK_STORE_CRASH_TEST", &path)
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("starts");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let acknowledgements = random.random_range(1..60);
        let mut seen = 0;
        for line in lines.by_ref().map_while(Result::ok) {
            let words: Vec<&str> = line.split(' ').collect();
            match words[..] {
                ["opened", start] => {
                    assert!(start.parse::<u64>().expect("a number") >= newest, "a revision was lost");
                }
                ["ack", writer, count, revision] => {
                    let writer: usize = writer.parse().expect("a number");
                    let count: u64 = count.parse().expect("a number");
                    assert!(count > counts[writer], "an acknowledged write was lost");
                    counts[writer] = count;
                    newest = newest.max(revision.parse().expect("a number"));
                    seen += 1;
                }
                _ => continue,
            }
            if seen >= acknowledgements {
                break;
            }
        }
        child.kill().expect("it is our child");
        child.wait().expect("it is our child");
        assert!(seen > 0, "the writer wrote nothing");
        // What it had printed before it died is acknowledged too.
        for line in lines.map_while(Result::ok) {
            let words: Vec<&str> = line.split(' ').collect();
            if let ["ack", writer, count, revision] = words[..]
                && let (Ok(writer), Ok(count), Ok(revision)) =
                    (writer.parse::<usize>(), count.parse::<u64>(), revision.parse::<u64>())
            {
                counts[writer] = counts[writer].max(count);
                newest = newest.max(revision);
            }
        }
    }
}
