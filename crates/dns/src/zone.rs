//! The cluster's names and what they stand for (the Kubernetes DNS-based service discovery specification, version 1.1.0): pure data, kept
//! up to date by [`crate::state`].

use crate::wire::{Data, Name, Record, kind};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;

/// How long answers may be kept, in seconds: short, since endpoints come and go.
pub const TTL: u32 = 5;
const VERSION: &str = "1.1.0";

/// Namespace and name of a service.
pub(crate) type Key = (String, String);

/// A service, as names need it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Service {
    /// With cluster addresses.
    Cluster { addresses: Vec<IpAddr>, ports: Vec<Port> },
    /// Its names are those of its endpoints.
    Headless,
    /// An alias.
    External(String),
}

/// A port with a name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Port {
    pub(crate) name: String,
    /// In lower case.
    pub(crate) protocol: String,
    pub(crate) number: u16,
}

/// A ready endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    pub(crate) address: IpAddr,
    pub(crate) hostname: Option<String>,
    pub(crate) ports: Vec<Port>,
}

impl Endpoint {
    /// The label under its service: the host name, or the address with dashes.
    fn label(&self) -> String {
        match &self.hostname {
            Some(hostname) if !hostname.is_empty() => hostname.to_ascii_lowercase(),
            _ => self.address.to_string().replace(['.', ':'], "-"),
        }
    }
}

/// All names of the cluster.
#[derive(Debug, Default)]
pub(crate) struct Zone {
    /// The cluster's domain, e.g. `cluster.local`, in lower case.
    domain: String,
    /// Ranges whose reverse names are ours even where nothing has the address.
    ranges: Vec<ipnet::IpNet>,
    pub(crate) namespaces: HashSet<String>,
    pub(crate) services: HashMap<Key, Service>,
    pub(crate) endpoints: HashMap<Key, HashMap<String, Vec<Endpoint>>>,
    /// Who has an address: a service, or a label under one.
    reverse: HashMap<IpAddr, BTreeSet<(Key, Option<String>)>>,
    /// Rises with every change.
    pub(crate) serial: u32,
}

/// The outcome of a look-up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Records of the type asked for, and such as will be asked for next.
    Records { answers: Vec<Data>, additional: Vec<Record> },
    /// The name stands for another.
    Alias(Name),
    /// The name exists, but has no record of this type.
    NoData,
    /// There is no such name.
    NoName,
    /// The name is not in our domain.
    NotOurs,
}

impl Zone {
    pub(crate) fn new(domain: &str, ranges: Vec<ipnet::IpNet>) -> Self {
        let domain = domain.trim_matches('.').to_ascii_lowercase();
        Self { domain, ranges, ..Self::default() }
    }

    /// The SOA record that goes with negative answers.
    pub(crate) fn authority(&self) -> Option<Record> {
        let name = |prefix: &str| Name::parse(&format!("{prefix}{}", self.domain));
        let times = [7200, 1800, 86400, TTL];
        let data = Data::Soa {
            primary: name("ns.dns.")?,
            mailbox: name("hostmaster.")?,
            serial: self.serial,
            times,
        };
        Some(Record { name: name("")?, ttl: TTL, data })
    }

    /// Replaces a service.
    pub(crate) fn put_service(&mut self, key: Key, service: Option<Service>) {
        self.serial = self.serial.wrapping_add(1);
        let old = match service.clone() {
            Some(service) => self.services.insert(key.clone(), service),
            None => self.services.remove(&key),
        };
        if let Some(Service::Cluster { addresses, .. }) = old {
            for address in addresses {
                self.forget(address, &(key.clone(), None));
            }
        }
        if let Some(Service::Cluster { addresses, .. }) = service {
            for address in addresses {
                self.reverse.entry(address).or_default().insert((key.clone(), None));
            }
        }
    }

    /// Replaces what one slice says about a service.
    pub(crate) fn put_endpoints(&mut self, key: Key, slice: String, endpoints: Option<Vec<Endpoint>>) {
        self.serial = self.serial.wrapping_add(1);
        let slices = self.endpoints.entry(key.clone()).or_default();
        let old = match endpoints.clone() {
            Some(endpoints) => slices.insert(slice, endpoints),
            None => slices.remove(&slice),
        };
        if slices.is_empty() {
            self.endpoints.remove(&key);
        }
        for endpoint in old.unwrap_or_default() {
            self.forget(endpoint.address, &(key.clone(), Some(endpoint.label())));
        }
        // Another slice may hold the same endpoint while it moves.
        let all: Vec<(IpAddr, String)> =
            self.endpoints_of(&key).map(|endpoint| (endpoint.address, endpoint.label())).collect();
        for (address, label) in all {
            self.reverse.entry(address).or_default().insert((key.clone(), Some(label)));
        }
    }

    fn forget(&mut self, address: IpAddr, owner: &(Key, Option<String>)) {
        if let Some(owners) = self.reverse.get_mut(&address) {
            owners.remove(owner);
            if owners.is_empty() {
                self.reverse.remove(&address);
            }
        }
    }

