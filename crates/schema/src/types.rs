//! The type table: every object, list, map and scalar type by number, with what the API machinery has to know of each field.
//! Built-in kinds are read from the generated table; custom resources build a table of their own with [`Types::add`].

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::OnceLock;

use serde_json::Value;

use crate::proto::Layout;

/// A string that is usually a slice of the built-in table and sometimes owned (custom resources).
pub type Str = Cow<'static, str>;

/// A type's number in its [`Types`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TypeId(pub u32);

/// What a value of a type looks like.
#[derive(Clone, Debug, PartialEq)]
pub enum Shape {
    /// An object with declared fields, sorted by name.
    Object(Vec<Field>),
    /// A list of one element type.
    List(TypeId),
    /// An object with free keys and one value type.
    Map(TypeId),
    String,
    Bool,
    Int32,
    Int64,
    Double,
    /// Base64 in JSON, raw in protobuf.
    Bytes,
    Quantity,
    IntOrString,
    Time,
    MicroTime,
    /// The set of owned fields in a managedFields entry.
    FieldsV1,
    /// An object of any kind, kept as it is.
    RawExtension,
    /// Any JSON value; protobuf carries its JSON text.
    Any,
    /// An object of the first type, or a value of the second, which is a list or a boolean.
    Either(TypeId, TypeId),
}

/// One type of the table.
#[derive(Clone, Debug, PartialEq)]
pub struct Type {
    /// The OpenAPI name; for lists, maps and scalars the expression that names them (`[]string`, `map:string`).
    pub name: Str,
    pub shape: Shape,
    /// Server-side apply owns a value of this type as a whole.
    pub atomic: bool,
    /// Unknown fields are kept (`x-kubernetes-preserve-unknown-fields`).
    pub preserve_unknown: bool,
    /// The kinds served with this type.
    pub kinds: Vec<Kind>,
    /// `x-kubernetes-unions`, verbatim.
    pub unions: Option<Value>,
    /// The definition in the OpenAPI documents, where it is not made from the shape (custom resources).
    pub published: Option<Box<crate::structural::openapi::Published>>,
}

/// Group, version and kind.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Kind {
    pub group: Str,
    pub version: Str,
    pub kind: Str,
}

/// When the encoder leaves a field out, after Go's struct tags.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Omit {
    /// Always written.
    #[default]
    Never,
    /// `omitempty`: false, 0, "", nil, and empty lists and maps are left out; structs never are.
    Empty,
    /// `omitzero`: also a zero struct or time is left out.
    Zero,
}

/// How server-side apply treats a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ListType {
    #[default]
    Atomic,
    Set,
    Map,
}

/// One field of an object.
#[derive(Clone, Debug, PartialEq)]
pub struct Field {
    pub name: Str,
    pub ty: TypeId,
    /// The Go type, as error messages name it (`int32`, `v1.ObjectMeta`).
    pub go: Str,
    pub required: bool,
    /// The Go field is a pointer: absent and zero are different things.
    pub pointer: bool,
    pub omit: Omit,
    /// OpenAPI's default.
    pub default: Option<Value>,
    pub list: Option<ListType>,
    pub list_keys: Vec<Str>,
    /// `x-kubernetes-map-type: atomic` on this field.
    pub map_atomic: bool,
    /// Strategic merge: `merge`.
    pub patch_merge: bool,
    /// Strategic merge: `retainKeys`.
    pub patch_retain_keys: bool,
    /// Strategic merge: `replace`, said explicitly.
    pub patch_replace: bool,
    pub merge_key: Option<Str>,
    /// Protobuf field number; 0 if protobuf does not carry the field.
    pub proto: u32,
    /// Numbers of the messages the field lies inside, outermost first.
    pub proto_via: Vec<u32>,
}

impl Field {
    /// A plain optional field; the caller sets what differs.
    pub fn new(name: impl Into<Str>, ty: TypeId) -> Self {
        Self {
            name: name.into(),
            ty,
            go: Cow::Borrowed(""),
            required: false,
            pointer: false,
            omit: Omit::Empty,
            default: None,
            list: None,
            list_keys: Vec::new(),
            map_atomic: false,
            patch_merge: false,
            patch_retain_keys: false,
            patch_replace: false,
            merge_key: None,
            proto: 0,
            proto_via: Vec::new(),
        }
    }
}

/// A table of types.
#[derive(Debug, Default)]
pub struct Types {
    types: Vec<Type>,
    names: HashMap<Str, TypeId>,
    kinds: HashMap<Kind, TypeId>,
    pub(crate) layouts: OnceLock<Vec<Layout>>,
}

impl Types {
    /// An empty table.
    pub fn new() -> Self {
        Self::default()
    }

    /// The type of that OpenAPI name or type expression.
    pub fn by_name(&self, name: &str) -> Option<TypeId> {
        self.names.get(name).copied()
    }

