//! The decoder proper: one pass over the text, driven by the type table.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use super::DecodeError;
use super::lexer::{Lexer, Step, Syntax};
use crate::types::{Field, Shape, TypeId, Types};
use crate::{quantity, time};

const MANAGED_FIELDS_ENTRY: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ManagedFieldsEntry";
/// Most unknown and duplicate fields that are told of.
const MAX_FINDINGS: usize = 100;

/// Unknown and duplicate fields, with the path at hand.
pub(super) struct Findings {
    wanted: bool,
    path: Vec<String>,
    pub errors: Vec<String>,
}

impl Findings {
    pub fn new(wanted: bool) -> Self {
        Self { wanted, path: Vec::new(), errors: Vec::new() }
    }

    fn push(&mut self, key: &str) {
        if self.wanted {
            let dot = if self.path.is_empty() { "" } else { "." };
            self.path.push(format!("{dot}{key}"));
        }
    }

    fn push_index(&mut self, index: usize) {
        if self.wanted {
            self.path.push(format!("[{index}]"));
        }
    }

    fn pop(&mut self) {
        if self.wanted {
            self.path.pop();
        }
    }

    fn report(&mut self, what: &str, key: &str) {
        if !self.wanted || self.errors.len() >= MAX_FINDINGS {
            return;
        }
        let dot = if self.path.is_empty() { "" } else { "." };
        let error = format!("{what} field {:?}", format!("{}{dot}{key}", self.path.concat()));
        if !self.errors.contains(&error) {
            self.errors.push(error);
        }
    }

    pub fn step(&mut self, step: Step<'_>) {
        match step {
            Step::Key(key) => self.push(key),
            Step::Index(index) => self.push_index(index),
            Step::Back => self.pop(),
            Step::Duplicate(key) => self.report("duplicate", key),
        }
    }
}

pub(super) struct Decoder<'a> {
    types: &'a Types,
    lexer: Lexer<'a>,
    pub findings: Findings,
    /// The struct fields that lead to the value at hand: owner and name.
    fields: Vec<(TypeId, &'a str)>,
    /// The first value of a wrong type; reading goes on after it.
    wrong: Option<String>,
    /// The first failure of a type that reads itself, before which `wrong` gives way.
    fatal: Option<String>,
}

impl<'a> Decoder<'a> {
    pub fn new(types: &'a Types, body: &'a [u8], strict: bool) -> Self {
        Self {
            types,
            lexer: Lexer::new(body),
            findings: Findings::new(strict),
            fields: Vec::new(),
            wrong: None,
            fatal: None,
        }
    }

    /// The whole text as one object.
    pub fn run(&mut self, id: TypeId) -> Result<Value, DecodeError> {
        const PREFIX: &str = "couldn't get version/kind; json parse error: ";
        let syntax = |Syntax(text)| DecodeError::Syntax(format!("{PREFIX}{text}"));
        let mut value = Value::Null;
        self.value(id, None, &mut value).map_err(syntax)?;
        self.lexer.end().map_err(syntax)?;
        match self.fatal.take().or_else(|| self.wrong.take()) {
            Some(text) if text.contains(" into Go value of type ") && !value.is_object() => {
                Err(DecodeError::Type(format!("{PREFIX}{text}")))
            }
            Some(text) => Err(DecodeError::Type(text)),
            None if value.is_null() => Ok(Value::Object(Map::new())),
            None => Ok(value),
        }
    }

    fn value(&mut self, id: TypeId, field: Option<&'a Field>, slot: &mut Value) -> Result<(), Syntax> {
        // A type may contain itself.
        self.lexer.kept()?;
        let first = self.lexer.peek()?;
        let types = self.types;
        let shape = types.shape(id);
        if first == b'n' {
            self.lexer.literal("null")?;
            let nil = field.is_some_and(|f| f.pointer && f.ty == id);
            if nil || matches!(shape, Shape::List(_) | Shape::Map(_) | Shape::Any | Shape::Either(..)) {
                *slot = Value::Null;
            }
            return Ok(());
        }
        match shape {
            Shape::Object(_) if first == b'{' => self.object(id, slot),
            Shape::List(element) if first == b'[' => self.list(*element, field, slot),
            Shape::Map(element) if first == b'{' => self.map(*element, field, slot),
            Shape::Either(object, other) => {
                self.value(if first == b'{' { *object } else { *other }, field, slot)
            }
            Shape::Any | Shape::RawExtension | Shape::FieldsV1 => {
                *slot = self.lexer.any(&mut |_| {})?;
                Ok(())
            }
            Shape::Quantity | Shape::Time | Shape::MicroTime | Shape::IntOrString => {
                let start = self.lexer.position();
                self.lexer.skip()?;
                let text = self.lexer.since(start);
                match own(shape, first, text) {
                    Ok(value) => *slot = value,
                    Err(text) => {
                        let text = self.in_context(text);
                        self.fatal.get_or_insert(text);
                    }
                }
                Ok(())
            }
            _ => self.scalar(id, first, slot),
        }
    }

