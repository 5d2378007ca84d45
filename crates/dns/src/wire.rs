//! DNS messages (RFC 1035, with EDNS0 of RFC 6891) to and from bytes. Names keep the case they came with.

mod name;

pub use name::Name;

use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr};

/// Record types known here by name.
pub mod kind {
    #![allow(missing_docs)]
    pub const A: u16 = 1;
    pub const NS: u16 = 2;
    pub const CNAME: u16 = 5;
    pub const SOA: u16 = 6;
    pub const PTR: u16 = 12;
    pub const TXT: u16 = 16;
    pub const AAAA: u16 = 28;
    pub const SRV: u16 = 33;
    pub const OPT: u16 = 41;
    pub const ANY: u16 = 255;
}

/// The Internet class.
pub const CLASS_IN: u16 = 1;

/// Response codes used here.
pub mod rcode {
    #![allow(missing_docs)]
    pub const NO_ERROR: u8 = 0;
    pub const FORMAT_ERROR: u8 = 1;
    pub const SERVER_FAILURE: u8 = 2;
    pub const NAME_ERROR: u8 = 3;
    pub const NOT_IMPLEMENTED: u8 = 4;
    pub const REFUSED: u8 = 5;
}

/// A message that cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The bytes end too early.
    #[error("the message is cut short")]
    Short,
    /// A name is too long, or points forward or in circles.
    #[error("a name in the message is malformed")]
    BadName,
}

/// A message, or what of it matters here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Message {
    /// Chosen by the asker.
    pub id: u16,
    /// Answer rather than query.
    pub response: bool,
    /// 0 for a standard query.
    pub opcode: u8,
    /// The answerer owns the zone.
    pub authoritative: bool,
    /// Cut to fit; ask again by TCP.
    pub truncated: bool,
    /// The asker wants recursion.
    pub recursion_desired: bool,
    /// The answerer offers recursion.
    pub recursion_available: bool,
    /// Low four bits of the response code.
    pub rcode: u8,
    /// Usually one.
    pub questions: Vec<Question>,
    /// Answers.
    pub answers: Vec<Record>,
    /// Name servers, or the SOA of a negative answer.
    pub authority: Vec<Record>,
    /// Helpful extras, without the OPT record.
    pub additional: Vec<Record>,
    /// From the OPT record.
    pub edns: Option<Edns>,
}

/// What an OPT record says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Edns {
    /// Largest UDP message the sender takes.
    pub payload: u16,
    /// 0 is the only one there is.
    pub version: u8,
    /// High eight bits of the response code.
    pub extended_rcode: u8,
    /// The DNSSEC OK bit.
    pub dnssec_ok: bool,
}

/// A question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// Name asked for.
    pub name: Name,
    /// Record type asked for.
    pub kind: u16,
    /// Usually [`CLASS_IN`].
    pub class: u16,
}

/// A resource record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Owner.
    pub name: Name,
    /// Seconds it may be kept.
    pub ttl: u32,
    /// Content.
    pub data: Data,
}

/// Content of a record of class IN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Data {
    /// IPv4 address.
    A(Ipv4Addr),
    /// IPv6 address.
    Aaaa(Ipv6Addr),
    /// Alias.
    Cname(Name),
    /// Name of an address.
    Ptr(Name),
    /// Name server.
    Ns(Name),
    /// Where a service is.
    Srv {
        /// Lower is better.
        priority: u16,
        /// Share among equals.
        weight: u16,
        /// Port.
        port: u16,
        /// Host.
        target: Name,
    },
    /// Strings.
    Txt(Vec<Vec<u8>>),
    /// Start of authority.
    Soa {
        /// Primary server.
        primary: Name,
        /// Who is responsible.
        mailbox: Name,
        /// Version of the zone.
        serial: u32,
        /// Refresh, retry and expire times, and the time to keep negative answers.
        times: [u32; 4],
    },
    /// Any other type: its number and bytes (compressed names in it are not resolved).
    Other(u16, Vec<u8>),
}

