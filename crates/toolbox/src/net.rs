//! DNS look-ups, and plain TCP and UDP clients and echo servers.

use crate::resolve::{self, Config};
use crate::{Failure, Outcome, duration, flags, has, value};
use dns::wire::{Data, Message, kind, rcode};
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

pub(crate) fn dns(args: &[String]) -> Outcome {
    const USAGE: &str =
        "dns [-t a|aaaa|srv|ptr|txt|cname|ns|soa|any] [-s SERVER[:PORT]] [-T] [-q] NAME|ADDRESS";
    let (found, operands) = flags(args, "Tq", "ts", USAGE)?;
    let (Some(name), None | Some(_)) = (operands.first(), operands.get(1)) else {
        return Err(Failure::usage(USAGE));
    };
    let mut config = Config::load();
    // As nslookup has it, a second operand is the server.
    let server =
        found.iter().find(|(flag, _)| *flag == 's').map(|(_, text)| *text).or(operands.get(1).copied());
    if let Some(server) = server {
        config.servers = resolve::sockets(server, Some(53))?;
    }
    let mut name = (*name).to_owned();
    let mut kinds = match value::<String>(&found, 't')?.map(|text| text.to_ascii_lowercase()).as_deref() {
        None => vec![kind::A, kind::AAAA],
        Some("a") => vec![kind::A],
        Some("aaaa") => vec![kind::AAAA],
        Some("srv") => vec![kind::SRV],
        Some("ptr") => vec![kind::PTR],
        Some("txt") => vec![kind::TXT],
        Some("cname") => vec![kind::CNAME],
        Some("ns") => vec![kind::NS],
        Some("soa") => vec![kind::SOA],
        Some("any") => vec![kind::ANY],
        Some(_) => return Err(Failure::usage(USAGE)),
    };
    if let Ok(ip) = name.parse() {
        name = reverse(ip);
        kinds = vec![kind::PTR];
    }
    let (mut shown, mut code) = (0, rcode::NO_ERROR);
    for kind in kinds {
        let message = resolve::lookup(&config, &name, kind, has(&found, 'T'))?;
        code = code.max(message.rcode);
        shown += show(&message, has(&found, 'q'));
    }
    if shown > 0 {
        return Ok(0);
    }
    Err(Failure::about(
        name,
        match code {
            rcode::NO_ERROR => "no record of this type".to_owned(),
            rcode::NAME_ERROR => "no such name (NXDOMAIN)".to_owned(),
            rcode::SERVER_FAILURE => "server failure (SERVFAIL)".to_owned(),
            rcode::REFUSED => "refused".to_owned(),
            other => format!("response code {other}"),
        },
    ))
}

fn show(message: &Message, quiet: bool) -> usize {
    for record in &message.answers {
        let (kind, text) = match &record.data {
            Data::A(ip) => ("A", ip.to_string()),
            Data::Aaaa(ip) => ("AAAA", ip.to_string()),
            Data::Cname(name) => ("CNAME", name.to_string()),
            Data::Ptr(name) => ("PTR", name.to_string()),
            Data::Ns(name) => ("NS", name.to_string()),
            Data::Srv { priority, weight, port, target } => {
                ("SRV", format!("{priority} {weight} {port} {target}"))
            }
            Data::Txt(parts) => {
                ("TXT", parts.iter().map(|part| String::from_utf8_lossy(part)).collect::<Vec<_>>().join(" "))
            }
            Data::Soa { primary, mailbox, serial, .. } => ("SOA", format!("{primary} {mailbox} {serial}")),
            Data::Other(..) => ("?", "(unknown type)".to_owned()),
        };
        if quiet {
            println!("{text}");
        } else {
            println!("{} {} {kind} {text}", record.name, record.ttl);
        }
    }
    message.answers.len()
}

fn reverse(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(v4) => {
            let [a, b, c, d] = v4.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa.")
        }
        IpAddr::V6(v6) => {
            let mut text = String::new();
            for byte in v6.octets().iter().rev() {
                text += &format!("{:x}.{:x}.", byte & 15, byte >> 4);
            }
            text + "ip6.arpa."
        }
    }
}

