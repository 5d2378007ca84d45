//! Reads the generated type table. A line `T <name> <attributes>` opens a type; a line that starts with a tab is a field:
//! name, type expression and attributes, separated by tabs. Strings are borrowed from the text, not copied.

use std::borrow::Cow;

use serde_json::Value;

use crate::types::{Field, Kind, ListType, Omit, Shape, Str, Type, Types};

/// A line of the table that could not be read.
#[derive(Debug, thiserror::Error)]
#[error("type table, line {line}: {reason}")]
pub struct TableError {
    pub line: usize,
    pub reason: &'static str,
}

impl Types {
    /// The table that `text` holds.
    pub fn parse(text: &'static str) -> Result<Self, TableError> {
        let mut types = Self::new();
        let mut open: Option<Type> = None;
        for (index, line) in text.lines().enumerate() {
            let fail = |reason| TableError { line: index + 1, reason };
            if let Some(rest) = line.strip_prefix('\t') {
                let field = field(&mut types, rest).map_err(fail)?;
                match open.as_mut().map(|t| &mut t.shape) {
                    Some(Shape::Object(fields)) => fields.push(field),
                    _ => return Err(fail("a field outside an object type")),
                }
            } else if let Some(rest) = line.strip_prefix("T ") {
                if let Some(done) = open.take() {
                    types.add(done);
                }
                open = Some(header(&mut types, rest).map_err(fail)?);
            } else if !line.is_empty() && !line.starts_with('#') {
                return Err(fail("neither a type nor a field"));
            }
        }
        if let Some(done) = open.take() {
            types.add(done);
        }
        Ok(types)
    }
}

fn header(types: &mut Types, line: &'static str) -> Result<Type, &'static str> {
    let mut parts = line.split('\t');
    let name = parts.next().filter(|n| !n.is_empty()).ok_or("a type without a name")?;
    let id = types.intern(name);
    let shape = match types.shape(id) {
        Shape::Object(_) => Shape::Object(Vec::new()),
        other => other.clone(),
    };
    let mut ty = Type {
        name: Cow::Borrowed(name),
        shape,
        atomic: false,
        preserve_unknown: false,
        kinds: Vec::new(),
        unions: None,
        published: None,
    };
    for part in parts {
        match part.split_once('=') {
            None if part == "atomic" => ty.atomic = true,
            Some(("any", "")) => ty.shape = Shape::Any,
            Some(("either", names)) => match names.split_once('|') {
                Some((object, other)) => ty.shape = Shape::Either(types.intern(object), types.intern(other)),
                None => return Err("two types are either"),
            },
            Some(("kind", gvk)) => {
                let mut words = gvk.splitn(3, '/').map(Cow::Borrowed);
                match (words.next(), words.next(), words.next()) {
                    (Some(group), Some(version), Some(kind)) => ty.kinds.push(Kind { group, version, kind }),
                    _ => return Err("a kind is group/version/kind"),
                }
            }
            Some(("unions", json)) => ty.unions = Some(json_value(json)?),
            _ => return Err("unknown type attribute"),
        }
    }
    Ok(ty)
}

fn field(types: &mut Types, line: &'static str) -> Result<Field, &'static str> {
    let mut parts = line.split('\t');
    let (Some(name), Some(expression)) = (parts.next(), parts.next()) else {
        return Err("a field needs a name and a type");
    };
    let mut field = Field::new(name, types.intern(expression));
    field.omit = Omit::Never;
    field.go = Cow::Borrowed(go_type(expression));
    for part in parts {
        let (key, value) = part.split_once('=').unwrap_or((part, ""));
        match key {
            "required" => field.required = true,
            "pointer" => field.pointer = true,
            "omitempty" => field.omit = Omit::Empty,
            "omitzero" => field.omit = Omit::Zero,
            "go" => field.go = Cow::Borrowed(value),
            "default" => field.default = Some(json_value(value)?),
            "list" => {
                field.list = Some(match value {
                    "atomic" => ListType::Atomic,
                    "set" => ListType::Set,
                    "map" => ListType::Map,
                    _ => return Err("unknown list type"),
                })
            }
            "keys" => field.list_keys = value.split(',').map(Cow::Borrowed).collect::<Vec<Str>>(),
            "atomic" => field.map_atomic = true,
            "merge" => field.patch_merge = true,
            "retainkeys" => field.patch_retain_keys = true,
            "replace" => field.patch_replace = true,
            "mergekey" => field.merge_key = Some(Cow::Borrowed(value)),
            "proto" => {
                let mut numbers = Vec::new();
                for number in value.split('.') {
                    numbers.push(number.parse::<u32>().map_err(|_| "a protobuf number is not a number")?);
                }
                field.proto = numbers.pop().unwrap_or(0);
                field.proto_via = numbers;
            }
            _ => return Err("unknown field attribute"),
        }
    }
    Ok(field)
}

/// The Go type of a scalar expression; the table says it only where it differs.
pub fn go_type(expression: &str) -> &'static str {
    match expression {
        "string" => "string",
        "boolean" => "bool",
        "integer:int32" => "int32",
        "integer:int64" => "int64",
        "number:double" => "float64",
        "string:byte" => "[]uint8",
        "[]string" => "[]string",
        "map:string" => "map[string]string",
        _ => "",
    }
}

fn json_value(text: &str) -> Result<Value, &'static str> {
    serde_json::from_str(text).map_err(|_| "a value is not JSON")
}
