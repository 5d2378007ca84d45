//! An extension server behind an APIService: what it is told of the caller, and what clients see of it.

use base64::Engine as _;
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

use crate::support::{Answer, Running, serve_tls, start};

const GROUP: &str = "ext.example.com";
const BASE: &str = "/apis/ext.example.com/v1";

fn identity_of(headers: &HeaderMap) -> Value {
    let all = |name: &str| -> Vec<String> {
        headers.get_all(name).iter().map(|v| v.to_str().unwrap_or_default().to_owned()).collect()
    };
    let extra: Vec<&str> =
        headers.keys().map(|k| k.as_str()).filter(|k| k.starts_with("x-remote-extra-")).collect();
    json!({
        "user": all("x-remote-user"),
        "groups": all("x-remote-group"),
        "extra": extra,
        "authorization": all("authorization"),
        "impersonate": all("impersonate-user"),
    })
}

async fn extension(mut request: Request<hyper::body::Incoming>) -> Response<Full<Bytes>> {
    let text = |code: u16, media_type: &str, body: String| {
        let response = Response::builder().status(code).header("content-type", media_type);
        response.body(Full::new(Bytes::from(body))).expect("a response")
    };
    let json = |value: Value| text(200, "application/json", value.to_string());
    let path = request.uri().path().to_owned();
    match path.as_str() {
        BASE => json(json!({
            "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": format!("{GROUP}/v1"),
            "resources": [
                {"name": "things", "singularName": "thing", "namespaced": true, "kind": "Thing", "verbs": ["get", "list"],
                    "shortNames": ["th"]},
                {"name": "things/exec", "singularName": "", "namespaced": true, "kind": "Thing", "verbs": ["create"]},
            ],
        })),
        "/openapi/v2" => json(json!({
            "swagger": "2.0",
            "paths": {
                format!("{BASE}/things"): {"get": {"responses": {"200": {"schema": {"$ref": "#/definitions/Thing"}}}}},
                "/healthz": {"get": {}},
            },
            "definitions": {"Thing": {"type": "object"}, "Unused": {"type": "object"}},
        })),
        "/openapi/v3" => json(json!({"paths": {
            "apis/ext.example.com/v1": {"serverRelativeURL": "/openapi/v3/apis/ext.example.com/v1?hash=ABC"},
            "apis/apps/v1": {"serverRelativeURL": "/openapi/v3/apis/apps/v1?hash=EVIL"},
        }})),
        "/openapi/v3/apis/ext.example.com/v1" => json(json!({"openapi": "3.0.0", "info": {"title": "ext"}})),
        p if p.ends_with("/things/moved") => {
            let mut response = text(302, "text/plain", String::new());
            response.headers_mut().insert("location", "http://169.254.169.254/".parse().expect("a value"));
            response
        }
        p if p.ends_with("/things/t/exec") => {
            let upgrade = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                let Ok(upgraded) = upgrade.await else { return };
                let mut io = TokioIo::new(upgraded);
                let mut buffer = [0; 64];
                while let Ok(n @ 1..) = io.read(&mut buffer).await {
                    io.write_all(&buffer[..n]).await.expect("echoed");
                }
            });
            let user = request.headers().get("x-remote-user").cloned();
            let mut response = text(101, "text/plain", String::new());
            let headers = response.headers_mut();
            headers.remove("content-type");
            headers.insert("connection", "Upgrade".parse().expect("a value"));
            headers.insert("upgrade", "echo".parse().expect("a value"));
            headers.insert("x-seen-user", user.expect("the caller's name"));
            response
        }
        p if p.ends_with("/things/body") => {
            let body = request.into_body().collect().await.expect("a body").to_bytes();
            text(200, "application/octet-stream", format!("{} bytes", body.len()))
        }
        _ if path.starts_with(BASE) => json(identity_of(request.headers())),
        _ => text(404, "text/plain", "not here".to_owned()),
    }
}

