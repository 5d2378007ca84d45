//! Bodies: the encodings, and what the API does with an object once it is read.

use api::Resource;
use schema::managed::{self, Context};
use schema::{FieldValidation, TypeId};
use serde_json::Value;

/// The first byte chooses the kind, the rest is the body.
fn kind(data: &[u8]) -> Option<(&'static Resource, &[u8])> {
    let (first, rest) = data.split_first()?;
    let all = api::resources();
    let count = all.iter().len();
    // Letters choose the kinds that have most to them.
    let (group, plural) = match first {
        b'p' => ("", "pods"),
        b'd' => ("apps", "deployments"),
        b's' => ("", "services"),
        b'c' => ("apiextensions.k8s.io", "customresourcedefinitions"),
        b'h' => ("autoscaling", "horizontalpodautoscalers"),
        b'r' => ("resource.k8s.io", "resourceslices"),
        other => return all.iter().nth(usize::from(*other) % count).map(|row| (&**row, rest)),
    };
    all.iter().find(|row| row.group == group && row.plural == plural).map(|row| (&**row, rest))
}

/// Everything that is done with an object between decoding and storing.
fn live(resource: &Resource, mut value: Value) {
    let strategy = &resource.strategy;
    resource.complete(&mut value);
    let mut old = value.clone();
    resource.normalize(&mut old);
    strategy.prepare_create(&mut value);
    resource.open(&mut value);
    strategy.validate(&value);
    resource.normalize(&mut value);
    strategy.warnings(&value, None);
    strategy.prepare_update(&mut value, &old);
    strategy.validate_update(&value, &old);
    strategy.prepare_status(&mut value, &old);
    strategy.validate_status(&value, &old);
    strategy.warnings_status(&value, Some(&old));
    strategy.fields(&value);
    strategy.row(&value, jiff::Timestamp::UNIX_EPOCH);
    encodings(resource, &value);
}

fn encodings(resource: &Resource, value: &Value) {
    let (types, id) = (&*resource.types, resource.type_id);
    if let Ok(bytes) = schema::proto::encode(types, id, value) {
        let _ = schema::proto::decode(types, Some(id), &bytes);
    }
    if let Ok(bytes) = schema::cbor::encode(Some((types, id)), value) {
        let back = schema::cbor::decode(&bytes).expect("what was written is read");
        drop(back);
    }
}

pub fn json(data: &[u8]) {
    let Some((resource, body)) = kind(data) else { return };
    let (types, id) = (&*resource.types, resource.type_id);
    let _ = schema::decode_json(types, id, body, FieldValidation::Strict);
    if let Ok(decoded) = schema::decode_json(types, id, body, FieldValidation::Warn) {
        live(resource, decoded.value);
    }
    let _ = schema::decode_any(body, FieldValidation::Warn);
}

pub const JSON: &[&[u8]] = &[
    br#"p{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a","labels":{"a":"b"}},"spec":{"containers":[{"name":"c","image":"i","ports":[{"containerPort":80}],"resources":{"limits":{"cpu":"1","memory":"1Gi"}},"env":[{"name":"A","value":"$(B)"}],"livenessProbe":{"httpGet":{"port":"x","path":"/"}}}],"volumes":[{"name":"v","projected":{"sources":[{"configMap":{"name":"c","items":[{"key":"k","path":"p/q"}]}}]}}],"tolerations":[{"operator":"Exists"}],"affinity":{"nodeAffinity":{"requiredDuringSchedulingIgnoredDuringExecution":{"nodeSelectorTerms":[{"matchExpressions":[{"key":"a","operator":"In","values":["b"]}]}]}}}}}"#,
    br#"d{"metadata":{"name":"d"},"spec":{"replicas":3,"selector":{"matchLabels":{"a":"b"}},"strategy":{"rollingUpdate":{"maxSurge":"25%"}},"template":{"metadata":{"labels":{"a":"b"}},"spec":{"containers":[{"name":"c","image":"i"}]}}}}"#,
    br#"s{"metadata":{"name":"s"},"spec":{"type":"LoadBalancer","clusterIPs":["10.0.0.1"],"externalIPs":["::1"],"loadBalancerSourceRanges":["10.0.0.0/8"],"ports":[{"port":80,"nodePort":30000,"targetPort":"x"}],"sessionAffinity":"ClientIP"}}"#,
    br#"h{"metadata":{"name":"h"},"spec":{"maxReplicas":3,"metrics":[{"type":"Pods","pods":{"metric":{"name":"r"},"target":{"type":"AverageValue","averageValue":"1k"}}}],"behavior":{"scaleUp":{"policies":[]}}}}"#,
    br#"r{"metadata":{"name":"r"},"spec":{"driver":"d.e","pool":{"name":"p","resourceSliceCount":1},"nodeName":"n","devices":[{"name":"g","attributes":{"a":{"version":"1.0.0-a+b"}},"capacity":{"m":{"value":"1","requestPolicy":{"default":"1","validRange":{"min":"1","step":"0"}}}},"allowMultipleAllocations":true}]}}"#,
    br#"c{"metadata":{"name":"a.b"},"spec":{"group":"b","names":{"plural":"a","kind":"A"},"scope":"Namespaced","versions":[{"name":"v1","served":true,"storage":true,"schema":{"openAPIV3Schema":{"type":"object","properties":{"s":{"type":"array","items":{"type":"string"}}}}}}]}}"#,
    br#"x{"metadata":{"creationTimestamp":"2020-01-01T00:00:00Z","name":null},"a":{"b":[1,2.5,-3e10,"\u00e4\ud83d\ude00",true,null,{}]}}"#,
];

