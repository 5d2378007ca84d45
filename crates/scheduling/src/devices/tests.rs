use std::cmp::Ordering;

use serde_json::{Value, json};

use super::*;

fn of<T: k8s_openapi::serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("an object")
}

fn node(name: &str) -> NodeInfo {
    let node = json!({"metadata": {"name": name, "labels": {"zone": name}}, "status": {"allocatable": {"cpu": "4"}}});
    NodeInfo { node: Some(Arc::new(of(node))), ..NodeInfo::default() }
}

fn inventory(slices: &[Value]) -> Arc<Inventory> {
    let class = |name: &str, expression: &str| {
        let resource = (name == "gpu").then_some("gpu.dev/card");
        Arc::new(of(json!({"metadata": {"name": name}, "spec": {
            "selectors": [{"cel": {"expression": expression}}], "extendedResourceName": resource,
            "config": [{"opaque": {"driver": "gpu.dev", "parameters": {"class": name}}}]}})))
    };
    let classes =
        vec![class("gpu", "device.driver == 'gpu.dev'"), class("nic", "device.driver == 'nic.dev'")];
    Arc::new(Inventory::new(slices.iter().map(|slice| Arc::new(of(slice.clone()))).collect(), classes))
}

fn slice(driver: &str, node: &str, generation: i64, devices: Value) -> Value {
    json!({"metadata": {"name": format!("{node}-{driver}-{generation}")}, "spec": {"driver": driver, "nodeName": node,
        "pool": {"name": node, "generation": generation, "resourceSliceCount": 1}, "devices": devices}})
}

fn gpu(name: &str, memory: &str, numa: i64) -> Value {
    json!({"name": name, "capacity": {"memory": {"value": memory}},
        "attributes": {"model": {"string": "x1"}, "version": {"version": "1.2.0"}, "std.dev/numa": {"int": numa}}})
}

fn exactly(name: &str, class: &str, more: Value) -> Value {
    let mut one = json!({"deviceClassName": class});
    if let (Some(one), Some(more)) = (one.as_object_mut(), more.as_object()) {
        one.extend(more.clone());
    }
    json!({"name": name, "exactly": one})
}

fn selecting(expression: &str) -> Value {
    json!({"selectors": [{"cel": {"expression": expression}}]})
}

fn claim(name: &str, devices: Value) -> Arc<ResourceClaim> {
    Arc::new(of(json!({"metadata": {"name": name, "uid": name}, "spec": {"devices": devices}})))
}

fn taken(inventory: &str, devices: &[&str]) -> Taken {
    let mut taken = Taken::default();
    for device in devices {
        let one = json!({"request": "r", "driver": "gpu.dev", "pool": inventory, "device": device});
        taken.add(&of(json!({"devices": {"results": [one]}})));
    }
    taken
}

fn needs(
    inventory: &Arc<Inventory>,
    taken: Taken,
    allocated: Vec<Allocated>,
    open: &[Arc<ResourceClaim>],
) -> Result<DeviceNeeds, String> {
    let pod = Arc::new(Pod::default());
    DeviceNeeds::new(
        inventory.clone(),
        Arc::default(),
        taken,
        pod,
        (allocated, open.to_vec()),
        BTreeMap::new(),
    )
}

fn names(results: &[AllocationResult]) -> String {
    let all = results.iter().flat_map(|one| one.devices.iter().flat_map(|d| d.results.iter().flatten()));
    all.map(|result| format!("{}={}", result.request, result.device)).collect::<Vec<_>>().join(" ")
}

/// What a node gives for the claims, as `request=device ...`, or why not.
fn try_on(
    inventory: &Arc<Inventory>,
    taken: Taken,
    at: &str,
    claims: &[Arc<ResourceClaim>],
) -> Result<Vec<AllocationResult>, String> {
    let needs = needs(inventory, taken, Vec::new(), claims)?;
    needs.check(&node(at)).map_err(|refusal| refusal.reasons.join(", "))?;
    Ok(needs.on(at).expect("it fits").results)
}

