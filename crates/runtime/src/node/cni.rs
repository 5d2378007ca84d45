//! The Container Network Interface, version 1.1: runs plugins as the specification's section 3 says.
//!
//! The result of an ADD and the configuration it was made with are kept beside the sandbox's record, since DEL and CHECK are given
//! them, whatever the configuration has become meanwhile.

use std::io::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use cri::v1::{PodSandboxConfig, Protocol};
use failpoint::step;
use serde_json::{Value, json};

use crate::error::Error;

/// The link's name in the pod.
const LINK: &str = "eth0";
/// Where the result of ADD is kept.
const RESULT: &str = "cni-result.json";

/// A network of plugins.
pub struct Cni {
    /// The whole configuration.
    document: Value,
    name: String,
    version: String,
    plugins: Vec<Value>,
    bin_dirs: Vec<PathBuf>,
}

/// The sandbox that an operation is about.
pub struct Pod<'a> {
    /// Its name.
    pub id: &'a str,
    /// Its directory.
    pub dir: &'a Path,
    /// Its network namespace; none when that is gone.
    pub netns: Option<&'a Path>,
    /// As the kubelet asked for it.
    pub config: &'a PodSandboxConfig,
}

fn fail(reason: impl Into<String>) -> Error {
    Error::Network(reason.into())
}

impl Cni {
    /// Reads the first configuration of `conf_dir`, in the order of file names.
    pub fn load(conf_dir: &Path, bin_dirs: &[PathBuf]) -> Result<Self, Error> {
        let kind = |p: &PathBuf| {
            p.extension().is_some_and(|e| ["conflist", "conf", "json"].iter().any(|known| e == *known))
        };
        let entries = std::fs::read_dir(conf_dir).into_iter().flatten().flatten();
        let mut files: Vec<PathBuf> = entries.map(|e| e.path()).filter(kind).collect();
        files.sort();
        let Some(file) = files.first() else {
            return Err(fail(format!(
                "no network config found in {}: cni plugin not initialized",
                conf_dir.display()
            )));
        };
        let text = std::fs::read(file).map_err(Error::io(format!("read {}", file.display())))?;
        Self::parse(&text, bin_dirs).map_err(|e| fail(format!("{}: {e}", file.display())))
    }

    fn parse(text: &[u8], bin_dirs: &[PathBuf]) -> Result<Self, String> {
        let document: Value = serde_json::from_slice(text).map_err(|e| e.to_string())?;
        Self::of(document, bin_dirs)
    }

    fn of(document: Value, bin_dirs: &[PathBuf]) -> Result<Self, String> {
        let word = |key: &str| document[key].as_str().map(str::to_owned);
        let plugins = match document["plugins"].as_array() {
            Some(list) => list.clone(),
            None => vec![document.clone()],
        };
        if plugins.is_empty() || plugins.iter().any(|p| p["type"].as_str().is_none_or(str::is_empty)) {
            return Err("every plugin needs a type".into());
        }
        Ok(Self {
            name: word("name").ok_or("the network has no name")?,
            version: word("cniVersion").unwrap_or_else(|| "0.2.0".into()),
            plugins,
            bin_dirs: bin_dirs.to_owned(),
            document,
        })
    }

    /// What is kept of a sandbox's ADD: the network and its result.
    fn kept(dir: &Path, bin_dirs: &[PathBuf]) -> Option<(Option<Self>, Value)> {
        let text = std::fs::read(dir.join(RESULT)).ok()?;
        let mut kept: Value = serde_json::from_slice(&text).ok()?;
        if kept.get("config").is_none() {
            return Some((None, kept));
        }
        let network = Self::of(kept["config"].take(), bin_dirs).ok();
        Some((network, kept["result"].take()))
    }

    /// Whether the configuration's version of the specification has what came with `minor` of 1.x, or of 0.x below 1.
    fn since(&self, major: u32, minor: u32) -> bool {
        let mut parts = self.version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
        (parts.next().unwrap_or(0), parts.next().unwrap_or(0)) >= (major, minor)
    }

    fn has(&self, option: &str) -> bool {
        self.document[option].as_bool().unwrap_or(false)
    }

    /// Asks the plugins whether they could connect a sandbox now. Blocks.
    pub fn status(&self) -> Result<(), Error> {
        if !self.since(1, 1) {
            return Ok(());
        }
        for plugin in &self.plugins {
            self.run("STATUS", plugin, None, None)?;
        }
        Ok(())
    }

