//! The rules of one version of a custom kind, and its row in the resource table.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::Timestamp;
use schema::structural::path::{JsonPath, Way};
use schema::structural::{self, Coerce, Meta, Schema};
use schema::{DecodeError, Kind, Str, TypeId, Types};
use serde_json::Value;

use super::meta::object_meta;
use super::rules::Rules;
use super::{Definition, Version};
use crate::field::Errors;
use crate::kinds::json::{Read, Write};
use crate::kinds::{human_duration, prepare};
use crate::{Behavior, Column, Custom, FieldError, Findings, Resource, ScalePaths, Subresource, names};

/// One version: its row, and the means to bring stored objects into it.
pub struct Served {
    pub resource: Arc<Resource>,
    pub rules: Arc<dyn Shape>,
    pub storage: bool,
    pub served: bool,
    pub deprecation: Option<String>,
}

/// What reading and converting have to do with an object of a version.
pub trait Shape: Send + Sync {
    /// Prunes an object from the store, tolerating what an older server has let through.
    fn prune_stored(&self, object: &mut Value);

    /// Fills in the defaults of the version.
    fn fill(&self, object: &mut Value);

    /// Prunes a converted object; an error if its embedded metadata is none.
    fn prune_converted(&self, object: &mut Value) -> Result<(), FieldError>;
}

struct Row {
    group: String,
    version: String,
    kind: String,
    schema: Schema,
    status_schema: Option<Schema>,
    types: Arc<Types>,
    meta: TypeId,
    preserve: bool,
    status: bool,
    scale: Option<ScalePaths>,
    /// Those after the name, with the type of their cells.
    columns: Vec<(Option<JsonPath>, String)>,
    selectable: Vec<(String, Way)>,
    rules: Option<Rules>,
}

const PACKAGE: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.";
const NEEDED: [&str; 6] = ["ObjectMeta", "ListMeta", "DeleteOptions", "Patch", "Status", "WatchEvent"];

fn strings(list: &[String]) -> Vec<Str> {
    list.iter().map(|text| Str::from(text.clone())).collect()
}

