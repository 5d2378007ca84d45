//! An HTTP echo server whose health can be turned off and on, and a GET client. HTTP/1.1, one request per connection.

use crate::tls::{self, Trust};
use crate::{Failure, Outcome, duration, flags, has, net, process, size, value};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const ECHO_USAGE: &str = "http-echo [-p PORT] [-t TEXT] [-d START-DELAY] [-f FAIL-AFTER] [-r READY-FILE]
  GET /           host name, client, request and TEXT   GET /env     environment
  GET /healthz    200, or 500 after FAIL-AFTER or POST /fail (POST /heal undoes it)
  GET /readyz     200 once START-DELAY has passed (and READY-FILE exists), else 503
  GET /hostname   host name alone                       GET /status/CODE, /delay/TIME, /bytes/SIZE";
/// Connections served at once; more wait in the listener's queue.
const CONNECTIONS: usize = 256;

struct Server {
    start: Instant,
    delay: Duration,
    fail_after: Option<Duration>,
    ready_file: Option<String>,
    text: Option<String>,
    failing: AtomicBool,
    busy: AtomicUsize,
}

pub(crate) fn echo(args: &[String]) -> Outcome {
    let (found, operands) = flags(args, "", "ptdfr", ECHO_USAGE)?;
    if !operands.is_empty() {
        return Err(Failure::usage(ECHO_USAGE));
    }
    let time = |flag| value::<String>(&found, flag)?.map(|text| duration(&text)).transpose();
    let port = match value::<String>(&found, 'p')? {
        Some(port) => port,
        None => std::env::var("PORT").unwrap_or_else(|_| "8080".into()),
    };
    let server = Arc::new(Server {
        start: Instant::now(),
        delay: time('d')?.unwrap_or_default(),
        fail_after: time('f')?,
        ready_file: value(&found, 'r')?,
        text: value(&found, 't')?,
        failing: AtomicBool::new(false),
        busy: AtomicUsize::new(0),
    });
    let address = net::listen_address(&port)?;
    let listener = TcpListener::bind(address).map_err(|error| Failure::about(address, error))?;
    println!("listening on {}", listener.local_addr()?);
    io::stdout().flush()?;
    for stream in listener.incoming() {
        let Ok(stream) = stream else { continue };
        while server.busy.load(Ordering::Acquire) >= CONNECTIONS {
            std::thread::sleep(Duration::from_millis(5));
        }
        server.busy.fetch_add(1, Ordering::AcqRel);
        let shared = server.clone();
        let spawned = std::thread::Builder::new().stack_size(128 << 10).spawn(move || {
            let _ = shared.serve(stream);
            shared.busy.fetch_sub(1, Ordering::AcqRel);
        });
        if spawned.is_err() {
            server.busy.fetch_sub(1, Ordering::AcqRel);
        }
    }
    Ok(0)
}

struct Request {
    method: String,
    target: String,
    head: String,
    body: Vec<u8>,
}

fn read_request(reader: &mut impl BufRead) -> io::Result<Option<Request>> {
    let mut head = String::new();
    let mut limited = reader.take(64 << 10);
    loop {
        let before = head.len();
        if limited.read_line(&mut head)? == 0 {
            return Ok(None);
        }
        if head[before..].trim_end().is_empty() {
            break;
        }
    }
    let mut words = head.split_whitespace();
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (method, target) = (method.to_owned(), target.to_owned());
    let length = header(&head, "content-length").and_then(|text| text.parse().ok()).unwrap_or(0u64);
    let body = net::read_limited(reader, length.min(1 << 20))?;
    Ok(Some(Request { method, target, head, body }))
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines()
        .filter_map(|line| line.split_once(':'))
        .find_map(|(known, value)| known.trim().eq_ignore_ascii_case(name).then_some(value.trim()))
}

