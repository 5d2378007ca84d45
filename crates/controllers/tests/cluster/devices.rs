//! Devices: the scheduler allocates them to claims, the controllers make claims and give devices back.

use kube::api::{DeleteParams, ListParams};
use serde_json::{Value, json};

use super::{Cluster, eventually};

const CLAIM: (&str, &str) = ("resource.k8s.io/v1", "ResourceClaim");
const POD: (&str, &str) = ("v1", "Pod");
const FINALIZER: &str = "resource.kubernetes.io/delete-protection";

fn class() -> Value {
    json!({"apiVersion": "resource.k8s.io/v1", "kind": "DeviceClass", "metadata": {"name": "card"},
        "spec": {"selectors": [{"cel": {"expression": "device.driver == 'cards.example.com'"}}],
            "extendedResourceName": "example.com/card"}})
}

fn slice(node: &str, devices: Value) -> Value {
    json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceSlice", "metadata": {"name": format!("{node}-cards")},
        "spec": {"driver": "cards.example.com", "nodeName": node, "devices": devices,
            "pool": {"name": node, "generation": 1, "resourceSliceCount": 1}}})
}

fn cards(names: &[&str]) -> Value {
    names.iter().map(|name| json!({"name": name})).collect()
}

fn spec() -> Value {
    json!({"devices": {"requests": [{"name": "one", "exactly": {"deviceClassName": "card"}}]}})
}

fn template() -> Value {
    json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaimTemplate", "metadata": {"name": "card"},
        "spec": {"spec": spec()}})
}

fn pod(name: &str, claim: Value) -> Value {
    let mut claim = claim;
    claim["name"] = json!("card");
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": "cards"}}, "spec": {
        "terminationGracePeriodSeconds": 0, "resourceClaims": [claim],
        "containers": [{"name": "c", "image": "i", "resources": {"claims": [{"name": "card"}]}}]}})
}

fn from_template(name: &str) -> Value {
    pod(name, json!({"resourceClaimTemplateName": "card"}))
}

fn named(name: &str, claim: &str) -> Value {
    pod(name, json!({"resourceClaimName": claim}))
}

async fn node_of(cluster: &Cluster, pod: &str) -> Option<String> {
    let pod = cluster.get(POD, pod).await?;
    pod["spec"]["nodeName"].as_str().map(str::to_owned)
}

async fn all_claims(cluster: &Cluster) -> Vec<Value> {
    let claims = kube::Api::<k8s_openapi::api::resource::v1::ResourceClaim>::namespaced(
        cluster.client.clone(),
        "default",
    );
    let list = claims.list(&ListParams::default()).await.expect("a list");
    list.items.into_iter().map(|claim| serde_json::to_value(claim).expect("JSON")).collect()
}

/// The devices that are allocated, in order, by any claim.
async fn allocated(cluster: &Cluster) -> Vec<String> {
    let devices = |claim: &Value| {
        let results = claim["status"]["allocation"]["devices"]["results"].as_array().cloned();
        results
            .unwrap_or_default()
            .into_iter()
            .map(|one| one["device"].as_str().unwrap_or_default().to_owned())
    };
    let mut all: Vec<String> = all_claims(cluster).await.iter().flat_map(devices).collect();
    all.sort();
    all
}

