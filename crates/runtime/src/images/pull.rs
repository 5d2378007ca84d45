//! Pulls an image: manifest, config and layers, each verified by its digest; layers in parallel and resumed where a
//! connection broke.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use base64::Engine;
use futures::StreamExt;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use http_body_util::BodyExt;
use parking_lot::Mutex;

use super::auth::{Challenge, meet};
use super::content::digest;
use super::hosts::{Endpoint, Trust};
use super::manifest::{ACCEPT, Descriptor, MAX_DOCUMENT, Manifest};
use super::reference::{Reference, is_digest};
use super::registry::{RegistryConfig, reason};
use super::{Error, Image, Images, blocking};

/// What a registry is shown.
#[derive(Debug, Clone, Default)]
pub struct Credentials {
    /// For basic authentication and token realms.
    pub username: String,
    /// Goes with the user name.
    pub password: String,
    /// Shown to a token realm instead of them.
    pub identity_token: String,
    /// Shown to the registry as it is.
    pub registry_token: String,
}

impl Credentials {
    /// From CRI's form, in which `auth` may hold user and password in base64.
    pub fn from_cri(auth: &cri::v1::AuthConfig) -> Self {
        let mut credentials = Self {
            username: auth.username.clone(),
            password: auth.password.clone(),
            identity_token: auth.identity_token.clone(),
            registry_token: auth.registry_token.clone(),
        };
        if credentials.username.is_empty()
            && let Ok(pair) = base64::engine::general_purpose::STANDARD.decode(&auth.auth)
            && let Some((user, password)) = String::from_utf8_lossy(&pair).split_once(':')
        {
            credentials.username = user.to_owned();
            credentials.password = password.trim_end_matches('\0').to_owned();
        }
        credentials
    }
}

/// A layer is tried this often; each attempt goes on where the last one stopped.
const ATTEMPTS: u32 = 4;
/// How often the log tells how far a pull has come.
const TELL: Duration = Duration::from_secs(10);
/// Layers of one image that are fetched at once; all pulls together are bounded by configuration.
const PARALLEL: usize = 6;

impl Images {
    /// Pulls `name`, or finds that the registry's image is here already.
    pub async fn pull(&self, name: &str, credentials: &Credentials) -> Result<Arc<Image>, Error> {
        let reference = Reference::parse(name)?;
        let full = reference.to_string();
        let _one = self.pulls.enter(&full).await;
        self.pull_once(&reference, credentials).await
    }

