use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::feed::{self, Codec};
use super::object::{Change, Object};
use super::{Registry, Written};

const STORED: &[u8] = b"{\"kind\":\"ConfigMap\",\"apiVersion\":\"v1\",\"metadata\":{\"name\":\"a\"}}";

async fn outcomes(registry: &Registry) -> Vec<(String, bool)> {
    let told = Mutex::new(Vec::new());
    let note = |_: &str, resource: &str, agreed: Result<bool, &store::Error>| {
        told.lock().push((resource.to_owned(), agreed.expect("the store answers")));
    };
    registry.compare(note).await;
    told.into_inner()
}

#[tokio::test]
async fn a_cache_that_differs_from_the_store_is_found_and_read_anew() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let store = store::embedded::open(&folder.path().join("store")).expect("opens");
    let codec = Codec { transform: None };
    let (registry, revision, reload) =
        Registry::open(store.clone(), codec.clone(), &[]).await.expect("reads");
    let shutdown = CancellationToken::new();
    let follow = feed::follow(store, registry.caches.clone(), codec, revision, reload, shutdown.clone());
    let follow = tokio::spawn(follow);
    let maps = registry.find("", "v1", "configmaps").expect("is served");
    let mut versions = Vec::new();
    for key in ["n/a", "n/b", "n/c"] {
        match registry.create(&maps, key, Bytes::from_static(STORED), &|| Ok(None)).await.expect("writes") {
            Written::At(revision) => versions.push(revision),
            Written::Conflict(_) => panic!("it is new"),
        }
    }
    registry.remove(&maps, "n/b", versions[1]).await.expect("deletes");
    registry.fresh().await.expect("follows");
    let all = outcomes(&registry).await;
    assert!(all.len() > 50 && all.iter().all(|(_, agreed)| *agreed), "{all:?}");

    // A change that the store never had.
    let false_object =
        Object::from_stored("n/x".into(), versions[2], STORED, Change::Added).expect("metadata");
    maps.cache.apply([(Arc::from("n/x"), versions[2], Some(false_object))].into_iter());
    let epoch = maps.cache.epoch();
    let wrong: Vec<_> = outcomes(&registry).await.into_iter().filter(|(_, agreed)| !agreed).collect();
    assert_eq!(wrong, [("configmaps".to_owned(), false)]);
    let mut bell = maps.cache.bell();
    while maps.cache.epoch() == epoch {
        bell.changed().await.expect("the cache lives");
    }
    assert!(outcomes(&registry).await.iter().all(|(_, agreed)| *agreed));
    let keys: Vec<_> = maps.cache.list("", None).0.iter().map(|object| object.key.to_string()).collect();
    assert_eq!(keys, ["n/a", "n/c"]);
    shutdown.cancel();
    follow.await.expect("ends");
}
