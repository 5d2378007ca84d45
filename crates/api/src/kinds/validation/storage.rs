//! Volume sources that pods and PersistentVolumes share; PersistentVolume, claims and classes.

use serde_json::Value;

use super::common::{self, label_selector, local_path, no_backsteps, one_of, required, subdomain};
use super::{resources, scheduling};
use crate::FieldError;
use crate::field::{Errors, Path};
use crate::kinds::json::{Read, Write, keep, same};
use crate::names;

const ACCESS_MODES: [&str; 4] = ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
const VOLUME_MODES: [&str; 2] = ["Block", "Filesystem"];

/// The name of a CSI driver.
pub(crate) fn driver_name(errors: &mut Errors, name: &str, path: &Path<'_>) {
    if name.is_empty() {
        errors.required(path, "");
        return;
    }
    if name.len() > 63 {
        errors.too_long(path, 63);
    }
    errors.all_invalid(path, name, names::dns1123_subdomain(&name.to_lowercase()));
}

/// A source that pods and PersistentVolumes know alike.
pub(crate) fn shared_source(errors: &mut Errors, kind: &str, value: &Value, at: &Path<'_>) {
    match kind {
        "hostPath" => {
            let types = [
                "",
                "BlockDevice",
                "CharDevice",
                "Directory",
                "DirectoryOrCreate",
                "File",
                "FileOrCreate",
                "Socket",
            ];
            if value.text("path").is_empty() {
                errors.required(&at.child("path"), "");
                return;
            }
            no_backsteps(errors, value.text("path"), &at.child("path"));
            if value.has("type") && !types.contains(&value.text("type")) {
                errors.not_supported(&at.child("type"), value.text("type"), &types);
            }
        }
        "nfs" => {
            required(errors, value, at, "server");
            required(errors, value, at, "path");
            let path = value.text("path");
            if !path.starts_with('/') {
                errors.invalid(&at.child("path"), path, "must be an absolute path");
            }
        }
        "gitRepo" => {
            required(errors, value, at, "repository");
            local_path(errors, value.text("directory"), &at.child("directory"));
        }
        "iscsi" => {
            required(errors, value, at, "targetPortal");
            let name = value.text("iqn");
            let known = ["iqn", "eui", "naa"].iter().any(|prefix| name.starts_with(prefix));
            if name.is_empty() {
                errors.required(&at.child("iqn"), "");
            } else if !known {
                let detail = "must be valid format starting with iqn, eui, or naa";
                errors.invalid(&at.child("iqn"), name, detail);
            }
            let unit = value.num("lun");
            if !(0..=255).contains(&unit) {
                errors.invalid(&at.child("lun"), unit, names::range(0, 255));
            }
            let chap = value.flag("chapAuthDiscovery") || value.flag("chapAuthSession");
            if chap && !value.has("secretRef") {
                errors.required(&at.child("secretRef"), "");
            }
        }
        "fc" => fibre_channel(errors, value, at),
        "flexVolume" => required(errors, value, at, "driver"),
        "gcePersistentDisk" => required(errors, value, at, "pdName"),
        "awsElasticBlockStore" | "cinder" => required(errors, value, at, "volumeID"),
        "glusterfs" => {
            required(errors, value, at, "endpoints");
            required(errors, value, at, "path");
        }
        "rbd" => {
            if value.items("monitors").is_empty() {
                errors.required(&at.child("monitors"), "");
            }
            required(errors, value, at, "image");
        }
        "cephfs" if value.items("monitors").is_empty() => errors.required(&at.child("monitors"), ""),
        "quobyte" => {
            if value.text("registry").is_empty() {
                let detail = "must be a host:port pair or multiple pairs separated by commas";
                errors.required(&at.child("registry"), detail);
            }
            required(errors, value, at, "volume");
        }
        "flocker" => match (value.text("datasetName"), value.text("datasetUUID")) {
            ("", "") => errors.required(at, "one of datasetName and datasetUUID is required"),
            (_, "") | ("", _) => {}
            _ => errors.invalid(
                at,
                "resource",
                "datasetName and datasetUUID can not be specified simultaneously",
            ),
        },
        "azureFile" => {
            required(errors, value, at, "secretName");
            required(errors, value, at, "shareName");
        }
        "azureDisk" => {
            required(errors, value, at, "diskName");
            required(errors, value, at, "diskURI");
        }
        "vsphereVolume" => required(errors, value, at, "volumePath"),
        "photonPersistentDisk" => required(errors, value, at, "pdID"),
        "portworxVolume" => required(errors, value, at, "volumeID"),
        "storageos" => required(errors, value, at, "volumeName"),
        "scaleIO" => {
            for key in ["gateway", "system", "volumeName"] {
                required(errors, value, at, key);
            }
        }
        _ => {}
    }
}

