//! What goes in, what comes out, and what is said of it.

use serde_json::json;

use super::*;
use crate::sample::table;

fn decode(text: &str, validation: FieldValidation) -> Result<Decoded, DecodeError> {
    let (types, id) = table();
    decode_json(&types, id, text.as_bytes(), validation)
}

fn error(text: &str) -> String {
    decode(text, FieldValidation::Ignore).expect_err(text).to_string()
}

#[test]
fn normal_form() {
    for (text, want) in [
        ("{}", json!({"metadata":{},"spec":{"containers":null,"port":0,"strategy":{}},"status":{"ready":0}})),
        (
            "null",
            json!({"metadata":{},"spec":{"containers":null,"port":0,"strategy":{}},"status":{"ready":0}}),
        ),
        (
            r#"{"metadata":{"labels":{},"name":null,"creationTimestamp":null,"generation":0},
                "spec":{"replicas":0,"containers":[{"name":"a","command":[null]},null],"args":[],"selector":{}},
                "status":{"conditions":[{"type":"T"}]}}"#,
            json!({"metadata":{},
                "spec":{"replicas":0,"containers":[{"name":"a","command":[""]},{"name":""}],"port":0,
                        "selector":{},"strategy":{}},
                "status":{"ready":0,"conditions":[{"type":"T","status":"","lastTransitionTime":null}]}}),
        ),
        (
            r#"{"metadata":{"labels":{"a":null}},"spec":{"containers":[],"limits":{"cpu":"1000m","memory":1024},
                "port":"http","weight":1,"data":{"x":"YQ=="},"raw":{"b":[1.5,null],"a":1}}}"#,
            json!({"metadata":{"labels":{"a":""}},"spec":{"containers":null,"limits":{"cpu":"1","memory":"1024"},
                "port":"http","weight":1.0,"data":{"x":"YQ=="},"raw":{"a":1,"b":[1.5,null]},"strategy":{}},
                "status":{"ready":0}}),
        ),
    ] {
        let mut got = decode(text, FieldValidation::Strict).expect(text).value;
        let (types, id) = table();
        crate::normalize(&types, id, &mut got);
        assert_eq!(got, want, "{text}");
    }
}

