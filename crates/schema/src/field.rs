//! Building field errors: paths, and a list that validation adds to.

use std::fmt;

use serde_json::Value;

/// What is wrong with a field, as `Status.details.causes` tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FieldErrorKind {
    Required,
    Invalid,
    Duplicate,
    NotSupported,
    Forbidden,
    TooLong,
    TooMany,
    NotFound,
    TypeInvalid,
    Internal,
}

impl FieldErrorKind {
    /// The `reason` of a cause.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Required => "FieldValueRequired",
            Self::Invalid => "FieldValueInvalid",
            Self::Duplicate => "FieldValueDuplicate",
            Self::NotSupported => "FieldValueNotSupported",
            Self::Forbidden => "FieldValueForbidden",
            Self::TooLong => "FieldValueTooLong",
            Self::TooMany => "FieldValueTooMany",
            Self::NotFound => "FieldValueNotFound",
            Self::TypeInvalid => "FieldValueTypeInvalid",
            Self::Internal => "InternalError",
        }
    }

    /// The words that open the message.
    pub fn words(self) -> &'static str {
        match self {
            Self::Required => "Required value",
            Self::Invalid => "Invalid value",
            Self::Duplicate => "Duplicate value",
            Self::NotSupported => "Unsupported value",
            Self::Forbidden => "Forbidden",
            Self::TooLong => "Too long",
            Self::TooMany => "Too many",
            Self::NotFound => "Not found",
            Self::TypeInvalid => "Invalid value",
            Self::Internal => "Internal error",
        }
    }
}

/// One finding of a validation.
#[derive(Clone, Debug, PartialEq)]
pub struct FieldError {
    pub kind: FieldErrorKind,
    /// The path, `spec.containers[0].name`.
    pub field: String,
    pub value: Value,
    pub detail: String,
    /// The message does not show the value.
    pub hidden: bool,
}

impl FieldError {
    pub fn new(
        kind: FieldErrorKind,
        field: impl Into<String>,
        value: impl Into<Value>,
        detail: impl Into<String>,
    ) -> Self {
        Self { kind, field: field.into(), value: value.into(), detail: detail.into(), hidden: false }
    }

    /// The finding with a message that does not show the value, as that of a whole object would be.
    pub fn hide(mut self) -> Self {
        self.hidden = true;
        self
    }

    /// The message without the field: `Invalid value: "x": why`.
    pub fn body(&self) -> String {
        let words = self.kind.words();
        let detail = |head: String| match self.detail.as_str() {
            "" => head,
            detail => format!("{head}: {detail}"),
        };
        match self.kind {
            FieldErrorKind::Required
            | FieldErrorKind::Forbidden
            | FieldErrorKind::TooLong
            | FieldErrorKind::Internal => detail(words.to_owned()),
            _ if self.hidden => detail(words.to_owned()),
            _ => detail(format!("{words}: {}", go_value(&self.value))),
        }
    }

    /// The whole message: `spec.x: Invalid value: "y": why`.
    pub fn message(&self) -> String {
        format!("{}: {}", self.field, self.body())
    }
}

/// A value as the messages show it: strings quoted, nil as `null`, the rest as JSON.
fn go_value(value: &Value) -> String {
    match value {
        Value::String(s) => format!("{s:?}"),
        other => other.to_string(),
    }
}

/// The path of a field, `spec.containers[0].name`; cheap to extend.
#[derive(Clone, Copy, Debug)]
pub struct Path<'a> {
    parent: Option<&'a Path<'a>>,
    step: Step<'a>,
}

#[derive(Clone, Copy, Debug)]
enum Step<'a> {
    Field(&'a str),
    Index(usize),
    Key(&'a str),
}

impl<'a> Path<'a> {
    /// The path of a top field.
    pub fn new(field: &'a str) -> Self {
        Self { parent: None, step: Step::Field(field) }
    }

    /// A field of this object.
    pub fn child(&'a self, field: &'a str) -> Path<'a> {
        Path { parent: Some(self), step: Step::Field(field) }
    }

    /// An element of this list.
    pub fn index(&'a self, index: usize) -> Path<'a> {
        Path { parent: Some(self), step: Step::Index(index) }
    }

    /// An entry of this map.
    pub fn key(&'a self, key: &'a str) -> Path<'a> {
        Path { parent: Some(self), step: Step::Key(key) }
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            parent.fmt(f)?;
        }
        match self.step {
            Step::Field(field) if self.parent.is_some() => write!(f, ".{field}"),
            Step::Field(field) => f.write_str(field),
            Step::Index(index) => write!(f, "[{index}]"),
            Step::Key(key) => write!(f, "[{key}]"),
        }
    }
}

/// Findings, in the order they were made.
#[derive(Debug, Default)]
pub struct Errors(pub Vec<FieldError>);

impl Errors {
    pub fn new() -> Self {
        Self::default()
    }

    fn push(&mut self, kind: FieldErrorKind, path: &dyn fmt::Display, value: Value, detail: String) {
        self.0.push(FieldError::new(kind, path.to_string(), value, detail));
    }

    pub fn required(&mut self, path: &dyn fmt::Display, detail: impl Into<String>) {
        self.push(FieldErrorKind::Required, path, Value::String(String::new()), detail.into());
    }

    pub fn invalid(&mut self, path: &dyn fmt::Display, value: impl Into<Value>, detail: impl Into<String>) {
        self.push(FieldErrorKind::Invalid, path, value.into(), detail.into());
    }

    /// One finding per message.
    pub fn all_invalid(&mut self, path: &dyn fmt::Display, value: &str, messages: Vec<String>) {
        for message in messages {
            self.invalid(path, value, message);
        }
    }

    pub fn forbidden(&mut self, path: &dyn fmt::Display, detail: impl Into<String>) {
        self.push(FieldErrorKind::Forbidden, path, Value::String(String::new()), detail.into());
    }

    pub fn duplicate(&mut self, path: &dyn fmt::Display, value: impl Into<Value>) {
        self.push(FieldErrorKind::Duplicate, path, value.into(), String::new());
    }

    pub fn not_found(&mut self, path: &dyn fmt::Display, value: impl Into<Value>) {
        self.push(FieldErrorKind::NotFound, path, value.into(), String::new());
    }

    /// The supported values are told in the order given; upstream's sets are sorted.
    pub fn not_supported(&mut self, path: &dyn fmt::Display, value: impl Into<Value>, supported: &[&str]) {
        let quoted: Vec<String> = supported.iter().map(|value| format!("{value:?}")).collect();
        let detail = match quoted.is_empty() {
            true => String::new(),
            false => format!("supported values: {}", quoted.join(", ")),
        };
        self.push(FieldErrorKind::NotSupported, path, value.into(), detail);
    }

    pub fn too_long(&mut self, path: &dyn fmt::Display, length: usize) {
        let bytes = if length == 1 { "byte" } else { "bytes" };
        let detail = format!("may not be more than {length} {bytes}");
        self.push(FieldErrorKind::TooLong, path, "<value omitted>".into(), detail);
    }

    pub fn too_many(&mut self, path: &dyn fmt::Display, actual: usize, most: usize) {
        let items = if most == 1 { "item" } else { "items" };
        let detail = format!("must have at most {most} {items}");
        self.push(FieldErrorKind::TooMany, path, actual.into(), detail);
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
