//! The HTTP client for registries: one connection per request, TLS unless the registry is on loopback or configured as
//! plain, redirects followed, every wait bounded.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;

use super::Error;
use super::hosts::Trust;

/// How registries are reached.
#[derive(Debug, Clone)]
pub struct RegistryConfig {
    /// `host` or `host:port` of registries that speak plain HTTP. Those on loopback may always.
    pub plain_http: BTreeSet<String>,
    /// Further certificate authorities, as PEM files.
    pub ca_files: Vec<PathBuf>,
    /// Mirrors and trust by registry, in the form of containerd's `certs.d`.
    pub config_dir: PathBuf,
    /// Which images may be pulled, in the form of `containers-policy.json`; all, where there is no such file.
    pub policy: PathBuf,
    /// Layers that are downloaded at once, over all pulls.
    pub parallel_downloads: usize,
    /// The longest wait for a connection.
    pub connect_timeout: Duration,
    /// The longest wait for an answer, or for its next bytes.
    pub idle_timeout: Duration,
}

impl Default for RegistryConfig {
    fn default() -> Self {
        Self {
            plain_http: BTreeSet::new(),
            ca_files: Vec::new(),
            config_dir: "/etc/carrack/certs.d".into(),
            policy: "/etc/carrack/image-policy.json".into(),
            parallel_downloads: 4,
            connect_timeout: Duration::from_secs(15),
            idle_timeout: Duration::from_secs(60),
        }
    }
}

