//! Merging a configuration into an object without owning its fields: what a mutating policy's ApplyConfiguration does.

use serde_json::Value;

use super::typed::{Ref, Typed};
use crate::types::{TypeId, Types};

/// The object with the fields of a configuration of the same type. Lists and maps that are atomic may not be in it, since
/// all of their other content would go. The error is upstream's text.
pub fn overlay(types: &Types, id: TypeId, live: &Value, config: &Value) -> Result<Value, String> {
    let typed = Typed { types };
    let mut errors = Vec::new();
    typed.validate(Ref::Type(id), config, &mut Vec::new(), &mut errors);
    if !errors.is_empty() {
        let errors = match errors.as_slice() {
            [one] => one.clone(),
            many => format!("errors:\n  {}", many.join("\n  ")),
        };
        return Err(format!("failed to convert patch object to typed object: {errors}"));
    }
    let mut atomics = Vec::new();
    typed.atomics(Ref::Type(id), config, "", &mut atomics);
    if !atomics.is_empty() {
        return Err(format!(
            "invalid ApplyConfiguration: may not mutate atomic arrays, maps or structs: {}",
            atomics.join(", ")
        ));
    }
    Ok(typed.merge(Ref::Type(id), Some(live), Some(config)).unwrap_or_else(|| live.clone()))
}
