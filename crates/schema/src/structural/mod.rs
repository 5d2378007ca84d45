//! Structural schemas: the OpenAPI v3 schema of a custom resource as a tree, and what follows from it: pruning, defaults,
//! validation of values, the rules that such a schema must itself obey, the type table of server-side apply, and the
//! published OpenAPI. Follows KEP-2340 and the CustomResourceDefinition reference.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

mod correlate;
mod defaults;
mod formats;
mod lists;
mod meta;
pub mod openapi;
pub mod path;
mod pattern;
mod prune;
mod rules;
mod table;
mod validate;

pub use correlate::Correlated;
pub use defaults::{apply as apply_defaults, prune_defaults, prune_nulls, validate_defaults};
pub use formats::unrecognized as unrecognized_format;
pub use lists::validate as validate_lists;
pub use meta::{Coerce, Meta, coerce, validate as validate_embedded};
pub use pattern::Pattern;
pub use prune::prune;
pub use rules::{Strictness, has_loose_keys, validate as validate_structural, validate_properties};
pub use table::{list_type, types};
pub use validate::{part as validate_part, update as validate_update, value as validate_value};

/// Why a JSON value is no schema that this server can use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SchemaError {
    #[error("{0} must be an object")]
    NoObject(&'static str),
    #[error("OpenAPIV3Schema '{0}' is not supported")]
    Unsupported(&'static str),
    #[error("OpenAPIV3Schema 'items' must be a schema, but is an array")]
    ItemList,
    #[error("internal error: 'x-kubernetes-preserve-unknown-fields' must be true or undefined")]
    Preserve,
}

/// What `additionalProperties` says.
#[derive(Clone, Debug, PartialEq)]
pub enum Additional {
    Allowed(bool),
    Schema(Box<Schema>),
}

impl Additional {
    /// The schema of the values, if there is one.
    pub fn schema(&self) -> Option<&Schema> {
        match self {
            Self::Schema(schema) => Some(schema),
            Self::Allowed(_) => None,
        }
    }
}

/// One rule of `x-kubernetes-validations`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rule {
    pub rule: String,
    pub message: String,
    pub message_expression: String,
    /// `FieldValueInvalid` and the like.
    pub reason: Option<String>,
    pub field_path: String,
    pub optional_old_self: Option<bool>,
    /// As it stands in the definition.
    pub value: Value,
}

/// A schema or a part of one (`JSONSchemaProps`). Strings that are not set are empty, as upstream treats them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Schema {
    /// `type`; may be empty.
    pub kind: String,
    pub format: String,
    pub title: String,
    pub description: String,
    pub nullable: bool,
    pub int_or_string: bool,
    /// `x-kubernetes-preserve-unknown-fields`; `Some(false)` is refused by validation.
    pub preserve: Option<bool>,
    /// `x-kubernetes-embedded-resource`.
    pub embedded: bool,
    pub list_type: Option<String>,
    pub list_keys: Vec<String>,
    pub map_type: Option<String>,
    pub default: Option<Value>,
    pub example: Option<Value>,
    pub external_docs: Option<Value>,
    pub maximum: Option<f64>,
    pub exclusive_maximum: bool,
    pub minimum: Option<f64>,
    pub exclusive_minimum: bool,
    pub multiple_of: Option<f64>,
    pub max_length: Option<i64>,
    pub min_length: Option<i64>,
    pub max_items: Option<i64>,
    pub min_items: Option<i64>,
    pub max_properties: Option<i64>,
    pub min_properties: Option<i64>,
    pub unique_items: bool,
    pub pattern: Pattern,
    pub enumeration: Vec<Value>,
    pub required: Vec<String>,
    pub all_of: Vec<Schema>,
    pub any_of: Vec<Schema>,
    pub one_of: Vec<Schema>,
    pub not: Option<Box<Schema>>,
    pub properties: BTreeMap<String, Schema>,
    pub additional: Option<Additional>,
    pub items: Option<Box<Schema>>,
    /// `items` as an array of schemas, which is refused.
    pub item_list: Vec<Schema>,
    pub rules: Vec<Rule>,
    /// Keywords that JSON schema has and structural schemas have not.
    pub unsupported: Unsupported,
}

/// Keywords that are refused; each is here so that the refusal can name it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Unsupported {
    pub id: bool,
    pub schema: bool,
    pub reference: bool,
    pub additional_items: bool,
    pub pattern_properties: bool,
    pub definitions: BTreeMap<String, Schema>,
    pub dependencies: bool,
}

