//! Certificates, tokens, headers: what is believed, and above all what is not.

use std::sync::Arc;

use base64::engine::general_purpose::STANDARD;
use futures::FutureExt;
use http::HeaderMap;
use serde_json::{Value, json};

use super::*;
use crate::authn::request::TokenRequests;
use crate::authz::Authorizer;
use crate::testing::{FakeCluster, ask, bind, role, user};
use crate::{Answer, bootstrap};

const RBAC: &str = "rbac.authorization.k8s.io";
const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
const AUDIENCE: &str = "https://kubernetes.default.svc";

struct World {
    _dir: tempfile::TempDir,
    cluster: Arc<FakeCluster>,
    pki: pki::ClusterPki,
    tokens: Arc<Tokens>,
    authorizer: Arc<Authorizer>,
    authenticator: Authenticator,
}

fn world() -> World {
    let dir = tempfile::tempdir().expect("dir");
    let pki = pki::ClusterPki::load_or_create(dir.path()).expect("pki");
    let cluster = FakeCluster::new();
    cluster.put("", "serviceaccounts", json!({"metadata": {"name": "sa", "namespace": "ns"}}));
    let tokens = Tokens::new(
        cluster.shared(),
        pki.service_account.clone(),
        ISSUER.into(),
        vec![AUDIENCE.into(), ISSUER.into()],
    );
    let authorizer = Authorizer::new(cluster.shared(), bootstrap::node_rules());
    let authenticator = Authenticator::new(
        Authority::new(pki.ca.cert_der()).expect("clients"),
        Authority::new(pki.front_proxy_ca.cert_der()).expect("front proxies"),
        Arc::new(Bearer::new(Arc::clone(&tokens))),
    );
    World { _dir: dir, cluster, pki, tokens, authorizer, authenticator }
}

fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        let name: http::HeaderName = name.parse().expect("a header name");
        headers.append(name, value.parse().expect("a header value"));
    }
    headers
}

fn chain(identity: &pki::Identity) -> Vec<CertificateDer<'static>> {
    vec![pki::certificate_der(&identity.cert_pem).expect("pem").into()]
}

impl World {
    fn request(&self, spec: Value) -> Result<Value, Status> {
        let requests = TokenRequests::new(self.cluster.shared(), Arc::clone(&self.tokens));
        let attributes = ask(&user("u", &[]), "create", "/serviceaccounts/token", "ns", "sa");
        let object = json!({"kind": "TokenRequest", "spec": spec});
        requests.create(&attributes, object).now_or_never().expect("nothing to wait for")
    }

    fn token(&self, spec: Value) -> String {
        self.request(spec).expect("a token")["status"]["token"].as_str().expect("text").to_owned()
    }

