//! The kubelet's certificates, asked for by CertificateSigningRequests and renewed in time: the one that it shows to the API server
//! (from a bootstrap token on), and the one that it serves with.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use http::{Request, Response};
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;
use kube::client::Body;
use kube::runtime::watcher::watch_object;
use kube::{Api, Client};
use parking_lot::RwLock;
use tokio_util::sync::CancellationToken;

use crate::error::Error;
use crate::tls::{self, Served};

const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const SERVING_SIGNER: &str = "kubernetes.io/kubelet-serving";
/// How long an approval may take before another request is made.
const PATIENCE: Duration = Duration::from_secs(15 * 60);
const RETRY: Duration = Duration::from_secs(10);

/// A certificate chain and its key, PEM.
#[derive(Clone)]
struct Pair {
    chain: String,
    key: String,
    /// When it came here; its life may begin earlier, for clocks that are slow.
    since: Timestamp,
}

impl Pair {
    /// From one file, as upstream's kubelet keeps both.
    fn read(file: &Path) -> Option<Self> {
        let text = std::fs::read_to_string(file).ok()?;
        let at = text.find("-----BEGIN PRIVATE KEY").or_else(|| text.find("-----BEGIN EC PRIVATE KEY"))?;
        let (chain, key) = text.split_at(at);
        let written = std::fs::metadata(file).and_then(|data| data.modified()).ok();
        let since = written.and_then(|time| Timestamp::try_from(time).ok()).unwrap_or(Timestamp::MIN);
        Some(Pair { chain: chain.to_owned(), key: key.to_owned(), since })
    }

    fn write(&self, file: &Path) -> std::io::Result<()> {
        use std::io::Write;
        use std::os::unix::fs::OpenOptionsExt;
        if let Some(dir) = file.parent() {
            std::fs::create_dir_all(dir)?;
        }
        let partial = file.with_extension("partial");
        let mut out =
            std::fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(&partial)?;
        out.write_all(format!("{}\n{}", self.chain.trim_end(), self.key).as_bytes())?;
        out.sync_all()?;
        std::fs::rename(partial, file)
    }

    /// When it is to be renewed: between seven and nine tenths of its life here, so that not all nodes come at once.
    fn renew_at(&self) -> Option<Timestamp> {
        let (from, until) = tls::lifetime(&self.chain)?;
        // Counted from a backdated beginning, the time for a short life would be past already.
        let from = from.max(self.since).min(until);
        let life = until.duration_since(from).as_secs_f64();
        let part = rand::random_range(0.7..0.9);
        from.checked_add(jiff::SignedDuration::from_secs_f64(life * part)).ok()
    }

    fn is_good(&self) -> bool {
        tls::lifetime(&self.chain).is_some_and(|(_, until)| until > Timestamp::now())
    }
}

/// What to ask for.
struct Wish<'a> {
    node: &'a str,
    signer: &'static str,
    usages: &'static [&'static str],
    names: pki::AltNames,
}

/// Makes a request and waits for its certificate.
async fn request(client: &Client, wish: &Wish<'_>) -> Result<Pair, String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let key = pki::Key::generate().map_err(|error| text(&error))?;
    let organizations = ["system:nodes".to_owned()];
    let name = format!("system:node:{}", wish.node);
    let pem = pki::Request::create(&key, &name, &organizations, &wish.names).map_err(|error| text(&error))?;
    let object = CertificateSigningRequest {
        metadata: ObjectMeta { generate_name: Some("csr-".to_owned()), ..ObjectMeta::default() },
        spec: CertificateSigningRequestSpec {
            request: ByteString(pem.into_bytes()),
            signer_name: wish.signer.to_owned(),
            usages: Some(wish.usages.iter().map(|usage| (*usage).to_owned()).collect()),
            ..CertificateSigningRequestSpec::default()
        },
        status: None,
    };
    let api: Api<CertificateSigningRequest> = Api::all(client.clone());
    let made = api.create(&PostParams::default(), &object).await.map_err(|error| text(&error))?;
    let name = made.metadata.name.unwrap_or_default();
    let issued = async {
        let mut changes = std::pin::pin!(watch_object(api.clone(), &name));
        while let Some(next) = changes.next().await {
            let Ok(Some(found)) = next else { continue };
            let status = found.status.unwrap_or_default();
            let refused =
                status.conditions.iter().flatten().find(|c| c.type_ == "Denied" || c.type_ == "Failed");
            if let Some(condition) = refused {
                let why = condition.message.clone().unwrap_or_default();
                return Err(format!("request {name} is {}: {why}", condition.type_.to_lowercase()));
            }
            if let Some(certificate) = status.certificate.filter(|certificate| !certificate.0.is_empty()) {
                return String::from_utf8(certificate.0).map_err(|error| text(&error));
            }
        }
        Err(format!("request {name} cannot be followed"))
    };
    let chain = tokio::time::timeout(PATIENCE, issued)
        .await
        .map_err(|_| format!("request {name} was not approved within {} s", PATIENCE.as_secs()))??;
    Ok(Pair { chain, key: key.to_pem(), since: Timestamp::now() })
}

