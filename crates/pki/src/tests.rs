//! Certificates are judged by rustls, as a peer would judge them.

use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use time::{Duration, OffsetDateTime};

use crate::*;

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn roots(ca: &Authority) -> Arc<rustls::RootCertStore> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from(ca.cert_der().to_vec())).expect("a root");
    Arc::new(roots)
}

fn server_accepted(ca: &Authority, identity: &Identity, name: &str) -> bool {
    let verifier =
        WebPkiServerVerifier::builder_with_provider(roots(ca), provider()).build().expect("verifier");
    let cert = CertificateDer::from(certificate_der(&identity.cert_pem).expect("pem"));
    let name = ServerName::try_from(name.to_owned()).expect("name");
    verifier.verify_server_cert(&cert, &[], &name, &[], UnixTime::now()).is_ok()
}

fn client_accepted(ca: &Authority, identity: &Identity) -> bool {
    let verifier =
        WebPkiClientVerifier::builder_with_provider(roots(ca), provider()).build().expect("verifier");
    let cert = CertificateDer::from(certificate_der(&identity.cert_pem).expect("pem"));
    verifier.verify_client_cert(&cert, &[], UnixTime::now()).is_ok()
}

#[test]
fn serving_certificate_holds_for_its_names_only() {
    let dir = tempfile::tempdir().expect("dir");
    let pki = ClusterPki::load_or_create(dir.path()).expect("pki");
    let ips: Vec<IpAddr> = vec!["10.96.0.1".parse().expect("ip"), "fd00:10:96::1".parse().expect("ip")];
    let identity = pki.issue_server(&apiserver_names("cluster.local"), &ips).expect("issue");
    for name in ["kubernetes.default.svc", "localhost", "10.96.0.1", "fd00:10:96::1"] {
        assert!(server_accepted(&pki.ca, &identity, name), "{name}");
    }
    assert!(!server_accepted(&pki.ca, &identity, "example.org"));
    assert!(!server_accepted(&pki.ca, &identity, "10.96.0.2"));
    assert!(!server_accepted(&pki.front_proxy_ca, &identity, "localhost"));
    let der = certificate_der(&identity.cert_pem).expect("der");
    let cert = certificate::parse(&der).expect("parse");
    // OpenSSL takes a certificate that has its issuer's name for self-signed, whatever its key.
    assert_ne!(cert.subject().as_raw(), cert.issuer().as_raw());
    assert!(!client_accepted(&pki.ca, &identity), "a serving certificate is no client certificate");
}

#[test]
fn client_certificates_belong_to_one_authority() {
    let dir = tempfile::tempdir().expect("dir");
    let pki = ClusterPki::load_or_create(dir.path()).expect("pki");
    let admin = pki.issue_client("admin", &["system:masters".into(), "second".into()]).expect("issue");
    assert!(client_accepted(&pki.ca, &admin));
    assert!(!client_accepted(&pki.front_proxy_ca, &admin));
    let proxy = pki.issue_front_proxy_client("front-proxy-client").expect("issue");
    assert!(client_accepted(&pki.front_proxy_ca, &proxy));
    assert!(!client_accepted(&pki.ca, &proxy));
    let der = certificate_der(&admin.cert_pem).expect("der");
    let cert = certificate::parse(&der).expect("parse");
    let groups: Vec<_> = cert.subject().iter_organization().map(|o| o.as_str().expect("text")).collect();
    assert_eq!(groups, ["system:masters", "second"]);
}

#[test]
fn a_second_start_finds_the_same_files() {
    let dir = tempfile::tempdir().expect("dir");
    let names = ["a.example".to_owned()];
    let first = ClusterPki::load_or_create(dir.path()).expect("first");
    let served = first.stored_server("apiserver", &names, &[]).expect("server");
    let admin = first.stored_client("admin", "admin", &["system:masters".into()]).expect("client");
    let again = ClusterPki::load_or_create(dir.path()).expect("again");
    assert_eq!(first.ca.cert_der(), again.ca.cert_der());
    assert_eq!(first.service_account.pkcs8(), again.service_account.pkcs8());
    assert_eq!(served.cert_pem, again.stored_server("apiserver", &names, &[]).expect("server").cert_pem);
    assert_eq!(
        admin.cert_pem,
        again.stored_client("admin", "admin", &["system:masters".into()]).expect("client").cert_pem
    );
    // Another name or another group is another certificate.
    let wider = ["a.example".to_owned(), "b.example".to_owned()];
    let renewed = again.stored_server("apiserver", &wider, &[]).expect("server");
    assert!(server_accepted(&again.ca, &renewed, "b.example"));
    assert_ne!(admin.cert_pem, again.stored_client("admin", "admin", &[]).expect("client").cert_pem);
    for entry in std::fs::read_dir(dir.path()).expect("list") {
        let entry = entry.expect("entry");
        let mode = entry.metadata().expect("metadata").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{:?}", entry.file_name());
    }
}

