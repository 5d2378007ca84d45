//! Credentials that others vouch for, and rights that others grant: static tokens, token issuers, webhooks, and files that
//! change while the server runs.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use apiserver::{AccessOptions, WebhookOptions};
use base64::Engine as _;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::support::{Running, serve_tls, start};

const WHO: &str = "/apis/authentication.k8s.io/v1/selfsubjectreviews";

async fn who(running: &Running, token: &str) -> (u16, Value) {
    let request = Request::post(WHO)
        .header("authorization", format!("Bearer {token}"))
        .header("content-type", "application/json");
    let answer = running.send(None, request, "{}").await;
    (answer.code.as_u16(), answer.json()["status"]["userInfo"].clone())
}

fn write(path: &Path, text: &str) {
    // At once, so that nobody reads half of it.
    let new = path.with_extension("new");
    std::fs::write(&new, text).expect("written");
    std::fs::rename(&new, path).expect("renamed");
}

fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

/// An authority of its own, and a serving certificate for loopback.
fn serving(dir: &Path) -> (pki::ClusterPki, pki::Identity) {
    let own = pki::ClusterPki::load_or_create(dir).expect("keys");
    let addresses = [std::net::IpAddr::from([127, 0, 0, 1])];
    let identity = own.issue_server(&["localhost".to_owned()], &addresses).expect("a certificate");
    (own, identity)
}

fn respond(code: u16, value: &Value) -> Response<Full<Bytes>> {
    let response = Response::builder().status(code).header("content-type", "application/json");
    response.body(Full::new(Bytes::from(value.to_string()))).expect("a response")
}

#[tokio::test]
async fn static_tokens_open_the_door() {
    let files = tempfile::tempdir().expect("a directory");
    let path = files.path().join("tokens.csv");
    std::fs::write(&path, "s3cret,jane,77,\"dev,ops\"\n").expect("written");
    let running = start(|config| {
        config.access = AccessOptions { token_auth_file: Some(path), ..AccessOptions::default() };
    })
    .await;
    let (code, user) = who(&running, "s3cret").await;
    assert_eq!((code, &user["username"], &user["uid"]), (201, &json!("jane"), &json!("77")));
    assert_eq!(user["groups"], json!(["dev", "ops", "system:authenticated"]));
    assert_eq!(who(&running, "s3cre").await.0, 401);
    let review = json!({"spec": {"token": "s3cret", "audiences": ["https://kubernetes.default.svc"]}});
    let made = running.create("/apis/authentication.k8s.io/v1/tokenreviews", &review).await.json();
    assert_eq!(made["status"]["authenticated"], true);
    assert_eq!(made["status"]["audiences"], json!(["https://kubernetes.default.svc"]));
    let review = json!({"spec": {"token": "s3cret", "audiences": ["elsewhere"]}});
    let made = running.create("/apis/authentication.k8s.io/v1/tokenreviews", &review).await.json();
    assert_eq!(made["status"]["authenticated"], Value::Null, "{made}");
}

fn key_set(key: &pki::Key) -> Value {
    let point = key.public_point();
    let text = |bytes: &[u8]| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes);
    json!({"keys": [{"kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": pki::key_id(key),
        "x": text(&point[1..33]), "y": text(&point[33..])}]})
}

fn authentication_file(issuer: &str, ca: &str, prefix: &str) -> String {
    json!({
        "apiVersion": "apiserver.config.k8s.io/v1",
        "kind": "AuthenticationConfiguration",
        "jwt": [{
            "issuer": {"url": issuer, "audiences": ["carrack"], "certificateAuthority": ca},
            "claimMappings": {
                "username": {"claim": "sub", "prefix": prefix},
                "groups": {"expression": "claims.roles.map(r, 'role:' + r)"},
            },
            "claimValidationRules": [{"expression": "claims.level >= 2", "message": "the level is too low"}],
            "userValidationRules": [{"expression": "!user.username.startsWith('system:')"}],
        }],
        "anonymous": {"enabled": true, "conditions": [{"path": "/livez"}]},
    })
    .to_string()
}

