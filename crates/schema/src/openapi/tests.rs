//! What clients look for in the documents.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::*;
use crate::sample::table;

fn routes<'a>(types: &'a Types, id: TypeId, verbs: &'static [Str]) -> Vec<Route<'a>> {
    let kind = types.get(id).kinds[0].clone();
    let status = SubRoute { name: "status", verbs, kind: kind.clone(), type_id: Some(id) };
    vec![Route {
        types,
        group: "",
        version: "v1",
        plural: "boxes",
        namespaced: true,
        verbs,
        kind,
        type_id: id,
        list_type_id: None,
        custom: false,
        subresources: vec![status],
    }]
}

const VERBS: &[Str] =
    &[Str::Borrowed("get"), Str::Borrowed("list"), Str::Borrowed("create"), Str::Borrowed("patch")];

#[test]
fn v2_and_v3() {
    let (types, id) = table();
    let routes = routes(&types, id, VERBS);
    let v2: Value = serde_json::from_str(&v2(&routes, "v1.36.0")).expect("JSON");
    let v3: Value = serde_json::from_str(&v3(&routes, "v1.36.0")).expect("JSON");
    let one = "/api/v1/namespaces/{namespace}/boxes/{name}";
    for document in [&v2, &v3] {
        let patch = &document["paths"][one]["patch"];
        assert_eq!(patch["x-kubernetes-group-version-kind"], json!({"group":"","version":"v1","kind":"Box"}));
        let names: Vec<&Value> =
            patch["parameters"].as_array().expect("parameters").iter().map(|p| &p["name"]).collect();
        assert!(names.contains(&&json!("fieldValidation")) && names.contains(&&json!("dryRun")));
        assert!(document["paths"][format!("{one}/status")].is_object());
        assert!(document["paths"]["/api/v1/boxes"]["get"].is_object());
        assert!(document["paths"][one]["delete"].is_null());
    }
    let names = |verbs: &'static [Str]| {
        let mut routes = self::routes(&types, id, verbs);
        routes[0].group = "flowcontrol.apiserver.k8s.io";
        let v3: Value = serde_json::from_str(&super::v3(&routes, "v1.36.0")).expect("JSON");
        let paths = v3["paths"].as_object().expect("paths").clone();
        paths.into_iter().map(|(path, item)| (path, item["get"].clone())).collect::<BTreeMap<_, _>>()
    };
    let own = names(&[Str::Borrowed("list"), Str::Borrowed("get"), Str::Borrowed("watch")]);
    let root = "/apis/flowcontrol.apiserver.k8s.io/v1";
    for (path, expect) in [
        ("boxes", "listFlowcontrolApiserverV1BoxForAllNamespaces"),
        ("namespaces/{namespace}/boxes", "listFlowcontrolApiserverV1NamespacedBox"),
        ("watch/boxes", "watchFlowcontrolApiserverV1BoxListForAllNamespaces"),
        ("watch/namespaces/{namespace}/boxes", "watchFlowcontrolApiserverV1NamespacedBoxList"),
        ("watch/namespaces/{namespace}/boxes/{name}", "watchFlowcontrolApiserverV1NamespacedBox"),
    ] {
        let operation = &own[&format!("{root}/{path}")];
        assert_eq!(operation["operationId"], expect);
        assert_eq!(operation["tags"], json!(["flowcontrolApiserver_v1"]));
    }
    let spec = &v2["definitions"]["test.v1.BoxSpec"]["properties"];
    assert_eq!(
        spec["containers"],
        json!({"type":"array","items":{"$ref":"#/definitions/test.v1.Container"},
            "x-kubernetes-list-map-keys":["name"],"x-kubernetes-list-type":"map",
            "x-kubernetes-patch-merge-key":"name","x-kubernetes-patch-strategy":"merge"})
    );
    assert_eq!(
        v3["components"]["schemas"]["test.v1.Box"]["properties"]["spec"],
        json!({"allOf":[{"$ref":"#/components/schemas/test.v1.BoxSpec"}],"default":{}})
    );
    assert_eq!(v2["definitions"]["test.v1.Selector"]["x-kubernetes-map-type"], "atomic");
    let index = v3_index([("api/v1", "AB")]);
    assert_eq!(index, r#"{"paths":{"api/v1":{"serverRelativeURL":"/openapi/v3/api/v1?hash=AB"}}}"#);
}

#[test]
fn protobuf_names_the_document() {
    let (types, id) = table();
    let bytes = v2_protobuf(&routes(&types, id, VERBS), "v1.36.0");
    let head: &[u8] = b"\x0a\x032.0\x12\x15\x0a\x0aKubernetes\x12\x07v1.36.0";
    assert_eq!(&bytes[..head.len()], head);
}

#[test]
fn a_v3_document_has_a_protobuf_form() {
    let (types, id) = table();
    let json = v3(&routes(&types, id, VERBS), "v1.36.0");
    let bytes = v3_protobuf(json.as_bytes()).expect("bytes");
    // openapi = 1, info = 2 with title = 1: lengths fit into one byte here.
    let head = b"\x0a\x053.0.0\x12";
    assert_eq!(&bytes[..head.len()], head);
    assert_eq!(&bytes[head.len() + 1..head.len() + 13], b"\x0a\x0aKubernetes");
    let holds = |text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
    assert!(holds("/api/v1/namespaces/{namespace}/boxes/{name}"));
    assert!(holds("#/components/schemas/") && holds("x-kubernetes-group-version-kind"));
    assert_eq!(v3_protobuf(b"no JSON"), None);
}
