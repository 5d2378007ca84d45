//! Pods on the node: each hangs on a routed point-to-point veth. The pod has a /32 and a /128 and routes everything to 169.254.1.1 and
//! fe80::1 on the host's end; permanent neighbour entries on both ends make resolution unnecessary. There is no bridge.

mod rules;

use crate::error::{Error, Result};
use crate::ipam::{Lease, Leases, nth};
use crate::link::{GROUP, LEAVING, Links, Mac, Scope};
use crate::{netns, sysctl};
use failpoint::step;
use ipnet::IpNet;
use parking_lot::Mutex;
use ruleset::{Protocol, Ruleset};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

pub(crate) const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
pub(crate) const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
const POD_LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);
/// All host ends share it: each link has only one neighbour.
const HOST_MAC: Mac = [0x02, 0xca, 0xff, 0xff, 0xff, 0xfe];
const LOOPBACK: u32 = 1;
pub(crate) use rules::TABLE;
/// Name of the link inside the pod.
const POD_LINK: &str = "eth0";

/// What a [`PodNetwork`] needs to know.
#[derive(Clone, Debug)]
pub struct PodNetworkConfig {
    /// Where leases are kept (made if missing).
    pub state_dir: PathBuf,
    /// This node's pod ranges: at most one of each family. The first address of each is the node's own.
    pub ranges: Vec<IpNet>,
    /// The whole cluster's pod ranges: traffic to these is not masqueraded.
    pub cluster_ranges: Vec<IpNet>,
    /// MTU of pod links; without it the smallest MTU of the host's own links.
    pub mtu: Option<u32>,
}

/// A port of the host that leads to a pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostPort {
    /// A single address of the host; all of them if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<IpAddr>,
    /// Port on the host.
    pub host_port: u16,
    /// Port in the pod.
    pub container_port: u16,
    /// Transport protocol.
    pub protocol: Protocol,
}

impl HostPort {
    pub(crate) fn clashes(&self, other: &HostPort) -> bool {
        let everywhere = |ip: Option<IpAddr>| ip.is_none_or(|ip| ip.is_unspecified());
        self.host_port == other.host_port
            && self.protocol == other.protocol
            && (everywhere(self.host_ip) || everywhere(other.host_ip) || self.host_ip == other.host_ip)
    }
}

/// Connects pods to the node. Must be made in a thread of the node's network namespace and used from such threads. All methods block
/// for a few milliseconds; calls for different pods may run at once.
pub struct PodNetwork {
    leases: Mutex<Leases>,
    ranges: Vec<IpNet>,
    mtu: u32,
    /// The table as it is in force; the lock also orders its changes.
    rules: Mutex<Ruleset>,
    /// Wakes the thread that removes links.
    leaving: SyncSender<()>,
}

impl PodNetwork {
    /// Sets up the node's side (forwarding, the node's own pod addresses, masquerading) and loads the leases.
    /// Without IPv6 in the kernel, IPv6 ranges are left out (and the log says so).
    pub fn new(mut config: PodNetworkConfig) -> Result<Self> {
        let wants_ipv6 = config.ranges.iter().any(|range| range.addr().is_ipv6());
        if wants_ipv6 && !sysctl::ipv6_usable() {
            config.ranges.retain(|range| range.addr().is_ipv4());
        }
        let leases = Leases::open(config.state_dir.clone(), config.ranges.clone())?;
        let ipv6 = config.ranges.iter().any(|range| range.addr().is_ipv6());
        sysctl::enable_forwarding(ipv6)?;
        let mut links = Links::open()?;
        links.loopback_up()?;
        for range in &config.ranges {
            links.add_address(LOOPBACK, IpNet::from(nth(range, 1)), Scope::Universe)?;
        }
        links.add_address(LOOPBACK, IpNet::from(IpAddr::from(GATEWAY_V4)), Scope::Link)?;
        crate::node::prefer_own_source(&mut links)?;
        let mtu = match config.mtu {
            Some(mtu) => mtu,
            None => links
                .list()?
                .iter()
                .filter(|link| link.up && !link.loopback && link.group != GROUP && link.mtu >= 1280)
                .map(|link| link.mtu)
                .min()
                .unwrap_or(1500),
        };
        let mut rules = rules::table(&config.ranges, &config.cluster_ranges);
        for (_, lease) in leases.iter() {
            rules::add_pod(&mut rules, &lease.addresses, &lease.host_ports);
        }
        crate::apply(&rules)?;
        links.delete_group(LEAVING)?;
        let (leaving, work) = sync_channel(1);
        std::thread::Builder::new()
            .name("pod-links".into())
            .spawn(move || remove_links(&work))
            .map_err(|source| Error::Socket { action: "start the thread that removes links", source })?;
        Ok(Self { leases: Mutex::new(leases), ranges: config.ranges, mtu, rules: Mutex::new(rules), leaving })
    }