#[tokio::test]
async fn tokens_of_an_issuer_are_checked_with_its_keys() {
    let files = tempfile::tempdir().expect("a directory");
    let (own, identity) = serving(&files.path().join("pki"));
    let key = pki::Key::generate().expect("a key");
    let keys = Arc::new(parking_lot::Mutex::new(key_set(&key)));
    let served = keys.clone();
    let address = Arc::new(std::sync::OnceLock::<String>::new());
    let own_address = address.clone();
    let port = serve_tls(&identity, None, CancellationToken::new(), move |request| {
        let issuer = own_address.get().cloned().unwrap_or_default();
        let answer = match request.uri().path() {
            "/.well-known/openid-configuration" => {
                respond(200, &json!({"issuer": issuer, "jwks_uri": format!("{issuer}/keys")}))
            }
            "/keys" => respond(200, &served.lock()),
            _ => respond(404, &json!({})),
        };
        async move { answer }
    })
    .await;
    let issuer = format!("https://localhost:{port}");
    address.set(issuer.clone()).expect("set once");
    let path = files.path().join("authentication.yaml");
    write(&path, &authentication_file(&issuer, &own.ca.cert_pem(), "ext:"));
    let running = start(|config| {
        config.access =
            AccessOptions { authentication_config: Some(path.clone()), ..AccessOptions::default() };
    })
    .await;

    let claims = json!({"iss": issuer, "sub": "jane", "aud": ["other", "carrack"], "exp": now() + 600,
        "roles": ["dev"], "level": 2, "jti": "id-1"});
    let signed = |key: &pki::Key, change: &dyn Fn(&mut Value)| {
        let mut claims = claims.clone();
        change(&mut claims);
        pki::sign_token(key, &claims.to_string()).expect("signed")
    };
    let (code, user) = who(&running, &signed(&key, &|_| {})).await;
    assert_eq!((code, &user["username"]), (201, &json!("ext:jane")));
    assert_eq!(user["groups"], json!(["role:dev", "system:authenticated"]));
    assert_eq!(user["extra"]["authentication.kubernetes.io/credential-id"], json!(["JTI=id-1"]));

    let refused: [(&str, &dyn Fn(&mut Value)); 7] = [
        ("expired", &|c| c["exp"] = (now() - 1).into()),
        ("no end", &|c| drop(c.as_object_mut().map(|c| c.remove("exp")))),
        ("not yet", &|c| c["nbf"] = (now() + 1000).into()),
        ("wrong audience", &|c| c["aud"] = "other".into()),
        ("another issuer", &|c| c["iss"] = "https://elsewhere".into()),
        ("a rule of claims", &|c| c["level"] = 1.into()),
        ("no such claim", &|c| drop(c.as_object_mut().map(|c| c.remove("sub")))),
    ];
    for (what, change) in refused {
        assert_eq!(who(&running, &signed(&key, change)).await.0, 401, "{what}");
    }
    let other = pki::Key::generate().expect("a key");
    assert_eq!(who(&running, &signed(&other, &|_| {})).await.0, 401, "forged");
    let (head, rest) =
        signed(&key, &|_| {}).split_once('.').map(|(h, r)| (h.to_owned(), r.to_owned())).expect("parts");
    let none = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode("{\"alg\":\"none\"}");
    assert_ne!(head, none);
    let body = rest.split('.').next().unwrap_or_default();
    assert_eq!(who(&running, &format!("{none}.{body}.")).await.0, 401, "unsigned");

    // The issuer exchanges its key.
    *keys.lock() = key_set(&other);
    let mut accepted = 0;
    for _ in 0..100 {
        accepted = who(&running, &signed(&other, &|_| {})).await.0;
        if accepted == 201 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(accepted, 201, "the new key is fetched");

    // Nobody is anonymous but where the file says.
    assert_eq!(running.get(None, "/livez").await.code, 200);
    assert_eq!(running.get(None, "/version").await.code, 401);

    // A file that is wrong changes nothing; a good one does.
    write(&path, "kind: Nonsense");
    write(&path, &authentication_file(&issuer, &own.ca.cert_pem(), "new:"));
    let mut name = Value::Null;
    for _ in 0..100 {
        name = who(&running, &signed(&other, &|_| {})).await.1["username"].clone();
        if name == "new:jane" {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(name, "new:jane");
}

#[tokio::test]
async fn groups_may_be_claimed_elsewhere() {
    let files = tempfile::tempdir().expect("a directory");
    let (own, identity) = serving(&files.path().join("pki"));
    let key = Arc::new(pki::Key::generate().expect("a key"));
    let address = Arc::new(std::sync::OnceLock::<String>::new());
    let (own_address, signing) = (address.clone(), key.clone());
    // One server is the issuer, another issuer under /other, and the endpoint of the claim.
    let port = serve_tls(&identity, None, CancellationToken::new(), move |request| {
        let base = own_address.get().cloned().unwrap_or_default();
        let claim = |issuer: &str, audience: &str| {
            let claims = json!({"iss": issuer, "aud": audience, "exp": now() + 600, "roles": ["dev", "ops"]});
            let token = pki::sign_token(&signing, &claims.to_string()).expect("signed");
            Response::builder().body(Full::new(Bytes::from(token))).expect("a response")
        };
        let token = request.headers().get("authorization").and_then(|h| h.to_str().ok()).unwrap_or_default();
        let answer = match request.uri().path() {
            "/.well-known/openid-configuration" => {
                respond(200, &json!({"issuer": base, "jwks_uri": format!("{base}/keys")}))
            }
            "/other/.well-known/openid-configuration" => {
                respond(200, &json!({"issuer": format!("{base}/other"), "jwks_uri": format!("{base}/keys")}))
            }
            "/keys" => respond(200, &key_set(&signing)),
            "/claims" if token == "Bearer f005ba11" => claim(&base, "carrack"),
            "/claims" => respond(401, &json!({})),
            "/open" => claim(&format!("{base}/other"), "carrack"),
            "/wrong" => claim(&base, "other"),
            _ => respond(404, &json!({})),
        };
        async move { answer }
    })
    .await;
    let issuer = format!("https://localhost:{port}");
    address.set(issuer.clone()).expect("set once");
    let path = files.path().join("authentication.yaml");
    let file = json!({
        "apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthenticationConfiguration",
        "jwt": [{
            "issuer": {"url": issuer, "audiences": ["carrack"], "certificateAuthority": own.ca.cert_pem()},
            "claimMappings": {
                "username": {"claim": "sub", "prefix": ""}, "groups": {"claim": "roles", "prefix": "role:"},
            },
        }],
    });
    write(&path, &file.to_string());
    let running = start(|config| {
        config.access = AccessOptions { authentication_config: Some(path), ..AccessOptions::default() };
    })
    .await;
    let ask = async |claims: Value| {
        let mut all = json!({"iss": issuer, "sub": "jane", "aud": "carrack", "exp": now() + 600});
        for (name, value) in claims.as_object().into_iter().flatten() {
            all[name] = value.clone();
        }
        who(&running, &pki::sign_token(&key, &all.to_string()).expect("signed")).await
    };
    let source = |path: &str, token: &str| {
        json!({
            "_claim_names": {"roles": "src"},
            "_claim_sources": {"src": {"endpoint": format!("{issuer}{path}"), "access_token": token}},
        })
    };
    let (code, user) = ask(source("/claims", "f005ba11")).await;
    assert_eq!((code, &user["groups"]), (201, &json!(["role:dev", "role:ops", "system:authenticated"])));
    let (code, user) = ask(source("/open", "")).await;
    assert_eq!((code, &user["groups"]), (201, &json!(["role:dev", "role:ops", "system:authenticated"])));
    assert_eq!(ask(source("/claims", "wrong")).await.0, 401, "the endpoint refuses");
    assert_eq!(ask(source("/wrong", "")).await.0, 401, "for another audience");
    assert_eq!(ask(json!({"_claim_names": {"roles": "src"}})).await.0, 401, "no sources");
    let mut own_groups = source("/nosuch", "");
    own_groups["roles"] = json!("own");
    assert_eq!(ask(own_groups).await.1["groups"], json!(["role:own", "system:authenticated"]));
}

fn kubeconfig(dir: &Path, port: u16, ca: &str, path: &str) -> PathBuf {
    let ca = base64::engine::general_purpose::STANDARD.encode(ca);
    let text = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "k", "cluster": {"server": format!("https://localhost:{port}{path}"), "certificate-authority-data": ca}}],
        "users": [{"name": "u", "user": {"token": "mine"}}],
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
    });
    let file = dir.join(format!("{}.kubeconfig", path.trim_matches('/')));
    std::fs::write(&file, text.to_string()).expect("written");
    file
}