    async fn pull_once(&self, reference: &Reference, credentials: &Credentials) -> Result<Arc<Image>, Error> {
        let full = reference.to_string();
        if reference.domain == "carrack.dev"
            && let Some(image) = self.get(&full)
        {
            return Ok(image);
        }
        let _shared = self.collecting.read().await;
        let own = self.registry.endpoint(&reference.domain);
        let endpoints = super::hosts::endpoints(&self.registry.config_dir, &reference.domain, &own)?;
        let session = Session {
            config: &self.registry,
            places: endpoints.into_iter().map(Place::new).collect(),
            registry: reference.domain.clone(),
            repository: reference.path.clone(),
            name: full.clone(),
            credentials: credentials.clone(),
            read: AtomicU64::new(0),
        };
        let (top, mut bytes) = session.manifest(reference.target()).await?;
        let mut found: Manifest = serde_json::from_slice(&bytes).map_err(Error::json("manifest"))?;
        let mut manifest_digest = top.clone();
        for _ in 0..3 {
            if found.manifests.is_empty() {
                break;
            }
            let entry = found.choose().ok_or(Error::NoPlatform(super::manifest::architecture()))?;
            (manifest_digest, bytes) = session.manifest(&entry.digest).await?;
            found = serde_json::from_slice(&bytes).map_err(Error::json("manifest"))?;
        }
        super::policy::check(&self.registry.policy, reference, &manifest_digest, &found.media_type).await?;
        let config = found.config.clone().ok_or_else(|| {
            Error::Unsupported(format!("manifest of type {:?} without a config", found.media_type))
        })?;
        // The digest under which the image was found: that of the index, if it was one.
        let digests = [format!("{}@{top}", reference.repository())];
        let tags: Vec<String> =
            reference.tag.iter().filter(|_| reference.digest.is_none()).map(|_| full.clone()).collect();

        let (begun, total) = (Instant::now(), self.missing(std::iter::once(&config).chain(&found.layers)));
        let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + TELL, TELL);
        let mut fetches = futures::stream::iter(
            std::iter::once(config).chain(found.layers).map(|layer| self.fetch(&session, layer)),
        )
        .buffer_unordered(PARALLEL);
        loop {
            tokio::select! {
                next = fetches.next() => match next {
                    Some(result) => result?,
                    None => break,
                },
                _ = ticks.tick() => {
                    let read = session.read.load(Ordering::Relaxed);
                    tracing::info!(image = full, read, total, "an image is being pulled; bytes read so far and to read");
                }
            }
        }
        drop(fetches);
        let (read, millis) = (session.read.load(Ordering::Relaxed), begun.elapsed().as_millis());
        tracing::info!(image = full, read, millis, "all bytes of an image were read");
        let content = self.content.clone();
        blocking(move || content.put(&bytes)).await?;
        self.finish(&manifest_digest, &tags, &digests).await
    }

    /// Bytes of the blobs that are not here yet.
    fn missing<'a>(&self, blobs: impl Iterator<Item = &'a Descriptor>) -> u64 {
        blobs.filter(|blob| !self.content.has(&blob.digest)).map(|blob| blob.size).sum()
    }

    async fn fetch(&self, session: &Session<'_>, blob: Descriptor) -> Result<(), Error> {
        let _one = self.blobs.enter(&blob.digest).await;
        if self.content.has(&blob.digest) {
            return Ok(());
        }
        let _permit = self.downloads.acquire().await.map_err(|_| Error::invalid("pull", "shutting down"))?;
        let mut last = None;
        for attempt in 0..ATTEMPTS {
            if attempt > 0 {
                tokio::time::sleep(std::time::Duration::from_millis(200 << attempt)).await;
            }
            match self.fetch_once(session, &blob).await {
                Err(error @ (Error::Registry { .. } | Error::WrongDigest { .. })) => last = Some(error),
                other => return other,
            }
        }
        Err(last.unwrap_or(Error::MissingBlob(blob.digest)))
    }

    async fn fetch_once(&self, session: &Session<'_>, blob: &Descriptor) -> Result<(), Error> {
        let content = self.content.clone();
        let name = blob.digest.clone();
        let mut writer = blocking(move || content.writer(&name)).await?;
        if blob.size > 0 && writer.length() > blob.size {
            writer.restart()?;
        }
        if blob.size == 0 || writer.length() < blob.size {
            let mut headers = HeaderMap::new();
            if writer.length() > 0 {
                let range = format!("bytes={}-", writer.length());
                headers
                    .insert(header::RANGE, HeaderValue::from_str(&range).expect("digits are a valid header"));
            }
            let response = session.get(&format!("blobs/{}", blob.digest), &headers, |e| e.pull).await?;
            if response.status() != StatusCode::PARTIAL_CONTENT {
                writer.restart()?;
            }
            let host = &session.registry;
            let fail = |reason: String| Error::Registry { host: host.clone(), reason };
            let mut body = response.into_body();
            loop {
                let idle = session.config.idle_timeout;
                let frame = tokio::time::timeout(idle, body.frame())
                    .await
                    .map_err(|_| fail(format!("no data for {} s", idle.as_secs())))?;
                let Some(frame) = frame else { break };
                let frame = frame.map_err(|e| fail(format!("the download broke off: {e}")))?;
                let Ok(data) = frame.into_data() else { continue };
                if blob.size > 0 && writer.length() + data.len() as u64 > blob.size {
                    writer.restart()?;
                    return Err(Error::invalid("blob", format!("{} is longer than announced", blob.digest)));
                }
                // A write of at most a few tens of KiB into the page cache: not worth another thread.
                writer.write(&data)?;
                session.read.fetch_add(data.len() as u64, Ordering::Relaxed);
            }
            if blob.size > 0 && writer.length() < blob.size {
                return Err(fail("the download broke off".into()));
            }
        }
        blocking(move || writer.commit()).await.map(|_| ())
    }
}

/// One endpoint during a pull.
struct Place {
    endpoint: Endpoint,
    authorization: Mutex<Option<HeaderValue>>,
    tls: OnceLock<Arc<rustls::ClientConfig>>,
}

