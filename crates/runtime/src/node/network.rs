//! How sandboxes get addresses: by Carrack's own pod network, by CNI plugins, or not at all.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cri::v1::{PodSandboxConfig, Protocol};
use ipnet::IpNet;
use network::{HostPort, PodNetwork, PodNetworkConfig};
use parking_lot::RwLock;

use super::cni::{Cni, Pod};
use crate::config::NetworkMode;
use crate::error::Error;

/// The network of this node.
pub struct Network {
    mode: NetworkMode,
    /// Where the ranges are kept, to be there before the kubelet tells them again.
    ranges: PathBuf,
    pods: RwLock<Option<Arc<PodNetwork>>>,
}

fn parse(ranges: &str) -> Result<Vec<IpNet>, Error> {
    let parts = ranges.split(',').map(str::trim).filter(|r| !r.is_empty());
    parts.map(|r| r.parse().map_err(|_| Error::Invalid(format!("invalid pod range {r:?}")))).collect()
}

impl Network {
    /// Sets the pod network up if this node's ranges are known.
    pub fn open(mode: &NetworkMode, root: &Path) -> Result<Self, Error> {
        let network = Self { mode: mode.clone(), ranges: root.join("pod-ranges"), pods: RwLock::new(None) };
        if let NetworkMode::Pods { ranges, .. } = mode {
            let saved = std::fs::read_to_string(&network.ranges).unwrap_or_default();
            let ranges = if ranges.is_empty() { parse(&saved)? } else { ranges.clone() };
            if !ranges.is_empty() {
                network.set_up(ranges)?;
            }
        }
        Ok(network)
    }

    fn set_up(&self, ranges: Vec<IpNet>) -> Result<(), Error> {
        if let NetworkMode::Pods { state_dir, cluster_ranges, mtu, .. } = &self.mode {
            let config = PodNetworkConfig {
                state_dir: state_dir.clone(),
                ranges,
                cluster_ranges: cluster_ranges.clone(),
                mtu: *mtu,
            };
            let pods = PodNetwork::new(config).map_err(|e| Error::Network(e.to_string()))?;
            *self.pods.write() = Some(Arc::new(pods));
        }
        Ok(())
    }

    /// The node's ranges as the kubelet tells them, `v4,v6`. Blocks.
    pub fn update(&self, text: &str) -> Result<(), Error> {
        let NetworkMode::Pods { ranges: fixed, .. } = &self.mode else { return Ok(()) };
        let ranges = parse(text)?;
        let known = std::fs::read_to_string(&self.ranges).unwrap_or_default();
        if ranges.is_empty() || !fixed.is_empty() || (self.pods.read().is_some() && known == text) {
            return Ok(());
        }
        self.set_up(ranges)?;
        std::fs::write(&self.ranges, text).map_err(Error::io("save the pod ranges"))
    }

    /// In one word, for a verbose status.
    pub fn describe(&self) -> &'static str {
        match &self.mode {
            NetworkMode::Pods { .. } => "pods",
            NetworkMode::Cni { .. } => "cni",
            NetworkMode::None => "none",
        }
    }

    /// Why pods cannot be connected now, if so. Blocks where plugins are asked.
    pub fn not_ready(&self) -> Option<String> {
        match &self.mode {
            NetworkMode::Pods { .. } if self.pods.read().is_none() => {
                Some("the node has no pod range yet".into())
            }
            NetworkMode::Cni { conf_dir, bin_dirs } => {
                Cni::load(conf_dir, bin_dirs).and_then(|cni| cni.status()).err().map(|e| e.to_string())
            }
            _ => None,
        }
    }

    /// Connects a sandbox. Blocks.
    pub fn add(&self, pod: &Pod<'_>) -> Result<Vec<IpAddr>, Error> {
        match &self.mode {
            NetworkMode::None => Ok(Vec::new()),
            NetworkMode::Pods { .. } => {
                let pods = self.pods.read().clone();
                let pods = pods.ok_or_else(|| Error::Network("the node has no pod range yet".into()))?;
                let netns = pod.netns.ok_or_else(|| Error::Network("the sandbox has no namespace".into()))?;
                pods.add(pod.id, netns, &host_ports(pod.config)?).map_err(|e| Error::Network(e.to_string()))
            }
            NetworkMode::Cni { conf_dir, bin_dirs } => Cni::load(conf_dir, bin_dirs)?.add(pod),
        }
    }

    /// Disconnects a sandbox; one that is not connected is fine. Blocks.
    pub fn del(&self, pod: &Pod<'_>) -> Result<(), Error> {
        if let NetworkMode::Cni { conf_dir, bin_dirs } = &self.mode {
            return Cni::del(conf_dir, bin_dirs, pod);
        }
        match self.pods.read().clone() {
            Some(pods) => pods.del(pod.id).map_err(|e| Error::Network(e.to_string())),
            None => Ok(()),
        }
    }

    /// Whether a sandbox is connected as it was, as far as that can be asked. Blocks.
    pub fn check(&self, pod: &Pod<'_>) -> Result<(), Error> {
        match &self.mode {
            NetworkMode::Cni { conf_dir, bin_dirs } => Cni::load(conf_dir, bin_dirs)?.check(pod),
            _ => Ok(()),
        }
    }

    /// Disconnects all sandboxes but those in `known`. Blocks.
    pub fn collect(&self, known: &[String]) -> Result<(), Error> {
        if let NetworkMode::Cni { conf_dir, bin_dirs } = &self.mode {
            // Without a configuration nothing was ever connected.
            return Cni::load(conf_dir, bin_dirs).map_or(Ok(()), |cni| cni.collect(known));
        }
        match self.pods.read().clone() {
            Some(pods) => {
                let known = known.iter().cloned().collect();
                pods.gc(&known).map_err(|e| Error::Network(e.to_string()))
            }
            None => Ok(()),
        }
    }
}

fn host_ports(config: &PodSandboxConfig) -> Result<Vec<HostPort>, Error> {
    let port = |n: i32| u16::try_from(n).map_err(|_| Error::Invalid(format!("invalid port {n}")));
    config
        .port_mappings
        .iter()
        .filter(|m| m.host_port > 0)
        .map(|m| {
            let ip = m.host_ip.as_str();
            Ok(HostPort {
                host_ip: if ip.is_empty() {
                    None
                } else {
                    Some(ip.parse().map_err(|_| Error::Invalid(format!("invalid host IP {ip:?}")))?)
                },
                host_port: port(m.host_port)?,
                container_port: port(m.container_port)?,
                protocol: match Protocol::try_from(m.protocol) {
                    Ok(Protocol::Udp) => network::Protocol::Udp,
                    Ok(Protocol::Sctp) => network::Protocol::Sctp,
                    _ => network::Protocol::Tcp,
                },
            })
        })
        .collect()
}
