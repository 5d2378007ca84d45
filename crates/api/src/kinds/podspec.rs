//! Defaults of a pod's specification, shared by Pod and by every kind that holds a pod template.

use serde_json::{Value, json};

use super::json::{Read, Write, empty};
use crate::quantity::Quantity;

/// Defaults of a pod template: of its specification alone.
pub(crate) fn default_template(template: &mut Value) {
    default_spec(template.child("spec"));
}

/// Defaults that a pod and a pod template have in common.
pub(crate) fn default_spec(spec: &mut Value) {
    for volume in spec.items_mut("volumes") {
        default_volume(volume);
    }
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for container in spec.items_mut(list) {
            default_container(container);
        }
    }
    spec.fill_zero("dnsPolicy", "ClusterFirst");
    spec.fill_zero("restartPolicy", "Always");
    spec.fill("securityContext", empty());
    spec.fill("terminationGracePeriodSeconds", 30);
    spec.fill_zero("schedulerName", "default-scheduler");
    // The deprecated name is written beside the present one.
    let name = match spec.text("serviceAccountName") {
        "" => spec.text("serviceAccount").to_owned(),
        name => name.to_owned(),
    };
    if !name.is_empty() {
        spec.put("serviceAccountName", name.clone());
        spec.put("serviceAccount", name);
    }
    if let Some(overhead) = spec.existing("overhead") {
        round_up_all(overhead);
    }
    if let Some(resources) = spec.existing("resources") {
        default_resources(resources);
    }
}

/// Rounds the quantities of a resource list up to thousandths.
pub(crate) fn round_up_all(list: &mut Value) {
    let Some(map) = list.as_object_mut() else { return };
    for value in map.values_mut() {
        let Some(quantity) = value.as_str().and_then(|text| text.parse::<Quantity>().ok()) else { continue };
        let rounded = Quantity::milli(quantity.milli_value(), quantity.format());
        let saturated = matches!(quantity.milli_value(), i64::MAX | i64::MIN);
        if rounded != quantity && !saturated {
            *value = rounded.to_string().into();
        }
    }
}

pub(crate) fn default_resources(resources: &mut Value) {
    for list in ["limits", "requests"] {
        if let Some(list) = resources.existing(list) {
            round_up_all(list);
        }
    }
}

fn default_container(container: &mut Value) {
    let policy = pull_policy(container.text("image"));
    container.fill_zero("imagePullPolicy", policy);
    container.fill_zero("terminationMessagePath", "/dev/termination-log");
    container.fill_zero("terminationMessagePolicy", "File");
    for port in container.items_mut("ports") {
        port.fill_zero("protocol", "TCP");
    }
    for env in container.items_mut("env") {
        if let Some(from) = env.existing("valueFrom") {
            default_field_ref(from);
            if let Some(file) = from.existing("fileKeyRef") {
                file.fill("optional", false);
            }
        }
    }
    default_resources(container.child("resources"));
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = container.existing(probe) {
            default_probe(probe);
        }
    }
    if let Some(lifecycle) = container.existing("lifecycle") {
        for hook in ["postStart", "preStop"] {
            if let Some(hook) = lifecycle.existing(hook) {
                default_handler(hook);
            }
        }
    }
}

/// `Always` for the tag `latest`, which is also the tag of an image that names neither tag nor digest.
fn pull_policy(image: &str) -> &'static str {
    if image_tag(image) == Some("latest") { "Always" } else { "IfNotPresent" }
}

/// The tag of an image reference; `None` for a digest without a tag or for what is no reference.
fn image_tag(image: &str) -> Option<&str> {
    let (name, digest) = match image.split_once('@') {
        Some((name, digest)) => (name, Some(digest)),
        None => (image, None),
    };
    if name.is_empty() || name.chars().any(char::is_whitespace) {
        return None;
    }
    let last = name.rfind('/').map_or(0, |slash| slash + 1);
    let repository = match name[last..].find(':') {
        Some(colon) => &name[..last + colon],
        None => name,
    };
    let path = match repository.split_once('/') {
        Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => path,
        _ => repository,
    };
    if path.chars().any(|c| c.is_ascii_uppercase()) {
        return None;
    }
    match name[last..].split_once(':') {
        Some((_, tag)) => Some(tag),
        None if digest.is_some() => None,
        None => Some("latest"),
    }
}

