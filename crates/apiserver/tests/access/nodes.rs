//! What the API server passes on to nodes, against a kubelet that only answers: paths, headers, pages, upgrades, rights.

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

use crate::support::{Running, own_address, serve_tls_at, start};

async fn kubelet(mut request: Request<hyper::body::Incoming>) -> Response<Full<Bytes>> {
    let respond = |code: u16, media_type: &str, body: String| {
        let response = Response::builder().status(code).header("content-type", media_type);
        response.body(Full::new(Bytes::from(body))).expect("a response")
    };
    let path = request.uri().path_and_query().map_or(String::new(), ToString::to_string);
    match path.as_str() {
        "/page/" => {
            let mut response =
                respond(200, "text/html; charset=utf-8", "<a href=\"/logs/a\">a</a>".to_owned());
            response.headers_mut().insert("access-control-allow-origin", "*".parse().expect("a value"));
            response
        }
        "/moved" => {
            let mut response = respond(302, "text/plain", String::new());
            response.headers_mut().insert("location", "/logs/".parse().expect("a value"));
            response
        }
        p if p.starts_with("/exec/") => {
            let upgrade = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                let Ok(upgraded) = upgrade.await else { return };
                let mut io = TokioIo::new(upgraded);
                let mut buffer = [0; 64];
                while let Ok(n @ 1..) = io.read(&mut buffer).await {
                    io.write_all(&buffer[..n]).await.expect("echoed");
                }
            });
            let mut response = respond(101, "text/plain", String::new());
            let headers = response.headers_mut();
            headers.remove("content-type");
            headers.insert("connection", "Upgrade".parse().expect("a value"));
            headers.insert("upgrade", request.headers()["upgrade"].clone());
            headers.insert("x-path", path.parse().expect("a value"));
            response
        }
        _ => {
            let headers: Vec<&str> = request.headers().keys().map(http::HeaderName::as_str).collect();
            respond(200, "text/plain", format!("{path} {}", headers.join(",")))
        }
    }
}

