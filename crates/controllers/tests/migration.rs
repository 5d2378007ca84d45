//! StorageVersionMigrations against a real API server: after one, nothing lies in the store as it would not be written today.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use apiserver::{Config, UserInfo};
use base64::Engine as _;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::api::storagemigration::v1beta1::StorageVersionMigration;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Client, Error};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

/// Seals Secrets with these keys, the first of which seals.
fn seal(dir: &Path, keys: &[&str]) {
    let key = |name: &&str| {
        let secret = base64::engine::general_purpose::STANDARD.encode(&name.repeat(32).as_bytes()[..32]);
        format!("{{name: {name}, secret: {secret}}}")
    };
    let keys: Vec<String> = keys.iter().map(key).collect();
    let text = format!(
        "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n\
         - resources: [secrets]\n  providers: [{{aesgcm: {{keys: [{}]}}}}]\n",
        keys.join(", ")
    );
    std::fs::write(dir.join("encryption.yaml"), text).expect("written");
}

/// Opens the store of an earlier server as soon as that has let it go.
async fn open(dir: &Path) -> store::Store {
    loop {
        match store::embedded::open(&dir.join("store.redb")) {
            Ok(store) => return store,
            Err(_) => tokio::task::yield_now().await,
        }
    }
}

/// Starts a server and the controllers beside it.
async fn start(dir: &Path, features: &str) -> Client {
    let mut config = Config::new(dir);
    config.bind.set_port(0);
    config.encryption = Some((dir.join("encryption.yaml"), false));
    config.features = features.parse().expect("gates");
    config.runtime = "storagemigration.k8s.io/v1beta1=true".parse().expect("versions");
    let server = apiserver::start(config, open(dir).await).await.expect("a server");
    let shutdown = CancellationToken::new();
    let user = move |name: &str, groups: &[&str]| {
        let groups = groups.iter().map(|group| (*group).to_owned()).collect();
        let user = UserInfo { name: name.to_owned(), groups, ..UserInfo::default() };
        Client::new(server.in_process(user), "default")
    };
    let manager = user("system:kube-controller-manager", &[]);
    let client = user("admin", &["system:masters"]);
    // Each with the rights of its role alone.
    let clients: controllers::Clients =
        Arc::new(move |name| user(&format!("system:serviceaccount:kube-system:{name}"), &[]));
    let config = controllers::Config { storage_migration: true, ..Default::default() };
    tokio::spawn(controllers::run(manager, clients, config, shutdown));
    client
}

/// The life of a server and the controllers, which ends with the work.
fn life<T>(dir: &Path, features: &str, work: impl AsyncFnOnce(Client) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async { work(start(dir, features).await).await })
}

/// What lies in the store under `GROUP/RESOURCE/NAMESPACE/NAME`, while no server runs.
fn stored(dir: &Path, key: &str) -> String {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(async {
        let store = open(dir).await;
        let (value, _) = store.get(format!("/registry/{key}").into(), None).await.expect("read");
        String::from_utf8_lossy(&value.expect("it is there").value).into_owned()
    })
}

fn object<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("the object fits its type")
}

fn state(migration: &StorageVersionMigration, kind: &str) -> Option<(String, String)> {
    let conditions = migration.status.as_ref()?.conditions.as_ref()?;
    let one = conditions.iter().find(|one| one.type_ == kind)?;
    Some((one.status.clone(), one.message.clone()))
}

