//! Declared types of data: what the fields of an object are, how large values can become, and how JSON of a schema
//! is read. A [`Decl`] is built once from a [`Schema`] and serves the checker, the cost estimate and the evaluation.

use std::sync::Arc;

use indexmap::IndexMap;

use crate::escape::{escape, is_reserved, unescape};
use crate::schema::Schema;
use crate::types::Type;

/// The largest request, which bounds every size that a schema leaves open.
const MAX_REQUEST: i64 = 3 * 1024 * 1024;
const MAX_TIME: i64 = 32;
const MIN_STRING: i64 = 2;
const MIN_BOOL: i64 = 4;
const MIN_NUMBER: i64 = 1;
const MIN_DURATION: i64 = 3;
const DATE: i64 = 12;
const MIN_DATE_TIME: i64 = 21;

/// The declared type of a piece of data.
#[derive(Clone, Debug)]
pub struct Decl {
    pub(crate) shape: Shape,
    pub(crate) nullable: bool,
    /// The most elements, characters or bytes it can have.
    pub(crate) max_elements: i64,
    /// The fewest bytes it takes as JSON.
    pub(crate) min_size: i64,
    /// What is selected from this map by a name is as large as its values may be.
    pub(crate) selects_values: bool,
}

#[derive(Clone, Debug)]
pub(crate) enum Shape {
    /// Anything; its type shows when it is evaluated.
    Dyn,
    /// Data without a schema inside an object that has one: not for expressions.
    Preserved,
    IntOrString,
    Bool,
    Int,
    Double,
    String(Format),
    List {
        items: Arc<Decl>,
        list_type: ListType,
        map_keys: Vec<String>,
    },
    Map {
        values: Arc<Decl>,
    },
    Object {
        name: Arc<str>,
        fields: IndexMap<Box<str>, Field>,
    },
    /// A type that is no data of a schema.
    Other(Type),
}

#[derive(Clone, Debug)]
pub(crate) struct Field {
    pub decl: Arc<Decl>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    None,
    Byte,
    Duration,
    Date,
    DateTime,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ListType {
    Atomic,
    Set,
    Map,
}

impl Decl {
    /// Data of any type.
    pub fn dynamic() -> Self {
        Self::of(Shape::Dyn, 0, 1)
    }

    /// Data that is of this type and nothing more is known of.
    pub fn plain(of: Type) -> Self {
        let (shape, min) = match of {
            Type::Dyn => (Shape::Dyn, 1),
            Type::Bool => (Shape::Bool, MIN_BOOL),
            Type::Int => (Shape::Int, MIN_NUMBER),
            Type::Double => (Shape::Double, MIN_NUMBER),
            Type::String => (Shape::String(Format::None), MIN_STRING),
            other => (Shape::Other(other), MIN_NUMBER),
        };
        Self::of(shape, 0, min)
    }

