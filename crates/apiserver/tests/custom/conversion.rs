//! Custom resources in several versions with a webhook that converts between them: reads, writes, lists, watches, apply,
//! the stored version, failures, and what a definition's end and its creates owe each other.

use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use http_body_util::BodyExt;
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::support::{Got, Hooks, Running, start};

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const DEFINITION: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/foos.example.com";

fn foos(version: &str) -> String {
    format!("/apis/example.com/{version}/namespaces/default/foos")
}

fn foo(version: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": format!("example.com/{version}"), "kind": "Foo", "metadata": {"name": name}, "spec": spec})
}

/// v1 has `host` and `port`, v2 has both in `address`.
fn schema(version: &str) -> Value {
    let spec = match version {
        "v1" => json!({"host": {"type": "string"}, "port": {"type": "string"}}),
        _ => json!({"address": {"type": "string"}}),
    };
    json!({"openAPIV3Schema": {"type": "object", "properties": {
        "spec": {"type": "object", "properties": spec},
        "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}})
}

fn definition(conversion: Value) -> Value {
    let version = |name: &str, storage: bool| json!({"name": name, "served": true, "storage": storage, "schema": schema(name), "subresources": {"status": {}}});
    json!({"metadata": {"name": "foos.example.com"}, "spec": {
        "group": "example.com", "scope": "Namespaced", "names": {"plural": "foos", "kind": "Foo"},
        "versions": [version("v1", true), version("v2", false)], "conversion": conversion}})
}

fn webhook(hooks: &Hooks) -> Value {
    json!({"strategy": "Webhook", "webhook": {
        "conversionReviewVersions": ["v1"], "clientConfig": hooks.config("/convert")}})
}

/// The object in the other version.
fn converted(object: &Value, wanted: &str) -> Value {
    let mut object = object.clone();
    let text = |object: &Value, key: &str| object["spec"][key].as_str().unwrap_or_default().to_owned();
    object["spec"] = match wanted {
        "example.com/v1" => {
            let address = text(&object, "address");
            let (host, port) = address.split_once(':').unwrap_or((&address, ""));
            json!({"host": host, "port": port})
        }
        _ => json!({"address": format!("{}:{}", text(&object, "host"), text(&object, "port"))}),
    };
    object["apiVersion"] = wanted.into();
    object
}

fn convert(request: &Value) -> Vec<Value> {
    let wanted = request["desiredAPIVersion"].as_str().unwrap_or_default();
    request["objects"].as_array().into_iter().flatten().map(|object| converted(object, wanted)).collect()
}

async fn hooks() -> Hooks {
    Hooks::serve(|_, request| json!({"convertedObjects": convert(request)})).await
}

async fn define(running: &Running, definition: Value) {
    running.post(DEFINITIONS, definition).await.ok();
    running.until(&foos("v1"), |got| got.code == 200).await;
}

#[tokio::test]
async fn objects_are_written_and_read_in_every_version() {
    let running = start().await;
    let hooks = hooks().await;
    define(&running, definition(webhook(&hooks))).await;
    let address = json!({"address": "a:1"});
    let made = running.post(&foos("v2"), foo("v2", "x", address.clone())).await.ok();
    assert_eq!((&made["apiVersion"], &made["spec"]), (&json!("example.com/v2"), &address));
    let path = |version: &str| format!("{}/x", foos(version));
    let old = running.send("GET", &path("v1"), Value::Null).await.ok();
    assert_eq!(old["spec"], json!({"host": "a", "port": "1"}));
    // What is stored is of the stored version, and was asked for as such.
    let asked = hooks.take("/convert");
    assert_eq!(asked[0]["desiredAPIVersion"], "example.com/v1");
    assert_eq!(asked[0]["objects"][0]["spec"], address);

    let mut put = made.clone();
    put["spec"]["address"] = "b:2".into();
    let put = running.send("PUT", &path("v2"), put).await.ok();
    assert_eq!((&put["spec"]["address"], &put["metadata"]["generation"]), (&json!("b:2"), &json!(2)));
    let patched = running.send("PATCH", &path("v2"), json!({"spec": {"address": "c:3"}})).await.ok();
    assert_eq!(patched["spec"]["address"], "c:3");
    let patched = running.send("PATCH", &path("v1"), json!({"spec": {"port": "4"}})).await.ok();
    assert_eq!(patched["spec"], json!({"host": "c", "port": "4"}));
    let status = json!({"status": {"ready": true}});
    let status = running.send("PATCH", &format!("{}/status", path("v2")), status).await.ok();
    assert_eq!((&status["spec"]["address"], &status["status"]), (&json!("c:4"), &json!({"ready": true})));
    running.send("DELETE", &path("v2"), Value::Null).await.ok();
    assert_eq!(running.send("GET", &path("v1"), Value::Null).await.code, 404);
}

#[tokio::test]
async fn a_list_is_converted_at_once_and_a_watch_as_it_goes() {
    let running = start().await;
    let hooks = hooks().await;
    define(&running, definition(webhook(&hooks))).await;
    for name in ["a", "b", "c"] {
        let spec = json!({"host": name, "port": "1"});
        running.post(&foos("v1"), foo("v1", name, spec)).await.ok();
    }
    assert!(hooks.take("/convert").is_empty(), "nobody has asked for another version");
    let list = running.send("GET", &foos("v2"), Value::Null).await.ok();
    let addresses: Vec<&Value> =
        list["items"].as_array().expect("items").iter().map(|item| &item["spec"]["address"]).collect();
    assert_eq!(addresses, ["a:1", "b:1", "c:1"]);
    let asked = hooks.take("/convert");
    assert_eq!(asked.len(), 1, "one review for the whole list");
    assert_eq!(asked[0]["objects"].as_array().map(Vec::len), Some(3));
    // What has been converted is remembered.
    running.send("GET", &foos("v2"), Value::Null).await.ok();
    assert!(hooks.take("/convert").is_empty());

    let version = list["metadata"]["resourceVersion"].as_str().expect("a version");
    let request = http::Request::get(format!("{}?watch=true&resourceVersion={version}", foos("v2")));
    let request = request.body(kube::client::Body::empty()).expect("a request");
    let answer = running.client.send(request).await.expect("an answer");
    let mut events = answer.into_body().into_data_stream().boxed();
    running.send("PATCH", &format!("{}/a", foos("v1")), json!({"spec": {"port": "2"}})).await.ok();
    running.send("DELETE", &format!("{}/b", foos("v1")), Value::Null).await.ok();
    let mut text = Vec::new();
    while text.iter().filter(|byte| **byte == b'\n').count() < 2 {
        text.extend(events.try_next().await.expect("a stream").expect("more"));
    }
    let seen: Vec<Value> =
        serde_json::Deserializer::from_slice(&text).into_iter().map(|e| e.expect("JSON")).collect();
    let seen: Vec<(&Value, &Value)> =
        seen.iter().map(|e| (&e["type"], &e["object"]["spec"]["address"])).collect();
    assert_eq!(seen, [(&json!("MODIFIED"), &json!("a:2")), (&json!("DELETED"), &json!("b:1"))]);
}

#[tokio::test]
async fn apply_knows_fields_through_the_versions() {
    let running = start().await;
    let hooks = Hooks::serve(|_, request| {
        // The fields keep their names here, so that their owners can be followed.
        let wanted = request["desiredAPIVersion"].clone();
        let objects: Vec<Value> = request["objects"].as_array().into_iter().flatten().cloned().collect();
        let objects = objects.into_iter().map(|mut object| {
            object["apiVersion"] = wanted.clone();
            object
        });
        json!({"convertedObjects": objects.collect::<Vec<_>>()})
    })
    .await;
    let mut definition = definition(webhook(&hooks));
    definition["spec"]["versions"][1]["schema"] = schema("v1");
    define(&running, definition).await;
    let apply = async |version: &str, manager: &str, spec: Value| {
        let path = format!("{}/x?fieldManager={manager}", foos(version));
        running.apply(&path, foo(version, "x", spec)).await
    };
    apply("v2", "one", json!({"host": "a"})).await.ok();
    let both = apply("v1", "two", json!({"port": "1"})).await.ok();
    assert_eq!(both["spec"], json!({"host": "a", "port": "1"}));
    let owners: Vec<(&Value, &Value)> = both["metadata"]["managedFields"]
        .as_array()
        .expect("managers")
        .iter()
        .map(|entry| (&entry["manager"], &entry["apiVersion"]))
        .collect();
    assert_eq!(
        owners,
        [(&json!("one"), &json!("example.com/v2")), (&json!("two"), &json!("example.com/v1"))]
    );
    let conflict = apply("v1", "two", json!({"host": "b", "port": "1"})).await;
    assert_eq!(conflict.code, 409, "{}", conflict.body);
    assert!(conflict.message().contains(".spec.host"), "{}", conflict.message());
    // What a manager applies no more goes, in whichever version it says so.
    let less = apply("v1", "one", json!({})).await.ok();
    assert_eq!(less["spec"], json!({"port": "1"}));
}

#[tokio::test]
async fn failures_of_the_webhook_are_told() {
    let running = start().await;
    let react = Arc::new(Mutex::new(json!({})));
    let hooks = Hooks::serve({
        let react = react.clone();
        move |_, request| {
            let mut answer = json!({"convertedObjects": convert(request)});
            for (pointer, value) in react.lock().as_object().into_iter().flatten() {
                match answer.pointer_mut(pointer) {
                    Some(place) => *place = value.clone(),
                    None => answer[pointer.trim_start_matches('/')] = value.clone(),
                }
            }
            answer
        }
    })
    .await;
    define(&running, definition(webhook(&hooks))).await;
    running.post(&foos("v1"), foo("v1", "x", json!({"host": "a", "port": "1"}))).await.ok();
    let check = async |how: Value, expect: &str| {
        *react.lock() = how;
        for path in [format!("{}/x", foos("v2")), foos("v2")] {
            let got = running.send("GET", &path, Value::Null).await;
            assert_eq!(got.code, 500, "{}", got.body);
            let head = "conversion webhook for example.com/v1, Kind=Foo ";
            let message = got.message();
            assert!(message.contains(head) && message.contains(expect), "{message}");
        }
    };
    check(json!({"/result": {"status": "Failure", "message": "not today"}}), "failed: not today").await;
    check(json!({"/uid": "another"}), "expected response.uid=").await;
    check(json!({"/convertedObjects": []}), "returned 0 objects, expected 1").await;
    check(
        json!({"/convertedObjects/0/metadata/name": "y"}),
        "returned invalid converted object at index 0: must have the same name: \"x\" != \"y\"",
    )
    .await;
    check(json!({"/convertedObjects/0/apiVersion": "example.com/v3"}), "invalid groupVersion").await;
    // A write in another version fails before anything is stored.
    *react.lock() = json!({"/result": {"status": "Failure", "message": "no"}});
    assert_eq!(running.post(&foos("v2"), foo("v2", "y", json!({"address": "b:1"}))).await.code, 500);
    assert_eq!(running.send("GET", &format!("{}/y", foos("v1")), Value::Null).await.code, 404);
    // The stored version asks nobody.
    running.send("GET", &format!("{}/x", foos("v1")), Value::Null).await.ok();
    *react.lock() = json!({});
    running.send("GET", &format!("{}/x", foos("v2")), Value::Null).await.ok();
}

#[tokio::test]
async fn the_strategy_and_the_stored_version_may_change() {
    let running = start().await;
    let hooks = hooks().await;
    define(&running, definition(webhook(&hooks))).await;
    running.post(&foos("v1"), foo("v1", "x", json!({"host": "a", "port": "1"}))).await.ok();
    let version = |name: &str, served: bool, storage: bool| json!({"name": name, "served": served, "storage": storage, "schema": schema(name), "subresources": {"status": {}}});
    let change = async |spec: Value| running.send("PATCH", DEFINITION, json!({"spec": spec})).await;
    let stored = |got: &Got| got.body["status"]["storedVersions"].clone();

    // From now on v2 is stored, and nobody serves it.
    let versions = json!([version("v1", true, false), version("v2", false, true)]);
    let changed = change(json!({"versions": versions})).await;
    assert_eq!(stored(&changed), json!(["v1", "v2"]));
    running.until(&foos("v2"), |got| got.code == 404).await;
    hooks.take("/convert");
    running.post(&foos("v1"), foo("v1", "y", json!({"host": "b", "port": "2"}))).await.ok();
    let asked = hooks.take("/convert");
    assert_eq!(asked[0]["desiredAPIVersion"], "example.com/v2");
    let list = running.send("GET", &foos("v1"), Value::Null).await.ok();
    let hosts: Vec<&Value> =
        list["items"].as_array().expect("items").iter().map(|i| &i["spec"]["host"]).collect();
    assert_eq!(hosts, ["a", "b"]);
    // A write that changes nothing brings what is stored up to date.
    running.send("PATCH", &format!("{}/x", foos("v1")), json!({})).await.ok();
    let asked = hooks.take("/convert");
    assert!(asked.iter().any(|review| review["desiredAPIVersion"] == "example.com/v2"), "{asked:?}");

    // v1 may go once nothing is stored in it.
    let only = json!([version("v2", true, true)]);
    let early = change(json!({"versions": only})).await;
    assert_eq!(
        (early.code, early.body["details"]["causes"][0]["field"].as_str()),
        (422, Some("status.storedVersions[0]"))
    );
    let status = format!("{DEFINITION}/status");
    let said = running.send("PATCH", &status, json!({"status": {"storedVersions": ["v2"]}})).await;
    assert_eq!(stored(&said), json!(["v2"]));
    change(json!({"versions": only})).await.ok();
    running.until(&foos("v2"), |got| got.code == 200).await;
    let migrated = running.send("GET", &format!("{}/x", foos("v2")), Value::Null).await.ok();
    assert_eq!(migrated["spec"], json!({"address": "a:1"}));

    // Without a webhook only the version's name changes; what the schema does not know is pruned.
    let both = json!([version("v1", true, false), version("v2", true, true)]);
    change(json!({"versions": both, "conversion": {"strategy": "None", "webhook": null}})).await.ok();
    running.until(&foos("v1"), |got| got.code == 200).await;
    let renamed = running.send("GET", &format!("{}/x", foos("v1")), Value::Null).await.ok();
    assert_eq!((&renamed["apiVersion"], &renamed["spec"]), (&json!("example.com/v1"), &json!({})));
}

#[tokio::test]
async fn a_definition_whose_stored_version_is_not_served_takes_its_instances_along() {
    let running = start().await;
    let mut given = definition(json!({"strategy": "None"}));
    given["spec"]["versions"][1]["served"] = false.into();
    given["spec"]["versions"][0]["storage"] = false.into();
    given["spec"]["versions"][1]["storage"] = true.into();
    define(&running, given.clone()).await;
    running.post(&foos("v1"), foo("v1", "x", json!({}))).await.ok();
    running.send("DELETE", DEFINITION, Value::Null).await.ok();
    running.until(DEFINITION, |got| got.code == 404).await;
    define(&running, given).await;
    let list = running.send("GET", &foos("v1"), Value::Null).await.ok();
    assert_eq!(list["items"], json!([]));
}

#[tokio::test]
async fn what_keeps_a_definition_from_going_is_told() {
    let running = start().await;
    let hooks =
        Hooks::serve(|_, _| json!({"result": {"status": "Failure", "message": "closed for good"}})).await;
    define(&running, definition(json!({"strategy": "None"}))).await;
    let object = foo("v1", "x", json!({"host": "a"}));
    running.post(&foos("v1"), object).await.ok();
    // The instance lies there in v1 and is to be read in v2 from now on.
    let versions = |storage: &str| -> Value {
        let of = |name: &str| json!({"name": name, "served": true, "storage": name == storage, "schema": schema(name)});
        json!([of("v1"), of("v2")])
    };
    let change = json!({"spec": {"versions": versions("v2"), "conversion": webhook(&hooks)}});
    running.send("PATCH", DEFINITION, change).await.ok();
    running.until(&format!("{}/x", foos("v2")), |got| got.code == 500).await;
    running.send("DELETE", DEFINITION, Value::Null).await.ok();
    let terminating = |got: &Got| -> Value {
        let conditions = got.body["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.into_iter().find(|c| c["type"] == "Terminating").unwrap_or_default()
    };
    let failed =
        running.until(DEFINITION, |got| terminating(got)["reason"] == "InstanceDeletionFailed").await;
    let message = terminating(&failed)["message"].to_string();
    assert!(
        message.contains("could not issue all deletes: ") && message.contains("closed for good"),
        "{message}"
    );
    let change = json!({"spec": {"conversion": {"strategy": "None", "webhook": null}}});
    running.send("PATCH", DEFINITION, change).await.ok();
    running.until(DEFINITION, |got| got.code == 404).await;
}

/// A create that has passed everything but the store waits in a webhook while the definition goes.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_is_created_after_the_definition_has_gone() {
    let running = start().await;
    let (asked, mut arrived) = tokio::sync::mpsc::unbounded_channel();
    let (go, gone) = std::sync::mpsc::channel::<()>();
    let gone = Mutex::new(gone);
    let hooks = Hooks::serve(move |_, _| {
        let _ = asked.send(());
        let _ = gone.lock().recv();
        json!({})
    })
    .await;
    let rule = json!({"operations": ["CREATE"], "apiGroups": ["example.com"], "apiVersions": ["*"], "resources": ["foos"]});
    let configuration = json!({"metadata": {"name": "late"}, "webhooks": [{
        "name": "late.example.com", "clientConfig": hooks.config("/late"), "rules": [rule], "sideEffects": "None",
        "admissionReviewVersions": ["v1"], "timeoutSeconds": 30}]});
    let path = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations";
    running.post(path, configuration).await.ok();
    for again in [false, true] {
        define(&running, definition(json!({"strategy": "None"}))).await;
        let place = foos("v1");
        let create = running.post(&place, foo("v1", "x", json!({})));
        let meanwhile = async {
            arrived.recv().await.expect("the webhook is asked");
            running.send("DELETE", DEFINITION, Value::Null).await.ok();
            running.until(DEFINITION, |got| got.code == 404).await;
            if again {
                define(&running, definition(json!({"strategy": "None"}))).await;
            }
            go.send(()).expect("the webhook waits");
        };
        let (created, ()) = tokio::join!(create, meanwhile);
        assert_eq!(created.code, 404, "{}", created.body);
        if !again {
            define(&running, definition(json!({"strategy": "None"}))).await;
        }
        let list = running.send("GET", &foos("v1"), Value::Null).await.ok();
        assert_eq!(list["items"], json!([]));
        running.send("DELETE", DEFINITION, Value::Null).await.ok();
        running.until(DEFINITION, |got| got.code == 404).await;
    }
}