fn shown(found: Result<Vec<AllocationResult>, String>) -> String {
    match found {
        Ok(results) => names(&results),
        Err(why) => why,
    }
}

const NONE: &str = "cannot allocate all claims";

#[test]
fn devices_match_selectors_and_constraints() {
    let gpus = json!([gpu("g0", "8Gi", 0), gpu("g1", "16Gi", 1), gpu("g2", "16Gi", 1)]);
    let nics = json!([{"name": "n1", "attributes": {"std.dev/numa": {"int": 1}}}]);
    let all = inventory(&[slice("gpu.dev", "a", 1, gpus), slice("nic.dev", "a", 1, nics)]);
    let check = |devices: Value, busy: &[&str], expected: &str| {
        let found = shown(try_on(&all, taken("a", busy), "a", &[claim("c", devices.clone())]));
        assert_eq!(found, expected, "{devices} with {busy:?} taken");
    };
    let one = |more: Value| json!({"requests": [exactly("r", "gpu", more)]});
    let big = "device.capacity['gpu.dev'].memory.compareTo(quantity('10Gi')) >= 0";
    check(one(json!({})), &[], "r=g0");
    check(one(selecting(big)), &[], "r=g1");
    check(one(selecting(big)), &["g1"], "r=g2");
    check(one(json!({"count": 3})), &[], "r=g0 r=g1 r=g2");
    check(one(json!({"count": 4})), &[], NONE);
    let newer = "device.attributes['gpu.dev'].version.isGreaterThan(semver('1.1.0')) && device.attributes['gpu.dev'].model == 'x1'";
    check(one(selecting(newer)), &[], "r=g0");
    check(one(selecting("cel.bind(d, device.attributes['std.dev'], d.numa == 1)")), &[], "r=g1");
    check(one(selecting("'speed' in device.attributes['other.dev']")), &[], NONE);
    check(
        one(selecting("'std.dev' in device.attributes && !('other.dev' in device.attributes)")),
        &[],
        "r=g0",
    );
    check(one(selecting("!device.allowMultipleAllocations")), &[], "r=g0");

    let both = |constraints: Value| {
        json!({"requests": [exactly("g", "gpu", json!({})), exactly("n", "nic", json!({}))],
        "constraints": constraints})
    };
    // The first does not suit the second.
    check(both(json!([{"matchAttribute": "std.dev/numa"}])), &[], "g=g1 n=n1");
    check(both(json!([{"matchAttribute": "std.dev/numa", "requests": ["g"]}])), &[], "g=g0 n=n1");
    check(both(json!([{"matchAttribute": "gpu.dev/model"}])), &[], NONE);
    let apart = |count: i64| {
        json!({"requests": [exactly("g", "gpu", json!({"count": count}))],
        "constraints": [{"distinctAttribute": "std.dev/numa", "requests": ["g"]}]})
    };
    check(apart(2), &[], "g=g0 g=g1");
    check(apart(3), &[], NONE);
    check(one(json!({"allocationMode": "All"})), &[], "r=g0 r=g1 r=g2");
    check(one(json!({"allocationMode": "All"})), &["g2"], NONE);
    check(
        one(json!({"allocationMode": "All", "selectors": selecting(big)["selectors"]})),
        &["g0"],
        "r=g1 r=g2",
    );
    check(one(json!({"adminAccess": true, "allocationMode": "All"})), &["g2"], "r=g0 r=g1 r=g2");
    check(one(json!({"adminAccess": true})), &["g0", "g1", "g2"], "r=g0");
    let twice = json!({"requests": [exactly("a", "gpu", json!({"adminAccess": true})), exactly("b", "gpu", json!({"adminAccess": true}))]});
    check(twice, &["g0"], "a=g0 b=g1");

    let first = json!({"requests": [{"name": "r", "firstAvailable": [
        {"name": "two", "deviceClassName": "gpu", "count": 2, "selectors": selecting(big)["selectors"]},
        {"name": "one", "deviceClassName": "gpu"}]}]});
    check(first.clone(), &[], "r/two=g1 r/two=g2");
    check(first, &["g2"], "r/one=g0");
    let many = json!({"requests": [{"name": "r", "firstAvailable": [
        {"name": "many", "deviceClassName": "gpu", "count": 33}, {"name": "one", "deviceClassName": "gpu"}]}]});
    check(many, &[], "r/one=g0");
}

