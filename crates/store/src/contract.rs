//! What every engine promises, as tests that run against each of them. A suite gets a store that nobody has written to.

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::{Compare, Error, Op, Store, Txn, TxnOutcome};

pub(crate) fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

pub(crate) fn put(key: &str, value: &str) -> Op {
    Op::Put { key: bytes(key), value: bytes(value) }
}

pub(crate) fn delete(key: &str) -> Op {
    Op::Delete { key: bytes(key) }
}

pub(crate) async fn write(store: &Store, ops: Vec<Op>) -> u64 {
    match store.txn(Txn { compare: Vec::new(), ops }).await.expect("the write succeeds") {
        TxnOutcome::Committed { revision } => revision,
        conflict => panic!("no comparison can fail: {conflict:?}"),
    }
}

pub(crate) async fn value(store: &Store, key: &str, at: Option<u64>) -> Option<String> {
    let found = store.get(bytes(key), at).await.expect("the read succeeds").0;
    found.map(|found| String::from_utf8(found.value.to_vec()).expect("the tests write text"))
}

pub(crate) async fn keys(
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

pub(crate) async fn writes_are_read_back_at_every_revision(store: &Store) {
    assert_eq!(store.revision(), 1);
    assert_eq!(store.newest().await.expect("answers"), 1);
    assert_eq!(write(store, vec![put("/a/1", "one")]).await, 2);
    assert_eq!(write(store, vec![put("/a/1", "two"), put("/a/2", "x"), put("/b/1", "y")]).await, 3);
    assert_eq!(write(store, vec![delete("/a/1")]).await, 4);
    assert_eq!(write(store, vec![delete("/none")]).await, 4, "a write of nothing takes no revision");
    assert_eq!(store.newest().await.expect("answers"), 4);
    assert_eq!(value(store, "/a/1", Some(2)).await.as_deref(), Some("one"));
    assert_eq!(value(store, "/a/1", Some(3)).await.as_deref(), Some("two"));
    assert_eq!(value(store, "/a/1", None).await, None);
    assert_eq!(keys(store, "/a/", None, 0, None).await, ("/a/2".into(), false));
    assert_eq!(keys(store, "/a/", None, 0, Some(3)).await, ("/a/1 /a/2".into(), false));
    assert_eq!(keys(store, "/", None, 1, Some(3)).await, ("/a/1".into(), true));
    assert_eq!(keys(store, "/", Some("/a/1\0"), 2, Some(3)).await, ("/a/2 /b/1".into(), false));
    let found = store.get(bytes("/a/1"), Some(3)).await.expect("reads").0.expect("is there");
    assert_eq!((found.create_revision, found.mod_revision, found.version), (2, 3, 2));
    assert!(matches!(store.get(bytes("/a/1"), Some(9)).await, Err(Error::FutureRevision { .. })));
}

pub(crate) async fn long_ranges_come_whole(store: &Store) {
    for chunk in 0..13 {
        let ops = (0..100).map(|n| put(&format!("/r/{:04}", chunk * 100 + n), "v")).collect();
        write(store, ops).await;
    }
    let all = store.range(bytes("/r/"), None, 0, None).await.expect("reads");
    assert_eq!((all.items.len(), all.more, all.revision), (1300, false, 14));
    assert!(all.items.is_sorted_by(|a, b| a.key < b.key));
    let mut digest = crate::Digest::default();
    all.items.iter().for_each(|kv| digest.add(&kv.key[3..], kv.mod_revision));
    write(store, vec![delete("/r/0007"), put("/q/0", "v"), put("/s/0", "v")]).await;
    assert_eq!(store.digest(bytes("/r/"), 14).await.expect("reads"), digest);
    digest.remove(b"0007", 2);
    assert_eq!(store.digest(bytes("/r/"), 15).await.expect("reads"), digest);
    let some = store.range(bytes("/r/"), Some(bytes("/r/0100")), 700, Some(10)).await.expect("reads");
    assert_eq!((some.items.len(), some.more, &some.items[699].key[..]), (700, true, &b"/r/0799"[..]));
}

pub(crate) async fn a_failed_comparison_writes_nothing_and_tells_what_is_there(store: &Store) {
    let create = |value| Txn {
        compare: vec![Compare { key: bytes("/k"), mod_revision: 0 }],
        ops: vec![put("/k", value), put("/other", value)],
    };
    assert!(matches!(store.txn(create("1")).await, Ok(TxnOutcome::Committed { revision: 2 })));
    match store.txn(create("2")).await {
        Ok(TxnOutcome::Conflict { revision: 2, current }) => {
            let found = current[0].as_ref().expect("the key is there");
            assert_eq!(found.key, "/k");
            assert_eq!((found.value.as_ref(), found.mod_revision, found.version), (b"1".as_ref(), 2, 1));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(value(store, "/other", None).await.as_deref(), Some("1"));
    let twice = Txn { compare: Vec::new(), ops: vec![put("/k", "a"), delete("/k")] };
    assert!(matches!(store.txn(twice).await, Err(Error::DuplicateKey(_))));
}

/// The store's window must hold fewer events than are written here.
pub(crate) async fn a_watch_sees_history_and_future_in_order(store: &Store) {
    for n in 0..20 {
        write(store, vec![put("/w/a", &n.to_string()), put("/x/a", "other")]).await;
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
        write(store, vec![put("/x/a", "unrelated")]).await;
        write(store, vec![delete("/w/a")]).await;
    });
    let events = next.expect("open").expect("kept");
    assert!(events[0].current.is_none() && events[0].revision == 23);
    assert!(*progress.borrow() <= 22, "what was returned last has not been dealt with yet");
}

pub(crate) async fn progress_follows_writes_that_do_not_concern_the_watch(store: &Store) {
    let mut watch = store.watch(bytes("/w/"), 2).await.expect("nothing is compacted");
    let mut progress = watch.progress();
    let reader = tokio::spawn(async move { watch.next().await.is_none() });
    for _ in 0..10 {
        write(store, vec![put("/x", "1")]).await;
    }
    let newest = store.newest().await.expect("answers");
    assert_eq!(newest, 11);
    progress.wait_for(|reached| *reached == 11).await.expect("the watch lives");
    reader.abort();
}

pub(crate) async fn compaction_keeps_what_is_current_and_refuses_what_is_gone(store: &Store) {
    write(store, vec![put("/gone", "1")]).await;
    write(store, vec![put("/kept", "1"), delete("/gone")]).await;
    write(store, vec![put("/new", "1")]).await;
    write(store, vec![put("/new", "2")]).await;
    store.compact(4).await.expect("compacts");
    store.compact(3).await.expect("somebody did more already");
    assert_eq!(value(store, "/kept", None).await.as_deref(), Some("1"));
    assert_eq!(value(store, "/new", Some(4)).await.as_deref(), Some("1"));
    let old = store.get(bytes("/kept"), Some(3)).await;
    assert!(matches!(old, Err(Error::Compacted { requested: 3, compacted: 4 })), "{old:?}");
    assert!(matches!(store.watch(bytes("/"), 4).await, Err(Error::Compacted { compacted: 4, .. })));
    let mut watch = store.watch(bytes("/"), 5).await.expect("5 is kept");
    assert_eq!(watch.next().await.expect("open").expect("kept")[0].revision, 5);
    store.compact(5).await.expect("compacts further");
    assert_eq!(value(store, "/new", None).await.as_deref(), Some("2"));
    assert_eq!(keys(store, "/", None, 0, None).await.0, "/kept /new");
}

pub(crate) async fn a_backup_is_restored_as_an_ordinary_change(store: &Store, folder: &Path) {
    write(store, vec![put("/same", "1"), put("/changed", "1"), put("/lost", "1")]).await;
    let file = folder.join("backup");
    store.backup(file.clone()).await.expect("the backup is written");
    write(store, vec![put("/changed", "2"), delete("/lost"), put("/added", "1")]).await;
    let mut watch = store.watch(bytes("/"), 4).await.expect("4 is next");
    assert_eq!(store.restore(file).await.expect("the backup is read"), 4);
    assert_eq!(keys(store, "/", None, 0, None).await.0, "/changed /lost /same");
    assert_eq!(value(store, "/changed", None).await.as_deref(), Some("1"));
    assert_eq!(watch.next().await.expect("open").expect("kept").len(), 3);
    assert!(store.restore(folder.join("absent")).await.is_err());
}

/// Random histories against a plain map, read at every revision, with compactions in between.
pub(crate) async fn agrees_with_a_model(store: &Store, rounds: u32) {
    let mut random = StdRng::seed_from_u64(7);
    let mut states: BTreeMap<u64, BTreeMap<String, String>> = BTreeMap::from([(1, BTreeMap::new())]);
    let (mut oldest, mut newest) = (0, 1);
    for round in 0..rounds {
        let mut state = states[&newest].clone();
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
        newest = write(store, ops.into_values().collect()).await;
        states.insert(newest, state);
        if random.random_bool(0.05) {
            let to = random.random_range(oldest..=newest);
            if to > oldest {
                store.compact(to).await.expect("compacts");
                oldest = to;
            }
        }
        let at = random.random_range(oldest.max(1)..=newest);
        let expected = states.range(..=at).next_back().expect("revision 1 is there").1;
        let range = store.range(bytes("/k/"), None, 0, Some(at)).await.expect("kept");
        let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
        let found: BTreeMap<_, _> = range.items.iter().map(|kv| (text(&kv.key), text(&kv.value))).collect();
        assert_eq!(&found, expected, "at revision {at}");
    }
}
