//! What deleting a definition does at first: it is marked, and kept until its instances are gone.

use serde_json::Value;

use super::conditions;
use crate::special::Special;
use crate::verbs::meta;

pub const FINALIZER: &str = "customresourcecleanup.apiextensions.k8s.io";

pub static ROW: Special = Special { begin_delete: Some(begin), ..Special::GENERIC };

/// Marks a definition for deletion. `false` if it is so already.
fn begin(object: &mut Value) -> bool {
    if !meta::text(object, "deletionTimestamp").is_empty() {
        return false;
    }
    let mut finalizers: Vec<String> = meta::finalizers(object).into_iter().map(str::to_owned).collect();
    if !finalizers.iter().any(|f| f == FINALIZER) {
        finalizers.push(FINALIZER.to_owned());
    }
    let Ok(metadata) = meta::of(object) else { return false };
    metadata.insert("finalizers".to_owned(), finalizers.into());
    metadata.insert("deletionTimestamp".to_owned(), meta::now().into());
    let message = "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon";
    conditions::set(object, "Terminating", true, "InstanceDeletionPending", message);
    true
}