    /// An object type by hand: its name, and each field's identifier with its type.
    pub fn object<'f>(name: &str, fields: impl IntoIterator<Item = (&'f str, Decl)>) -> Self {
        let fields = fields.into_iter().map(|(name, decl)| (name.into(), Field { decl: Arc::new(decl) }));
        Self::of(Shape::Object { name: name.into(), fields: fields.collect() }, 0, 2)
    }

    /// A list type by hand.
    pub fn list(items: Decl) -> Self {
        let max = MAX_REQUEST / (items.min_size + 1);
        let shape = Shape::List { items: Arc::new(items), list_type: ListType::Atomic, map_keys: Vec::new() };
        Self::of(shape, max, 2)
    }

    /// A map type by hand, from strings.
    pub fn map(values: Decl) -> Self {
        let max = MAX_REQUEST / (values.min_size + 6);
        Self::of(Shape::Map { values: Arc::new(values) }, max, 2)
    }

    /// The same data with so many elements or characters at most.
    #[must_use]
    pub fn at_most(mut self, elements: i64) -> Self {
        self.max_elements = elements;
        self
    }

    /// Tells the cost estimate that what is selected from this map by a name (`map.name`) is as large as its values
    /// may be. Without it such a selection is of unknown size, as in rules of custom resources.
    #[must_use]
    pub fn selecting_values(mut self) -> Self {
        self.selects_values = true;
        self
    }

    fn of(shape: Shape, max_elements: i64, min_size: i64) -> Self {
        Self { shape, nullable: false, max_elements, min_size, selects_values: false }
    }

    /// The declaration of a schema. `name` is what the type of an object at its root is called; those inside are
    /// called by their path from there. The root of a resource always has `apiVersion`, `kind` and
    /// `metadata.name` and `.generateName`.
    pub fn new<'s>(schema: &dyn Schema<'s>, name: &str, resource_root: bool) -> Self {
        let mut decl = build(schema, name, resource_root);
        decl.nullable = schema.nullable();
        decl
    }

    /// The most values of it that a request can hold.
    pub fn max_cardinality(&self) -> u64 {
        (MAX_REQUEST / (self.min_size + 1)) as u64
    }

    /// Whether expressions can use it.
    pub fn is_exposed(&self) -> bool {
        match &self.shape {
            Shape::Preserved => false,
            Shape::List { items, .. } => items.is_exposed(),
            Shape::Map { values } => values.is_exposed(),
            _ => true,
        }
    }

    /// Its type in expressions.
    pub fn type_of(&self) -> Type {
        match &self.shape {
            Shape::Dyn | Shape::Preserved | Shape::IntOrString => Type::Dyn,
            Shape::Bool => Type::Bool,
            Shape::Int => Type::Int,
            Shape::Double => Type::Double,
            Shape::String(Format::None) => Type::String,
            Shape::String(Format::Byte) => Type::Bytes,
            Shape::String(Format::Duration) => Type::Duration,
            Shape::String(Format::Date | Format::DateTime) => Type::Timestamp,
            Shape::List { items, .. } => Type::list(items.type_of()),
            Shape::Map { values } => Type::map(Type::String, values.type_of()),
            Shape::Object { name, .. } => Type::Object(name.clone()),
            Shape::Other(of) => of.clone(),
        }
    }

    pub(crate) fn list_kind(&self) -> ListType {
        match &self.shape {
            Shape::List { list_type, .. } => *list_type,
            _ => ListType::Atomic,
        }
    }

    /// Whether it is an object with named fields.
    pub(crate) fn has_fields(&self) -> bool {
        matches!(&self.shape, Shape::Object { fields, .. } if !fields.is_empty())
    }

    /// The JSON name (`None` if it is the key itself) and declaration that an identifier or key stands for.
    pub(crate) fn entry(&self, key: &str) -> Option<(Option<&str>, &Decl)> {
        match &self.shape {
            Shape::Map { values } => Some((None, values)),
            Shape::Object { fields, .. } => {
                let (_, name, field) = fields.get_full(unescape(key)?.as_str())?;
                Some((Some(name), &field.decl))
            }
            _ => None,
        }
    }

    /// The declaration of a JSON name.
    pub(crate) fn entry_by_name(&self, name: &str) -> Option<&Decl> {
        match &self.shape {
            Shape::Map { values } => Some(values),
            Shape::Object { fields, .. } => fields.get(name).map(|field| &*field.decl),
            _ => None,
        }
    }

    /// What an expression reaches by an identifier, if expressions can use it. Reserved words may be written as
    /// they are.
    pub(crate) fn field(&self, ident: &str) -> Option<&Decl> {
        let Shape::Object { .. } = &self.shape else { return None };
        let (name, decl) = self.entry(ident)?;
        let written = name.and_then(escape).is_some_and(|escaped| escaped == ident);
        (decl.is_exposed() && (written || is_reserved(ident))).then_some(decl)
    }

    /// What it has as elements or values.
    pub(crate) fn element(&self) -> Option<&Decl> {
        match &self.shape {
            Shape::List { items, .. } => Some(items),
            Shape::Map { values } => Some(values),
            _ => None,
        }
    }

    /// Calls `each` for every object type inside.
    pub(crate) fn objects(self: &Arc<Self>, each: &mut dyn FnMut(&Arc<str>, &Arc<Decl>)) {
        match &self.shape {
            Shape::List { items: inner, .. } | Shape::Map { values: inner } => inner.objects(each),
            Shape::Object { name, fields, .. } => {
                each(name, self);
                for field in fields.values() {
                    field.decl.objects(each);
                }
            }
            _ => {}
        }
    }
}

