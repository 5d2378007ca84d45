//! An HTTP echo server whose health can be turned off and on, and a GET client. HTTP/1.1, one request per connection.

use crate::{Failure, Outcome, duration, flags, has, net, process, size, value};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
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
                    text += &format!("client: {peer}\n");
                }
                if let Ok(local) = stream.local_addr() {
                    text += &format!("server: {local}\n");
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

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        404 => "Not Found",
        500 => "Internal Server Error",
        503 => "Service Unavailable",
        _ => "Status",
    }
}

const CLIENT_USAGE: &str = "http [-w WAIT] [-n REPEAT] [-i INTERVAL] [-X METHOD] [-d BODY] [-H HEADER] [-O FILE|-] [-qsv] http://HOST[:PORT]/PATH
  exits 0 if the last status is below 400";

pub(crate) fn client(args: &[String]) -> Outcome {
    // The long and wget-like forms that people type.
    let args: Vec<String> = args
        .iter()
        .flat_map(|arg| match arg.split_once('=') {
            Some(("--repeat", count)) => vec!["-n".into(), count.into()],
            Some(("--timeout", time)) => vec!["-w".into(), time.into()],
            Some(("--post-data", body)) => vec!["-d".into(), body.into()],
            Some(("--header", text)) => vec!["-H".into(), text.into()],
            _ if arg == "--repeat" => vec!["-n".into()],
            _ if arg == "-qO-" => vec!["-q".into()],
            _ => vec![arg.clone()],
        })
        .collect();
    let (found, operands) = flags(&args, "qsvS", "wTniXdHO", CLIENT_USAGE)?;
    let [url] = operands[..] else { return Err(Failure::usage(CLIENT_USAGE)) };
    let time = |flag, default| duration(value::<String>(&found, flag)?.as_deref().unwrap_or(default));
    let wait = if has(&found, 'T') { time('T', "5")? } else { time('w', "5")? };
    let repeat: u64 = value(&found, 'n')?.unwrap_or(1);
    let body: Option<String> = value(&found, 'd')?;
    let method: String = value(&found, 'X')?.unwrap_or(if body.is_some() { "POST" } else { "GET" }.into());
    let headers: Vec<&str> = found.iter().filter(|(flag, _)| *flag == 'H').map(|(_, text)| *text).collect();
    let output =
        found.iter().find(|(flag, _)| *flag == 'O').map(|(_, file)| *file).filter(|file| *file != "-");
    let interval = time('i', if repeat > 1 { "1" } else { "0" })?;
    let mut result = Ok(0);
    for round in 0..repeat {
        if round > 0 {
            std::thread::sleep(interval);
        }
        result = get(url, &method, &headers, body.as_deref(), wait).and_then(|(status, head, content)| {
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

fn get(
    url: &str,
    method: &str,
    headers: &[&str],
    body: Option<&str>,
    wait: Duration,
) -> Result<(u16, String, Vec<u8>), Failure> {
    if url.starts_with("https://") {
        return Err(Failure::new("https is not spoken here"));
    }
    let rest = url.strip_prefix("http://").unwrap_or(url);
    let at = rest.find(['/', '?']).unwrap_or(rest.len());
    let (host, path) = rest.split_at(at);
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    let mut stream = net::connect(host, Some(80), wait)?;
    stream.set_read_timeout(Some(wait))?;
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
    stream.write_all(request.as_bytes())?;
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
        let length = header(&head, "content-length").and_then(|text| text.parse().ok()).unwrap_or(u64::MAX);
        content = net::read_limited(&mut reader, length).map_err(|error| Failure::about(host, error))?;
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
            get(&format!("http://{address}{path}"), method, &[], None, Duration::from_secs(5)).unwrap()
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
}
