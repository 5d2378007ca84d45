//! IP addresses and networks.

use std::any::Any;
use std::net::IpAddr;

use super::{Result, text};
use crate::error::EvalError;
use crate::functions::Def;
use crate::types::Type;
use crate::value::{Object, Value};

pub(super) const IP: &str = "net.IP";
pub(super) const CIDR: &str = "net.CIDR";

pub(super) const FUNCTIONS: &[Def] = &[
    Def(
        "ip",
        &["string_to_ip: (string) -> #net.IP", "cidr_ip: #net.CIDR.() -> #net.IP"],
        |args| match args[0].downcast::<Cidr>() {
            Some(cidr) => Ok(Value::object(Ip(cidr.address))),
            None => Ok(Value::object(Ip(parse(text(args.first())?)?))),
        },
    ),
    Def("isIP", &["is_ip: (string) -> bool"], |args| Ok(Value::Bool(parse(text(args.first())?).is_ok()))),
    Def("ip.isCanonical", &["ip_is_canonical: (string) -> bool"], |args| {
        let given = text(args.first())?;
        Ok(Value::Bool(parse(given)?.to_string() == **given))
    }),
    Def("family", &["ip_family: #net.IP.() -> int"], |args| {
        Ok(Value::Int(if address(args)?.is_ipv4() { 4 } else { 6 }))
    }),
    Def("isUnspecified", &["ip_is_unspecified: #net.IP.() -> bool"], |args| {
        Ok(Value::Bool(address(args)?.is_unspecified()))
    }),
    Def("isLoopback", &["ip_is_loopback: #net.IP.() -> bool"], |args| {
        Ok(Value::Bool(address(args)?.is_loopback()))
    }),
    Def("isLinkLocalMulticast", &["ip_is_link_local_multicast: #net.IP.() -> bool"], |args| {
        Ok(Value::Bool(match address(args)? {
            IpAddr::V4(ip) => ip.octets()[..3] == [224, 0, 0],
            IpAddr::V6(ip) => ip.segments()[0] & 0xff0f == 0xff02,
        }))
    }),
    Def("isLinkLocalUnicast", &["ip_is_link_local_unicast: #net.IP.() -> bool"], |args| {
        Ok(Value::Bool(link_local(address(args)?)))
    }),
    Def("isGlobalUnicast", &["ip_is_global_unicast: #net.IP.() -> bool"], |args| {
        let ip = address(args)?;
        let broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
        Ok(Value::Bool(
            !(broadcast || ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || link_local(ip)),
        ))
    }),
    Def("string", &["ip_to_string: (#net.IP) -> string", "cidr_to_string: (#net.CIDR) -> string"], written),
    Def("cidr", &["string_to_cidr: (string) -> #net.CIDR"], |args| {
        Ok(Value::object(Cidr::parse(text(args.first())?)?))
    }),
    Def("isCIDR", &["is_cidr: (string) -> bool"], |args| {
        Ok(Value::Bool(Cidr::parse(text(args.first())?).is_ok()))
    }),
    Def(
        "containsIP",
        &[
            "cidr_contains_ip_string: #net.CIDR.(string) -> bool",
            "cidr_contains_ip_ip: #net.CIDR.(#net.IP) -> bool",
        ],
        |args| {
            let ip = match args.get(1).and_then(Value::downcast::<Ip>) {
                Some(ip) => ip.0,
                // As the reference has it: what is no address is no argument.
                None => parse(text(args.get(1))?).map_err(|_| EvalError::no_such_overload())?,
            };
            Ok(Value::Bool(network(args.first())?.contains(ip)))
        },
    ),
    Def(
        "containsCIDR",
        &[
            "cidr_contains_cidr_string: #net.CIDR.(string) -> bool",
            "cidr_contains_cidr: #net.CIDR.(#net.CIDR) -> bool",
        ],
        |args| {
            let inner = match args.get(1).and_then(Value::downcast::<Cidr>) {
                Some(cidr) => *cidr,
                None => Cidr::parse(text(args.get(1))?)?,
            };
            let outer = network(args.first())?;
            Ok(Value::Bool(outer.bits <= inner.bits && outer.contains(inner.address)))
        },
    ),
    Def("prefixLength", &["cidr_prefix_length: #net.CIDR.() -> int"], |args| {
        Ok(Value::Int(network(args.first())?.bits.into()))
    }),
    Def("masked", &["cidr_masked: #net.CIDR.() -> #net.CIDR"], |args| {
        let cidr = network(args.first())?;
        Ok(Value::object(Cidr { address: masked(cidr.address, cidr.bits), bits: cidr.bits }))
    }),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ip(IpAddr);

impl Object for Ip {
    fn type_of(&self) -> Type {
        Type::opaque(IP)
    }

    fn equals(&self, other: &dyn Object) -> bool {
        other.as_any().downcast_ref::<Self>() == Some(self)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn size(&self) -> Option<u64> {
        Some(if self.0.is_ipv4() { 4 } else { 16 })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cidr {
    address: IpAddr,
    bits: u8,
}

impl Object for Cidr {
    fn type_of(&self) -> Type {
        Type::opaque(CIDR)
    }

    fn equals(&self, other: &dyn Object) -> bool {
        other.as_any().downcast_ref::<Self>() == Some(self)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn size(&self) -> Option<u64> {
        Some(u64::from(self.bits).div_ceil(8))
    }
}

const FAULT: &str = "network address parse error during conversion from string";

impl Cidr {
    fn parse(text: &str) -> std::result::Result<Self, EvalError> {
        let fault =
            |why: &str| EvalError::new(format!("{FAULT}: {FAULT}: netip.ParsePrefix({text:?}): {why}"));
        let (address, bits) = text.rsplit_once('/').ok_or_else(|| fault("no '/'"))?;
        let address: IpAddr = address.parse().map_err(|_| fault("unable to parse IP"))?;
        let leading = bits.len() > 1 && bits.starts_with('0');
        let digits = !bits.is_empty() && bits.bytes().all(|b| b.is_ascii_digit()) && !leading;
        let bits: u8 = bits.parse().ok().filter(|_| digits).ok_or_else(|| fault("bad bits after slash"))?;
        if bits > if address.is_ipv4() { 32 } else { 128 } {
            return Err(fault("prefix length out of range"));
        }
        if is_mapped(address) {
            return Err(EvalError::new(format!("{FAULT}: IPv4-mapped IPv6 address {text:?} is not allowed")));
        }
        Ok(Self { address, bits })
    }

    fn contains(self, ip: IpAddr) -> bool {
        self.address.is_ipv4() == ip.is_ipv4() && masked(self.address, self.bits) == masked(ip, self.bits)
    }
}

fn masked(ip: IpAddr, bits: u8) -> IpAddr {
    let bits = u32::from(bits);
    match ip {
        IpAddr::V4(ip) => {
            let mask = u32::MAX.checked_shl(32u32.saturating_sub(bits)).unwrap_or(0);
            IpAddr::V4((u32::from(ip) & mask).into())
        }
        IpAddr::V6(ip) => {
            let mask = u128::MAX.checked_shl(128u32.saturating_sub(bits)).unwrap_or(0);
            IpAddr::V6((u128::from(ip) & mask).into())
        }
    }
}

fn is_mapped(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some())
}

fn link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.segments()[0] & 0xffc0 == 0xfe80,
    }
}

fn parse(text: &str) -> std::result::Result<IpAddr, EvalError> {
    if let Some((address, zone)) = text.split_once('%')
        && address.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv6())
        && !zone.is_empty()
    {
        return Err(EvalError::new(format!("IP address {text:?} with zone value is not allowed")));
    }
    let ip: IpAddr = text.parse().map_err(|_| {
        EvalError::new(format!(
            "IP Address {text:?} parse error during conversion from string: ParseAddr({text:?}): unable to parse IP"
        ))
    })?;
    if is_mapped(ip) {
        return Err(EvalError::new(format!("IPv4-mapped IPv6 address {text:?} is not allowed")));
    }
    Ok(ip)
}

fn address(args: &[Value<'_>]) -> std::result::Result<IpAddr, EvalError> {
    args[0].downcast::<Ip>().map(|ip| ip.0).ok_or_else(EvalError::no_such_overload)
}

fn network(value: Option<&Value<'_>>) -> std::result::Result<Cidr, EvalError> {
    value.and_then(Value::downcast::<Cidr>).copied().ok_or_else(EvalError::no_such_overload)
}

/// The text of an address or network, if the value is one.
pub(super) fn written<'a>(args: &[Value<'a>]) -> Result<'a> {
    if let Some(ip) = args[0].downcast::<Ip>() {
        return Ok(Value::string(ip.0.to_string()));
    }
    let cidr = network(args.first())?;
    Ok(Value::string(format!("{}/{}", cidr.address, cidr.bits)))
}
