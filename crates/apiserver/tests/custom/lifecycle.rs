//! Custom resources on a whole server: from the definition to the last instance, and over a restart.

use apiserver::{ApiServer, Config, UserInfo};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::api::{WatchEvent, WatchParams};
use kube::core::GroupVersionKind;
use kube::{Api, Client};
use serde_json::{Value, json};

async fn open(dir: &std::path::Path) -> (ApiServer, Client) {
    let mut config = Config::new(dir);
    config.bind.set_port(0);
    let store = loop {
        // The writer of a server that was here before lets go of the file in its own time.
        match store::embedded::open(&dir.join("store.redb")) {
            Ok(store) => break store,
            Err(error) => assert!(format!("{error:?}").contains("AlreadyOpen"), "{error:?}"),
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    };
    let server = apiserver::start(config, store).await.expect("the server starts");
    let client = Client::new(server.in_process(UserInfo::system_master("test")), "default");
    (server, client)
}

fn definition(schema: &Value) -> CustomResourceDefinition {
    let version = |name: &str, storage: bool| {
        json!({"name": name, "served": true, "storage": storage, "schema": {"openAPIV3Schema": schema},
            "subresources": {"status": {}}, "selectableFields": [{"jsonPath": ".spec.color"}]})
    };
    let value = json!({
        "metadata": {"name": "foos.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced", "names": {"plural": "foos", "kind": "Foo"},
            "versions": [version("v1", true), version("v1beta1", false)],
        },
    });
    serde_json::from_value(value).expect("a definition")
}

fn schema() -> Value {
    json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
        "color": {"type": "string", "default": "red"},
        "ports": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["port"],
            "items": {"type": "object", "required": ["port"], "properties": {
                "port": {"type": "integer"}, "name": {"type": "string"}}}},
    }}}})
}

fn resource(version: &str) -> ApiResource {
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk("example.com", version, "Foo"), "foos")
}

fn foo(name: &str, spec: Value) -> DynamicObject {
    DynamicObject::new(name, &resource("v1")).data(json!({"spec": spec}))
}

/// Waits until a condition of the definition is true.
async fn established(client: &Client) {
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    let params = WatchParams::default().fields("metadata.name=foos.example.com");
    let mut events = definitions.watch(&params, "0").await.expect("a watch").boxed();
    while let Some(event) = events.try_next().await.expect("an event") {
        let (WatchEvent::Added(object) | WatchEvent::Modified(object)) = event else { continue };
        let conditions = object.status.and_then(|status| status.conditions).unwrap_or_default();
        if conditions.iter().any(|c| c.type_ == "Established" && c.status == "True") {
            return;
        }
    }
    panic!("the watch ended");
}

#[tokio::test]
async fn a_kind_is_served_as_soon_as_it_is_established() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (_server, client) = open(dir.path()).await;
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    definitions.create(&PostParams::default(), &definition(&schema())).await.expect("created");
    established(&client).await;

    let foos: Api<DynamicObject> = Api::namespaced_with(client.clone(), "default", &resource("v1"));
    let made = foos.create(&PostParams::default(), &foo("a", json!({"unknown": 1}))).await.expect("created");
    assert_eq!(made.data["spec"], json!({"color": "red"}));
    let blue = json!({"color": "blue"});
    foos.create(&PostParams::default(), &foo("b", blue)).await.expect("created");

    let older: Api<DynamicObject> = Api::namespaced_with(client.clone(), "default", &resource("v1beta1"));
    let list = older.list(&ListParams::default().fields("spec.color=blue")).await.expect("a list");
    let names: Vec<_> = list.items.iter().filter_map(|item| item.metadata.name.as_deref()).collect();
    assert_eq!(names, ["b"]);
    let types = list.items[0].types.as_ref().expect("the item says what it is");
    assert_eq!(types.api_version, "example.com/v1beta1");

    let groups = client.list_api_groups().await.expect("discovery");
    assert!(groups.groups.iter().any(|group| group.name == "example.com"));
}

