//! DefaultStorageClass, StorageObjectInUseProtection and PersistentVolumeClaimResize.

use std::sync::Arc;

use serde_json::Value;

use super::{Scene, amounts};
use crate::Status;
use crate::read::{Read, object_mut};

const CLASS_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";

pub(super) fn default_class(scene: &Scene<'_>, claim: &mut Value, _: Option<&Value>) -> Result<(), Status> {
    if !scene.is("", "persistentvolumeclaims")
        || claim.annotation(CLASS_ANNOTATION).is_some()
        || claim.has("spec.storageClassName")
    {
        return Ok(());
    }
    let marks =
        ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];
    if let Some(class) = default_of(scene, "storage.k8s.io", "storageclasses", &marks) {
        object_mut(claim, "spec").insert("storageClassName".into(), class.name().into());
    }
    Ok(())
}

/// The newest of the objects that are annotated as default; of equally old ones the first by name.
pub(super) fn default_of(
    scene: &Scene<'_>,
    group: &str,
    resource: &str,
    marks: &[&str],
) -> Option<Arc<Value>> {
    let mut classes = scene.cluster.list(group, resource, None).items;
    classes.retain(|class| marks.iter().any(|mark| class.annotation(mark) == Some("true")));
    let created = |class: &Value| class.text("metadata.creationTimestamp").to_owned();
    classes.sort_by(|a, b| created(b).cmp(&created(a)).then_with(|| a.name().cmp(b.name())));
    classes.into_iter().next()
}

pub(super) fn protect(scene: &Scene<'_>, object: &mut Value, _: Option<&Value>) -> Result<(), Status> {
    let finalizer = if scene.is("", "persistentvolumes") {
        "kubernetes.io/pv-protection"
    } else if scene.is("", "persistentvolumeclaims") {
        "kubernetes.io/pvc-protection"
    } else if scene.is("storage.k8s.io", "volumeattributesclasses") {
        "kubernetes.io/vac-protection"
    } else {
        return Ok(());
    };
    if !object.texts("metadata.finalizers").any(|f| f == finalizer) {
        let mut finalizers = object.items("metadata.finalizers").to_vec();
        finalizers.push(finalizer.into());
        object_mut(object, "metadata").insert("finalizers".into(), finalizers.into());
    }
    Ok(())
}

pub(super) fn resize(scene: &Scene<'_>, claim: &Value, old: Option<&Value>) -> Result<(), Status> {
    let Some(old) = old.filter(|_| scene.is("", "persistentvolumeclaims")) else { return Ok(()) };
    let size = |claim: &Value| amounts::parse(claim.at("spec.resources.requests.storage"));
    match (size(old), size(claim)) {
        (Some(before), Some(after)) if after > before => {}
        (None, Some(after)) if !after.is_zero() => {}
        _ => return Ok(()),
    }
    if old.text("status.phase") != "Bound" {
        return Err(scene.forbid(claim, "Only bound persistent volume claims can be expanded"));
    }
    let class_of = |claim: &Value| {
        let given = claim.annotation(CLASS_ANNOTATION).unwrap_or(claim.text("spec.storageClassName"));
        given.to_owned()
    };
    let class = class_of(claim);
    let expands = !class.is_empty()
        && class == class_of(old)
        && scene
            .cluster
            .get("storage.k8s.io", "storageclasses", "", &class)
            .is_some_and(|c| c.at("allowVolumeExpansion") == &Value::Bool(true));
    if expands {
        return Ok(());
    }
    let why = "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize";
    Err(scene.forbid(claim, why))
}