fn verbs(list: &[&'static str]) -> Vec<Str> {
    list.iter().map(|verb| Str::Borrowed(*verb)).collect()
}

/// The versions of a definition whose names have been accepted, with one type table for all of them.
pub fn serve(definition: &Definition) -> Vec<Served> {
    let built_in = crate::types();
    let mut types = Types::new();
    for name in NEEDED {
        if let Some(id) = built_in.by_name(&format!("{PACKAGE}{name}")) {
            types.import(built_in, id);
        }
    }
    let scale = built_in.by_name("io.k8s.api.autoscaling.v1.Scale").map(|id| types.import(built_in, id));
    let meta = types.by_name(&format!("{PACKAGE}ObjectMeta")).unwrap_or(TypeId(0));
    let names = &definition.accepted;
    let mut ids = Vec::new();
    for version in &definition.versions {
        let of = |kind: &str| Kind {
            group: definition.group.clone().into(),
            version: version.name.clone().into(),
            kind: kind.to_owned().into(),
        };
        let kind = of(&names.kind);
        let shown = structural_only(version);
        let published = structural::openapi::kind(&kind, shown, definition.preserve, &version.selectable);
        let list = structural::openapi::list(&kind, &names.list_kind, &names.plural, &version.selectable);
        let any = Schema { preserve: Some(true), kind: "object".to_owned(), ..Schema::default() };
        let schema = version.schema.as_ref().filter(|_| !definition.preserve).unwrap_or(&any);
        let id = structural::types(&mut types, kind, schema, meta, published);
        ids.push((id, structural::list_type(&mut types, of(&names.list_kind), list)));
    }
    let types = Arc::new(types);
    let built = definition.versions.iter().zip(ids);
    built.map(|(version, ids)| one(definition, version, &types, meta, ids, scale)).collect()
}

/// The schema as it is published: only if it is structural.
fn structural_only(version: &Version) -> &Value {
    static NULL: Value = Value::Null;
    match &version.schema {
        Some(schema) if structural::validate_structural("", schema).is_empty() => &version.raw,
        _ => &NULL,
    }
}

fn one(
    definition: &Definition,
    version: &Version,
    types: &Arc<Types>,
    meta: TypeId,
    (type_id, list_type_id): (TypeId, TypeId),
    scale_id: Option<TypeId>,
) -> Served {
    let names = &definition.accepted;
    let mut schema = version.schema.clone().unwrap_or_else(|| Schema {
        kind: "object".to_owned(),
        preserve: Some(true),
        ..Schema::default()
    });
    let check: &dyn Fn(&Value, &str) -> Vec<FieldError> = &object_meta;
    structural::prune_defaults(&mut schema, Meta { types, id: meta, check });
    let mut columns = vec![(
        Column {
            name: "Name".into(),
            kind: "string".into(),
            format: "name".into(),
            description: "What the object is called; no other one beside it has the same name.".into(),
            priority: 0,
        },
        None,
    )];
    for (column, path) in &version.columns {
        // A path that cannot be read finds nothing; validation lets it through, and the kind has to be served.
        columns.push((column.clone(), JsonPath::parse(path).ok()));
    }
    if version.columns.is_empty() {
        let age = Column {
            name: "Age".into(),
            kind: "date".into(),
            format: "".into(),
            description: "How long ago the object was created.".into(),
            priority: 0,
        };
        columns.push((age, JsonPath::parse(".metadata.creationTimestamp").ok()));
    }
    let mut subresources = Vec::new();
    let own = |name: &'static str| Subresource {
        name: name.into(),
        group: definition.group.clone().into(),
        version: version.name.clone().into(),
        kind: names.kind.clone().into(),
        verbs: verbs(&["get", "patch", "update"]),
        type_id: Some(type_id),
    };
    if version.status {
        subresources.push(own("status"));
    }
    if version.scale.is_some() {
        subresources.push(Subresource {
            group: "autoscaling".into(),
            version: "v1".into(),
            kind: "Scale".into(),
            type_id: scale_id,
            ..own("scale")
        });
    }
    let row = Arc::new(Row {
        group: definition.group.clone(),
        version: version.name.clone(),
        kind: names.kind.clone(),
        status_schema: schema.properties.get("status").cloned(),
        rules: Rules::compile(&schema),
        schema,
        types: types.clone(),
        meta,
        preserve: definition.preserve || version.schema.is_none(),
        status: version.status,
        scale: version.scale.clone(),
        columns: columns
            .iter()
            .skip(1)
            .map(|(column, path)| (path.clone(), column.kind.to_string()))
            .collect(),
        selectable: version
            .selectable
            .iter()
            .map(|path| {
                let label = path.trim_start_matches('.').to_owned();
                let way = label.split('.').map(str::to_owned).collect();
                (label, way)
            })
            .collect(),
    });
    let resource = Resource {
        group: definition.group.clone().into(),
        version: version.name.clone().into(),
        kind: names.kind.clone().into(),
        plural: definition.names.plural.clone().into(),
        singular: names.singular.clone().into(),
        short_names: strings(&names.short_names),
        categories: strings(&names.categories),
        namespaced: definition.namespaced,
        verbs: verbs(&["delete", "deletecollection", "get", "list", "patch", "create", "update", "watch"]),
        subresources,
        columns: columns.into_iter().map(|(column, _)| column).collect(),
        types: types.clone(),
        type_id,
        list_type_id: Some(list_type_id),
        strategy: Behavior::Custom(row.clone()),
    };
    Served {
        resource: Arc::new(resource),
        rules: row,
        storage: version.storage,
        served: version.served,
        deprecation: version.deprecation.clone(),
    }
}

