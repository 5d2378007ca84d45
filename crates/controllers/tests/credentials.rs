//! Certificates that are asked for, bootstrap tokens and tokens in Secrets, against a real API server.

use std::sync::Arc;
use std::time::Duration;

use apiserver::{ApiServer, UserInfo};
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::core::v1::{ConfigMap, Secret, ServiceAccount};
use k8s_openapi::api::rbac::v1::ClusterRoleBinding;
use kube::Client;
use kube::api::{Api, DeleteParams, PostParams};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

struct Cluster {
    server: ApiServer,
    client: Client,
    shutdown: CancellationToken,
    _dir: tempfile::TempDir,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

fn client(server: &ApiServer, name: &str, groups: &[&str]) -> Client {
    let groups = groups.iter().map(|group| (*group).to_owned()).collect();
    let user = UserInfo { name: name.to_owned(), groups, ..UserInfo::default() };
    Client::new(server.in_process(user), "default")
}

async fn start() -> Cluster {
    let dir = tempfile::tempdir().expect("a directory");
    let store = store::embedded::open(&dir.path().join("store")).expect("a store");
    let mut config = apiserver::Config::new(dir.path());
    config.bind.set_port(0);
    let server = apiserver::start(config, store).await.expect("a server");
    let shutdown = CancellationToken::new();
    let keys = pki::ClusterPki::load_or_create(dir.path().join("pki")).expect("keys");
    let config = controllers::Config {
        root_ca: keys.ca.cert_pem(),
        signing: Some(Arc::new(keys.ca)),
        account_key: Some(Arc::new(keys.service_account)),
        ..Default::default()
    };
    let own = server.clone();
    let clients: controllers::Clients =
        Arc::new(move |name| client(&own, &format!("system:serviceaccount:kube-system:{name}"), &[]));
    let manager = client(&server, "system:kube-controller-manager", &[]);
    tokio::spawn(controllers::run(manager, clients, config, shutdown.clone()));
    let admin = client(&server, "admin", &["system:masters"]);
    Cluster { server, client: admin, shutdown, _dir: dir }
}

fn object<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("the object fits its type")
}

