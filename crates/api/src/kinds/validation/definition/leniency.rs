//! In what an update of a definition need not be better than what stands already.

use std::collections::BTreeSet;

use schema::structural::{self, Schema, Strictness};
use serde_json::Value;

use super::super::super::json::Read;
use super::conversion::{certificates, recognized};
use super::versions::SELECTABLE_LIMIT;
use super::{is_true, meta, raw, schemas};
use crate::custom::rules;

/// What an update need not be better in than what stands already.
pub(super) struct Leniency {
    pub recognized_review: bool,
    pub structural: bool,
    pub schema_everywhere: bool,
    pub pruned_defaults: bool,
    pub strictness: Strictness,
    pub invalid_bundle: bool,
    pub before: rules::Before,
    /// Versions (`""`: all) that may keep too many selectable fields.
    pub many_selectable: BTreeSet<String>,
}

impl Leniency {
    pub(super) fn create() -> Self {
        Self {
            recognized_review: true,
            structural: true,
            schema_everywhere: true,
            pruned_defaults: true,
            strictness: Strictness { valid_types: true, atomic_sets: true, map_keys: true },
            invalid_bundle: true,
            before: rules::Before::default(),
            many_selectable: BTreeSet::new(),
        }
    }

    pub(super) fn update(new: &Value, old: &Value) -> Self {
        let spec = old.at("spec");
        let versions = spec.items("versions");
        let all = schemas(old);
        let has = |test: &dyn Fn(&Schema) -> bool| all.iter().any(|schema| schema.any(test));
        let review = spec.at("conversion").at("webhook").items("conversionReviewVersions");
        let bundle = spec.at("conversion").at("webhook").at("clientConfig").text("caBundle");
        let mut before = rules::Before::default();
        all.iter().for_each(|schema| before.add(schema));
        let fits = |schema: &Schema| {
            schema.unsupported().is_ok() && structural::validate_structural("", schema).is_empty()
        };
        let mut many = BTreeSet::new();
        for version in versions {
            let fields = version.at("selectableFields");
            let name = version.text("name");
            let same = new.at("spec").items("versions").iter().find(|v| v.text("name") == name);
            if version.items("selectableFields").len() > SELECTABLE_LIMIT
                && same.is_some_and(|v| v.at("selectableFields") == fields)
            {
                many.extend([name.to_owned(), String::new()]);
            }
        }
        let unpruned = |schema: &Schema| {
            let mut pruned = schema.clone();
            if let Some(meta) = meta() {
                structural::prune_defaults(&mut pruned, meta);
            }
            fits(schema) && pruned != *schema
        };
        let established = is_true(old, "Established");
        Self {
            recognized_review: review.is_empty() || review.iter().any(recognized),
            structural: all.iter().all(fits),
            schema_everywhere: versions.iter().all(|v| raw(v).is_object()),
            pruned_defaults: !all.iter().any(unpruned),
            strictness: Strictness {
                valid_types: !has(&|s| !s.kind.is_empty() && !TYPES.contains(&s.kind.as_str())),
                atomic_sets: !has(&non_atomic_set),
                map_keys: !has(&structural::has_loose_keys),
            },
            invalid_bundle: !established || (!bundle.is_empty() && certificates(bundle).is_err()),
            before,
            many_selectable: many,
        }
    }
}

const TYPES: [&str; 6] = ["array", "boolean", "integer", "number", "object", "string"];

fn non_atomic_set(schema: &Schema) -> bool {
    let Some(items) = schema.items.as_deref().filter(|_| schema.list_type.as_deref() == Some("set")) else {
        return false;
    };
    match items.kind.as_str() {
        "array" => items.list_type.as_deref().is_some_and(|t| t != "atomic"),
        "object" => items.map_type.as_deref() != Some("atomic"),
        _ => false,
    }
}
