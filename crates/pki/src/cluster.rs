//! The keys and certificates of one cluster, kept in one folder under the names that kubeadm uses.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use time::{Duration, OffsetDateTime};

use crate::{AltNames, Authority, Error, Identity, Key, Leaf, Request, Usage, certificate, files};

const AUTHORITY_LIFETIME: Duration = Duration::days(3650);
/// How long an issued certificate lives.
pub const LEAF_LIFETIME: Duration = Duration::days(365);
/// A stored certificate with less than this left is made anew at the next start.
const RENEW_BEFORE: Duration = Duration::days(90);

/// The cluster's authorities and its ServiceAccount signing key.
#[derive(Clone, Debug)]
pub struct ClusterPki {
    dir: PathBuf,
    /// Signs serving certificates and the certificates of clients.
    pub ca: Authority,
    /// Signs the client certificates of aggregating front proxies, and nothing else.
    pub front_proxy_ca: Authority,
    /// Signs ServiceAccount tokens.
    pub service_account: Key,
}

impl ClusterPki {
    /// Reads what is in the folder and makes what is missing.
    pub fn load_or_create(dir: impl Into<PathBuf>) -> Result<Self, Error> {
        Self::load_or_create_at(dir.into(), OffsetDateTime::now_utc())
    }

    fn load_or_create_at(dir: PathBuf, now: OffsetDateTime) -> Result<Self, Error> {
        files::make_dir(&dir)?;
        let ca = authority(&dir, "ca", "kubernetes-ca", now)?;
        let front_proxy_ca = authority(&dir, "front-proxy-ca", "front-proxy-ca", now)?;
        let service_account = signing_key(&dir)?;
        Ok(Self { dir, ca, front_proxy_ca, service_account })
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A certificate for a TLS server under these names and addresses; its CN is the first name.
    pub fn issue_server(&self, names: &[String], ips: &[IpAddr]) -> Result<Identity, Error> {
        self.issue_server_at(names, ips, OffsetDateTime::now_utc())
    }

    fn issue_server_at(
        &self,
        names: &[String],
        ips: &[IpAddr],
        now: OffsetDateTime,
    ) -> Result<Identity, Error> {
        let common_name = names.first().map_or("server", String::as_str);
        let leaf = Leaf {
            common_name,
            organizations: &[],
            names: &AltNames { dns: names.to_vec(), ips: ips.to_vec(), ..Default::default() },
            usages: &[Usage::DigitalSignature, Usage::KeyEncipherment, Usage::ServerAuth],
            lifetime: LEAF_LIFETIME,
        };
        self.ca.issue(&leaf, now)
    }

    /// A kubelet's serving certificate: `system:node:<name>` of `system:nodes`, as upstream's signer demands.
    pub fn issue_kubelet_server(&self, node: &str, ips: &[IpAddr]) -> Result<Identity, Error> {
        let leaf = Leaf {
            common_name: &format!("system:node:{node}"),
            organizations: &["system:nodes".to_owned()],
            names: &AltNames { dns: vec![node.to_owned()], ips: ips.to_vec(), ..Default::default() },
            usages: &[Usage::DigitalSignature, Usage::KeyEncipherment, Usage::ServerAuth],
            lifetime: LEAF_LIFETIME,
        };
        self.ca.issue(&leaf, OffsetDateTime::now_utc())
    }

    /// A certificate that makes its holder `user` of `groups`.
    pub fn issue_client(&self, user: &str, groups: &[String]) -> Result<Identity, Error> {
        issue_client(&self.ca, user, groups, OffsetDateTime::now_utc())
    }

    /// A certificate with which a front proxy vouches for the users that it names in request headers.
    pub fn issue_front_proxy_client(&self, user: &str) -> Result<Identity, Error> {
        issue_client(&self.front_proxy_ca, user, &[], OffsetDateTime::now_utc())
    }

    /// Signs a request with the cluster CA, in PEM. Whether it deserves it was decided before.
    pub fn sign(&self, request: &Request, usages: &[Usage], lifetime: Duration) -> Result<String, Error> {
        let leaf = Leaf {
            common_name: &request.common_name,
            organizations: &request.organizations,
            names: &request.names,
            usages,
            lifetime,
        };
        let der = self.ca.certify(&leaf, &request.public_info, OffsetDateTime::now_utc())?;
        Ok(crate::pem_block("CERTIFICATE", &der))
    }

    /// The server identity stored as `<name>.crt` and `<name>.key`, made anew when it is absent, near its end, of another
    /// authority, or lacks one of the names.
    pub fn stored_server(&self, name: &str, names: &[String], ips: &[IpAddr]) -> Result<Identity, Error> {
        let now = OffsetDateTime::now_utc();
        let wanted = |cert: &x509_parser::certificate::X509Certificate<'_>| has_names(cert, names, ips);
        self.stored(name, &self.ca, now, wanted, || self.issue_server_at(names, ips, now))
    }

    /// The client identity stored as `<name>.crt` and `<name>.key`, made anew when it is absent, near its end, of another
    /// authority or of another user.
    pub fn stored_client(&self, name: &str, user: &str, groups: &[String]) -> Result<Identity, Error> {
        let now = OffsetDateTime::now_utc();
        let wanted = |cert: &x509_parser::certificate::X509Certificate<'_>| has_subject(cert, user, groups);
        self.stored(name, &self.ca, now, wanted, || issue_client(&self.ca, user, groups, now))
    }

    /// The front proxy's client identity, stored as [`ClusterPki::stored_client`] does.
    pub fn stored_front_proxy_client(&self, name: &str, user: &str) -> Result<Identity, Error> {
        let now = OffsetDateTime::now_utc();
        let wanted = |cert: &x509_parser::certificate::X509Certificate<'_>| has_subject(cert, user, &[]);
        self.stored(name, &self.front_proxy_ca, now, wanted, || {
            issue_client(&self.front_proxy_ca, user, &[], now)
        })
    }

    /// A kubeconfig for this cluster.
    pub fn kubeconfig(&self, name: &str, server: &str, identity: &Identity) -> String {
        crate::kubeconfig(name, server, &self.ca.cert_pem(), identity)
    }

    fn stored(
        &self,
        name: &str,
        authority: &Authority,
        now: OffsetDateTime,
        wanted: impl Fn(&x509_parser::certificate::X509Certificate<'_>) -> bool,
        issue: impl FnOnce() -> Result<Identity, Error>,
    ) -> Result<Identity, Error> {
        let (cert_path, key_path) = paths(&self.dir, name);
        if let (Some(cert_pem), Some(key_pem)) = (files::read(&cert_path)?, files::read(&key_path)?) {
            let fits = || {
                let der = certificate::certificate_der(&cert_pem).ok()?;
                let cert = certificate::parse(&der).ok()?;
                let key = Key::from_pem(&key_pem).ok()?;
                let left = cert.validity().not_after.to_datetime() - now;
                let ca = certificate::parse(authority.cert_der()).ok()?;
                let good = left > RENEW_BEFORE
                    && cert.validity().not_before.to_datetime() <= now
                    && cert.public_key().subject_public_key.data.as_ref() == key.public_point()
                    && cert.verify_signature(Some(ca.public_key())).is_ok()
                    && wanted(&cert);
                good.then_some(())
            };
            if fits().is_some() {
                return Ok(Identity { cert_pem, key_pem });
            }
        }
        let identity = issue()?;
        files::write(&key_path, identity.key_pem.as_bytes())?;
        files::write(&cert_path, identity.cert_pem.as_bytes())?;
        Ok(identity)
    }
}

/// The names under which a cluster's API server is reached from inside.
pub fn apiserver_names(cluster_domain: &str) -> Vec<String> {
    let mut names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc"].map(String::from).to_vec();
    names.push(format!("kubernetes.default.svc.{cluster_domain}"));
    names.push("localhost".to_owned());
    names
}

fn paths(dir: &Path, name: &str) -> (PathBuf, PathBuf) {
    (dir.join(format!("{name}.crt")), dir.join(format!("{name}.key")))
}

fn issue_client(
    authority: &Authority,
    user: &str,
    groups: &[String],
    now: OffsetDateTime,
) -> Result<Identity, Error> {
    let leaf = Leaf {
        common_name: user,
        organizations: groups,
        names: &AltNames::default(),
        usages: &[Usage::DigitalSignature, Usage::KeyEncipherment, Usage::ClientAuth],
        lifetime: LEAF_LIFETIME,
    };
    authority.issue(&leaf, now)
}

fn authority(dir: &Path, file: &str, common_name: &str, now: OffsetDateTime) -> Result<Authority, Error> {
    let (cert_path, key_path) = paths(dir, file);
    match (files::read(&cert_path)?, files::read(&key_path)?) {
        (Some(cert), Some(key)) => Authority::from_pem(&cert, &key).map_err(|e| Error::Malformed {
            path: cert_path,
            what: "certificate authority",
            reason: e.to_string(),
        }),
        (Some(_), None) => Err(Error::KeyMissing { cert: cert_path, key: key_path }),
        // A key alone is what a crash between the two writes leaves: nobody has seen its certificate.
        (None, _) => {
            let made = Authority::generate(common_name, AUTHORITY_LIFETIME, now)?;
            files::write(&key_path, made.key().to_pem().as_bytes())?;
            files::write(&cert_path, made.cert_pem().as_bytes())?;
            Ok(made)
        }
    }
}

fn signing_key(dir: &Path) -> Result<Key, Error> {
    let (key_path, public_path) = (dir.join("sa.key"), dir.join("sa.pub"));
    let key = match files::read(&key_path)? {
        Some(text) => Key::from_pem(&text).map_err(|e| Error::Malformed {
            path: key_path.clone(),
            what: "ServiceAccount signing key",
            reason: e.to_string(),
        })?,
        None => {
            let key = Key::generate()?;
            files::write(&key_path, key.to_pem().as_bytes())?;
            key
        }
    };
    let public = key.public_pem();
    if files::read(&public_path)?.as_deref() != Some(&public) {
        files::write(&public_path, public.as_bytes())?;
    }
    Ok(key)
}

fn has_names(cert: &x509_parser::certificate::X509Certificate<'_>, names: &[String], ips: &[IpAddr]) -> bool {
    use x509_parser::extensions::GeneralName;
    let Ok(Some(san)) = cert.subject_alternative_name() else { return names.is_empty() && ips.is_empty() };
    let present = &san.value.general_names;
    let ip_bytes = |ip: &IpAddr| match ip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    names.iter().all(|n| present.iter().any(|p| matches!(p, GeneralName::DNSName(d) if d == n)))
        && ips.iter().all(|ip| {
            let bytes = ip_bytes(ip);
            present.iter().any(|p| matches!(p, GeneralName::IPAddress(b) if *b == bytes))
        })
}

fn has_subject(cert: &x509_parser::certificate::X509Certificate<'_>, user: &str, groups: &[String]) -> bool {
    let name = cert.subject();
    let common: Vec<_> = name.iter_common_name().filter_map(|v| v.as_str().ok()).collect();
    let organizations: Vec<_> = name.iter_organization().filter_map(|v| v.as_str().ok()).collect();
    common == [user] && organizations == groups
}
