//! The engine against real etcd: what every engine promises at a single member, and three members of which one is killed
//! and one is cut off while a recorded history is checked for linearizability.

use std::time::Duration;

use bytes::Bytes;

use super::{Options, connect};
use crate::Store;
use crate::contract;

mod faults;
mod linearizable;
pub(super) mod members;

use members::Member;

/// A member of its own and a store on it, under a prefix, whose window holds so many events.
async fn fresh(window_events: usize) -> (Store, Member) {
    let member = Member::alone(false);
    let options = Options {
        prefix: Bytes::from_static(b"/carrack"),
        window_events,
        ..Options::new(vec![member.client_url()])
    };
    (member.connect(options).await, member)
}

#[tokio::test]
async fn writes_are_read_back_at_every_revision() {
    let (store, _member) = fresh(100).await;
    contract::writes_are_read_back_at_every_revision(&store).await;
}

#[tokio::test]
async fn long_ranges_come_whole() {
    let (store, _member) = fresh(100).await;
    contract::long_ranges_come_whole(&store).await;
}

#[tokio::test]
async fn a_failed_comparison_writes_nothing_and_tells_what_is_there() {
    let (store, _member) = fresh(100).await;
    contract::a_failed_comparison_writes_nothing_and_tells_what_is_there(&store).await;
}

#[tokio::test]
async fn a_watch_sees_history_and_future_in_order() {
    let (store, _member) = fresh(4).await;
    contract::a_watch_sees_history_and_future_in_order(&store).await;
}

#[tokio::test]
async fn progress_follows_writes_that_do_not_concern_the_watch() {
    let (store, _member) = fresh(100).await;
    contract::progress_follows_writes_that_do_not_concern_the_watch(&store).await;
}

#[tokio::test]
async fn compaction_keeps_what_is_current_and_refuses_what_is_gone() {
    let (store, _member) = fresh(0).await;
    contract::compaction_keeps_what_is_current_and_refuses_what_is_gone(&store).await;
}

#[tokio::test]
async fn a_backup_is_restored_as_an_ordinary_change() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (store, _member) = fresh(100).await;
    contract::a_backup_is_restored_as_an_ordinary_change(&store, folder.path()).await;
}

#[tokio::test]
async fn agrees_with_a_model() {
    let (store, _member) = fresh(8).await;
    contract::agrees_with_a_model(&store, 100).await;
}

#[tokio::test]
async fn two_servers_see_each_others_writes_and_nothing_of_other_users() {
    let (store, member) = fresh(100).await;
    let options =
        Options { prefix: Bytes::from_static(b"/carrack"), ..Options::new(vec![member.client_url()]) };
    let (second, other) =
        (member.connect(options).await, member.connect(Options::new(vec![member.client_url()])).await);
    let mut watch = second.watch(contract::bytes("/"), 2).await.expect("nothing is compacted");
    let mut progress = watch.progress();
    contract::write(&store, vec![contract::put("/a", "1")]).await;
    contract::write(&other, vec![contract::put("/elsewhere", "1")]).await;
    let newest = second.newest().await.expect("answers");
    assert_eq!(newest, 3);
    assert_eq!(contract::value(&second, "/a", None).await.as_deref(), Some("1"));
    assert_eq!(contract::value(&other, "/carrack/a", None).await.as_deref(), Some("1"));
    let events = watch.next().await.expect("open").expect("kept");
    assert_eq!((events.len(), events[0].revision, &events[0].key[..]), (1, 2, &b"/a"[..]));
    let waits = tokio::spawn(async move { watch.next().await.is_none() });
    progress.wait_for(|reached| *reached >= newest).await.expect("other users' writes move the watch on");
    waits.abort();
}

#[tokio::test]
async fn certificates_are_asked_for_and_shown() {
    let member = Member::alone(true);
    let mut options = member.trusted();
    let store = member.connect(options.clone()).await;
    assert_eq!(contract::write(&store, vec![contract::put("/k", "1")]).await, 2);
    options.identity = None;
    let refused = tokio::time::timeout(Duration::from_secs(30), connect(options)).await;
    assert!(refused.expect("it gives up in time").is_err(), "no certificate was shown");
}

#[tokio::test]
async fn wrong_addresses_are_told() {
    for (server, why) in
        [("127.0.0.1:2379", "write http"), ("ftp://x", "write http"), ("http://", "http://"), ("", "")]
    {
        let Err(error) = connect(Options::new(vec![server.to_owned()])).await else {
            panic!("{server} was taken");
        };
        let text = format!("{error}: {:?}", std::error::Error::source(&error).map(ToString::to_string));
        assert!(text.contains("addresses of etcd") && text.contains(why), "{server}: {text}");
    }
}
