use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::super::Outcome;
use super::*;

const PATIENCE: Duration = Duration::from_secs(60);

fn header(name: &str, value: &str) -> HTTPHeader {
    HTTPHeader { name: name.to_owned(), value: value.to_owned() }
}

/// A server that answers each path in its way; it gives its port and what it was asked.
async fn server(answer: fn(&str, u16) -> String) -> (u16, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = asked.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut read = Vec::new();
            let mut part = [0; 1024];
            while !read.ends_with(b"\r\n\r\n") {
                match stream.read(&mut part).await {
                    Ok(count) if count > 0 => read.extend_from_slice(&part[..count]),
                    _ => break,
                }
                // What is no HTTP gets an answer all the same, as servers do.
                if !read.starts_with(b"GET ") {
                    break;
                }
            }
            let text = String::from_utf8_lossy(&read).into_owned();
            let path = text.split(' ').nth(1).unwrap_or("/").to_owned();
            seen.lock().push(text);
            let _ = stream.write_all(answer(&path, port).as_bytes()).await;
        }
    });
    (port, asked)
}

fn action(port: u16, path: &str) -> HTTPGetAction {
    HTTPGetAction {
        port: IntOrString::Int(i32::from(port)),
        path: Some(path.to_owned()),
        ..HTTPGetAction::default()
    }
}

fn redirect(to: &str) -> String {
    format!("HTTP/1.1 302 Found\r\nlocation: {to}\r\ncontent-length: 4\r\n\r\ngone")
}

fn answers(path: &str, port: u16) -> String {
    match path {
        "/good" => "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nfine".to_owned(),
        "/bad" => "HTTP/1.1 500 Oh\r\ncontent-length: 4\r\n\r\noops".to_owned(),
        "/relative/to" => redirect("../good"),
        "/absolute" => redirect(&format!("http://127.0.0.1:{port}/good")),
        "/to-bad" => redirect("/bad"),
        "/away" => redirect("http://localhost/good"),
        "/round" => redirect("/round"),
        "/nowhere" => "HTTP/1.1 302 Found\r\ncontent-length: 4\r\n\r\nlost".to_owned(),
        "/unchanged" => {
            "HTTP/1.1 304 Not Modified\r\nlocation: http://127.0.0.1/x\r\ncontent-length: 0\r\n\r\n"
                .to_owned()
        }
        "/broken" => "HTTP/1.1 200 OK\r\ncontent-length: 40\r\n\r\nhalf".to_owned(),
        "/long" => format!("HTTP/1.1 200 OK\r\ncontent-length: 20000\r\n\r\n{}", "x".repeat(20_000)),
        _ => "HTTP/1.1 404 No\r\ncontent-length: 0\r\n\r\n".to_owned(),
    }
}

#[tokio::test]
async fn answers_are_judged_and_redirects_followed_to_the_same_host() {
    let (port, asked) = server(answers).await;
    let container = Container::default();
    let terminated =
        |body: &str| (Outcome::Warned, format!("Probe terminated redirects, Response body: {body}"));
    let failed = |code: u16| (Outcome::Bad, format!("HTTP probe failed with statuscode: {code}"));
    let good = || (Outcome::Good, "fine".to_owned());
    for (path, expect) in [
        ("/good", good()),
        ("good", good()),
        ("http://elsewhere/good", good()),
        ("/bad", failed(500)),
        ("/relative/to", good()),
        ("/absolute", good()),
        ("/to-bad", failed(500)),
        ("/away", terminated("gone")),
        ("/nowhere", terminated("lost")),
        ("/unchanged", terminated("")),
        ("/long", (Outcome::Good, "x".repeat(MAX_OUTPUT))),
        ("/a b?c={d}#e", failed(404)),
    ] {
        let answer = probe(&action(port, path), &container, "127.0.0.1", PATIENCE).await;
        assert_eq!((answer.outcome, answer.output), expect, "{path}");
    }
    assert!(asked.lock().last().is_some_and(|text| text.starts_with("GET /a%20b?c=%7Bd%7D HTTP/1.1\r\n")));
    let broken = probe(&action(port, "/broken"), &container, "127.0.0.1", PATIENCE).await;
    assert_eq!(broken.outcome, Outcome::Errored);
    asked.lock().clear();
    let round = probe(&action(port, "/round"), &container, "127.0.0.1", PATIENCE).await;
    assert_eq!(round.outcome, Outcome::Bad);
    assert!(round.output.ends_with("stopped after 10 redirects"), "{}", round.output);
    assert_eq!(asked.lock().len(), 10);
    let unknown = HTTPGetAction { port: IntOrString::String("none".to_owned()), ..HTTPGetAction::default() };
    let answer = probe(&unknown, &container, "127.0.0.1", PATIENCE).await;
    assert_eq!(answer.outcome, Outcome::Errored, "a probe that cannot be made says nothing");
}