/// Migrates a resource, and gives the migration once it runs no more.
async fn migrate(client: &Client, name: &str, group: &str, resource: &str) -> StorageVersionMigration {
    let api = Api::<StorageVersionMigration>::all(client.clone());
    let migration = object(json!({"metadata": {"name": name},
        "spec": {"resource": {"group": group, "resource": resource}}}));
    api.create(&PostParams::default(), &migration).await.expect("created");
    for _ in 0..1200 {
        let found = api.get(name).await.expect("it is there");
        if state(&found, "Running").is_some_and(|(status, _)| status == "False") {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the migration {name} never ended: {:?}", api.get(name).await);
}

const GATE: &str = "StorageVersionMigrator=true";

#[test]
fn an_old_key_is_needed_no_more() {
    let dir = tempfile::tempdir().expect("a folder");
    let dir = dir.path();
    seal(dir, &["one"]);
    let before = life(dir, GATE, async |client| {
        let secrets = Api::<Secret>::default_namespaced(client);
        // More than one page of them.
        let make = |i: usize| {
            let secrets = secrets.clone();
            let secret: Secret =
                object(json!({"metadata": {"name": format!("s{i}")}, "stringData": {"k": "hidden"}}));
            async move { secrets.create(&PostParams::default(), &secret).await.expect("created") }
        };
        futures::future::join_all((0..600).map(make)).await;
        secrets.get("s0").await.expect("there")
    });
    assert!(stored(dir, "core/secrets/default/s0").starts_with("k8s:enc:aesgcm:v1:one:"));

    seal(dir, &["two", "one"]);
    life(dir, GATE, async |client| {
        let done = migrate(&client, "secrets", "", "secrets").await;
        assert_eq!(state(&done, "Succeeded").map(|(status, _)| status).as_deref(), Some("True"));
        assert_eq!(state(&done, "Failed"), None);
        // A second one finds nothing to write.
        let secrets = Api::<Secret>::default_namespaced(client.clone());
        let once = secrets.get("s0").await.expect("there");
        let again = migrate(&client, "again", "", "secrets").await;
        assert_eq!(state(&again, "Succeeded").map(|(status, _)| status).as_deref(), Some("True"));
        let twice = secrets.get("s0").await.expect("there");
        assert_eq!(once.metadata.resource_version, twice.metadata.resource_version);
        assert_ne!(once.metadata.resource_version, before.metadata.resource_version);
        assert_eq!(once.metadata.managed_fields, before.metadata.managed_fields);
    });
    for i in [0, 499, 500, 599] {
        let value = stored(dir, &format!("core/secrets/default/s{i}"));
        assert!(value.starts_with("k8s:enc:aesgcm:v1:two:"), "{i}");
    }

    seal(dir, &["two"]);
    life(dir, GATE, async |client| {
        let all = Api::<Secret>::all(client).list(&ListParams::default()).await.expect("a list");
        assert!(all.items.len() >= 600 && all.items.iter().all(|one| one.data.is_some()));
    });
}

fn definition(storage: &str) -> Value {
    let version = |name: &str| {
        json!({"name": name, "served": true, "storage": name == storage, "schema": {"openAPIV3Schema": {
            "type": "object", "x-kubernetes-preserve-unknown-fields": true}}})
    };
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "ships.fleet.example.com"},
        "spec": {"group": "fleet.example.com", "scope": "Namespaced", "names": {"plural": "ships", "kind": "Ship"},
            "versions": [version("v1"), version("v2")]},
    })
}

#[test]
fn an_old_version_is_stored_no_more() {
    let dir = tempfile::tempdir().expect("a folder");
    let dir = dir.path();
    seal(dir, &["one"]);
    life(dir, GATE, async |client| {
        let definitions = Api::<CustomResourceDefinition>::all(client.clone());
        definitions.create(&PostParams::default(), &object(definition("v1"))).await.expect("created");
        let kind = ApiResource::from_gvk(&GroupVersionKind::gvk("fleet.example.com", "v1", "Ship"));
        let ships: Api<DynamicObject> = Api::default_namespaced_with(client.clone(), &kind);
        let ship: DynamicObject = object(json!({"apiVersion": "fleet.example.com/v1", "kind": "Ship",
            "metadata": {"name": "a"}, "spec": {"masts": 3}}));
        while ships.create(&PostParams::default(), &ship).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        definitions
            .patch("ships.fleet.example.com", &PatchParams::default(), &Patch::Merge(definition("v2")))
            .await
            .expect("patched");
        let versions = async || {
            let found = definitions.get("ships.fleet.example.com").await.expect("there");
            found.status.and_then(|status| status.stored_versions).unwrap_or_default()
        };
        assert_eq!(versions().await, ["v1", "v2"]);
        let done = migrate(&client, "ships", "fleet.example.com", "ships").await;
        assert_eq!(state(&done, "Succeeded").map(|(status, _)| status).as_deref(), Some("True"));
        assert_eq!(versions().await, ["v2"]);
        let found = definitions.get("ships.fleet.example.com").await.expect("there");
        let conditions = found.status.and_then(|status| status.conditions).unwrap_or_default();
        let told = conditions.iter().find(|one| one.type_ == "StorageMigrating").expect("told");
        assert_eq!((told.status.as_str(), told.reason.as_deref()), ("False", Some("MigrationSucceeded")));
    });
    assert!(stored(dir, "fleet.example.com/ships/default/a").contains("fleet.example.com/v2"));
}

#[test]
fn what_cannot_be_migrated_fails_and_without_the_gate_there_is_nothing() {
    let dir = tempfile::tempdir().expect("a folder");
    let dir = dir.path();
    seal(dir, &["one"]);
    life(dir, GATE, async |client| {
        let done = migrate(&client, "reviews", "authorization.k8s.io", "subjectaccessreviews").await;
        let (status, message) = state(&done, "Failed").expect("it failed");
        assert_eq!(status, "True");
        assert!(message.contains("subjectaccessreviews.authorization.k8s.io"), "{message}");
    });
    life(dir, "", async |client| {
        let listed = Api::<StorageVersionMigration>::all(client).list(&ListParams::default()).await;
        assert!(matches!(listed, Err(Error::Api(status)) if status.code == 404));
    });
}