#[tokio::test]
async fn lists_are_merged_by_their_keys() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (_server, client) = open(dir.path()).await;
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    definitions.create(&PostParams::default(), &definition(&schema())).await.expect("created");
    established(&client).await;
    let foos: Api<DynamicObject> = Api::namespaced_with(client.clone(), "default", &resource("v1"));
    let apply = async |manager: &str, port: i64, name: &str| {
        let patch = foo("a", json!({"ports": [{"port": port, "name": name}]}));
        foos.patch("a", &PatchParams::apply(manager), &Patch::Apply(&patch)).await
    };
    apply("one", 1, "x").await.expect("applied");
    let both = apply("two", 2, "y").await.expect("applied");
    let ports = json!([{"port": 1, "name": "x"}, {"port": 2, "name": "y"}]);
    assert_eq!(both.data["spec"]["ports"], ports);
    let conflict = apply("two", 1, "z").await.expect_err("another manager's field");
    assert!(matches!(conflict, kube::Error::Api(status) if status.code == 409));
}

#[tokio::test]
async fn a_definition_takes_its_instances_along() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (_server, client) = open(dir.path()).await;
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    definitions.create(&PostParams::default(), &definition(&schema())).await.expect("created");
    established(&client).await;
    let foos: Api<DynamicObject> = Api::namespaced_with(client.clone(), "default", &resource("v1"));
    foos.create(&PostParams::default(), &foo("a", json!({}))).await.expect("created");
    let mut events = foos.watch(&WatchParams::default(), "0").await.expect("a watch").boxed();
    definitions.delete("foos.example.com", &DeleteParams::default()).await.expect("deleted");
    let mut last = None;
    // The stream ends with the kind.
    while let Ok(Some(event)) = events.try_next().await {
        last = Some(event);
    }
    assert!(matches!(last, Some(WatchEvent::Deleted(_))), "{last:?}");
    let gone = foos.get("a").await.expect_err("the kind is gone");
    assert!(matches!(gone, kube::Error::Api(status) if status.code == 404));
}

#[test]
fn instances_survive_a_restart() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let run = |job: &dyn Fn() -> futures::future::LocalBoxFuture<'static, ()>| {
        // A runtime of its own takes all of a server's tasks along.
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        runtime.block_on(job());
    };
    let path = dir.path().to_owned();
    run(&|| {
        let path = path.clone();
        Box::pin(async move {
            let (_server, client) = open(&path).await;
            let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
            definitions.create(&PostParams::default(), &definition(&schema())).await.expect("created");
            established(&client).await;
            let foos: Api<DynamicObject> = Api::namespaced_with(client, "default", &resource("v1"));
            foos.create(&PostParams::default(), &foo("a", json!({}))).await.expect("created");
        })
    });
    run(&|| {
        let path = path.clone();
        Box::pin(async move {
            let (_server, client) = open(&path).await;
            let foos: Api<DynamicObject> = Api::namespaced_with(client, "default", &resource("v1"));
            assert_eq!(foos.get("a").await.expect("still there").data["spec"]["color"], "red");
        })
    });
}

#[tokio::test]
async fn a_kind_scales_with_and_without_a_selector() {
    let running = crate::support::start().await;
    let mut given = serde_json::to_value(definition(
        &json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}),
    ))
    .expect("JSON");
    for (index, more) in [json!({}), json!({"labelSelectorPath": ".status.selector"})].into_iter().enumerate()
    {
        let mut scale = json!({"specReplicasPath": ".spec.copies", "statusReplicasPath": ".status.copies"});
        scale.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
        let version = &mut given["spec"]["versions"][index];
        version["subresources"] = json!({"scale": scale});
        version.as_object_mut().expect("an object").remove("selectableFields");
    }
    running.post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", given).await.ok();
    let path = |version: &str| format!("/apis/example.com/{version}/namespaces/default/foos");
    running.until(&path("v1"), |got| got.code == 200).await;
    let object = json!({"apiVersion": "example.com/v1", "kind": "Foo", "metadata": {"name": "a"},
        "spec": {"copies": 2}, "status": {"copies": 1, "selector": "a=b"}});
    running.post(&path("v1"), object).await.ok();
    let scale = |version: &str| format!("{}/a/scale", path(version));
    let plain = running.send("GET", &scale("v1"), Value::Null).await.ok();
    assert_eq!((&plain["spec"], &plain["status"]), (&json!({"replicas": 2}), &json!({"replicas": 1})));
    let selecting = running.send("GET", &scale("v1beta1"), Value::Null).await.ok();
    assert_eq!(selecting["status"], json!({"replicas": 1, "selector": "a=b"}));
    let more = running.send("PATCH", &scale("v1"), json!({"spec": {"replicas": 5}})).await.ok();
    assert_eq!(more["spec"]["replicas"], 5);
    let object = running.send("GET", &format!("{}/a", path("v1")), Value::Null).await.ok();
    assert_eq!(object["spec"]["copies"], 5);
}
