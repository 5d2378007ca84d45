//! Rulesets as nf_tables netlink messages (`linux/netfilter/nf_tables.h`). Numbers in attributes are big-endian; values that travel
//! through registers are in the byte order of what they are compared with.

use crate::link::octets;
use crate::netlink::{Message, NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL};
use ipnet::IpNet;
use ruleset::nft::{Datum, Field, Holds, Hook, HookKind, Key, Load, Rule, Set, Statement, Value, Verdict};
use ruleset::{Family, Step};
use std::net::IpAddr;

const SUBSYSTEM: u16 = 10 << 8;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NFPROTO_INET: u8 = 1;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;

const NEWTABLE: u16 = SUBSYSTEM;
const DELTABLE: u16 = SUBSYSTEM | 2;
const NEWCHAIN: u16 = SUBSYSTEM | 3;
const DELCHAIN: u16 = SUBSYSTEM | 5;
const NEWRULE: u16 = SUBSYSTEM | 6;
const DELRULE: u16 = SUBSYSTEM | 8;
const NEWSET: u16 = SUBSYSTEM | 9;
const DELSET: u16 = SUBSYSTEM | 11;
const NEWSETELEM: u16 = SUBSYSTEM | 12;
const DELSETELEM: u16 = SUBSYSTEM | 14;

/// Elements per message, so that a list stays below the 64 KiB that an attribute can hold.
const ELEMENTS: usize = 100;

/// The verdict register and the first 32-bit one.
const REG_VERDICT: u32 = 0;
const REG_FIRST: u32 = 8;

const LIST_ELEM: u16 = 1;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;

const SET_MAP: u32 = 8;
const SET_TIMEOUT: u32 = 0x10;
const SET_EVAL: u32 = 0x20;
const DATA_TYPE_VERDICT: u32 = 0xffff_ff00;

/// Turns steps into the messages of a batch.
pub(super) struct Encoder<'a> {
    table: &'a str,
    messages: Vec<Message>,
    /// For each message the step it came from.
    origin: Vec<usize>,
    steps: usize,
    sets: u32,
}

fn header(family: u8, resource: u16) -> [u8; 4] {
    let [high, low] = resource.to_be_bytes();
    [family, 0, high, low]
}

impl<'a> Encoder<'a> {
    pub(super) fn new(table: &'a str) -> Self {
        let begin = Message::new(BATCH_BEGIN, 0, &header(0, 10));
        Self { table, messages: vec![begin], origin: vec![usize::MAX], steps: 0, sets: 0 }
    }

    pub(super) fn finish(mut self) -> (Vec<Message>, Vec<usize>) {
        self.messages.push(Message::new(BATCH_END, 0, &header(0, 10)));
        (self.messages, self.origin)
    }

    fn push(&mut self, kind: u16, flags: u16, fill: impl FnOnce(&mut Message)) {
        let mut message = Message::new(kind, flags, &header(NFPROTO_INET, 0));
        // The table's name is attribute 1 of every object.
        message.string(1, self.table);
        fill(&mut message);
        self.messages.push(message);
        self.origin.push(self.steps);
    }

    pub(super) fn step(&mut self, step: &Step) {
        match step {
            Step::AddTable => self.push(NEWTABLE, NLM_F_CREATE, |_| {}),
            Step::DeleteTable => self.push(DELTABLE, 0, |_| {}),
            Step::AddChain(name, hook) => self.push(NEWCHAIN, NLM_F_CREATE | NLM_F_EXCL, |message| {
                message.string(3, name);
                if let Some(hook) = hook {
                    base_chain(message, hook);
                }
            }),
            Step::DeleteChain(name) => self.push(DELCHAIN, 0, |message| {
                message.string(3, name);
            }),
            Step::FlushChain(name) => self.push(DELRULE, 0, |message| {
                message.string(2, name);
            }),
            Step::AddRule(chain, rule) => self.push(NEWRULE, NLM_F_CREATE | NLM_F_APPEND, |message| {
                message.string(2, chain).nest(4, |list| expressions(list, rule));
            }),
            Step::AddSet(name, set) => {
                self.sets += 1;
                let id = self.sets;
                self.push(NEWSET, NLM_F_CREATE | NLM_F_EXCL, |message| new_set(message, name, set, id));
            }
            Step::DeleteSet(name) => self.push(DELSET, 0, |message| {
                message.string(2, name);
            }),
            Step::AddElements(set, elements) => {
                for chunk in elements.chunks(ELEMENTS) {
                    self.push(NEWSETELEM, NLM_F_CREATE | NLM_F_EXCL, |message| {
                        message.string(2, set).nest(3, |list| {
                            for (key, value) in chunk {
                                element(list, key, Some(value));
                            }
                        });
                    });
                }
            }
            Step::DeleteElements(set, keys) => {
                for chunk in keys.chunks(ELEMENTS) {
                    self.push(DELSETELEM, 0, |message| {
                        message.string(2, set).nest(3, |list| {
                            for key in chunk {
                                element(list, key, None);
                            }
                        });
                    });
                }
            }
        }
        self.steps += 1;
    }
}

