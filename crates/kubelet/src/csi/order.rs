//! A volume as a pod wants it: read off an inline source or off a PersistentVolume with its claim.

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::api::core::v1::{
    CSIVolumeSource, PersistentVolume, PersistentVolumeClaim, Pod, SecretReference,
};
use k8s_openapi::api::storage::v1::CSIDriver;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use plugins::csi::VolumeCapability;
use plugins::csi::volume_capability::access_mode::Mode;
use plugins::csi::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};

use super::{CsiError, inline_handle};
use crate::podutil;
use crate::quantity;

/// What CSI knows of a volume and of the pod that wants it.
pub(crate) struct Order<'a> {
    pub(super) pod: &'a Pod,
    /// The PersistentVolume's name, or that of the volume in the pod.
    pub(super) spec_name: String,
    pub(super) driver: String,
    pub(super) handle: String,
    pub(super) inline: bool,
    pub(super) block: bool,
    pub(super) read_only: bool,
    pub(super) fs_type: String,
    attributes: BTreeMap<String, String>,
    pub(super) access_modes: Vec<String>,
    mount_options: Vec<String>,
    pub(super) stage_secret: Option<SecretReference>,
    pub(super) publish_secret: Option<SecretReference>,
    pub(super) expand_secret: Option<SecretReference>,
    pub(super) claim: Option<&'a PersistentVolumeClaim>,
    /// What the volume has by now, as the PersistentVolume says.
    capacity: Option<Quantity>,
}

impl<'a> Order<'a> {
    /// A volume that lives and dies with the pod.
    pub(crate) fn inline(pod: &'a Pod, volume: &str, source: &CSIVolumeSource) -> Self {
        let namespace = Some(podutil::namespace(pod).to_owned());
        let secret = source.node_publish_secret_ref.as_ref();
        Order {
            pod,
            spec_name: volume.to_owned(),
            driver: source.driver.clone(),
            handle: inline_handle(podutil::uid(pod), volume),
            inline: true,
            block: false,
            read_only: source.read_only == Some(true),
            fs_type: source.fs_type.clone().unwrap_or_default(),
            attributes: source.volume_attributes.clone().unwrap_or_default(),
            access_modes: vec!["ReadWriteOnce".to_owned()],
            mount_options: Vec::new(),
            stage_secret: None,
            publish_secret: secret
                .map(|secret| SecretReference { name: Some(secret.name.clone()), namespace }),
            expand_secret: None,
            claim: None,
            capacity: None,
        }
    }

    /// The volume that a claim is bound to; `None` if it is not one of CSI.
    pub(crate) fn persistent(
        pod: &'a Pod,
        volume: &PersistentVolume,
        claim: &'a PersistentVolumeClaim,
        read_only: bool,
    ) -> Option<Self> {
        let spec = volume.spec.as_ref()?;
        let source = spec.csi.as_ref()?;
        Some(Order {
            pod,
            spec_name: volume.metadata.name.clone().unwrap_or_default(),
            driver: source.driver.clone(),
            handle: source.volume_handle.clone(),
            inline: false,
            block: spec.volume_mode.as_deref() == Some("Block"),
            read_only: read_only || source.read_only == Some(true),
            fs_type: source.fs_type.clone().unwrap_or_default(),
            attributes: source.volume_attributes.clone().unwrap_or_default(),
            access_modes: spec.access_modes.clone().unwrap_or_default(),
            mount_options: spec.mount_options.clone().unwrap_or_default(),
            stage_secret: source.node_stage_secret_ref.clone(),
            publish_secret: source.node_publish_secret_ref.clone(),
            expand_secret: source.node_expand_secret_ref.clone(),
            claim: Some(claim),
            capacity: spec.capacity.as_ref().and_then(|all| all.get("storage")).cloned(),
        })
    }

