//! A ruleset as data: one nftables table of the `inet` family with its chains, rules, sets and maps. What the words mean is defined by
//! nft(8); how they become netlink messages is the matter of crate `network`.

use crate::{Family, Protocol};
use ipnet::IpNet;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

/// The table that is to be in force.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// Name of the table.
    pub table: String,
    /// Chains by name.
    pub chains: BTreeMap<String, Chain>,
    /// Sets and maps by name.
    pub sets: BTreeMap<String, Set>,
}

/// A chain. With a hook it is a base chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// Where packets enter, if they do not come by a jump.
    pub hook: Option<Hook>,
    /// Rules in order.
    pub rules: Vec<Rule>,
}

/// A rule: its statements from left to right.
pub type Rule = Vec<Statement>;

/// Where a base chain hooks in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hook {
    /// Type of the chain.
    pub kind: HookKind,
    /// Point in the packet's path.
    pub point: HookPoint,
    /// Lower runs earlier; destination NAT is at -100, source NAT at 100, filters at 0.
    pub priority: i32,
}

/// Type of a base chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookKind {
    /// `type filter`
    Filter,
    /// `type nat`
    Nat,
}

/// Points in a packet's path, numbered as the kernel does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookPoint {
    /// Arrived, not routed yet.
    Prerouting = 0,
    /// For this host.
    Input = 1,
    /// From elsewhere to elsewhere.
    Forward = 2,
    /// Made by this host.
    Output = 3,
    /// About to leave.
    Postrouting = 4,
}

/// A set or map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    /// Types of the key's parts.
    pub key: Vec<Field>,
    /// What a key maps to.
    pub holds: Holds,
    /// If given, rules add the elements themselves and each lives that long after its last use.
    pub timeout: Option<Duration>,
    /// The elements (none in a set with a timeout).
    pub elements: BTreeMap<Key, Value>,
}

/// Type of one part of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// An address.
    Address(Family),
    /// A transport protocol.
    Protocol,
    /// A port.
    Port,
    /// A number from [`Load::Random`].
    Index,
}

/// What the values of a set are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holds {
    /// A plain set.
    Nothing,
    /// A verdict map.
    Verdict,
    /// A map to an address and port.
    Target(Family),
}

/// A key: its parts.
pub type Key = Vec<Datum>;

/// One part of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Datum {
    /// For [`Field::Address`].
    Address(IpAddr),
    /// For [`Field::Protocol`].
    Protocol(Protocol),
    /// For [`Field::Port`].
    Port(u16),
    /// For [`Field::Index`].
    Index(u32),
}

/// What a key maps to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// For [`Holds::Nothing`].
    Nothing,
    /// For [`Holds::Verdict`].
    Verdict(Verdict),
    /// For [`Holds::Target`].
    Target(IpAddr, u16),
}

/// What becomes of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Done with this table.
    Accept,
    /// Gone.
    Drop,
    /// Back to the calling chain.
    Return,
    /// On with that chain, then back.
    Jump(String),
    /// On with that chain, not back.
    Goto(String),
}

/// Something to be read from a packet, or made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// `ip saddr` or `ip6 saddr`
    Source(Family),
    /// `ip daddr` or `ip6 daddr`
    Destination(Family),
    /// `meta l4proto`
    Protocol,
    /// `th dport`
    DestinationPort,
    /// `numgen random mod N`
    Random(u32),
}

/// One statement or match of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Statement {
    /// `meta nfproto`
    Family(Family),
    /// `meta l4proto`
    Protocol(Protocol),
    /// The link that the packet came in by is (`true`) or is not `lo`.
    FromLoopback(bool),
    /// An address lies in a range, or does not if `negate`.
    InRange {
        /// A source or destination address.
        load: Load,
        /// The range.
        range: IpNet,
        /// `!=`
        negate: bool,
    },
    /// The key is in the set.
    InSet {
        /// Parts of the key.
        key: Vec<Load>,
        /// Name of the set.
        set: String,
    },
    /// `vmap`: what the verdict map says for the key, or on with the rule if it is not there.
    Dispatch {
        /// Parts of the key.
        key: Vec<Load>,
        /// Name of the verdict map.
        map: String,
    },
    /// `fib saddr type local`
    SourceIsLocal,
    /// `fib daddr type local`
    DestinationIsLocal,
    /// `ct state new`
    New,
    /// `ct status dnat`
    Translated,
    /// The bit is set in the packet's mark.
    Marked(u32),
    /// Sets the bit.
    SetMark(u32),
    /// Clears the bit.
    ClearMark(u32),
    /// `update @set { key }`: adds the key or renews its time-out.
    Remember {
        /// Parts of the key.
        key: Vec<Load>,
        /// Name of the set.
        set: String,
    },
    /// `dnat to address:port`
    DnatTo(IpAddr, u16),
    /// `dnat to key map @map`
    DnatByMap {
        /// Family of the map's values.
        family: Family,
        /// Parts of the key.
        key: Vec<Load>,
        /// Name of the map.
        map: String,
    },
    /// `masquerade fully-random`
    Masquerade,
    /// `reject with tcp reset`, for TCP only.
    Reset,
    /// `reject`: ICMP port unreachable.
    Reject,
    /// An immediate verdict.
    Verdict(Verdict),
}

impl Ruleset {
    /// An empty table of that name.
    pub fn new(table: impl Into<String>) -> Self {
        Self { table: table.into(), ..Self::default() }
    }

    /// Adds a base chain.
    pub fn base(&mut self, name: &str, kind: HookKind, point: HookPoint, priority: i32, rules: Vec<Rule>) {
        let hook = Some(Hook { kind, point, priority });
        self.chains.insert(name.to_owned(), Chain { hook, rules });
    }

    /// Adds a chain without a hook.
    pub fn chain(&mut self, name: impl Into<String>, rules: Vec<Rule>) {
        self.chains.insert(name.into(), Chain { hook: None, rules });
    }

    /// Adds an empty set or map.
    pub fn set(&mut self, name: impl Into<String>, key: &[Field], holds: Holds) {
        let set = Set { key: key.to_vec(), holds, timeout: None, elements: BTreeMap::new() };
        self.sets.insert(name.into(), set);
    }

    /// Puts an element into a set that was added before; a key that is there already keeps its value.
    pub fn element(&mut self, set: &str, key: Key, value: Value) {
        if let Some(set) = self.sets.get_mut(set) {
            set.elements.entry(key).or_insert(value);
        }
    }
}

impl Set {
    /// Whether the two differ in elements only.
    pub fn same_shape(&self, other: &Set) -> bool {
        self.key == other.key && self.holds == other.holds && self.timeout == other.timeout
    }
}
