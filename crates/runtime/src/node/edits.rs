//! What others add to containers: devices of the Container Device Interface (specification 1.0, spec files in JSON or YAML), and OCI
//! hooks from folders in the form of `oci-hooks(5)`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use cri::v1::ContainerConfig;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::devices;
use crate::error::Error;
use crate::spec::Device;

/// Annotations with this prefix name devices too, as an older way than `CDIDevices`.
const ANNOTATION: &str = "cdi.k8s.io/";

/// Additions to a container.
#[derive(Debug, Clone, Default)]
pub struct Edits {
    /// `name=value`.
    pub env: Vec<String>,
    /// In the form of the OCI spec.
    pub mounts: Vec<Value>,
    /// By stage, in the form of the OCI spec.
    pub hooks: BTreeMap<String, Vec<Value>>,
    /// Devices.
    pub devices: Vec<Device>,
    /// Groups of the process.
    pub groups: Vec<u32>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ContainerEdits {
    env: Vec<String>,
    device_nodes: Vec<DeviceNode>,
    mounts: Vec<Mount>,
    hooks: Vec<CdiHook>,
    additional_gids: Vec<u32>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct DeviceNode {
    path: String,
    host_path: String,
    permissions: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Mount {
    host_path: String,
    container_path: String,
    r#type: String,
    options: Vec<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct CdiHook {
    hook_name: String,
    #[serde(flatten)]
    hook: Hook,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
struct Hook {
    path: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    args: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    env: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    timeout: Option<i64>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct CdiDevice {
    name: String,
    #[serde(default)]
    container_edits: ContainerEdits,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct CdiSpec {
    kind: String,
    #[serde(default)]
    devices: Vec<CdiDevice>,
    #[serde(default)]
    container_edits: ContainerEdits,
}

/// Files of a folder with one of these endings, in order.
fn files(dir: &Path, endings: &[&str]) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let fits = |path: &PathBuf| path.extension().is_some_and(|end| endings.iter().any(|known| end == *known));
    let mut files: Vec<PathBuf> = entries.filter(fits).collect();
    files.sort();
    files
}

impl Edits {
    /// The devices that a container asks for, from the spec files of `dirs`; a later folder's device takes an earlier one's place.
    pub fn of_devices(config: &ContainerConfig, dirs: &[PathBuf]) -> Result<Self, Error> {
        let mut wanted: Vec<&str> = config.cdi_devices.iter().map(|device| device.name.as_str()).collect();
        for (_, value) in config.annotations.iter().filter(|(key, _)| key.starts_with(ANNOTATION)) {
            wanted.extend(value.split(',').map(str::trim).filter(|name| !name.is_empty()));
        }
        wanted.sort_unstable();
        wanted.dedup();
        let mut edits = Self::default();
        if wanted.is_empty() {
            return Ok(edits);
        }
        let mut known: BTreeMap<String, (CdiDevice, ContainerEdits, String)> = BTreeMap::new();
        for file in dirs.iter().flat_map(|dir| files(dir, &["json", "yaml", "yml"])) {
            let text =
                std::fs::read_to_string(&file).map_err(Error::io(format!("read {}", file.display())))?;
            // JSON is YAML too.
            match serde_saphyr::from_str::<CdiSpec>(&text) {
                Ok(spec) => {
                    for device in spec.devices {
                        let name = format!("{}={}", spec.kind, device.name);
                        known.insert(name, (device, spec.container_edits.clone(), spec.kind.clone()));
                    }
                }
                // One broken file of a vendor does not keep the others' devices away.
                Err(error) => tracing::warn!(file = %file.display(), %error, "a CDI spec cannot be read"),
            }
        }
        let missing: Vec<&str> = wanted.iter().copied().filter(|name| !known.contains_key(*name)).collect();
        if !missing.is_empty() {
            let missing = missing.join(", ");
            return Err(Error::Invalid(format!(
                "CDI device injection failed: unresolvable CDI devices {missing}"
            )));
        }
        let mut kinds: Vec<&str> = Vec::new();
        for name in wanted {
            let (device, common, kind) = &known[name];
            if !kinds.contains(&kind.as_str()) {
                kinds.push(kind);
                edits.add(common)?;
            }
            edits.add(&device.container_edits)?;
        }
        Ok(edits)
    }

    fn add(&mut self, from: &ContainerEdits) -> Result<(), Error> {
        self.env.extend(from.env.iter().cloned());
        self.groups.extend(from.additional_gids.iter().filter(|gid| **gid != 0));
        for node in &from.device_nodes {
            let host = if node.host_path.is_empty() { &node.path } else { &node.host_path };
            self.devices.extend(devices::find(host, &node.path, &node.permissions)?);
        }
        for mount in &from.mounts {
            let kind = if mount.r#type.is_empty() { "bind" } else { &mount.r#type };
            self.mounts.push(serde_json::json!({
                "destination": mount.container_path, "source": mount.host_path, "type": kind, "options": mount.options,
            }));
        }
        for hook in &from.hooks {
            self.hook(&hook.hook_name, &hook.hook)?;
        }
        Ok(())
    }

    fn hook(&mut self, stage: &str, hook: &Hook) -> Result<(), Error> {
        const STAGES: [&str; 6] =
            ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];
        if !STAGES.contains(&stage) {
            return Err(Error::Invalid(format!("hook {}: unknown stage {stage:?}", hook.path)));
        }
        let hook = serde_json::to_value(hook).map_err(|e| Error::Internal(e.to_string()))?;
        self.hooks.entry(stage.to_owned()).or_default().push(hook);
        Ok(())
    }

    /// Adds the hooks of the folders that are meant for such a container. A later folder's file hides an earlier one's.
    pub fn add_hooks(&mut self, dirs: &[PathBuf], container: &Subject<'_>) -> Result<(), Error> {
        let mut by_name: BTreeMap<std::ffi::OsString, PathBuf> = BTreeMap::new();
        for file in dirs.iter().flat_map(|dir| files(dir, &["json"])) {
            by_name.insert(file.file_name().unwrap_or_default().to_owned(), file);
        }
        for file in by_name.values() {
            let bad = |reason: String| Error::Invalid(format!("hook {}: {reason}", file.display()));
            let text = std::fs::read(file).map_err(Error::io(format!("read {}", file.display())))?;
            let config: HookFile = serde_json::from_slice(&text).map_err(|e| bad(e.to_string()))?;
            if config.version != "1.0.0" {
                return Err(bad(format!("version {:?} is not known", config.version)));
            }
            if config.when.fits(container).map_err(bad)? {
                for stage in &config.stages {
                    self.hook(stage, &config.hook)?;
                }
            }
        }
        Ok(())
    }
}

/// What hooks choose containers by.
pub struct Subject<'a> {
    /// The container's annotations, with the pod's.
    pub annotations: Vec<(&'a str, &'a str)>,
    /// The program that it runs.
    pub command: &'a str,
    /// Whether host folders are mounted in it.
    pub has_bind_mounts: bool,
}

#[derive(Debug, Deserialize)]
struct HookFile {
    version: String,
    hook: Hook,
    when: When,
    stages: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct When {
    always: Option<bool>,
    annotations: BTreeMap<String, String>,
    commands: Vec<String>,
    has_bind_mounts: Option<bool>,
}

impl When {
    /// All that is named has to fit.
    fn fits(&self, container: &Subject<'_>) -> Result<bool, String> {
        let regex = |text: &str| regex::Regex::new(text).map_err(|e| e.to_string());
        let mut any = false;
        if let Some(always) = self.always {
            any = true;
            if !always {
                return Ok(false);
            }
        }
        if let Some(wanted) = self.has_bind_mounts {
            any = true;
            if wanted != container.has_bind_mounts {
                return Ok(false);
            }
        }
        for (key, value) in &self.annotations {
            any = true;
            let (key, value) = (regex(key)?, regex(value)?);
            if !container.annotations.iter().any(|(k, v)| key.is_match(k) && value.is_match(v)) {
                return Ok(false);
            }
        }
        if !self.commands.is_empty() {
            any = true;
            let mut found = false;
            for command in &self.commands {
                found |= regex(command)?.is_match(container.command);
            }
            if !found {
                return Ok(false);
            }
        }
        Ok(any)
    }
}

/// Runs the `poststop` hooks of a bundle, which come when the container is gone; one that fails is told of. Blocks.
pub fn after_stop(bundle: &Path, id: &str) {
    let Ok(text) = std::fs::read(bundle.join("config.json")) else { return };
    let config: Value = serde_json::from_slice(&text).unwrap_or_default();
    let hooks: Vec<Hook> = serde_json::from_value(config["hooks"]["poststop"].clone()).unwrap_or_default();
    let state = serde_json::json!({
        "ociVersion": config["ociVersion"], "id": id, "status": "stopped", "bundle": bundle,
    });
    for hook in hooks {
        if let Err(error) = run(&hook, &state.to_string()) {
            tracing::warn!(container = id, hook = hook.path, %error, "a hook failed");
        }
    }
}

fn run(hook: &Hook, state: &str) -> std::io::Result<()> {
    use std::io::Write;
    use std::os::unix::process::CommandExt;
    let mut command = std::process::Command::new(&hook.path);
    if let Some((name, rest)) = hook.args.split_first() {
        command.arg0(name).args(rest);
    }
    let env = hook.env.iter().filter_map(|pair| pair.split_once('='));
    command.env_clear().envs(env).stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::null());
    let mut child = command.spawn()?;
    if let Some(mut input) = child.stdin.take() {
        // A hook need not read its input.
        let _ = input.write_all(state.as_bytes());
    }
    let status = child.wait()?;
    if status.success() { Ok(()) } else { Err(std::io::Error::other(status.to_string())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_found_by_their_names() {
        let (low, high) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let json = r#"{"cdiVersion": "0.6.0", "kind": "v.test/gpu", "devices": [
            {"name": "0", "containerEdits": {"env": ["GPU=low"]}}, {"name": "1", "containerEdits": {"env": ["OTHER=1"]}}]}"#;
        std::fs::write(low.path().join("a.json"), json).unwrap();
        std::fs::write(low.path().join("broken.json"), "{").unwrap();
        let yaml = "cdiVersion: 1.0.0\nkind: v.test/gpu\ncontainerEdits: {env: [ALL=1]}\ndevices:\n- name: \"0\"\n  \
                    containerEdits:\n    deviceNodes: [{path: /dev/gpu, hostPath: /dev/null, permissions: rw}]\n    \
                    mounts: [{hostPath: /lib, containerPath: /gpu, options: [ro, rbind]}]\n    \
                    hooks: [{hookName: createContainer, path: /bin/true, args: [t]}]\n    additionalGids: [44]\n";
        std::fs::write(high.path().join("b.yaml"), yaml).unwrap();
        let dirs = [low.path().to_owned(), high.path().to_owned()];
        let config = |names: &[&str]| ContainerConfig {
            cdi_devices: names.iter().map(|name| cri::v1::CdiDevice { name: (*name).into() }).collect(),
            annotations: [("cdi.k8s.io/x".to_owned(), "v.test/gpu=1".to_owned())].into(),
            ..ContainerConfig::default()
        };
        let edits = Edits::of_devices(&config(&["v.test/gpu=0"]), &dirs).unwrap();
        assert_eq!(edits.env, ["ALL=1", "OTHER=1"]);
        assert_eq!(
            (edits.devices[0].path.as_str(), edits.devices[0].permissions.as_str()),
            ("/dev/gpu", "rw")
        );
        assert_eq!(
            (edits.mounts[0]["destination"].as_str(), edits.groups.as_slice()),
            (Some("/gpu"), &[44][..])
        );
        assert_eq!(edits.hooks["createContainer"][0]["args"][0], "t");
        let error = Edits::of_devices(&config(&["v.test/gpu=9"]), &dirs).unwrap_err().to_string();
        assert!(error.contains("unresolvable CDI devices v.test/gpu=9"), "{error}");
        assert!(Edits::of_devices(&ContainerConfig::default(), &[]).unwrap().env.is_empty());
    }

    #[test]
    fn hooks_choose_their_containers() {
        let dir = tempfile::tempdir().unwrap();
        let check = |when: &str, expect: bool| {
            let text = format!(
                r#"{{"version": "1.0.0", "hook": {{"path": "/bin/true"}}, "when": {when}, "stages": ["prestart", "poststop"]}}"#
            );
            std::fs::write(dir.path().join("h.json"), text).unwrap();
            let subject = Subject {
                annotations: vec![("a.test/b", "yes")],
                command: "/bin/sh",
                has_bind_mounts: false,
            };
            let mut edits = Edits::default();
            edits.add_hooks(&[dir.path().to_owned()], &subject).unwrap();
            assert_eq!(edits.hooks.len(), if expect { 2 } else { 0 }, "{when}");
        };
        check(r#"{"always": true}"#, true);
        check(r#"{"always": false}"#, false);
        check(r#"{}"#, false);
        check(r#"{"annotations": {"^a\\.test/": "^y"}}"#, true);
        check(r#"{"annotations": {"^a\\.test/": "^n"}}"#, false);
        check(r#"{"commands": ["sh$"], "hasBindMounts": false}"#, true);
        check(r#"{"commands": ["sh$"], "hasBindMounts": true}"#, false);
        let broken = r#"{"version": "1.0.0", "hook": {"path": "/x"}, "when": {"always": true}, "stages": ["sometime"]}"#;
        std::fs::write(dir.path().join("h.json"), broken).unwrap();
        let subject = Subject { annotations: vec![], command: "", has_bind_mounts: false };
        let error = Edits::default().add_hooks(&[dir.path().to_owned()], &subject).unwrap_err().to_string();
        assert!(error.contains("h.json") || error.contains("unknown stage"), "{error}");
    }
}