    /// Connects the namespace pinned at `netns` and returns its addresses, IPv4 first. A second call for the same sandbox returns the
    /// same addresses.
    pub fn add(&self, sandbox: &str, netns: &Path, host_ports: &[HostPort]) -> Result<Vec<IpAddr>> {
        let lease = {
            let mut leases = self.leases.lock();
            match leases.get(sandbox) {
                Some(lease) => lease.clone(),
                None => leases.reserve(sandbox, host_ports)?,
            }
        };
        let name = link_name(sandbox);
        let mut links = Links::open()?;
        if lease.ready && links.index(&name)?.is_some() {
            return Ok(lease.addresses);
        }
        step("network.add.link");
        links.delete(&name)?;
        let result = self.connect(&mut links, &name, &lease, netns).and_then(|()| {
            step("network.add.rules");
            self.change_rules(|rules| rules::add_pod(rules, &lease.addresses, &lease.host_ports))
        });
        step("network.add.ready");
        match result {
            Ok(()) => self.leases.lock().set_ready(sandbox)?,
            Err(error) => {
                let _ = self.del(sandbox);
                return Err(error);
            }
        }
        Ok(lease.addresses)
    }

    /// Addresses of a sandbox, if it is connected.
    pub fn addresses(&self, sandbox: &str) -> Option<Vec<IpAddr>> {
        self.leases.lock().get(sandbox).map(|lease| lease.addresses.clone())
    }

    /// Disconnects a sandbox and frees its addresses; the link itself goes a moment later, together with others. It is no error if
    /// nothing is left of it.
    pub fn del(&self, sandbox: &str) -> Result<()> {
        let name = link_name(sandbox);
        let mut links = Links::open()?;
        let index = links.index(&name)?;
        let lease = self.leases.lock().get(sandbox).cloned();
        step("network.del.rules");
        if let Some(lease) = lease {
            self.change_rules(|rules| rules::remove_pod(rules, &lease.addresses, &lease.host_ports))?;
            for &address in index.iter().flat_map(|_| &lease.addresses) {
                links.delete_route(IpNet::from(address), index.unwrap_or(0))?;
            }
        }
        step("network.del.link");
        if index.is_some() {
            links.set_group(&name, LEAVING)?;
            // A wake-up that is waiting already will see this link too.
            let _ = self.leaving.try_send(());
        }
        step("network.del.lease");
        // Last, so that the addresses are free only when nothing points to them any more.
        self.leases.lock().release(sandbox)?;
        Ok(())
    }

    /// Removes whatever belongs to no sandbox of `known`: leases, links, host ports.
    pub fn gc(&self, known: &HashSet<String>) -> Result<()> {
        let stale: Vec<String> = {
            let leases = self.leases.lock();
            leases.iter().map(|(id, _)| id.clone()).filter(|id| !known.contains(id)).collect()
        };
        for id in stale {
            self.del(&id)?;
        }
        let names: HashSet<String> = known.iter().map(|id| link_name(id)).collect();
        let mut links = Links::open()?;
        for link in links.list()? {
            if link.group == GROUP && !names.contains(&link.name) {
                links.set_group(&link.name, LEAVING)?;
            }
        }
        links.delete_group(LEAVING)
    }

