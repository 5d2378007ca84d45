//! Names to addresses without the C library: /etc/hosts, then the servers, search list and ndots of /etc/resolv.conf.

use crate::Failure;
use dns::wire::{Data, Message, Name, Record, kind, rcode};
use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What /etc/resolv.conf says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Config {
    pub(crate) servers: Vec<SocketAddr>,
    pub(crate) search: Vec<String>,
    pub(crate) ndots: usize,
}

impl Config {
    pub(crate) fn load() -> Self {
        Self::parse(&fs::read_to_string("/etc/resolv.conf").unwrap_or_default())
    }

    pub(crate) fn parse(text: &str) -> Self {
        let mut config = Self { servers: Vec::new(), search: Vec::new(), ndots: 1 };
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => config.servers.extend(
                    words.next().and_then(|ip| ip.parse().ok()).map(|ip: IpAddr| SocketAddr::new(ip, 53)),
                ),
                Some("search" | "domain") => config.search = words.map(str::to_owned).collect(),
                Some("options") => {
                    let mut ndots = words.filter_map(|word| word.strip_prefix("ndots:")?.parse().ok());
                    config.ndots = ndots.next_back().unwrap_or(config.ndots);
                }
                _ => {}
            }
        }
        config
    }

    /// The full names to be tried for `name`, in order.
    pub(crate) fn candidates(&self, name: &str) -> Vec<String> {
        if name.ends_with('.') {
            return vec![name.to_owned()];
        }
        let mut names: Vec<String> =
            self.search.iter().map(|domain| format!("{name}.{}", domain.trim_end_matches('.'))).collect();
        let dots = name.matches('.').count();
        if dots >= self.ndots {
            names.insert(0, name.to_owned())
        } else {
            names.push(name.to_owned())
        }
        names
    }
}

/// Asks the servers in turn for one full name.
pub(crate) fn query(servers: &[SocketAddr], name: &str, kind: u16, tcp: bool) -> Result<Message, Failure> {
    let parsed = Name::parse(name).ok_or_else(|| Failure::about(name, "not a valid name"))?;
    let id = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().subsec_nanos() as u16;
    let bytes = Message::query(id, parsed, kind).encode();
    let mut last = Failure::new("no name server is configured (/etc/resolv.conf)");
    for _ in 0..2 {
        for server in servers {
            let answer = if tcp { ask_tcp(*server, &bytes) } else { ask_udp(*server, &bytes, id) };
            match answer {
                Ok(message) if message.truncated && !tcp => {
                    return query(servers, name, kind, true);
                }
                Ok(message) => return Ok(message),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    last = Failure::about(server, "no answer within three seconds");
                }
                Err(error) => last = Failure::about(server, error),
            }
        }
    }
    Err(last)
}

fn malformed(error: dns::wire::WireError) -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::InvalidData, error)
}

fn ask_udp(server: SocketAddr, query: &[u8], id: u16) -> std::io::Result<Message> {
    let any: SocketAddr = if server.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(any)?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(Duration::from_secs(3)))?;
    socket.send(query)?;
    let mut buffer = [0; 4096];
    loop {
        let length = socket.recv(&mut buffer)?;
        let message = Message::decode(&buffer[..length]).map_err(malformed)?;
        if message.id == id && message.response {
            return Ok(message);
        }
    }
}

fn ask_tcp(server: SocketAddr, query: &[u8]) -> std::io::Result<Message> {
    let mut stream = TcpStream::connect_timeout(&server, Duration::from_secs(3))?;
    stream.set_read_timeout(Some(Duration::from_secs(3)))?;
    let mut framed = (query.len() as u16).to_be_bytes().to_vec();
    framed.extend(query);
    stream.write_all(&framed)?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut answer)?;
    Message::decode(&answer).map_err(malformed)
}

/// Looks a name up with the search list. The first candidate that exists decides, even if it has no record of this type.
pub(crate) fn lookup(config: &Config, name: &str, kind: u16, tcp: bool) -> Result<Message, Failure> {
    let mut last = None;
    for candidate in config.candidates(name) {
        let message = query(&config.servers, &candidate, kind, tcp)?;
        if message.rcode == rcode::NO_ERROR {
            return Ok(message);
        }
        last = Some(message);
    }
    last.ok_or_else(|| Failure::about(name, "nothing to look up"))
}

pub(crate) fn address_of(record: &Record) -> Option<IpAddr> {
    match record.data {
        Data::A(ip) => Some(ip.into()),
        Data::Aaaa(ip) => Some(ip.into()),
        _ => None,
    }
}

/// All addresses of a host name or a literal address.
pub(crate) fn addresses(name: &str) -> Result<Vec<IpAddr>, Failure> {
    if let Ok(ip) = name.trim_matches(['[', ']']).parse() {
        return Ok(vec![ip]);
    }
    let hosts = fs::read_to_string("/etc/hosts").unwrap_or_default();
    let mut found: Vec<IpAddr> = hosts
        .lines()
        .filter_map(|line| {
            let mut words = line.split('#').next()?.split_whitespace();
            let ip = words.next()?.parse().ok()?;
            words.any(|word| word.eq_ignore_ascii_case(name)).then_some(ip)
        })
        .collect();
    if found.is_empty() && name == "localhost" {
        found.push(IpAddr::from([127, 0, 0, 1]));
    }
    if !found.is_empty() {
        return Ok(found);
    }
    let config = Config::load();
    let mut failure = None;
    for kind in [kind::A, kind::AAAA] {
        match lookup(&config, name, kind, false) {
            Ok(message) => found.extend(message.answers.iter().filter_map(address_of)),
            Err(error) => failure = Some(error),
        }
    }
    match (found.is_empty(), failure) {
        (true, Some(failure)) => Err(failure),
        (true, None) => Err(Failure::about(name, "no such host")),
        _ => Ok(found),
    }
}

/// `host:port` or `[v6]:port` to socket addresses.
pub(crate) fn sockets(text: &str, default_port: Option<u16>) -> Result<Vec<SocketAddr>, Failure> {
    let bad = || Failure::about(text, "not HOST:PORT");
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => {
            (host, port.parse().map_err(|_| bad())?)
        }
        _ => (text, default_port.ok_or_else(bad)?),
    };
    Ok(addresses(host)?.into_iter().map(|ip| SocketAddr::new(ip, port)).collect())
}
