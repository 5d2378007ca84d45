//! Links, addresses, routes and neighbours of the current network namespace (rtnetlink). Everything made here carries a mark (link group,
//! route protocol, address protocol), by which [`crate::teardown`] finds it again without any record of its own.

use crate::error::{Error, Result};
use crate::netlink::{Message, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, Socket, as_u32, attributes};
use ipnet::IpNet;
use nix::errno::Errno;
use std::fs::File;
use std::net::IpAddr;
use std::os::fd::AsRawFd;

/// Link group of all pod links.
pub(crate) const GROUP: u32 = 0xca44;
/// Link group of pod links that are to be removed.
pub(crate) const LEAVING: u32 = 0xca45;
/// `rtm_protocol` and `IFA_PROTO` of everything made by Carrack.
pub(crate) const PROTOCOL: u8 = 0xca;

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;
const RTM_NEWNEIGH: u16 = 28;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_GROUP: u16 = 27;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const IN6_ADDR_GEN_MODE_NONE: u8 = 1;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_FLAGS: u16 = 8;
const IFA_PROTO: u16 = 11;
const IFA_F_NODAD: u32 = 2;

const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PREFSRC: u16 = 7;
const RT_TABLE_MAIN: u8 = 254;
const RTN_UNICAST: u8 = 1;
const RTNH_F_ONLINK: u32 = 4;

const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NUD_PERMANENT: u16 = 0x80;

/// A link-layer address.
pub(crate) type Mac = [u8; 6];

/// Reach of an address (`RT_SCOPE_*`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Scope {
    /// May be chosen as source of any packet.
    Universe = 0,
    /// Never chosen as source of routed packets.
    Link = 253,
    /// Never chosen as source for anything that leaves the host.
    Host = 254,
}

/// What a dump tells of a link.
#[derive(Debug, Clone)]
pub(crate) struct LinkInfo {
    pub(crate) name: String,
    pub(crate) group: u32,
    pub(crate) mtu: u32,
    pub(crate) up: bool,
    pub(crate) loopback: bool,
}

/// An rtnetlink socket.
pub(crate) struct Links(Socket);

pub(crate) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn family(address: IpAddr) -> u8 {
    if address.is_ipv4() { libc::AF_INET as u8 } else { libc::AF_INET6 as u8 }
}

fn ifinfo(index: u32, flags: u32, change: u32) -> [u8; 16] {
    let mut body = [0; 16];
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    body[8..12].copy_from_slice(&flags.to_ne_bytes());
    body[12..16].copy_from_slice(&change.to_ne_bytes());
    body
}

impl Links {
    pub(crate) fn open() -> Result<Self> {
        Socket::open(libc::NETLINK_ROUTE).map(Self)
    }

    /// Makes a veth pair, one end here, the other as `peer_name` in `namespace`.
    pub(crate) fn add_veth(
        &mut self,
        (name, mac): (&str, Mac),
        (peer_name, peer_mac): (&str, Mac),
        namespace: &File,
        mtu: u32,
    ) -> Result<()> {
        let mut message = Message::new(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &ifinfo(0, 0, 0));
        message
            .string(IFLA_IFNAME, name)
            .attr(IFLA_ADDRESS, &mac)
            .u32(IFLA_MTU, mtu)
            .u32(IFLA_GROUP, GROUP)
            .nest(IFLA_LINKINFO, |info| {
                info.string(IFLA_INFO_KIND, "veth").nest(IFLA_INFO_DATA, |data| {
                    data.nest(VETH_INFO_PEER, |peer| {
                        peer.raw(&ifinfo(0, 0, 0))
                            .string(IFLA_IFNAME, peer_name)
                            .attr(IFLA_ADDRESS, &peer_mac)
                            .u32(IFLA_MTU, mtu)
                            .u32(IFLA_NET_NS_FD, namespace.as_raw_fd() as u32);
                    });
                });
            });
        self.0.request(message, || format!("make the veth pair {name}")).map_err(|error| {
            if error.is(Errno::EOPNOTSUPP) {
                Error::Unsupported { feature: "veth (CONFIG_VETH)", consequence: "pods cannot be connected" }
            } else {
                error
            }
        })
    }

    /// Brings a link up without an automatic link-local address, so that no duplicate address detection delays it.
    pub(crate) fn set_up(&mut self, index: u32, ipv6: bool) -> Result<()> {
        let up = libc::IFF_UP as u32;
        let mut message = Message::new(RTM_NEWLINK, 0, &ifinfo(index, up, up));
        if ipv6 {
            message.nest(IFLA_AF_SPEC, |spec| {
                spec.nest(libc::AF_INET6 as u16, |inet6| {
                    inet6.attr(IFLA_INET6_ADDR_GEN_MODE, &[IN6_ADDR_GEN_MODE_NONE]);
                });
            });
        }
        self.0.request(message, || format!("bring link {index} up"))
    }