impl RegistryConfig {
    /// The scheme for a registry.
    pub fn scheme(&self, host: &str) -> &'static str {
        if self.plain_http.contains(host) || is_loopback(host) { "http" } else { "https" }
    }

    /// The address of the registry behind a domain in image names.
    pub fn endpoint(&self, domain: &str) -> String {
        let host = if domain == "docker.io" { "registry-1.docker.io" } else { domain };
        format!("{}://{host}", self.scheme(host))
    }

    /// Sends one request, following redirects. Credentials go only to the host they were made for.
    pub async fn send(
        &self,
        method: Method,
        uri: &Uri,
        headers: &HeaderMap,
        tls: Option<&Arc<rustls::ClientConfig>>,
    ) -> Result<Response<Incoming>, Error> {
        let first = uri.authority().cloned();
        let mut uri = uri.clone();
        let mut headers = headers.clone();
        for _ in 0..6 {
            // What is configured for a registry does not hold for where it redirects to.
            let tls = tls.filter(|_| uri.authority() == first.as_ref());
            let response = self.once(&method, &uri, &headers, tls).await?;
            let redirect = matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308);
            let Some(location) = response.headers().get(header::LOCATION).filter(|_| redirect) else {
                return Ok(response);
            };
            let host = uri.authority().map(|a| a.to_string()).unwrap_or_default();
            let bad = || Error::Registry {
                host: host.clone(),
                reason: "it redirects to an invalid address".into(),
            };
            let location = location.to_str().map_err(|_| bad())?;
            let next: Uri = if location.starts_with('/') {
                format!("{}://{host}{location}", uri.scheme_str().unwrap_or("https"))
                    .parse()
                    .map_err(|_| bad())?
            } else {
                location.parse().map_err(|_| bad())?
            };
            if next.authority() != uri.authority() {
                headers.remove(header::AUTHORIZATION);
            }
            let to = next.authority().map(|a| a.to_string()).unwrap_or_default();
            if next.scheme_str() == Some("http") && self.scheme(&to) != "http" {
                return Err(Error::Registry { host, reason: format!("it redirects to plain HTTP at {to}") });
            }
            uri = next;
        }
        Err(Error::Registry { host: uri.to_string(), reason: "too many redirects".into() })
    }

    async fn once(
        &self,
        method: &Method,
        uri: &Uri,
        headers: &HeaderMap,
        config: Option<&Arc<rustls::ClientConfig>>,
    ) -> Result<Response<Incoming>, Error> {
        let authority = uri.authority().map(|a| a.to_string()).unwrap_or_default();
        let fail = |reason: String| Error::Registry { host: authority.clone(), reason };
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let tls = uri.scheme_str() != Some("http");
        let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
        let late = |what: &str, time: Duration| fail(format!("{what} timed out after {} s", time.as_secs()));

        let connecting = TcpStream::connect((host.as_str(), port));
        let stream = tokio::time::timeout(self.connect_timeout, connecting)
            .await
            .map_err(|_| late("connecting", self.connect_timeout))?
            .map_err(|e| fail(format!("cannot connect to {host}:{port}: {e}")))?;
        let _ = stream.set_nodelay(true);

        let path = uri.path_and_query().map_or("/", |p| p.as_str());
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, &authority)
            .header(header::USER_AGENT, concat!("carrack/", env!("CARGO_PKG_VERSION")));
        if let Some(to) = request.headers_mut() {
            to.extend(headers.clone());
        }
        let request = request.body(Full::<Bytes>::default()).map_err(|e| fail(e.to_string()))?;

        let answer = async {
            let mut sender = if tls {
                let name = ServerName::try_from(host.clone()).map_err(|e| fail(e.to_string()))?;
                let config = match config {
                    Some(config) => config.clone(),
                    None => self.tls(&authority, &Trust::default())?,
                };
                let connector = tokio_rustls::TlsConnector::from(config);
                let stream = connector.connect(name, stream).await.map_err(|e| fail(format!("TLS: {e}")))?;
                let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
                    .await
                    .map_err(|e| fail(e.to_string()))?;
                tokio::spawn(connection);
                sender
            } else {
                let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
                    .await
                    .map_err(|e| fail(e.to_string()))?;
                tokio::spawn(connection);
                sender
            };
            sender.send_request(request).await.map_err(|e| fail(format!("no answer: {e}")))
        };
        tokio::time::timeout(self.idle_timeout, answer)
            .await
            .map_err(|_| late("waiting for an answer", self.idle_timeout))?
    }

    /// The TLS configuration for a server that is trusted so.
    pub fn tls(&self, host: &str, trust: &Trust) -> Result<Arc<rustls::ClientConfig>, Error> {
        static SHARED: OnceLock<Arc<rustls::ClientConfig>> = OnceLock::new();
        let plain = self.ca_files.is_empty() && *trust == Trust::default();
        if plain && let Some(config) = SHARED.get() {
            return Ok(config.clone());
        }
        let fail = |reason: String| Error::Registry { host: host.to_owned(), reason };
        let mut roots = rustls::RootCertStore::empty();
        for file in tls::system_file().iter().chain(&self.ca_files).chain(&trust.ca_files) {
            tls::add_authorities(&mut roots, file).map_err(|e| fail(e.to_string()))?;
        }
        if roots.is_empty() && !trust.skip_verify {
            return Err(fail(
                "no certificate authorities on this machine: install ca-certificates, or configure a CA file \
                 for the registry"
                    .into(),
            ));
        }
        let servers = if trust.skip_verify { tls::Servers::Any } else { tls::Servers::Of(Arc::new(roots)) };
        let identity = trust.client.as_ref().map(|(chain, key)| (chain.as_path(), key.as_path()));
        let config = tls::client(&servers, identity).map_err(|e| fail(e.to_string()))?;
        let config = Arc::new(config);
        if plain {
            let _ = SHARED.set(config.clone());
        }
        Ok(config)
    }

    /// Reads a small answer whole.
    pub async fn collect(&self, response: Response<Incoming>, limit: usize) -> Result<Bytes, Error> {
        let fail = |reason: String| Error::Registry { host: "answer".into(), reason };
        let body = http_body_util::Limited::new(response.into_body(), limit);
        let collected = tokio::time::timeout(self.idle_timeout, body.collect())
            .await
            .map_err(|_| fail("reading it timed out".into()))?
            .map_err(|e| fail(e.to_string()))?;
        Ok(collected.to_bytes())
    }
}

fn is_loopback(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    let name = name.trim_matches(['[', ']']);
    name == "localhost" || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// The reason in a registry's error document, or the status.
pub fn reason(status: StatusCode, body: &[u8]) -> String {
    let document: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let first = &document["errors"][0];
    match first["message"].as_str().or(first["code"].as_str()) {
        Some(message) => format!("{status}: {message}"),
        None => status.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_for_loopback_and_what_is_configured() {
        let mut config = RegistryConfig::default();
        config.plain_http.insert("registry.test:5000".into());
        for (host, expect) in [
            ("localhost:5000", "http"),
            ("127.0.0.1:1", "http"),
            ("[::1]:80", "http"),
            ("registry.test:5000", "http"),
            ("registry.test", "https"),
            ("10.0.0.1:5000", "https"),
        ] {
            assert_eq!(config.scheme(host), expect, "{host}");
        }
        assert_eq!(config.endpoint("docker.io"), "https://registry-1.docker.io");
    }
}