    fn endpoints_of(&self, key: &Key) -> impl Iterator<Item = &Endpoint> {
        self.endpoints.get(key).into_iter().flat_map(HashMap::values).flatten()
    }

    /// Looks a name up.
    pub(crate) fn lookup(&self, name: &Name, kind: u16) -> Answer {
        let text = name.lower();
        if let Some(address) = reverse_address(&text) {
            return self.pointer(address, kind);
        }
        let Some(rest) = text.strip_suffix(&self.domain) else { return Answer::NotOurs };
        if rest.is_empty() {
            return match (kind, self.authority(), Name::parse(&format!("ns.dns.{}", self.domain))) {
                (kind::SOA, Some(soa), _) => only(vec![soa.data]),
                (kind::NS, _, Some(server)) => only(vec![Data::Ns(server)]),
                _ => Answer::NoData,
            };
        }
        let Some(rest) = rest.strip_suffix('.') else { return Answer::NotOurs };
        let labels: Vec<&str> = rest.rsplit('.').collect();
        match labels[..] {
            ["dns-version"] => match kind {
                kind::TXT | kind::ANY => only(vec![Data::Txt(vec![VERSION.into()])]),
                _ => Answer::NoData,
            },
            ["svc" | "pod" | "dns"] | ["dns", "ns"] => Answer::NoData,
            ["svc" | "pod", namespace] => self.if_namespace(namespace, Answer::NoData),
            ["pod", namespace, address] => match dashed(address) {
                Some(address) => self.if_namespace(namespace, by_family(&[address], kind)),
                None => Answer::NoName,
            },
            ["svc", namespace, service] => {
                let key = (namespace.to_owned(), service.to_owned());
                self.service(&key, kind)
            }
            ["svc", namespace, service, ref inner @ ..] if inner.len() <= 2 => {
                let key = (namespace.to_owned(), service.to_owned());
                self.below(&key, inner, kind)
            }
            _ => Answer::NoName,
        }
    }

    fn if_namespace(&self, namespace: &str, answer: Answer) -> Answer {
        if self.namespaces.contains(namespace) { answer } else { Answer::NoName }
    }

    fn service(&self, key: &Key, kind: u16) -> Answer {
        match self.services.get(key) {
            None => Answer::NoName,
            Some(Service::External(target)) => Name::parse(target).map_or(Answer::NoData, Answer::Alias),
            Some(Service::Cluster { addresses, ports }) => match kind {
                kind::SRV => self.places(key, addresses, ports),
                _ => by_family(addresses, kind),
            },
            Some(Service::Headless) => {
                let endpoints: Vec<&Endpoint> = self.endpoints_of(key).collect();
                match kind {
                    // As the reference implementation has it, a headless service without any endpoint has no name.
                    _ if endpoints.is_empty() => Answer::NoName,
                    kind::SRV => self.endpoint_places(key, &endpoints, |_| true),
                    _ => by_family(&unique(&endpoints), kind),
                }
            }
        }
    }

    /// Names under a service: `_port._protocol` (here from the right), `_protocol`, or one endpoint.
    fn below(&self, key: &Key, labels: &[&str], kind: u16) -> Answer {
        let Some(service) = self.services.get(key) else { return Answer::NoName };
        let protocol = |label: &str| label.strip_prefix('_').map(str::to_owned);
        let endpoints: Vec<&Endpoint> = match service {
            Service::Headless => self.endpoints_of(key).collect(),
            _ => Vec::new(),
        };
        let of_service: &[Port] = match service {
            Service::Cluster { ports, .. } => ports,
            _ => &[],
        };
        let every_port = || of_service.iter().chain(endpoints.iter().flat_map(|endpoint| &endpoint.ports));
        match labels {
            [first] => {
                if let Some(protocol) = protocol(first) {
                    return if every_port().any(|port| port.protocol == protocol) {
                        Answer::NoData
                    } else {
                        Answer::NoName
                    };
                }
                let named: Vec<&Endpoint> =
                    endpoints.iter().filter(|endpoint| endpoint.label() == *first).copied().collect();
                match kind {
                    _ if named.is_empty() => Answer::NoName,
                    kind::SRV => self.endpoint_places(key, &named, |_| true),
                    _ => by_family(&unique(&named), kind),
                }
            }
            [first, second] => {
                let (Some(protocol), Some(name)) = (protocol(first), protocol(second)) else {
                    return Answer::NoName;
                };
                let wanted = |port: &Port| port.name == name && port.protocol == protocol;
                if !every_port().any(wanted) {
                    return Answer::NoName;
                }
                if kind != kind::SRV && kind != kind::ANY {
                    return Answer::NoData;
                }
                match service {
                    Service::Cluster { addresses, ports } => {
                        let ports: Vec<Port> = ports.iter().filter(|port| wanted(port)).cloned().collect();
                        self.places(key, addresses, &ports)
                    }
                    _ => self.endpoint_places(key, &endpoints, wanted),
                }
            }
            _ => Answer::NoName,
        }
    }

    fn full_name(&self, (namespace, service): &Key, label: Option<&str>) -> Option<Name> {
        let prefix = label.map(|label| format!("{label}.")).unwrap_or_default();
        Name::parse(&format!("{prefix}{service}.{namespace}.svc.{}", self.domain))
    }

