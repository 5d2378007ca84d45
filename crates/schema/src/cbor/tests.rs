//! Known bytes, round trips, and bytes that are not what they say.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::sample::table;

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter_map(|b| char::from(b).to_digit(16)).map(|d| d as u8).collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

#[test]
fn known_bytes() {
    let check = |value: Value, want: &str| {
        let bytes = encode(None, &value).expect("a value");
        assert_eq!(bytes, hex(&format!("d9d9f7{want}")), "{value}");
        assert_eq!(decode(&bytes).expect("its bytes"), value);
    };
    check(json!({"kind": "A", "b": [1, -1, 24, 256]}), "a2 4162 84 01 20 1818 190100 446b696e64 4141");
    check(json!([true, false, null, ""]), "84 f5 f4 f6 40");
    check(json!([1.5, 0.1, 65504.0, 5.960464477539063e-8]), "84 f93e00 fb3fb999999999999a f97bff f90001");
    check(json!([100000.5, 3.4028234663852886e38]), "82 fa47c35040 fa7f7fffff");
    check(json!(i64::MIN), "3b7fffffffffffffff");
}

#[test]
fn raw_data_and_fractions_have_their_kind() {
    let (types, id) = table();
    let value = json!({"spec": {"data": {"k": "AQI="}, "weight": 2}});
    let bytes = encode(Some((&types, id)), &value).expect("an object");
    assert_eq!(bytes, hex("d9d9f7 a1 4473706563 a2 4464617461 a1 416b d6 420102 46776569676874 f94000"));
    assert_eq!(decode(&bytes).expect("its bytes"), json!({"spec": {"data": {"k": "AQI="}, "weight": 2.0}}));
}

#[test]
fn what_others_write() {
    let check =
        |bytes: &str, want: Result<Value, CborError>| assert_eq!(decode(&hex(bytes)), want, "{bytes}");
    check("bf 6161 9f 01 ff 4162 7f 6178 6179 ff ff", Ok(json!({"a": [1], "b": "xy"})));
    check("c1 1a514b67b0", Ok(json!("2013-03-21T20:04:00Z")));
    check("c0 74 323031332d30332d32315432303a30343a30305a", Ok(json!("2013-03-21T20:04:00Z")));
    check("d7 430102ff", Ok(json!("0102FF")));
    check("d82a 01", Ok(json!(1)));
    check("a2 6161 01 4161 02", Err(CborError::Duplicate("a".into())));
    check("a1 01 01", Err(CborError::Unsupported("a map key is no string")));
    check("1b 8000000000000000", Err(CborError::Unsupported("an integer does not fit 64 bits")));
    check("f97e00", Err(CborError::Unsupported("a number is not finite")));
    check("f7", Err(CborError::Unsupported("a simple value is none of true, false and null")));
    check("c2 4101", Err(CborError::Unsupported("big numbers are not supported")));
    check("9b ffffffffffffffff", Err(CborError::Truncated));
    check("5b ffffffffffffffff 00", Err(CborError::Truncated));
    check("61 ff", Err(CborError::Unsupported("invalid UTF-8 string")));
    check("01 01", Err(CborError::Trailing(1)));
    check("1c", Err(CborError::Malformed(0)));
    assert_eq!(decode(&[0x81; 5000]), Err(CborError::Depth));
}

#[test]
fn watch_events_carry_a_body() {
    let event = watch_event("ADDED", &encode(None, &json!({})).expect("an object"));
    assert_eq!(event, hex("d9d9f7 a2 4474797065 454144444544 466f626a656374 d9d9f7 a0"));
    assert_eq!(item_length(&[event.as_slice(), &[1]].concat()), Ok(event.len()));
}

fn values() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_filter("finite", |f| f.is_finite()).prop_map(Value::from),
        ".{0,30}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 64, 8, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..8).prop_map(Value::from),
            prop::collection::btree_map(".{0,6}", inner, 0..8)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn round_trip(value in values()) {
        let bytes = encode(None, &value).expect("a value");
        prop_assert_eq!(decode(&bytes).expect("its bytes"), value);
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        let _ = decode(&bytes);
    }
}