impl Row {
    fn meta(&self) -> Meta<'_> {
        Meta { types: &self.types, id: self.meta, check: &object_meta }
    }

    /// Prunes all but the object's own metadata, and brings that of embedded resources into form.
    fn prune(&self, object: &mut Value, how: Coerce) -> Result<Vec<String>, FieldError> {
        let mut found = Vec::new();
        if !self.preserve {
            found = structural::prune(object, &self.schema, true, how.wanted);
            structural::prune_nulls(object, Some(&self.schema));
        }
        found.extend(structural::coerce(object, &self.schema, false, "", self.meta(), how)?);
        Ok(found)
    }

    fn scale_errors(&self, object: &Value, spec: bool, status: bool) -> Vec<FieldError> {
        let mut errors = Errors::new();
        let Some(scale) = &self.scale else { return errors.0 };
        let paths = [(spec, &scale.spec_replicas), (status, &scale.status_replicas)];
        for (_, pointer) in paths.into_iter().filter(|(on, _)| *on) {
            let path = pointer.replace('/', ".");
            match object.pointer(pointer) {
                None => {}
                Some(value) => match value.as_i64() {
                    None => {
                        let detail = format!(
                            "{path} accessor error: {value} is of the type {}, expected int64",
                            go(value)
                        );
                        errors.invalid(&path, 0, detail);
                    }
                    Some(count) if count < 0 => {
                        errors.invalid(&path, count, "should be a non-negative integer");
                    }
                    Some(count) if count > i64::from(i32::MAX) => {
                        errors.invalid(&path, count, format!("should be less than or equal to {}", i32::MAX));
                    }
                    Some(_) => {}
                },
            }
        }
        if let Some(value) = object.pointer(&scale.selector).filter(|_| status && !scale.selector.is_empty())
            && !value.is_string()
        {
            let path = scale.selector.replace('/', ".");
            let detail =
                format!("{path} accessor error: {value} is of the type {}, expected string", go(value));
            errors.invalid(&path, "", detail);
        }
        errors.0
    }

    fn embedded(&self, object: &Value) -> Vec<FieldError> {
        structural::validate_embedded(object, &self.schema, false, "", self.meta())
    }

    fn lists(&self, object: &Value) -> Vec<FieldError> {
        structural::validate_lists(object, &self.schema, "")
    }

    /// What is repeated now and was not before.
    fn new_lists(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        let found = self.lists(new);
        if !found.is_empty() && self.lists(old).is_empty() { found } else { Vec::new() }
    }

    fn ruled(&self, errors: Vec<FieldError>, new: &Value, old: Option<&Value>) -> Findings {
        let ruled = self.rules.as_ref().map(|rules| rules.after(&errors, new, old));
        let mut found = Findings::from(errors);
        found.extend(ruled.unwrap_or_default());
        found
    }
}

/// What is to be said of a new finalizer: custom resources accept any, but one should name whose it is.
fn finalizer_warnings(finalizer: &str) -> Vec<String> {
    const STANDARD: [&str; 3] = ["orphan", "foregroundDeletion", "kubernetes"];
    let told = |what: &str| format!("metadata.finalizers: {finalizer:?}: {what}");
    let mut all: Vec<String> = names::qualified_name(finalizer).iter().map(|what| told(what)).collect();
    if !finalizer.contains('/') && !STANDARD.contains(&finalizer) {
        let path = if finalizer.contains('.') { " including a path (/)" } else { "" };
        all.push(told(&format!(
            "prefer a domain-qualified finalizer name{path} to avoid accidental conflicts with other finalizer writers"
        )));
    }
    all
}

/// A whole float is an integer from the moment that it is written down, as Go writes it.
fn whole_numbers(value: &mut Value) {
    match value {
        Value::Number(number) if number.is_f64() => {
            let float = number.as_f64().unwrap_or(f64::NAN);
            if float.fract() == 0.0 && float.abs() < 9.2e18 {
                *value = (float as i64).into();
            }
        }
        Value::Array(list) => list.iter_mut().for_each(whole_numbers),
        Value::Object(map) => map.iter_mut().for_each(|(_, value)| whole_numbers(value)),
        _ => {}
    }
}