#[tokio::test]
async fn any_response_to_a_hook_is_good() {
    let (port, asked) = server(answers).await;
    let container = Container::default();
    let run = async |action: &HTTPGetAction| {
        let told = Mutex::new(None);
        let answer =
            hook(action, &container, "127.0.0.1", PATIENCE, |host| *told.lock() = Some(host.to_owned()))
                .await;
        (answer.outcome, told.into_inner())
    };
    assert_eq!(run(&action(port, "/bad")).await, (Outcome::Good, None));
    let https = HTTPGetAction {
        scheme: Some("HTTPS".to_owned()),
        http_headers: Some(vec![header("Authorization", "secret"), header("X-Own", "1")]),
        ..action(port, "/good")
    };
    assert_eq!(run(&https).await, (Outcome::Good, Some(format!("127.0.0.1:{port}"))));
    let last = asked.lock().last().cloned().unwrap_or_default();
    assert!(last.contains("x-own: 1") && !last.contains("secret"), "{last}");
    let probed = probe(&https, &container, "127.0.0.1", PATIENCE).await;
    assert!(probed.output.ends_with(PLAIN) && !probed.is_good(), "{}", probed.output);
}

#[test]
fn headers_are_as_upstream_sends_them() {
    let check = |given: &[(&str, &str)], host: Option<&str>, expect: &[(&str, &str)]| {
        let given: Vec<_> = given.iter().map(|(name, value)| header(name, value)).collect();
        let made = Headers::of(&given, "agent").expect("headers");
        assert_eq!(made.host.as_deref(), host);
        let mut others: Vec<_> =
            made.others.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap_or("?"))).collect();
        others.retain(|(name, _)| *name != "connection");
        assert_eq!(others, expect);
    };
    check(&[], None, &[("user-agent", "agent"), ("accept", "*/*")]);
    check(&[("Host", "h"), ("HOST", "i")], Some("h"), &[("user-agent", "agent"), ("accept", "*/*")]);
    check(&[("Host", ""), ("User-Agent", ""), ("Accept", "")], None, &[]);
    check(
        &[("User-Agent", "own"), ("Accept", "text/plain")],
        None,
        &[("user-agent", "own"), ("accept", "text/plain")],
    );
    check(
        &[("X-A", ""), ("x-a", "2")],
        None,
        &[("user-agent", "agent"), ("accept", "*/*"), ("x-a", ""), ("x-a", "2")],
    );
    assert!(Headers::of(&[header("a b", "c")], "agent").is_err());
}

#[test]
fn references_are_resolved() {
    let base = Target { tls: false, host: "h".to_owned(), port: 8080, path: "/a/b?q".to_owned() };
    let check = |reference: &str, expect: &str| {
        let found = base.join(reference).map_or_else(|error| error, |target| target.to_string());
        assert_eq!(found, expect, "{reference}");
    };
    check("/c", "http://h:8080/c");
    check("c", "http://h:8080/a/c");
    check("../c/./d/..", "http://h:8080/c/");
    check("?r", "http://h:8080/a/b?r");
    check("", "http://h:8080/a/b?q");
    check("//i/c", "http://i:80/c");
    check("https://i", "https://i:443/");
    check("HTTP://u:p@[::1]:9/x?y#z", "http://[::1]:9/x?y");
    check("ftp://h/x", "unsupported protocol scheme \"ftp\"");
    check("http://h:port/", "invalid port \"port\" after host");
}