async fn said_of(cluster: &Cluster, pod: &str) -> String {
    let pod = cluster.get(POD, pod).await.unwrap_or_default();
    let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let one = conditions.iter().find(|one| one["type"] == "PodScheduled");
    one.and_then(|one| one["message"].as_str()).unwrap_or_default().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_get_devices_for_their_claims_and_give_them_back() {
    let cluster = Cluster::start().await;
    cluster.create(template()).await;
    cluster.create(from_template("early")).await;
    eventually("what is missing is told", || async {
        said_of(&cluster, "early").await.contains("device class card does not exist")
    })
    .await;
    cluster.create(class()).await;
    eventually("the lack of devices is told", || async {
        said_of(&cluster, "early").await.contains("1 cannot allocate all claims")
    })
    .await;
    cluster.create(slice("node-1", cards(&["a", "b", "c"]))).await;
    eventually("it has its place", || async { node_of(&cluster, "early").await.is_some() }).await;
    let claims = all_claims(&cluster).await;
    let claim = &claims[0];
    assert_eq!(claim["status"]["reservedFor"][0]["name"], "early", "{claim}");
    assert_eq!(claim["status"]["allocation"]["devices"]["results"][0]["device"], "a");
    assert_eq!(
        claim["status"]["allocation"]["nodeSelector"]["nodeSelectorTerms"][0]["matchFields"][0]["values"][0],
        "node-1"
    );
    assert!(claim["status"]["allocation"]["allocationTimestamp"].is_string());
    assert_eq!(claim["metadata"]["finalizers"], json!([FINALIZER]));

    // Six more for two devices: whoever comes first has one, and nobody has another's.
    for number in 0..6 {
        cluster.create(from_template(&format!("p{number}"))).await;
    }
    let placed = || async {
        let pods = cluster.pods("app=cards").await;
        let bound = pods.iter().filter(|pod| pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some()));
        bound.filter_map(|pod| pod.metadata.name.clone()).collect::<Vec<String>>()
    };
    eventually("three are placed", || async { placed().await.len() == 3 }).await;
    eventually("the others are told", || async {
        let mut refused = 0;
        for number in 0..6 {
            refused +=
                usize::from(said_of(&cluster, &format!("p{number}")).await.contains("cannot allocate"));
        }
        refused == 4
    })
    .await;
    assert_eq!(allocated(&cluster).await, ["a", "b", "c"]);
    // As pods end, others follow, until all had their turn.
    for left in (4..7).rev() {
        let first = placed().await.into_iter().next().expect("some are placed");
        cluster
            .delete(
                json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": first}}),
                DeleteParams::default(),
            )
            .await;
        eventually("another takes its place", || async {
            placed().await.len() == 3 && cluster.pods("app=cards").await.len() == left
        })
        .await;
        eventually("each has its own", || async { allocated(&cluster).await == ["a", "b", "c"] }).await;
    }
    for name in cluster.pods("app=cards").await.iter().filter_map(|pod| pod.metadata.name.clone()) {
        cluster
            .delete(
                json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}}),
                DeleteParams::default(),
            )
            .await;
    }
    eventually("nothing is left", || async { all_claims(&cluster).await.is_empty() }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_is_shared_and_goes_where_its_pods_can() {
    let cluster = Cluster::start().await;
    cluster.add_node("node-2").await;
    cluster.create(class()).await;
    cluster.create(slice("node-1", cards(&["a"]))).await;
    cluster.create(slice("node-2", cards(&["b"]))).await;
    let claim = |name: &str| json!({"apiVersion": CLAIM.0, "kind": CLAIM.1, "metadata": {"name": name}, "spec": spec()});
    cluster.create(named("first", "shared")).await;
    eventually("the missing claim is told", || async {
        said_of(&cluster, "first").await.contains("resourceclaim.resource.k8s.io \"shared\" not found")
    })
    .await;
    cluster.create(claim("shared")).await;
    cluster.create(named("second", "shared")).await;
    eventually("both are placed", || async {
        node_of(&cluster, "first").await.is_some() && node_of(&cluster, "second").await.is_some()
    })
    .await;
    assert_eq!(node_of(&cluster, "first").await, node_of(&cluster, "second").await);
    let found = cluster.get(CLAIM, "shared").await.unwrap_or_default();
    assert_eq!(found["status"]["reservedFor"].as_array().map(Vec::len), Some(2), "{found}");
    cluster.delete(named("first", "shared"), DeleteParams::default()).await;
    let users = |found: &Value| found["status"]["reservedFor"].as_array().map_or(0, Vec::len);
    eventually("one uses it", || async {
        users(&cluster.get(CLAIM, "shared").await.unwrap_or_default()) == 1
    })
    .await;
    assert_eq!(allocated(&cluster).await.len(), 1);
    cluster.delete(named("second", "shared"), DeleteParams::default()).await;
    eventually("it is free", || async {
        let found = cluster.get(CLAIM, "shared").await.unwrap_or_default();
        found["status"]["allocation"].is_null() && found["metadata"]["finalizers"].is_null()
    })
    .await;

    // Allocated, of nobody, and on a node that takes no pod: it is allocated anew.
    let mut kept = claim("kept");
    kept["metadata"]["finalizers"] = json!([FINALIZER]);
    cluster.create(kept.clone()).await;
    let only = json!({"nodeSelectorTerms": [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["node-1"]}]}]});
    let status = json!({"status": {"allocation": {"nodeSelector": only, "devices": {"results": [
        {"request": "one", "driver": "cards.example.com", "pool": "node-1", "device": "a"}]}}}});
    let claims = kube::Api::<k8s_openapi::api::resource::v1::ResourceClaim>::namespaced(
        cluster.client.clone(),
        "default",
    );
    claims
        .patch_status("kept", &kube::api::PatchParams::default(), &kube::api::Patch::Merge(status))
        .await
        .expect("a status");
    cluster.patch(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1"}, "spec": {"unschedulable": true}})).await;
    eventually("its devices are given up", || async {
        // Until the scheduler knows of both, it may find the claim as it was.
        if cluster.get(POD, "third").await.is_none() {
            cluster.create(named("third", "kept")).await;
        }
        node_of(&cluster, "third").await.as_deref() == Some("node-2")
    })
    .await;
    assert_eq!(allocated(&cluster).await, ["b"]);
    cluster.delete(named("third", "kept"), DeleteParams::default()).await;
    cluster.delete(kept, DeleteParams::default()).await;
    eventually("the claim goes", || async { cluster.get(CLAIM, "kept").await.is_none() }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn extended_resources_may_be_devices() {
    let cluster = Cluster::start().await;
    cluster.create(class()).await;
    cluster.create(slice("node-1", cards(&["a", "b"]))).await;
    let pod = |name: &str, resource: &str| {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {"terminationGracePeriodSeconds": 0,
            "containers": [{"name": "c", "image": "i", "resources": {"limits": {resource: "1"}}}]}})
    };
    cluster.create(pod("one", "example.com/card")).await;
    cluster.create(pod("two", "deviceclass.resource.kubernetes.io/card")).await;
    eventually("both are placed", || async {
        node_of(&cluster, "one").await.is_some() && node_of(&cluster, "two").await.is_some()
    })
    .await;
    assert_eq!(allocated(&cluster).await, ["a", "b"]);
    let found = cluster.get(POD, "one").await.unwrap_or_default();
    let status = &found["status"]["extendedResourceClaimStatus"];
    assert!(
        status["resourceClaimName"].as_str().is_some_and(|name| name.starts_with("one-extended-resources-"))
    );
    assert_eq!(
        status["requestMappings"],
        json!([{"containerName": "c", "resourceName": "example.com/card", "requestName": "container-0-request-0"}])
    );
    cluster.create(pod("three", "example.com/card")).await;
    eventually("there is no third", || async {
        said_of(&cluster, "three").await.contains("cannot allocate")
    })
    .await;
    cluster.delete(pod("one", "example.com/card"), DeleteParams::default()).await;
    eventually("the third has its place", || async { node_of(&cluster, "three").await.is_some() }).await;
    assert_eq!(allocated(&cluster).await, ["a", "b"]);
    cluster.create(pod("four", "example.com/other")).await;
    eventually("others count", || async {
        said_of(&cluster, "four").await.contains("Insufficient example.com/other")
    })
    .await;
    for name in ["two", "three"] {
        cluster.delete(pod(name, "example.com/card"), DeleteParams::default()).await;
    }
    eventually("their claims go", || async { all_claims(&cluster).await.is_empty() }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_waits_until_its_devices_are_attached() {
    let cluster = Cluster::start().await;
    cluster.create(class()).await;
    let device = |name: &str| json!({"name": name, "bindingConditions": ["attached"], "bindingFailureConditions": ["failed"]});
    cluster.create(slice("node-1", json!([device("a"), device("b")]))).await;
    cluster.create(template()).await;
    cluster.create(from_template("patient")).await;
    eventually("a device is allocated", || async { allocated(&cluster).await == ["a"] }).await;
    assert_eq!(node_of(&cluster, "patient").await, None);
    let claims = kube::Api::<k8s_openapi::api::resource::v1::ResourceClaim>::namespaced(
        cluster.client.clone(),
        "default",
    );
    let tell = |device: &'static str, condition: &'static str| {
        let claims = claims.clone();
        async move {
            let name =
                claims.list(&ListParams::default()).await.expect("a list").items[0].metadata.name.clone();
            let since = k8s_openapi::jiff::Timestamp::now();
            let status = json!({"status": {"devices": [{"driver": "cards.example.com", "pool": "node-1", "device": device,
                "conditions": [{"type": condition, "status": "True", "reason": "Told", "message": "", "lastTransitionTime": since}]}]}});
            let (with, patch) = (kube::api::PatchParams::default(), kube::api::Patch::Merge(status));
            claims.patch_status(&name.unwrap_or_default(), &with, &patch).await.expect("a status");
        }
    };
    // The first cannot be attached: it is given up, and what is found next may be the same or another.
    tell("a", "failed").await;
    eventually("it is allocated anew", || async {
        let claim = all_claims(&cluster).await.into_iter().next().unwrap_or_default();
        claim["status"]["devices"].is_null() && !claim["status"]["allocation"].is_null()
    })
    .await;
    tell("a", "attached").await;
    eventually("it has its place", || async { node_of(&cluster, "patient").await.is_some() }).await;
}
