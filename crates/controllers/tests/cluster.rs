//! The controllers and the scheduler against a real API server in this process, with a node that only
//! pretends: pods bound to it run at once and end when they are deleted.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use apiserver::UserInfo;
use futures::StreamExt;
use k8s_openapi::api::admissionregistration::v1::ValidatingAdmissionPolicy;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::core::ApiResource;
use kube::runtime::watcher;
use kube::{Client, Resource};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

/// Far more than anything here takes; a wait this long means that it will never happen.
const LONGEST: Duration = Duration::from_secs(60);

#[path = "cluster/custom.rs"]
mod custom;
#[path = "cluster/volumes.rs"]
mod volumes;

#[path = "cluster/devices.rs"]
mod devices;

const CLUSTER_SCOPED: [&str; 11] = [
    "CustomResourceDefinition",
    "Node",
    "Namespace",
    "PriorityClass",
    "PersistentVolume",
    "CSIDriver",
    "VolumeAttachment",
    "ServiceCIDR",
    "IPAddress",
    "DeviceClass",
    "ResourceSlice",
];

pub struct Cluster {
    pub client: Client,
    shutdown: CancellationToken,
    _dir: tempfile::TempDir,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

impl Cluster {
    pub async fn start() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let store = store::embedded::open(&dir.path().join("store")).expect("a store");
        let mut config = apiserver::Config::new(dir.path());
        config.bind.set_port(0);
        let server = apiserver::start(config, store).await.expect("a server");
        let shutdown = CancellationToken::new();
        let user = {
            let server = server.clone();
            move |name: &str, groups: &[&str]| {
                let groups = groups.iter().map(|group| (*group).to_owned()).collect();
                let user = UserInfo { name: name.to_owned(), groups, ..UserInfo::default() };
                Client::new(server.in_process(user), "default")
            }
        };
        let admin = user("admin", &["system:masters"]);
        let manager = user("system:kube-controller-manager", &[]);
        let informers = informer::Factory::new(manager.clone(), shutdown.clone());
        let scheduling = scheduler::run(
            user("system:kube-scheduler", &[]),
            scheduler::Config { informers: Some(informers.clone()), ..Default::default() },
            shutdown.clone(),
        );
        tokio::spawn(scheduling);
        let config = controllers::Config {
            informers: Some(informers),
            root_ca: "a certificate".into(),
            pod_ranges: vec![controllers::Range::new("10.244.0.0/16", 24).expect("a range")],
            ..Default::default()
        };
        let clients: controllers::Clients =
            Arc::new(move |name| user(&format!("system:serviceaccount:kube-system:{name}"), &[]));
        tokio::spawn(controllers::run(manager, clients, config, shutdown.clone()));
        let cluster = Self { client: admin, shutdown, _dir: dir };
        cluster.add_node("node-1").await;
        tokio::spawn(pretend(cluster.client.clone(), cluster.shutdown.clone()));
        cluster
    }

