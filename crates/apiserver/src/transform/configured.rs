//! Encryption as a configuration file says: the first provider of a resource seals, all of them open. The file can be
//! exchanged while the server runs. What the server's own key sealed stays readable.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use sha2::{Digest, Sha256};

use super::cipher::Cipher;
use super::config::{self, ProviderConfig, names};
use super::kms::{Kms, KmsError};
use super::{AtRest, KeyError};
use crate::config_file::FileError;
use crate::metrics::metrics;
use crate::{Status, Transform};

/// Everything that upstream seals begins with this.
const SEALED: &[u8] = b"k8s:enc:";
/// How long a plug-in may take to become well when the server starts.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often the file is looked at.
const LOOK: Duration = Duration::from_secs(5);

/// Why a configuration cannot be put in force.
#[derive(Debug, thiserror::Error)]
pub enum EncryptionError {
    #[error("the encryption configuration is not usable")]
    File(#[from] FileError),
    #[error(transparent)]
    Kms(#[from] KmsError),
    #[error(transparent)]
    Key(#[from] KeyError),
}

enum Provider {
    Identity,
    Keyed(Vec<u8>, Box<Cipher>),
    Kms(Arc<Kms>),
}

impl Provider {
    fn prefix(&self) -> &[u8] {
        match self {
            Self::Identity => b"",
            Self::Keyed(prefix, _) => prefix,
            Self::Kms(kms) => kms.prefix(),
        }
    }

    /// How it is called in the metrics.
    fn label(&self) -> &str {
        std::str::from_utf8(self.prefix()).ok().filter(|p| !p.is_empty()).unwrap_or("identity")
    }

    fn takes(&self, sealed: &[u8]) -> bool {
        match self {
            Self::Identity => !sealed.starts_with(SEALED),
            _ => sealed.starts_with(self.prefix()),
        }
    }
}

struct Rule {
    resources: Vec<String>,
    providers: Vec<Provider>,
}

struct InForce {
    rules: Vec<Rule>,
    plugins: Vec<Arc<Kms>>,
    /// The tasks that look after the plug-ins end with them.
    _watchers: tokio::task::JoinSet<()>,
}

impl InForce {
    fn new(rules: Vec<config::Rule>) -> Result<Self, EncryptionError> {
        let mut plugins = Vec::new();
        let mut own = Vec::new();
        for rule in rules {
            let mut providers = Vec::new();
            for provider in rule.providers {
                providers.push(match provider {
                    ProviderConfig::Identity => Provider::Identity,
                    ProviderConfig::Keyed(prefix, cipher) => Provider::Keyed(prefix, Box::new(cipher)),
                    ProviderConfig::Kms(config) => {
                        let kms = Arc::new(Kms::new(&config)?);
                        plugins.push(kms.clone());
                        Provider::Kms(kms)
                    }
                });
            }
            own.push(Rule { resources: rule.resources, providers });
        }
        Ok(Self { rules: own, plugins, _watchers: tokio::task::JoinSet::new() })
    }

    /// Waits until all plug-ins are well, and has them looked after from then on.
    async fn ready(mut self, patience: Duration) -> Result<Self, EncryptionError> {
        let deadline = Instant::now() + patience;
        for kms in &self.plugins {
            while let Err(error) = kms.check().await {
                if Instant::now() >= deadline {
                    return Err(error.into());
                }
                tracing::warn!("waiting for a KMS plug-in: {error}");
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            self._watchers.spawn(kms.clone().run());
        }
        Ok(self)
    }

    fn providers(&self, group: &str, resource: &str) -> &[Provider] {
        let rule =
            self.rules.iter().find(|rule| rule.resources.iter().any(|own| names(own, group, resource)));
        rule.map_or(&[], |rule| &rule.providers)
    }
}

/// The configuration in force.
pub struct Encryption {
    path: PathBuf,
    now: ArcSwap<InForce>,
    own: AtRest,
}

fn fingerprint(path: &Path) -> Option<[u8; 32]> {
    std::fs::read(path).ok().map(|bytes| Sha256::digest(bytes).into())
}

impl Encryption {
    /// Reads the file and waits for its plug-ins. `own` opens what was sealed before there was a file.
    pub async fn load(path: &Path, own: AtRest) -> Result<Self, EncryptionError> {
        let in_force = InForce::new(config::load(path)?)?.ready(PATIENCE).await?;
        Ok(Self { path: path.to_owned(), now: ArcSwap::from_pointee(in_force), own })
    }

    /// The plug-ins and how they are.
    pub fn plugins(&self) -> Vec<(String, Result<(), KmsError>)> {
        self.now.load().plugins.iter().map(|kms| (kms.name().to_owned(), kms.health())).collect()
    }

    /// Reads the file again. What is wrong with it changes nothing.
    pub async fn reload(&self) -> Result<(), EncryptionError> {
        let in_force = InForce::new(config::load(&self.path)?)?.ready(Duration::ZERO).await?;
        self.now.store(Arc::new(in_force));
        Ok(())
    }

    /// Puts every change of the file in force. The file is looked at instead of watched: it may lie on any kind of mount and
    /// be exchanged through a symbolic link. Runs while somebody else holds the configuration.
    pub async fn follow(own: Weak<Self>) {
        let Some(path) = own.upgrade().map(|own| own.path.clone()) else { return };
        let mut seen = fingerprint(&path);
        loop {
            tokio::time::sleep(LOOK).await;
            let Some(own) = own.upgrade() else { return };
            let found = fingerprint(&path);
            if found.is_none() || found == seen {
                continue;
            }
            let result = own.reload().await;
            let word = if result.is_ok() { "success" } else { "failure" };
            metrics().encryption_reloads.with(&["", word]).increment();
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            metrics().encryption_reload_time.with(&["", word]).set(now.as_secs_f64());
            match result {
                Ok(()) => tracing::info!(path = %path.display(), "the encryption configuration was changed"),
                Err(error) => {
                    let cause =
                        std::error::Error::source(&error).map(|c| format!(": {c}")).unwrap_or_default();
                    tracing::error!("the new encryption configuration is not put in force: {error}{cause}");
                    // A plug-in may become well without another change of the file.
                    if matches!(error, EncryptionError::Kms(_)) {
                        continue;
                    }
                }
            }
            seen = found;
        }
    }
}

/// Counts what a provider did.
fn count<T, E>(
    what: &'static str,
    resource: &str,
    provider: &Provider,
    before: Instant,
    result: &Result<T, E>,
) {
    let status = if result.is_ok() { "OK" } else { "Internal" };
    let labels = [resource, status, what, provider.label()];
    metrics().transformations.with(&labels).increment();
    let took = before.elapsed().as_secs_f64();
    metrics().transformation_duration.with(&[what, provider.label()]).observe(took);
}

fn qualified(group: &str, resource: &str) -> String {
    if group.is_empty() { resource.to_owned() } else { format!("{resource}.{group}") }
}

impl Transform for Encryption {
    fn seal(&self, group: &str, resource: &str, context: &[u8], plain: Bytes) -> Result<Bytes, Status> {
        let now = self.now.load();
        let Some(first) = now.providers(group, resource).first() else { return Ok(plain) };
        let before = Instant::now();
        let sealed = match first {
            Provider::Identity => return Ok(plain),
            Provider::Keyed(prefix, cipher) => cipher
                .seal(context, &plain)
                .map(|body| [prefix.as_slice(), &body].concat())
                .map_err(KmsError::from),
            Provider::Kms(kms) => kms.seal(context, &plain),
        };
        count("to_storage", &qualified(group, resource), first, before, &sealed);
        sealed.map(Bytes::from).map_err(|error| {
            Status::internal(format!("cannot encrypt a {}: {error}", qualified(group, resource)))
        })
    }

    fn open(&self, group: &str, resource: &str, context: &[u8], sealed: Bytes) -> Result<Bytes, Status> {
        if AtRest::is_sealed(&sealed) {
            return self.own.open(group, resource, context, sealed);
        }
        let now = self.now.load();
        let providers = now.providers(group, resource);
        let fail = |why: &dyn std::fmt::Display| {
            Status::internal(format!("cannot decrypt a stored {}: {why}", qualified(group, resource)))
        };
        if providers.is_empty() {
            return if sealed.starts_with(SEALED) {
                Err(fail(&"no provider is configured for it"))
            } else {
                Ok(sealed)
            };
        }
        let mut last = None;
        // Two keys may have the same name in an old and a new part of the file: each is tried.
        for provider in providers.iter().filter(|provider| provider.takes(&sealed)) {
            let before = Instant::now();
            let opened = match provider {
                Provider::Identity => return Ok(sealed),
                Provider::Keyed(prefix, cipher) => {
                    cipher.open(context, &sealed[prefix.len()..]).map_err(KmsError::from)
                }
                Provider::Kms(kms) => kms.open(context, &sealed),
            };
            count("from_storage", &qualified(group, resource), provider, before, &opened);
            match opened {
                Ok(plain) => return Ok(plain.into()),
                Err(error) => last = Some(error),
            }
        }
        Err(match last {
            Some(error) => fail(&error),
            None => fail(&"no matching prefix found"),
        })
    }

    fn unprepared(&self, value: &[u8]) -> bool {
        self.now.load().plugins.iter().any(|kms| value.starts_with(kms.prefix()) && kms.unknown(value))
    }

    fn prepare<'a>(&'a self, values: &'a [Bytes]) -> BoxFuture<'a, ()> {
        async move {
            let now = self.now.load_full();
            for value in values {
                for kms in now.plugins.iter().filter(|kms| value.starts_with(kms.prefix())) {
                    // The failure shows when the value is opened.
                    if let Err(error) = kms.fetch(value).await {
                        tracing::error!("{error}");
                    }
                }
            }
        }
        .boxed()
    }

    fn stale(&self, group: &str, resource: &str, sealed: &[u8]) -> bool {
        let now = self.now.load();
        let Some(first) = now.providers(group, resource).first() else { return AtRest::is_sealed(sealed) };
        if AtRest::is_sealed(sealed) || !first.takes(sealed) {
            return true;
        }
        matches!(first, Provider::Kms(kms) if kms.stale(sealed))
    }

    fn covers(&self, group: &str, resource: &str) -> bool {
        !self.now.load().providers(group, resource).is_empty() || self.own.covers(group, resource)
    }

    fn providers(&self) -> Vec<(String, Result<(), String>)> {
        let plugins = self.plugins().into_iter();
        plugins.map(|(name, health)| (name, health.map_err(|error| error.to_string()))).collect()
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;

    use super::*;

    fn write(path: &Path, keys: &[u8]) {
        let key = |key: &u8| format!("{{name: k{key}, secret: {}}}", STANDARD.encode([*key; 32]));
        let keys: Vec<String> = keys.iter().map(key).collect();
        let text = format!(
            "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n\
             - resources: [secrets]\n  providers: [{{aesgcm: {{keys: [{}]}}}}]\n",
            keys.join(", ")
        );
        std::fs::write(path, text).expect("written");
    }

    #[tokio::test]
    async fn a_changed_file_is_put_in_force_and_a_faulty_one_is_not() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("encryption.yaml");
        write(&path, &[1]);
        let own = AtRest::load_or_create(&dir.path().join("own.key")).expect("a key");
        let plain = Bytes::from_static(b"{}");
        let old = own.seal("", "secrets", b"/a", plain.clone()).expect("sealed");
        let encryption = Encryption::load(&path, own).await.expect("loaded");
        assert_eq!(encryption.open("", "secrets", b"/a", old.clone()).expect("opened"), plain);
        assert!(encryption.stale("", "secrets", &old), "it was sealed before there was a file");
        let one = encryption.seal("", "secrets", b"/a", plain.clone()).expect("sealed");
        assert!(one.starts_with(b"k8s:enc:aesgcm:v1:k1:") && !encryption.stale("", "secrets", &one));
        assert_eq!(encryption.seal("", "configmaps", b"/a", plain.clone()).expect("sealed"), plain);

        write(&path, &[2, 1]);
        encryption.reload().await.expect("reloaded");
        assert!(encryption.stale("", "secrets", &one));
        assert_eq!(encryption.open("", "secrets", b"/a", one.clone()).expect("opened"), plain);
        let two = encryption.seal("", "secrets", b"/a", plain.clone()).expect("sealed");
        assert!(two.starts_with(b"k8s:enc:aesgcm:v1:k2:"));

        std::fs::write(&path, "kind: Nonsense").expect("written");
        encryption.reload().await.expect_err("a fault");
        assert_eq!(encryption.open("", "secrets", b"/a", two.clone()).expect("opened"), plain);

        write(&path, &[2]);
        encryption.reload().await.expect("reloaded");
        let lost = encryption.open("", "secrets", b"/a", one).expect_err("its key is gone");
        assert!(lost.message().contains("no matching prefix found"), "{lost}");
        let bare = encryption.open("", "secrets", b"/a", plain).expect_err("identity is not configured");
        assert!(bare.message().contains("no matching prefix found"), "{bare}");
    }
}