#[tokio::test]
async fn webhooks_know_tokens_and_rights() {
    let files = tempfile::tempdir().expect("a directory");
    let (own, identity) = serving(&files.path().join("pki"));
    let (tokens, rights) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let counts = (tokens.clone(), rights.clone());
    let port = serve_tls(&identity, None, CancellationToken::new(), move |request| {
        let (tokens, rights) = counts.clone();
        async move {
            assert_eq!(request.headers()["authorization"], "Bearer mine");
            let authn = request.uri().path() == "/authn";
            let body = request.into_body().collect().await.expect("a body").to_bytes();
            let mut review: Value = serde_json::from_slice(&body).expect("JSON");
            let spec = review["spec"].clone();
            review["status"] = if authn {
                tokens.fetch_add(1, Ordering::SeqCst);
                match spec["token"].as_str() {
                    Some("known") => json!({"authenticated": true, "user": {"username": "hook", "groups": ["g"]}}),
                    _ => json!({"authenticated": false}),
                }
            } else {
                rights.fetch_add(1, Ordering::SeqCst);
                let what = &spec["resourceAttributes"];
                let may = spec["user"] == "hook" && what["resource"] == "pods" && what["verb"] == "list";
                let narrow = &what["fieldSelector"]["requirements"][0]["values"][0] == "n1";
                json!({"allowed": may && narrow, "denied": what["resource"] == "secrets", "reason": "says the hook"})
            };
            respond(200, &review)
        }
    })
    .await;
    let ca = own.ca.cert_pem();
    let authorizers = |conditions: Value| {
        json!({
            "apiVersion": "apiserver.config.k8s.io/v1",
            "kind": "AuthorizationConfiguration",
            "authorizers": [
                {"type": "Webhook", "name": "hook", "webhook": {
                    "timeout": "3s", "subjectAccessReviewVersion": "v1", "failurePolicy": "Deny",
                    "matchConditionSubjectAccessReviewVersion": "v1",
                    "connectionInfo": {"type": "KubeConfigFile", "kubeConfigFile": kubeconfig(files.path(), port, &ca, "/authz")},
                    "matchConditions": conditions,
                }},
                {"type": "RBAC", "name": "rbac"},
            ],
        })
        .to_string()
    };
    let path = files.path().join("authorization.yaml");
    write(&path, &authorizers(json!([{"expression": "has(request.resourceAttributes)"}])));
    let running = start(|config| {
        config.access = AccessOptions {
            authorization_config: Some(path.clone()),
            authentication_webhook: Some(WebhookOptions {
                kubeconfig: kubeconfig(files.path(), port, &ca, "/authn"),
                version: "v1".to_owned(),
                lifetime: Duration::from_secs(120),
                refused_lifetime: Duration::from_secs(120),
            }),
            ..AccessOptions::default()
        };
    })
    .await;
    let get = |path: &str| {
        let request = Request::get(path).header("authorization", "Bearer known");
        running.send(None, request, "")
    };
    let pods = "/api/v1/namespaces/default/pods";
    assert_eq!(get(&format!("{pods}?fieldSelector=spec.nodeName%3Dn1")).await.code, 200);
    let refused = get(pods).await;
    assert_eq!(refused.code, 403);
    assert!(refused.text().contains("says the hook"), "{}", refused.text());
    assert_eq!(get("/version").await.code, 200, "plain paths are left to RBAC");
    let (asked, reviewed) = (tokens.load(Ordering::SeqCst), rights.load(Ordering::SeqCst));
    assert_eq!(get(pods).await.code, 403);
    assert_eq!(
        (tokens.load(Ordering::SeqCst), rights.load(Ordering::SeqCst)),
        (asked, reviewed),
        "remembered"
    );
    assert_eq!(asked, 1);
    assert_eq!(who(&running, "unknown").await.0, 401);

    // Denied is denied, whatever RBAC would say; masters are not asked about.
    let review = json!({"spec": {"user": "x", "resourceAttributes": {"verb": "get", "resource": "secrets"}}});
    let made = running.create("/apis/authorization.k8s.io/v1/subjectaccessreviews", &review).await.json();
    assert_eq!(made["status"], json!({"allowed": false, "denied": true, "reason": "says the hook"}));
    assert_eq!(running.get(Some(&running.admin()), "/api/v1/secrets").await.code, 200);
    let rules = json!({"spec": {"namespace": "default"}});
    let request = Request::post("/apis/authorization.k8s.io/v1/selfsubjectrulesreviews")
        .header("content-type", "application/json");
    let made = running.send(Some(&running.admin()), request, &rules.to_string()).await.json();
    assert_eq!(made["status"]["incomplete"], true);

    // The file changes: the hook is asked about nobody.
    write(&path, &authorizers(json!([{"expression": "request.user == 'nobody'"}])));
    let mut code = 0;
    let path = format!("{pods}?fieldSelector=spec.nodeName%3Dn1");
    for _ in 0..100 {
        code = get(&path).await.code.as_u16();
        if code == 403 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(code, 403);
}

#[tokio::test]
async fn admission_asks_authorizing_webhooks_too() {
    let files = tempfile::tempdir().expect("a directory");
    let (own, identity) = serving(&files.path().join("pki"));
    let port = serve_tls(&identity, None, CancellationToken::new(), move |request| async move {
        let body = request.into_body().collect().await.expect("a body").to_bytes();
        let mut review: Value = serde_json::from_slice(&body).expect("JSON");
        let what = &review["spec"]["resourceAttributes"];
        let allowed = match (what["resource"].as_str(), what["verb"].as_str()) {
            (Some("configmaps"), Some("create")) => true,
            (Some("limits"), Some("use")) => what["name"] == "big",
            // Granting what one does not have: only where it is allowed.
            (Some("clusterroles" | "roles"), Some("create")) => true,
            (Some("clusterroles"), Some("escalate")) => true,
            _ => false,
        };
        review["status"] = json!({"allowed": allowed});
        respond(200, &review)
    })
    .await;
    let tokens = files.path().join("tokens.csv");
    std::fs::write(&tokens, "known,jane,1\n").expect("written");
    let kubeconfig = kubeconfig(files.path(), port, &own.ca.cert_pem(), "/authz");
    let running = start(|config| {
        config.access = AccessOptions {
            token_auth_file: Some(tokens),
            authorization_modes: vec!["RBAC".to_owned(), "Webhook".to_owned()],
            authorization_webhook: Some(WebhookOptions {
                kubeconfig,
                version: "v1".to_owned(),
                lifetime: Duration::from_secs(60),
                refused_lifetime: Duration::from_secs(60),
            }),
            ..AccessOptions::default()
        };
    })
    .await;
    let policy = json!({"metadata": {"name": "p"}, "spec": {
        "matchConstraints": {"resourceRules": [{
            "operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"]}]},
        "validations": [{"expression":
            "authorizer.group('example.com').resource('limits').name(object.data.limit).check('use').allowed()",
            "message": "no such limit for you"}],
    }});
    let base = "/apis/admissionregistration.k8s.io/v1";
    running.create(&format!("{base}/validatingadmissionpolicies"), &policy).await;
    let binding =
        json!({"metadata": {"name": "b"}, "spec": {"policyName": "p", "validationActions": ["Deny"]}});
    running.create(&format!("{base}/validatingadmissionpolicybindings"), &binding).await;
    let post = async |path: &str, object: Value| {
        let request = Request::post(path)
            .header("authorization", "Bearer known")
            .header("content-type", "application/json");
        running.send(None, request, &object.to_string()).await
    };
    let map = |limit: &str| json!({"metadata": {"name": limit}, "data": {"limit": limit}});
    let maps = "/api/v1/namespaces/default/configmaps";
    let made = post(maps, map("big")).await;
    assert_eq!(made.code, 201, "{}", made.text());
    let refused = post(maps, map("small")).await;
    assert_eq!(refused.code, 422, "{}", refused.text());
    assert!(refused.text().contains("no such limit for you"), "{}", refused.text());
    let rule = json!({"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]});
    let role = json!({"metadata": {"name": "more"}, "rules": [rule]});
    let group = "/apis/rbac.authorization.k8s.io/v1";
    assert_eq!(post(&format!("{group}/clusterroles"), role.clone()).await.code, 201);
    assert_eq!(post(&format!("{group}/namespaces/default/roles"), role).await.code, 403);
}

#[tokio::test]
async fn settings_that_are_wrong_stop_the_start() {
    let dir = tempfile::tempdir().expect("a directory");
    let check = |access: AccessOptions, expect: &'static str| {
        let path = dir.path().to_owned();
        async move {
            let mut config = apiserver::Config::new(&path);
            config.bind.set_port(0);
            config.access = access;
            let store = path.join(format!("{}.redb", expect.len()));
            let store = store::embedded::open(&store).expect("a new store opens");
            let error = apiserver::start(config, store).await.err().expect(expect);
            let text = format!("{error}");
            assert!(text.contains(expect), "{text}");
        }
    };
    let modes = AccessOptions { authorization_modes: vec!["Magic".to_owned()], ..AccessOptions::default() };
    check(modes, "authorization-mode \"Magic\" is not one of").await;
    let absent =
        AccessOptions { authentication_config: Some("/nosuch.yaml".into()), ..AccessOptions::default() };
    check(absent, "/nosuch.yaml cannot be read").await;
}