impl Server {
    fn serve(&self, mut stream: TcpStream) -> io::Result<()> {
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        stream.set_write_timeout(Some(Duration::from_secs(30)))?;
        let mut reader = BufReader::new(stream.try_clone()?);
        while let Some(request) = read_request(&mut reader)? {
            let (status, body) = self.answer(&request, &stream);
            println!("{} {} {status}", request.method, request.target);
            let close = header(&request.head, "connection")
                .is_some_and(|text| text.eq_ignore_ascii_case("close"))
                || request.head.lines().next().is_some_and(|line| line.ends_with("HTTP/1.0"));
            let head = format!(
                "HTTP/1.1 {status} {}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\n{}\r\n",
                reason(status),
                body.len(),
                if close { "Connection: close\r\n" } else { "" }
            );
            stream.write_all(head.as_bytes())?;
            if request.method != "HEAD" {
                stream.write_all(&body)?;
            }
            if close {
                break;
            }
        }
        Ok(())
    }

    fn healthy(&self) -> bool {
        let expired = self.fail_after.is_some_and(|after| self.start.elapsed() >= after);
        !expired && !self.failing.load(Ordering::Relaxed)
    }

    fn ready(&self) -> bool {
        let file = self.ready_file.as_ref().is_none_or(|file| std::path::Path::new(file).exists());
        file && self.start.elapsed() >= self.delay && self.healthy()
    }

    fn answer(&self, request: &Request, stream: &TcpStream) -> (u16, Vec<u8>) {
        let path = request.target.split('?').next().unwrap_or_default();
        let host = process::name_of_host().unwrap_or_default();
        let state =
            |fine: bool, code| if fine { (200, b"ok\n".to_vec()) } else { (code, b"failing\n".to_vec()) };
        if let Some(code) = path.strip_prefix("/status/") {
            return (code.parse().unwrap_or(400), format!("{code}\n").into());
        }
        if let Some(time) = path.strip_prefix("/delay/") {
            std::thread::sleep(duration(time).unwrap_or_default().min(Duration::from_secs(600)));
            return (200, b"ok\n".to_vec());
        }
        if let Some(amount) = path.strip_prefix("/bytes/") {
            return (200, vec![b'.'; size(amount).unwrap_or(0).min(64 << 20) as usize]);
        }
        match (request.method.as_str(), path) {
            (_, "/healthz") => state(self.healthy(), 500),
            (_, "/readyz") => state(self.ready(), 503),
            ("POST", "/fail") => {
                self.failing.store(true, Ordering::Relaxed);
                (200, b"failing from now on\n".to_vec())
            }
            ("POST", "/heal") => {
                self.failing.store(false, Ordering::Relaxed);
                (200, b"ok\n".to_vec())
            }
            (_, "/hostname") => (200, format!("{host}\n").into()),
            (_, "/env") => {
                let mut lines: Vec<String> = std::env::vars_os()
                    .map(|(name, value)| format!("{}={}\n", name.to_string_lossy(), value.to_string_lossy()))
                    .collect();
                lines.sort();
                (200, lines.concat().into())
            }
            _ => {
                let mut text = format!("hostname: {host}\n");
                if let Ok(peer) = stream.peer_addr() {
                    text += &format!("client: {}\n", plain(peer));
                }
                if let Ok(local) = stream.local_addr() {
                    text += &format!("server: {}\n", plain(local));
                }
                if let Some(own) = &self.text {
                    text += &format!("text: {own}\n");
                }
                text += &format!("\n{}", request.head.replace('\r', ""));
                let mut bytes = text.into_bytes();
                bytes.extend(&request.body);
                (200, bytes)
            }
        }
    }
}

/// IPv4 addresses as such, also on a socket of both families.
fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        404 => "Not Found",
        500 => "Internal Server Error",
        503 => "Service Unavailable",
        _ => "Status",
    }
}

const CLIENT_USAGE: &str =
    "http [-w WAIT] [-n REPEAT] [-i INTERVAL] [-X METHOD] [-d BODY] [-H HEADER] [-O FILE|-] [-qsv]
     [-k | -C CA-FILE] http[s]://HOST[:PORT]/PATH
  -k takes any certificate, -C one of that CA; exits 0 if the last status is below 400";

