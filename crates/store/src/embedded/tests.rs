use std::path::Path;

use super::{Options, open, open_with};
use crate::contract::{self, bytes, put, value, write};
use crate::{Compare, Error, Store, Txn, TxnOutcome};

mod crash;

/// A store in an empty folder whose window holds so many events.
fn fresh(folder: &Path, window_events: usize) -> Store {
    open_with(&folder.join("store"), Options { window_events, ..Options::default() }).expect("opens")
}

#[tokio::test]
async fn writes_are_read_back_at_every_revision_and_after_reopening() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let store = fresh(folder.path(), 100);
    contract::writes_are_read_back_at_every_revision(&store).await;
    drop(store);
    let store = fresh(folder.path(), 100);
    assert_eq!(store.revision(), 4);
    assert_eq!(value(&store, "/a/1", Some(3)).await.as_deref(), Some("two"));
    assert_eq!(value(&store, "/a/2", None).await.as_deref(), Some("x"));
}

#[tokio::test]
async fn a_failed_comparison_writes_nothing_and_tells_what_is_there() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let store = fresh(folder.path(), 100);
    contract::a_failed_comparison_writes_nothing_and_tells_what_is_there(&store).await;
}

#[tokio::test]
async fn long_ranges_come_whole() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    contract::long_ranges_come_whole(&fresh(folder.path(), 100)).await;
}

#[tokio::test]
async fn a_watch_sees_history_and_future_in_order_even_when_it_fell_behind_the_window() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    contract::a_watch_sees_history_and_future_in_order(&fresh(folder.path(), 4)).await;
}

#[tokio::test]
async fn progress_follows_writes_that_do_not_concern_the_watch() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    contract::progress_follows_writes_that_do_not_concern_the_watch(&fresh(folder.path(), 100)).await;
}

#[tokio::test]
async fn a_closed_store_ends_its_watches() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let store = fresh(folder.path(), 100);
    let mut watch = store.watch(bytes("/"), 2).await.expect("nothing is compacted");
    let reader = tokio::spawn(async move { watch.next().await.is_none() });
    drop(store);
    assert!(reader.await.expect("the reader ends"));
}

#[tokio::test]
async fn compaction_keeps_what_is_current_and_refuses_what_is_gone() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    contract::compaction_keeps_what_is_current_and_refuses_what_is_gone(&fresh(folder.path(), 0)).await;
}

#[tokio::test]
async fn a_backup_is_restored_as_an_ordinary_change() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let store = fresh(folder.path(), 100);
    contract::a_backup_is_restored_as_an_ordinary_change(&store, folder.path()).await;
}

#[tokio::test]
async fn agrees_with_a_model() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    contract::agrees_with_a_model(&fresh(folder.path(), 8), 300).await;
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

#[tokio::test]
async fn space_is_given_back_after_much_was_deleted() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("store");
    let options = Options { defragment_above: 4 << 20, ..Options::default() };
    let store = open_with(&path, options).expect("opens");
    let value_of = |n: usize| format!("{n}{}", "x".repeat(2000));
    for chunk in 0..40 {
        let ops = (0..100).map(|n| put(&format!("/k/{:05}", chunk * 100 + n), &value_of(n))).collect();
        write(&store, ops).await;
    }
    let long = std::fs::metadata(&path).expect("is there").len();
    assert!(long > 8 << 20, "{long}");
    for chunk in 0..40 {
        let gone =
            (0..100).filter(|n| n % 20 != 0).map(|n| contract::delete(&format!("/k/{:05}", chunk * 100 + n)));
        write(&store, gone.collect()).await;
    }
    store.compact(store.revision()).await.expect("compacts");
    let short = std::fs::metadata(&path).expect("is there").len();
    assert!(short < long / 2, "from {long} to {short}");
    assert_eq!(value(&store, "/k/00120", None).await, Some(value_of(20)));
    assert_eq!(contract::keys(&store, "/k/", None, 0, None).await.0.split(' ').count(), 200);
    write(&store, vec![put("/k/new", "1")]).await;
    drop(store);
    let store = open(&path).expect("opens again");
    assert_eq!(value(&store, "/k/new", None).await.as_deref(), Some("1"));
}

#[tokio::test]
async fn writes_that_share_a_commit_see_what_it_changes_of_what_they_compare() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let store = fresh(folder.path(), 1000);
    let anchor = write(&store, vec![put("/anchor", "1")]).await;
    let create = |n: usize| Txn {
        compare: vec![
            Compare { key: bytes(&format!("/x{n}")), mod_revision: 0 },
            Compare { key: bytes("/anchor"), mod_revision: anchor },
        ],
        ops: vec![put(&format!("/x{n}"), "1")],
    };
    let change = || Txn { compare: Vec::new(), ops: vec![put("/anchor", "2")] };
    // They come in this order, and most of them into one commit.
    let all = (0..200).map(|n| store.txn(if n == 100 { change() } else { create(n) }));
    let outcomes: Vec<_> =
        futures::future::join_all(all).await.into_iter().map(|o| o.expect("answers")).collect();
    let TxnOutcome::Committed { revision: changed } = outcomes[100] else { panic!("it compares nothing") };
    for (n, outcome) in outcomes.iter().enumerate().filter(|(n, _)| *n != 100) {
        match outcome {
            TxnOutcome::Committed { revision } => assert!(n < 100 && *revision < changed, "{n}"),
            TxnOutcome::Conflict { current, .. } => {
                let found = current[1].as_ref().map(|kv| kv.mod_revision);
                assert!(n > 100 && current[0].is_none() && found == Some(changed), "{n}: {outcome:?}");
            }
        }
    }
}