fn base_chain(message: &mut Message, hook: &Hook) {
    message
        .nest(4, |attributes| {
            attributes.be32(1, hook.point as u32).be32(2, hook.priority as u32);
        })
        .string(
            7,
            match hook.kind {
                HookKind::Filter => "filter",
                HookKind::Nat => "nat",
            },
        );
}

fn new_set(message: &mut Message, name: &str, set: &Set, id: u32) {
    let mut flags = 0;
    if set.holds != Holds::Nothing {
        flags |= SET_MAP;
    }
    if set.timeout.is_some() {
        flags |= SET_TIMEOUT | SET_EVAL;
    }
    let key_type = set.key.iter().fold(0, |all, field| all << 6 | type_of(*field));
    let key_length: u32 = set.key.iter().map(|field| 4 * registers(*field)).sum();
    // A key of one part keeps its own length; the parts of a longer one are padded to registers.
    let key_length = match set.key[..] {
        [Field::Protocol] => 1,
        [Field::Port] => 2,
        _ => key_length,
    };
    message.string(2, name).be32(3, flags).be32(4, key_type).be32(5, key_length);
    match set.holds {
        Holds::Nothing => {}
        Holds::Verdict => {
            message.be32(6, DATA_TYPE_VERDICT).be32(7, 16);
        }
        Holds::Target(family) => {
            let address = Field::Address(family);
            let length = 4 * registers(address) + 4;
            message.be32(6, type_of(address) << 6 | type_of(Field::Port)).be32(7, length);
        }
    }
    message.be32(10, id);
    if let Some(timeout) = set.timeout {
        message.be64(11, timeout.as_millis() as u64);
    }
}

/// The numbers that nft(8) gives its types, so that it can show what we made.
fn type_of(field: Field) -> u32 {
    match field {
        Field::Address(Family::V4) => 7,
        Field::Address(Family::V6) => 8,
        Field::Protocol => 12,
        Field::Port => 13,
        Field::Index => 4,
    }
}

fn registers(field: Field) -> u32 {
    match field {
        Field::Address(Family::V6) => 4,
        _ => 1,
    }
}

fn key_bytes(key: &Key) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(16);
    for datum in key {
        match datum {
            Datum::Address(address) => bytes.extend(octets(*address)),
            Datum::Protocol(protocol) => bytes.push(protocol.number()),
            Datum::Port(port) => bytes.extend(port.to_be_bytes()),
            Datum::Index(index) => bytes.extend(index.to_ne_bytes()),
        }
        if key.len() > 1 {
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
    }
    bytes
}

fn target_bytes(address: IpAddr, port: u16) -> Vec<u8> {
    let mut bytes = octets(address);
    bytes.extend(port.to_be_bytes());
    bytes.extend([0, 0]);
    bytes
}

fn element(list: &mut Message, key: &Key, value: Option<&Value>) {
    list.nest(LIST_ELEM, |element| {
        element.nest(1, |data| {
            data.attr(DATA_VALUE, &key_bytes(key));
        });
        match value {
            None | Some(Value::Nothing) => {}
            Some(Value::Verdict(verdict)) => {
                element.nest(2, |data| verdict_data(data, verdict));
            }
            Some(Value::Target(address, port)) => {
                element.nest(2, |data| {
                    data.attr(DATA_VALUE, &target_bytes(*address, *port));
                });
            }
        }
    });
}

fn verdict_data(data: &mut Message, verdict: &Verdict) {
    data.nest(DATA_VERDICT, |attributes| {
        let (code, chain): (i32, Option<&String>) = match verdict {
            Verdict::Drop => (0, None),
            Verdict::Accept => (1, None),
            Verdict::Jump(chain) => (-3, Some(chain)),
            Verdict::Goto(chain) => (-4, Some(chain)),
            Verdict::Return => (-5, None),
        };
        attributes.be32(1, code as u32);
        if let Some(chain) = chain {
            attributes.string(2, chain);
        }
    });
}