fn fibre_channel(errors: &mut Errors, value: &Value, at: &Path<'_>) {
    let (targets, wide) = (value.items("targetWWNs"), value.items("wwids"));
    let path = at.child("targetWWNs");
    if targets.is_empty() && wide.is_empty() {
        errors.required(&path, "must specify either targetWWNs or wwids, but not both");
    }
    if !targets.is_empty() && !wide.is_empty() {
        let detail = "targetWWNs and wwids can not be specified simultaneously";
        errors.invalid(&path, targets.to_vec(), detail);
    }
    if !targets.is_empty() {
        match value.int("lun") {
            None => errors.required(&at.child("lun"), "lun is required if targetWWNs is specified"),
            Some(unit) if !(0..=255).contains(&unit) => {
                errors.invalid(&at.child("lun"), unit, names::range(0, 255));
            }
            Some(_) => {}
        }
    }
}

fn access_modes(errors: &mut Errors, spec: &Value, path: &Path<'_>, detail: &str) {
    let modes = spec.items("accessModes");
    let at = path.child("accessModes");
    if modes.is_empty() {
        errors.required(&at, detail);
    }
    for mode in modes.iter().filter_map(Value::as_str).filter(|mode| !ACCESS_MODES.contains(mode)) {
        errors.not_supported(&at, mode, &ACCESS_MODES);
    }
    let once = modes.iter().filter(|mode| *mode == "ReadWriteOncePod").count();
    let known = modes.iter().filter_map(Value::as_str).filter(|mode| ACCESS_MODES.contains(mode)).count();
    if once > 0 && known > once {
        errors.forbidden(&at, "may not use ReadWriteOncePod with other access modes");
    }
}

fn positive_amount(errors: &mut Errors, value: &Value, path: &Path<'_>) {
    if let Some(amount) = resources::quantity(value).filter(|amount| amount.is_zero() || amount.is_negative())
    {
        errors.invalid(path, amount.to_string(), "must be greater than zero");
    }
}

/// The specification of a claim.
pub(crate) fn claim_spec(errors: &mut Errors, spec: &Value, path: &Path<'_>) {
    access_modes(errors, spec, path, "at least 1 access mode is required");
    label_selector(errors, spec.at("selector"), &path.child("selector"));
    let at = path.child("resources");
    let at = at.key("storage");
    match spec.dig(&["resources", "requests", "storage"]) {
        Value::Null => errors.required(&at, ""),
        value => positive_amount(errors, value, &at),
    }
    for key in ["storageClassName", "volumeAttributesClassName"] {
        if !spec.text(key).is_empty() {
            subdomain(errors, spec.text(key), &path.child(key));
        }
    }
    if spec.has("volumeMode") && !VOLUME_MODES.contains(&spec.text("volumeMode")) {
        errors.not_supported(&path.child("volumeMode"), spec.text("volumeMode"), &VOLUME_MODES);
    }
    for key in ["dataSource", "dataSourceRef"] {
        if spec.has(key) {
            data_source(errors, spec.at(key), &path.child(key));
        }
    }
    let (source, reference) = (spec.at("dataSource"), spec.at("dataSourceRef"));
    if !reference.text("namespace").is_empty() {
        if !source.is_null() {
            let detail = "may not be specified when dataSourceRef.namespace is specified";
            errors.invalid(path, path.child("dataSource").to_string(), detail);
        }
    } else if !source.is_null() && !reference.is_null() {
        let alike = ["kind", "name", "apiGroup"].iter().all(|key| same(source.at(key), reference.at(key)));
        if !alike {
            errors.invalid(path, path.child("dataSource").to_string(), "must match dataSourceRef");
        }
    }
}

