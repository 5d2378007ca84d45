//! What this machine is called and how it is reached.

use std::net::IpAddr;

use anyhow::Context;

/// The node's name: the host name in the form that Node objects want.
pub fn name(given: Option<&str>) -> anyhow::Result<String> {
    let name = match given {
        Some(name) => name.to_owned(),
        None => {
            nix::unistd::gethostname().context("asking for the host name")?.to_string_lossy().into_owned()
        }
    };
    Ok(name.to_lowercase())
}

/// The node's addresses, at most one of each family, the IPv4 address first: those given, or the first of an interface
/// that is up and leads somewhere.
pub fn addresses(given: &[IpAddr]) -> anyhow::Result<Vec<IpAddr>> {
    if !given.is_empty() {
        return Ok(given.to_vec());
    }
    let mut found: Vec<(u8, IpAddr)> = Vec::new();
    for interface in nix::ifaddrs::getifaddrs().context("listing the machine's addresses")? {
        let Some(address) = interface.address else { continue };
        let address = match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
            (Some(v4), _) => IpAddr::V4(v4.ip()),
            (_, Some(v6)) => IpAddr::V6(v6.ip()),
            _ => continue,
        };
        // Links that pods hang on are not the way to this machine.
        if usable(address) && !interface.interface_name.starts_with("crk") {
            let loopback = interface.interface_name == "lo";
            found.push((u8::from(loopback), address));
        }
    }
    found.sort_by_key(|(rank, _)| *rank);
    let first = |v4: bool| found.iter().map(|(_, address)| *address).find(|address| address.is_ipv4() == v4);
    let addresses: Vec<IpAddr> = first(true).into_iter().chain(first(false)).collect();
    anyhow::ensure!(
        !addresses.is_empty(),
        "this machine has no address but loopback; connect it, or give an address with --node-ip"
    );
    Ok(addresses)
}

fn usable(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local() && !v4.is_unspecified(),
        IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local() && !v6.is_unspecified(),
    }
}
