//! The built-in tables, read from the generated data on first use.

use std::sync::{Arc, LazyLock};

use schema::{Str, TypeId, Types};
use serde::Deserialize;
use serde_json::Value;

use crate::kinds::strategy_for;
use crate::{Behavior, Column, Resource, Resources, Strategy, Subresource};

static TYPES: LazyLock<Arc<Types>> = LazyLock::new(|| {
    let table = Types::parse(concat!(include_str!("../data/types.txt"), include_str!("../data/meta.txt")));
    Arc::new(table.expect("the generated type table is well formed"))
});

static RESOURCES: LazyLock<Resources> = LazyLock::new(|| {
    let rows: Vec<Row> = serde_json::from_str(include_str!("../data/resources.json"))
        .expect("the generated resource table is well formed");
    Resources::new(rows.into_iter().filter_map(resource).collect())
});

static GATED: LazyLock<Vec<Gated>> = LazyLock::new(|| {
    let gates: Vec<GateRow> = serde_json::from_str(include_str!("../data/gated.json"))
        .expect("the table of gated resources is well formed");
    let gated = |row: GateRow| Gated {
        gate: row.gate.into(),
        resources: row.resources.into_iter().filter_map(resource).map(Arc::new).collect(),
        bootstrap: row.bootstrap,
    };
    gates.into_iter().map(gated).collect()
});

static GENERIC: Strategy = Strategy::GENERIC;

/// What is served only where a feature gate is on.
pub struct Gated {
    /// Upstream's name of the gate.
    pub gate: Str,
    pub resources: Vec<Arc<Resource>>,
    /// What a fresh server holds for it, in the form of [`bootstrap`].
    pub bootstrap: Value,
}

/// The types of the built-in kinds.
pub fn types() -> &'static Arc<Types> {
    &TYPES
}

/// The built-in resources.
pub fn resources() -> &'static Resources {
    &RESOURCES
}

/// What belongs to feature gates that are off unless somebody switches them on.
pub fn gated() -> &'static [Gated] {
    &GATED
}

/// What a fresh server holds (roles, bindings, flow schemas, priority classes...): a JSON object of arrays by plural name.
pub fn bootstrap() -> &'static str {
    include_str!("../data/bootstrap.json")
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    group: String,
    version: String,
    kind: String,
    plural: String,
    singular: String,
    namespaced: bool,
    verbs: Vec<String>,
    kind_group: Option<String>,
    kind_version: Option<String>,
    #[serde(default)]
    short_names: Vec<String>,
    #[serde(default)]
    categories: Vec<String>,
    #[serde(default)]
    subresources: Vec<SubRow>,
    #[serde(default)]
    columns: Vec<ColumnRow>,
}

#[derive(Deserialize)]
struct GateRow {
    gate: String,
    resources: Vec<Row>,
    bootstrap: Value,
}

#[derive(Deserialize)]
struct SubRow {
    name: String,
    group: String,
    version: String,
    kind: String,
    verbs: Vec<String>,
}

#[derive(Deserialize)]
struct ColumnRow {
    name: String,
    r#type: String,
    format: String,
    priority: i32,
}

fn strings(list: Vec<String>) -> Vec<Str> {
    list.into_iter().map(Str::from).collect()
}

/// A row whose kind has no type cannot be served and is left out; a test holds that there is none.
fn resource(row: Row) -> Option<Resource> {
    let types = types();
    let kind_group = row.kind_group.as_deref().unwrap_or(&row.group);
    let kind_version = row.kind_version.as_deref().unwrap_or(&row.version);
    let type_id = types.by_gvk(kind_group, kind_version, &row.kind)?;
    Some(Resource {
        list_type_id: types.by_gvk(kind_group, kind_version, &format!("{}List", row.kind)),
        strategy: Behavior::BuiltIn(strategy_for(&row.group, &row.kind).unwrap_or(&GENERIC)),
        types: Arc::clone(types),
        type_id,
        subresources: row.subresources.into_iter().map(subresource).collect(),
        columns: row.columns.into_iter().map(|c| column(c, &row.kind)).collect(),
        namespaced: row.namespaced,
        short_names: strings(row.short_names),
        categories: strings(row.categories),
        verbs: strings(row.verbs),
        group: row.group.into(),
        version: row.version.into(),
        kind: row.kind.into(),
        plural: row.plural.into(),
        singular: row.singular.into(),
    })
}

fn subresource(row: SubRow) -> Subresource {
    let type_id: Option<TypeId> = types().by_gvk(&row.group, &row.version, &row.kind);
    Subresource {
        name: row.name.into(),
        group: row.group.into(),
        version: row.version.into(),
        kind: row.kind.into(),
        verbs: strings(row.verbs),
        type_id,
    }
}

fn column(row: ColumnRow, kind: &str) -> Column {
    let description = match row.name.as_str() {
        "Name" => format!("What the {kind} is called; no other one beside it has the same name."),
        "Age" => format!("How long ago the {kind} was created."),
        other => format!("{other} of the {kind}."),
    };
    Column {
        name: row.name.into(),
        kind: row.r#type.into(),
        format: row.format.into(),
        description: description.into(),
        priority: row.priority,
    }
}
