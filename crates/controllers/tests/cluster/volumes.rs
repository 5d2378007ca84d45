//! Claims get volumes, and pods get claims of their own.

use kube::api::{Api, DeleteParams, ListParams};
use serde_json::{Value, json};

use super::{Cluster, eventually};

fn phase(found: Option<Value>) -> String {
    found.and_then(|found| found["status"]["phase"].as_str().map(str::to_owned)).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_gets_the_volume_that_suits_and_keeps_it_while_it_is_used() {
    let cluster = Cluster::start().await;
    let (pv, pvc) = (("v1", "PersistentVolume"), ("v1", "PersistentVolumeClaim"));
    let claim = |name: &str| {
        json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name},
            "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "",
                "resources": {"requests": {"storage": "1Gi"}}}})
    };
    cluster.create(claim("data")).await;
    for (name, size) in [("large", "5Gi"), ("small", "1Gi")] {
        cluster
            .create(json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name},
                "spec": {"capacity": {"storage": size}, "accessModes": ["ReadWriteOnce"],
                    "csi": {"driver": "csi.example.com", "volumeHandle": name},
                    "claimRef": (name == "small").then(|| json!({"namespace": "default", "name": "data"}))}}))
            .await;
    }
    eventually("a bound claim", || async { phase(cluster.get(pvc, "data").await) == "Bound" }).await;
    let found = cluster.get(pvc, "data").await.unwrap_or_default();
    assert_eq!(found["spec"]["volumeName"], "small");
    assert_eq!(found["status"]["capacity"]["storage"], "1Gi");
    let volume = cluster.get(pv, "small").await.unwrap_or_default();
    assert_eq!(volume["spec"]["claimRef"]["uid"], found["metadata"]["uid"]);
    assert_eq!(volume["metadata"]["finalizers"], json!(["kubernetes.io/pv-protection"]));
    assert_eq!(phase(cluster.get(pv, "large").await), "Available");

    // The node's volume is attached, and the claim stays for as long as the pod does.
    cluster
        .patch(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1", "annotations":
        {"volumes.kubernetes.io/controller-managed-attach-detach": "true"}}}))
        .await;
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "user"},
        "spec": {"containers": [{"name": "c", "image": "i"}],
            "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]}});
    cluster.create(pod.clone()).await;
    let attachments = Api::<k8s_openapi::api::storage::v1::VolumeAttachment>::all(cluster.client.clone());
    let count = || async { attachments.list(&ListParams::default()).await.expect("a list").items.len() };
    eventually("an attachment", || async { count().await == 1 }).await;
    cluster.delete(claim("data"), DeleteParams::default()).await;
    let found = cluster.get(pvc, "data").await.unwrap_or_default();
    assert!(found["metadata"]["deletionTimestamp"].is_string(), "{found}");
    cluster.delete(pod, DeleteParams::default()).await;
    eventually("the claim's end", || async { cluster.get(pvc, "data").await.is_none() }).await;
    eventually("its detachment", || async { count().await == 0 }).await;
    eventually("the volume's release", || async { phase(cluster.get(pv, "small").await) == "Released" })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_gets_claims_of_its_own_that_go_with_it() {
    let cluster = Cluster::start().await;
    cluster
        .create(json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaimTemplate",
            "metadata": {"name": "gpu"}, "spec": {"spec": {"devices": {"requests": [
                {"name": "one", "exactly": {"deviceClassName": "gpu.example.com"}}]}}}}))
        .await;
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "own"},
    "spec": {
        "containers": [{"name": "c", "image": "i"}],
        "resourceClaims": [{"name": "gpu", "resourceClaimTemplateName": "gpu"}],
        "volumes": [{"name": "scratch", "ephemeral": {"volumeClaimTemplate": {"spec": {
            "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}}}],
    }});
    cluster.create(pod.clone()).await;
    let scratch = ("v1", "PersistentVolumeClaim");
    eventually("a claim for the volume", || async { cluster.get(scratch, "own-scratch").await.is_some() })
        .await;
    let claim = || async {
        let pod = cluster.get(("v1", "Pod"), "own").await.unwrap_or_default();
        let name = pod["status"]["resourceClaimStatuses"][0]["resourceClaimName"].as_str()?.to_owned();
        cluster.get(("resource.k8s.io/v1", "ResourceClaim"), &name).await
    };
    eventually("a claim for the device", || async { claim().await.is_some() }).await;
    let found = claim().await.unwrap_or_default();
    assert_eq!(found["metadata"]["ownerReferences"][0]["name"], "own");
    assert!(found["metadata"]["name"].as_str().is_some_and(|name| name.starts_with("own-gpu-")), "{found}");
    cluster.delete(pod, DeleteParams::default()).await;
    eventually("the end of both", || async {
        let claims = Api::<k8s_openapi::api::resource::v1::ResourceClaim>::namespaced(
            cluster.client.clone(),
            "default",
        );
        let left = claims.list(&ListParams::default()).await.expect("a list").items;
        left.is_empty() && cluster.get(scratch, "own-scratch").await.is_none()
    })
    .await;
}
