use super::*;
use serde_json::json;

fn service() -> Service {
    serde_json::from_value(json!({
        "metadata": {"name": "web", "namespace": "default", "uid": "s1", "labels": {"a": "b"}},
        "spec": {"clusterIP": "10.96.0.1", "ipFamilies": ["IPv4"], "selector": {"app": "web"},
            "ports": [{"name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP"}]},
    }))
    .expect("a service")
}

fn pod(number: usize, ready: bool) -> Arc<Pod> {
    Arc::new(
        serde_json::from_value(json!({
            "metadata": {"name": format!("p{number}"), "namespace": "default", "uid": format!("u{number}")},
            "spec": {"nodeName": "n", "containers": []},
            "status": {"phase": "Running", "podIPs": [{"ip": format!("10.0.{}.{}", number / 200, number % 200)}, {"ip": "fd00::1"}],
                "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]},
        }))
        .expect("a pod"),
    )
}

fn node(name: &str) -> Option<Arc<Node>> {
    let node = json!({"metadata": {"name": name, "labels": {ZONE: "z1"}}});
    (name == "n").then(|| Arc::new(serde_json::from_value(node).expect("a node")))
}

fn written(plan: Plan) -> Vec<Arc<EndpointSlice>> {
    let slices = plan.create.into_iter().chain(plan.update).enumerate();
    slices
        .map(|(at, mut slice)| {
            slice.metadata.name.get_or_insert(format!("web-{at}"));
            Arc::new(slice)
        })
        .collect()
}

fn count(slice: &EndpointSlice) -> usize {
    slice.endpoints.as_ref().map_or(0, Vec::len)
}

#[test]
fn a_service_without_pods_keeps_an_empty_slice() {
    let first = plan(&service(), &[], node, &[]);
    assert_eq!((first.create.len(), count(&first.create[0])), (1, 0));
    let slices = written(first);
    assert_eq!(plan(&service(), &[], node, &slices), Plan::default());
    // It becomes the slice of the first pod.
    let next = plan(&service(), &[pod(1, true)], node, &slices);
    assert_eq!((next.create.len(), next.update.len(), next.delete.len()), (0, 1, 0));
    assert_eq!(next.update[0].metadata.name.as_deref(), Some("web-0"));
}

#[test]
fn endpoints_say_what_the_pods_are() {
    let mut gone = pod(3, true).as_ref().clone();
    gone.metadata.deletion_timestamp = Some(crate::kit::time(jiff::Timestamp::UNIX_EPOCH));
    let plan = plan(&service(), &[pod(1, true), pod(2, false), Arc::new(gone)], node, &[]);
    let slice = &plan.create[0];
    assert_eq!(slice.ports.as_ref().and_then(|ports| ports[0].port), Some(8080));
    let conditions: Vec<_> = slice
        .endpoints
        .iter()
        .flatten()
        .filter_map(|one| one.conditions.as_ref())
        .map(|one| (one.ready, one.serving, one.terminating))
        .collect();
    let yes = Some(true);
    let no = Some(false);
    assert_eq!(conditions, [(yes, yes, no), (no, no, no), (no, yes, yes)]);
    let first = slice.endpoints.as_ref().and_then(|all| all.first()).expect("an endpoint");
    assert_eq!(
        (first.addresses.as_slice(), first.zone.as_deref()),
        (&["10.0.0.1".to_owned()][..], Some("z1"))
    );
}

#[test]
fn a_change_touches_one_slice_and_no_slice_is_overfull() {
    let mut pods: Vec<_> = (0..250).map(|number| pod(number, true)).collect();
    let slices = written(plan(&service(), &pods, node, &[]));
    assert_eq!(slices.iter().map(|slice| count(slice)).collect::<Vec<_>>(), [100, 100, 50]);
    assert_eq!(plan(&service(), &pods, node, &slices), Plan::default());
    pods[7] = pod(7, false);
    let next = plan(&service(), &pods, node, &slices);
    assert_eq!((next.create.len(), next.update.len(), next.delete.len()), (0, 1, 0));
    pods.push(pod(999, true));
    let next = plan(&service(), &pods, node, &slices);
    assert!(next.update.iter().chain(&next.create).all(|slice| count(slice) <= 100));
}

#[test]
fn a_pod_on_an_unknown_node_waits() {
    let plan = plan(&service(), &[pod(1, true)], |_: &str| None, &[]);
    assert!(plan.incomplete);
}
