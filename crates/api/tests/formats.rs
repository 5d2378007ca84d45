//! Every kind in every encoding: random objects come back as they went, and upstream's own examples byte for byte.

use std::path::PathBuf;

use api::types;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;
use schema::{FieldValidation, Shape, TypeId, normalize};
use serde_json::{Map, Value, json};

/// A small generator of numbers; what it makes depends on the seed alone.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }

    fn word(&mut self) -> String {
        const LETTERS: &[char] =
            &['a', 'b', 'z', '0', '-', '.', ' ', '"', '\\', 'ä', '日', '\u{1F600}', '\n'];
        let length = self.below(6);
        (0..length).map(|_| LETTERS[self.below(LETTERS.len() as u64) as usize]).collect()
    }

    fn int(&mut self) -> i64 {
        let number = (self.below(1 << 53) as i64) >> self.below(53);
        if self.below(2) == 0 { number } else { -number }
    }

    fn any(&mut self, depth: usize) -> Value {
        match self.below(if depth > 2 { 4 } else { 6 }) {
            0 => self.word().into(),
            1 => self.int().into(),
            2 => (self.below(2) == 0).into(),
            3 => json!(self.int() as f64 + 0.5),
            4 => (0..self.below(3)).map(|_| self.any(depth + 1)).collect(),
            _ => self.object(depth),
        }
    }

    fn object(&mut self, depth: usize) -> Value {
        (0..self.below(3)).map(|_| (self.word(), self.any(depth + 1))).collect()
    }

    fn time(&mut self, micro: bool) -> Value {
        let (seconds, micros) = (self.below(4_000_000_000) as i64, self.below(1_000_000) as i32);
        let time = jiff::Timestamp::new(seconds, if micro { micros * 1000 } else { 0 }).expect("in range");
        time.strftime(if micro { "%Y-%m-%dT%H:%M:%S.%6fZ" } else { "%Y-%m-%dT%H:%M:%SZ" }).to_string().into()
    }

    /// A value of a type.
    fn of(&mut self, id: TypeId, depth: usize) -> Value {
        let types = types();
        match types.shape(id) {
            Shape::Object(fields) => {
                let mut map = Map::new();
                // A kind's own name is no part of a message.
                let named = |f: &&schema::Field| f.proto != 0 || !matches!(&*f.name, "apiVersion" | "kind");
                for field in fields.iter().filter(named) {
                    // Deep inside, objects stay small: some types hold themselves.
                    let odds = if depth < 3 { 3 } else { 1 + depth as u64 * 3 };
                    let rare = self.below(odds.max(1)) != 0;
                    if (depth >= 3 || self.below(2) == 0) && rare {
                        continue;
                    }
                    if depth < 12 {
                        map.insert(field.name.to_string(), self.of(field.ty, depth + 1));
                    }
                }
                Value::Object(map)
            }
            Shape::List(ty) => (0..self.below(3)).map(|_| self.of(*ty, depth + 1)).collect(),
            Shape::Map(ty) => (0..self.below(3)).map(|_| (self.word(), self.of(*ty, depth + 1))).collect(),
            Shape::String => self.word().into(),
            Shape::Bool => (self.below(2) == 0).into(),
            Shape::Int32 => (self.int() as i32).into(),
            Shape::Int64 => self.int().into(),
            Shape::Double => json!(self.int() as f64 / 8.0),
            Shape::Bytes => {
                let bytes: Vec<u8> = (0..self.below(9)).map(|_| self.below(256) as u8).collect();
                STANDARD.encode(bytes).into()
            }
            Shape::Quantity => format!("{}m", self.below(100_000)).into(),
            Shape::IntOrString => {
                if self.below(2) == 0 {
                    (self.int() as i32).into()
                } else {
                    self.word().into()
                }
            }
            Shape::Time => self.time(false),
            Shape::MicroTime => self.time(true),
            Shape::FieldsV1 => json!({"f:a": {".": {}, "k:{\"n\":\"x\"}": {}}}),
            Shape::RawExtension => self.object(depth),
            Shape::Any => self.any(depth),
            Shape::Either(object, other) => {
                let id = if self.below(2) == 0 { *object } else { *other };
                self.of(id, depth + 1)
            }
        }
    }
}

