//! Node-local address management: one small file per sandbox, written whole and renamed into place. No fsync: the files only have to
//! outlive the process, since the pods themselves do not outlive a crash of the machine.

use crate::error::{Error, Result};
use crate::pods::HostPort;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

/// What is kept about a sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Lease {
    pub(crate) addresses: Vec<IpAddr>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) host_ports: Vec<HostPort>,
    /// Whether the link was completed.
    pub(crate) ready: bool,
}

/// All leases of the node, in memory and on disk.
pub(crate) struct Leases {
    directory: PathBuf,
    ranges: Vec<IpNet>,
    leases: BTreeMap<String, Lease>,
    used: HashSet<IpAddr>,
    /// Offset after which the next search starts, per range, so that a freed address rests before it is given out again.
    cursors: Vec<u128>,
}

impl Leases {
    pub(crate) fn open(directory: PathBuf, ranges: Vec<IpNet>) -> Result<Self> {
        for range in &ranges {
            if capacity(range) < 4 {
                return Err(Error::BadRange { range: *range, reason: "it holds fewer than four addresses" });
            }
        }
        let failed = |path: &PathBuf| {
            let path = path.clone();
            move |source| Error::State { path, source }
        };
        fs::create_dir_all(&directory).map_err(failed(&directory))?;
        let mut leases = BTreeMap::new();
        for entry in fs::read_dir(&directory).map_err(failed(&directory))? {
            let path = entry.map_err(failed(&directory))?.path();
            let Some(id) = path.file_name().and_then(|name| name.to_str()) else { continue };
            if id.starts_with('.') {
                let _ = fs::remove_file(&path);
                continue;
            }
            let bytes = fs::read(&path).map_err(failed(&path))?;
            match serde_json::from_slice::<Lease>(&bytes) {
                Ok(lease) => {
                    leases.insert(id.to_owned(), lease);
                }
                // Only a crash of the machine leaves such a file, and then its pod is gone too.
                Err(error) => {
                    tracing::warn!(sandbox = id, %error, "dropping an unreadable address lease");
                    let _ = fs::remove_file(&path);
                }
            }
        }
        let used: HashSet<IpAddr> = leases.values().flat_map(|lease| lease.addresses.clone()).collect();
        let cursors = ranges
            .iter()
            .map(|range| used.iter().filter_map(|ip| offset(range, *ip)).max().unwrap_or(0))
            .collect();
        Ok(Self { directory, ranges, leases, used, cursors })
    }

    pub(crate) fn get(&self, id: &str) -> Option<&Lease> {
        self.leases.get(id)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&String, &Lease)> {
        self.leases.iter()
    }

    /// Reserves one address of each range for a sandbox that has none yet.
    pub(crate) fn reserve(&mut self, id: &str, host_ports: &[HostPort]) -> Result<Lease> {
        check_id(id)?;
        self.check_ports(id, host_ports)?;
        let mut addresses = Vec::with_capacity(self.ranges.len());
        for index in 0..self.ranges.len() {
            addresses.push(self.pick(index)?);
        }
        let lease = Lease { addresses, host_ports: host_ports.to_vec(), ready: false };
        self.write(id, &lease)?;
        self.used.extend(lease.addresses.iter().copied());
        self.leases.insert(id.to_owned(), lease.clone());
        Ok(lease)
    }

    pub(crate) fn set_ready(&mut self, id: &str) -> Result<()> {
        let Some(lease) = self.leases.get_mut(id) else { return Ok(()) };
        lease.ready = true;
        let lease = lease.clone();
        self.write(id, &lease)
    }

    pub(crate) fn release(&mut self, id: &str) -> Result<Option<Lease>> {
        check_id(id)?;
        let path = self.directory.join(id);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::State { path, source });
            }
            _ => {}
        }
        let lease = self.leases.remove(id);
        for address in lease.iter().flat_map(|lease| &lease.addresses) {
            self.used.remove(address);
        }
        Ok(lease)
    }

    fn check_ports(&self, id: &str, wanted: &[HostPort]) -> Result<()> {
        for (owner, lease) in self.leases.iter().filter(|(owner, _)| *owner != id) {
            for taken in &lease.host_ports {
                if let Some(port) = wanted.iter().find(|port| port.clashes(taken)) {
                    return Err(Error::HostPortTaken {
                        port: port.host_port,
                        protocol: port.protocol.name(),
                        address: port.host_ip,
                        owner: owner.clone(),
                    });
                }
            }
        }
        Ok(())
    }

    fn pick(&mut self, index: usize) -> Result<IpAddr> {
        let range = self.ranges[index];
        // Offset 0 is the network, 1 the node itself; the last one of an IPv4 range is the broadcast address.
        let last = capacity(&range) - if range.addr().is_ipv4() { 2 } else { 1 };
        let mut candidate = self.cursors[index];
        for _ in 0..=self.used.len() {
            candidate = if candidate < 2 || candidate >= last { 2 } else { candidate + 1 };
            let address = nth(&range, candidate);
            if !self.used.contains(&address) {
                self.cursors[index] = candidate;
                return Ok(address);
            }
        }
        // The search above may start in the middle of a full stretch; the whole range decides.
        (2..=last)
            .take(self.used.len() + 1)
            .map(|offset| nth(&range, offset))
            .find(|address| !self.used.contains(address))
            .ok_or(Error::Exhausted { range, used: self.used.len() })
    }

    fn write(&self, id: &str, lease: &Lease) -> Result<()> {
        let path = self.directory.join(id);
        let scratch = self.directory.join(format!(".{id}"));
        let bytes = serde_json::to_vec(lease).expect("a lease has only string keys");
        fs::write(&scratch, bytes)
            .and_then(|()| fs::rename(&scratch, &path))
            .map_err(|source| Error::State { path, source })
    }
}

fn check_id(id: &str) -> Result<()> {
    let fine = !id.is_empty()
        && id.len() <= 200
        && !id.starts_with('.')
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    if fine { Ok(()) } else { Err(Error::BadId(id.to_owned())) }
}

/// Number of addresses of a range, saturating.
fn capacity(range: &IpNet) -> u128 {
    let bits = range.max_prefix_len() - range.prefix_len();
    1u128.checked_shl(u32::from(bits)).unwrap_or(u128::MAX)
}

/// The address at an offset from the start of a range.
pub(crate) fn nth(range: &IpNet, offset: u128) -> IpAddr {
    match range.network() {
        IpAddr::V4(base) => Ipv4Addr::from_bits(base.to_bits().wrapping_add(offset as u32)).into(),
        IpAddr::V6(base) => Ipv6Addr::from_bits(base.to_bits().wrapping_add(offset)).into(),
    }
}

fn offset(range: &IpNet, address: IpAddr) -> Option<u128> {
    if !range.contains(&address) {
        return None;
    }
    match (range.network(), address) {
        (IpAddr::V4(base), IpAddr::V4(ip)) => Some(u128::from(ip.to_bits() - base.to_bits())),
        (IpAddr::V6(base), IpAddr::V6(ip)) => Some(ip.to_bits() - base.to_bits()),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
