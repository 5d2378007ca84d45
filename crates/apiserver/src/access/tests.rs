//! Every endpoint by every verb, as nobody, as a stranger and with false credentials: 401 or 403, never an answer.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use rustls::pki_types::CertificateDer;

use crate::http::listen::Peer;
use crate::pipeline::{Caller, handle};
use crate::{ApiServer, Config, UserInfo};

struct World {
    dir: tempfile::TempDir,
    server: ApiServer,
}

async fn world() -> World {
    let dir = tempfile::tempdir().expect("dir");
    let mut config = Config::new(dir.path());
    config.bind.set_port(0);
    let store = store::embedded::open(&dir.path().join("store")).expect("store");
    let server = crate::start(config, store).await.expect("server");
    World { dir, server }
}

/// Who asks, as the pipeline is told of it.
#[derive(Clone)]
enum Who {
    User(Arc<UserInfo>),
    Peer(Vec<CertificateDer<'static>>, Vec<(&'static str, String)>),
}

impl World {
    async fn status(&self, who: &Who, method: &str, path: &str) -> u16 {
        self.send(who, method, path, "{}").await.status().as_u16()
    }

    async fn send(&self, who: &Who, method: &str, path: &str, body: &str) -> http::Response<crate::Body> {
        let mut request = Request::builder().method(method).uri(path);
        let caller = match who {
            Who::User(user) => Caller::User(Arc::clone(user)),
            Who::Peer(certificates, headers) => {
                for (name, value) in headers {
                    request = request.header(*name, value);
                }
                Caller::Peer(Peer { certificates: certificates.clone().into(), ..Peer::default() })
            }
        };
        if method == "PATCH" {
            request = request.header("content-type", "application/merge-patch+json");
        }
        let request = request.body(Full::new(Bytes::from(body.to_owned()))).expect("a request");
        handle(Arc::clone(self.server.inner()), request, caller).await
    }

    fn pki(&self) -> pki::ClusterPki {
        pki::ClusterPki::load_or_create(self.dir.path().join("pki")).expect("pki")
    }
}

/// (method, path, resource) of all that discovery lists.
fn endpoints() -> Vec<(&'static str, String, String)> {
    let mut all = Vec::new();
    for row in api::resources().iter() {
        let root = if row.group.is_empty() {
            format!("/api/{}", row.version)
        } else {
            format!("/apis/{}/{}", row.group, row.version)
        };
        let space = if row.namespaced { "/namespaces/default" } else { "" };
        let collection = format!("{root}{space}/{}", row.plural);
        let object = format!("{collection}/x");
        let subresources = row.subresources.iter().map(|s| (format!("{object}/{}", s.name), &s.verbs));
        let own = [(object.clone(), &row.verbs)];
        for (path, verbs) in own.into_iter().chain(subresources) {
            let is_object = path == object;
            for verb in verbs {
                let (method, path) = match &**verb {
                    "get" => ("GET", path.clone()),
                    "list" => ("GET", collection.clone()),
                    "watch" => ("GET", format!("{collection}?watch=true")),
                    "create" if is_object => ("POST", collection.clone()),
                    "create" => ("POST", path.clone()),
                    "update" => ("PUT", path.clone()),
                    "patch" => ("PATCH", path.clone()),
                    "delete" => ("DELETE", path.clone()),
                    "deletecollection" => ("DELETE", collection.clone()),
                    other => panic!("unknown verb {other}"),
                };
                all.push((method, path, row.plural.to_string()));
            }
        }
    }
    all
}

/// Paths that are no resource and need rights.
const PATHS: [&str; 6] =
    ["/metrics", "/logs", "/debug/pprof", "/.well-known/openid-configuration", "/openid/v1/jwks", "/nosuch"];