    pub(crate) fn loopback_up(&mut self) -> Result<()> {
        self.set_up(1, false)
    }

    /// Removes a link; it is no error if it is gone.
    pub(crate) fn delete(&mut self, name: &str) -> Result<()> {
        let mut message = Message::new(RTM_DELLINK, 0, &ifinfo(0, 0, 0));
        message.string(IFLA_IFNAME, name);
        gone_is_fine(self.0.request(message, || format!("delete link {name}")), Errno::ENODEV)
    }

    /// Puts a link into another group; it is no error if it is gone.
    pub(crate) fn set_group(&mut self, name: &str, group: u32) -> Result<()> {
        let mut message = Message::new(RTM_NEWLINK, 0, &ifinfo(0, 0, 0));
        message.string(IFLA_IFNAME, name).u32(IFLA_GROUP, group);
        gone_is_fine(self.0.request(message, || format!("change the group of link {name}")), Errno::ENODEV)
    }

    /// Removes all links of a group at once: the kernel waits as long for a hundred as for one.
    pub(crate) fn delete_group(&mut self, group: u32) -> Result<()> {
        let mut message = Message::new(RTM_DELLINK, 0, &ifinfo(0, 0, 0));
        message.u32(IFLA_GROUP, group);
        gone_is_fine(self.0.request(message, || "delete pod links".to_owned()), Errno::ENODEV)
    }

    /// The index of a link by name.
    pub(crate) fn index(&mut self, name: &str) -> Result<Option<u32>> {
        match nix::net::if_::if_nametoindex(name) {
            Ok(index) => Ok(Some(index)),
            Err(Errno::ENODEV) => Ok(None),
            Err(errno) => Err(Error::Socket { action: "look up link", source: errno.into() }),
        }
    }

    pub(crate) fn list(&mut self) -> Result<Vec<LinkInfo>> {
        let answers =
            self.0.dump(Message::new(RTM_GETLINK, 0, &ifinfo(0, 0, 0)), || "list links".to_owned())?;
        let mut links = Vec::with_capacity(answers.len());
        for answer in answers {
            let flags = answer.body.get(8..).and_then(as_u32).ok_or(Error::Malformed)?;
            let mut link = LinkInfo {
                name: String::new(),
                group: 0,
                mtu: 0,
                up: flags & libc::IFF_UP as u32 != 0,
                loopback: flags & libc::IFF_LOOPBACK as u32 != 0,
            };
            for (kind, value) in attributes(answer.body.get(16..).unwrap_or_default()) {
                match kind {
                    IFLA_IFNAME => {
                        link.name = String::from_utf8_lossy(value).trim_end_matches('\0').to_owned()
                    }
                    IFLA_GROUP => link.group = as_u32(value).unwrap_or(0),
                    IFLA_MTU => link.mtu = as_u32(value).unwrap_or(0),
                    _ => {}
                }
            }
            links.push(link);
        }
        Ok(links)
    }

    /// Adds an address (or keeps it, if it is there) without duplicate address detection.
    pub(crate) fn add_address(&mut self, index: u32, address: IpNet, scope: Scope) -> Result<()> {
        let message = address_message(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, index, address, scope);
        self.0.request(message, || format!("add address {address} to link {index}"))
    }

    pub(crate) fn delete_address(&mut self, index: u32, address: IpNet) -> Result<()> {
        let message = address_message(RTM_DELADDR, 0, index, address, Scope::Universe);
        let result = self.0.request(message, || format!("delete address {address} of link {index}"));
        gone_is_fine(result, Errno::EADDRNOTAVAIL)
    }

    /// All addresses: link index, address, whether Carrack made it, scope.
    pub(crate) fn addresses(&mut self) -> Result<Vec<(u32, IpNet, bool, u8)>> {
        let answers = self.0.dump(Message::new(RTM_GETADDR, 0, &[0; 8]), || "list addresses".to_owned())?;
        let mut found = Vec::new();
        for answer in answers {
            let (prefix, scope) = match answer.body.get(..4) {
                Some(head) => (head[1], head[3]),
                None => return Err(Error::Malformed),
            };
            let index = answer.body.get(4..).and_then(as_u32).ok_or(Error::Malformed)?;
            let (mut address, mut local, mut ours) = (None, None, false);
            for (kind, value) in attributes(answer.body.get(8..).unwrap_or_default()) {
                match kind {
                    IFA_ADDRESS => address = ip(value),
                    IFA_LOCAL => local = ip(value),
                    IFA_PROTO => ours = value.first() == Some(&PROTOCOL),
                    _ => {}
                }
            }
            if let Some(net) = local.or(address).and_then(|ip| IpNet::new(ip, prefix).ok()) {
                found.push((index, net, ours, scope));
            }
        }
        Ok(found)
    }