    pub async fn add_node(&self, name: &str) {
        let node = json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
            "status": {
                "allocatable": {"cpu": "8", "memory": "16Gi", "pods": "500"},
                "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}],
            },
        });
        self.create(node).await;
    }

    fn api(&self, object: &Value) -> (Api<kube::core::DynamicObject>, String) {
        let text = |path: &str| object.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
        let version = text("/apiVersion");
        let (group, version) = version.split_once('/').unwrap_or(("", &version));
        let gvk = kube::core::GroupVersionKind::gvk(group, version, &text("/kind"));
        let resource = ApiResource::from_gvk(&gvk);
        let api = match text("/metadata/namespace").as_str() {
            "" if CLUSTER_SCOPED.contains(&gvk.kind.as_str()) => {
                Api::all_with(self.client.clone(), &resource)
            }
            "" => Api::namespaced_with(self.client.clone(), "default", &resource),
            namespace => Api::namespaced_with(self.client.clone(), namespace, &resource),
        };
        (api, text("/metadata/name"))
    }

    /// Creates an object, and again for as long as what it needs is still being made.
    pub async fn create(&self, object: Value) {
        let (api, name) = self.api(&object);
        let typed = serde_json::from_value(object).expect("an object");
        let started = Instant::now();
        while let Err(error) = api.create(&PostParams::default(), &typed).await {
            assert!(started.elapsed() < LONGEST, "{name}: {error}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub async fn patch(&self, object: Value) {
        let (api, name) = self.api(&object);
        api.patch(&name, &PatchParams::default(), &Patch::Merge(object)).await.expect("a patch");
    }

    pub async fn delete(&self, object: Value, params: DeleteParams) {
        let (api, name) = self.api(&object);
        api.delete(&name, &params).await.expect("a deletion");
    }

    pub async fn get(&self, kind: (&str, &str), name: &str) -> Option<Value> {
        let (api, name) =
            self.api(&json!({"apiVersion": kind.0, "kind": kind.1, "metadata": {"name": name}}));
        let found = api.get_opt(&name).await.expect("an answer");
        found.map(|object| serde_json::to_value(object).expect("JSON"))
    }

    pub async fn pods(&self, labels: &str) -> Vec<Pod> {
        let api = Api::<Pod>::namespaced(self.client.clone(), "default");
        api.list(&ListParams::default().labels(labels)).await.expect("pods").items
    }
}

/// Waits until a condition holds.
pub async fn eventually<F: Future<Output = bool>>(what: &str, check: impl Fn() -> F) {
    let started = Instant::now();
    while !check().await {
        assert!(started.elapsed() < LONGEST, "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Runs what is bound: pods whose name has `-job-` succeed, all others run and are ready.
async fn pretend(client: Client, shutdown: CancellationToken) {
    let all = Api::<Pod>::all(client.clone());
    let mut events = std::pin::pin!(watcher(all, watcher::Config::default()));
    let mut address = 1u32;
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            () = shutdown.cancelled() => return,
        };
        let Some(Ok(watcher::Event::Apply(pod) | watcher::Event::InitApply(pod))) = event else { continue };
        let name = pod.metadata.name.clone().unwrap_or_default();
        let api =
            Api::<Pod>::namespaced(client.clone(), pod.metadata.namespace.as_deref().unwrap_or_default());
        let bound = pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some());
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default();
        if pod.metadata.deletion_timestamp.is_some() && bound {
            let _ = api.delete(&name, &DeleteParams::default().grace_period(0)).await;
        } else if bound && phase == "Pending" {
            address += 1;
            let ip = format!("10.244.{}.{}", address / 250, address % 250 + 1);
            let ends = name.contains("-job-");
            let since = k8s_openapi::jiff::Timestamp::now();
            let containers = pod.spec.iter().flat_map(|spec| &spec.containers).map(|container| {
                let state = if ends { json!({"terminated": {"exitCode": 0}}) } else { json!({"running": {}}) };
                json!({"name": container.name, "image": container.image, "imageID": "", "ready": !ends, "restartCount": 0, "state": state})
            });
            let status = json!({"status": {
                "phase": if ends { "Succeeded" } else { "Running" },
                "podIP": ip, "podIPs": [{"ip": ip}],
                "containerStatuses": containers.collect::<Vec<_>>(),
                "conditions": [{"type": "Ready", "status": if ends { "False" } else { "True" }, "lastTransitionTime": since}],
            }});
            let _ = api.patch_status(&name, &PatchParams::default(), &Patch::Strategic(status)).await;
        }
    }
}

fn deployment(name: &str, replicas: i32, image: &str) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {
            "replicas": replicas, "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"containers": [{"name": "c", "image": image}]},
            },
        },
    })
}

const DEPLOYMENT: (&str, &str) = ("apps/v1", "Deployment");