impl Data {
    /// Its record type.
    pub fn kind(&self) -> u16 {
        match self {
            Data::A(_) => kind::A,
            Data::Aaaa(_) => kind::AAAA,
            Data::Cname(_) => kind::CNAME,
            Data::Ptr(_) => kind::PTR,
            Data::Ns(_) => kind::NS,
            Data::Srv { .. } => kind::SRV,
            Data::Txt(_) => kind::TXT,
            Data::Soa { .. } => kind::SOA,
            Data::Other(kind, _) => *kind,
        }
    }
}

impl Message {
    /// A query for one name.
    pub fn query(id: u16, name: Name, kind: u16) -> Self {
        Self {
            id,
            recursion_desired: true,
            questions: vec![Question { name, kind, class: CLASS_IN }],
            edns: Some(Edns { payload: 1232, version: 0, extended_rcode: 0, dnssec_ok: false }),
            ..Self::default()
        }
    }

    /// Reads a message.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader { bytes, at: 0 };
        let id = reader.u16()?;
        let flags = reader.u16()?;
        let mut counts = [0; 4];
        for count in &mut counts {
            *count = reader.u16()?;
        }
        let mut message = Message {
            id,
            response: flags & 0x8000 != 0,
            opcode: (flags >> 11 & 0xf) as u8,
            authoritative: flags & 0x400 != 0,
            truncated: flags & 0x200 != 0,
            recursion_desired: flags & 0x100 != 0,
            recursion_available: flags & 0x80 != 0,
            rcode: (flags & 0xf) as u8,
            ..Message::default()
        };
        for _ in 0..counts[0] {
            let name = reader.name()?;
            message.questions.push(Question { name, kind: reader.u16()?, class: reader.u16()? });
        }
        for _ in 0..counts[1] {
            message.answers.extend(reader.record(&mut message.edns)?);
        }
        for _ in 0..counts[2] {
            message.authority.extend(reader.record(&mut message.edns)?);
        }
        for _ in 0..counts[3] {
            message.additional.extend(reader.record(&mut message.edns)?);
        }
        Ok(message)
    }

    /// Writes the message, names compressed.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer { bytes: Vec::with_capacity(512), names: HashMap::new() };
        writer.u16(self.id);
        let bit = |set: bool, bit: u16| if set { bit } else { 0 };
        writer.u16(
            bit(self.response, 0x8000)
                | u16::from(self.opcode & 0xf) << 11
                | bit(self.authoritative, 0x400)
                | bit(self.truncated, 0x200)
                | bit(self.recursion_desired, 0x100)
                | bit(self.recursion_available, 0x80)
                | u16::from(self.rcode & 0xf),
        );
        writer.u16(self.questions.len() as u16);
        writer.u16(self.answers.len() as u16);
        writer.u16(self.authority.len() as u16);
        writer.u16(self.additional.len() as u16 + u16::from(self.edns.is_some()));
        for question in &self.questions {
            writer.name(&question.name);
            writer.u16(question.kind);
            writer.u16(question.class);
        }
        for record in self.answers.iter().chain(&self.authority).chain(&self.additional) {
            writer.record(record);
        }
        if let Some(edns) = &self.edns {
            writer.bytes.push(0);
            writer.u16(kind::OPT);
            writer.u16(edns.payload);
            writer.bytes.extend([edns.extended_rcode, edns.version]);
            writer.u16(bit(edns.dnssec_ok, 0x8000));
            writer.u16(0);
        }
        writer.bytes
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn take(&mut self, count: usize) -> Result<&[u8], WireError> {
        let taken = self.bytes.get(self.at..self.at + count).ok_or(WireError::Short)?;
        self.at += count;
        Ok(taken)
    }

    fn u16(&mut self) -> Result<u16, WireError> {
        let bytes = self.take(2)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn u32(&mut self) -> Result<u32, WireError> {
        Ok(u32::from(self.u16()?) << 16 | u32::from(self.u16()?))
    }

    fn name(&mut self) -> Result<Name, WireError> {
        let (name, after) = Name::decode(self.bytes, self.at)?;
        self.at = after;
        Ok(name)
    }

    /// `None` for an OPT record, which goes to `edns`.
    fn record(&mut self, edns: &mut Option<Edns>) -> Result<Option<Record>, WireError> {
        let name = self.name()?;
        let kind = self.u16()?;
        let class = self.u16()?;
        let ttl = self.u32()?;
        let length = usize::from(self.u16()?);
        let end = self.at + length;
        if end > self.bytes.len() {
            return Err(WireError::Short);
        }
        if kind == kind::OPT {
            self.at = end;
            *edns = Some(Edns {
                payload: class,
                extended_rcode: (ttl >> 24) as u8,
                version: (ttl >> 16) as u8,
                dnssec_ok: ttl & 0x8000 != 0,
            });
            return Ok(None);
        }
        let data = match (kind, length) {
            (kind::A, 4) => {
                let octets: [u8; 4] = self.take(4)?.try_into().map_err(|_| WireError::Short)?;
                Data::A(octets.into())
            }
            (kind::AAAA, 16) => {
                let octets: [u8; 16] = self.take(16)?.try_into().map_err(|_| WireError::Short)?;
                Data::Aaaa(octets.into())
            }
            (kind::CNAME, _) => Data::Cname(self.name()?),
            (kind::PTR, _) => Data::Ptr(self.name()?),
            (kind::NS, _) => Data::Ns(self.name()?),
            (kind::SRV, _) => Data::Srv {
                priority: self.u16()?,
                weight: self.u16()?,
                port: self.u16()?,
                target: self.name()?,
            },
            (kind::TXT, _) => {
                let mut strings = Vec::new();
                while self.at < end {
                    let length = usize::from(self.take(1)?[0]);
                    strings.push(self.take(length)?.to_vec());
                }
                Data::Txt(strings)
            }
            (kind::SOA, _) => Data::Soa {
                primary: self.name()?,
                mailbox: self.name()?,
                serial: self.u32()?,
                times: [self.u32()?, self.u32()?, self.u32()?, self.u32()?],
            },
            _ => Data::Other(kind, self.take(length)?.to_vec()),
        };
        if self.at != end {
            return Err(WireError::Short);
        }
        Ok(Some(Record { name, ttl, data }))
    }
}