#[test]
fn claims_of_a_pod_do_not_take_each_others_devices() {
    let all = inventory(&[slice("gpu.dev", "a", 1, json!([gpu("g0", "8Gi", 0), gpu("g1", "16Gi", 0)]))]);
    let any = claim("any", json!({"requests": [exactly("r", "gpu", json!({}))]}));
    let big = "device.capacity['gpu.dev'].memory.compareTo(quantity('10Gi')) >= 0";
    let large = claim("large", json!({"requests": [exactly("r", "gpu", selecting(big))]}));
    assert_eq!(shown(try_on(&all, Taken::default(), "a", &[any.clone(), large.clone()])), "r=g0 r=g1");
    assert_eq!(shown(try_on(&all, Taken::default(), "a", &[large, any.clone()])), "r=g1 r=g0");
    assert_eq!(shown(try_on(&all, taken("a", &["g1"]), "a", &[any.clone(), any])), NONE);
}

#[test]
fn what_cannot_be_is_told() {
    let all = inventory(&[slice("gpu.dev", "a", 1, json!([gpu("g0", "8Gi", 0)]))]);
    let check = |requests: Value, expected: &str| {
        let claims = [claim("c", json!({"requests": requests}))];
        let said = try_on(&all, Taken::default(), "a", &claims).expect_err("an error");
        assert_eq!(said, expected);
    };
    check(json!([exactly("r", "tpu", json!({}))]), "request r: device class tpu does not exist");
    check(
        json!([exactly("r", "gpu", json!({"count": 33}))]),
        "claim c: number of requested devices 33 exceeds the claim limit of 32",
    );
    check(json!([{"name": "r"}]), "resource claim c, request r: unknown request type");
    check(
        json!([exactly("r", "gpu", selecting("device.attributes['gpu.dev'].speed > 3"))]),
        "claim c: selector #0: CEL runtime error: no such key: speed",
    );
    let claims = [claim("c", json!({"requests": [exactly("r", "gpu", selecting("device.foo"))]}))];
    let needs = needs(&all, Taken::default(), Vec::new(), &claims).expect("classes are there");
    assert!(needs.check(&node("a")).is_err());
    assert!(
        needs.fault().is_some_and(|why| why.contains("CEL compile error")),
        "no node need be asked any more"
    );
    // A search that would take forever ends.
    let many: Vec<Value> = (0..40).map(|at| gpu(&format!("g{at:02}"), "8Gi", 0)).collect();
    let all = inventory(&[slice("gpu.dev", "a", 1, json!(many))]);
    let apart =
        json!({"requests": [exactly("r", "gpu", json!({"count": 20})), exactly("n", "nic", json!({}))]});
    let said = shown(try_on(&all, Taken::default(), "a", &[claim("c", apart)]));
    assert_eq!(said, "there are too many ways to allocate the devices of the claims");
}