pub fn yaml(data: &[u8]) {
    let Some((resource, body)) = kind(data) else { return };
    let (types, id) = (&*resource.types, resource.type_id);
    if let Ok(decoded) = schema::decode_yaml(types, id, body, FieldValidation::Warn) {
        live(resource, decoded.value);
    }
    if let Ok(decoded) = schema::decode_any_yaml(body, FieldValidation::Strict) {
        apiserver::write_yaml(&decoded.value);
    }
}

pub const YAML: &[&[u8]] = &[
    b"pmetadata: {name: a, labels: {a: \"b\"}}\nspec:\n  containers:\n  - name: c\n    image: 'i'\n    args: [\"x\", y]\n",
    b"x&a [1, 2]\n",
    b"xa: &a {b: c}\nd: *a\ne: {<<: *a, f: !!str 1}\n---\nx: 1\n",
    b"x? k\n: v\ns: |+\n  line\n\n  line\nt: >-\n  folded\n  text\n",
    b"xa: &a [x,x,x]\nb: &b [*a,*a,*a]\nc: &c [*b,*b,*b]\nd: [*c,*c,*c]\n",
    b"x{a: 0x1F, b: 0o17, c: 1_000, d: .5, e: 1e3, f: ~, g: yes, h: 2001-01-01}\n",
];

pub fn protobuf(data: &[u8]) {
    let Some((resource, body)) = kind(data) else { return };
    let (types, id) = (&*resource.types, resource.type_id);
    let _ = schema::proto::decode(types, Some(id), body);
    if let Ok(value) = schema::proto::decode_raw(types, id, body) {
        live(resource, value);
    }
}

pub const PROTOBUF: &[&[u8]] = &[
    b"pk8s\0\n\t\n\x02v1\x12\x03Pod\x12\x07\n\x05\n\x01a2\0\x1a\0\"\0",
    b"p\n\x0b\n\x01a\x12\0\x1a\0\"\0*\0\x12\x0c\x12\x0a\n\x01c\x12\x01i\x32\x02\x18\x50",
    b"d\n\x03\n\x01d\x12\x0a\x08\x03\x12\x06\n\x04\n\x01a\x12\0",
    b"s\n\x03\n\x01s\x12\x10\n\x0e\n\0\x12\x03TCP\x18\x50\"\x04\x08\0\x10\x50(\0",
];

pub fn cbor(data: &[u8]) {
    let _ = schema::cbor::decode(data);
    let Some((resource, body)) = kind(data) else { return };
    let (types, id) = (&*resource.types, resource.type_id);
    let Ok(value) = schema::cbor::decode(body) else { return };
    let again = schema::cbor::encode(None, &value).expect("what JSON holds");
    assert_eq!(schema::cbor::decode(&again).as_ref(), Ok(&value));
    if let Ok(decoded) = schema::decode_value(types, id, &value, FieldValidation::Warn) {
        live(resource, decoded.value);
    }
}

pub const CBOR: &[&[u8]] = &[
    b"p\xd9\xd9\xf7\xa2\x44spec\xa1\x4acontainers\x81\xa1\x44name\x41c\x48metadata\xa1\x44name\x41a",
    b"x\xbf\x61a\x9f\x01\x20\xfb\x3f\xf1\x99\x99\x99\x99\x99\x9a\xff\x41b\x5f\x41x\x41y\xff\xff",
    b"x\xa1\x61t\xc1\x1a\x51\x4b\x67\xb0",
    b"x\xd6\x43\x01\x02\xff",
];

/// Two documents with a NUL byte between them.
fn pair(data: &[u8]) -> Option<(Value, Value)> {
    let at = data.iter().position(|b| *b == 0)?;
    let read = |part: &[u8]| {
        let json = schema::decode_any(part, FieldValidation::Ignore);
        json.or_else(|_| schema::decode_any_yaml(part, FieldValidation::Ignore)).ok().map(|d| d.value)
    };
    Some((read(&data[..at])?, read(&data[at + 1..])?))
}

/// A patch may not blow an object up beyond this, whatever it copies.
const GROWN: usize = 64 << 20;

pub fn patch(data: &[u8]) {
    let Some((resource, rest)) = kind(data) else { return };
    let Some((object, patch)) = pair(rest) else { return };
    let (types, id) = (&*resource.types, resource.type_id);
    if let Ok(value) = schema::json_patch(&object, &patch) {
        assert!(value.to_string().len() < GROWN);
    }
    let merged = schema::merge_patch(&object, &patch);
    assert_eq!(schema::merge_patch(&merged, &patch), merged, "a merge patch applied twice is the same");
    if let Ok(value) = schema::strategic_merge_patch(types, id, &object, &patch) {
        let _ = schema::decode_value(types, id, &value, FieldValidation::Ignore);
    }
}