    fn scalar(&mut self, id: TypeId, first: u8, slot: &mut Value) -> Result<(), Syntax> {
        let shape = self.types.shape(id);
        match first {
            b'{' | b'[' => {
                self.lexer.skip()?;
                self.wrong_type(if first == b'{' { "object" } else { "array" }, id);
            }
            b't' | b'f' => {
                let value = first == b't';
                self.lexer.literal(if value { "true" } else { "false" })?;
                match shape {
                    Shape::Bool => *slot = Value::Bool(value),
                    _ => self.wrong_type("bool", id),
                }
            }
            b'"' => {
                let text = self.lexer.string()?;
                match shape {
                    Shape::String => *slot = Value::String(text),
                    Shape::Bytes => self.bytes(text, slot),
                    _ => self.wrong_type("string", id),
                }
            }
            _ => {
                let text = self.lexer.number()?;
                match (shape, text.parse::<i64>()) {
                    (Shape::Int64, Ok(int)) => *slot = int.into(),
                    (Shape::Int32, Ok(int)) if i32::try_from(int).is_ok() => *slot = int.into(),
                    (Shape::Double, _) => *slot = text.parse::<f64>().map_or(Value::Null, Value::from),
                    (Shape::Int64 | Shape::Int32, _) => self.wrong_type(&format!("number {text}"), id),
                    _ => self.wrong_type("number", id),
                }
            }
        }
        Ok(())
    }

    /// Base64 that Go accepts: standard alphabet with padding, line breaks ignored.
    fn bytes(&mut self, text: String, slot: &mut Value) {
        let packed: String = text.chars().filter(|c| !matches!(c, '\r' | '\n')).collect();
        match STANDARD.decode(&packed) {
            Ok(_) => *slot = Value::String(packed),
            Err(error) => {
                let at = match error {
                    base64::DecodeError::InvalidByte(at, _)
                    | base64::DecodeError::InvalidLastSymbol(at, _) => at,
                    _ => packed.len() / 4 * 4,
                };
                let text = format!("illegal base64 data at input byte {at}");
                self.wrong.get_or_insert(text);
            }
        }
    }

    /// Reads a struct; a field that comes twice is read into what is there, as Go does.
    fn object(&mut self, id: TypeId, slot: &mut Value) -> Result<(), Syntax> {
        let mut map = match slot.take() {
            Value::Object(map) => map,
            _ => Map::new(),
        };
        let types = self.types;
        let fields = types.fields(id);
        let preserve = types.get(id).preserve_unknown;
        let mut seen = vec![false; fields.len()];
        let mut more = self.lexer.enter(b'}')?;
        while more {
            let key = self.lexer.key()?;
            match fields.binary_search_by(|f| f.name.as_ref().cmp(&key)) {
                Ok(index) => {
                    let field = &fields[index];
                    if std::mem::replace(&mut seen[index], true) {
                        self.findings.report("duplicate", &key);
                    }
                    self.findings.push(&key);
                    self.fields.push((id, &field.name));
                    let mut value = map.remove(&key).unwrap_or(Value::Null);
                    self.value(field.ty, Some(field), &mut value)?;
                    if !value.is_null() {
                        map.insert(key, value);
                    }
                    self.fields.pop();
                    self.findings.pop();
                }
                Err(_) if preserve => {
                    self.findings.push(&key);
                    let value = self.lexer.any(&mut |step| self.findings.step(step))?;
                    self.findings.pop();
                    map.insert(key, value);
                }
                Err(_) => {
                    self.findings.report("unknown", &key);
                    self.lexer.peek()?;
                    self.lexer.skip()?;
                }
            }
            more = self.lexer.more(b'}')?;
        }
        *slot = Value::Object(map);
        Ok(())
    }