#[test]
fn a_certificate_near_its_end_is_renewed() {
    let dir = tempfile::tempdir().expect("dir");
    let pki = ClusterPki::load_or_create(dir.path()).expect("pki");
    let leaf = Leaf {
        common_name: "u",
        organizations: &[],
        names: &AltNames::default(),
        usages: &[Usage::ClientAuth],
        lifetime: Duration::days(10),
    };
    let old = pki.ca.issue(&leaf, OffsetDateTime::now_utc()).expect("issue");
    files::write(&dir.path().join("u.crt"), old.cert_pem.as_bytes()).expect("write");
    files::write(&dir.path().join("u.key"), old.key_pem.as_bytes()).expect("write");
    let new = pki.stored_client("u", "u", &[]).expect("stored");
    assert_ne!(old.cert_pem, new.cert_pem);
    assert_eq!(new.cert_pem, pki.stored_client("u", "u", &[]).expect("stored").cert_pem);
}

#[test]
fn lost_and_foreign_keys_are_refused() {
    let dir = tempfile::tempdir().expect("dir");
    ClusterPki::load_or_create(dir.path()).expect("pki");
    std::fs::remove_file(dir.path().join("ca.key")).expect("remove");
    assert!(matches!(ClusterPki::load_or_create(dir.path()), Err(Error::KeyMissing { .. })));
    let foreign = Key::generate().expect("key").to_pem();
    files::write(&dir.path().join("ca.key"), foreign.as_bytes()).expect("write");
    assert!(matches!(ClusterPki::load_or_create(dir.path()), Err(Error::Malformed { .. })));
    // A key without a certificate is half a creation: both are made anew.
    std::fs::remove_file(dir.path().join("ca.crt")).expect("remove");
    ClusterPki::load_or_create(dir.path()).expect("pki");
}

#[test]
fn a_leaf_never_outlives_its_authority() {
    let now = OffsetDateTime::now_utc();
    let ca = Authority::generate("short", Duration::days(2), now).expect("ca");
    let leaf = Leaf {
        common_name: "u",
        organizations: &[],
        names: &AltNames::default(),
        usages: &[Usage::ClientAuth],
        lifetime: Duration::days(10),
    };
    let identity = ca.issue(&leaf, now).expect("issue");
    let der = certificate_der(&identity.cert_pem).expect("der");
    let end = certificate::parse(&der).expect("parse").validity().not_after.to_datetime();
    assert!(end <= now + Duration::days(2));
}

/// A request for CN `system:node:n`, O `system:nodes`, with one name and one address, signed with `key`.
fn request(key: &Key, signer: &Key) -> String {
    let attribute =
        |arcs: &[u64], text: &str| der::set(&[&der::sequence(&[&der::oid(arcs), &der::utf8(text)])]);
    let subject = der::sequence(&[
        &attribute(&[2, 5, 4, 10], "system:nodes"),
        &attribute(&[2, 5, 4, 3], "system:node:n"),
    ]);
    let names = der::sequence(&[&der::implicit(2, b"n.example"), &der::implicit(7, &[10, 0, 0, 7])]);
    let extension = der::sequence(&[&der::oid(&[2, 5, 29, 17]), &der::octets(&names)]);
    let asked = der::sequence(&[
        &der::oid(&[1, 2, 840, 113549, 1, 9, 14]),
        &der::set(&[&der::sequence(&[&extension])]),
    ]);
    let info = der::sequence(&[&der::integer(&[0]), &subject, &key.public_info(), &der::context(0, &asked)]);
    let algorithm = der::sequence(&[&der::oid(&[1, 2, 840, 10045, 4, 3, 2])]);
    let signature = signer.sign(&info).expect("sign");
    let whole = der::sequence(&[&info, &algorithm, &der::bits(0, &signature)]);
    pem_block("CERTIFICATE REQUEST", &whole)
}

#[test]
fn signing_requests_are_read_checked_and_signed() {
    let dir = tempfile::tempdir().expect("dir");
    let pki = ClusterPki::load_or_create(dir.path()).expect("pki");
    let key = Key::generate().expect("key");
    let parsed = Request::from_pem(&request(&key, &key)).expect("request");
    assert_eq!(parsed.common_name, "system:node:n");
    assert_eq!(parsed.organizations, ["system:nodes"]);
    assert_eq!(parsed.names.dns, ["n.example"]);
    assert_eq!(parsed.names.ips, ["10.0.0.7".parse::<IpAddr>().expect("ip")]);
    let usages = [Usage::DigitalSignature, Usage::ServerAuth, Usage::ClientAuth];
    let cert_pem = pki.sign(&parsed, &usages, Duration::hours(1)).expect("sign");
    let identity = Identity { cert_pem, key_pem: key.to_pem() };
    assert!(server_accepted(&pki.ca, &identity, "n.example"));
    assert!(client_accepted(&pki.ca, &identity));
    // Signed by another key than the one it names.
    let other = Key::generate().expect("key");
    assert!(Request::from_pem(&request(&key, &other)).is_err());
    assert!(
        Request::from_pem("-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n")
            .is_err()
    );
}

#[test]
fn kubeconfig_quotes_its_names() {
    let identity = Identity { cert_pem: "c".into(), key_pem: "k".into() };
    let text = kubeconfig("my \"cluster\"", "https://127.0.0.1:6443", "ca", &identity);
    assert!(text.contains("current-context: \"my \\\"cluster\\\"\"\n"));
    assert!(text.contains("certificate-authority-data: Y2E=\n"));
    assert!(text.contains("    server: \"https://127.0.0.1:6443\"\n"));
}