#[test]
fn empty_lists_stay_for_defaults() {
    let got = decode(r#"{"spec":{"args":[]}}"#, FieldValidation::Strict).expect("decode").value;
    assert_eq!(got["spec"]["args"], json!([]));
}

#[test]
fn unknown_and_duplicate_fields() {
    let text = r#"{"nosuch":1,"metadata":{"odd":{"x":[1]},"labels":{"a":"1","a":"2"}},"metadata":{"name":"n"},
        "spec":{"containers":[{"name":"a"},{"name":"b","Image":"x"}]}}"#;
    let got = decode(text, FieldValidation::Warn).expect("warnings only");
    assert_eq!(
        got.warnings,
        [
            r#"unknown field "nosuch""#,
            r#"unknown field "metadata.odd""#,
            r#"duplicate field "metadata.labels.a""#,
            r#"duplicate field "metadata""#,
            r#"unknown field "spec.containers[1].Image""#
        ]
    );
    assert_eq!(got.value["metadata"], json!({"name":"n","labels":{"a":"2"}}));
    assert!(decode(text, FieldValidation::Ignore).expect("ignored").warnings.is_empty());
    let strict = decode(r#"{"a":1,"b":2}"#, FieldValidation::Strict).expect_err("strict").to_string();
    assert_eq!(strict, r#"strict decoding error: unknown field "a", unknown field "b""#);
}

#[test]
fn wrong_types() {
    const HEAD: &str = "json: cannot unmarshal";
    for (text, want) in [
        (r#"{"spec":{"replicas":"3"}}"#, "string into Go struct field BoxSpec.spec.replicas of type int32"),
        (
            r#"{"spec":{"replicas":1.5}}"#,
            "number 1.5 into Go struct field BoxSpec.spec.replicas of type int32",
        ),
        (
            r#"{"spec":{"replicas":3000000000}}"#,
            "number 3000000000 into Go struct field BoxSpec.spec.replicas of type int32",
        ),
        (r#"{"metadata":{"name":5}}"#, "number into Go struct field ObjectMeta.metadata.name of type string"),
        (r#"{"metadata":[]}"#, "array into Go struct field Box.metadata of type v1.ObjectMeta"),
        (
            r#"{"metadata":{"labels":{"a":true}}}"#,
            "bool into Go struct field ObjectMeta.metadata.labels of type string",
        ),
        (
            r#"{"spec":{"containers":{}}}"#,
            "object into Go struct field BoxSpec.spec.containers of type []v1.Container",
        ),
        (r#"{"spec":{"port":1.5}}"#, "number 1.5 into Go struct field BoxSpec.spec.port of type int32"),
    ] {
        assert_eq!(error(text), format!("{HEAD} {want}"), "{text}");
    }
    assert!(error(r#"{"spec":{"limits":{"cpu":"1x"}}}"#).starts_with("quantities must match"));
    assert!(error(r#"{"spec":{"data":{"a":"%"}}}"#).starts_with("illegal base64 data"));
}

#[test]
fn syntax() {
    const HEAD: &str = "couldn't get version/kind; json parse error:";
    for (text, want) in [
        ("", "unexpected end of JSON input"),
        ("{", "unexpected end of JSON input"),
        ("{'a':1}", r"invalid character '\'' looking for beginning of object key string"),
        (r#"{"a":1,}"#, "invalid character '}' looking for beginning of object key string"),
        ("{} {}", "invalid character '{' after top-level value"),
        (r#"{"a" 1}"#, "invalid character '1' after object key"),
        (r#"{"a":tru}"#, "invalid character '}' in literal true (expecting 'e')"),
        (r#"{"a":1 "b":2}"#, "invalid character '\"' after object key:value pair"),
        ("[1 2]", "invalid character '2' after array element"),
        ("\u{feff}{}", "invalid character 'ï' looking for beginning of value"),
        ("\0", r"invalid character '\x00' looking for beginning of value"),
    ] {
        assert_eq!(error(text), format!("{HEAD} {want}"), "{text}");
    }
    let deep = format!("{{\"nosuch\":{}{}}}", "[".repeat(20_000), "]".repeat(20_000));
    assert_eq!(error(&deep), format!("{HEAD} exceeded max depth"));
    let kept = format!("{{\"spec\":{{\"raw\":{}{}}}}}", "[".repeat(5_000), "]".repeat(5_000));
    assert_eq!(error(&kept), format!("{HEAD} exceeded max depth"));
}

#[test]
fn yaml() {
    let (types, id) = table();
    let read = |text: &str| decode_yaml(&types, id, text.as_bytes(), FieldValidation::Warn);
    let commented = "# first\n---\n# second\nspec: # third\n  # fourth\n  containers: []\n# last\n";
    assert_eq!(
        read(commented).expect("comments are no content").value,
        read("spec: {}").expect("plain").value
    );
    let text = "metadata: &m\n  name: x\n  labels: {a: 'yes'}\nspec:\n  paused: yes\n  replicas: 0x10\n  containers:\n  - name: |\n      l1\n    image: >-\n      a\n      b\n---\nkind: [\n";
    let got = read(text).expect("YAML");
    assert_eq!(got.value["spec"]["replicas"], 16);
    assert_eq!(got.value["spec"]["paused"], true);
    assert_eq!(got.value["spec"]["containers"][0], json!({"name": "l1\n", "image": "a b"}));
    let twice = read("metadata:\n  labels:\n    a: '1'\n    a: '2'\n  odd: 1\n").expect("YAML");
    assert_eq!(twice.value["metadata"]["labels"]["a"], "2");
    assert_eq!(
        twice.warnings,
        ["yaml: unmarshal errors:\n  line 4: key \"a\" already set in map", "unknown field \"metadata.odd\""]
    );
    let merged = read("metadata:\n  labels: &l {a: b}\n  annotations: {<<: *l, c: d}\n").expect("YAML");
    assert_eq!(merged.value["metadata"]["annotations"], json!({"a": "b", "c": "d"}));
    let bad = read("metadata:\n  name: a\n namespace: b\n").expect_err("bad indentation").to_string();
    assert!(bad.starts_with("yaml: line 3, column "), "{bad}");
    let mut bomb = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
    for i in 1..9 {
        let row = vec![format!("*a{}", i - 1); 10].join(",");
        bomb.push_str(&format!("a{i}: &a{i} [{row}]\n"));
    }
    let error = read(&bomb).expect_err("a bomb").to_string();
    assert_eq!(error, "yaml: document contains excessive aliasing");
    for bad in ["a: b: c", "{", "\t"] {
        assert!(read(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn untyped() {
    let got = decode_any(br#"{"a":{"b":1,"b":2},"c":[{"d":1,"d":2}]}"#, FieldValidation::Warn).expect("JSON");
    assert_eq!(got.warnings, [r#"duplicate field "a.b""#, r#"duplicate field "c[0].d""#]);
    assert_eq!(got.value, json!({"a":{"b":2},"c":[{"d":2}]}));
}

proptest::proptest! {
    #[test]
    fn no_body_panics(text in r#"[\[\]{}:,"a-c0-9.\\ntruefals&*<!|>%@ -]{0,60}"#) {
        let (types, id) = table();
        let _ = decode_json(&types, id, text.as_bytes(), FieldValidation::Warn);
        let _ = decode_yaml(&types, id, text.as_bytes(), FieldValidation::Warn);
    }

    #[test]
    fn numbers_and_quantities_do_not_panic(text in "[+-]?[0-9.]{0,50}[eEinumkKMGTP]{0,2}[+-]?[0-9]{0,12}") {
        let _ = crate::quantity::canonical(&text).map(|c| crate::quantity::canonical(&c));
        let _ = crate::time::canonical(&text);
    }
}