async fn register(running: &Running, port: u16, spec: Value) {
    let service =
        json!({"metadata": {"name": "ext"}, "spec": {"type": "ExternalName", "externalName": "localhost"}});
    running.create("/api/v1/namespaces/default/services", &service).await;
    let mut object = json!({
        "metadata": {"name": format!("v1.{GROUP}")},
        "spec": {"group": GROUP, "version": "v1", "groupPriorityMinimum": 900, "versionPriority": 10,
            "service": {"namespace": "default", "name": "ext", "port": port}},
    });
    for (key, value) in spec.as_object().into_iter().flatten() {
        object["spec"][key] = value.clone();
    }
    running.create("/apis/apiregistration.k8s.io/v1/apiservices", &object).await;
}

fn reason(answer: &Answer) -> (String, String) {
    let value = answer.json();
    let condition = &value["status"]["conditions"][0];
    let text = |key: &str| condition[key].as_str().unwrap_or_default().to_owned();
    (text("status"), text("reason"))
}

const STATE: &str = "/apis/apiregistration.k8s.io/v1/apiservices/v1.ext.example.com";

#[tokio::test]
async fn an_extension_server_is_reached_as_the_caller() {
    let running = start(|_| {}).await;
    let admin = running.admin();
    let map = running
        .get(Some(&admin), "/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication")
        .await;
    let trusted =
        map.json()["data"]["requestheader-client-ca-file"].as_str().expect("an authority").to_owned();
    let names = map.json()["data"]["requestheader-allowed-names"].clone();
    assert_eq!(names, json!("[\"front-proxy-client\"]"));

    let other = tempfile::tempdir().expect("a directory");
    let own = pki::ClusterPki::load_or_create(other.path()).expect("other keys");
    let serving = own.issue_server(&["ext.default.svc".to_owned()], &[]).expect("a certificate");
    let stop = CancellationToken::new();
    let port = serve_tls(&serving, Some(&trusted), stop.clone(), extension).await;

    let bundle = base64::engine::general_purpose::STANDARD.encode(own.ca.cert_pem());
    register(&running, port, json!({"caBundle": bundle})).await;
    running.until(STATE, |a| reason(a) == ("True".to_owned(), "Passed".to_owned())).await;

    // The caller is named; what the caller says of itself in such headers is not passed on.
    let request = Request::get(format!("{BASE}/namespaces/default/things"))
        .header("x-remote-user", "smuggled")
        .header("x-remote-group", "system:masters")
        .header("x-remote-extra-scopes", "all");
    let seen = running.send(Some(&running.identity("jane", &["system:masters", "dev"])), request, "").await;
    assert_eq!(seen.code, StatusCode::OK);
    let seen = seen.json();
    assert_eq!(seen["user"], json!(["jane"]));
    assert_eq!(seen["groups"], json!(["system:masters", "dev", "system:authenticated"]));
    assert_eq!(seen["extra"], json!(["x-remote-extra-authentication.kubernetes.io%2fcredential-id"]));
    assert_eq!((&seen["authorization"], &seen["impersonate"]), (&json!([]), &json!([])));
    let request = Request::get(format!("{BASE}/things"))
        .header("impersonate-user", "bob")
        .header("impersonate-group", "system:masters");
    let seen = running.send(Some(&admin), request, "").await.json();
    assert_eq!(seen["user"], json!(["bob"]), "an impersonated user is passed on as such");

    // Authorization stands before the proxy.
    let refused = running.get(Some(&running.identity("nobody", &[])), &format!("{BASE}/things")).await;
    assert_eq!(refused.code, StatusCode::FORBIDDEN);
    let refused = running.get(None, &format!("{BASE}/things")).await;
    assert_eq!(refused.code, StatusCode::FORBIDDEN);

    let moved = running.get(Some(&admin), &format!("{BASE}/things/moved")).await;
    assert_eq!(moved.code, StatusCode::BAD_GATEWAY, "redirects are not passed on");
    let big = "x".repeat(5 << 20);
    let sent = running.send(Some(&admin), Request::post(format!("{BASE}/things/body")), &big).await;
    assert_eq!(sent.text(), format!("{} bytes", 5 << 20));

    let mut sender = running.connect(Some(&admin)).await;
    let request = Request::post(format!("{BASE}/namespaces/default/things/t/exec"))
        .header("host", "localhost")
        .header("connection", "Upgrade")
        .header("upgrade", "echo")
        .body(Full::default())
        .expect("a request");
    let response = sender.send_request(request).await.expect("answered");
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    assert_eq!(response.headers()["x-seen-user"], "admin");
    let mut io = TokioIo::new(hyper::upgrade::on(response).await.expect("upgraded"));
    io.write_all(b"hello").await.expect("written");
    let mut echoed = [0; 5];
    io.read_exact(&mut echoed).await.expect("read");
    assert_eq!(&echoed, b"hello");
    drop(io);

    documents(&running).await;

    stop.cancel();
    running.until(STATE, |a| reason(a) == ("False".to_owned(), "FailedDiscoveryCheck".to_owned())).await;
    let gone = running.get(Some(&admin), &format!("{BASE}/things")).await;
    assert_eq!((gone.code, gone.text().trim()), (StatusCode::SERVICE_UNAVAILABLE, "service unavailable"));
    let aggregated = |a: &Answer| {
        entry(a).is_some_and(|v| v["freshness"] == "Stale" && v["resources"][0]["resource"] == "things")
    };
    let _ = until_aggregated(&running, aggregated).await;
    running.send(Some(&admin), Request::delete(STATE), "").await;
    running.until(&format!("{BASE}/things"), |a| a.code == StatusCode::NOT_FOUND).await;
}