fn data_source(errors: &mut Errors, source: &Value, path: &Path<'_>) {
    required(errors, source, path, "name");
    required(errors, source, path, "kind");
    match source.text("apiGroup") {
        "" if source.text("kind") != "PersistentVolumeClaim" => errors.invalid(
            path,
            source.text("kind"),
            "must be 'PersistentVolumeClaim' when referencing the default apiGroup",
        ),
        "" => {}
        group => subdomain(errors, group, &path.child("apiGroup")),
    }
    if !source.text("namespace").is_empty() {
        common::label(errors, source.text("namespace"), &path.child("namespace"));
    }
}

pub(crate) fn claim(claim: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    claim_spec(&mut errors, claim.at("spec"), &Path::new("spec"));
    errors.0
}

pub(crate) fn claim_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    let path = Path::new("spec");
    let (spec, old_spec) = (new.at("spec"), old.at("spec"));
    let mut munged = spec.clone();
    let mut before = old_spec.clone();
    if old_spec.text("volumeName").is_empty() {
        keep(&mut before, spec, "volumeName");
    }
    let beta = "volume.beta.kubernetes.io/storage-class";
    let annotated = !old.dig(&["metadata", "annotations"]).text(beta).is_empty();
    if !old_spec.has("storageClassName") && !annotated {
        keep(&mut munged, old_spec, "storageClassName");
    }
    let bound = new.at("status").text("phase") == "Bound";
    if bound {
        if munged.at("resources").has("requests") {
            keep(
                munged.child("resources").child("requests"),
                old_spec.dig(&["resources", "requests"]),
                "storage",
            );
        }
        keep(&mut munged, old_spec, "volumeAttributesClassName");
    }
    if !same(&munged, &before) {
        errors.forbidden(
            &path,
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims",
        );
    }
    let size = |holder: &Value, keys: &[&str]| resources::quantity(holder.dig(keys));
    let request = ["spec", "resources", "requests", "storage"];
    let (new_size, old_size) = (size(new, &request), size(old, &request));
    let status = size(old, &["status", "capacity", "storage"]);
    if let (Some(new_size), Some(old_size)) = (&new_size, &old_size)
        && new_size < old_size
        && status.is_some_and(|status| *new_size <= status)
    {
        let at = path.child("resources");
        let at = at.child("requests");
        errors.forbidden(&at.child("storage"), "field can not be less than status.capacity");
    }
    common::immutable(
        &mut errors,
        spec.at("volumeMode"),
        old_spec.at("volumeMode"),
        &Path::new("volumeMode"),
    );
    errors.0
}

const VOLUME_SOURCES: [&str; 22] = [
    "hostPath",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "glusterfs",
    "flocker",
    "nfs",
    "rbd",
    "quobyte",
    "cephfs",
    "iscsi",
    "cinder",
    "fc",
    "flexVolume",
    "azureFile",
    "vsphereVolume",
    "photonPersistentDisk",
    "portworxVolume",
    "azureDisk",
    "scaleIO",
    "local",
    "storageos",
    "csi",
];

pub(crate) fn volume(volume: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    let path = Path::new("spec");
    let spec = volume.at("spec");
    access_modes(&mut errors, spec, &path, "");
    let capacity = spec.at("capacity");
    let at = path.child("capacity");
    if capacity.is_empty_value() {
        errors.required(&at, "");
    }
    if !capacity.has("storage") || spec.entries("capacity").len() > 1 {
        errors.not_supported(&at, capacity.clone(), &["storage"]);
    }
    for (name, value) in spec.entries("capacity") {
        positive_amount(&mut errors, value, &at.key(name));
    }
    let policy = spec.text("persistentVolumeReclaimPolicy");
    if !policy.is_empty() && !matches!(policy, "Delete" | "Recycle" | "Retain") {
        let at = path.child("persistentVolumeReclaimPolicy");
        errors.not_supported(&at, policy, &["Delete", "Recycle", "Retain"]);
    }
    let affinity = spec.at("nodeAffinity");
    if affinity.is_object() {
        let at = path.child("nodeAffinity");
        match affinity.at("required") {
            Value::Null => errors.required(&at.child("required"), "must specify required node constraints"),
            selector => scheduling::node_selector(&mut errors, selector, &at.child("required")),
        }
    }
    let mut found = 0;
    for kind in VOLUME_SOURCES.into_iter().filter(|kind| spec.has(kind)) {
        found += 1;
        let at = path.child(kind);
        if found > 1 {
            errors.forbidden(&at, "may not specify more than 1 volume type");
            continue;
        }
        let value = spec.at(kind);
        match kind {
            "local" => {
                match value.text("path") {
                    "" => errors.required(&at.child("path"), ""),
                    target => no_backsteps(&mut errors, target, &at.child("path")),
                }
                if affinity.is_null() {
                    errors.required(&path.child("nodeAffinity"), "Local volume requires node affinity");
                }
            }
            "csi" => {
                driver_name(&mut errors, value.text("driver"), &at.child("driver"));
                required(&mut errors, value, &at, "volumeHandle");
            }
            kind => shared_source(&mut errors, kind, value, &at),
        }
    }
    if found == 0 {
        errors.required(&path, "must specify a volume type");
    }
    if spec.at("hostPath").text("path") == "/" && policy == "Recycle" {
        let at = path.child("persistentVolumeReclaimPolicy");
        errors.forbidden(&at, "may not be 'recycle' for a hostPath mount of '/'");
    }
    if !spec.text("storageClassName").is_empty() {
        subdomain(&mut errors, spec.text("storageClassName"), &path.child("storageClassName"));
    }
    if spec.has("volumeMode") && !VOLUME_MODES.contains(&spec.text("volumeMode")) {
        errors.not_supported(&path.child("volumeMode"), spec.text("volumeMode"), &VOLUME_MODES);
    }
    errors.0
}