    fn user(
        &self,
        headers: &HeaderMap,
        chain: &[CertificateDer<'static>],
    ) -> Result<Option<UserInfo>, Status> {
        self.authenticator.user(headers, chain).now_or_never().expect("nothing to wait for")
    }

    fn bearer(&self, token: &str) -> Result<Option<UserInfo>, u16> {
        let headers = headers(&[("authorization", &format!("Bearer {token}"))]);
        self.user(&headers, &[]).map_err(|status| status.code())
    }
}

#[test]
fn client_certificates_name_user_and_groups() {
    let w = world();
    let admin = w.pki.issue_client("admin", &["system:masters".into()]).expect("issue");
    let found = w.user(&HeaderMap::new(), &chain(&admin)).expect("ok").expect("somebody");
    assert_eq!(found.name, "admin");
    assert_eq!(found.groups, ["system:masters", "system:authenticated"]);
    assert!(found.extra["authentication.kubernetes.io/credential-id"][0].starts_with("X509SHA256="));
    assert_eq!(w.user(&HeaderMap::new(), &[]), Ok(None));
}

#[test]
fn certificates_of_others_and_of_servers_are_refused() {
    let (w, other) = (world(), world());
    let refused =
        |identity: &pki::Identity| w.user(&HeaderMap::new(), &chain(identity)).map_err(|s| s.code());
    assert_eq!(
        refused(&other.pki.issue_client("admin", &["system:masters".into()]).expect("issue")),
        Err(401)
    );
    assert_eq!(refused(&w.pki.issue_server(&["x".into()], &[]).expect("issue")), Err(401));
    assert_eq!(refused(&w.pki.issue_front_proxy_client("front-proxy-client").expect("issue")), Err(401));
    let leaf = |lifetime| pki::Leaf {
        common_name: "u",
        organizations: &[],
        names: const { &pki::AltNames { dns: Vec::new(), ips: Vec::new(), emails: Vec::new(), uris: Vec::new() } },
        usages: &[pki::Usage::ClientAuth],
        lifetime,
    };
    let past = time::OffsetDateTime::now_utc() - time::Duration::days(2);
    let expired = w.pki.ca.issue(&leaf(time::Duration::days(1)), past).expect("issue");
    assert_eq!(refused(&expired), Err(401));
    let future = time::OffsetDateTime::now_utc() + time::Duration::days(2);
    let early = w.pki.ca.issue(&leaf(time::Duration::days(1)), future).expect("issue");
    assert_eq!(refused(&early), Err(401));
}

#[test]
fn remote_user_headers_count_only_from_a_front_proxy() {
    let w = world();
    let smuggled = headers(&[
        ("x-remote-user", "root"),
        ("x-remote-group", "system:masters"),
        ("x-remote-extra-a%2fb", "c"),
    ]);
    assert_eq!(w.user(&smuggled, &[]), Ok(None), "no certificate");
    let joe = w.pki.issue_client("joe", &[]).expect("issue");
    let found = w.user(&smuggled, &chain(&joe)).expect("ok").expect("joe");
    assert_eq!((found.name.as_str(), found.groups), ("joe", vec!["system:authenticated".to_owned()]));
    let named = w.pki.issue_client("front-proxy-client", &[]).expect("issue");
    let found = w.user(&smuggled, &chain(&named)).expect("ok").expect("somebody");
    assert_eq!(found.name, "front-proxy-client", "right name, wrong authority");
    let stranger = w.pki.issue_front_proxy_client("stranger").expect("issue");
    assert!(w.user(&smuggled, &chain(&stranger)).is_err(), "right authority, wrong name");
    let proxy = w.pki.issue_front_proxy_client("front-proxy-client").expect("issue");
    let found = w.user(&smuggled, &chain(&proxy)).expect("ok").expect("root");
    assert_eq!(found.name, "root");
    assert_eq!(found.groups, ["system:masters", "system:authenticated"]);
    assert_eq!(found.extra["a/b"], ["c"]);
}

#[test]
fn a_requested_token_is_accepted() {
    let w = world();
    let answer = w.request(json!({})).expect("answer");
    assert_eq!(answer["spec"]["audiences"], json!([AUDIENCE]));
    assert_eq!(answer["spec"]["expirationSeconds"], 3600);
    assert_eq!(answer["spec"]["boundObjectRef"], Value::Null);
    assert_eq!(answer["metadata"]["uid"], "sa-uid");
    let found = w.bearer(answer["status"]["token"].as_str().expect("token")).expect("ok").expect("sa");
    assert_eq!(found.name, "system:serviceaccount:ns:sa");
    assert_eq!(found.uid, "sa-uid");
    assert_eq!(found.groups, ["system:serviceaccounts", "system:serviceaccounts:ns", "system:authenticated"]);
}

#[test]
fn a_token_dies_with_its_account() {
    let w = world();
    let token = w.token(json!({}));
    w.cluster.remove("", "serviceaccounts", "ns", "sa");
    assert_eq!(w.bearer(&token), Err(401));
    let again = json!({"metadata": {"name": "sa", "namespace": "ns", "uid": "another"}});
    w.cluster.put("", "serviceaccounts", again);
    assert_eq!(w.bearer(&token), Err(401), "another account of the same name");
}

#[test]
fn a_token_dies_with_the_object_it_is_bound_to() {
    let w = world();
    w.cluster.put("", "nodes", json!({"metadata": {"name": "n1"}}));
    let pod = json!({"metadata": {"name": "p", "namespace": "ns"}, "spec": {"serviceAccountName": "sa", "nodeName": "n1"}});
    w.cluster.put("", "pods", pod);
    let token =
        w.token(json!({"boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "p-uid"}}));
    let found = w.bearer(&token).expect("ok").expect("sa");
    let extra = |key: &str| found.extra[&format!("authentication.kubernetes.io/{key}")].join(",");
    assert_eq!(extra("pod-name"), "p");
    assert_eq!(extra("pod-uid"), "p-uid");
    assert_eq!(extra("node-name"), "n1");
    assert!(extra("credential-id").starts_with("JTI="));
    w.cluster.remove("", "pods", "ns", "p");
    assert_eq!(w.bearer(&token), Err(401));

    let secret = json!({"metadata": {"name": "s", "namespace": "ns"}});
    w.cluster.put("", "secrets", secret);
    let token = w.token(json!({"boundObjectRef": {"apiVersion": "v1", "kind": "Secret", "name": "s"}}));
    assert!(w.bearer(&token).is_ok());
    w.cluster.remove("", "secrets", "ns", "s");
    assert_eq!(w.bearer(&token), Err(401));

    let token = w.token(json!({"boundObjectRef": {"apiVersion": "v1", "kind": "Node", "name": "n1"}}));
    assert!(w.bearer(&token).is_ok());
    w.cluster.remove("", "nodes", "", "n1");
    assert_eq!(w.bearer(&token), Err(401));
}

#[test]
fn token_requests_that_do_not_fit_are_refused() {
    let w = world();
    let code = |spec: Value| w.request(spec).expect_err("refused").code();
    assert_eq!(code(json!({"expirationSeconds": 60})), 422);
    assert_eq!(code(json!({"expirationSeconds": 4_294_967_297_i64})), 422);
    assert_eq!(code(json!({"boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": "none"}})), 404);
    assert_eq!(code(json!({"boundObjectRef": {"apiVersion": "v1", "kind": "ConfigMap", "name": "c"}})), 400);
    let pod = json!({"metadata": {"name": "p", "namespace": "ns"}, "spec": {"serviceAccountName": "other"}});
    w.cluster.put("", "pods", pod);
    assert_eq!(code(json!({"boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": "p"}})), 400);
    let node = json!({"metadata": {"name": "n"}});
    w.cluster.put("", "nodes", node);
    let reference = json!({"apiVersion": "v1", "kind": "Node", "name": "n", "uid": "older"});
    assert_eq!(code(json!({"boundObjectRef": reference})), 409);
}

#[test]
fn forged_expired_and_foreign_tokens_are_refused() {
    let (w, other) = (world(), world());
    let token = w.token(json!({}));
    assert_eq!(other.bearer(&token), Err(401), "another cluster");
    assert_eq!(w.bearer(&w.token(json!({"audiences": ["other"]}))), Err(401), "another audience");
    for text in ["", "x", "a.b.c", "a.b", "....", "\u{e9}"] {
        let refused = w.tokens.authenticate(text);
        assert!(refused.is_err(), "{text:?}");
    }
    let parts: Vec<&str> = token.split('.').collect();
    let mut claims: Value =
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(parts[1]).expect("base64")).expect("JSON");
    claims["sub"] = "system:serviceaccount:kube-system:admin".into();
    let body = URL_SAFE_NO_PAD.encode(claims.to_string());
    assert_eq!(w.bearer(&format!("{}.{body}.{}", parts[0], parts[2])), Err(401), "changed claims");
    for header in [
        json!({"alg": "none"}),
        json!({"alg": "HS256"}),
        json!({"alg": "ES256", "kid": "other"}),
        json!({"alg": "ES256", "crit": ["x"]}),
    ] {
        let head = URL_SAFE_NO_PAD.encode(header.to_string());
        assert_eq!(w.bearer(&format!("{head}.{}.{}", parts[1], parts[2])), Err(401), "{header}");
        assert_eq!(w.bearer(&format!("{head}.{}.", parts[1])), Err(401), "{header} unsigned");
    }
    let audiences = [AUDIENCE.to_owned()];
    let now = jiff::Timestamp::now().as_second();
    assert!(w.tokens.check(&token, &audiences, now + 3600).is_ok(), "within the leeway");
    assert_eq!(w.tokens.check(&token, &audiences, now + 3700), Err(TokenError::Expired));
    assert_eq!(w.tokens.check(&token, &audiences, now - 100), Err(TokenError::NotYet));
    // Signed by the right key, but not with the claims of a token.
    let signer = jwt::Signer::new(w.pki.service_account.clone());
    for claims in [
        json!({"iss": ISSUER, "aud": AUDIENCE, "exp": now + 60}),
        json!({"iss": ISSUER, "aud": AUDIENCE, "exp": now + 60, "sub": "x", "kubernetes.io": {}}),
        json!({"iss": ISSUER, "aud": AUDIENCE, "sub": "system:serviceaccount:ns:sa",
            "kubernetes.io": {"namespace": "ns", "serviceaccount": {"name": "sa", "uid": "sa-uid"}}}),
        json!({"iss": "https://elsewhere", "aud": AUDIENCE, "exp": now + 60}),
        json!({"iss": "kubernetes/serviceaccount", "sub": "system:serviceaccount:ns:sa"}),
    ] {
        let token = signer.sign(&claims).expect("sign");
        assert_eq!(w.bearer(&token), Err(401), "{claims}");
    }
}

#[test]
fn legacy_tokens_hold_as_long_as_their_secret() {
    let w = world();
    let signer = jwt::Signer::new(w.pki.service_account.clone());
    let claims = json!({
        "iss": "kubernetes/serviceaccount",
        "sub": "system:serviceaccount:ns:sa",
        "kubernetes.io/serviceaccount/namespace": "ns",
        "kubernetes.io/serviceaccount/secret.name": "t",
        "kubernetes.io/serviceaccount/service-account.name": "sa",
        "kubernetes.io/serviceaccount/service-account.uid": "sa-uid",
    });
    let token = signer.sign(&claims).expect("sign");
    assert_eq!(w.bearer(&token), Err(401), "no secret");
    let secret = |token: &str| json!({"metadata": {"name": "t", "namespace": "ns"}, "data": {"token": STANDARD.encode(token)}});
    w.cluster.put("", "secrets", secret(&token));
    assert_eq!(w.bearer(&token).expect("ok").expect("sa").name, "system:serviceaccount:ns:sa");
    w.cluster.put("", "secrets", secret("another"));
    assert_eq!(w.bearer(&token), Err(401));
}

#[test]
fn bootstrap_tokens_come_from_secrets() {
    let w = world();
    let secret = |changes: Value| {
        let mut data = json!({
            "token-id": "abcdef",
            "token-secret": "0123456789abcdef",
            "usage-bootstrap-authentication": "true",
            "auth-extra-groups": "system:bootstrappers:kubeadm:default-node-token",
        });
        for (key, value) in changes.as_object().expect("object") {
            data[key] = value.clone();
        }
        for value in data.as_object_mut().expect("object").values_mut() {
            *value = STANDARD.encode(value.as_str().expect("text")).into();
        }
        json!({
            "metadata": {"name": "bootstrap-token-abcdef", "namespace": "kube-system"},
            "type": "bootstrap.kubernetes.io/token",
            "data": data,
        })
    };
    let token = "abcdef.0123456789abcdef";
    assert_eq!(w.bearer(token), Err(401), "no secret");
    w.cluster.put("", "secrets", secret(json!({})));
    let found = w.bearer(token).expect("ok").expect("somebody");
    assert_eq!(found.name, "system:bootstrap:abcdef");
    assert_eq!(
        found.groups,
        ["system:bootstrappers", "system:bootstrappers:kubeadm:default-node-token", "system:authenticated"]
    );
    assert_eq!(w.bearer("abcdef.0123456789abcdeX"), Err(401));
    assert_eq!(w.bearer("abcdef.0123456789abcde0"), Err(401));
    for change in [
        json!({"usage-bootstrap-authentication": "false"}),
        json!({"expiration": "2020-01-01T00:00:00Z"}),
        json!({"expiration": "soon"}),
        json!({"token-id": "fedcba"}),
        json!({"auth-extra-groups": "system:masters"}),
    ] {
        w.cluster.put("", "secrets", secret(change.clone()));
        assert_eq!(w.bearer(token), Err(401), "{change}");
    }
    let mut opaque = secret(json!({}));
    opaque["type"] = "Opaque".into();
    w.cluster.put("", "secrets", opaque);
    assert_eq!(w.bearer(token), Err(401), "type");
}

#[test]
fn a_socket_may_carry_its_token_as_protocol() {
    let w = world();
    let token = URL_SAFE_NO_PAD.encode(w.token(json!({})));
    let protocols = format!("v5.channel.k8s.io, base64url.bearer.authorization.k8s.io.{token}");
    let found = w.user(&headers(&[("sec-websocket-protocol", &protocols)]), &[]);
    assert_eq!(found.expect("ok").expect("sa").name, "system:serviceaccount:ns:sa");
    let broken = headers(&[("sec-websocket-protocol", "base64url.bearer.authorization.k8s.io.!")]);
    assert!(w.user(&broken, &[]).is_err());
}

#[test]
fn impersonation_needs_rights_for_each_part() {
    let w = world();
    let rules = json!([
        {"verbs": ["impersonate"], "apiGroups": [""], "resources": ["users"], "resourceNames": ["jane"]},
        {"verbs": ["impersonate"], "apiGroups": [""], "resources": ["groups"], "resourceNames": ["dev"]},
        {"verbs": ["impersonate"], "apiGroups": ["authentication.k8s.io"], "resources": ["userextras/scope"]},
    ]);
    w.cluster.put(RBAC, "clusterroles", role("", "r", rules));
    let subject = json!({"kind": "User", "name": "joe"});
    w.cluster.put(RBAC, "clusterrolebindings", bind("", "b", "ClusterRole", "r", subject));
    let impersonation = Impersonation::default();
    let act_as = |who: &Arc<UserInfo>, pairs: &[(&str, &str)]| {
        let request = ask(who, "list", "/pods", "ns", "");
        let applied = impersonation.apply(&*w.authorizer, &request, &headers(pairs)).now_or_never();
        applied.expect("nothing to wait for").map(|user| (*user).clone()).map_err(|status| status.code())
    };
    let joe = user("joe", &[]);
    let act = |pairs: &[(&str, &str)]| act_as(&joe, pairs);
    assert_eq!(act(&[]).expect("himself").name, "joe");
    let jane = act(&[("impersonate-user", "jane")]).expect("jane");
    assert_eq!((jane.name.as_str(), jane.groups), ("jane", vec!["system:authenticated".to_owned()]));
    let dev = act(&[
        ("impersonate-user", "jane"),
        ("impersonate-group", "dev"),
        ("Impersonate-Extra-Scope", "view"),
    ]);
    let dev = dev.expect("jane");
    assert_eq!(dev.groups, ["dev", "system:authenticated"]);
    assert_eq!(dev.extra["scope"], ["view"]);
    for refused in [
        vec![("impersonate-user", "root")],
        vec![("impersonate-user", "jane"), ("impersonate-group", "system:masters")],
        vec![("impersonate-user", "jane"), ("impersonate-uid", "1")],
        vec![("impersonate-user", "jane"), ("impersonate-extra-other", "1")],
        vec![("impersonate-user", "system:serviceaccount:ns:sa")],
    ] {
        assert_eq!(act(&refused), Err(403), "{refused:?}");
    }
    assert_eq!(act(&[("impersonate-group", "dev")]), Err(400));
    let nobody = Arc::new(UserInfo::anonymous());
    assert_eq!(act_as(&nobody, &[("impersonate-user", "jane")]), Err(403));
}

#[test]
fn the_key_set_verifies_what_was_signed() {
    let w = world();
    let keys = w.tokens.key_set();
    let key = &keys["keys"][0];
    let part = |name: &str| URL_SAFE_NO_PAD.decode(key[name].as_str().expect("text")).expect("base64");
    let point = [vec![4], part("x"), part("y")].concat();
    let token = w.token(json!({}));
    let (signed, signature) = token.rsplit_once('.').expect("parts");
    ring::signature::UnparsedPublicKey::new(&ring::signature::ECDSA_P256_SHA256_FIXED, point)
        .verify(signed.as_bytes(), &URL_SAFE_NO_PAD.decode(signature).expect("base64"))
        .expect("the signature");
    let document = w.tokens.discovery("10.0.0.1:6443");
    assert_eq!(document["issuer"], ISSUER);
    assert_eq!(document["jwks_uri"], "https://10.0.0.1:6443/openid/v1/jwks");
}

#[test]
fn constrained_impersonation_is_bound_to_the_request() {
    let w = world();
    let rules = json!([
        {"verbs": ["impersonate:user-info"], "apiGroups": ["authentication.k8s.io"], "resources": ["users"], "resourceNames": ["jane"]},
        {"verbs": ["impersonate-on:user-info:list"], "apiGroups": [""], "resources": ["pods"]},
        {"verbs": ["impersonate:user-info"], "apiGroups": ["authentication.k8s.io"], "resources": ["groups"]},
        {"verbs": ["impersonate:associated-node"], "apiGroups": ["authentication.k8s.io"], "resources": ["nodes"]},
        {"verbs": ["impersonate-on:associated-node:list"], "apiGroups": [""], "resources": ["pods"]},
    ]);
    w.cluster.put(RBAC, "clusterroles", role("", "r", rules));
    for (name, subject) in [
        ("joe", json!({"kind": "User", "name": "joe"})),
        ("agent", json!({"kind": "ServiceAccount", "name": "agent", "namespace": "ns"})),
    ] {
        w.cluster.put(RBAC, "clusterrolebindings", bind("", name, "ClusterRole", "r", subject));
    }
    let impersonation = Impersonation::default();
    let act = |who: &Arc<UserInfo>, verb: &str, pairs: &[(&str, &str)]| {
        let request = ask(who, verb, "/pods", "ns", "");
        let applied = impersonation.apply(&*w.authorizer, &request, &headers(pairs)).now_or_never();
        applied.expect("nothing to wait for").map(|user| (*user).clone())
    };
    let joe = user("joe", &[]);
    let jane = [("impersonate-user", "jane")];
    assert_eq!(act(&joe, "list", &jane).expect("list").name, "jane");
    let refused = act(&joe, "delete", &jane).expect_err("another verb");
    assert!(refused.message().contains("impersonate-on:user-info:delete"), "{}", refused.message());
    assert!(act(&joe, "list", &[("impersonate-user", "bob")]).is_err());
    let masters = [("impersonate-user", "jane"), ("impersonate-group", "system:masters")];
    assert!(act(&joe, "list", &masters).is_err(), "never by a narrow mode");
    let mut agent = (*user("system:serviceaccount:ns:agent", &[])).clone();
    agent.extra.insert("authentication.kubernetes.io/node-name".into(), vec!["n1".into()]);
    let agent = Arc::new(agent);
    let node = act(&agent, "list", &[("impersonate-user", "system:node:n1")]).expect("its own node");
    assert_eq!(node.groups, ["system:nodes", "system:authenticated"]);
    assert!(act(&agent, "list", &[("impersonate-user", "system:node:n2")]).is_err());
}