async fn cluster() -> (Running, u16) {
    let running = start(|_| {}).await;
    // Requests are passed on to no loopback address.
    let address = own_address();
    let serving = running.pki().issue_kubelet_server("n1", &[address]).expect("a certificate");
    let ca = running.ca();
    let port = serve_tls_at(address, &serving, Some(&ca), CancellationToken::new(), kubelet).await;
    let node = json!({
        "metadata": {"name": "n1"},
        "status": {
            "addresses": [{"type": "InternalIP", "address": address}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
        },
    });
    running.create("/api/v1/nodes", &node).await;
    running
        .create("/api/v1/namespaces/default/serviceaccounts", &json!({"metadata": {"name": "default"}}))
        .await;
    let pod = json!({
        "metadata": {"name": "p"},
        "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "i"}]},
    });
    running.create("/api/v1/namespaces/default/pods", &pod).await;
    (running, port)
}

#[tokio::test]
async fn requests_go_to_the_kubelet_as_they_are_and_without_credentials() {
    let (running, port) = cluster().await;
    let admin = running.admin();
    let proxy = "/api/v1/nodes/n1/proxy";
    let check = async |path: &str, expect: &str| {
        let answer = running.get(Some(&admin), path).await;
        assert_eq!(answer.code, StatusCode::OK, "{path}: {}", answer.text());
        let text = answer.text();
        assert_eq!(text.split(' ').next(), Some(expect), "{path}");
    };
    check(&format!("{proxy}/stats/summary?a=b%20c"), "/stats/summary?a=b%20c").await;
    check(&format!("/api/v1/nodes/n1:{port}/proxy/x"), "/x").await;
    check(&format!("/api/v1/nodes/https:n1:{port}/proxy/x"), "/x").await;
    check(&format!("{proxy}/a%20b/%3F"), "/a%20b/%3F").await;
    // However the path is written, it stays a path of this node.
    check(&format!("{proxy}/../../n2"), "/../../n2").await;
    check(&format!("{proxy}//example.org/x"), "/example.org/x").await;
    check("/api/v1/namespaces/default/pods/p/log?tailLines=3", "/containerLogs/default/p/c?tailLines=3")
        .await;

    let request = Request::get(format!("{proxy}/x"))
        .header("authorization", "Bearer mine")
        .header("x-remote-user", "root")
        .header("proxy-authorization", "x")
        .header("x-own", "1");
    let seen = running.send(Some(&admin), request, "").await.text();
    assert!(seen.contains("x-own") && seen.contains("x-forwarded-uri"), "{seen}");
    for secret in ["authorization", "x-remote-user", "proxy-authorization"] {
        assert!(!seen.contains(secret), "{seen}");
    }

    let page = running.get(Some(&admin), &format!("{proxy}/page/")).await;
    assert_eq!(page.text(), format!("<a href=\"{proxy}/logs/a\">a</a>"));
    assert!(!page.headers.contains_key("access-control-allow-origin"));
    let moved = running.get(Some(&admin), &format!("{proxy}/moved")).await;
    assert_eq!(
        (moved.code.as_u16(), moved.headers["location"].to_str().ok()),
        (302, Some(&*format!("{proxy}/logs/")))
    );
    let root = running.get(Some(&admin), &format!("{proxy}?x=y")).await;
    assert_eq!(
        (root.code.as_u16(), root.headers["location"].to_str().ok()),
        (301, Some(&*format!("{proxy}/?x=y")))
    );

    for bad in ["/api/v1/nodes/ftp:n1:1/proxy/x", "/api/v1/nodes/a:b:c:d/proxy/x"] {
        assert_eq!(running.get(Some(&admin), bad).await.code, StatusCode::BAD_REQUEST, "{bad}");
    }
}

#[tokio::test]
async fn nothing_is_passed_on_to_addresses_of_the_server_itself_or_of_its_link() {
    let running = start(|_| {}).await;
    let admin = running.admin();
    let account = json!({"metadata": {"name": "default"}});
    running.create("/api/v1/namespaces/default/serviceaccounts", &account).await;
    let addresses = ["127.0.0.1", "127.8.8.8", "169.254.169.254", "0.0.0.0", "224.0.0.1", "::1", "fe80::1"];
    for (i, address) in addresses.iter().enumerate() {
        let name = format!("x{i}");
        let node = json!({"metadata": {"name": name}, "status": {
            "addresses": [{"type": "InternalIP", "address": address}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}}}});
        running.create("/api/v1/nodes", &node).await;
        let pods = "/api/v1/namespaces/default/pods";
        let pod = json!({"metadata": {"name": name, "labels": {"app": name}},
            "spec": {"containers": [{"name": "c", "image": "i"}]}});
        running.create(pods, &pod).await;
        let status = json!({"status": {"podIP": address, "podIPs": [{"ip": address}]}}).to_string();
        let patch = Request::patch(format!("{pods}/{name}/status"))
            .header("content-type", "application/merge-patch+json");
        assert_eq!(running.send(Some(&admin), patch, &status).await.code, StatusCode::OK, "{address}");
        for (path, code, why) in [
            (format!("/api/v1/nodes/{name}/proxy/x"), 400, "address not allowed"),
            (format!("/api/v1/nodes/{name}:10250/proxy/x"), 400, "address not allowed"),
            (format!("/api/v1/nodes/http:{name}:80/proxy/x"), 400, "address not allowed"),
            (format!("{pods}/{name}/proxy/x"), 400, "address not allowed"),
            (format!("{pods}/https:{name}:443/proxy/x"), 400, "address not allowed"),
        ] {
            let answer = running.get(Some(&admin), &path).await;
            assert_eq!(answer.code.as_u16(), code, "{address} {path}: {}", answer.text());
            assert!(answer.text().contains(why), "{address} {path}: {}", answer.text());
        }
        // Endpoints cannot lead there either.
        let service = json!({"metadata": {"name": name}, "spec": {"ports": [{"port": 80}]}});
        running.create("/api/v1/namespaces/default/services", &service).await;
        let slice = json!({
            "metadata": {"name": name, "labels": {"kubernetes.io/service-name": name}},
            "addressType": if address.contains(':') { "IPv6" } else { "IPv4" },
            "ports": [{"port": 80}],
            "endpoints": [{"addresses": [address], "targetRef": {"kind": "Pod", "name": name, "namespace": "default"}}],
        });
        let post = Request::post("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices")
            .header("content-type", "application/json");
        let refused = running.send(Some(&admin), post, &slice.to_string()).await;
        assert_eq!(refused.code.as_u16(), 422, "{address}: {}", refused.text());
        let proxied =
            running.get(Some(&admin), &format!("/api/v1/namespaces/default/services/{name}/proxy/x")).await;
        assert_eq!(proxied.code.as_u16(), 503, "{address}: {}", proxied.text());
    }
}