/// Asks until there is what is wanted.
async fn until<T, F: Future<Output = Option<T>>>(what: &str, ask: impl Fn() -> F) -> T {
    for _ in 0..600 {
        if let Some(found) = ask().await {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{what} never came");
}

/// A request for a certificate of this subject.
fn request(name: &str, organization: &str) -> ByteString {
    let key = rcgen::KeyPair::generate().expect("a key");
    let mut params = rcgen::CertificateParams::new(Vec::<String>::new()).expect("parameters");
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::OrganizationName, organization);
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    let pem = params.serialize_request(&key).expect("a request").pem().expect("PEM");
    ByteString(pem.into_bytes())
}

fn csr(name: &str, signer: &str, request: &ByteString, usages: &[&str]) -> CertificateSigningRequest {
    object(json!({
        "metadata": {"name": name},
        "spec": {"signerName": signer, "request": request, "usages": usages, "expirationSeconds": 3600},
    }))
}

const CLIENT: [&str; 2] = ["client auth", "digital signature"];

#[tokio::test]
async fn a_kubelet_gets_its_certificate() {
    let cluster = start().await;
    let roles =
        ["system:node-bootstrapper", "system:certificates.k8s.io:certificatesigningrequests:nodeclient"];
    for role in roles {
        let binding: ClusterRoleBinding = object(json!({
            "metadata": {"name": format!("bootstrap:{role}")},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [
                {"kind": "Group", "apiGroup": "rbac.authorization.k8s.io", "name": "system:bootstrappers"},
            ],
        }));
        Api::all(cluster.client.clone()).create(&PostParams::default(), &binding).await.expect("created");
    }
    let node = request("system:node:n1", "system:nodes");
    let signer = "kubernetes.io/kube-apiserver-client-kubelet";
    let bootstrapper = client(&cluster.server, "system:bootstrap:abcdef", &["system:bootstrappers"]);
    let requests = Api::<CertificateSigningRequest>::all(bootstrapper);
    requests.create(&PostParams::default(), &csr("own", signer, &node, &CLIENT)).await.expect("created");
    let all = Api::<CertificateSigningRequest>::all(cluster.client.clone());
    let status = async |name: &str| all.get(name).await.expect("there").status.unwrap_or_default();
    let certificate = until("the certificate", || async { status("own").await.certificate }).await;
    let text = String::from_utf8(certificate.0).expect("PEM");
    let left = pki::not_after(&text).expect("a certificate") - jiff::Timestamp::now().as_second();
    assert!((3500..=3600).contains(&left), "{left}");
    let conditions = status("own").await.conditions.unwrap_or_default();
    assert_eq!(conditions[0].reason.as_deref(), Some("AutoApproved"));

    // Approved by hand, but not what the signer signs.
    let wrong = request("jane", "dev");
    all.create(&PostParams::default(), &csr("wrong", signer, &wrong, &CLIENT)).await.expect("created");
    let mut approved = all.get("wrong").await.expect("there");
    approved.status = object(
        json!({"conditions": [{"type": "Approved", "status": "True", "reason": "r", "message": "m"}]}),
    );
    all.replace_subresource("approval", "wrong", &PostParams::default(), &approved).await.expect("approved");
    let failed = until("the failure", || async {
        let conditions = status("wrong").await.conditions.unwrap_or_default();
        conditions.into_iter().find(|c| c.type_ == "Failed")
    })
    .await;
    assert_eq!(failed.message.as_deref(), Some("subject organization is not system:nodes"));
}

fn token(id: &str, expiration: &str) -> Secret {
    object(json!({
        "metadata": {"name": format!("bootstrap-token-{id}"), "namespace": "kube-system"},
        "type": "bootstrap.kubernetes.io/token",
        "stringData": {"token-id": id, "token-secret": "0123456789abcdef", "expiration": expiration,
            "usage-bootstrap-signing": "true", "usage-bootstrap-authentication": "true"},
    }))
}

#[tokio::test]
async fn bootstrap_tokens_sign_and_end() {
    let cluster = start().await;
    let secrets = Api::<Secret>::namespaced(cluster.client.clone(), "kube-system");
    let later = (jiff::Timestamp::now() + jiff::SignedDuration::from_hours(1)).to_string();
    for one in [token("abcdef", &later), token("gone00", "2020-01-01T00:00:00Z")] {
        secrets.create(&PostParams::default(), &one).await.expect("created");
    }
    until("the end of the old token", || async {
        secrets.get_opt("bootstrap-token-gone00").await.expect("asked").is_none().then_some(())
    })
    .await;
    let maps = Api::<ConfigMap>::namespaced(cluster.client.clone(), "kube-public");
    let data = async || maps.get("cluster-info").await.expect("there").data.unwrap_or_default();
    let signed =
        until("the signature", || async { data().await.get("jws-kubeconfig-abcdef").cloned() }).await;
    assert_eq!(signed, pki::detached_signature(&data().await["kubeconfig"], "abcdef", "0123456789abcdef"));
    secrets.delete("bootstrap-token-abcdef", &DeleteParams::default()).await.expect("deleted");
    until("the end of the signature", || async {
        (!data().await.contains_key("jws-kubeconfig-abcdef")).then_some(())
    })
    .await;
}

#[tokio::test]
async fn secrets_hold_tokens_of_their_accounts() {
    let cluster = start().await;
    let accounts = Api::<ServiceAccount>::namespaced(cluster.client.clone(), "default");
    let account: ServiceAccount = object(json!({"metadata": {"name": "robot"}}));
    accounts.create(&PostParams::default(), &account).await.expect("created");
    let secrets = Api::<Secret>::namespaced(cluster.client.clone(), "default");
    let secret: Secret = object(json!({
        "metadata": {"name": "robot-token", "annotations": {"kubernetes.io/service-account.name": "robot"}},
        "type": "kubernetes.io/service-account-token",
    }));
    secrets.create(&PostParams::default(), &secret).await.expect("created");
    let token = until("the token", || async {
        secrets.get("robot-token").await.expect("there").data?.get("token").cloned()
    })
    .await;
    let review: k8s_openapi::api::authentication::v1::TokenReview =
        object(json!({"spec": {"token": String::from_utf8(token.0).expect("text")}}));
    let api = Api::all(cluster.client.clone());
    let status =
        api.create(&PostParams::default(), &review).await.expect("reviewed").status.unwrap_or_default();
    assert_eq!(status.authenticated, Some(true), "{:?}", status.error);
    let user = status.user.unwrap_or_default();
    assert_eq!(user.username.as_deref(), Some("system:serviceaccount:default:robot"));
    accounts.delete("robot", &DeleteParams::default()).await.expect("deleted");
    until("the end of the secret", || async {
        secrets.get_opt("robot-token").await.expect("asked").is_none().then_some(())
    })
    .await;
}
