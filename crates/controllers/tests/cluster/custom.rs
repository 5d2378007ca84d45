//! Custom resources are resources like any other to the controllers: they are collected, counted, and end with their
//! namespace.

use kube::api::{
    Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams, PropagationPolicy,
};
use kube::core::{ApiResource, GroupVersionKind};
use serde_json::{Value, json};

use super::{Cluster, eventually};

const FOO: (&str, &str) = ("example.com/v1", "Foo");

fn foos(cluster: &Cluster, namespace: &str) -> Api<DynamicObject> {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("example.com", "v1", "Foo"));
    Api::namespaced_with(cluster.client.clone(), namespace, &resource)
}

fn foo(name: &str, metadata: Value) -> Value {
    let mut object = json!({"apiVersion": FOO.0, "kind": FOO.1, "metadata": {"name": name}});
    let own = object["metadata"].as_object_mut().expect("an object");
    own.extend(metadata.as_object().cloned().unwrap_or_default());
    object
}

async fn define(cluster: &Cluster) {
    let schema = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    cluster
        .create(json!({
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": "foos.example.com"},
            "spec": {"group": "example.com", "scope": "Namespaced", "names": {"plural": "foos", "kind": "Foo"},
                "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}]}
        }))
        .await;
    let foos = foos(cluster, "default");
    eventually("the kind", || async { foos.list(&ListParams::default()).await.is_ok() }).await;
}

/// The reference that makes an object the owner of another.
async fn owner(cluster: &Cluster, kind: (&str, &str), name: &str) -> Value {
    let found = cluster.get(kind, name).await.expect("the owner");
    json!({"ownerReferences": [{"apiVersion": kind.0, "kind": kind.1, "name": name,
        "uid": found["metadata"]["uid"], "blockOwnerDeletion": true}]})
}

#[tokio::test(flavor = "multi_thread")]
async fn custom_resources_own_and_are_owned() {
    let cluster = Cluster::start().await;
    define(&cluster).await;
    let map = |name: &str, metadata: Value| {
        let mut map = foo(name, metadata);
        (map["apiVersion"], map["kind"]) = ("v1".into(), "ConfigMap".into());
        map
    };
    let gone = async |kind: (&'static str, &'static str), name: &'static str| {
        eventually(name, || async { cluster.get(kind, name).await.is_none() }).await;
    };
    const MAP: (&str, &str) = ("v1", "ConfigMap");
    // In the background: a custom resource, one that it owns, and what that owns in turn.
    cluster.create(foo("a", json!({}))).await;
    cluster.create(foo("b", owner(&cluster, FOO, "a").await)).await;
    cluster.create(map("c", owner(&cluster, FOO, "b").await)).await;
    cluster.delete(foo("a", json!({})), DeleteParams::background()).await;
    gone(FOO, "b").await;
    gone(MAP, "c").await;
    // In the foreground the owner goes last.
    cluster.create(map("d", json!({}))).await;
    let mut held = owner(&cluster, MAP, "d").await;
    held["finalizers"] = json!(["example.com/held"]);
    cluster.create(foo("e", held)).await;
    cluster.delete(map("d", json!({})), DeleteParams::foreground()).await;
    eventually("the dependent's deletion", || async {
        cluster.get(FOO, "e").await.is_some_and(|found| found["metadata"]["deletionTimestamp"].is_string())
    })
    .await;
    assert!(cluster.get(MAP, "d").await.is_some(), "it waits for what it owns");
    cluster.patch(foo("e", json!({"finalizers": null}))).await;
    gone(FOO, "e").await;
    gone(MAP, "d").await;
    // Orphans stay, and own nobody's name any more.
    cluster.create(foo("f", json!({}))).await;
    cluster.create(foo("g", owner(&cluster, FOO, "f").await)).await;
    let orphan =
        DeleteParams { propagation_policy: Some(PropagationPolicy::Orphan), ..DeleteParams::default() };
    cluster.delete(foo("f", json!({})), orphan).await;
    gone(FOO, "f").await;
    let left = cluster.get(FOO, "g").await.expect("the orphan");
    assert!(left["metadata"].get("ownerReferences").is_none(), "{left}");
}

#[tokio::test(flavor = "multi_thread")]
async fn custom_resources_are_counted() {
    let cluster = Cluster::start().await;
    define(&cluster).await;
    cluster
        .create(json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q"},
            "spec": {"hard": {"count/foos.example.com": "2"}}}))
        .await;
    let used = |expected: &'static str| {
        let cluster = &cluster;
        async move {
            eventually(expected, || async {
                let quota = cluster.get(("v1", "ResourceQuota"), "q").await.unwrap_or_default();
                quota["status"]["used"]["count/foos.example.com"] == expected
            })
            .await;
        }
    };
    used("0").await;
    cluster.create(foo("a", json!({}))).await;
    cluster.create(foo("b", json!({}))).await;
    used("2").await;
    let third = serde_json::from_value(foo("c", json!({}))).expect("an object");
    let refused = foos(&cluster, "default").create(&PostParams::default(), &third).await;
    let Err(kube::Error::Api(status)) = refused else { panic!("more than the quota allows") };
    assert_eq!((status.code, status.reason.as_str()), (403, "Forbidden"));
    assert!(status.message.contains("count/foos.example.com=1"), "{}", status.message);
    cluster.delete(foo("a", json!({})), DeleteParams::default()).await;
    used("1").await;
    cluster.create(foo("c", json!({}))).await;
    used("2").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn custom_resources_end_with_their_namespace() {
    let cluster = Cluster::start().await;
    define(&cluster).await;
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "there"}});
    cluster.create(namespace.clone()).await;
    cluster.create(foo("a", json!({"namespace": "there"}))).await;
    cluster.create(foo("b", json!({"namespace": "there", "finalizers": ["example.com/held"]}))).await;
    cluster.delete(namespace, DeleteParams::default()).await;
    let message =
        "Some content in the namespace has finalizers remaining: example.com/held in 1 resource instances";
    eventually("the reason", || async {
        let found = cluster.get(("v1", "Namespace"), "there").await.unwrap_or_default();
        let conditions = found["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions
            .iter()
            .any(|one| one["type"] == "NamespaceFinalizersRemaining" && one["message"] == message)
    })
    .await;
    let there = foos(&cluster, "there");
    let left: Vec<_> = there.list(&ListParams::default()).await.expect("a list").items;
    assert_eq!(left.iter().filter_map(|one| one.metadata.name.as_deref()).collect::<Vec<_>>(), ["b"]);
    let release = json!({"metadata": {"finalizers": null}});
    there.patch("b", &PatchParams::default(), &Patch::Merge(release)).await.expect("released");
    eventually("the end", || async { cluster.get(("v1", "Namespace"), "there").await.is_none() }).await;
}
