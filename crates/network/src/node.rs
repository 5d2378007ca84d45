//! What belongs to the node as a whole: addresses served on `lo`, routes to service ranges, and taking everything down again.

use crate::error::Result;
use crate::link::{GROUP, LEAVING, Links, Scope};
use crate::sysctl;
use ipnet::IpNet;
use ruleset::{SERVICES_TABLE, Transaction};
use std::net::IpAddr;

const LOOPBACK: u32 = 1;

/// Adds addresses to `lo` so that a server of the node can listen on them (cluster DNS). Their scope is `host` so that the kernel never
/// picks one as the source of a packet to elsewhere.
pub fn add_local_addresses(addresses: &[IpAddr]) -> Result<()> {
    let mut links = Links::open()?;
    links.loopback_up()?;
    for &address in addresses {
        links.add_address(LOOPBACK, IpNet::from(address), Scope::Host)?;
    }
    Ok(())
}

/// Removes addresses from `lo`; it is no error if they are gone.
pub fn remove_local_addresses(addresses: &[IpAddr]) -> Result<()> {
    let mut links = Links::open()?;
    for &address in addresses {
        links.delete_address(LOOPBACK, IpNet::from(address))?;
    }
    Ok(())
}

/// Routes service ranges to `lo`, so that the node itself reaches service addresses even without a default route of that family. Without
/// IPv6 in the kernel, IPv6 ranges are left out.
pub fn add_service_routes(ranges: &[IpNet]) -> Result<()> {
    let mut links = Links::open()?;
    links.loopback_up()?;
    for &range in ranges {
        if range.addr().is_ipv4() || sysctl::ipv6_usable() {
            links.add_route(range, LOOPBACK, None)?;
        }
    }
    prefer_own_source(&mut links)
}

/// Makes the node's own pod address (if it has one yet) the source of what the node sends to services: it can be answered from any pod
/// on any node, while the kernel would choose 127.0.0.1.
pub(crate) fn prefer_own_source(links: &mut Links) -> Result<()> {
    let addresses = links.addresses()?;
    for (to, index) in links.own_routes()? {
        let own = addresses.iter().find(|(on, address, ours, scope)| {
            *on == LOOPBACK
                && *ours
                && *scope == Scope::Universe as u8
                && address.addr().is_ipv4() == to.addr().is_ipv4()
        });
        if let (LOOPBACK, Some((_, source, _, _))) = (index, own) {
            links.add_route(to, index, Some(source.addr()))?;
        }
    }
    Ok(())
}

/// Removes all links, routes, addresses and rules that Carrack made in the current network namespace. Leases on disk stay; they hold
/// nothing of the kernel's.
pub fn teardown() -> Result<()> {
    let mut links = Links::open()?;
    links.delete_group(GROUP)?;
    links.delete_group(LEAVING)?;
    for (to, index) in links.own_routes()? {
        links.delete_route(to, index)?;
    }
    for (index, address, ours, _) in links.addresses()? {
        if ours {
            links.delete_address(index, address)?;
        }
    }
    for table in [crate::pods::TABLE, SERVICES_TABLE] {
        crate::commit(&Transaction::remove(table))?;
    }
    Ok(())
}
