//! Kernel settings of the current network namespace, below `/proc/sys/net`.

use crate::error::{Error, Result};
use std::fs;
use std::path::PathBuf;

fn path(name: &str) -> PathBuf {
    PathBuf::from("/proc/sys/net").join(name)
}

pub(crate) fn get(name: &str) -> Option<String> {
    fs::read_to_string(path(name)).ok().map(|value| value.trim().to_owned())
}

/// Sets `name` unless it has the value already, so that a read-only `/proc/sys` with the right values is fine.
pub(crate) fn ensure(name: &str, value: &str) -> Result<()> {
    if get(name).as_deref() == Some(value) {
        return Ok(());
    }
    fs::write(path(name), value).map_err(|source| Error::Sysctl {
        name: format!("net/{name}"),
        value: value.to_owned(),
        source,
    })
}

/// Turns on forwarding for both families. A host that gets its IPv6 route from router advertisements keeps it: with forwarding on,
/// the kernel heeds them only where `accept_ra` is 2.
pub(crate) fn enable_forwarding(ipv6: bool) -> Result<()> {
    ensure("ipv4/ip_forward", "1")?;
    // Lets the host reach host ports and node ports by 127.0.0.1; packets from outside to 127.0.0.0/8 are dropped by a rule.
    ensure("ipv4/conf/all/route_localnet", "1")?;
    if ipv6 {
        for entry in fs::read_dir("/proc/sys/net/ipv6/conf").into_iter().flatten().flatten() {
            let name = format!("ipv6/conf/{}/accept_ra", entry.file_name().to_string_lossy());
            if get(&name).as_deref() == Some("1") {
                let _ = ensure(&name, "2");
            }
        }
        ensure("ipv6/conf/all/forwarding", "1")?;
    }
    Ok(())
}

/// Whether the kernel has IPv6 at all.
pub(crate) fn has_ipv6() -> bool {
    path("ipv6/conf").is_dir()
}

/// Turns IPv6 on for one link, which many hosts and containers have off by default.
pub(crate) fn enable_ipv6(link: &str) -> Result<()> {
    let name = format!("ipv6/conf/{link}/disable_ipv6");
    if get(&name).as_deref() == Some("1") { ensure(&name, "0") } else { Ok(()) }
}

/// Whether IPv6 can be used here; if not, says so once in the log.
pub(crate) fn ipv6_usable() -> bool {
    if !has_ipv6() {
        tracing::warn!("the kernel has no IPv6 (CONFIG_IPV6): pods and services get IPv4 only");
        return false;
    }
    if let Err(error) = enable_ipv6("lo") {
        tracing::warn!(%error, "IPv6 is switched off on this host: pods and services get IPv4 only");
        return false;
    }
    true
}