pub(crate) fn client(args: &[String]) -> Outcome {
    // The long and wget-like forms that people type.
    let args: Vec<String> = args
        .iter()
        .flat_map(|arg| match arg.split_once('=') {
            Some(("--repeat", count)) => vec!["-n".into(), count.into()],
            Some(("--timeout", time)) => vec!["-w".into(), time.into()],
            Some(("--post-data", body)) => vec!["-d".into(), body.into()],
            Some(("--header", text)) => vec!["-H".into(), text.into()],
            Some(("--cacert", file)) => vec!["-C".into(), file.into()],
            _ if arg == "--cacert" => vec!["-C".into()],
            _ if arg == "--no-check-certificate" => vec!["-k".into()],
            _ if arg == "--repeat" => vec!["-n".into()],
            _ if arg == "-qO-" => vec!["-q".into()],
            _ => vec![arg.clone()],
        })
        .collect();
    let (found, operands) = flags(&args, "qsvSk", "wTniXdHOC", CLIENT_USAGE)?;
    let [url] = operands[..] else { return Err(Failure::usage(CLIENT_USAGE)) };
    let time = |flag, default| duration(value::<String>(&found, flag)?.as_deref().unwrap_or(default));
    let wait = if has(&found, 'T') { time('T', "5")? } else { time('w', "5")? };
    let repeat: u64 = value(&found, 'n')?.unwrap_or(1);
    let body: Option<String> = value(&found, 'd')?;
    let method: String = value(&found, 'X')?.unwrap_or(if body.is_some() { "POST" } else { "GET" }.into());
    let headers: Vec<&str> = found.iter().filter(|(flag, _)| *flag == 'H').map(|(_, text)| *text).collect();
    let output =
        found.iter().find(|(flag, _)| *flag == 'O').map(|(_, file)| *file).filter(|file| *file != "-");
    let authority = found.iter().find(|(flag, _)| *flag == 'C').map(|(_, file)| *file);
    let trust = if has(&found, 'k') { Some(Trust::Anyone) } else { authority.map(Trust::File) };
    let interval = time('i', if repeat > 1 { "1" } else { "0" })?;
    let mut result = Ok(0);
    for round in 0..repeat {
        if round > 0 {
            std::thread::sleep(interval);
        }
        let order = Order { method: &method, headers: &headers, body: body.as_deref(), wait, trust };
        result = get(url, &order).and_then(|(status, head, content)| {
            if has(&found, 'v') || has(&found, 'S') {
                eprint!("{head}");
            }
            match output {
                Some(file) => {
                    std::fs::write(file, &content).map_err(|error| Failure::about(file, error))?;
                }
                None => io::stdout().write_all(&content)?,
            }
            io::stdout().flush()?;
            if status >= 400 { Err(Failure::new(format!("server answered {status}"))) } else { Ok(0) }
        });
        // With repetition a failure is part of the picture, not its end.
        if let (Err(failure), true) = (&result, round + 1 < repeat) {
            eprintln!("http: {}", failure.text);
        }
    }
    result
}

struct Order<'a> {
    method: &'a str,
    headers: &'a [&'a str],
    body: Option<&'a str>,
    wait: Duration,
    trust: Option<Trust<'a>>,
}

trait Stream: Read + Write {}

impl<T: Read + Write> Stream for T {}

