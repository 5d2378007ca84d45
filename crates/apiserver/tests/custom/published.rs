//! What clients learn of a custom resource: discovery and the OpenAPI documents, which change with the schema.

use http::header::{ETAG, IF_NONE_MATCH};
use http_body_util::BodyExt;
use serde_json::{Value, json};

use crate::support::{Running, start};

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

fn definition(group: &str, described: &str) -> Value {
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
        "size": {"type": "integer", "description": described}}}}});
    json!({"metadata": {"name": format!("foos.{group}")}, "spec": {
        "group": group, "scope": "Namespaced", "names": {"plural": "foos", "kind": "Foo", "shortNames": ["fo"]},
        "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}]}})
}

/// The address of a group's document, as the index has it.
async fn address(running: &Running, group: &str) -> String {
    let name = format!("apis/{group}/v1");
    let index = running.send("GET", "/openapi/v3", Value::Null).await.ok();
    index["paths"][&name]["serverRelativeURL"].as_str().expect("the document is in the index").to_owned()
}

/// The code and the tag of a document.
async fn tagged(running: &Running, path: &str, known: &str) -> (u16, String) {
    let request = http::Request::get(path).header(IF_NONE_MATCH, known);
    let request = request.body(kube::client::Body::empty()).expect("a request");
    let answer = running.client.send(request).await.expect("an answer");
    let tag = answer.headers().get(ETAG).and_then(|tag| tag.to_str().ok()).unwrap_or_default().to_owned();
    (answer.status().as_u16(), tag)
}

#[tokio::test]
async fn documents_change_with_the_schema_and_only_then() {
    let running = start().await;
    for group in ["one.example.com", "two.example.com"] {
        running.post(DEFINITIONS, definition(group, "first")).await.ok();
        running.until(&format!("/apis/{group}/v1/foos"), |got| got.code == 200).await;
    }
    let size = |document: &Value, group: &str| -> Value {
        let name = group.split('.').rev().collect::<Vec<_>>().join(".") + ".v1.Foo";
        document["components"]["schemas"][name]["properties"]["spec"]["properties"]["size"]["description"]
            .clone()
    };
    let (one, two) = (address(&running, "one.example.com").await, address(&running, "two.example.com").await);
    let document = running.send("GET", &one, Value::Null).await.ok();
    assert_eq!(size(&document, "one.example.com"), "first");
    let (code, v3) = tagged(&running, &one, "").await;
    assert_eq!((code, tagged(&running, &one, &v3).await.0), (200, 304));
    let (code, v2) = tagged(&running, "/openapi/v2", "").await;
    assert_eq!((code, tagged(&running, "/openapi/v2", &v2).await.0), (200, 304));

    let changed = definition("one.example.com", "second")["spec"].clone();
    let path = format!("{DEFINITIONS}/foos.one.example.com");
    running.send("PATCH", &path, json!({"spec": changed})).await.ok();
    let second = loop {
        let now = address(&running, "one.example.com").await;
        if now != one {
            break now;
        }
    };
    assert_eq!(address(&running, "two.example.com").await, two, "the other has not changed");
    let document = running.send("GET", &second, Value::Null).await.ok();
    assert_eq!(size(&document, "one.example.com"), "second");
    let request = http::Request::get(&one).body(kube::client::Body::empty()).expect("a request");
    let moved = running.client.send(request).await.expect("an answer");
    let location = moved.headers().get("location").and_then(|l| l.to_str().ok());
    assert_eq!((moved.status().as_u16(), location), (301, Some(second.as_str())));
    assert_eq!(tagged(&running, &second, &v3).await.0, 200);
    let (code, newer) = tagged(&running, "/openapi/v2", &v2).await;
    assert!(code == 200 && newer != v2, "{code} {newer}");

    running.send("DELETE", &path, Value::Null).await.ok();
    running.until(&path, |got| got.code == 404).await;
    let index = running.send("GET", "/openapi/v3", Value::Null).await.ok();
    assert!(index["paths"].get("apis/one.example.com/v1").is_none());
    assert_eq!(running.send("GET", &second, Value::Null).await.code, 404);
}

#[tokio::test]
async fn a_definition_is_discovered_at_once() {
    let running = start().await;
    running.post(DEFINITIONS, definition("one.example.com", "")).await.ok();
    let established = |conditions: &Value| {
        let mut conditions = conditions.as_array().into_iter().flatten();
        conditions.any(|c| c["type"] == "Established" && c["status"] == "True")
    };
    let path = format!("{DEFINITIONS}/foos.one.example.com");
    running.until(&path, |got| established(&got.body["status"]["conditions"])).await;
    // Whoever has read that it is established finds it everywhere.
    running.send("GET", "/apis/one.example.com/v1/foos", Value::Null).await.ok();
    let resources = running.send("GET", "/apis/one.example.com/v1", Value::Null).await.ok();
    assert_eq!(resources["resources"][0]["shortNames"], json!(["fo"]));
    let request = http::Request::get("/apis")
        .header("accept", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList")
        .body(kube::client::Body::empty())
        .expect("a request");
    let answer = running.client.send(request).await.expect("an answer");
    let body = answer.into_body().collect().await.expect("a body").to_bytes();
    let all: Value = serde_json::from_slice(&body).expect("JSON");
    let groups = all["items"].as_array().expect("groups");
    assert!(groups.iter().any(|group| group["metadata"]["name"] == "one.example.com"));
    address(&running, "one.example.com").await;
}