    fn change_rules(&self, change: impl FnOnce(&mut Ruleset)) -> Result<()> {
        let mut current = self.rules.lock();
        let mut wanted = current.clone();
        change(&mut wanted);
        crate::commit(&ruleset::diff(&current, &wanted))?;
        *current = wanted;
        Ok(())
    }

    fn connect(&self, links: &mut Links, name: &str, lease: &Lease, netns: &Path) -> Result<()> {
        let namespace = netns::open(netns)?;
        let pod_mac = pod_mac(&lease.addresses);
        let ipv6 = sysctl::has_ipv6();
        let wants_ipv6 = lease.addresses.iter().any(IpAddr::is_ipv6);
        step("network.add.veth");
        links.add_veth((name, HOST_MAC), (POD_LINK, pod_mac), &namespace, self.mtu)?;
        netns::within_file(&namespace, netns, || -> Result<()> {
            let mut links = Links::open()?;
            links.loopback_up()?;
            let index = links.index(POD_LINK)?.unwrap_or(0);
            if wants_ipv6 {
                sysctl::enable_ipv6(POD_LINK)?;
            }
            links.set_up(index, ipv6)?;
            if wants_ipv6 {
                let local = IpNet::new(POD_LINK_LOCAL.into(), 64).expect("64 is a valid prefix length");
                links.add_address(index, local, Scope::Link)?;
            }
            for &address in &lease.addresses {
                links.add_address(index, IpNet::from(address), Scope::Universe)?;
                let gateway = gateway(address);
                links.add_neighbour(index, gateway, HOST_MAC)?;
                links.add_default(gateway, index)?;
            }
            Ok(())
        })??;
        step("network.add.host");
        let index = links.index(name)?.unwrap_or(0);
        if wants_ipv6 {
            sysctl::enable_ipv6(name)?;
        }
        links.set_up(index, ipv6)?;
        if wants_ipv6 {
            let local = IpNet::new(GATEWAY_V6.into(), 64).expect("64 is a valid prefix length");
            links.add_address(index, local, Scope::Link)?;
        }
        for &address in &lease.addresses {
            links.add_neighbour(index, address, pod_mac)?;
            let source = self.ranges.iter().find(|range| range.contains(&address)).map(|range| nth(range, 1));
            links.add_route(IpNet::from(address), index, source)?;
        }
        Ok(())
    }
}

/// Removes what is marked as leaving, whenever woken, until the network is dropped.
fn remove_links(work: &Receiver<()>) {
    while work.recv().is_ok() {
        if let Err(error) = Links::open().and_then(|mut links| links.delete_group(LEAVING)) {
            tracing::warn!(%error, "links of removed pods are still there");
        }
    }
}

fn gateway(address: IpAddr) -> IpAddr {
    if address.is_ipv4() { GATEWAY_V4.into() } else { GATEWAY_V6.into() }
}

/// A locally administered address that is unique in the cluster because the pod's address is.
fn pod_mac(addresses: &[IpAddr]) -> Mac {
    let tail = match addresses.first() {
        Some(IpAddr::V4(v4)) => v4.octets(),
        Some(IpAddr::V6(v6)) => {
            let octets = v6.octets();
            [octets[12], octets[13], octets[14], octets[15]]
        }
        None => [0; 4],
    };
    [0x02, 0xca, tail[0], tail[1], tail[2], tail[3]]
}

/// The host's end of a sandbox's link: at most 15 characters, so a hash (FNV-1a) of the id.
pub(crate) fn link_name(sandbox: &str) -> String {
    let hash = sandbox.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("pod{:012x}", hash & 0xffff_ffff_ffff)
}

#[cfg(test)]
mod tests;