async fn is_rolled_out(cluster: &Cluster, name: &str, replicas: i64) -> bool {
    let Some(found) = cluster.get(DEPLOYMENT, name).await else { return false };
    let status = &found["status"];
    status["observedGeneration"] == found["metadata"]["generation"]
        && ["replicas", "updatedReplicas", "availableReplicas"].iter().all(|field| status[*field] == replicas)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_runs_rolls_scales_and_goes() {
    let cluster = Cluster::start().await;
    let created = Instant::now();
    cluster.create(deployment("web", 3, "one")).await;
    cluster
        .create(json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
            "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]}}))
        .await;
    eventually("three pods", || is_rolled_out(&cluster, "web", 3)).await;
    println!("three pods after {:?}", created.elapsed());
    eventually("three addresses", || async {
        let endpoints = cluster.get(("v1", "Endpoints"), "web").await.unwrap_or_default();
        endpoints["subsets"][0]["addresses"].as_array().is_some_and(|all| all.len() == 3)
    })
    .await;

    cluster.patch(deployment("web", 3, "two")).await;
    eventually("the second revision", || is_rolled_out(&cluster, "web", 3)).await;
    // Those of before may still be ending.
    let stays = |pod: &Pod| pod.metadata.deletion_timestamp.is_none();
    let pods = cluster.pods("app=web").await.into_iter().filter(stays);
    let images: Vec<_> = pods.filter_map(|pod| pod.spec).collect();
    assert!(images.iter().all(|spec| spec.containers[0].image.as_deref() == Some("two")));
    let found = cluster.get(DEPLOYMENT, "web").await.expect("a deployment");
    assert_eq!(found["metadata"]["annotations"]["deployment.kubernetes.io/revision"], "2");

    cluster.patch(deployment("web", 5, "two")).await;
    eventually("five pods", || is_rolled_out(&cluster, "web", 5)).await;
    cluster.patch(deployment("web", 1, "two")).await;
    eventually("one pod", || is_rolled_out(&cluster, "web", 1)).await;

    cluster.delete(deployment("web", 1, "two"), DeleteParams::foreground()).await;
    eventually("the end of it", || async {
        cluster.get(DEPLOYMENT, "web").await.is_none() && cluster.pods("app=web").await.is_empty()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_pods_find_their_place_and_orphans_stay() {
    let cluster = Cluster::start().await;
    let created = Instant::now();
    cluster.create(deployment("many", 100, "one")).await;
    eventually("a hundred pods", || is_rolled_out(&cluster, "many", 100)).await;
    println!("a hundred pods after {:?}", created.elapsed());
    let params = DeleteParams {
        propagation_policy: Some(kube::api::PropagationPolicy::Orphan),
        ..DeleteParams::default()
    };
    cluster.delete(deployment("many", 100, "one"), params).await;
    eventually("the deployment's end", || async { cluster.get(DEPLOYMENT, "many").await.is_none() }).await;
    assert_eq!(cluster.pods("app=many").await.len(), 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_is_furnished_and_ends_with_all_that_is_in_it() {
    let cluster = Cluster::start().await;
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "there"}});
    cluster.create(namespace.clone()).await;
    let maps = Api::<k8s_openapi::api::core::v1::ConfigMap>::namespaced(cluster.client.clone(), "there");
    eventually("the CA's certificate", || async {
        maps.get_opt("kube-root-ca.crt").await.expect("an answer").is_some()
    })
    .await;
    cluster
        .create(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "there"},
            "spec": {"containers": [{"name": "c", "image": "i"}]}}))
        .await;
    cluster.delete(namespace, DeleteParams::default()).await;
    eventually("the namespace's end", || async { cluster.get(("v1", "Namespace"), "there").await.is_none() })
        .await;
    assert!(maps.list(&ListParams::default()).await.expect("a list").items.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_gets_a_range_and_a_pod_that_fits_nowhere_says_why() {
    let cluster = Cluster::start().await;
    eventually("a range", || async {
        let node = Api::<Node>::all(cluster.client.clone()).get("node-1").await.expect("a node");
        node.spec.and_then(|spec| spec.pod_cidr).as_deref() == Some("10.244.0.0/24")
    })
    .await;
    cluster
        .create(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "big"},
            "spec": {"containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": "64"}}}]}}))
        .await;
    let expected = "0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: 1 Preemption \
                    is not helpful for scheduling.";
    eventually("a reason", || async {
        let pod = cluster.get(("v1", "Pod"), "big").await.unwrap_or_default();
        let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.iter().any(|one| one["type"] == "PodScheduled" && one["message"] == expected)
    })
    .await;
    assert_eq!(Node::kind(&()), "Node");
}

