//! Addresses that are accepted for old times' sake, although others may read them differently.

use std::net::{IpAddr, Ipv6Addr};

use crate::kinds::validation::common::{parse_cidr, parse_ip};

/// An address without the IPv4-mapped form.
fn plain(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(ip, IpAddr::V4),
        IpAddr::V4(_) => ip,
    }
}

fn is_mapped(text: &str) -> bool {
    text.parse::<Ipv6Addr>().is_ok_and(|v6| v6.to_ipv4_mapped().is_some())
}

/// What is odd about an address of an old field; nothing about one that is no address.
pub(super) fn ip(path: &str, text: &str) -> Option<String> {
    let ip = parse_ip(text)?;
    if text.parse::<IpAddr>().is_err() || is_mapped(text) {
        return Some(format!("{path}: non-standard IP address {text:?} is invalid: use \"{}\"", plain(ip)));
    }
    let canonical = ip.to_string();
    (ip.is_ipv6() && canonical != text).then(|| {
        format!("{path}: IPv6 address {text:?} should be in RFC 5952 canonical format ({canonical:?})")
    })
}

/// What is odd about a range of an old field.
pub(super) fn cidr(path: &str, text: &str) -> Vec<String> {
    let Some((ip, length)) = parse_cidr(text) else { return Vec::new() };
    let Ok(net) = ipnet::IpNet::new(ip, length) else { return Vec::new() };
    let first = net.trunc();
    let mut out = Vec::new();
    if net.addr() != first.addr() {
        let alone = format!("{ip}/{}", net.max_prefix_len());
        out.push(format!(
            "{path}: CIDR value {text:?} is ambiguous in this context (should be \"{first}\" or {alone:?}?)"
        ));
    }
    let address = text.split('/').next().unwrap_or_default();
    if address.parse::<IpAddr>().is_err() || is_mapped(address) || length_is_padded(text) {
        out.push(format!("{path}: non-standard CIDR value {text:?} is invalid: use \"{first}\""));
    }
    let canonical = net.to_string();
    if out.is_empty() && ip.is_ipv6() && canonical != text {
        out.push(format!(
            "{path}: IPv6 CIDR value {text:?} should be in RFC 5952 canonical format ({canonical:?})"
        ));
    }
    out
}

fn length_is_padded(text: &str) -> bool {
    text.rsplit('/').next().is_some_and(|length| length.len() > 1 && length.starts_with('0'))
}