/// The Go type of a JSON value, as accessors name it.
fn go(value: &Value) -> &'static str {
    match value {
        Value::Null => "<nil>",
        Value::Bool(_) => "bool",
        Value::Number(n) if n.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}

impl Shape for Row {
    fn prune_stored(&self, object: &mut Value) {
        if let Some(metadata) = object.get_mut("metadata") {
            *metadata = self.meta().lenient(metadata);
        }
        drop(self.prune(object, Coerce { lenient: true, wanted: false }));
        let metadata = object.child("metadata");
        if metadata.at("generation").as_i64().unwrap_or(0) == 0 {
            metadata.put("generation", 1);
        }
    }

    fn fill(&self, object: &mut Value) {
        structural::apply_defaults(object, &self.schema);
    }

    fn prune_converted(&self, object: &mut Value) -> Result<(), FieldError> {
        self.prune(object, Coerce::default()).map(drop)
    }
}

impl Custom for Row {
    fn shape(&self, object: &mut Value, wanted: bool) -> Result<Vec<String>, DecodeError> {
        let wrong = |error: FieldError| DecodeError::Type(error.message());
        if !object.is_object() {
            let found = go(object);
            let text =
                format!("json: cannot unmarshal {found} into Go value of type map[string]interface {{}}");
            return Err(DecodeError::Type(text));
        }
        whole_numbers(object);
        let mut found = Vec::new();
        if let Some(metadata) = object.get_mut("metadata") {
            let (normal, unknown) = self.meta().normal(metadata, wanted)?;
            *metadata = normal;
            found.extend(unknown.into_iter().map(|path| format!("metadata.{path}")));
        }
        for key in ["apiVersion", "kind"] {
            if let Some(value) = object.get(key).filter(|v| !v.is_string()) {
                let text =
                    format!(".{key} accessor error: {value} is of the type {}, expected string", go(value));
                return Err(DecodeError::Type(text));
            }
        }
        found.extend(self.prune(object, Coerce { lenient: false, wanted }).map_err(wrong)?);
        Ok(found.iter().map(|path| format!("unknown field {path:?}")).collect())
    }

    fn default(&self, object: &mut Value) {
        structural::apply_defaults(object, &self.schema);
    }

    fn normalize(&self, object: &mut Value) {
        let metadata = object.child("metadata");
        schema::normalize(&self.types, self.meta, metadata);
        if metadata.at("creationTimestamp").is_null() {
            metadata.take_key("creationTimestamp");
        }
    }

    fn prepare_create(&self, object: &mut Value) {
        if self.status {
            object.take_key("status");
        }
        prepare::set_generation(object, Some(1));
    }

    fn prepare_update(&self, new: &mut Value, old: &Value) {
        if self.status {
            crate::kinds::json::keep(new, old, "status");
        }
        let rest = |object: &Value| {
            let mut object = object.clone();
            object.take_key("metadata");
            object
        };
        prepare::count(new, old, rest(new) == rest(old));
    }