    fn list(&mut self, element: TypeId, field: Option<&'a Field>, slot: &mut Value) -> Result<(), Syntax> {
        let mut list = match slot.take() {
            Value::Array(list) => list,
            _ => Vec::new(),
        };
        let mut length = 0;
        let mut more = self.lexer.enter(b']')?;
        while more {
            if length == list.len() {
                list.push(Value::Null);
            }
            self.findings.push_index(length);
            self.value(element, field, &mut list[length])?;
            self.findings.pop();
            length += 1;
            more = self.lexer.more(b']')?;
        }
        list.truncate(length);
        // An empty list of managers asks to forget them all; the normal form would drop it. One empty entry means the same.
        if length == 0 && self.types.get(element).name == MANAGED_FIELDS_ENTRY {
            list.push(Value::Object(Map::new()));
        }
        *slot = Value::Array(list);
        Ok(())
    }

    fn map(&mut self, element: TypeId, field: Option<&'a Field>, slot: &mut Value) -> Result<(), Syntax> {
        let mut map = match slot.take() {
            Value::Object(map) => map,
            _ => Map::new(),
        };
        let mut seen = std::collections::HashSet::new();
        let mut more = self.lexer.enter(b'}')?;
        while more {
            let key = self.lexer.key()?;
            if self.findings.wanted && !seen.insert(key.clone()) {
                self.findings.report("duplicate", &key);
            }
            self.findings.push(&key);
            let mut value = Value::Null;
            self.value(element, field, &mut value)?;
            self.findings.pop();
            map.insert(key, value);
            more = self.lexer.more(b'}')?;
        }
        *slot = Value::Object(map);
        Ok(())
    }

    fn wrong_type(&mut self, value: &str, id: TypeId) {
        let text =
            format!("json: cannot unmarshal {value} into Go value of type {}", go_name(self.types, id));
        let text = self.in_context(text);
        self.wrong.get_or_insert(text);
    }

    /// Names the struct field instead of a bare value, where there is one.
    fn in_context(&self, text: String) -> String {
        let Some((owner, _)) = self.fields.last() else { return text };
        let owner = self.types.get(*owner).name.rsplit('.').next().unwrap_or_default();
        let path: Vec<&str> = self.fields.iter().map(|(_, name)| *name).collect();
        text.replacen(
            " into Go value of type ",
            &format!(" into Go struct field {owner}.{} of type ", path.join(".")),
            1,
        )
    }
}

/// Go's name of a type.
fn go_name(types: &Types, id: TypeId) -> String {
    let ty = types.get(id);
    match &ty.shape {
        Shape::List(element) => format!("[]{}", go_name(types, *element)),
        Shape::Map(element) => format!("map[string]{}", go_name(types, *element)),
        Shape::String => "string".to_owned(),
        Shape::Bool => "bool".to_owned(),
        Shape::Int32 => "int32".to_owned(),
        Shape::Int64 => "int64".to_owned(),
        Shape::Double => "float64".to_owned(),
        Shape::Bytes => "[]uint8".to_owned(),
        _ => {
            let mut words = ty.name.rsplit('.');
            let name = words.next().unwrap_or_default();
            format!("{}.{name}", words.next().unwrap_or_default())
        }
    }
}

/// The types that read themselves: their canonical JSON, or what Go says.
fn own(shape: &Shape, first: u8, text: &[u8]) -> Result<Value, String> {
    let text = std::str::from_utf8(text).unwrap_or("\u{fffd}");
    let quoted = || serde_json::from_str::<String>(text).map_err(|e| e.to_string());
    let kind = match first {
        b'{' => "object",
        b'[' => "array",
        b't' | b'f' => "bool",
        b'"' => "string",
        _ => "number",
    };
    let wrong =
        |value: &str, ty: &str| Err(format!("json: cannot unmarshal {value} into Go value of type {ty}"));
    match shape {
        Shape::Quantity => {
            let bare = text.strip_prefix('"').and_then(|t| t.strip_suffix('"')).unwrap_or(text);
            quantity::canonical(bare.trim()).map(Value::String).map_err(|e| e.to_string())
        }
        Shape::IntOrString => match first {
            b'"' => quoted().map(Value::String),
            b'-' | b'0'..=b'9' => match text.parse::<i32>() {
                Ok(int) => Ok(int.into()),
                Err(_) => wrong(&format!("number {text}"), "int32"),
            },
            _ => wrong(kind, "int32"),
        },
        _ if first != b'"' => wrong(kind, "string"),
        Shape::MicroTime => time::canonical_micro(&quoted()?).map(Value::String),
        _ => time::canonical(&quoted()?).map(Value::String),
    }
}