    /// The type that serves a kind; the core group is `""`.
    pub fn by_gvk(&self, group: &str, version: &str, kind: &str) -> Option<TypeId> {
        let key = Kind {
            group: Cow::Owned(group.to_owned()),
            version: Cow::Owned(version.to_owned()),
            kind: Cow::Owned(kind.to_owned()),
        };
        self.kinds.get(&key).copied()
    }

    /// The type behind a number of this table.
    pub fn get(&self, id: TypeId) -> &Type {
        &self.types[id.0 as usize]
    }

    /// The shape behind a number of this table.
    pub fn shape(&self, id: TypeId) -> &Shape {
        &self.get(id).shape
    }

    /// The fields of an object type, sorted by name; empty for any other type.
    pub fn fields(&self, id: TypeId) -> &[Field] {
        match self.shape(id) {
            Shape::Object(fields) => fields,
            _ => &[],
        }
    }

    /// A field of an object type.
    pub fn field(&self, id: TypeId, name: &str) -> Option<&Field> {
        let fields = self.fields(id);
        fields.binary_search_by(|f| f.name.as_ref().cmp(name)).ok().map(|i| &fields[i])
    }

    /// The element type of a list or map.
    pub fn element(&self, id: TypeId) -> Option<TypeId> {
        match self.shape(id) {
            Shape::List(element) | Shape::Map(element) => Some(*element),
            _ => None,
        }
    }

    /// All types with their numbers.
    pub fn iter(&self) -> impl Iterator<Item = (TypeId, &Type)> {
        self.types.iter().enumerate().map(|(i, t)| (TypeId(i as u32), t))
    }

    /// Adds a type; a name already present is given the new shape, so that recursive types can be declared first.
    pub fn add(&mut self, ty: Type) -> TypeId {
        let id = match self.names.get(&ty.name) {
            Some(id) => *id,
            None => {
                let id = TypeId(u32::try_from(self.types.len()).expect("fewer than 2^32 types"));
                self.names.insert(ty.name.clone(), id);
                self.types.push(ty.clone());
                id
            }
        };
        for kind in &ty.kinds {
            self.kinds.insert(kind.clone(), id);
        }
        self.types[id.0 as usize] = ty;
        self.layouts = OnceLock::new();
        id
    }

    /// Copies a type of another table with all that it needs; its number here.
    pub fn import(&mut self, other: &Self, id: TypeId) -> TypeId {
        let mut ty = other.get(id).clone();
        if let Some(known) = self.by_name(&ty.name) {
            return known;
        }
        // The name is taken first, since types may refer to themselves.
        let place = Type { shape: Shape::Any, kinds: Vec::new(), ..ty.clone() };
        self.add(place);
        ty.shape = match ty.shape {
            Shape::List(element) => Shape::List(self.import(other, element)),
            Shape::Map(element) => Shape::Map(self.import(other, element)),
            Shape::Either(one, two) => Shape::Either(self.import(other, one), self.import(other, two)),
            Shape::Object(fields) => {
                let copy = |field: Field| Field { ty: self.import(other, field.ty), ..field };
                Shape::Object(fields.into_iter().map(copy).collect())
            }
            shape => shape,
        };
        self.add(ty)
    }

    /// The number of the type that an expression names (`string`, `[]X`, `map:X`, a type's name), added if it is new.
    /// An unknown name becomes an object without fields, to be filled by [`Types::add`].
    pub fn intern(&mut self, expression: impl Into<Str>) -> TypeId {
        let name: Str = expression.into();
        if let Some(id) = self.by_name(&name) {
            return id;
        }
        let rest = |prefix: usize| match &name {
            Cow::Borrowed(s) => Cow::Borrowed(&s[prefix..]),
            Cow::Owned(s) => Cow::Owned(s[prefix..].to_owned()),
        };
        let shape = if name.starts_with("[]") {
            Shape::List(self.intern(rest(2)))
        } else if name.starts_with("map:") {
            Shape::Map(self.intern(rest(4)))
        } else {
            scalar(&name).unwrap_or(Shape::Object(Vec::new()))
        };
        self.add(Type {
            name,
            shape,
            atomic: false,
            preserve_unknown: false,
            kinds: Vec::new(),
            unions: None,
            published: None,
        })
    }
}

fn scalar(name: &str) -> Option<Shape> {
    Some(match name {
        "string" => Shape::String,
        "boolean" => Shape::Bool,
        "integer:int32" => Shape::Int32,
        "integer:int64" | "integer" => Shape::Int64,
        "number:double" | "number" => Shape::Double,
        "string:byte" => Shape::Bytes,
        "any" => Shape::Any,
        "io.k8s.apimachinery.pkg.api.resource.Quantity" => Shape::Quantity,
        "io.k8s.apimachinery.pkg.util.intstr.IntOrString" => Shape::IntOrString,
        "io.k8s.apimachinery.pkg.apis.meta.v1.Time" => Shape::Time,
        "io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime" => Shape::MicroTime,
        "io.k8s.apimachinery.pkg.apis.meta.v1.FieldsV1" => Shape::FieldsV1,
        "io.k8s.apimachinery.pkg.runtime.RawExtension" => Shape::RawExtension,
        _ => return None,
    })
}