fn template(name: &str) -> Value {
    json!({
        "metadata": {"labels": {"app": name}},
        "spec": {"containers": [{"name": "c", "image": "i"}]},
    })
}

fn status_is(found: Option<Value>, expected: &[(&str, i64)]) -> bool {
    let status = found.map(|found| found["status"].clone()).unwrap_or_default();
    expected.iter().all(|(field, number)| status[*field].as_i64().unwrap_or_default() == *number)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_set_has_a_pod_on_each_node_and_updates_them() {
    let cluster = Cluster::start().await;
    cluster.add_node("node-2").await;
    let set = |image: &str| {
        let mut template = template("agent");
        template["spec"]["containers"][0]["image"] = json!(image);
        json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "agent"},
            "spec": {"selector": {"matchLabels": {"app": "agent"}}, "template": template}})
    };
    let kind = ("apps/v1", "DaemonSet");
    let all = [("desiredNumberScheduled", 2), ("numberAvailable", 2), ("updatedNumberScheduled", 2)];
    cluster.create(set("one")).await;
    eventually("two pods", || async { status_is(cluster.get(kind, "agent").await, &all) }).await;
    cluster.patch(set("two")).await;
    eventually("two new pods", || async {
        let pods = cluster.pods("app=agent").await;
        let image = |pod: &Pod| pod.spec.as_ref().and_then(|spec| spec.containers[0].image.clone());
        pods.len() == 2 && pods.iter().all(|pod| image(pod).as_deref() == Some("two"))
    })
    .await;
    eventually("the status", || async { status_is(cluster.get(kind, "agent").await, &all) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_completes_and_its_pods_are_counted() {
    let cluster = Cluster::start().await;
    let mut template = template("sum");
    template["spec"]["restartPolicy"] = json!("Never");
    let job = |name: &str, more: Value| {
        let mut spec = json!({"template": template.clone()});
        spec.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
        json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": spec})
    };
    let kind = ("batch/v1", "Job");
    cluster.create(job("a-job", json!({"completions": 4, "parallelism": 2}))).await;
    cluster.create(job("b-job", json!({"completions": 3, "completionMode": "Indexed"}))).await;
    let is_complete = |found: &Value| {
        let conditions = found["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.iter().any(|one| one["type"] == "Complete" && one["status"] == "True")
    };
    for (name, completions) in [("a-job", 4), ("b-job", 3)] {
        eventually(name, || async { cluster.get(kind, name).await.is_some_and(|found| is_complete(&found)) })
            .await;
        let found = cluster.get(kind, name).await;
        assert!(
            status_is(found.clone(), &[("succeeded", completions), ("failed", 0), ("active", 0)]),
            "{found:?}"
        );
    }
    let found = cluster.get(kind, "b-job").await.unwrap_or_default();
    assert_eq!(found["status"]["completedIndexes"], "0-2");
    let pods = cluster.pods("batch.kubernetes.io/job-name=a-job").await;
    assert_eq!(pods.len(), 4);
    assert!(pods.iter().all(|pod| pod.metadata.finalizers.is_none()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stateful_set_makes_and_updates_its_pods_in_order() {
    let cluster = Cluster::start().await;
    let set = |image: &str, replicas: i32| {
        let mut template = template("db");
        template["spec"]["containers"][0]["image"] = json!(image);
        json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "db"},
            "spec": {"selector": {"matchLabels": {"app": "db"}}, "template": template, "replicas": replicas,
                "serviceName": "db"}})
    };
    let kind = ("apps/v1", "StatefulSet");
    cluster.create(set("one", 3)).await;
    let ready = |count: i64| [("replicas", count), ("readyReplicas", count), ("updatedReplicas", count)];
    eventually("three pods", || async { status_is(cluster.get(kind, "db").await, &ready(3)) }).await;
    let names: Vec<_> =
        cluster.pods("app=db").await.into_iter().filter_map(|pod| pod.metadata.name).collect();
    assert_eq!(names, ["db-0", "db-1", "db-2"]);
    cluster.patch(set("two", 3)).await;
    eventually("three new pods", || async {
        let found = cluster.get(kind, "db").await.unwrap_or_default();
        let status = &found["status"];
        status["observedGeneration"] == found["metadata"]["generation"]
            && status["currentRevision"] == status["updateRevision"]
            && status_is(Some(found.clone()), &ready(3))
    })
    .await;
    cluster.patch(set("two", 1)).await;
    eventually("one pod", || async { cluster.pods("app=db").await.len() == 1 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_counts_what_comes_and_what_goes() {
    let cluster = Cluster::start().await;
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}});
    cluster
        .create(json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q"},
            "spec": {"hard": {"configmaps": "9", "pods": "9"}}}))
        .await;
    let used = |expected: &'static str| {
        let cluster = &cluster;
        move || async move {
            let found = cluster.get(("v1", "ResourceQuota"), "q").await.unwrap_or_default();
            found["status"]["used"]["configmaps"] == expected
        }
    };
    // The CA's certificate is one.
    eventually("the first count", used("1")).await;
    cluster.create(map.clone()).await;
    eventually("one more", used("2")).await;
    cluster.delete(map, DeleteParams::default()).await;
    eventually("one less", used("1")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_autoscaler_holds_its_bounds_and_says_what_it_lacks() {
    let cluster = Cluster::start().await;
    cluster.create(deployment("web", 1, "one")).await;
    cluster
        .create(json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "web"},
            "spec": {"minReplicas": 2, "maxReplicas": 4,
                "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"},
                "metrics": [{"type": "Resource", "resource": {"name": "cpu",
                    "target": {"type": "Utilization", "averageUtilization": 50}}}]}}))
        .await;
    eventually("the least number", || is_rolled_out(&cluster, "web", 2)).await;
    let kind = ("autoscaling/v2", "HorizontalPodAutoscaler");
    let condition = |found: &Value, kind: &str| -> (String, String) {
        let all = found["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let one = all.iter().find(|one| one["type"] == kind).cloned().unwrap_or_default();
        let text = |field: &str| one[field].as_str().unwrap_or_default().to_owned();
        (text("status"), text("reason"))
    };
    let found = cluster.get(kind, "web").await.unwrap_or_default();
    assert_eq!(condition(&found, "AbleToScale"), ("True".into(), "SucceededRescale".into()));
    assert_eq!(found["status"]["desiredReplicas"], 2);
    // A change is looked at at once. There is nobody here who measures.
    cluster
        .patch(json!({"apiVersion": kind.0, "kind": kind.1, "metadata": {"name": "web"},
        "spec": {"maxReplicas": 5}}))
        .await;
    eventually("the missing metrics", || async {
        let found = cluster.get(kind, "web").await.unwrap_or_default();
        condition(&found, "ScalingActive") == ("False".into(), "FailedGetResourceMetric".into())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_serves_services_and_stays_while_one_has_its_address() {
    let cluster = Cluster::start().await;
    let kind = ("networking.k8s.io/v1", "ServiceCIDR");
    let range = json!({"apiVersion": kind.0, "kind": kind.1, "metadata": {"name": "more"},
        "spec": {"cidrs": ["10.77.0.0/24"]}});
    cluster.create(range.clone()).await;
    let ready = |expected: &'static str| {
        let cluster = &cluster;
        move || async move {
            let found = cluster.get(kind, "more").await.unwrap_or_default();
            let conditions = found["status"]["conditions"].as_array().cloned().unwrap_or_default();
            conditions.iter().any(|one| one["type"] == "Ready" && one["status"] == expected)
        }
    };
    eventually("a ready range", ready("True")).await;
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "there"},
        "spec": {"clusterIP": "10.77.0.9", "ports": [{"port": 80}]}});
    cluster.create(service.clone()).await;
    let address = ("networking.k8s.io/v1", "IPAddress");
    assert!(cluster.get(address, "10.77.0.9").await.is_some());
    cluster.delete(range, DeleteParams::default()).await;
    eventually("a range that must stay", ready("False")).await;
    cluster.delete(service, DeleteParams::default()).await;
    eventually("its end", || async { cluster.get(kind, "more").await.is_none() }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_is_told_what_does_not_fit_its_kinds() {
    let cluster = Cluster::start().await;
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "ships.fleet.example.com"},
        "spec": {"group": "fleet.example.com", "scope": "Namespaced", "names": {"plural": "ships", "kind": "Ship"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {
                "type": "object", "properties": {"spec": {"type": "object", "properties": {
                    "masts": {"type": "integer"}}}}}}}]},
    });
    let kind = kube::core::GroupVersionKind::gvk("apiextensions.k8s.io", "v1", "CustomResourceDefinition");
    let definitions: Api<kube::core::DynamicObject> =
        Api::all_with(cluster.client.clone(), &ApiResource::from_gvk(&kind));
    let definition = serde_json::from_value(definition).expect("a definition");
    definitions.create(&PostParams::default(), &definition).await.expect("created");
    eventually("the kind is served", || async {
        kube::discovery::group(&cluster.client, "fleet.example.com").await.is_ok()
    })
    .await;
    let policies: Api<ValidatingAdmissionPolicy> = Api::all(cluster.client.clone());
    let check = async |name: &str, group: &str, resource: &str, expression: &str, want: Option<&str>| {
        let rule = json!({"apiGroups": [group], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": [resource]});
        let policy = json!({"metadata": {"name": name}, "spec": {
            "matchConstraints": {"resourceRules": [rule]}, "validations": [{"expression": expression}]}});
        let policy = serde_json::from_value(policy).expect("a policy");
        policies.create(&PostParams::default(), &policy).await.expect("created");
        let checked = || async {
            let status = policies.get(name).await.expect("there").status?;
            (status.observed_generation == Some(1)).then_some(status)
        };
        eventually("the policy is checked", || async { checked().await.is_some() }).await;
        let checking = checked().await.and_then(|s| s.type_checking).unwrap_or_default();
        let warnings = checking.expression_warnings.unwrap_or_default();
        match want {
            None => assert!(warnings.is_empty(), "{name}: {warnings:?}"),
            Some(want) => {
                assert_eq!(warnings[0].field_ref, "spec.validations[0].expression");
                assert!(warnings[0].warning.contains(want), "{name}: {}", warnings[0].warning);
            }
        }
    };
    check("fits", "apps", "deployments", "object.spec.replicas <= 5", None).await;
    check("unfit", "apps", "deployments", "object.spec.size <= 5", Some("undefined field 'size'")).await;
    check("typed", "apps", "deployments", "object.spec.replicas == 'five'", Some("no matching overload"))
        .await;
    check("custom", "fleet.example.com", "ships", "object.spec.masts <= 5", None).await;
    let undefined = Some("undefined field 'sails'");
    check("unfit-custom", "fleet.example.com", "ships", "object.spec.sails <= 5", undefined).await;
}