fn entry(answer: &Answer) -> Option<Value> {
    let value = answer.json();
    let group = value["items"].as_array()?.iter().find(|g| g["metadata"]["name"] == GROUP)?;
    Some(group["versions"][0].clone())
}

async fn until_aggregated(running: &Running, wanted: impl Fn(&Answer) -> bool) -> Answer {
    let admin = running.admin();
    for _ in 0..600 {
        let request = Request::get("/apis")
            .header("accept", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList");
        let answer = running.send(Some(&admin), request, "").await;
        if wanted(&answer) {
            return answer;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("aggregated discovery did not become what it should");
}

async fn documents(running: &Running) {
    let admin = running.admin();
    let groups = running.get(Some(&admin), "/apis").await.json();
    let names: Vec<&str> =
        groups["groups"].as_array().into_iter().flatten().filter_map(|g| g["name"].as_str()).collect();
    assert_eq!((names.first(), names.last()), (Some(&"apiregistration.k8s.io"), Some(&GROUP)));
    let group = running.get(Some(&admin), &format!("/apis/{GROUP}")).await.json();
    assert_eq!(group["preferredVersion"]["groupVersion"], format!("{GROUP}/v1"));
    let version = until_aggregated(running, |a| entry(a).is_some_and(|v| v["freshness"] == "Current")).await;
    let version = entry(&version).expect("listed");
    assert_eq!(version["resources"][0]["resource"], "things");
    assert_eq!(version["resources"][0]["scope"], "Namespaced");
    assert_eq!(version["resources"][0]["subresources"][0]["subresource"], "exec");

    let index = running.get(Some(&admin), "/openapi/v3").await.json();
    let url =
        index["paths"]["apis/ext.example.com/v1"]["serverRelativeURL"].as_str().expect("listed").to_owned();
    assert!(
        !index["paths"]["apis/apps/v1"].to_string().contains("EVIL"),
        "no server speaks for another group"
    );
    let document = running.get(Some(&admin), &url).await.json();
    assert_eq!(document["info"]["title"], "ext");
    let v2 = running.get(Some(&admin), "/openapi/v2").await.json();
    assert!(v2["paths"][format!("{BASE}/things")]["get"].is_object());
    assert!(v2["definitions"]["Thing"].is_object() && v2["definitions"]["Unused"].is_null());
    assert!(v2["paths"]["/api/v1/pods"].is_object());
}

#[tokio::test]
async fn a_server_that_cannot_be_trusted_or_found_is_unavailable() {
    let running = start(|_| {}).await;
    let other = tempfile::tempdir().expect("a directory");
    let own = pki::ClusterPki::load_or_create(other.path()).expect("other keys");
    let serving = own.issue_server(&["somebody.else.svc".to_owned()], &[]).expect("a certificate");
    let port = serve_tls(&serving, None, CancellationToken::new(), extension).await;
    let bundle = base64::engine::general_purpose::STANDARD.encode(own.ca.cert_pem());
    register(&running, port, json!({"caBundle": bundle})).await;
    running.until(STATE, |a| reason(a) == ("False".to_owned(), "FailedDiscoveryCheck".to_owned())).await;
    let answer = running.get(Some(&running.admin()), &format!("{BASE}/things")).await;
    assert_eq!(answer.code, StatusCode::SERVICE_UNAVAILABLE);

    // Unless told not to look.
    let patch = Request::patch(STATE).header("content-type", "application/merge-patch+json");
    let spec = json!({"spec": {"caBundle": null, "insecureSkipTLSVerify": true}}).to_string();
    running.send(Some(&running.admin()), patch, &spec).await;
    running.until(STATE, |a| reason(a).1 == "Passed").await;

    running
        .send(Some(&running.admin()), Request::delete("/api/v1/namespaces/default/services/ext"), "")
        .await;
    running.until(STATE, |a| reason(a).1 == "ServiceNotFound").await;
    let service = json!({"metadata": {"name": "ext"}, "spec": {"ports": [{"port": 1}]}});
    running.create("/api/v1/namespaces/default/services", &service).await;
    running.until(STATE, |a| reason(a).1 == "ServicePortError").await;
    let patch = Request::patch(STATE).header("content-type", "application/merge-patch+json");
    running.send(Some(&running.admin()), patch, &json!({"spec": {"service": {"port": 1}}}).to_string()).await;
    running.until(STATE, |a| reason(a).1 == "EndpointsNotFound").await;
    let slice = json!({"metadata": {"name": "ext-1", "labels": {"kubernetes.io/service-name": "ext"}},
        "addressType": "IPv4", "endpoints": [], "ports": [{"name": "", "port": 1}]});
    running.create("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices", &slice).await;
    running.until(STATE, |a| reason(a).1 == "MissingEndpoints").await;
}

#[tokio::test]
async fn every_group_that_is_served_has_a_local_apiservice() {
    let running = start(|_| {}).await;
    let admin = running.admin();
    let list = running.get(Some(&admin), "/apis/apiregistration.k8s.io/v1/apiservices").await.json();
    let items = list["items"].as_array().expect("a list");
    let apps = items.iter().find(|i| i["metadata"]["name"] == "v1.apps").expect("v1.apps");
    assert_eq!(
        apps["spec"],
        json!({"group": "apps", "version": "v1", "groupPriorityMinimum": 17800, "versionPriority": 15})
    );
    assert_eq!(apps["metadata"]["labels"]["kube-aggregator.kubernetes.io/automanaged"], "onstart");
    assert_eq!(apps["status"]["conditions"][0]["reason"], "Local");
    assert!(items.iter().any(|i| i["metadata"]["name"] == "v1."));
    // A custom resource's group gets one and loses it again.
    let definition = json!({
        "metadata": {"name": "toys.example.org"},
        "spec": {"group": "example.org", "scope": "Namespaced", "names": {"plural": "toys", "kind": "Toy"},
            "versions": [{"name": "v1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object"}}}]},
    });
    running.create("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", &definition).await;
    let path = "/apis/apiregistration.k8s.io/v1/apiservices/v1.example.org";
    let made = running.until(path, |a| a.code == StatusCode::OK).await.json();
    assert_eq!(made["metadata"]["labels"]["kube-aggregator.kubernetes.io/automanaged"], "true");
    let path_of = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/toys.example.org";
    running.send(Some(&admin), Request::delete(path_of), "").await;
    running.until(path, |a| a.code == StatusCode::NOT_FOUND).await;
}