    /// SRV records of a service with cluster addresses.
    fn places(&self, key: &Key, addresses: &[IpAddr], ports: &[Port]) -> Answer {
        let Some(target) = self.full_name(key, None) else { return Answer::NoData };
        if ports.is_empty() {
            return Answer::NoData;
        }
        let weight = (100 / ports.len()).max(1) as u16;
        let answers = ports
            .iter()
            .map(|port| Data::Srv { priority: 0, weight, port: port.number, target: target.clone() })
            .collect();
        let additional = addresses.iter().map(|address| record(&target, *address)).collect();
        Answer::Records { answers, additional }
    }

    /// SRV records of endpoints.
    fn endpoint_places(&self, key: &Key, endpoints: &[&Endpoint], wanted: impl Fn(&Port) -> bool) -> Answer {
        let mut places: Vec<(u16, Name)> = Vec::new();
        let mut additional = Vec::new();
        for endpoint in endpoints {
            let Some(target) = self.full_name(key, Some(&endpoint.label())) else { continue };
            let mut used = false;
            for port in endpoint.ports.iter().filter(|port| wanted(port)) {
                used = true;
                let place = (port.number, target.clone());
                if !places.contains(&place) {
                    places.push(place);
                }
            }
            if used {
                additional.push(record(&target, endpoint.address));
            }
        }
        if places.is_empty() {
            return Answer::NoData;
        }
        let weight = (100 / places.len()).max(1) as u16;
        let answers = places
            .into_iter()
            .map(|(port, target)| Data::Srv { priority: 0, weight, port, target })
            .collect();
        Answer::Records { answers, additional }
    }

    fn pointer(&self, address: IpAddr, kind: u16) -> Answer {
        let Some(owners) = self.reverse.get(&address) else {
            let ours = self.ranges.iter().any(|range| range.contains(&address));
            return if ours { Answer::NoName } else { Answer::NotOurs };
        };
        if kind != kind::PTR && kind != kind::ANY {
            return Answer::NoData;
        }
        // An endpoint has a name of its own only under a headless service.
        let names: Vec<Data> = owners
            .iter()
            .filter(|(key, label)| {
                label.is_none() || matches!(self.services.get(key), Some(Service::Headless))
            })
            .filter_map(|(key, label)| self.full_name(key, label.as_deref()))
            .map(Data::Ptr)
            .collect();
        if names.is_empty() { Answer::NoName } else { only(names) }
    }
}

fn only(answers: Vec<Data>) -> Answer {
    Answer::Records { answers, additional: Vec::new() }
}

fn record(name: &Name, address: IpAddr) -> Record {
    Record { name: name.clone(), ttl: TTL, data: address_data(address) }
}

fn address_data(address: IpAddr) -> Data {
    match address {
        IpAddr::V4(v4) => Data::A(v4),
        IpAddr::V6(v6) => Data::Aaaa(v6),
    }
}

fn unique(endpoints: &[&Endpoint]) -> Vec<IpAddr> {
    let mut seen = HashSet::new();
    endpoints.iter().map(|endpoint| endpoint.address).filter(|address| seen.insert(*address)).collect()
}

fn by_family(addresses: &[IpAddr], kind: u16) -> Answer {
    let answers: Vec<Data> = addresses
        .iter()
        .filter(|address| match kind {
            kind::A => address.is_ipv4(),
            kind::AAAA => address.is_ipv6(),
            kind => kind == kind::ANY,
        })
        .map(|address| address_data(*address))
        .collect();
    if answers.is_empty() { Answer::NoData } else { only(answers) }
}

/// `10-244-0-5` or `fd00-10--5` as an address.
fn dashed(label: &str) -> Option<IpAddr> {
    label
        .replace('-', ".")
        .parse::<std::net::Ipv4Addr>()
        .map(IpAddr::V4)
        .ok()
        .or_else(|| label.replace('-', ":").parse::<std::net::Ipv6Addr>().map(IpAddr::V6).ok())
}

/// The address of a whole reverse name.
fn reverse_address(text: &str) -> Option<IpAddr> {
    if let Some(rest) = text.strip_suffix(".in-addr.arpa") {
        let octets: Vec<u8> = rest.rsplit('.').map(|label| label.parse().ok()).collect::<Option<_>>()?;
        return Some(IpAddr::from(<[u8; 4]>::try_from(octets).ok()?));
    }
    let rest = text.strip_suffix(".ip6.arpa")?;
    let nibbles: Vec<u8> = rest
        .rsplit('.')
        .map(|label| if label.len() == 1 { u8::from_str_radix(label, 16).ok() } else { None })
        .collect::<Option<_>>()?;
    if nibbles.len() != 32 {
        return None;
    }
    let mut octets = [0; 16];
    for (octet, pair) in octets.iter_mut().zip(nibbles.chunks(2)) {
        *octet = pair[0] << 4 | pair[1];
    }
    Some(IpAddr::from(octets))
}

#[cfg(test)]
mod tests;
