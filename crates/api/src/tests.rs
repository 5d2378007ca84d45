//! The generated tables are whole.

use crate::{resources, types};

#[test]
fn every_row_of_the_data_is_served() {
    let rows: Vec<serde_json::Value> =
        serde_json::from_str(include_str!("../data/resources.json")).expect("JSON");
    assert_eq!(resources().iter().count(), rows.len());
    assert_eq!(rows.len(), 68);
}

#[test]
fn gated_rows_are_whole() {
    for gated in crate::gated() {
        assert!(!gated.resources.is_empty(), "{}", gated.gate);
        for row in &gated.resources {
            assert!(resources().find(&row.group, &row.version, &row.plural).is_none(), "{}", row.plural);
            let object = serde_json::json!({"metadata": {"name": "a"}, "spec": {}});
            let cells = row.strategy.row(&object, jiff::Timestamp::UNIX_EPOCH);
            assert_eq!(cells.len(), row.columns.len(), "{}", row.plural);
        }
    }
}

#[test]
fn types_hold_fields_and_kinds() {
    let pod = types().by_gvk("", "v1", "Pod").expect("Pod");
    assert_eq!(types().get(pod).name, "io.k8s.api.core.v1.Pod");
    let meta = types().field(pod, "metadata").expect("metadata").ty;
    let created = types().field(meta, "creationTimestamp").expect("creationTimestamp");
    assert_eq!(created.omit, schema::Omit::Zero);
    let pods = resources().find("", "v1", "pods").expect("pods");
    assert!(pods.has_verb("watch") && pods.list_type_id.is_some());
    assert_eq!(pods.subresource("log").expect("log").kind, "Pod");
}

#[test]
fn every_listed_resource_has_columns() {
    for resource in resources().iter().filter(|r| r.has_verb("list")) {
        assert!(!resource.columns.is_empty(), "{} has no columns", resource.plural);
    }
}

#[test]
fn every_kind_has_a_normal_form_that_survives_protobuf() {
    for (id, ty) in types().iter().filter(|(_, ty)| !ty.kinds.is_empty()) {
        let validation = schema::FieldValidation::Strict;
        let empty = schema::decode_json(types(), id, b"{}", validation).expect("an empty object").value;
        let again = schema::decode_value(types(), id, &empty, validation).expect("its normal form").value;
        assert_eq!(again, empty, "{}", ty.name);
        let bytes = schema::proto::encode_raw(types(), id, &empty).expect("a protobuf form");
        let back = schema::proto::decode_raw(types(), id, &bytes).expect("its bytes");
        assert_eq!(back, empty, "{}", ty.name);
    }
}

#[test]
fn recursion_is_bounded() {
    let crd = types()
        .by_gvk("apiextensions.k8s.io", "v1", "CustomResourceDefinition")
        .expect("CustomResourceDefinition");
    let (open, close) = ("{\"items\":".repeat(3000), "}".repeat(3000));
    let body =
        format!("{{\"spec\":{{\"versions\":[{{\"schema\":{{\"openAPIV3Schema\":{open}{{}}{close}}}}}]}}}}");
    let error = schema::decode_json(types(), crd, body.as_bytes(), schema::FieldValidation::Ignore);
    assert!(error.expect_err("too deep").to_string().ends_with("exceeded max depth"));
}