fn default_probe(probe: &mut Value) {
    default_handler(probe);
    if let Some(grpc) = probe.existing("grpc") {
        grpc.fill("service", "");
    }
    for (key, value) in
        [("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)]
    {
        probe.fill_zero(key, value);
    }
}

fn default_handler(handler: &mut Value) {
    if let Some(get) = handler.existing("httpGet") {
        get.fill_zero("path", "/");
        get.fill_zero("scheme", "HTTP");
    }
}

fn default_field_ref(holder: &mut Value) {
    if let Some(field) = holder.existing("fieldRef") {
        field.fill_zero("apiVersion", "v1");
    }
}

fn default_volume(volume: &mut Value) {
    let has_source = volume
        .as_object()
        .is_some_and(|map| map.iter().any(|(key, value)| key != "name" && !value.is_null()));
    if !has_source {
        volume.put("emptyDir", empty());
    }
    if let Some(image) = volume.existing("image") {
        let policy = pull_policy(image.text("reference"));
        image.fill_zero("pullPolicy", policy);
    }
    default_volume_source(volume);
    for source in ["secret", "configMap", "downwardAPI", "projected"] {
        if let Some(source) = volume.existing(source) {
            source.fill("defaultMode", 0o644);
        }
    }
    if let Some(downward) = volume.existing("downwardAPI") {
        downward.items_mut("items").iter_mut().for_each(default_field_ref);
    }
    if let Some(projected) = volume.existing("projected") {
        for source in projected.items_mut("sources") {
            if let Some(downward) = source.existing("downwardAPI") {
                downward.items_mut("items").iter_mut().for_each(default_field_ref);
            }
            if let Some(token) = source.existing("serviceAccountToken") {
                token.fill("expirationSeconds", 3600);
            }
        }
    }
    if let Some(template) = volume.existing("ephemeral").and_then(|e| e.existing("volumeClaimTemplate")) {
        super::storage::default_claim_spec(template.child("spec"));
    }
}

/// Defaults of the sources that a volume and a PersistentVolume share.
pub(crate) fn default_volume_source(holder: &mut Value) {
    let defaults = [
        ("hostPath", json!({"type": ""})),
        ("iscsi", json!({"iscsiInterface": "default"})),
        ("rbd", json!({"pool": "rbd", "user": "admin", "keyring": "/etc/ceph/keyring"})),
        (
            "azureDisk",
            json!({"cachingMode": "ReadWrite", "fsType": "ext4", "readOnly": false, "kind": "Shared"}),
        ),
        ("scaleIO", json!({"storageMode": "ThinProvisioned", "fsType": "xfs"})),
    ];
    for (source, values) in defaults {
        let Some(source) = holder.existing(source) else { continue };
        for (key, value) in values.as_object().into_iter().flatten() {
            // Strings of Go value type are filled when empty, pointers only when absent.
            match key.as_str() {
                "iscsiInterface" | "pool" | "user" | "keyring" | "storageMode" => {
                    source.fill_zero(key, value.clone());
                }
                _ => source.fill(key, value.clone()),
            }
        }
        // scaleIO's file system is a plain string.
        if source.has("gateway") {
            source.fill_zero("fsType", "xfs");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags() {
        for (image, tag) in [
            ("i", Some("latest")),
            ("i:1", Some("1")),
            ("h:5000/i", Some("latest")),
            ("h:5000/i:v2", Some("v2")),
            ("i@sha256:0123", None),
            ("i:1@sha256:0123", Some("1")),
            ("", None),
            ("Upper/case", None),
        ] {
            assert_eq!(image_tag(image), tag, "{image}");
        }
    }

    #[test]
    fn quantities_are_rounded_up_to_thousandths() {
        let mut list = json!({"cpu": "500u", "memory": "1Gi"});
        round_up_all(&mut list);
        assert_eq!(list, json!({"cpu": "1m", "memory": "1Gi"}));
    }

    #[test]
    fn template_gets_the_defaults_of_its_spec_only() {
        let mut template =
            json!({"spec": {"containers": [{"name": "c", "image": "i:1"}], "volumes": [{"name": "v"}]}});
        default_template(&mut template);
        assert_eq!(
            template,
            json!({"spec": {
                "containers": [{"name": "c", "image": "i:1", "resources": {}, "imagePullPolicy": "IfNotPresent",
                    "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File"}],
                "volumes": [{"name": "v", "emptyDir": {}}],
                "dnsPolicy": "ClusterFirst", "restartPolicy": "Always", "securityContext": {},
                "terminationGracePeriodSeconds": 30, "schedulerName": "default-scheduler"}})
        );
    }
}