    /// A route to `to` straight out of a link.
    pub(crate) fn add_route(&mut self, to: IpNet, index: u32, source: Option<IpAddr>) -> Result<()> {
        let mut message = route_message(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, to, Scope::Link, 0);
        message.u32(RTA_OIF, index);
        if let Some(source) = source {
            message.attr(RTA_PREFSRC, &octets(source));
        }
        self.0.request(message, || format!("add route to {to} over link {index}"))
    }

    /// The default route of the family of `gateway`, which need not lie in a subnet of the link.
    pub(crate) fn add_default(&mut self, gateway: IpAddr, index: u32) -> Result<()> {
        let any = IpNet::new(if gateway.is_ipv4() { [0; 4].into() } else { [0u16; 8].into() }, 0)
            .expect("zero is a valid prefix length");
        let flags = NLM_F_CREATE | NLM_F_REPLACE;
        let mut message = route_message(RTM_NEWROUTE, flags, any, Scope::Universe, RTNH_F_ONLINK);
        message.u32(RTA_OIF, index).attr(RTA_GATEWAY, &octets(gateway));
        self.0.request(message, || format!("add default route by {gateway}"))
    }

    pub(crate) fn delete_route(&mut self, to: IpNet, index: u32) -> Result<()> {
        let mut message = route_message(RTM_DELROUTE, 0, to, Scope::Link, 0);
        message.u32(RTA_OIF, index);
        gone_is_fine(self.0.request(message, || format!("delete route to {to}")), Errno::ESRCH)
    }

    /// Routes of the main table that Carrack made.
    pub(crate) fn own_routes(&mut self) -> Result<Vec<(IpNet, u32)>> {
        let mut found = Vec::new();
        for family in [libc::AF_INET as u8, libc::AF_INET6 as u8] {
            let mut body = [0; 12];
            body[0] = family;
            let answers = self.0.dump(Message::new(RTM_GETROUTE, 0, &body), || "list routes".to_owned())?;
            for answer in answers {
                let head = answer.body.get(..12).ok_or(Error::Malformed)?;
                if head[0] != family || head[4] != RT_TABLE_MAIN || head[5] != PROTOCOL {
                    continue;
                }
                let (mut to, mut index) = (None, 0);
                for (kind, value) in attributes(&answer.body[12..]) {
                    match kind {
                        RTA_DST => to = ip(value).and_then(|ip| IpNet::new(ip, head[1]).ok()),
                        RTA_OIF => index = as_u32(value).unwrap_or(0),
                        _ => {}
                    }
                }
                found.extend(to.map(|to| (to, index)));
            }
        }
        Ok(found)
    }

    /// A permanent neighbour entry, so that no resolution is needed.
    pub(crate) fn add_neighbour(&mut self, index: u32, address: IpAddr, mac: Mac) -> Result<()> {
        let mut body = [0; 12];
        body[0] = family(address);
        body[4..8].copy_from_slice(&index.to_ne_bytes());
        body[8..10].copy_from_slice(&NUD_PERMANENT.to_ne_bytes());
        let mut message = Message::new(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, &body);
        message.attr(NDA_DST, &octets(address)).attr(NDA_LLADDR, &mac);
        self.0.request(message, || format!("add neighbour {address} on link {index}"))
    }
}

pub(crate) fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

fn address_message(kind: u16, flags: u16, index: u32, address: IpNet, scope: Scope) -> Message {
    let mut body = [0; 8];
    body[0] = family(address.addr());
    body[1] = address.prefix_len();
    body[3] = scope as u8;
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    let bytes = octets(address.addr());
    let mut message = Message::new(kind, flags, &body);
    message.attr(IFA_LOCAL, &bytes).attr(IFA_ADDRESS, &bytes);
    if kind == RTM_NEWADDR {
        message.u32(IFA_FLAGS, IFA_F_NODAD).attr(IFA_PROTO, &[PROTOCOL]);
    }
    message
}

fn route_message(kind: u16, flags: u16, to: IpNet, scope: Scope, route_flags: u32) -> Message {
    // IPv6 routes know no scope.
    let scope = if to.addr().is_ipv4() { scope as u8 } else { 0 };
    let kind_of_route = if kind == RTM_NEWROUTE { RTN_UNICAST } else { 0 };
    let mut body =
        [family(to.addr()), to.prefix_len(), 0, 0, RT_TABLE_MAIN, PROTOCOL, scope, kind_of_route, 0, 0, 0, 0];
    body[8..12].copy_from_slice(&route_flags.to_ne_bytes());
    let mut message = Message::new(kind, flags, &body);
    if to.prefix_len() > 0 {
        message.attr(RTA_DST, &octets(to.network()));
    }
    message
}

fn gone_is_fine(result: Result<()>, errno: Errno) -> Result<()> {
    match result {
        Err(error) if error.is(errno) => Ok(()),
        other => other,
    }
}