/// All addresses of both families, or the one given.
pub(crate) fn listen_address(text: &str) -> Result<SocketAddr, Failure> {
    match text.parse::<u16>() {
        Ok(port) => {
            let ipv6 = std::path::Path::new("/proc/sys/net/ipv6").exists();
            Ok(if ipv6 { (Ipv6Addr::UNSPECIFIED, port).into() } else { ([0, 0, 0, 0], port).into() })
        }
        Err(_) => text.parse().map_err(|_| Failure::about(text, "not PORT or ADDRESS:PORT")),
    }
}

pub(crate) fn connect(text: &str, default_port: Option<u16>, time: Duration) -> Result<TcpStream, Failure> {
    let mut last = Failure::about(text, "no address");
    for address in resolve::sockets(text, default_port)? {
        match TcpStream::connect_timeout(&address, time) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = Failure::about(address, error),
        }
    }
    Err(last)
}

pub(crate) fn tcp(args: &[String]) -> Outcome {
    const USAGE: &str =
        "tcp listen PORT | tcp [-w WAIT] connect HOST:PORT [TEXT] | tcp [-w WAIT] check HOST:PORT";
    let (found, operands) = flags(args, "", "w", USAGE)?;
    let time = duration(value::<String>(&found, 'w')?.as_deref().unwrap_or("5"))?;
    match operands[..] {
        ["listen", port] => {
            let address = listen_address(port)?;
            let listener = TcpListener::bind(address).map_err(|error| Failure::about(address, error))?;
            println!("listening on {}", listener.local_addr()?);
            for stream in listener.incoming() {
                let stream = stream?;
                std::thread::spawn(move || {
                    let _ = io::copy(&mut &stream, &mut &stream);
                });
            }
            Ok(0)
        }
        ["check", target] => {
            println!("connected to {}", connect(target, None, time)?.peer_addr()?);
            Ok(0)
        }
        ["connect", target, ref text @ ..] => {
            let mut stream = connect(target, None, time)?;
            stream.set_read_timeout(Some(time))?;
            if text.is_empty() {
                let mut writer = stream.try_clone()?;
                std::thread::spawn(move || {
                    let _ = io::copy(&mut io::stdin(), &mut writer);
                    let _ = writer.shutdown(Shutdown::Write);
                });
                stream.set_read_timeout(None)?;
            } else {
                stream.write_all(format!("{}\n", text.join(" ")).as_bytes())?;
                stream.shutdown(Shutdown::Write)?;
            }
            io::copy(&mut stream, &mut io::stdout())?;
            Ok(0)
        }
        _ => Err(Failure::usage(USAGE)),
    }
}

pub(crate) fn udp(args: &[String]) -> Outcome {
    const USAGE: &str = "udp listen PORT | udp [-w WAIT] send HOST:PORT TEXT";
    let (found, operands) = flags(args, "", "w", USAGE)?;
    let time = duration(value::<String>(&found, 'w')?.as_deref().unwrap_or("3"))?;
    match operands[..] {
        ["listen", port] => {
            let socket = UdpSocket::bind(listen_address(port)?)?;
            println!("listening on {}", socket.local_addr()?);
            let mut buffer = vec![0; 65536];
            loop {
                let (length, from) = socket.recv_from(&mut buffer)?;
                // The asker may be gone by now; the next one should still be served.
                let _ = socket.send_to(&buffer[..length], from);
            }
        }
        ["send", target, ref text @ ..] if !text.is_empty() => {
            let address = *resolve::sockets(target, None)?
                .first()
                .ok_or_else(|| Failure::about(target, "no address"))?;
            let any: SocketAddr =
                if address.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
            let socket = UdpSocket::bind(any)?;
            socket.connect(address)?;
            socket.set_read_timeout(Some(time))?;
            socket.send(text.join(" ").as_bytes())?;
            let mut buffer = vec![0; 65536];
            let length = socket.recv(&mut buffer).map_err(|error| Failure::about(address, error))?;
            io::stdout().write_all(&buffer[..length])?;
            println!();
            Ok(0)
        }
        _ => Err(Failure::usage(USAGE)),
    }
}

/// Reads until the end or `limit` bytes.
pub(crate) fn read_limited(stream: &mut impl Read, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    stream.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}