fn expressions(list: &mut Message, rule: &Rule) {
    for statement in rule {
        statement_expressions(list, statement);
    }
}

fn expression(list: &mut Message, name: &str, fill: impl FnOnce(&mut Message)) {
    list.nest(LIST_ELEM, |element| {
        element.string(1, name).nest(2, fill);
    });
}

fn meta(list: &mut Message, key: u32, register: u32) {
    expression(list, "meta", |data| {
        data.be32(1, register).be32(2, key);
    });
}

const META_MARK: u32 = 3;
const META_IIF: u32 = 4;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;

fn compare(list: &mut Message, register: u32, negate: bool, value: &[u8]) {
    expression(list, "cmp", |data| {
        data.be32(1, register).be32(2, u32::from(negate)).nest(3, |data| {
            data.attr(DATA_VALUE, value);
        });
    });
}

fn bitwise(list: &mut Message, register: u32, mask: &[u8], xor: &[u8]) {
    expression(list, "bitwise", |data| {
        data.be32(1, register)
            .be32(2, register)
            .be32(3, mask.len() as u32)
            .nest(4, |data| {
                data.attr(DATA_VALUE, mask);
            })
            .nest(5, |data| {
                data.attr(DATA_VALUE, xor);
            });
    });
}

fn payload(list: &mut Message, base: u32, offset: u32, length: u32, register: u32) {
    expression(list, "payload", |data| {
        data.be32(1, register).be32(2, base).be32(3, offset).be32(4, length);
    });
}

/// Loads one thing into registers from `register` on; returns the first register after it.
fn load(list: &mut Message, what: Load, register: u32) -> u32 {
    const NETWORK: u32 = 1;
    const TRANSPORT: u32 = 2;
    match what {
        Load::Source(Family::V4) => payload(list, NETWORK, 12, 4, register),
        Load::Destination(Family::V4) => payload(list, NETWORK, 16, 4, register),
        Load::Source(Family::V6) => payload(list, NETWORK, 8, 16, register),
        Load::Destination(Family::V6) => payload(list, NETWORK, 24, 16, register),
        Load::Protocol => meta(list, META_L4PROTO, register),
        Load::DestinationPort => payload(list, TRANSPORT, 2, 2, register),
        Load::Random(modulus) => expression(list, "numgen", |data| {
            data.be32(1, register).be32(2, modulus).be32(3, 1).be32(4, 0);
        }),
    }
    match what {
        Load::Source(Family::V6) | Load::Destination(Family::V6) => register + 4,
        _ => register + 1,
    }
}

fn load_key(list: &mut Message, key: &[Load]) -> u32 {
    key.iter().fold(REG_FIRST, |register, what| load(list, *what, register))
}

fn lookup(list: &mut Message, set: &str, destination: Option<u32>) {
    expression(list, "lookup", |data| {
        data.string(1, set).be32(2, REG_FIRST);
        if let Some(register) = destination {
            data.be32(3, register);
        }
    });
}

fn conntrack(list: &mut Message, key: u32, bits: u32) {
    expression(list, "ct", |data| {
        data.be32(1, REG_FIRST).be32(2, key);
    });
    bitwise(list, REG_FIRST, &bits.to_ne_bytes(), &[0; 4]);
    compare(list, REG_FIRST, true, &[0; 4]);
}

fn is_local(list: &mut Message, side: u32) {
    const RESULT_ADDRTYPE: u32 = 3;
    const RTN_LOCAL: u32 = 2;
    expression(list, "fib", |data| {
        data.be32(1, REG_FIRST).be32(2, RESULT_ADDRTYPE).be32(3, side);
    });
    compare(list, REG_FIRST, false, &RTN_LOCAL.to_ne_bytes());
}

fn set_mark(list: &mut Message, mask: u32, xor: u32) {
    meta(list, META_MARK, REG_FIRST);
    bitwise(list, REG_FIRST, &mask.to_ne_bytes(), &xor.to_ne_bytes());
    expression(list, "meta", |data| {
        data.be32(2, META_MARK).be32(3, REG_FIRST);
    });
}

fn dnat(list: &mut Message, family: Family, address: u32) {
    let (family, port) = match family {
        Family::V4 => (NFPROTO_IPV4, address + 1),
        Family::V6 => (NFPROTO_IPV6, address + 4),
    };
    expression(list, "nat", |data| {
        data.be32(1, 1).be32(2, family.into()).be32(3, address).be32(5, port);
    });
}

