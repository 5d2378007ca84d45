//! Round trips, and bytes that are not what they say.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::sample::table;

#[test]
fn known_bytes() {
    let (types, id) = table();
    let value = json!({"apiVersion":"v1","kind":"Box","status":{"ready":3}});
    let body = encode(&types, id, &value).expect("an object");
    let head = b"k8s\0\n\t\n\x02v1\x12\x03Box";
    assert_eq!(&body[..head.len()], head);
    assert!(body.ends_with(b"\x1a\x02\x10\x03\x1a\0\"\0"), "{body:?}");
    let back = decode(&types, None, &body).expect("its bytes");
    assert_eq!((back.api_version.as_str(), back.kind.as_str()), ("v1", "Box"));
    assert_eq!(back.value["status"], json!({"ready": 3}));
}

#[test]
fn refusals() {
    let (types, id) = table();
    assert_eq!(decode(&types, Some(id), b"{}"), Err(ProtoError::Magic));
    assert_eq!(decode_raw(&types, id, b"\x0a\x05ab"), Err(ProtoError::Truncated));
    assert_eq!(decode_raw(&types, id, b"\x0f"), Err(ProtoError::WireType(7)));
    assert_eq!(decode_raw(&types, id, b"\x08\x01"), Err(ProtoError::WireType(0)));
    let other = wrap("v2", "Box", b"");
    assert!(matches!(decode(&types, Some(id), &other), Err(ProtoError::UnknownKind { .. })));
}

#[test]
fn watch_events_carry_a_body() {
    let event = watch_event("ADDED", b"k8s\0");
    assert_eq!(event, b"\x0a\x05ADDED\x12\x06\x0a\x04k8s\0");
}

prop_compose! {
    fn boxes()(
        name in "[a-z]{0,5}",
        labels in prop::collection::btree_map("[a-z]{1,3}", "[a-z]{0,3}", 0..3),
        generation in any::<i64>(),
        replicas in prop::option::of(any::<i32>()),
        data in prop::option::of(prop::collection::vec(any::<u8>(), 0..9)),
        port in prop_oneof![any::<i32>().prop_map(Value::from), "[a-z]{1,4}".prop_map(Value::from)],
        weight in -1e9f64..1e9,
        seconds in 0i64..4_000_000_000,
        commands in prop::collection::vec(prop::collection::vec("[a-z]{0,3}", 0..3), 0..3),
        cpu in 1u32..5000,
    ) -> Value {
        let time = jiff::Timestamp::from_second(seconds).expect("in range");
        let containers: Vec<Value> = commands
            .iter()
            .map(|c| json!({"name": "c", "command": c, "ports": [{"containerPort": 80, "protocol": "TCP"}]}))
            .collect();
        json!({
            "metadata": {"name": name, "labels": labels, "generation": generation,
                "creationTimestamp": crate::time::seconds(&time),
                "managedFields": [{"manager": "m", "fieldsV1": {"f:a": {}}}]},
            "spec": {"replicas": replicas, "data": data.map(|d| json!({"k": STANDARD.encode(d)})),
                "port": port, "weight": weight, "containers": containers, "paused": replicas.is_some(),
                "limits": {"cpu": format!("{cpu}m")}, "raw": {"x": [1, null, "y"]}, "selector": {}},
            "status": {"ready": 0, "conditions": [{"type": "T", "status": ""}]},
        })
    }
}

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

proptest! {
    #[test]
    fn round_trip(value in boxes()) {
        let (types, id) = table();
        let text = value.to_string();
        let mut value = crate::decode_json(&types, id, text.as_bytes(), crate::FieldValidation::Strict)
            .expect("a good object").value;
        crate::normalize(&types, id, &mut value);
        let bytes = encode_raw(&types, id, &value).expect("an object");
        let back = decode_raw(&types, id, &bytes).expect("its bytes");
        prop_assert_eq!(&back, &value);
        prop_assert_eq!(encode_raw(&types, id, &back).expect("again"), bytes);
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        let (types, id) = table();
        let _ = decode_raw(&types, id, &bytes);
        let _ = decode(&types, Some(id), &[MAGIC, &bytes].concat());
    }
}