#[test]
fn pools_are_taken_whole_and_new() {
    let old = slice("gpu.dev", "a", 1, json!([gpu("old", "8Gi", 0)]));
    let mut new = slice("gpu.dev", "a", 2, json!([gpu("new", "8Gi", 0)]));
    let check = |slices: &[Value], at: &str, request: Value, expected: &str| {
        let claims = [claim("c", json!({"requests": [request]}))];
        assert_eq!(shown(try_on(&inventory(slices), Taken::default(), at, &claims)), expected);
    };
    let any = || exactly("r", "gpu", json!({}));
    let every = || exactly("r", "gpu", json!({"allocationMode": "All"}));
    check(&[old.clone(), new.clone()], "a", any(), "r=new");
    check(std::slice::from_ref(&old), "b", any(), NONE);
    new["spec"]["pool"]["resourceSliceCount"] = json!(2);
    check(&[old.clone(), new.clone()], "a", any(), NONE);
    let updating =
        "claim c, request r: asks for all devices, but resource pool gpu.dev/a is currently being updated";
    check(&[old.clone(), new.clone()], "a", every(), updating);
    let mut second = new.clone();
    second["metadata"]["name"] = json!("a-second");
    check(
        &[new.clone(), second.clone()],
        "a",
        any(),
        "invalid resource pools were encountered: gpu.dev/a: duplicate device name new",
    );
    second["spec"]["devices"][0]["name"] = json!("newer");
    check(&[second.clone(), new.clone()], "a", every(), "r=new r=newer");
    // The other half is of another node.
    second["spec"]["nodeName"] = json!("b");
    check(&[second.clone(), new.clone()], "a", every(), "r=new");
    second["spec"]["pool"]["generation"] = json!(3);
    check(&[second, new], "a", any(), NONE);

    let mut everywhere = slice("gpu.dev", "net", 1, json!([gpu("far", "8Gi", 0)]));
    everywhere["spec"]["nodeName"] = json!(null);
    let mut selected = everywhere.clone();
    everywhere["spec"]["allNodes"] = json!(true);
    selected["spec"]["nodeSelector"] = json!({"nodeSelectorTerms": [{"matchExpressions": [{"key": "zone", "operator": "In", "values": ["b"]}]}]});
    let mut each = everywhere.clone();
    each["spec"]["allNodes"] = json!(null);
    each["spec"]["perDeviceNodeSelection"] = json!(true);
    each["spec"]["devices"] = json!([{"name": "x", "nodeName": "a"}, {"name": "y", "allNodes": true},
        {"name": "z", "nodeSelector": selected["spec"]["nodeSelector"]}]);
    check(std::slice::from_ref(&everywhere), "b", any(), "r=far");
    check(std::slice::from_ref(&selected), "b", any(), "r=far");
    check(std::slice::from_ref(&selected), "a", any(), NONE);
    check(std::slice::from_ref(&each), "b", every(), "r=y r=z");
    check(std::slice::from_ref(&each), "a", every(), "r=x r=y");

    let selector = |slices: &[Value], at: &str, count: i64| {
        let claims = [claim("c", json!({"requests": [exactly("r", "gpu", json!({"count": count}))]}))];
        let found = try_on(&inventory(slices), Taken::default(), at, &claims).expect("found");
        serde_json::to_value(&found[0].node_selector).expect("JSON")
    };
    let only = |name: &str| json!({"nodeSelectorTerms": [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": [name]}]}]});
    assert_eq!(selector(std::slice::from_ref(&old), "a", 1), only("a"));
    assert_eq!(selector(std::slice::from_ref(&everywhere), "a", 1), json!(null));
    assert_eq!(selector(std::slice::from_ref(&selected), "b", 1), selected["spec"]["nodeSelector"]);
    assert_eq!(selector(std::slice::from_ref(&each), "b", 2), selected["spec"]["nodeSelector"]);
    assert_eq!(selector(std::slice::from_ref(&each), "a", 2), only("a"));
    everywhere["spec"]["devices"][0]["bindsToNode"] = json!(true);
    assert_eq!(selector(&[everywhere], "b", 1), only("b"));
}

#[test]
fn taints_keep_away_who_does_not_tolerate_them() {
    let check = |effect: &str, tolerations: Value, expected: &str| {
        let taint = json!([{"name": "t", "taints": [{"key": "k", "value": "v", "effect": effect}]}]);
        let all = inventory(&[slice("gpu.dev", "a", 1, taint)]);
        let request = exactly("r", "gpu", json!({"tolerations": tolerations}));
        let found = shown(try_on(&all, Taken::default(), "a", &[claim("c", json!({"requests": [request]}))]));
        assert_eq!(found, expected, "{effect} {tolerations}");
    };
    check("NoSchedule", json!([]), NONE);
    check("NoExecute", json!([]), NONE);
    check("None", json!([]), "r=t");
    check("NoSchedule", json!([{"operator": "Exists"}]), "r=t");
    check("NoSchedule", json!([{"key": "k", "value": "v"}]), "r=t");
    check("NoSchedule", json!([{"key": "k", "value": "w"}]), NONE);
    check("NoSchedule", json!([{"key": "k", "operator": "Exists", "effect": "NoExecute"}]), NONE);
}

#[test]
fn partitions_share_counters() {
    let uses = |name: &str, amount: &str| json!({"name": name, "consumesCounters": [{"counterSet": "card", "counters": {"memory": {"value": amount}}}]});
    let mut devices =
        slice("gpu.dev", "a", 1, json!([uses("whole", "8Gi"), uses("half0", "4Gi"), uses("half1", "4Gi")]));
    let mut counters = slice("gpu.dev", "a", 1, json!([]));
    counters["metadata"]["name"] = json!("counters");
    counters["spec"]["sharedCounters"] = json!([{"name": "card", "counters": {"memory": {"value": "8Gi"}}}]);
    for one in [&mut devices, &mut counters] {
        one["spec"]["pool"]["resourceSliceCount"] = json!(2);
    }
    let all = inventory(&[devices.clone(), counters.clone()]);
    let check = |count: i64, busy: &[&str], expected: &str| {
        let claims = [claim("c", json!({"requests": [exactly("r", "gpu", json!({"count": count}))]}))];
        assert_eq!(shown(try_on(&all, taken("a", busy), "a", &claims)), expected);
    };
    check(1, &[], "r=whole");
    check(2, &[], "r=half0 r=half1");
    check(3, &[], NONE);
    check(1, &["whole"], NONE);
    check(1, &["half1"], "r=half0");
    devices["spec"]["devices"][0]["consumesCounters"][0]["counterSet"] = json!("other");
    let wrong = inventory(&[devices, counters]);
    let claims = [claim("c", json!({"requests": [exactly("r", "gpu", json!({}))]}))];
    assert_eq!(
        shown(try_on(&wrong, Taken::default(), "a", &claims)),
        "invalid resource pools were encountered: gpu.dev/a: counter set other not found"
    );
}

#[test]
fn capacity_is_shared_by_those_who_may() {
    let policy = json!({"default": "1Gi", "validRange": {"min": "1Gi", "max": "6Gi", "step": "1Gi"}});
    let card = json!([{"name": "s", "allowMultipleAllocations": true, "capacity": {"memory": {"value": "8Gi", "requestPolicy": policy}}}]);
    let all = inventory(&[slice("gpu.dev", "a", 1, card)]);
    let request = |name: &str, amount: Option<&str>| {
        exactly(
            name,
            "gpu",
            json!({"capacity": {"requests": amount.map(|amount| json!({"memory": amount}))}}),
        )
    };
    let check = |requests: Value, used: Option<&str>, expected: &str| {
        let mut taken = Taken::default();
        if let Some(used) = used {
            taken.add(&of(json!({"devices": {"results": [{"request": "r", "driver": "gpu.dev", "pool": "a", "device": "s",
                "shareID": "x", "consumedCapacity": {"memory": used}}]}})));
        }
        let found = try_on(&all, taken, "a", &[claim("c", json!({"requests": requests}))]);
        let amounts = found.map(|results| {
            let results =
                results.iter().flat_map(|one| one.devices.iter().flat_map(|d| d.results.iter().flatten()));
            let amount = |one: &DeviceRequestAllocationResult| {
                assert_eq!(one.share_id.as_deref(), Some(""));
                one.consumed_capacity.as_ref().map_or(String::new(), |all| all["memory"].0.clone())
            };
            results.map(amount).collect::<Vec<_>>().join(" ")
        });
        assert_eq!(amounts.unwrap_or_else(|why| why), expected, "{requests} {used:?}");
    };
    check(json!([request("r", None)]), None, "1Gi");
    check(json!([request("r", Some("2500Mi"))]), None, "3Gi");
    check(json!([request("r", Some("7Gi"))]), None, NONE);
    check(json!([request("r", Some("5Gi")), request("q", Some("3Gi"))]), None, "5Gi 3Gi");
    check(json!([request("r", Some("5Gi")), request("q", Some("4Gi"))]), None, NONE);
    check(json!([request("r", Some("3Gi"))]), Some("6Gi"), NONE);
    check(json!([request("r", Some("2Gi"))]), Some("6Gi"), "2Gi");
    check(json!([exactly("r", "gpu", json!({"capacity": {"requests": {"cores": "1"}}}))]), None, NONE);
    // One that is whole serves a request that fits into it.
    let whole = inventory(&[slice("gpu.dev", "a", 1, json!([gpu("g0", "8Gi", 0)]))]);
    let on_whole = |amount: &str| {
        shown(try_on(
            &whole,
            Taken::default(),
            "a",
            &[claim("c", json!({"requests": [request("r", Some(amount))]}))],
        ))
    };
    assert_eq!((on_whole("8Gi").as_str(), on_whole("9Gi").as_str()), ("r=g0", NONE));
}

#[test]
fn parameters_are_those_of_what_was_chosen() {
    let all = inventory(&[slice("gpu.dev", "a", 1, json!([gpu("g0", "8Gi", 0), gpu("g1", "8Gi", 0)]))]);
    let own = |requests: Value, tag: &str| json!({"requests": requests, "opaque": {"driver": "gpu.dev", "parameters": {"tag": tag}}});
    let devices = json!({"requests": [exactly("a", "gpu", json!({})), {"name": "b", "firstAvailable": [
            {"name": "nic", "deviceClassName": "nic"}, {"name": "gpu", "deviceClassName": "gpu"}]}],
        "config": [own(json!(null), "all"), own(json!(["b/nic"]), "not"), own(json!(["b/gpu", "b"]), "b")]});
    let found = try_on(&all, Taken::default(), "a", &[claim("c", devices)]).expect("found");
    let config = found[0].devices.as_ref().and_then(|devices| devices.config.clone()).unwrap_or_default();
    let shown: Vec<_> = config
        .iter()
        .map(|one| {
            let parameters = one.opaque.as_ref().map(|opaque| opaque.parameters.0.to_string());
            format!(
                "{} {:?} {}",
                one.source,
                one.requests.clone().unwrap_or_default(),
                parameters.unwrap_or_default()
            )
        })
        .collect();
    assert_eq!(
        shown,
        [
            r#"FromClass ["a", "b/gpu"] {"class":"gpu"}"#,
            r#"FromClaim [] {"tag":"all"}"#,
            r#"FromClaim ["b/gpu", "b"] {"tag":"b"}"#
        ]
    );
}

#[test]
fn what_is_allocated_elsewhere_is_unavailable() {
    let all = inventory(&[]);
    let selector = json!({"nodeSelectorTerms": [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["a"]}]}]});
    let claim: Arc<ResourceClaim> = Arc::new(of(json!({"metadata": {"name": "c"}, "spec": {},
        "status": {"allocation": {"nodeSelector": selector}}})));
    let check = |broken: bool, at: &str, expected: bool, unavailable: usize| {
        let allocated = vec![Allocated { claim: claim.clone(), broken }];
        let needs = needs(&all, Taken::default(), allocated, &[]).expect("needs");
        assert_eq!(needs.check(&node(at)).is_ok(), expected);
        assert_eq!(needs.unavailable().len(), unavailable);
    };
    check(false, "a", true, 0);
    check(false, "b", false, 1);
    check(true, "a", false, 1);
}

