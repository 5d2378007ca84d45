//! Patches: what is merged, in which order, and what is refused.

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::*;
use crate::sample::table;

fn strategic(object: Value, patch: Value) -> Result<Value, PatchError> {
    let (types, id) = table();
    strategic_merge_patch(&types, id, &object, &patch)
}

fn spec(object: Value, patch: Value) -> Value {
    strategic(json!({"spec": object}), json!({"spec": patch})).expect("a good patch")["spec"].clone()
}

#[test]
fn lists_merge_by_key() {
    let two = json!({"containers":[{"name":"a","image":"1"},{"name":"b","image":"1"}]});
    for (patch, want) in [
        (json!([{"name":"b","image":"2"}]), json!([{"name":"a","image":"1"},{"name":"b","image":"2"}])),
        (json!([{"name":"c"}]), json!([{"name":"c"},{"name":"a","image":"1"},{"name":"b","image":"1"}])),
        (json!([{"name":"a","$patch":"delete"}]), json!([{"name":"b","image":"1"}])),
        (json!([{"$patch":"replace"},{"name":"z"}]), json!([{"name":"z"}])),
        (json!([{"name":"a","image":null}]), json!([{"name":"a"},{"name":"b","image":"1"}])),
        (json!([{"name":"a","$patch":"replace"}]), json!([])),
    ] {
        assert_eq!(spec(two.clone(), json!({"containers": patch}))["containers"], want, "{patch}");
    }
    let ordered = json!({"$setElementOrder/containers":[{"name":"b"},{"name":"a"}],"containers":[{"name":"b","image":"2"}]});
    assert_eq!(
        spec(two.clone(), ordered)["containers"],
        json!([{"name":"b","image":"2"},{"name":"a","image":"1"}])
    );
    assert_eq!(spec(two.clone(), json!({"args":["x"]}))["args"], json!(["x"]));
    let error = strategic(json!({"spec": two}), json!({"spec":{"containers":[{"image":"2"}]}}));
    assert!(matches!(error, Err(PatchError::Internal(text)) if text.contains("declared merge key: name")));
}

#[test]
fn scalars_and_directives() {
    let meta = |f: Value| json!({"metadata":{"finalizers":f}});
    for (patch, want) in [
        (json!({"finalizers":["c","a"]}), json!(["c", "a", "b"])),
        (json!({"$deleteFromPrimitiveList/finalizers":["a"]}), json!(["b"])),
        (json!({"$setElementOrder/finalizers":["b","a"]}), json!(["b", "a"])),
    ] {
        let got = strategic(meta(json!(["a", "b"])), json!({"metadata": patch})).expect("a good patch");
        assert_eq!(got["metadata"]["finalizers"], want, "{patch}");
    }
    let strategy = json!({"strategy":{"type":"Rolling","rolling":{"max":"1"}}});
    assert_eq!(
        spec(strategy.clone(), json!({"strategy":{"$retainKeys":["type"],"type":"Recreate"}}))["strategy"],
        json!({"type":"Recreate"})
    );
    let bad = json!({"spec":{"strategy":{"$retainKeys":["rolling"],"type":"x"}}});
    assert!(matches!(strategic(json!({"spec": strategy}), bad), Err(PatchError::Malformed(_))));
    assert_eq!(
        spec(json!({"selector":{"matchLabels":{"a":"b"}}}), json!({"selector":{"$patch":"delete"}})),
        json!({"selector":{}})
    );
    assert_eq!(
        spec(json!({}), json!({"selector":{"matchLabels":{"a":null,"b":"c"}}})),
        json!({"selector":{"matchLabels":{"b":"c"}}})
    );
}

