//! What belongs to the node as a whole: addresses served on `lo`, routes to service ranges, and taking everything down again.

use crate::error::Result;
use crate::link::{GROUP, Links, Scope};
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

/// Routes service ranges to `lo`, so that the node itself reaches service addresses even without a default route of that family.
pub fn add_service_routes(ranges: &[IpNet]) -> Result<()> {
    let mut links = Links::open()?;
    links.loopback_up()?;
    for &range in ranges {
        links.add_route(range, LOOPBACK, None)?;
    }
    Ok(())
}

/// Removes all links, routes, addresses and rules that Carrack made in the current network namespace. Leases on disk stay; they hold
/// nothing of the kernel's.
pub fn teardown() -> Result<()> {
    let mut links = Links::open()?;
    for link in links.list()? {
        if link.group == GROUP {
            links.delete(&link.name)?;
        }
    }
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