    /// Lets the plugins remove what belongs to none of these sandboxes. Blocks.
    pub fn collect(&self, known: &[String]) -> Result<(), Error> {
        if !self.since(1, 1) || self.has("disableGC") {
            return Ok(());
        }
        let valid: Vec<Value> = known.iter().map(|id| json!({"containerID": id, "ifname": LINK})).collect();
        for plugin in &self.plugins {
            let mut plugin = plugin.clone();
            plugin["cni.dev/valid-attachments"] = json!(valid);
            self.run("GC", &plugin, None, None)?;
        }
        Ok(())
    }

    /// Asks the plugins whether a sandbox is connected as it was. Blocks.
    pub fn check(&self, pod: &Pod<'_>) -> Result<(), Error> {
        let kept = Self::kept(pod.dir, &self.bin_dirs);
        let (network, result) = match &kept {
            Some((Some(network), result)) => (network, result),
            Some((None, result)) => (self, result),
            None => return Err(fail("the sandbox was never connected")),
        };
        if !network.since(0, 4) || network.has("disableCheck") {
            return Ok(());
        }
        for plugin in &network.plugins {
            network.run("CHECK", plugin, Some(pod), Some(result))?;
        }
        Ok(())
    }

    /// Connects a sandbox and gives its addresses. Blocks for as long as the plugins take.
    pub fn add(&self, pod: &Pod<'_>) -> Result<Vec<IpAddr>, Error> {
        let mut previous = None;
        for plugin in &self.plugins {
            match self.run("ADD", plugin, Some(pod), previous.as_ref()) {
                Ok(result) => previous = Some(result),
                Err(error) => {
                    let _ = self.undo(pod, None);
                    return Err(error);
                }
            }
        }
        let result = previous.unwrap_or_default();
        let kept = json!({"config": self.document, "result": result});
        let text = serde_json::to_vec(&kept).map_err(|e| fail(e.to_string()))?;
        step("network.cni.result");
        std::fs::write(pod.dir.join(RESULT), text).map_err(Error::io("keep the CNI result"))?;
        let addresses = addresses(&result);
        if addresses.is_empty() { Err(fail("the plugins gave no address")) } else { Ok(addresses) }
    }

    /// Disconnects a sandbox by the configuration that it was connected by, or by the present one; repeatable.
    pub fn del(conf_dir: &Path, bin_dirs: &[PathBuf], pod: &Pod<'_>) -> Result<(), Error> {
        match Self::kept(pod.dir, bin_dirs) {
            Some((Some(network), result)) => network.undo(pod, Some(&result))?,
            Some((None, result)) => Self::load(conf_dir, bin_dirs)?.undo(pod, Some(&result))?,
            None => {
                // An ADD may have been cut off before its result was kept; without a configuration there was none.
                if let Ok(network) = Self::load(conf_dir, bin_dirs) {
                    network.undo(pod, None)?;
                }
            }
        }
        let _ = std::fs::remove_file(pod.dir.join(RESULT));
        Ok(())
    }

    fn undo(&self, pod: &Pod<'_>, previous: Option<&Value>) -> Result<(), Error> {
        for plugin in self.plugins.iter().rev() {
            self.run("DEL", plugin, Some(pod), previous)?;
        }
        Ok(())
    }

    fn run(
        &self,
        command: &str,
        plugin: &Value,
        pod: Option<&Pod<'_>>,
        previous: Option<&Value>,
    ) -> Result<Value, Error> {
        let kind = plugin["type"].as_str().unwrap_or_default();
        if kind.contains('/') {
            return Err(fail(format!("plugin {kind:?} is not a file name")));
        }
        let program = self.bin_dirs.iter().map(|d| d.join(kind)).find(|p| p.is_file());
        let program = program
            .ok_or_else(|| fail(format!("failed to find plugin {kind:?} in path {:?}", self.bin_dirs)))?;
        let bin_dirs: Vec<String> = self.bin_dirs.iter().map(|d| d.display().to_string()).collect();
        let mut prepared = Command::new(&program);
        prepared.env("CNI_COMMAND", command).env("CNI_PATH", bin_dirs.join(":"));
        if let Some(pod) = pod {
            let metadata = pod.config.metadata.clone().unwrap_or_default();
            let arguments = format!(
                "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={}",
                metadata.namespace, metadata.name, pod.id, metadata.uid
            );
            prepared
                .env("CNI_CONTAINERID", pod.id)
                .env("CNI_NETNS", pod.netns.map(|n| n.as_os_str().to_owned()).unwrap_or_default())
                .env("CNI_IFNAME", LINK)
                .env("CNI_ARGS", arguments);
        }
        let mut child = prepared
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(Error::io(format!("run CNI plugin {}", program.display())))?;
        let input = self.input(plugin, pod.map(|pod| pod.config), previous).to_string();
        if let Some(mut stdin) = child.stdin.take() {
            // A plugin that does not read its config fails by itself, with a better reason.
            let _ = stdin.write_all(input.as_bytes());
        }
        let output = child.wait_with_output().map_err(Error::io(format!("run CNI plugin {kind}")))?;
        if output.status.success() {
            return Ok(serde_json::from_slice(&output.stdout).unwrap_or_default());
        }
        let document: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let reason = match document["msg"].as_str() {
            Some(message) => format!("{message} {}", document["details"].as_str().unwrap_or_default()),
            None => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        };
        Err(fail(format!("plugin type={kind:?} failed ({command}): {}", reason.trim())))
    }

