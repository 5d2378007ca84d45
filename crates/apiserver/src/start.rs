//! From a configuration and a store to a server: keys and certificates, the hooks, the objects that every cluster has, and
//! the administrator's kubeconfig.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use store::Store;

use crate::authn::AnyCertificate;
use crate::server::{Connector, Error};
use crate::transform::{AtRest, Encryption, EncryptionError};
use crate::{Access, ApiServer, Config, aggregation, bootstrap, publish};

/// Starts a server: certificates and `admin.kubeconfig` are made in the data directory, the built-in objects in the store.
/// It answers once [`ApiServer::serve`] runs; in-process clients are answered at once.
pub async fn start(config: Config, store: Store) -> Result<ApiServer, Error> {
    let pki = pki::ClusterPki::load_or_create(config.data_dir.join("pki")).map_err(pki_error)?;
    let tls = Arc::new(tls(&config, &pki)?);
    let connector = Arc::new(connector(&config, &pki)?);
    let key_file = config.data_dir.join("pki").join("encryption.key");
    let mut access = Access::new(pki.clone(), &config.cluster_domain, &key_file)?;
    if let Some((path, reload)) = &config.encryption {
        let own = AtRest::load_or_create(&key_file).map_err(EncryptionError::from)?;
        let encryption = Arc::new(Encryption::load(path, own).await?);
        if *reload {
            tokio::spawn(Encryption::follow(Arc::downgrade(&encryption)));
        }
        access = access.with_transform(encryption);
    }
    let access = access.configure(&config.access, config.anonymous)?;
    let trust = access.trust();
    let data_dir = config.data_dir.clone();
    let host = config.advertise.first().copied().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let server = ApiServer::assemble(config, store, Some(tls), Some(connector), |cluster| {
        let assembled = access.assemble(cluster)?;
        Ok((assembled.hooks, Some(assembled.tokens)))
    })
    .await?;
    let url = format!("https://{}", std::net::SocketAddr::new(host, server.address().port()));
    let steps = &server.inner().post_start;
    BOOTSTRAPPED.iter().for_each(|step| steps.expect(step));
    steps.expect("bootstrap-controller");
    AGGREGATED.iter().for_each(|step| steps.expect(step));
    let features = server.inner().config.features;
    bootstrap::ensure(&server.cluster(), &pki, &url, features).await.map_err(Error::Bootstrap)?;
    crate::authn::track_legacy_tokens(&server.cluster()).await.map_err(Error::Bootstrap)?;
    BOOTSTRAPPED.iter().for_each(|step| steps.done(step));
    publish::ensure(server.inner(), &server.cluster(), server.address().port())
        .await
        .map_err(Error::Bootstrap)?;
    steps.done("bootstrap-controller");
    aggregate(&server, &pki, trust).await?;
    AGGREGATED.iter().for_each(|step| steps.done(step));
    let admin = pki.stored_client("admin", "admin", &["system:masters".to_owned()]).map_err(pki_error)?;
    let kubeconfig = pki.kubeconfig("carrack", &url, &admin);
    pki::files::write(&data_dir.join("admin.kubeconfig"), kubeconfig.as_bytes()).map_err(pki_error)?;
    Ok(server)
}

/// The reference's names of what is done once the built-in objects are there.
const BOOTSTRAPPED: [&str; 5] = [
    "priority-and-fairness-config-producer",
    "rbac/bootstrap-roles",
    "scheduling/bootstrap-system-priority-classes",
    "start-cluster-authentication-info-controller",
    "start-system-namespaces-controller",
];

/// The same of what is done once the aggregation layer stands.
const AGGREGATED: [&str; 5] = [
    "apiservice-discovery-controller",
    "apiservice-registration-controller",
    "apiservice-status-local-available-controller",
    "apiservice-status-remote-available-controller",
    "kube-apiserver-autoregistration",
];

/// Sets the aggregation layer up: as whom the server speaks to extension servers, whom these shall trust, and the local
/// APIServices.
async fn aggregate(
    server: &ApiServer,
    pki: &pki::ClusterPki,
    trust: aggregation::TrustMap,
) -> Result<(), Error> {
    let aggregation = &server.inner().aggregation;
    let name = crate::authn::FRONT_PROXY_NAMES[0];
    aggregation
        .identify(identity(&pki.stored_front_proxy_client("front-proxy-client", name).map_err(pki_error)?)?);
    *aggregation.own.lock() = (Ipv4Addr::LOCALHOST.to_string(), server.address().port());
    *aggregation.trust.lock() = trust.clone();
    let cluster = server.cluster();
    aggregation::ensure_trust(&cluster, &trust).await.map_err(Error::Bootstrap)?;
    let rows = server.inner().registry.rows().clone();
    aggregation::ensure(&cluster, &rows, true).await.map_err(Error::Bootstrap)?;
    aggregation.refresh(&cluster);
    Ok(())
}

fn pki_error(error: pki::Error) -> Error {
    Error::Pki(error.to_string())
}

/// The first usable address of a range: where the `kubernetes` Service is.
pub fn first_address(range: &IpNet) -> IpAddr {
    match range.network() {
        IpAddr::V4(base) => IpAddr::V4(Ipv4Addr::from_bits(base.to_bits().saturating_add(1))),
        IpAddr::V6(base) => IpAddr::V6(Ipv6Addr::from_bits(base.to_bits().saturating_add(1))),
    }
}

fn identity(
    identity: &pki::Identity,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), Error> {
    let certificates: Result<Vec<_>, _> =
        CertificateDer::pem_slice_iter(identity.cert_pem.as_bytes()).collect();
    let certificates = certificates.map_err(|e| Error::Pki(e.to_string()))?;
    let key =
        PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes()).map_err(|e| Error::Pki(e.to_string()))?;
    Ok((certificates, key))
}

fn tls(config: &Config, pki: &pki::ClusterPki) -> Result<ServerConfig, Error> {
    // The first name is the subject's; that of the CA (`kubernetes`) would make the certificate look self-signed.
    let mut names = vec!["kube-apiserver".to_owned()];
    names.extend(pki::apiserver_names(&config.cluster_domain));
    names.extend(config.names.iter().cloned());
    let mut addresses = vec![IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    addresses.extend(config.service_cidrs.iter().map(first_address));
    for address in &config.advertise {
        if !addresses.contains(address) {
            addresses.push(*address);
        }
    }
    let (chain, key) = identity(&pki.stored_server("apiserver", &names, &addresses).map_err(pki_error)?)?;
    let verifier = AnyCertificate::new(&[pki.ca.cert_der(), pki.front_proxy_ca.cert_der()])
        .map_err(|e| Error::Pki(e.to_string()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let mut tls = builder
        .map_err(|e| Error::Pki(e.to_string()))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(|e| Error::Pki(e.to_string()))?;
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(tls)
}

/// How kubelets are reached: with the server's client certificate, trusting the cluster's CA.
fn connector(config: &Config, pki: &pki::ClusterPki) -> Result<Connector, Error> {
    let groups = ["system:masters".to_owned()];
    let client = pki
        .stored_client("apiserver-kubelet-client", "kube-apiserver-kubelet-client", &groups)
        .map_err(pki_error)?;
    let (chain, key) = identity(&client)?;
    let mut authorities = pki.ca.cert_pem();
    if let Some(path) = &config.kubelet_authorities {
        let more = std::fs::read_to_string(path)
            .map_err(|e| Error::Pki(format!("--kubelet-certificate-authority {}: {e}", path.display())))?;
        authorities.push('\n');
        authorities.push_str(&more);
    }
    Connector::new(authorities.as_bytes(), &(chain, key), config.kubelet_insecure)
}
