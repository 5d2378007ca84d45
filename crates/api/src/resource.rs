//! The resource table: what the API serves, under which names, with which verbs.

use std::collections::HashMap;
use std::sync::Arc;

use schema::{Str, TypeId, Types};

use crate::Behavior;

/// One served resource.
#[derive(Clone)]
pub struct Resource {
    /// The API group; the core group is `""`.
    pub group: Str,
    pub version: Str,
    pub kind: Str,
    pub plural: Str,
    pub singular: Str,
    pub short_names: Vec<Str>,
    pub categories: Vec<Str>,
    pub namespaced: bool,
    pub verbs: Vec<Str>,
    pub subresources: Vec<Subresource>,
    pub columns: Vec<Column>,
    /// The table that `type_id` and `list_type_id` are numbers of.
    pub types: Arc<Types>,
    pub type_id: TypeId,
    /// The list kind's type; `None` for a resource that is never listed.
    pub list_type_id: Option<TypeId>,
    pub strategy: Behavior,
}

/// A subresource and the kind it speaks.
#[derive(Clone, Debug)]
pub struct Subresource {
    pub name: Str,
    pub group: Str,
    pub version: Str,
    pub kind: Str,
    pub verbs: Vec<Str>,
    /// `None` where the kind is only an option set of a connection (`PodExecOptions` and the like).
    pub type_id: Option<TypeId>,
}

/// A column of the Table form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    pub name: Str,
    /// `string`, `integer`, `number`, `boolean` or `date`.
    pub kind: Str,
    pub format: Str,
    pub description: Str,
    /// Columns above 0 are shown in wide output only.
    pub priority: i32,
}

impl Resource {
    /// `v1` or `apps/v1`.
    pub fn api_version(&self) -> String {
        match self.group.as_ref() {
            "" => self.version.to_string(),
            group => format!("{group}/{}", self.version),
        }
    }

    /// Whether the resource takes a verb.
    pub fn has_verb(&self, verb: &str) -> bool {
        self.verbs.iter().any(|v| v == verb)
    }

    /// The resource as the OpenAPI documents show it.
    pub fn route(&self) -> schema::openapi::Route<'_> {
        let kind = |group: &Str, version: &Str, kind: &Str| schema::Kind {
            group: group.clone(),
            version: version.clone(),
            kind: kind.clone(),
        };
        schema::openapi::Route {
            types: &self.types,
            group: &self.group,
            version: &self.version,
            plural: &self.plural,
            namespaced: self.namespaced,
            verbs: &self.verbs,
            kind: kind(&self.group, &self.version, &self.kind),
            type_id: self.type_id,
            list_type_id: self.list_type_id,
            custom: self.strategy.is_custom(),
            subresources: self
                .subresources
                .iter()
                .map(|s| schema::openapi::SubRoute {
                    name: &s.name,
                    verbs: &s.verbs,
                    kind: kind(&s.group, &s.version, &s.kind),
                    type_id: s.type_id,
                })
                .collect(),
        }
    }

    /// A subresource by name.
    pub fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.subresources.iter().find(|s| s.name == name)
    }
}

/// The rows in the order of discovery, with look-up by name.
pub struct Resources {
    rows: Vec<Arc<Resource>>,
    by_name: HashMap<(Str, Str, Str), usize>,
}

impl Resources {
    /// A table of the given rows.
    pub fn new(rows: Vec<Resource>) -> Self {
        let by_name = rows
            .iter()
            .enumerate()
            .map(|(i, r)| ((r.group.clone(), r.version.clone(), r.plural.clone()), i))
            .collect();
        Self { rows: rows.into_iter().map(Arc::new).collect(), by_name }
    }

    /// The row of a group, version and plural name.
    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Resource>> {
        let key = (Str::from(group.to_owned()), version.to_owned().into(), plural.to_owned().into());
        self.by_name.get(&key).map(|i| &self.rows[*i])
    }

    /// The row of a group, version and kind.
    pub fn find_kind(&self, group: &str, version: &str, kind: &str) -> Option<&Arc<Resource>> {
        self.rows.iter().find(|r| r.group == group && r.version == version && r.kind == kind)
    }

    /// All rows, in the order of discovery.
    pub fn iter(&self) -> std::slice::Iter<'_, Arc<Resource>> {
        self.rows.iter()
    }
}
