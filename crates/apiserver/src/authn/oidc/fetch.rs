//! Documents of a token issuer, fetched over TLS. Redirects are not followed.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{ACCEPT, AUTHORIZATION, HOST, HeaderValue, USER_AGENT};
use http::{Request, Uri};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use serde_json::Value;

use crate::dial;
use crate::tls::{self, Trust};

const LIMIT: Duration = Duration::from_secs(30);
/// The largest document that is read.
const LARGEST: usize = 1 << 20;

/// Fetches JSON, trusting one bundle of authorities.
pub struct Fetcher {
    tls: Arc<ClientConfig>,
}

impl Fetcher {
    /// `authority` is PEM; without it the system's authorities are trusted.
    pub fn new(authority: &str) -> Result<Self, tls::TlsSetupError> {
        let trust = if authority.is_empty() { Trust::System } else { Trust::Bundle(authority.as_bytes()) };
        Ok(Self { tls: tls::client(trust, None, &[b"http/1.1"])? })
    }

    /// The document at an `https` address. The error is text for people.
    pub async fn get(&self, url: &str) -> Result<Value, String> {
        let body = self.fetch(url, "").await?;
        serde_json::from_slice(&body).map_err(|e| format!("{url}: the answer is no JSON: {e}"))
    }

    /// The text at an `https` address, asked for with a bearer token if there is one. The error is text for people.
    pub async fn text(&self, url: &str, token: &str) -> Result<String, String> {
        let body = self.fetch(url, token).await?;
        let text = String::from_utf8(body.into()).map_err(|_| format!("{url}: the answer is no text"))?;
        Ok(text.trim().to_owned())
    }

    async fn fetch(&self, url: &str, token: &str) -> Result<Bytes, String> {
        match tokio::time::timeout(LIMIT, self.exchange(url, token)).await {
            Ok(Ok(body)) => Ok(body),
            Ok(Err(why)) => Err(format!("Get {url:?}: {why}")),
            Err(_) => Err(format!("Get {url:?}: context deadline exceeded")),
        }
    }

    async fn exchange(&self, url: &str, token: &str) -> Result<Bytes, String> {
        let uri: Uri = url.parse().map_err(|e| format!("{e}"))?;
        if uri.scheme_str() != Some("https") {
            return Err("the scheme is not https".to_owned());
        }
        let host = uri.host().ok_or("the URL has no host")?.to_owned();
        let port = uri.port_u16().unwrap_or(443);
        let stream = dial::tls(self.tls.clone(), &host, port, &host).await.map_err(|e| e.to_string())?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to a token issuer ended");
            }
        });
        let mut request = Request::new(Empty::<Bytes>::new());
        let path = uri.path_and_query().map_or("/", |p| p.as_str());
        *request.uri_mut() = path.parse().map_err(|e| format!("{e}"))?;
        let authority = uri.authority().map(|a| a.as_str()).unwrap_or_default();
        let headers = request.headers_mut();
        headers.insert(HOST, HeaderValue::from_str(authority).map_err(|e| e.to_string())?);
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        headers.insert(USER_AGENT, HeaderValue::from_static("carrack-apiserver"));
        if !token.is_empty() {
            let bearer = format!("Bearer {token}");
            headers.insert(AUTHORIZATION, HeaderValue::from_str(&bearer).map_err(|e| e.to_string())?);
        }
        let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
        if !response.status().is_success() {
            return Err(response.status().to_string());
        }
        let mut body = response.into_body();
        let mut all = BytesMut::new();
        while let Some(frame) = body.frame().await {
            if let Ok(data) = frame.map_err(|e| e.to_string())?.into_data() {
                if all.len() + data.len() > LARGEST {
                    return Err(format!("the document is larger than {LARGEST} bytes"));
                }
                all.extend_from_slice(&data);
            }
        }
        Ok(all.freeze())
    }
}
