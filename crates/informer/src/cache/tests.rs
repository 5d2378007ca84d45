use super::*;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use std::sync::atomic::{AtomicUsize, Ordering};

fn pod(name: &str, uid: &str, version: &str, owner: Option<&str>) -> Pod {
    let owner_references = owner.map(|uid| {
        vec![OwnerReference { uid: uid.into(), controller: Some(true), ..OwnerReference::default() }]
    });
    Pod {
        metadata: ObjectMeta {
            name: Some(name.into()),
            namespace: Some("default".into()),
            uid: Some(uid.into()),
            resource_version: Some(version.into()),
            owner_references,
            ..ObjectMeta::default()
        },
        ..Pod::default()
    }
}

#[test]
fn indexes_follow_changes() {
    let informer = Informer::<Pod>::default();
    informer.apply(pod("a", "1", "1", Some("x")));
    informer.apply(pod("b", "2", "2", None));
    assert_eq!(informer.controlled_by("x").len(), 1);
    assert_eq!(informer.orphans("default").len(), 1);
    informer.apply(pod("a", "1", "3", None));
    assert!(informer.controlled_by("x").is_empty());
    assert_eq!(informer.orphans("default").len(), 2);
    informer.delete(&Key::new("default", "a"));
    assert_eq!(informer.orphans("default").len(), 1);
    assert_eq!(informer.in_namespace("default").len(), 1);
}

#[test]
fn a_list_deletes_what_it_lacks_and_repeats_nothing() {
    let informer = Informer::<Pod>::default();
    let applied = Arc::new(AtomicUsize::new(0));
    let deleted = Arc::new(AtomicUsize::new(0));
    informer.apply(pod("a", "1", "1", None));
    let (counted, gone) = (applied.clone(), deleted.clone());
    informer.on_change(move |change| match change {
        Change::Applied { .. } => drop(counted.fetch_add(1, Ordering::Relaxed)),
        Change::Deleted(_) => drop(gone.fetch_add(1, Ordering::Relaxed)),
    });
    assert_eq!(applied.load(Ordering::Relaxed), 1);
    informer.apply(pod("b", "2", "2", None));
    informer.replace(vec![pod("b", "2", "2", None), pod("c", "3", "3", None)]);
    assert_eq!(applied.load(Ordering::Relaxed), 3);
    assert_eq!(deleted.load(Ordering::Relaxed), 1);
    informer.replace(vec![pod("b", "9", "9", None)]);
    assert_eq!(deleted.load(Ordering::Relaxed), 3);
    assert!(informer.has_synced());
}