fn get(url: &str, order: &Order<'_>) -> Result<(u16, String, Vec<u8>), Failure> {
    let Order { method, headers, body, wait, trust } = *order;
    let secure = url.starts_with("https://");
    let rest = url.strip_prefix("http://").or(url.strip_prefix("https://")).unwrap_or(url);
    let at = rest.find(['/', '?']).unwrap_or(rest.len());
    let (host, path) = rest.split_at(at);
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    let connection = net::connect(host, Some(if secure { 443 } else { 80 }), wait)?;
    connection.set_read_timeout(Some(wait))?;
    let mut stream: Box<dyn Stream> = if secure {
        let trust = trust.ok_or_else(|| Failure::new("https needs -k or -C CA-FILE"))?;
        let name = match host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
            _ => host,
        };
        Box::new(tls::wrap(connection, name, trust)?)
    } else {
        Box::new(connection)
    };
    let mut request = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n");
    if !headers.iter().any(|line| line.to_ascii_lowercase().starts_with("user-agent:")) {
        request += "User-Agent: toolbox\r\n";
    }
    for line in headers {
        request += &format!("{line}\r\n");
    }
    if let Some(body) = body {
        request += &format!("Content-Length: {}\r\n", body.len());
    }
    request += "\r\n";
    request += body.unwrap_or_default();
    stream.write_all(request.as_bytes()).map_err(|error| Failure::about(host, error))?;
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    loop {
        let before = head.len();
        let read = reader.read_line(&mut head).map_err(|error| Failure::about(host, error))?;
        if read == 0 || head[before..].trim_end().is_empty() {
            break;
        }
    }
    let status = head
        .split_whitespace()
        .nth(1)
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| Failure::about(host, "no HTTP answer"))?;
    let mut content = Vec::new();
    let chunked = header(&head, "transfer-encoding").is_some_and(|text| text.eq_ignore_ascii_case("chunked"));
    if method == "HEAD" {
    } else if chunked {
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let length = u64::from_str_radix(line.trim().split(';').next().unwrap_or_default(), 16)
                .map_err(|_| Failure::about(host, "malformed chunk"))?;
            if length == 0 {
                break;
            }
            content.extend(net::read_limited(&mut reader, length)?);
            reader.read_line(&mut String::new())?;
        }
    } else {
        match header(&head, "content-length").and_then(|text| text.parse().ok()) {
            Some(length) => {
                content =
                    net::read_limited(&mut reader, length).map_err(|error| Failure::about(host, error))?;
            }
            // Many servers end a connection without the TLS goodbye.
            None => drop(reader.read_to_end(&mut content)),
        }
    }
    Ok((status, head, content))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read_with_their_body() {
        let text = "POST /x?y HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabcGET";
        let mut reader = BufReader::new(text.as_bytes());
        let request = read_request(&mut reader).unwrap().unwrap();
        assert_eq!((request.method.as_str(), request.target.as_str()), ("POST", "/x?y"));
        assert_eq!(request.body, b"abc");
        assert!(read_request(&mut BufReader::new(&b""[..])).unwrap().is_none());
    }

    #[test]
    fn client_and_server_understand_each_other() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = Server {
            start: Instant::now(),
            delay: Duration::from_secs(3600),
            fail_after: None,
            ready_file: None,
            text: Some("hello".into()),
            failing: AtomicBool::new(false),
            busy: AtomicUsize::new(0),
        };
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let _ = server.serve(stream.unwrap());
            }
        });
        let ask = |method: &str, path: &str| {
            let wait = Duration::from_secs(5);
            let order = Order { method, headers: &[], body: None, wait, trust: None };
            get(&format!("http://{address}{path}"), &order).unwrap()
        };
        let (status, _, content) = ask("GET", "/");
        assert_eq!(status, 200);
        assert!(String::from_utf8(content).unwrap().contains("text: hello"));
        assert_eq!(ask("GET", "/healthz").0, 200);
        assert_eq!(ask("GET", "/readyz").0, 503);
        ask("POST", "/fail");
        assert_eq!(ask("GET", "/healthz").0, 500);
        ask("POST", "/heal");
        assert_eq!(ask("GET", "/healthz").0, 200);
        assert_eq!(ask("GET", "/status/418").0, 418);
        assert_eq!(ask("GET", "/bytes/10k").2.len(), 10 << 10);
        assert!(client(&[format!("http://{address}/status/500")]).is_err());
    }

    #[test]
    fn certificates_are_checked_unless_told_otherwise() {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        let config = Arc::new(config);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let connection = rustls::ServerConnection::new(config.clone()).unwrap();
                let mut stream = rustls::StreamOwned::new(connection, stream.unwrap());
                let mut reader = BufReader::new(&mut stream);
                if read_request(&mut reader).is_ok_and(|request| request.is_some()) {
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nsecret");
                }
            }
        });
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ca.pem");
        std::fs::write(&file, made.cert.pem()).unwrap();
        let file = file.to_str().unwrap();
        let ask = |host: &str, trust| {
            let wait = Duration::from_secs(5);
            let order = Order { method: "GET", headers: &[], body: None, wait, trust };
            get(&format!("https://{host}:{port}/"), &order)
        };
        assert_eq!(ask("127.0.0.1", Some(Trust::Anyone)).unwrap().2, b"secret");
        assert_eq!(ask("localhost", Some(Trust::File(file))).unwrap().0, 200);
        assert!(ask("127.0.0.1", Some(Trust::File(file))).is_err());
        assert!(ask("localhost", None).is_err());
    }
}