    fn prepare_status(&self, new: &mut Value, old: &Value) {
        let status = new.take_key("status");
        let managed = new.at("metadata").at("managedFields").clone();
        let version = new.at("metadata").at("resourceVersion").clone();
        *new = old.clone();
        new.take_key("status");
        if let Some(status) = status {
            new.put("status", status);
        }
        let metadata = new.child("metadata");
        metadata.put("managedFields", managed);
        metadata.put("resourceVersion", version);
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = structural::validate_value(object, &self.schema, "");
        errors.extend(self.scale_errors(object, true, true));
        errors.extend(self.embedded(object));
        errors.extend(self.lists(object));
        // Nothing is let be where there is no old value.
        self.ruled(errors, object, None).errors
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Findings {
        let mut errors = self.new_lists(new, old);
        errors.extend(structural::validate_update(new, old, &self.schema));
        errors.extend(self.scale_errors(new, true, true));
        errors.extend(self.embedded(new));
        self.ruled(errors, new, Some(old))
    }

    fn validate_status(&self, new: &Value, old: &Value) -> Findings {
        let mut errors = self.new_lists(new, old);
        if let (Some(schema), Some(status)) = (&self.status_schema, new.get("status")) {
            let before = old.get("status").unwrap_or(&Value::Null);
            errors.extend(structural::validate_part(status, before, schema, "status"));
        }
        errors.extend(self.scale_errors(new, false, true));
        errors.extend(self.embedded(new));
        self.ruled(errors, new, Some(old))
    }

    fn validate_scale(&self, new: &Value, old: &Value) -> Findings {
        self.validate_update(new, old)
    }

    fn warnings(&self, new: &Value, old: Option<&Value>) -> Vec<String> {
        let of = |object: &Value| -> BTreeSet<String> {
            object
                .at("metadata")
                .items("finalizers")
                .iter()
                .filter_map(|f| f.as_str().map(str::to_owned))
                .collect()
        };
        let before = old.map(of).unwrap_or_default();
        of(new).difference(&before).flat_map(|finalizer| finalizer_warnings(finalizer)).collect()
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let of = |path: &Option<JsonPath>, kind: &str| {
            path.as_ref().map_or(Value::Null, |path| cell(path, kind, object, now))
        };
        let cells = self.columns.iter().map(|(path, kind)| of(path, kind));
        std::iter::once(object.at("metadata").at("name").clone()).chain(cells).collect()
    }

    fn fields(&self, object: &Value) -> Vec<(Str, String)> {
        let text = |value: &Value| match value {
            Value::String(text) => text.clone(),
            Value::Null => String::new(),
            other => other.to_string(),
        };
        let of = |(label, way): &(String, Way)| {
            let value = structural::path::follow(object, way).map(text).unwrap_or_default();
            (Str::from(label.clone()), value)
        };
        self.selectable.iter().map(of).collect()
    }

    fn selects(&self, label: &str) -> bool {
        self.selectable.iter().any(|(known, _)| known == label)
    }

    fn name(&self, name: &str) -> Vec<String> {
        names::dns1123_subdomain(name)
    }

    fn scale(&self) -> Option<ScalePaths> {
        self.scale.clone()
    }
}

impl std::fmt::Debug for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{} {}", self.group, self.version, self.kind)
    }
}

/// One cell of the Table form.
fn cell(path: &JsonPath, kind: &str, object: &Value, now: Timestamp) -> Value {
    let Some(value) = path.find(object).and_then(|found| found.first().copied()) else { return Value::Null };
    match (kind, value) {
        ("string", Value::String(text)) => text.as_str().into(),
        ("string", Value::Null) => "<nil>".into(),
        ("string", other) => other.to_string().into(),
        (_, Value::Null) => Value::Null,
        ("integer", Value::Number(number)) => match number.as_i64() {
            Some(integer) => integer.into(),
            None => number.as_f64().map_or(Value::Null, |float| (float as i64).into()),
        },
        ("number", Value::Number(number)) => match number.as_f64() {
            // A whole float is written without its point, as Go writes it.
            Some(float) if float.fract() == 0.0 && float.abs() < 1e15 => (float as i64).into(),
            Some(float) => float.into(),
            None => Value::Null,
        },
        ("boolean", Value::Bool(flag)) => (*flag).into(),
        ("date", Value::String(text)) => match text.parse::<Timestamp>() {
            Ok(then) => human_duration(now.duration_since(then).as_secs()).into(),
            Err(_) => "<invalid>".into(),
        },
        _ => Value::Null,
    }
}
