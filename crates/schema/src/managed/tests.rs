//! Ownership through sequences of writes.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::sample::table;

struct World {
    types: Types,
    id: TypeId,
    object: Option<Value>,
    clock: u32,
}

impl World {
    fn new() -> Self {
        let (types, id) = table();
        Self { types, id, object: None, clock: 0 }
    }

    fn context<T>(&mut self, run: impl FnOnce(&Context<'_>, Option<&Value>) -> T) -> T {
        self.clock += 1;
        let now = format!("2024-01-01T00:00:{:02}Z", self.clock % 60);
        let context = Context {
            types: &self.types,
            type_id: self.id,
            api_version: "v1",
            kind: "Box",
            subresource: "",
            ignored: &["status"],
            now: &now,
            convert: &|_, _| None,
        };
        run(&context, self.object.as_ref())
    }

    fn store(&mut self, mut value: Value) {
        crate::normalize(&self.types, self.id, &mut value);
        value["metadata"]["uid"] = "u".into();
        if let Some(old) = &self.object {
            ignore_timestamps(&mut value, old);
        }
        self.object = Some(value);
    }

    fn apply(&mut self, manager: &str, spec: Value, force: bool) -> Result<(), ApplyError> {
        let config = json!({"apiVersion":"v1","kind":"Box","metadata":{"name":"n"},"spec":spec});
        let value = self.context(|context, live| apply(context, live, &config, manager, force))?;
        self.store(value);
        Ok(())
    }

    fn update(&mut self, manager: &str, spec: Value) {
        let mut value = json!({"apiVersion":"v1","kind":"Box","metadata":{"name":"n"},"spec":spec});
        crate::normalize(&self.types, self.id, &mut value);
        self.context(|context, live| update(context, live, &mut value, manager));
        self.store(value);
    }

    fn owned(&self, manager: &str) -> Value {
        let entries = self.object.as_ref().and_then(|o| o.pointer("/metadata/managedFields"));
        let entries = entries.and_then(Value::as_array).cloned().unwrap_or_default();
        entries.into_iter().find(|e| e["manager"] == manager).map_or(Value::Null, |e| e["fieldsV1"].clone())
    }

    fn spec(&self) -> Value {
        self.object.as_ref().map_or(Value::Null, |o| o["spec"].clone())
    }
}

#[test]
fn appliers_own_what_they_name() {
    let mut world = World::new();
    world.apply("m1", json!({"replicas":1,"containers":[{"name":"a","image":"1"}]}), false).expect("new");
    assert_eq!(
        world.owned("m1"),
        json!({"f:spec":{"f:containers":{"k:{\"name\":\"a\"}":{".":{},"f:image":{},"f:name":{}}},"f:replicas":{}}})
    );
    world.apply("m2", json!({"replicas":1,"containers":[{"name":"b"}]}), false).expect("shared");
    let error = world.apply("m2", json!({"replicas":2}), false).expect_err("a conflict");
    let ApplyError::Conflict { message, causes } = error else { panic!("{error}") };
    assert_eq!(message, "Apply failed with 1 conflict: conflict with \"m1\": .spec.replicas");
    assert_eq!(causes, [Cause { field: ".spec.replicas".into(), message: "conflict with \"m1\"".into() }]);
    world.apply("m2", json!({"replicas":2}), true).expect("forced");
    assert_eq!(world.owned("m2"), json!({"f:spec":{"f:replicas":{}}}));
    assert_eq!(world.spec()["containers"], json!([{"name":"a","image":"1"}]));
    world.apply("m1", json!({}), false).expect("gives up");
    assert_eq!(world.owned("m1"), json!({"f:spec":{}}));
    assert_eq!(world.spec()["containers"], Value::Null);
}

#[test]
fn updates_own_what_they_change() {
    let mut world = World::new();
    world.update("maker", json!({"replicas":1,"args":["x"],"data":{"k":"YQ=="},"containers":[{"name":"a"}]}));
    assert_eq!(
        world.owned("maker"),
        json!({"f:spec":{"f:args":{},"f:containers":{"k:{\"name\":\"a\"}":{".":{},"f:name":{}}},
            "f:data":{".":{},"f:k":{}},"f:replicas":{}}})
    );
    world.update(
        "other",
        json!({"replicas":2,"args":["x"],"containers":[{"name":"a","ports":[{"containerPort":1}]}]}),
    );
    assert_eq!(
        world.owned("other"),
        json!({"f:spec":{"f:containers":{"k:{\"name\":\"a\"}":{"f:ports":{".":{},
            "k:{\"containerPort\":1,\"protocol\":\"TCP\"}":{".":{},"f:containerPort":{}}}}},"f:replicas":{}}})
    );
    assert_eq!(
        world.owned("maker"),
        json!({"f:spec":{"f:args":{},"f:containers":{"k:{\"name\":\"a\"}":{".":{},"f:name":{}}}}})
    );
    let error = world.apply("m", json!({"replicas":3,"args":["y"]}), false).expect_err("two conflicts");
    assert_eq!(
        error.to_string(),
        "Apply failed with 2 conflicts: conflicts with \"maker\" using v1:\n- .spec.args\nconflicts with \"other\" using v1:\n- .spec.replicas"
    );
}

#[test]
fn no_change_keeps_the_times() {
    let mut world = World::new();
    world.apply("m", json!({"replicas":1}), false).expect("new");
    let before = world.object.clone();
    world.apply("m", json!({"replicas":1}), false).expect("the same");
    assert_eq!(world.object, before);
    world.apply("n", json!({"replicas":1}), false).expect("shared");
    let entries = world.object.as_ref().expect("object")["metadata"]["managedFields"].clone();
    assert_eq!(entries.as_array().map(|e| e.iter().filter(|e| e.get("time").is_none()).count()), Some(1));
}

#[test]
fn untracked_objects_and_resets() {
    let mut world = World::new();
    world.store(json!({"apiVersion":"v1","kind":"Box","metadata":{"name":"n"},"spec":{"replicas":1}}));
    world.update("m", json!({"replicas":2}));
    assert!(world.object.as_ref().expect("object").pointer("/metadata/managedFields").is_none());
    let error = world.apply("a", json!({"replicas":3}), false).expect_err("a conflict").to_string();
    assert!(error.contains("\"before-first-apply\" using v1"), "{error}");
    world.apply("a", json!({"replicas":3}), true).expect("forced");
    let mut new = world.object.clone().expect("object");
    new["metadata"]["managedFields"] = json!([{}]);
    world.context(|context, live| update(context, live, &mut new, "m"));
    assert!(new.pointer("/metadata/managedFields").is_none());
}

#[test]
fn client_side_apply_is_taken_over() {
    let mut world = World::new();
    let last =
        json!({"apiVersion":"v1","kind":"Box","metadata":{"name":"n"},"spec":{"replicas":1}}).to_string();
    let mut value = json!({"apiVersion":"v1","kind":"Box","metadata":{"name":"n","annotations":{LAST_APPLIED: last}},
        "spec":{"replicas":1,"paused":true}});
    crate::normalize(&world.types, world.id, &mut value);
    world.context(|context, live| update(context, live, &mut value, "kubectl-client-side-apply"));
    world.store(value);
    assert!(world.apply("other", json!({"replicas":2}), false).is_err());
    world.apply("kubectl", json!({"replicas":2}), false).expect("taken over");
    let object = world.object.as_ref().expect("object");
    let last = object["metadata"]["annotations"][LAST_APPLIED].as_str().expect("annotation");
    assert!(last.contains("\"replicas\":2") && last.ends_with('\n'));
    assert!(world.apply("kubectl", json!({"replicas":2,"paused":false}), false).is_err());
}

#[test]
fn bad_configurations() {
    let mut world = World::new();
    for (spec, want) in [
        (json!({"odd":1}), ".spec.odd: field not declared in schema"),
        (json!({"replicas":"x"}), ".spec.replicas: expected numeric (int or float), got string"),
        (
            json!({"containers":[{"name":"a"},{"name":"a"}]}),
            ".spec.containers: duplicate entries for key [name=\"a\"]",
        ),
    ] {
        let error = world.apply("m", spec, false).expect_err(want).to_string();
        assert_eq!(error, format!("failed to create typed patch object (/n; /v1, Kind=Box): {want}"));
    }
}

#[test]
fn lists_keep_both_orders() {
    let mut world = World::new();
    let names = |world: &World| -> String {
        let list = world.spec()["containers"].as_array().cloned().unwrap_or_default();
        list.iter().filter_map(|c| c["name"].as_str().map(str::to_owned)).collect()
    };
    let list = |names: &str| json!({"containers": names.chars().map(|c| json!({"name": c.to_string()})).collect::<Vec<_>>()});
    world.apply("m1", list("abc"), false).expect("new");
    world.apply("m2", list("cxa"), false).expect("merged");
    assert_eq!(names(&world), "bcxa");
    world.apply("m1", list("c"), false).expect("merged");
    assert_eq!(names(&world), "cxa");
}

fn spec() -> impl Strategy<Value = Value> {
    let containers = prop::collection::btree_map("[a-c]", prop::option::of("[12]"), 0..3);
    (prop::option::of(0i32..3), containers, prop::option::of(prop::collection::vec("[xy]", 0..2))).prop_map(
        |(replicas, containers, args)| {
            let mut spec = json!({});
            if let Some(replicas) = replicas {
                spec["replicas"] = replicas.into();
            }
            if let Some(args) = args {
                spec["args"] = json!(args);
            }
            if !containers.is_empty() {
                spec["containers"] = containers
                    .into_iter()
                    .map(|(name, image)| match image {
                        Some(image) => json!({"name": name, "image": image}),
                        None => json!({"name": name}),
                    })
                    .collect();
            }
            spec
        },
    )
}

proptest! {
    #[test]
    fn what_is_applied_is_there_and_owned(writes in prop::collection::vec((0..3usize, spec()), 1..6)) {
        let mut world = World::new();
        for (who, spec) in writes {
            let manager = ["a", "b", "u"][who];
            if manager == "u" {
                world.update(manager, spec);
                continue;
            }
            world.apply(manager, spec.clone(), true).expect("force always wins");
            for (key, value) in spec.as_object().expect("a map") {
                let got = &world.spec()[key];
                if key == "containers" {
                    for item in value.as_array().expect("a list") {
                        let list = got.as_array().expect("a list");
                        let found = list.iter().find(|c| c["name"] == item["name"]).expect("merged");
                        prop_assert!(item.get("image").is_none() || found["image"] == item["image"]);
                    }
                } else if value != &json!([]) {
                    prop_assert_eq!(got, value);
                }
            }
            // Applying the same again is no write.
            let before = world.object.clone();
            world.apply(manager, spec, false).expect("no conflict with oneself");
            prop_assert_eq!(&world.object, &before);
        }
    }

    #[test]
    fn fields_survive_their_written_form(paths in prop::collection::vec(prop::collection::vec("[a-c]", 1..4), 0..6)) {
        let mut set = Set::default();
        for path in &paths {
            let path: Vec<String> = path.iter().map(|p| format!("f:{p}")).collect();
            set.insert(&path);
        }
        prop_assert_eq!(Set::from_json(&set.to_json()), Some(set));
    }
}