pub(crate) fn volume_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    let path = Path::new("spec");
    let (spec, old_spec) = (new.at("spec"), old.at("spec"));
    if VOLUME_SOURCES.iter().any(|kind| !same(spec.at(kind), old_spec.at(kind))) {
        errors.forbidden(
            &path.child("persistentvolumesource"),
            "spec.persistentvolumesource is immutable after creation",
        );
    }
    common::immutable(
        &mut errors,
        spec.at("volumeMode"),
        old_spec.at("volumeMode"),
        &Path::new("volumeMode"),
    );
    if old_spec.has("nodeAffinity") && !same(spec.at("nodeAffinity"), old_spec.at("nodeAffinity")) {
        errors.invalid(&Path::new("nodeAffinity"), spec.at("nodeAffinity").clone(), common::IMMUTABLE);
    }
    errors.0
}

pub(crate) fn class(class: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    match class.text("provisioner") {
        "" => errors.required(&Path::new("provisioner"), ""),
        name => {
            errors.all_invalid(&Path::new("provisioner"), name, names::qualified_name(&name.to_lowercase()));
        }
    }
    parameters(&mut errors, class, false);
    let policy = class.text("reclaimPolicy");
    if !matches!(policy, "" | "Delete" | "Retain") {
        errors.not_supported(&Path::new("reclaimPolicy"), policy, &["Delete", "Retain"]);
    }
    one_of(
        &mut errors,
        class.text("volumeBindingMode"),
        &Path::new("volumeBindingMode"),
        &["Immediate", "WaitForFirstConsumer"],
    );
    errors.0
}

fn parameters(errors: &mut Errors, class: &Value, needed: bool) {
    let path = Path::new("parameters");
    let entries = class.entries("parameters");
    if needed && entries.is_empty() {
        errors.required(&path, "");
    }
    if entries.len() > 512 {
        errors.too_long(&Path::new("Provisioner Parameters"), 512);
    }
    let total: usize =
        entries.iter().map(|(key, value)| key.len() + value.as_str().map_or(0, str::len)).sum();
    if entries.iter().any(|(key, _)| key.is_empty()) {
        errors.invalid(&path, "", "field can not be empty");
    }
    if total > 256 * 1024 {
        errors.too_long(&path, 256 * 1024);
    }
}

pub(crate) fn class_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    for key in ["parameters", "provisioner", "reclaimPolicy", "volumeBindingMode"] {
        common::immutable(&mut errors, new.at(key), old.at(key), &Path::new(key));
    }
    errors.0
}

pub(crate) fn attributes_class(class: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    driver_name(&mut errors, class.text("driverName"), &Path::new("driverName"));
    parameters(&mut errors, class, true);
    errors.0
}

pub(crate) fn attributes_class_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    for key in ["driverName", "parameters"] {
        if !same(new.at(key), old.at(key)) {
            errors.forbidden(&Path::new(key), format!("updates to {key} are forbidden."));
        }
    }
    errors.0
}