/// An object as the server holds it after it has read it.
fn normal(id: TypeId, value: &Value) -> Value {
    let decoded = schema::decode_value(types(), id, value, FieldValidation::Strict);
    let mut value = decoded.unwrap_or_else(|e| panic!("{e}: {value}")).value;
    normalize(types(), id, &mut value);
    value
}

fn kinds() -> Vec<(TypeId, &'static schema::Type)> {
    types().iter().filter(|(_, ty)| !ty.kinds.is_empty()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(24) })]

    #[test]
    fn every_kind_comes_back(seed in 1u64..) {
        let mut random = Random(seed);
        for (id, ty) in kinds() {
            let mut value = random.of(id, 0);
            let kind = &ty.kinds[0];
            let api_version =
                if kind.group.is_empty() { kind.version.to_string() } else { format!("{}/{}", kind.group, kind.version) };
            if types().field(id, "kind").is_some() {
                value["kind"] = kind.kind.to_string().into();
                value["apiVersion"] = api_version.into();
            }
            let value = normal(id, &value);
            let bytes = schema::proto::encode(types(), id, &value).expect("a protobuf form");
            let back = schema::proto::decode(types(), Some(id), &bytes).expect("its bytes").value;
            prop_assert_eq!(&back, &value, "{} in protobuf", ty.name);
            let again = schema::proto::encode(types(), id, &back).expect("again");
            prop_assert_eq!(again, bytes, "{} in protobuf", ty.name);
            let bytes = schema::cbor::encode(Some((types(), id)), &value).expect("a CBOR form");
            let back = schema::cbor::decode(&bytes).expect("its bytes");
            prop_assert_eq!(normal(id, &back), value, "{} in CBOR", ty.name);
        }
    }

    #[test]
    fn no_bytes_panic(seed in 1u64.., noise in prop::collection::vec(any::<u8>(), 0..200)) {
        let all = kinds();
        let (id, _) = all[Random(seed).below(all.len() as u64) as usize];
        let _ = schema::proto::decode_raw(types(), id, &noise);
        let _ = schema::decode_json(types(), id, &noise, FieldValidation::Strict);
        let _ = schema::decode_yaml(types(), id, &noise, FieldValidation::Strict);
    }
}

/// The facts about upstream, where they lie beside the repository.
fn golden() -> Option<PathBuf> {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().map(|dir| dir.join("shared/kubernetes/golden")).find(|dir| dir.is_dir())
}

#[test]
fn upstreams_examples_byte_for_byte() {
    let Some(dir) = golden() else { return };
    let mut seen = 0;
    let mut wrong = Vec::new();
    for entry in std::fs::read_dir(dir).expect("the folder") {
        let path = entry.expect("an entry").path();
        if path.extension().is_none_or(|e| e != "json") {
            continue;
        }
        seen += 1;
        let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
        let text = std::fs::read(&path).expect("the JSON form");
        let want = std::fs::read(path.with_extension("pb")).expect("the protobuf form");
        let json: Value = serde_json::from_slice(&text).expect("JSON");
        let kind = name.rsplit('.').next().unwrap_or_default();
        let default = types().by_gvk("", "v1", kind);
        let decoded = match schema::proto::decode(types(), default, &want) {
            Ok(decoded) => decoded,
            Err(error) => {
                wrong.push(format!("{name}: {error}"));
                continue;
            }
        };
        let id = decoded.type_id;
        let mut value = schema::decode_json(types(), id, &text, FieldValidation::Strict)
            .unwrap_or_else(|e| panic!("{name}: {e}"))
            .value;
        normalize(types(), id, &mut value);
        if decoded.value != value {
            wrong.push(format!("{name}: decoded\n{}\nwanted\n{value}", decoded.value));
        }
        let got = schema::proto::encode(types(), id, &json).expect("a protobuf form");
        if got != want {
            wrong.push(format!("{name}: encoded otherwise"));
        }
    }
    assert!(wrong.is_empty(), "{} of {seen}:\n{}", wrong.len(), wrong.join("\n"));
    assert!(seen > 80, "{seen}");
}