#[test]
fn json_patches() {
    let object = json!({"a":{"b/c":[1,2,3]},"n":null});
    for (patch, want) in [
        (json!([{"op":"add","path":"/a/b~1c/-","value":4}]), json!({"a":{"b/c":[1,2,3,4]},"n":null})),
        (json!([{"op":"remove","path":"/a/b~1c/-1"}]), json!({"a":{"b/c":[1,2]},"n":null})),
        (json!([{"op":"replace","path":"/new","value":1}]), json!({"a":{"b/c":[1,2,3]},"n":null,"new":1})),
        (json!([{"op":"test","path":"/missing","value":null}]), object.clone()),
        (json!([{"op":"move","from":"/n","path":"/m"}]), json!({"a":{"b/c":[1,2,3]},"m":null})),
        (
            json!([{"op":"copy","from":"/a/b~1c/0","path":"/a/b~1c/1"}]),
            json!({"a":{"b/c":[1,1,2,3]},"n":null}),
        ),
    ] {
        assert_eq!(json_patch(&object, &patch).expect("a good patch"), want, "{patch}");
    }
    for (patch, want) in [
        (json!([{"op":"test","path":"/a","value":1}]), "testing value /a failed: test failed"),
        (
            json!([{"op":"remove","path":"/x"}]),
            "error in remove for path: '/x': Unable to remove nonexistent key: x: missing value",
        ),
        (
            json!([{"op":"add","path":"/x/y","value":1}]),
            "add operation does not apply: doc is missing path: \"/x/y\": missing value",
        ),
        (
            json!([{"op":"replace","path":"/a/b~1c/9","value":1}]),
            "replace operation does not apply: doc is missing key: /a/b~1c/9: missing value",
        ),
        (json!([{"op":"odd","path":"/a"}]), "Unexpected kind: odd"),
    ] {
        let error = json_patch(&object, &patch).expect_err("a bad patch");
        assert_eq!(error, PatchError::Unprocessable(want.to_owned()), "{patch}");
    }
    let many = Value::Array(vec![json!({"op":"test","path":"/n","value":null}); 10_001]);
    assert_eq!(json_patch(&object, &many), Err(PatchError::TooManyOperations { limit: 10_000, got: 10_001 }));
    assert!(matches!(json_patch(&object, &json!({})), Err(PatchError::Malformed(_))));
}

#[test]
fn json_patches_are_bounded() {
    let copy = json!({"op":"copy","from":"/a","path":"/a/-"});
    let doubling = Value::Array(vec![copy; 40]);
    let error = json_patch(&json!({"a":["x"]}), &doubling).expect_err("too large").to_string();
    assert!(error.starts_with("Unable to complete the copy"), "{error}");
    let mut path = String::new();
    let mut operations = Vec::new();
    for _ in 0..600 {
        path.push_str("/a");
        operations.push(json!({"op":"add","path":path,"value":{}}));
    }
    let error = json_patch(&json!({}), &Value::Array(operations)).expect_err("too deep").to_string();
    assert_eq!(error, "exceeded max depth");
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        any::<i32>().prop_map(Value::from),
        "[a-c]{0,2}".prop_map(Value::from),
        any::<bool>().prop_map(Value::from)
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::btree_map("[a-d]", inner, 0..4)
                .prop_map(|m| Value::Object(m.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

/// The merge patch that turns one value into another, by the definition of RFC 7386.
fn difference(from: &Value, to: &Value) -> Value {
    let (Value::Object(from), Value::Object(to)) = (from, to) else { return to.clone() };
    let gone = from.keys().filter(|k| !to.contains_key(*k)).map(|k| (k.clone(), Value::Null));
    let changed = to.iter().filter(|(k, v)| from.get(*k) != Some(v));
    let changed = changed.map(|(k, v)| (k.clone(), from.get(k).map_or(v.clone(), |old| difference(old, v))));
    Value::Object(gone.chain(changed).collect())
}

proptest! {
    #[test]
    fn merge_patch_reaches_its_goal(from in value(), to in value()) {
        prop_assert_eq!(merge_patch(&from, &difference(&from, &to)), to);
    }

    #[test]
    fn merge_patch_twice_is_once(object in value(), patch in value()) {
        let once = merge_patch(&object, &patch);
        prop_assert_eq!(merge_patch(&once, &patch), once);
    }

    #[test]
    fn strategic_merge_of_itself_changes_nothing(names in prop::collection::btree_set("[a-z]{1,3}", 0..6), args in prop::collection::vec("[a-z]", 1..3)) {
        let containers: Vec<Value> = names.iter().map(|n| json!({"name": n, "command": args})).collect();
        let object = json!({"spec": {"containers": containers, "args": args}});
        prop_assert_eq!(strategic(object.clone(), object.clone()).expect("a good patch"), object);
    }

    #[test]
    fn no_patch_panics(object in value(), patch in value()) {
        let _ = json_patch(&object, &patch);
        let _ = strategic(object.clone(), patch.clone());
        let _ = strategic(json!({"spec": object}), json!({"spec": patch}));
    }
}