    /// A plugin's config: its own, with the network's name, the last result, and what it says it can use.
    fn input(&self, plugin: &Value, config: Option<&PodSandboxConfig>, previous: Option<&Value>) -> Value {
        let mut input = plugin.clone();
        input["name"] = json!(self.name);
        input["cniVersion"] = json!(self.version);
        if let Some(previous) = previous {
            input["prevResult"] = previous.clone();
        }
        let mut runtime = serde_json::Map::new();
        let none = PodSandboxConfig::default();
        let config = config.unwrap_or(&none);
        let can = |what: &str| plugin["capabilities"][what].as_bool().unwrap_or(false);
        if can("portMappings") {
            let ports: Vec<Value> = config
                .port_mappings
                .iter()
                .filter(|m| m.host_port > 0)
                .map(|m| {
                    let protocol = match Protocol::try_from(m.protocol) {
                        Ok(Protocol::Udp) => "udp",
                        Ok(Protocol::Sctp) => "sctp",
                        _ => "tcp",
                    };
                    json!({"hostPort": m.host_port, "containerPort": m.container_port, "protocol": protocol,
                           "hostIP": m.host_ip})
                })
                .collect();
            runtime.insert("portMappings".into(), json!(ports));
        }
        if can("dns")
            && let Some(dns) = &config.dns_config
        {
            let dns = json!({"servers": dns.servers, "searches": dns.searches, "options": dns.options});
            runtime.insert("dns".into(), dns);
        }
        if can("bandwidth") {
            let mut limits = serde_json::Map::new();
            for (direction, name) in
                [("ingress", "kubernetes.io/ingress-bandwidth"), ("egress", "kubernetes.io/egress-bandwidth")]
            {
                if let Some(rate) = config.annotations.get(name).and_then(|text| bits(text)) {
                    limits.insert(format!("{direction}Rate"), json!(rate));
                    limits.insert(format!("{direction}Burst"), json!(u32::MAX));
                }
            }
            if !limits.is_empty() {
                runtime.insert("bandwidth".into(), Value::Object(limits));
            }
        }
        if can("io.kubernetes.cri.pod-annotations") {
            runtime.insert("io.kubernetes.cri.pod-annotations".into(), json!(config.annotations));
        }
        if can("cgroupPath")
            && let Some(linux) = &config.linux
        {
            runtime.insert("cgroupPath".into(), json!(linux.cgroup_parent));
        }
        if !runtime.is_empty() {
            input["runtimeConfig"] = Value::Object(runtime);
        }
        input.as_object_mut().map(|o| o.remove("capabilities"));
        input
    }
}

/// A rate such as `10M` in bits per second.
fn bits(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let factor = match &text[digits..] {
        "" => 1,
        "k" => 1000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        _ => return None,
    };
    text[..digits].parse::<u64>().ok()?.checked_mul(factor)
}