impl Place {
    fn new(endpoint: Endpoint) -> Self {
        Self { endpoint, authorization: Mutex::new(None), tls: OnceLock::new() }
    }
}

/// Requests about one repository.
struct Session<'a> {
    config: &'a RegistryConfig,
    /// Mirrors, and the registry itself.
    places: Vec<Place>,
    registry: String,
    repository: String,
    name: String,
    credentials: Credentials,
    /// Bytes of blobs that were read.
    read: AtomicU64,
}

impl Session<'_> {
    /// Asks one place after the other until one answers well; the last one's failure is told.
    async fn get(
        &self,
        path: &str,
        headers: &HeaderMap,
        fits: impl Fn(&Endpoint) -> bool,
    ) -> Result<http::Response<hyper::body::Incoming>, Error> {
        let mut last = Error::NotInRegistry { name: self.name.clone() };
        for place in self.places.iter().filter(|place| fits(&place.endpoint)) {
            match self.ask(place, path, headers).await {
                Ok(response) => return Ok(response),
                Err(error) => {
                    if !place.endpoint.origin {
                        tracing::info!(mirror = place.endpoint.base, %error, "a mirror cannot serve an image");
                    }
                    last = error;
                }
            }
        }
        Err(last)
    }

    async fn ask(
        &self,
        place: &Place,
        path: &str,
        headers: &HeaderMap,
    ) -> Result<http::Response<hyper::body::Incoming>, Error> {
        let base = &place.endpoint.base;
        // A mirror of several registries has to be told which one is meant.
        let query = if place.endpoint.origin { String::new() } else { format!("?ns={}", self.registry) };
        let address = format!("{base}/{}/{path}{query}", self.repository);
        let fail = |reason: String| Error::Registry { host: base.clone(), reason };
        let uri: Uri = address.parse().map_err(|e: http::uri::InvalidUri| fail(e.to_string()))?;
        let host = uri.authority().map(|a| a.to_string()).unwrap_or_default();
        let tls = if place.endpoint.trust == Trust::default() {
            None
        } else if let Some(known) = place.tls.get() {
            Some(known)
        } else {
            let made = self.config.tls(&host, &place.endpoint.trust)?;
            Some(place.tls.get_or_init(|| made))
        };
        let none = Credentials::default();
        let credentials = if place.endpoint.origin { &self.credentials } else { &none };
        for attempt in 0..2 {
            let mut headers = headers.clone();
            headers.extend(place.endpoint.headers.clone());
            if let Some(authorization) = place.authorization.lock().clone() {
                headers.insert(header::AUTHORIZATION, authorization);
            }
            let response = self.config.send(Method::GET, &uri, &headers, tls).await?;
            let status = response.status();
            if status == StatusCode::UNAUTHORIZED
                && attempt == 0
                && let Some(challenge) = Challenge::parse(response.headers())
            {
                let value =
                    meet(self.config, &challenge, credentials, &self.repository, &self.name, tls).await?;
                *place.authorization.lock() = Some(value);
                continue;
            }
            if status.is_success() {
                return Ok(response);
            }
            let body = self.config.collect(response, 1 << 20).await.unwrap_or_default();
            let reason = reason(status, &body);
            return Err(match status {
                StatusCode::NOT_FOUND => Error::NotInRegistry { name: self.name.clone() },
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                    Error::Denied { name: self.name.clone(), reason }
                }
                _ => Error::Registry { host, reason },
            });
        }
        Err(Error::Denied {
            name: self.name.clone(),
            reason: "the registry asks for authentication again".into(),
        })
    }

    /// The document and its digest, which is computed, not believed.
    async fn manifest(&self, target: &str) -> Result<(String, Vec<u8>), Error> {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, HeaderValue::from_static(ACCEPT));
        let by_tag = !is_digest(target);
        let fits = |endpoint: &Endpoint| endpoint.pull && (endpoint.resolve || !by_tag);
        let response = self.get(&format!("manifests/{target}"), &headers, fits).await?;
        let body = self.config.collect(response, MAX_DOCUMENT as usize).await?;
        let actual = digest(&body);
        if !by_tag && actual != target {
            return Err(Error::WrongDigest { expected: target.to_owned(), actual });
        }
        Ok((actual, body.to_vec()))
    }
}