/// Asks until there is a certificate, with the client of each moment.
async fn insist(client: impl Fn() -> Client, wish: &Wish<'_>) -> Pair {
    loop {
        match request(&client(), wish).await {
            Ok(pair) => return pair,
            Err(error) => tracing::warn!(signer = wish.signer, error, "cannot get a certificate yet"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn until(time: Timestamp) {
    // A long sleep does not count the time that a machine is suspended.
    loop {
        let left = Duration::try_from(time.duration_since(Timestamp::now())).unwrap_or_default();
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.min(Duration::from_secs(60))).await;
    }
}

/// How a node gets its identity.
pub struct Join {
    /// The cluster, with the credentials to begin with.
    pub bootstrap: kube::Config,
    /// Where certificates are kept (`kubelet-client-current.pem`).
    pub cert_dir: PathBuf,
    pub node_name: String,
}

/// A client whose certificate is renewed in time, and the file it is kept in.
pub struct Joined {
    pub client: Client,
    pub certificate_file: PathBuf,
}

/// The client in use; a new certificate brings a new one, with connections of its own.
#[derive(Clone)]
struct Switch(Arc<RwLock<Client>>);

impl tower::Service<Request<Body>> for Switch {
    type Response = Response<Body>;
    type Error = kube::Error;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let client = self.0.read().clone();
        Box::pin(async move { client.send(request).await })
    }
}

fn client_with(base: &kube::Config, pair: &Pair) -> Result<Client, kube::Error> {
    use base64::Engine;
    let encode = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    let mut config = base.clone();
    config.auth_info = kube::config::AuthInfo {
        client_certificate_data: Some(encode(&pair.chain)),
        client_key_data: Some(encode(&pair.key).into()),
        ..kube::config::AuthInfo::default()
    };
    Client::try_from(config)
}

fn client_wish(node: &str) -> Wish<'_> {
    Wish {
        node,
        signer: CLIENT_SIGNER,
        usages: &["digital signature", "client auth"],
        names: pki::AltNames::default(),
    }
}

/// Gets the node's client certificate, by the bootstrap credentials unless there is a good one, and keeps it renewed until
/// `shutdown`.
pub async fn join(join: Join, shutdown: CancellationToken) -> Result<Joined, Error> {
    let file = join.cert_dir.join("kubelet-client-current.pem");
    let keep = |pair: &Pair| {
        pair.write(&file)
            .map_err(|source| Error::Io { what: format!("cannot write {}", file.display()), source })
    };
    let bootstrap = Client::try_from(join.bootstrap.clone())?;
    let pair = match Pair::read(&file).filter(Pair::is_good) {
        Some(pair) => pair,
        None => {
            let wish = client_wish(&join.node_name);
            let pair = tokio::select! {
                pair = insist(|| bootstrap.clone(), &wish) => pair,
                () = shutdown.cancelled() => return Err(Error::Config("stopped before the node had a certificate".into())),
            };
            keep(&pair)?;
            tracing::info!(file = %file.display(), "the node has its client certificate");
            pair
        }
    };
    let current = Arc::new(RwLock::new(client_with(&join.bootstrap, &pair)?));
    let client = Client::new(Switch(current.clone()), join.bootstrap.default_namespace.clone());
    let (base, node, path) = (join.bootstrap, join.node_name, file.clone());
    let own = client.clone();
    tokio::spawn(async move {
        let renewing = async {
            let mut pair = pair;
            loop {
                until(pair.renew_at().unwrap_or_else(|| Timestamp::now() + RETRY)).await;
                // A certificate that ended while nothing could be reached opens no door any more.
                let client = || if pair.is_good() { own.clone() } else { bootstrap.clone() };
                let fresh = insist(client, &client_wish(&node)).await;
                pair = fresh;
                match client_with(&base, &pair) {
                    Ok(fresh) => *current.write() = fresh,
                    Err(error) => tracing::error!(%error, "the new client certificate cannot be used"),
                }
                if let Err(error) = pair.write(&path) {
                    tracing::error!(%error, path = %path.display(), "cannot keep the new client certificate");
                }
                tracing::info!("the node's client certificate was renewed");
            }
        };
        tokio::select! {
            () = renewing => {}
            () = shutdown.cancelled() => {}
        }
    });
    Ok(Joined { client, certificate_file: file })
}

/// Keeps the serving certificate, from a request of its own, until shutdown (`serverTLSBootstrap`).
pub(crate) async fn serve(
    client: Client,
    node: String,
    addresses: Vec<IpAddr>,
    file: PathBuf,
    served: Arc<Served>,
    shutdown: CancellationToken,
) {
    let keeping = async {
        let mut pair = Pair::read(&file).filter(Pair::is_good);
        loop {
            let current = match pair.take() {
                Some(pair) => pair,
                None => {
                    let wish = Wish {
                        node: &node,
                        signer: SERVING_SIGNER,
                        usages: &["digital signature", "server auth"],
                        names: pki::AltNames {
                            dns: vec![node.clone()],
                            ips: addresses.clone(),
                            ..pki::AltNames::default()
                        },
                    };
                    let fresh = insist(|| client.clone(), &wish).await;
                    if let Err(error) = fresh.write(&file) {
                        tracing::error!(%error, path = %file.display(), "cannot keep the serving certificate");
                    }
                    fresh
                }
            };
            match served.set(&current.chain, &current.key) {
                Ok(()) => tracing::info!("the node's API serves with a certificate of the cluster"),
                Err(error) => tracing::error!(%error, "the serving certificate cannot be used"),
            }
            until(current.renew_at().unwrap_or_else(|| Timestamp::now() + RETRY)).await;
        }
    };
    tokio::select! {
        () = keeping => {}
        () = shutdown.cancelled() => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(seconds: i64) -> Pair {
        let now = std::time::SystemTime::now().into();
        let life = time::Duration::seconds(seconds + 360_000);
        let authority = pki::Authority::generate("ca", life, now).unwrap();
        let key = pki::Key::generate().unwrap();
        let pem =
            pki::Request::create(&key, "system:node:n", &["system:nodes".into()], &pki::AltNames::default());
        let request = pki::Request::from_pem(&pem.unwrap()).unwrap();
        let chain = authority.sign(&request, &["digital signature", "client auth"], seconds).unwrap();
        Pair { chain, key: key.to_pem(), since: Timestamp::now() }
    }

    #[test]
    fn a_pair_is_kept_in_one_private_file() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pki/kubelet-client-current.pem");
        let pair = pair(36_000);
        pair.write(&file).unwrap();
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        let read = Pair::read(&file).unwrap();
        assert!(read.is_good());
        assert_eq!(read.key, pair.key);
        Served::default().set(&read.chain, &read.key).unwrap();
        assert!(Pair::read(Path::new("/nowhere")).is_none());
    }

    #[test]
    fn renewal_comes_before_the_end() {
        let check = |pair: &Pair, from: Timestamp| {
            let (_, end) = tls::lifetime(&pair.chain).unwrap();
            let life = end.duration_since(from).as_secs_f64();
            for _ in 0..20 {
                let part = pair.renew_at().unwrap().duration_since(from).as_secs_f64() / life;
                assert!((0.69..0.91).contains(&part), "{part}");
            }
        };
        let long = pair(100 * 3600);
        check(&long, tls::lifetime(&long.chain).unwrap().0);
        // Its life begins minutes before it was made.
        let short = pair(60);
        check(&short, short.since);
    }
}