/// The addresses in a result; those of the pod's own link when the result tells links apart.
fn addresses(result: &Value) -> Vec<IpAddr> {
    let interfaces = result["interfaces"].as_array();
    let of_pod = |ip: &&Value| match (ip["interface"].as_u64(), interfaces) {
        (Some(at), Some(list)) => {
            list.get(at as usize).is_none_or(|i| i["sandbox"].as_str().is_some_and(|s| !s.is_empty()))
        }
        _ => true,
    };
    let parse = |text: &str| text.split('/').next().and_then(|ip| ip.parse().ok());
    match result["ips"].as_array() {
        Some(ips) => ips.iter().filter(of_pod).filter_map(|ip| parse(ip["address"].as_str()?)).collect(),
        // Results of version 0.2.0.
        None => ["ip4", "ip6"].iter().filter_map(|family| parse(result[family]["ip"].as_str()?)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A plugin that writes down how it was called.
    const PLUGIN: &str = r#"#!/bin/sh
cat > "$0.$CNI_COMMAND.stdin"
echo "$CNI_COMMAND $CNI_CONTAINERID $CNI_NETNS $CNI_IFNAME" >> "$0.calls"
[ -e "$0.fail" ] && { echo '{"code": 7, "msg": "no more addresses"}'; exit 1; }
[ "$CNI_COMMAND" = ADD ] && echo '{"cniVersion": "1.0.0",
  "interfaces": [{"name": "host"}, {"name": "eth0", "sandbox": "/n"}],
  "ips": [{"address": "10.0.0.5/24", "interface": 1}, {"address": "10.0.0.1/24", "interface": 0}]}'
exit 0
"#;

    #[test]
    fn plugins_are_run_as_the_specification_says() {
        let dir = tempfile::tempdir().unwrap();
        let plugin = dir.path().join("test");
        std::fs::write(&plugin, PLUGIN).unwrap();
        std::fs::set_permissions(&plugin, PermissionsExt::from_mode(0o755)).unwrap();
        assert!(Cni::load(dir.path(), &[]).is_err());
        let conf = json!({"cniVersion": "1.0.0", "name": "net",
                          "plugins": [{"type": "test", "capabilities": {"portMappings": true}}]});
        std::fs::write(dir.path().join("10-net.conflist"), conf.to_string()).unwrap();
        let cni = Cni::load(dir.path(), &[dir.path().to_owned()]).unwrap();
        let config = PodSandboxConfig {
            port_mappings: vec![cri::v1::PortMapping {
                host_port: 80,
                container_port: 8080,
                ..Default::default()
            }],
            ..PodSandboxConfig::default()
        };
        let netns = Path::new("/proc/1/ns/net");
        let pod = Pod { id: "pod", dir: dir.path(), netns: Some(netns), config: &config };
        assert_eq!(cni.add(&pod).unwrap(), ["10.0.0.5".parse::<IpAddr>().unwrap()]);
        let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
        let input: Value = serde_json::from_str(&read("test.ADD.stdin")).unwrap();
        assert_eq!(input["runtimeConfig"]["portMappings"][0]["hostPort"], 80);
        cni.check(&pod).unwrap();
        cni.status().unwrap();
        cni.collect(&["pod".to_owned()]).unwrap();
        assert!(!dir.path().join("test.GC.stdin").exists(), "version 1.0 has no GC");
        // The configuration may change, or go, while the sandbox lives.
        std::fs::rename(dir.path().join("10-net.conflist"), dir.path().join("gone")).unwrap();
        Cni::del(dir.path(), &[dir.path().to_owned()], &pod).unwrap();
        Cni::del(dir.path(), &[dir.path().to_owned()], &pod).unwrap();
        let input: Value = serde_json::from_str(&read("test.DEL.stdin")).unwrap();
        assert_eq!(input["prevResult"]["ips"][0]["address"], "10.0.0.5/24");
        let called =
            "ADD pod /proc/1/ns/net eth0\nCHECK pod /proc/1/ns/net eth0\nDEL pod /proc/1/ns/net eth0\n";
        assert_eq!(read("test.calls"), called);

        let newer = json!({"cniVersion": "1.1.0", "name": "net", "plugins": [{"type": "test"}]});
        std::fs::write(dir.path().join("10-net.conflist"), newer.to_string()).unwrap();
        let newer = Cni::load(dir.path(), &[dir.path().to_owned()]).unwrap();
        newer.status().unwrap();
        newer.collect(&["kept".to_owned()]).unwrap();
        let input: Value = serde_json::from_str(&read("test.GC.stdin")).unwrap();
        assert_eq!(input["cni.dev/valid-attachments"][0]["containerID"], "kept");

        std::fs::write(dir.path().join("test.fail"), "").unwrap();
        let error = cni.add(&pod).unwrap_err().to_string();
        assert!(error.contains("no more addresses"), "{error}");
        assert!(newer.status().unwrap_err().to_string().contains("(STATUS)"));
    }
}
