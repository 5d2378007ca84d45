//! Connection tracking entries of UDP: the kernel keeps an entry while packets flow, so one that leads to an endpoint that is gone must be
//! removed for the client to be led elsewhere.

use crate::error::{Error, Result};
use crate::netlink::{Message, Socket, attributes};
use nix::errno::Errno;
use std::net::{IpAddr, SocketAddr};

const GET: u16 = 1 << 8 | 1;
const DELETE: u16 = 1 << 8 | 2;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
const UDP: u8 = 17;

/// A flow, as its first packet and the answers to it name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// What the client sent to.
    pub destination: SocketAddr,
    /// Who answers.
    pub answerer: SocketAddr,
}

#[derive(Default)]
struct Tuple {
    source: Option<IpAddr>,
    destination: Option<IpAddr>,
    protocol: u8,
    source_port: u16,
    destination_port: u16,
}

/// Removes the UDP entries of the current network namespace that are `stale`; returns how many.
pub fn forget_udp(mut stale: impl FnMut(&Flow) -> bool) -> Result<usize> {
    let mut socket = Socket::open(libc::NETLINK_NETFILTER)?;
    let mut gone = 0;
    for family in [libc::AF_INET as u8, libc::AF_INET6 as u8] {
        let header = [family, 0, 0, 0];
        let entries = socket.dump(Message::new(GET, 0, &header), || "list connections".into())?;
        for entry in entries {
            let mut original: &[u8] = &[];
            let (mut forward, mut reverse) = (Tuple::default(), Tuple::default());
            for (kind, value) in attributes(entry.body.get(4..).ok_or(Error::Malformed)?) {
                match kind {
                    CTA_TUPLE_ORIG => {
                        original = value;
                        forward = tuple(value);
                    }
                    CTA_TUPLE_REPLY => reverse = tuple(value),
                    _ => {}
                }
            }
            let (Some(destination), Some(answerer)) = (forward.destination, reverse.source) else { continue };
            let flow = Flow {
                destination: SocketAddr::new(destination, forward.destination_port),
                answerer: SocketAddr::new(answerer, reverse.source_port),
            };
            if forward.protocol != UDP || !stale(&flow) {
                continue;
            }
            let mut message = Message::new(DELETE, 0, &header);
            message.nest(CTA_TUPLE_ORIG, |nest| {
                nest.raw(original);
            });
            match socket.request(message, || format!("forget the flow to {destination}")) {
                Err(error) if error.is(Errno::ENOENT) => {}
                other => {
                    other?;
                    gone += 1;
                }
            }
        }
    }
    Ok(gone)
}

fn tuple(bytes: &[u8]) -> Tuple {
    let mut tuple = Tuple::default();
    let port = |value: &[u8]| value.get(..2).map_or(0, |bytes| u16::from_be_bytes([bytes[0], bytes[1]]));
    for (kind, nested) in attributes(bytes) {
        for (inner, value) in attributes(nested) {
            match (kind, inner) {
                (CTA_TUPLE_IP, 1 | 3) => tuple.source = crate::link::ip(value),
                (CTA_TUPLE_IP, 2 | 4) => tuple.destination = crate::link::ip(value),
                (CTA_TUPLE_PROTO, CTA_PROTO_NUM) => tuple.protocol = value.first().copied().unwrap_or(0),
                (CTA_TUPLE_PROTO, CTA_PROTO_SRC_PORT) => tuple.source_port = port(value),
                (CTA_TUPLE_PROTO, CTA_PROTO_DST_PORT) => tuple.destination_port = port(value),
                _ => {}
            }
        }
    }
    tuple
}