    /// How the volume lives, in the API's words.
    pub(super) fn lifecycle(&self) -> &'static str {
        if self.inline { "Ephemeral" } else { "Persistent" }
    }

    /// Whether the driver, by its object, takes volumes that live so. Without an object it takes persistent ones.
    pub(super) fn check_lifecycle(&self, object: Option<&CSIDriver>) -> Result<(), CsiError> {
        let refuse = |why| Err(CsiError::Mode { driver: self.driver.clone(), mode: self.lifecycle(), why });
        match object {
            None if self.inline => refuse("no CSIDriver object"),
            None => Ok(()),
            Some(object) => {
                let modes = object.spec.volume_lifecycle_modes.as_deref().unwrap_or_default();
                let listed = modes.iter().any(|mode| mode == self.lifecycle());
                // Persistent is the default of an object that lists nothing.
                if listed || (modes.is_empty() && !self.inline) {
                    return Ok(());
                }
                refuse("only those that its CSIDriver lists")
            }
        }
    }

    /// What is to be done with the volume, in CSI's words. `group` is given to drivers that set it themselves; drivers that
    /// are `exact` tell one writer from several on a node.
    pub(super) fn capability(&self, exact: bool, group: Option<i64>) -> VolumeCapability {
        let mode = match (self.access_modes.first().map(String::as_str), exact) {
            (Some("ReadOnlyMany"), _) => Mode::MultiNodeReaderOnly,
            (Some("ReadWriteMany"), _) => Mode::MultiNodeMultiWriter,
            (Some("ReadWriteOncePod"), true) => Mode::SingleNodeSingleWriter,
            (Some("ReadWriteOncePod"), false) => Mode::SingleNodeWriter,
            (_, true) => Mode::SingleNodeMultiWriter,
            (_, false) => Mode::SingleNodeWriter,
        };
        let kind = if self.block {
            AccessType::Block(BlockVolume {})
        } else {
            AccessType::Mount(MountVolume {
                fs_type: self.fs_type.clone(),
                mount_flags: self.mount_options.clone(),
                volume_mount_group: group.map(|group| group.to_string()).unwrap_or_default(),
            })
        };
        VolumeCapability { access_mode: Some(AccessMode { mode: mode as i32 }), access_type: Some(kind) }
    }

    /// The volume's own attributes.
    pub(super) fn context(&self) -> HashMap<String, String> {
        self.attributes.clone().into_iter().collect()
    }

    /// The attributes with what the driver's object asks to be told about the pod.
    pub(super) fn pod_context(&self, object: Option<&CSIDriver>) -> HashMap<String, String> {
        let mut context = self.context();
        if object.is_some_and(|object| object.spec.pod_info_on_mount == Some(true)) {
            let account = podutil::spec(self.pod).service_account_name.clone().unwrap_or_default();
            for (key, value) in [
                ("pod.name", podutil::name(self.pod).to_owned()),
                ("pod.namespace", podutil::namespace(self.pod).to_owned()),
                ("pod.uid", podutil::uid(self.pod).to_owned()),
                ("serviceAccount.name", account),
                ("ephemeral", self.inline.to_string()),
            ] {
                context.insert(format!("csi.storage.k8s.io/{key}"), value);
            }
        }
        context
    }

    /// Whether the kubelet gives the volume's files to the pod's `fsGroup`.
    pub(super) fn gives_to_group(&self, object: Option<&CSIDriver>) -> bool {
        let policy = object.and_then(|object| object.spec.fs_group_policy.as_deref());
        if self.read_only || self.block {
            return false;
        }
        match policy.unwrap_or("ReadWriteOnceWithFSType") {
            "None" => false,
            "File" => true,
            _ => {
                let once = |mode: &String| matches!(mode.as_str(), "ReadWriteOnce" | "ReadWriteOncePod");
                !self.fs_type.is_empty() && self.access_modes.iter().any(once)
            }
        }
    }

    /// Bytes that the volume's file system is to grow to; `None` if it has what its volume has.
    pub(super) fn grows_to(&self) -> Option<i64> {
        let capacity = self.claim?.status.as_ref()?.capacity.as_ref();
        let has = quantity::amount(capacity, "storage")?;
        self.capacity.as_ref().and_then(quantity::value).filter(|wanted| *wanted > has)
    }

    /// The volume's size as its object writes it.
    pub(super) fn capacity_text(&self) -> String {
        self.capacity.as_ref().map(|capacity| capacity.0.clone()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn driver(spec: Value) -> CSIDriver {
        serde_json::from_value(json!({"metadata": {"name": "x.io"}, "spec": spec})).expect("a driver")
    }

    fn with<T>(csi: Value, more: Value, ask: impl FnOnce(Order<'_>) -> T) -> T {
        let pod = json!({"metadata": {"name": "p", "namespace": "d", "uid": "u"},
            "spec": {"containers": [], "serviceAccountName": "sa"}});
        let pod: Pod = serde_json::from_value(pod).expect("a pod");
        let mut volume = json!({"metadata": {"name": "pv"}, "spec": {"csi": {"driver": "x.io", "volumeHandle": "h"},
            "capacity": {"storage": "2Gi"}, "accessModes": ["ReadWriteOnce"]}});
        for (key, value) in csi.as_object().into_iter().flatten() {
            volume["spec"]["csi"][key] = value.clone();
        }
        for (key, value) in more.as_object().into_iter().flatten() {
            volume["spec"][key] = value.clone();
        }
        let volume: PersistentVolume = serde_json::from_value(volume).expect("a volume");
        let claim = json!({"metadata": {"name": "c"}, "status": {"capacity": {"storage": "1Gi"}}});
        let claim: PersistentVolumeClaim = serde_json::from_value(claim).expect("a claim");
        ask(Order::persistent(&pod, &volume, &claim, false).expect("a CSI volume"))
    }

    #[test]
    fn access_modes_are_told_as_exactly_as_the_driver_understands() {
        let check = |modes: Value, exact: bool, expected: Mode| {
            let capability =
                with(json!({}), json!({"accessModes": modes}), |order| order.capability(exact, None));
            let mode = capability.access_mode.expect("a mode").mode;
            assert_eq!(Mode::try_from(mode), Ok(expected), "{modes} {exact}");
        };
        check(json!(["ReadWriteOnce"]), false, Mode::SingleNodeWriter);
        check(json!(["ReadWriteOnce"]), true, Mode::SingleNodeMultiWriter);
        check(json!(["ReadWriteOncePod"]), false, Mode::SingleNodeWriter);
        check(json!(["ReadWriteOncePod"]), true, Mode::SingleNodeSingleWriter);
        check(json!(["ReadOnlyMany"]), true, Mode::MultiNodeReaderOnly);
        check(json!(["ReadWriteMany"]), false, Mode::MultiNodeMultiWriter);
    }

    #[test]
    fn the_group_is_given_as_the_driver_says() {
        let check = |policy: Option<&str>, csi: Value, expected: bool| {
            let object = policy.map(|policy| driver(json!({"fsGroupPolicy": policy})));
            let given = with(csi.clone(), json!({}), |order| order.gives_to_group(object.as_ref()));
            assert_eq!(given, expected, "{policy:?} {csi}");
        };
        check(None, json!({}), false);
        check(None, json!({"fsType": "ext4"}), true);
        check(Some("ReadWriteOnceWithFSType"), json!({"fsType": "ext4"}), true);
        check(Some("File"), json!({}), true);
        check(Some("File"), json!({"readOnly": true}), false);
        check(Some("None"), json!({"fsType": "ext4"}), false);
    }

    #[test]
    fn inline_volumes_need_a_driver_that_says_it_takes_them() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"uid": "u"}})).expect("a pod");
        let source: CSIVolumeSource = serde_json::from_value(json!({"driver": "x.io"})).expect("a source");
        let inline = Order::inline(&pod, "v", &source);
        assert!(inline.check_lifecycle(None).is_err());
        assert!(inline.check_lifecycle(Some(&driver(json!({})))).is_err());
        assert!(
            inline.check_lifecycle(Some(&driver(json!({"volumeLifecycleModes": ["Ephemeral"]})))).is_ok()
        );
        with(json!({}), json!({}), |order| {
            assert!(order.check_lifecycle(None).is_ok());
            let object = driver(json!({"volumeLifecycleModes": ["Ephemeral"]}));
            assert!(order.check_lifecycle(Some(&object)).is_err());
        });
    }

    #[test]
    fn drivers_are_told_of_the_pod_if_they_want() {
        with(json!({"volumeAttributes": {"a": "b"}}), json!({}), |order| {
            assert_eq!(order.pod_context(None).len(), 1);
            let told = order.pod_context(Some(&driver(json!({"podInfoOnMount": true}))));
            assert_eq!(told["csi.storage.k8s.io/pod.name"], "p");
            assert_eq!(told["csi.storage.k8s.io/serviceAccount.name"], "sa");
            assert_eq!(told["csi.storage.k8s.io/ephemeral"], "false");
            assert_eq!(told["a"], "b");
            assert_eq!(order.grows_to(), Some(2 << 30));
        });
    }
}