struct Writer {
    bytes: Vec<u8>,
    /// Where a name (as written, case and all) begins.
    names: HashMap<Vec<u8>, u16>,
}

impl Writer {
    fn u16(&mut self, value: u16) {
        self.bytes.extend(value.to_be_bytes());
    }

    fn u32(&mut self, value: u32) {
        self.bytes.extend(value.to_be_bytes());
    }

    fn name(&mut self, name: &Name) {
        let mut rest = name.as_bytes();
        while rest.len() > 1 {
            if let Some(at) = self.names.get(rest) {
                self.u16(0xc000 | at);
                return;
            }
            if let Ok(at) = u16::try_from(self.bytes.len())
                && at < 0x4000
            {
                self.names.insert(rest.to_vec(), at);
            }
            let label = 1 + usize::from(rest[0]);
            self.bytes.extend(&rest[..label]);
            rest = &rest[label..];
        }
        self.bytes.push(0);
    }

    fn record(&mut self, record: &Record) {
        self.name(&record.name);
        self.u16(record.data.kind());
        self.u16(CLASS_IN);
        self.u32(record.ttl);
        let length_at = self.bytes.len();
        self.u16(0);
        match &record.data {
            Data::A(address) => self.bytes.extend(address.octets()),
            Data::Aaaa(address) => self.bytes.extend(address.octets()),
            Data::Cname(name) | Data::Ptr(name) | Data::Ns(name) => self.name(name),
            Data::Srv { priority, weight, port, target } => {
                self.u16(*priority);
                self.u16(*weight);
                self.u16(*port);
                // RFC 2782: the target is not compressed.
                self.bytes.extend(target.as_bytes());
            }
            Data::Txt(strings) => {
                for string in strings {
                    let string = &string[..string.len().min(255)];
                    self.bytes.push(string.len() as u8);
                    self.bytes.extend(string);
                }
            }
            Data::Soa { primary, mailbox, serial, times } => {
                self.name(primary);
                self.name(mailbox);
                self.u32(*serial);
                for time in times {
                    self.u32(*time);
                }
            }
            Data::Other(_, bytes) => self.bytes.extend(bytes),
        }
        let length = (self.bytes.len() - length_at - 2) as u16;
        self.bytes[length_at..length_at + 2].copy_from_slice(&length.to_be_bytes());
    }
}

#[cfg(test)]
mod tests;