#[tokio::test]
async fn a_socket_needs_the_right_to_create() {
    let (running, _) = cluster().await;
    let role = |verbs: &[&str]| {
        json!({"metadata": {"name": "exec"},
            "rules": [{"apiGroups": [""], "resources": ["pods/exec"], "verbs": verbs}]})
    };
    let base = "/apis/rbac.authorization.k8s.io/v1/namespaces/default";
    running.create(&format!("{base}/roles"), &role(&["get"])).await;
    let binding = json!({
        "metadata": {"name": "exec"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "exec"},
        "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "jane"}],
    });
    running.create(&format!("{base}/rolebindings"), &binding).await;
    let jane = running.identity("jane", &[]);
    let exec = "/api/v1/namespaces/default/pods/p/exec?command=a&command=b%26c&stdin=true&stdout=true";
    let socket = || {
        Request::get(exec)
            .header("host", "localhost")
            .header("connection", "Upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-protocol", "v5.channel.k8s.io")
            .body(Full::<Bytes>::default())
            .expect("a request")
    };
    let mut sender = running.connect(Some(&jane)).await;
    assert_eq!(sender.send_request(socket()).await.expect("answered").status(), StatusCode::FORBIDDEN);
    let put = Request::put(format!("{base}/roles/exec")).header("content-type", "application/json");
    running.send(Some(&running.admin()), put, &role(&["get", "create"]).to_string()).await;
    running.until(&format!("{base}/roles/exec"), |a| a.text().contains("create")).await;

    let mut sender = running.connect(Some(&jane)).await;
    let response = sender.send_request(socket()).await.expect("answered");
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    assert_eq!(response.headers()["x-path"], "/exec/default/p/c?input=1&output=1&command=a&command=b%26c");
    let mut io = TokioIo::new(hyper::upgrade::on(response).await.expect("upgraded"));
    io.write_all(b"hello").await.expect("written");
    let mut echoed = [0; 5];
    io.read_exact(&mut echoed).await.expect("read");
    assert_eq!(&echoed, b"hello");

    let plain = running.get(Some(&jane), exec).await;
    assert_eq!(plain.code, StatusCode::BAD_REQUEST);
    assert!(plain.text().contains("Upgrade request required"), "{}", plain.text());
}

/// The next WebSocket message: its opcode and payload.
async fn message(io: &mut (impl tokio::io::AsyncRead + Unpin)) -> (u8, Vec<u8>) {
    let head = io.read_u16().await.expect("a frame");
    let (opcode, short) = ((head >> 8) as u8 & 15, usize::from(head & 127));
    let length = match short {
        126 => usize::from(io.read_u16().await.expect("a length")),
        short => short,
    };
    let mut payload = vec![0; length];
    io.read_exact(&mut payload).await.expect("a payload");
    (opcode, payload)
}

#[tokio::test]
async fn logs_and_watches_go_over_web_sockets() {
    const TEXT: u8 = 1;
    const BINARY: u8 = 2;
    const CLOSE: u8 = 8;
    let (running, _) = cluster().await;
    let admin = running.admin();
    let open = async |path: &str, protocol: Option<&str>| {
        let mut request = Request::get(path)
            .header("host", "localhost")
            .header("connection", "keep-alive, Upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
            .header("sec-websocket-version", "13");
        if let Some(protocol) = protocol {
            request = request.header("sec-websocket-protocol", protocol);
        }
        let request = request.body(Full::<Bytes>::default()).expect("a request");
        running.connect(Some(&admin)).await.send_request(request).await.expect("answered")
    };
    let pods = "/api/v1/namespaces/default/pods";

    let log = format!("{pods}/p/log?tailLines=3");
    let response = open(&log, Some("binary.k8s.io")).await;
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    assert_eq!(response.headers()["sec-websocket-protocol"], "binary.k8s.io");
    assert_eq!(response.headers()["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    let mut io = TokioIo::new(hyper::upgrade::on(response).await.expect("upgraded"));
    let (opcode, payload) = message(&mut io).await;
    let text = String::from_utf8(payload).expect("text");
    assert_eq!(opcode, BINARY);
    assert!(text.starts_with("/containerLogs/default/p/c?tailLines=3 "), "{text}");
    assert!(!text.contains("websocket"), "the kubelet is asked for a plain answer: {text}");
    assert_eq!(message(&mut io).await.0, CLOSE);

    let response = open(&log, Some("base64.binary.k8s.io")).await;
    let mut io = TokioIo::new(hyper::upgrade::on(response).await.expect("upgraded"));
    assert_eq!(message(&mut io).await.0, TEXT);

    let response = open(&format!("{pods}?watch=true"), None).await;
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    let mut io = TokioIo::new(hyper::upgrade::on(response).await.expect("upgraded"));
    for name in ["p", "second"] {
        let (opcode, payload) = message(&mut io).await;
        let event: serde_json::Value = serde_json::from_slice(&payload).expect("one event");
        assert_eq!((opcode, event["type"].as_str()), (TEXT, Some("ADDED")));
        assert_eq!(event["object"]["metadata"]["name"], name);
        if name == "p" {
            let pod = json!({"metadata": {"name": "second"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
            running.create(pods, &pod).await;
        }
    }

    assert_eq!(open(&format!("{pods}/none/log"), None).await.status(), StatusCode::NOT_FOUND);
    let refused = open(&log, Some("v9.channel.k8s.io")).await;
    assert_eq!(refused.status(), StatusCode::BAD_REQUEST);
}