pub const PATCH: &[&[u8]] = &[
    b"p{\"spec\":{\"containers\":[{\"name\":\"a\"},{\"name\":\"b\"}]}}\0{\"spec\":{\"containers\":[{\"name\":\"b\",\"image\":\"i\"},{\"$patch\":\"delete\",\"name\":\"a\"}],\"$setElementOrder/containers\":[{\"name\":\"b\"}]}}",
    b"p{\"a\":[1,{\"b\":2}]}\0[{\"op\":\"test\",\"path\":\"/a/0\",\"value\":1},{\"op\":\"copy\",\"from\":\"/a\",\"path\":\"/a/-\"},{\"op\":\"move\",\"from\":\"/a/1/b\",\"path\":\"/c\"},{\"op\":\"remove\",\"path\":\"/a/0\"},{\"op\":\"replace\",\"path\":\"/a\",\"value\":null}]",
    b"p{\"metadata\":{\"finalizers\":[\"a\",\"b\"]}}\0{\"metadata\":{\"$deleteFromPrimitiveList/finalizers\":[\"a\"],\"labels\":{\"$patch\":\"replace\",\"a\":\"b\"}}}",
    b"d{\"spec\":{\"strategy\":{\"type\":\"RollingUpdate\",\"rollingUpdate\":{}}}}\0{\"spec\":{\"strategy\":{\"$retainKeys\":[\"type\"],\"type\":\"Recreate\"}}}",
];

fn context<'a>(
    resource: &'a Resource,
    api_version: &'a str,
    convert: &'a dyn Fn(&Value, &str) -> Option<(TypeId, Value)>,
) -> Context<'a> {
    Context {
        types: &resource.types,
        type_id: resource.type_id,
        api_version,
        kind: &resource.kind,
        subresource: "",
        ignored: &["status"],
        now: "2020-01-01T00:00:00Z",
        convert,
    }
}

/// Applies a configuration to an object, as two managers, with and without force.
pub fn apply(data: &[u8]) {
    let Some((resource, rest)) = kind(data) else { return };
    let Some((live, mut config)) = pair(rest) else { return };
    let (types, id) = (&*resource.types, resource.type_id);
    let Ok(decoded) = schema::decode_value(types, id, &live, FieldValidation::Ignore) else { return };
    let mut live = decoded.value;
    schema::normalize(types, id, &mut live);
    let api_version = resource.api_version();
    let convert = |_: &Value, _: &str| None;
    let context = context(resource, &api_version, &convert);
    for object in [&mut live, &mut config] {
        if let Some(map) = object.as_object_mut() {
            map.insert("apiVersion".to_owned(), api_version.as_str().into());
            map.insert("kind".to_owned(), resource.kind.to_string().into());
        }
    }
    let _ = managed::apply(&context, Some(&live), &config, "one", false);
    let Ok(applied) = managed::apply(&context, Some(&live), &config, "kubectl", true) else { return };
    let Ok(decoded) = schema::decode_value(types, id, &applied, FieldValidation::Ignore) else { return };
    let mut applied = decoded.value;
    schema::normalize(types, id, &mut applied);
    let _ = managed::apply(&context, Some(&applied), &live, "two", false);
    managed::update(&context, Some(&applied), &mut live, "three");
}

pub const APPLY: &[&[u8]] = &[
    b"d{\"metadata\":{\"name\":\"d\",\"managedFields\":[{\"manager\":\"m\",\"operation\":\"Apply\",\"apiVersion\":\"apps/v1\",\"fieldsType\":\"FieldsV1\",\"fieldsV1\":{\"f:spec\":{\"f:replicas\":{},\"f:template\":{\"f:spec\":{\"f:containers\":{\"k:{\\\"name\\\":\\\"c\\\"}\":{\".\":{},\"f:image\":{},\"f:name\":{}}}}}}}}]},\"spec\":{\"replicas\":1,\"template\":{\"spec\":{\"containers\":[{\"name\":\"c\",\"image\":\"i\"}]}}}}\0{\"spec\":{\"replicas\":2,\"template\":{\"spec\":{\"containers\":[{\"name\":\"b\",\"ports\":[{\"containerPort\":80}]},{\"name\":\"c\"}]}}}}",
    b"p{\"metadata\":{\"name\":\"p\",\"finalizers\":[\"a\"],\"annotations\":{\"kubectl.kubernetes.io/last-applied-configuration\":\"{\\\"apiVersion\\\":\\\"v1\\\"}\"}}}\0{\"metadata\":{\"finalizers\":[\"b\",\"a\"],\"labels\":{\"x\":null}},\"spec\":{\"tolerations\":[{}]}}",
    b"s{\"spec\":{\"ports\":[{\"port\":80},{\"port\":80,\"protocol\":\"UDP\"}]}}\0{\"spec\":{\"ports\":[{\"port\":80,\"protocol\":\"TCP\",\"name\":\"x\"}]}}",
];