#[test]
fn preferred_alternatives_score() {
    let slices = [
        slice("gpu.dev", "a", 1, json!([gpu("g0", "8Gi", 0)])),
        slice("nic.dev", "b", 1, json!([{"name": "n0"}])),
    ];
    let devices = json!({"requests": [{"name": "r", "firstAvailable": [
        {"name": "nic", "deviceClassName": "nic"}, {"name": "gpu", "deviceClassName": "gpu"}]}]});
    let needs =
        needs(&inventory(&slices), Taken::default(), Vec::new(), &[claim("c", devices)]).expect("needs");
    for at in ["a", "b"] {
        needs.check(&node(at)).expect("it fits");
    }
    assert_eq!(needs.score("b").cmp(&needs.score("a")), Ordering::Greater);
    assert_eq!((needs.score("b"), needs.score("a")), (8, 7));
}

#[test]
fn extended_resources_become_requests() {
    let asks = |name: &str, count: &str, more: Value| {
        let mut one = json!({"name": name, "resources": {"requests": {"cpu": "1", "gpu.dev/card": count}}});
        if let (Some(one), Some(more)) = (one.as_object_mut(), more.as_object()) {
            one.extend(more.clone());
        }
        one
    };
    let pod: Pod = of(json!({"spec": {
        "initContainers": [asks("first", "1", json!({})), asks("side", "1", json!({"restartPolicy": "Always"})), asks("big", "3", json!({}))],
        "containers": [asks("main", "2", json!({})), {"name": "none"}]}}));
    let resources = BTreeMap::from([("gpu.dev/card".to_owned(), "gpu".to_owned())]);
    let found = extended::requests(&pod, &resources);
    let requests: Vec<_> = found
        .requests
        .iter()
        .map(|one| {
            format!("{}:{}", one.name, one.exactly.as_ref().and_then(|one| one.count).unwrap_or_default())
        })
        .collect();
    assert_eq!(requests, ["container-1-request-1:1", "container-2-request-1:1", "container-3-request-1:2"]);
    let mappings: Vec<_> =
        found.mappings.iter().map(|one| format!("{}:{}", one.container_name, one.request_name)).collect();
    let expected = [
        "side:container-1-request-1",
        "main:container-3-request-1",
        "first:container-1-request-1",
        "big:container-3-request-1",
        "big:container-2-request-1",
    ];
    assert_eq!(mappings, expected);

    let all =
        inventory(&[slice("gpu.dev", "a", 1, json!(["a", "b", "c", "d"].map(|name| json!({"name": name}))))]);
    assert_eq!(
        all.class_of_resource("gpu.dev/card").and_then(|class| class.metadata.name.as_deref()),
        Some("gpu")
    );
    let by_class = all.class_of_resource("deviceclass.resource.kubernetes.io/nic");
    assert_eq!(by_class.and_then(|class| class.metadata.name.as_deref()), Some("nic"));
    let needs =
        DeviceNeeds::new(all, Arc::default(), Taken::default(), Arc::new(pod), Default::default(), resources);
    let needs = needs.expect("needs");
    needs.check(&node("a")).expect("it fits");
    let (extended, result) = needs.on("a").and_then(|found| found.extended).expect("a claim is to be made");
    assert_eq!(extended.requests.len(), 3);
    assert_eq!(result.devices.and_then(|devices| devices.results).map(|all| all.len()), Some(4));
    let mut counting = node("c");
    counting.allocatable.scalar.insert("gpu.dev/card".to_owned(), 8);
    needs.check(&counting).expect("a device plug-in has them");
    assert!(needs.on("c").is_some_and(|found| found.extended.is_none()));
}