fn build<'s>(schema: &dyn Schema<'s>, name: &str, resource_root: bool) -> Decl {
    if schema.int_or_string() {
        let max = schema.max_length().map_or(MAX_REQUEST - 2, |max| max.max(0) * 4);
        return Decl::of(Shape::IntOrString, max, 1);
    }
    match schema.kind() {
        "array" => {
            let Some(items) = schema.items() else { return Decl::of(Shape::Preserved, 0, 2) };
            let items = Decl::new(&*items, &format!("{name}.@idx"), items.embedded_resource());
            let max = match schema.max_items() {
                Some(max) => max.max(0),
                None => (MAX_REQUEST - 2) / (items.min_size + 1),
            };
            let list_type = match schema.list_type() {
                "set" => ListType::Set,
                "map" => ListType::Map,
                _ => ListType::Atomic,
            };
            let map_keys = schema.list_map_keys();
            Decl::of(Shape::List { items: Arc::new(items), list_type, map_keys }, max, 2)
        }
        "object" => fields(schema, name, resource_root),
        "string" => text(schema),
        "boolean" => Decl::of(Shape::Bool, 0, MIN_BOOL),
        "number" => Decl::of(Shape::Double, 0, MIN_NUMBER),
        "integer" => Decl::of(Shape::Int, 0, MIN_NUMBER),
        _ => Decl::of(Shape::Preserved, 0, 2),
    }
}

fn fields<'s>(schema: &dyn Schema<'s>, name: &str, resource_root: bool) -> Decl {
    if let Some(values) = schema.additional_properties().filter(|_| !resource_root) {
        let values = Decl::new(&*values, &format!("{name}.@elem"), values.embedded_resource());
        let max = match schema.max_properties() {
            Some(max) => max.max(0),
            None => (MAX_REQUEST - 2) / (values.min_size + 6),
        };
        return Decl::of(Shape::Map { values: Arc::new(values) }, max, 2);
    }
    let mut min_size = 2;
    let mut fields = IndexMap::new();
    for (field, of) in schema.properties() {
        let decl = Decl::new(&*of, &format!("{name}.{field}"), of.embedded_resource());
        if decl.is_exposed() && schema.requires(field) && !of.has_default() {
            min_size += field.len() as i64 + decl.min_size + 4;
        }
        fields.insert(field.into(), Field { decl: Arc::new(decl) });
    }
    if resource_root && !has_type_and_meta(&fields) {
        let string =
            || Field { decl: Arc::new(Decl::of(Shape::String(Format::None), MAX_REQUEST - 2, MIN_STRING)) };
        fields.insert("kind".into(), string());
        fields.insert("apiVersion".into(), string());
        let meta = [("name".into(), string()), ("generateName".into(), string())].into_iter().collect();
        let meta = Decl::of(Shape::Object { name: format!("{name}.metadata").into(), fields: meta }, 0, 2);
        fields.insert("metadata".into(), Field { decl: Arc::new(meta) });
    }
    Decl::of(Shape::Object { name: name.into(), fields }, 0, min_size)
}

fn has_type_and_meta(fields: &IndexMap<Box<str>, Field>) -> bool {
    let string = |decl: Option<&Decl>| decl.is_some_and(|decl| matches!(decl.shape, Shape::String(_)));
    let field = |name: &str| fields.get(name).map(|field| &*field.decl);
    let meta = |name: &str| field("metadata").and_then(|meta| meta.entry_by_name(name));
    string(field("kind"))
        && string(field("apiVersion"))
        && string(meta("name"))
        && string(meta("generateName"))
}

fn text<'s>(schema: &dyn Schema<'s>) -> Decl {
    let (format, max, min) = match schema.format() {
        "byte" => {
            let max = schema.max_length().map_or(MAX_REQUEST - 2, |max| max.max(0));
            (Format::Byte, max, MIN_STRING)
        }
        "duration" => (Format::Duration, MAX_TIME, MIN_DURATION),
        "date" => (Format::Date, DATE, DATE),
        "date-time" => (Format::DateTime, MAX_TIME, MIN_DATE_TIME),
        _ => {
            let max = match schema.max_length() {
                Some(max) => max.max(0) * 4,
                None => schema.longest_enum().unwrap_or(MAX_REQUEST - 2),
            };
            (Format::None, max, MIN_STRING)
        }
    };
    Decl::of(Shape::String(format), max, min)
}