fn in_range(list: &mut Message, what: Load, range: IpNet, negate: bool) {
    load(list, what, REG_FIRST);
    let mask = octets(range.netmask());
    if range.prefix_len() < range.max_prefix_len() {
        bitwise(list, REG_FIRST, &mask, &vec![0; mask.len()]);
    }
    compare(list, REG_FIRST, negate, &octets(range.network()));
}

fn statement_expressions(list: &mut Message, statement: &Statement) {
    const CT_STATE: u32 = 0;
    const CT_STATUS: u32 = 2;
    const STATE_NEW: u32 = 8;
    const STATUS_DST_NAT: u32 = 0x20;
    const FIB_SOURCE: u32 = 1;
    const FIB_DESTINATION: u32 = 2;
    const LOOPBACK: u32 = 1;
    match statement {
        Statement::Family(family) => {
            meta(list, META_NFPROTO, REG_FIRST);
            let number = if *family == Family::V4 { NFPROTO_IPV4 } else { NFPROTO_IPV6 };
            compare(list, REG_FIRST, false, &[number]);
        }
        Statement::Protocol(protocol) => {
            meta(list, META_L4PROTO, REG_FIRST);
            compare(list, REG_FIRST, false, &[protocol.number()]);
        }
        Statement::FromLoopback(expected) => {
            meta(list, META_IIF, REG_FIRST);
            compare(list, REG_FIRST, !expected, &LOOPBACK.to_ne_bytes());
        }
        Statement::InRange { load, range, negate } => in_range(list, *load, *range, *negate),
        Statement::InSet { key, set } => {
            load_key(list, key);
            lookup(list, set, None);
        }
        Statement::Dispatch { key, map } => {
            load_key(list, key);
            lookup(list, map, Some(REG_VERDICT));
        }
        Statement::SourceIsLocal => is_local(list, FIB_SOURCE),
        Statement::DestinationIsLocal => is_local(list, FIB_DESTINATION),
        Statement::New => conntrack(list, CT_STATE, STATE_NEW),
        Statement::Translated => conntrack(list, CT_STATUS, STATUS_DST_NAT),
        Statement::Marked(bit) => {
            meta(list, META_MARK, REG_FIRST);
            bitwise(list, REG_FIRST, &bit.to_ne_bytes(), &[0; 4]);
            compare(list, REG_FIRST, true, &[0; 4]);
        }
        Statement::SetMark(bit) => set_mark(list, !bit, *bit),
        Statement::ClearMark(bit) => set_mark(list, !bit, 0),
        Statement::Remember { key, set } => {
            load_key(list, key);
            expression(list, "dynset", |data| {
                const UPDATE: u32 = 1;
                data.string(1, set).be32(3, UPDATE).be32(4, REG_FIRST);
            });
        }
        Statement::DnatTo(address, port) => {
            expression(list, "immediate", |data| {
                data.be32(1, REG_FIRST).nest(2, |data| {
                    data.attr(DATA_VALUE, &octets(*address));
                });
            });
            let after = REG_FIRST + if address.is_ipv4() { 1 } else { 4 };
            expression(list, "immediate", |data| {
                data.be32(1, after).nest(2, |data| {
                    data.attr(DATA_VALUE, &port.to_be_bytes());
                });
            });
            dnat(list, Family::of(*address), REG_FIRST);
        }
        Statement::DnatByMap { family, key, map } => {
            let target = load_key(list, key);
            lookup(list, map, Some(target));
            dnat(list, *family, target);
        }
        Statement::Masquerade => expression(list, "masq", |data| {
            const RANDOM_FULLY: u32 = 0x10;
            data.be32(1, RANDOM_FULLY);
        }),
        Statement::Reset => expression(list, "reject", |data| {
            const TCP_RESET: u32 = 1;
            data.be32(1, TCP_RESET);
        }),
        Statement::Reject => expression(list, "reject", |data| {
            const ICMPX: u32 = 2;
            const PORT_UNREACHABLE: u8 = 1;
            data.be32(1, ICMPX).attr(2, &[PORT_UNREACHABLE]);
        }),
        Statement::Verdict(verdict) => expression(list, "immediate", |data| {
            data.be32(1, REG_VERDICT).nest(2, |data| verdict_data(data, verdict));
        }),
    }
}
