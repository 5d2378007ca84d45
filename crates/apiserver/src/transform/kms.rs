//! A KMS v2 provider: a plug-in behind a unix socket keeps the key that seals our seeds (`k8s.io/kms/apis/v2`). The plug-in
//! is asked when its key changes and when a value with an unknown seed is read, never for each value.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use prost::Message;
use tonic::transport::{Channel, Endpoint};

use super::cipher::CipherError;
use super::config::KmsConfig;
use super::envelope::{Envelope, Key, check_key_id};
use crate::metrics::metrics;

/// Seeds that are remembered. Each stands for a key of the plug-in and a run of a server.
const MOST_KEYS: usize = 1000;
/// How long values are sealed after the plug-in was last well.
const SEALS_FOR: Duration = Duration::from_secs(180);
/// How often the plug-in is asked how it is, and how often when it is not well.
const WELL: Duration = Duration::from_secs(20);
const UNWELL: Duration = Duration::from_secs(3);

#[derive(Clone, PartialEq, Message)]
struct StatusRequest {}

#[derive(Clone, PartialEq, Message)]
struct StatusResponse {
    #[prost(string, tag = "1")]
    version: String,
    #[prost(string, tag = "2")]
    healthz: String,
    #[prost(string, tag = "3")]
    key_id: String,
}