#[tokio::test]
async fn every_endpoint_refuses_nobody_and_strangers() {
    let w = world().await;
    let pki = w.pki();
    let stranger = UserInfo {
        name: "stranger".to_owned(),
        groups: vec!["system:authenticated".to_owned()],
        ..UserInfo::default()
    };
    let joe = pki.issue_client("joe", &[]).expect("issue");
    let certificate = |identity: &pki::Identity| {
        vec![CertificateDer::from(pki::certificate_der(&identity.cert_pem).expect("pem"))]
    };
    let foreign_dir = tempfile::tempdir().expect("dir");
    let foreign = pki::ClusterPki::load_or_create(foreign_dir.path()).expect("pki");
    let masters = ["system:masters".to_owned()];
    let impostor = foreign.issue_client("admin", &masters).expect("issue");
    let smuggled =
        vec![("x-remote-user", "admin".to_owned()), ("x-remote-group", "system:masters".to_owned())];
    let acting =
        vec![("impersonate-user", "admin".to_owned()), ("impersonate-group", "system:masters".to_owned())];
    let who: BTreeMap<&str, (Who, u16)> = BTreeMap::from([
        ("nobody", (Who::Peer(vec![], vec![]), 403)),
        ("stranger", (Who::User(Arc::new(stranger)), 403)),
        ("certified stranger", (Who::Peer(certificate(&joe), vec![]), 403)),
        ("false token", (Who::Peer(vec![], vec![("authorization", "Bearer x.y.z".to_owned())]), 401)),
        ("foreign authority", (Who::Peer(certificate(&impostor), vec![]), 401)),
        ("smuggled headers", (Who::Peer(vec![], smuggled.clone()), 403)),
        ("smuggled headers of a stranger", (Who::Peer(certificate(&joe), smuggled), 403)),
        ("impersonation", (Who::Peer(certificate(&joe), acting), 403)),
    ]);
    let endpoints = endpoints();
    assert!(endpoints.len() > 500, "{}", endpoints.len());
    for (name, (who, expected)) in &who {
        for (method, path, resource) in &endpoints {
            // Whoever is somebody may ask about themselves.
            let open = resource.starts_with("selfsubject") && method == &"POST";
            let status = w.status(who, method, path).await;
            if open && matches!(*name, "stranger" | "certified stranger" | "smuggled headers of a stranger") {
                assert_ne!(status, 401, "{name}: {method} {path}");
            } else {
                assert_eq!(status, *expected, "{name}: {method} {path}");
            }
        }
        for path in PATHS {
            assert_eq!(w.status(who, "GET", path).await, *expected, "{name}: {path}");
        }
    }
    for path in ["/healthz", "/livez", "/readyz", "/version"] {
        assert_eq!(w.status(&Who::Peer(vec![], vec![]), "GET", path).await, 200, "{path}");
    }
    let admin = pki.issue_client("admin", &masters).expect("issue");
    let admin = Who::Peer(certificate(&admin), vec![]);
    assert_eq!(w.status(&admin, "GET", "/api/v1/namespaces/default").await, 200);
}

#[tokio::test]
async fn secrets_are_sealed_in_the_store_and_tokens_open_the_issuer() {
    let w = world().await;
    let root = Who::User(Arc::new(UserInfo::system_master("root")));
    // "plain-text-to-look-for" in base64, as the API carries it.
    let secret = r#"{"metadata": {"name": "s"}, "data": {"k": "cGxhaW4tdGV4dC10by1sb29rLWZvcg=="}}"#;
    let account = r#"{"metadata": {"name": "sa"}}"#;
    let plain = r#"{"metadata": {"name": "c"}, "data": {"k": "stored-as-it-is"}}"#;
    for (resource, body) in [("secrets", secret), ("serviceaccounts", account), ("configmaps", plain)] {
        let path = format!("/api/v1/namespaces/default/{resource}");
        assert_eq!(w.send(&root, "POST", &path, body).await.status(), 201, "{resource}");
    }
    let answer = w.send(&root, "GET", "/api/v1/namespaces/default/secrets/s", "").await;
    let read = http_body_util::BodyExt::collect(answer.into_body()).await.expect("a body").to_bytes();
    assert!(String::from_utf8_lossy(&read).contains("cGxhaW4tdGV4dC10by1sb29rLWZvcg=="));
    let mut stored = Vec::new();
    let mut folders = vec![w.dir.path().join("store")];
    while let Some(path) = folders.pop() {
        if path.is_dir() {
            folders.extend(std::fs::read_dir(&path).expect("list").map(|entry| entry.expect("entry").path()));
        } else {
            stored.extend(std::fs::read(&path).expect("read"));
        }
    }
    let holds = |text: &[u8]| stored.windows(text.len()).any(|window| window == text);
    assert!(holds(b"stored-as-it-is"), "the store is looked at in the right place");
    assert!(!holds(b"cGxhaW4tdGV4dC10by1sb29rLWZvcg=="));

    let path = "/api/v1/namespaces/default/serviceaccounts/sa/token";
    let answer = w.send(&root, "POST", path, r#"{"spec": {}}"#).await;
    assert_eq!(answer.status(), 201);
    let body = http_body_util::BodyExt::collect(answer.into_body()).await.expect("a body").to_bytes();
    let body: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
    let token = body["status"]["token"].as_str().expect("a token");
    let holder = Who::Peer(vec![], vec![("authorization", format!("Bearer {token}"))]);
    for path in ["/.well-known/openid-configuration", "/openid/v1/jwks"] {
        assert_eq!(w.status(&holder, "GET", path).await, 200, "{path}");
    }
    assert_eq!(w.status(&holder, "GET", "/api/v1/namespaces/default/secrets/s").await, 403);
    assert_eq!(w.status(&root, "DELETE", "/api/v1/namespaces/default/serviceaccounts/sa").await, 200);
    w.server.cluster().fresh("", "serviceaccounts").await;
    assert_eq!(w.status(&holder, "GET", "/openid/v1/jwks").await, 401, "its account is gone");
}
