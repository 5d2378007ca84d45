//! The type table of a structural schema: what server-side apply has to know of a custom resource.

use std::borrow::Cow;

use super::openapi::Published;
use super::{Additional, Schema};
use crate::types::{Field, Kind, ListType, Omit, Shape, Str, Type, TypeId, Types};

/// Adds the types of a kind to a table that holds ObjectMeta already, and returns the kind's. `published` is its
/// definition in the OpenAPI documents.
pub fn types(types: &mut Types, kind: Kind, schema: &Schema, meta: TypeId, published: Published) -> TypeId {
    let id = object(types, schema, &super::openapi::model(&kind), Some(meta));
    let ty = Type { kinds: vec![kind], published: Some(Box::new(published)), ..types.get(id).clone() };
    types.add(ty)
}

/// Adds the type of a kind's list.
pub fn list_type(types: &mut Types, kind: Kind, published: Published) -> TypeId {
    let ty = Type {
        kinds: vec![kind.clone()],
        published: Some(Box::new(published)),
        ..simple(super::openapi::model(&kind), Shape::Object(Vec::new()))
    };
    types.add(ty)
}

fn simple(name: String, shape: Shape) -> Type {
    Type {
        name: Str::from(name),
        shape,
        atomic: false,
        preserve_unknown: false,
        kinds: Vec::new(),
        unions: None,
        published: None,
    }
}

fn any(types: &mut Types, name: &str) -> TypeId {
    // An untyped value is merged field by field, as structured-merge-diff deduces it.
    let ty = Type { preserve_unknown: true, ..simple(format!("{name}#any"), Shape::Any) };
    types.add(ty)
}

fn convert(types: &mut Types, schema: &Schema, name: &str, meta: Option<TypeId>) -> TypeId {
    if schema.int_or_string {
        return types.intern(Cow::Borrowed("io.k8s.apimachinery.pkg.util.intstr.IntOrString"));
    }
    match schema.kind.as_str() {
        "object" => object(types, schema, name, meta),
        "array" => {
            let element = match &schema.items {
                Some(items) => convert(types, items, &format!("{name}[]"), None),
                None => any(types, name),
            };
            let ty = simple(format!("{name}#list"), Shape::List(element));
            types.add(ty)
        }
        "string" => types.intern(Cow::Borrowed("string")),
        "boolean" => types.intern(Cow::Borrowed("boolean")),
        "integer" => types.intern(Cow::Borrowed("integer")),
        "number" => types.intern(Cow::Borrowed("number")),
        _ => any(types, name),
    }
}

fn object(types: &mut Types, schema: &Schema, name: &str, meta: Option<TypeId>) -> TypeId {
    let atomic = schema.map_type.as_deref() == Some("atomic");
    let embedded = meta.is_some() || schema.embedded;
    if schema.properties.is_empty() && !embedded {
        if let Some(Additional::Schema(values)) = &schema.additional {
            let element = convert(types, values, &format!("{name}{{}}"), None);
            let ty = Type { atomic, ..simple(format!("{name}#map"), Shape::Map(element)) };
            return types.add(ty);
        }
        if schema.additional == Some(Additional::Allowed(true)) && !schema.preserves() {
            let element = any(types, name);
            let ty = Type { atomic, ..simple(format!("{name}#map"), Shape::Map(element)) };
            return types.add(ty);
        }
    }
    let mut fields = Vec::new();
    for (key, property) in &schema.properties {
        if embedded && matches!(key.as_str(), "apiVersion" | "kind" | "metadata") {
            continue;
        }
        let ty = convert(types, property, &format!("{name}.{key}"), None);
        fields.push(field(key, ty, property, schema.required.contains(key)));
    }
    if embedded {
        let string = types.intern(Cow::Borrowed("string"));
        fields.extend(["apiVersion", "kind"].map(|key| plain(key.to_owned(), string)));
        let id = meta.or_else(|| types.by_name(OBJECT_META));
        fields.extend(id.map(|id| plain("metadata".to_owned(), id)));
    }
    fields.sort_by(|a, b| a.name.cmp(&b.name));
    let ty = Type {
        atomic,
        preserve_unknown: schema.preserves(),
        ..simple(name.to_owned(), Shape::Object(fields))
    };
    types.add(ty)
}

const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

/// A field that is absent or there, whatever its value.
fn plain(name: String, ty: TypeId) -> Field {
    Field { pointer: true, omit: Omit::Empty, ..Field::new(name, ty) }
}

fn field(key: &str, ty: TypeId, schema: &Schema, required: bool) -> Field {
    let list = match schema.list_type.as_deref() {
        Some("set") => Some(ListType::Set),
        Some("map") => Some(ListType::Map),
        Some(_) => Some(ListType::Atomic),
        None => None,
    };
    Field {
        required,
        list,
        list_keys: schema.list_keys.iter().map(|key| Str::from(key.clone())).collect(),
        map_atomic: schema.map_type.as_deref() == Some("atomic"),
        // Managed fields take the default of a list's key where it is absent.
        default: schema.default.clone(),
        ..plain(key.to_owned(), ty)
    }
}