impl Schema {
    /// Reads the JSON form. What the decoder of definitions has let through always reads.
    pub fn read(value: &Value) -> Result<Self, SchemaError> {
        let map = value.as_object().ok_or(SchemaError::NoObject("a schema"))?;
        let text = |key: &str| map.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let optional = |key: &str| map.get(key).and_then(Value::as_str).map(str::to_owned);
        let flag = |key: &str| map.get(key).and_then(Value::as_bool).unwrap_or(false);
        let number = |key: &str| map.get(key).and_then(Value::as_f64);
        let integer = |key: &str| map.get(key).and_then(Value::as_i64);
        let any = |key: &str| map.get(key).filter(|v| !v.is_null()).cloned();
        let texts = |key: &str| -> Vec<String> {
            let list = map.get(key).and_then(Value::as_array);
            list.into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect()
        };
        let (items, item_list) = match map.get("items") {
            Some(Value::Array(list)) => (None, list.iter().map(Self::read).collect::<Result<_, _>>()?),
            Some(one @ Value::Object(_)) => (Some(Box::new(Self::read(one)?)), Vec::new()),
            _ => (None, Vec::new()),
        };
        let additional = match map.get("additionalProperties") {
            Some(Value::Bool(allowed)) => Some(Additional::Allowed(*allowed)),
            Some(schema @ Value::Object(_)) => Some(Additional::Schema(Box::new(Self::read(schema)?))),
            _ => None,
        };
        let present = |key: &str| match map.get(key) {
            None | Some(Value::Null) => false,
            Some(Value::Object(map)) => !map.is_empty(),
            Some(Value::String(text)) => !text.is_empty(),
            Some(_) => true,
        };
        Ok(Self {
            kind: text("type"),
            format: text("format"),
            title: text("title"),
            description: text("description"),
            nullable: flag("nullable"),
            int_or_string: flag("x-kubernetes-int-or-string"),
            preserve: map.get("x-kubernetes-preserve-unknown-fields").and_then(Value::as_bool),
            embedded: flag("x-kubernetes-embedded-resource"),
            list_type: optional("x-kubernetes-list-type"),
            list_keys: texts("x-kubernetes-list-map-keys"),
            map_type: optional("x-kubernetes-map-type"),
            default: any("default"),
            example: any("example"),
            external_docs: any("externalDocs"),
            maximum: number("maximum"),
            exclusive_maximum: flag("exclusiveMaximum"),
            minimum: number("minimum"),
            exclusive_minimum: flag("exclusiveMinimum"),
            multiple_of: number("multipleOf"),
            max_length: integer("maxLength"),
            min_length: integer("minLength"),
            max_items: integer("maxItems"),
            min_items: integer("minItems"),
            max_properties: integer("maxProperties"),
            min_properties: integer("minProperties"),
            unique_items: flag("uniqueItems"),
            pattern: Pattern::new(&text("pattern")),
            enumeration: map.get("enum").and_then(Value::as_array).cloned().unwrap_or_default(),
            required: texts("required"),
            all_of: list(map, "allOf")?,
            any_of: list(map, "anyOf")?,
            one_of: list(map, "oneOf")?,
            not: map.get("not").filter(|v| v.is_object()).map(Self::read).transpose()?.map(Box::new),
            properties: named(map, "properties")?,
            additional,
            items,
            item_list,
            rules: rules_of(map),
            unsupported: Unsupported {
                id: present("id"),
                schema: present("$schema"),
                reference: present("$ref"),
                additional_items: map.get("additionalItems").is_some_and(|v| !v.is_null()),
                pattern_properties: present("patternProperties"),
                definitions: named(map, "definitions")?,
                dependencies: present("dependencies"),
            },
        })
    }

    /// Why the schema cannot be structural at all, before its rules are looked at.
    pub fn unsupported(&self) -> Result<(), SchemaError> {
        let u = &self.unsupported;
        for (set, name) in [
            (u.id, "id"),
            (u.schema, "schema"),
            (u.reference, "$ref"),
            (u.pattern_properties, "patternProperties"),
            (u.dependencies, "dependencies"),
            (u.additional_items, "additionalItems"),
            (!u.definitions.is_empty(), "definitions"),
        ] {
            if set {
                return Err(SchemaError::Unsupported(name));
            }
        }
        if !self.item_list.is_empty() {
            return Err(SchemaError::ItemList);
        }
        if self.preserve == Some(false) {
            return Err(SchemaError::Preserve);
        }
        self.children().try_for_each(Self::unsupported)
    }

    /// The schemas directly below, in any position.
    pub fn children(&self) -> impl Iterator<Item = &Schema> {
        let lists = [&self.all_of, &self.any_of, &self.one_of, &self.item_list];
        lists
            .into_iter()
            .flatten()
            .chain(self.not.as_deref())
            .chain(self.items.as_deref())
            .chain(self.properties.values())
            .chain(self.additional.as_ref().and_then(Additional::schema))
            .chain(self.unsupported.definitions.values())
    }

    /// Whether the schema or one below has a property.
    pub fn any(&self, test: &dyn Fn(&Schema) -> bool) -> bool {
        test(self) || self.children().any(|child| child.any(test))
    }

    /// Unknown fields are kept.
    pub fn preserves(&self) -> bool {
        self.preserve == Some(true)
    }

    /// The same schema as the root of a resource: kind, version and metadata are there without being named.
    pub fn as_resource(&self) -> std::borrow::Cow<'_, Self> {
        if self.embedded {
            return std::borrow::Cow::Borrowed(self);
        }
        std::borrow::Cow::Owned(Self { embedded: true, ..self.clone() })
    }
}

fn list(map: &Map<String, Value>, key: &str) -> Result<Vec<Schema>, SchemaError> {
    map.get(key).and_then(Value::as_array).into_iter().flatten().map(Schema::read).collect()
}

fn named(map: &Map<String, Value>, key: &str) -> Result<BTreeMap<String, Schema>, SchemaError> {
    let entries = map.get(key).and_then(Value::as_object).into_iter().flatten();
    entries.map(|(name, value)| Ok((name.clone(), Schema::read(value)?))).collect()
}

fn rules_of(map: &Map<String, Value>) -> Vec<Rule> {
    let list = map.get("x-kubernetes-validations").and_then(Value::as_array);
    let read = |value: &Value| {
        let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        Rule {
            rule: text("rule"),
            message: text("message"),
            message_expression: text("messageExpression"),
            reason: value.get("reason").and_then(Value::as_str).map(str::to_owned),
            field_path: text("fieldPath"),
            optional_old_self: value.get("optionalOldSelf").and_then(Value::as_bool),
            value: value.clone(),
        }
    };
    list.into_iter().flatten().map(read).collect()
}