#[derive(Clone, PartialEq, Message)]
struct DecryptRequest {
    #[prost(bytes = "vec", tag = "1")]
    ciphertext: Vec<u8>,
    #[prost(string, tag = "2")]
    uid: String,
    #[prost(string, tag = "3")]
    key_id: String,
    #[prost(btree_map = "string, bytes", tag = "4")]
    annotations: BTreeMap<String, Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
struct DecryptResponse {
    #[prost(bytes = "vec", tag = "1")]
    plaintext: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct EncryptRequest {
    #[prost(bytes = "vec", tag = "1")]
    plaintext: Vec<u8>,
    #[prost(string, tag = "2")]
    uid: String,
}

#[derive(Clone, PartialEq, Message)]
struct EncryptResponse {
    #[prost(bytes = "vec", tag = "1")]
    ciphertext: Vec<u8>,
    #[prost(string, tag = "2")]
    key_id: String,
    #[prost(btree_map = "string, bytes", tag = "3")]
    annotations: BTreeMap<String, Vec<u8>>,
}

/// Why a provider does not do what it should.
#[derive(Clone, Debug, thiserror::Error)]
pub enum KmsError {
    #[error("the KMS plug-in {name} cannot be used: {why}")]
    Setup { name: String, why: String },
    #[error("the KMS plug-in {name} does not answer {method}: {why}")]
    Call { name: String, method: &'static str, why: String },
    #[error("the KMS plug-in {name} is not well: {why}")]
    Unwell { name: String, why: String },
    #[error("no key of the KMS plug-in {name} is at hand for this value")]
    NoKey { name: String },
    #[error(
        "the key of the KMS plug-in {name} is too old to seal with: the plug-in has not been well for a while"
    )]
    Expired { name: String },
    #[error("a value of the KMS plug-in {name} cannot be read: {why}")]
    Malformed { name: String, why: String },
    #[error(transparent)]
    Cipher(#[from] CipherError),
}

/// What seals now.
struct Current {
    key: Arc<Key>,
    envelope: Envelope,
}

/// A provider and what it knows.
pub struct Kms {
    name: String,
    prefix: Vec<u8>,
    timeout: Duration,
    channel: Channel,
    current: ArcSwapOption<Current>,
    /// When the plug-in was last well.
    well: Mutex<Option<Instant>>,
    health: Mutex<Result<(), KmsError>>,
    keys: Mutex<HashMap<[u8; 32], Arc<Key>>>,
    /// One asks at a time.
    checking: tokio::sync::Mutex<()>,
}

impl Kms {
    /// Nothing is connected yet. Must be called in a runtime.
    pub fn new(config: &KmsConfig) -> Result<Self, KmsError> {
        let setup = |why: String| KmsError::Setup { name: config.name.clone(), why };
        let endpoint =
            Endpoint::from_shared(format!("unix://{}", config.socket)).map_err(|e| setup(e.to_string()))?;
        let channel = endpoint.connect_timeout(config.timeout).connect_lazy();
        Ok(Self {
            name: config.name.clone(),
            prefix: format!("k8s:enc:kms:v2:{}:", config.name).into_bytes(),
            timeout: config.timeout,
            channel,
            current: ArcSwapOption::empty(),
            well: Mutex::new(None),
            health: Mutex::new(Err(KmsError::Unwell {
                name: config.name.clone(),
                why: "it has not been asked yet".to_owned(),
            })),
            keys: Mutex::default(),
            checking: tokio::sync::Mutex::default(),
        })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the values of this provider begin with.
    pub fn prefix(&self) -> &[u8] {
        &self.prefix
    }

    /// How it was when it was last asked.
    pub fn health(&self) -> Result<(), KmsError> {
        self.health.lock().clone()
    }

    async fn call<Q, A>(&self, method: &'static str, request: Q) -> Result<A, KmsError>
    where
        Q: Message + Send + Sync + 'static,
        A: Message + Default + Send + Sync + 'static,
    {
        let path = http::uri::PathAndQuery::try_from(format!("/v2.KeyManagementService/{method}"));
        let failed = |why: String| KmsError::Call { name: self.name.clone(), method, why };
        let path = path.map_err(|e| failed(e.to_string()))?;
        let before = Instant::now();
        let mut grpc = tonic::client::Grpc::new(self.channel.clone());
        let answer = tokio::time::timeout(self.timeout, async {
            grpc.ready().await.map_err(|e| tonic::Status::unavailable(e.to_string()))?;
            let codec = tonic_prost::ProstCodec::<Q, A>::default();
            grpc.unary(tonic::Request::new(request), path, codec).await
        });
        let answer =
            answer.await.unwrap_or_else(|_| Err(tonic::Status::deadline_exceeded("it took too long")));
        let code = answer.as_ref().err().map_or(tonic::Code::Ok, tonic::Status::code);
        let labels = [&format!("{code:?}"), method, &self.name];
        metrics().kms_duration.with(&labels).observe(before.elapsed().as_secs_f64());
        answer
            .map(tonic::Response::into_inner)
            .map_err(|status| failed(format!("{:?}: {}", status.code(), status.message())))
    }

    /// Asks the plug-in how it is, and has a new seed sealed if its key has changed.
    pub async fn check(&self) -> Result<(), KmsError> {
        let _one = self.checking.lock().await;
        let result = self.check_now().await;
        let mut health = self.health.lock();
        if let (Ok(()), Err(error)) = (&*health, &result) {
            tracing::error!("{error}");
        }
        *health = result.clone();
        result
    }

    async fn check_now(&self) -> Result<(), KmsError> {
        let unwell = |why: String| KmsError::Unwell { name: self.name.clone(), why };
        let status: StatusResponse = self.call("Status", StatusRequest {}).await?;
        if status.healthz != "ok" {
            return Err(unwell(format!("it says {:?}", status.healthz)));
        }
        if !matches!(status.version.as_str(), "v2" | "v2beta1") {
            return Err(unwell(format!("it speaks the version {:?}, not \"v2\"", status.version)));
        }
        check_key_id(&status.key_id).map_err(|(word, why)| {
            metrics().kms_bad_key_ids.with(&[word, &self.name]).increment();
            unwell(why)
        })?;
        let same =
            self.current.load().as_ref().is_some_and(|current| current.envelope.key_id == status.key_id);
        if !same {
            let seed = Key::generate()?;
            let request = EncryptRequest { plaintext: seed.clone(), uid: uuid::Uuid::new_v4().to_string() };
            let sealed: EncryptResponse = self.call("Encrypt", request).await?;
            if sealed.key_id != status.key_id {
                return Err(unwell("its status and its encryption name different keys".to_owned()));
            }
            let envelope = Envelope::new(sealed.key_id, sealed.ciphertext, sealed.annotations);
            envelope.check().map_err(unwell)?;
            let key = Arc::new(Key::Seed(seed));
            self.remember(envelope.fingerprint(), key.clone());
            tracing::info!(provider = self.name, "values are sealed with a new key");
            self.current.store(Some(Arc::new(Current { key, envelope })));
        }
        *self.well.lock() = Some(Instant::now());
        Ok(())
    }

    /// Asks again and again. Runs until it is dropped.
    pub async fn run(self: Arc<Self>) {
        loop {
            let wait = if self.health().is_ok() { WELL } else { UNWELL };
            tokio::time::sleep(wait).await;
            drop(self.check().await);
        }
    }

    fn remember(&self, fingerprint: [u8; 32], key: Arc<Key>) {
        let mut keys = self.keys.lock();
        if keys.len() >= MOST_KEYS
            && let Some(any) = keys.keys().next().copied()
        {
            keys.remove(&any);
        }
        keys.insert(fingerprint, key);
    }

    fn envelope(&self, sealed: &[u8]) -> Result<Envelope, KmsError> {
        let malformed = |why: String| KmsError::Malformed { name: self.name.clone(), why };
        let body = sealed.strip_prefix(self.prefix.as_slice());
        Envelope::read(body.ok_or_else(|| malformed("it is another provider's".to_owned()))?)
            .map_err(malformed)
    }

    /// Whether [`Kms::fetch`] is needed before a value can be opened.
    pub fn unknown(&self, sealed: &[u8]) -> bool {
        self.envelope(sealed).is_ok_and(|envelope| !self.keys.lock().contains_key(&envelope.fingerprint()))
    }

    /// Has the plug-in open the seed of a value.
    pub async fn fetch(&self, sealed: &[u8]) -> Result<(), KmsError> {
        let envelope = self.envelope(sealed)?;
        let fingerprint = envelope.fingerprint();
        if self.keys.lock().contains_key(&fingerprint) {
            return Ok(());
        }
        let request = DecryptRequest {
            ciphertext: envelope.source.clone(),
            uid: uuid::Uuid::new_v4().to_string(),
            key_id: envelope.key_id.clone(),
            annotations: envelope.annotations.clone(),
        };
        let opened: DecryptResponse = self.call("Decrypt", request).await?;
        let key = envelope.key(&opened.plaintext)?;
        self.remember(fingerprint, Arc::new(key));
        Ok(())
    }

    /// Seals a value with the key in force.
    pub fn seal(&self, context: &[u8], plain: &[u8]) -> Result<Vec<u8>, KmsError> {
        let current = self.current.load();
        let current = current.as_ref().ok_or_else(|| KmsError::NoKey { name: self.name.clone() })?;
        if self.well.lock().is_none_or(|at| at.elapsed() > SEALS_FOR) {
            return Err(KmsError::Expired { name: self.name.clone() });
        }
        let mut envelope = current.envelope.clone();
        envelope.data = current.key.seal(context, plain)?;
        Ok([self.prefix.as_slice(), &envelope.encode_to_vec()].concat())
    }

    /// Opens a value whose key is known.
    pub fn open(&self, context: &[u8], sealed: &[u8]) -> Result<Vec<u8>, KmsError> {
        let envelope = self.envelope(sealed)?;
        let key = self.keys.lock().get(&envelope.fingerprint()).cloned();
        let key = key.ok_or_else(|| KmsError::NoKey { name: self.name.clone() })?;
        Ok(key.open(context, &envelope.data)?)
    }

    /// Whether a value was sealed with another key than the one in force.
    pub fn stale(&self, sealed: &[u8]) -> bool {
        let Ok(envelope) = self.envelope(sealed) else { return false };
        self.current.load().as_ref().is_some_and(|current| {
            (&current.envelope.key_id, current.envelope.source_type)
                != (&envelope.key_id, envelope.source_type)
        })
    }
}
