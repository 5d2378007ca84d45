//! One place to call: its connections, and the exchange of a request for an answer.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue, USER_AGENT};
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::resolve::{self, Address};
use super::{Error, Place, Target};
use crate::{ClusterRef, tls};

/// Connections that wait for the next call, and for how long.
const IDLE: usize = 32;
const IDLE_TIME: Duration = Duration::from_secs(90);
/// The largest answer that is read.
const ANSWER_LIMIT: usize = 64 << 20;

/// How long a call may take in all, and whether the other side is told (`?timeout=10s`).
#[derive(Clone, Copy, Debug)]
pub struct Timeout {
    pub time: Duration,
    pub told: bool,
}

impl Timeout {
    /// Of a conversion, review or audit call, which is not told.
    pub fn of(time: Duration) -> Self {
        Self { time, told: false }
    }
}

type Sender = SendRequest<Full<Bytes>>;

/// One place to call. Cheap to keep; connections are made when they are needed.
pub struct Endpoint {
    cluster: ClusterRef,
    place: Place,
    host: String,
    port: u16,
    path: String,
    /// None: plain HTTP.
    tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    bearer: Option<HeaderValue>,
    idle: Mutex<Vec<(Sender, Instant)>>,
}

impl Endpoint {
    pub(super) fn new(target: &Target, cluster: ClusterRef) -> Result<Self, Error> {
        let wrong = |text: String| Error::Target(text);
        let (secure, host, port, path) = match &target.place {
            Place::Service { namespace, name, path, port } => {
                (true, format!("{name}.{namespace}.svc"), *port, path.clone())
            }
            Place::Url(url) => {
                let uri: http::Uri = url.parse().map_err(|e| wrong(format!("Unparsable URL: {e}")))?;
                let secure = match uri.scheme_str() {
                    Some("https") => true,
                    Some("http") => false,
                    _ => return Err(wrong(format!("Unparsable URL: {url:?} is neither https nor http"))),
                };
                let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
                if host.is_empty() {
                    return Err(wrong(format!("Unparsable URL: {url:?} has no host")));
                }
                let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
                let path = uri.path_and_query().map_or("/", |p| p.as_str()).to_owned();
                (secure, host, port, path)
            }
        };
        let tls = match secure {
            false => None,
            true => {
                let name = target.server_name.clone().unwrap_or_else(|| host.clone());
                let name = ServerName::try_from(name.clone())
                    .map_err(|_| wrong(format!("{name:?} is no name that a certificate can have")))?;
                Some((config(target).map_err(|e| wrong(e.to_string()))?, name))
            }
        };
        let bearer = target.bearer.as_ref().map(|token| HeaderValue::from_str(&format!("Bearer {token}")));
        let mut bearer = bearer.transpose().map_err(|_| wrong("the token is no header value".to_owned()))?;
        if let Some(value) = &mut bearer {
            value.set_sensitive(true);
        }
        let idle = Mutex::default();
        Ok(Self { cluster, place: target.place.clone(), host, port, path, tls, bearer, idle })
    }

    /// The host and port as a URL has them.
    fn authority(&self, always: bool) -> String {
        let host = match self.host.parse::<IpAddr>() {
            Ok(IpAddr::V6(_)) => format!("[{}]", self.host),
            _ => self.host.clone(),
        };
        let usual = if self.tls.is_some() { 443 } else { 80 };
        let service = matches!(self.place, Place::Service { .. });
        if always || service || self.port != usual { format!("{host}:{}", self.port) } else { host }
    }

    /// Posts JSON; the answer of a success, as JSON.
    pub async fn post(&self, body: &Value, timeout: Timeout) -> Result<Value, Error> {
        let body = serde_json::to_vec(body).map_err(|e| Error::Body(e.to_string()))?;
        let answer = self.post_bytes(body.into(), timeout).await?;
        serde_json::from_slice(&answer).map_err(|e| Error::Body(format!("couldn't decode the answer: {e}")))
    }

    /// Posts JSON that is encoded already; the body of a success.
    pub async fn post_bytes(&self, body: Bytes, timeout: Timeout) -> Result<Bytes, Error> {
        let mut path = self.path.clone();
        if timeout.told {
            let seconds = timeout.time.as_millis().div_ceil(1000).max(1);
            path.push_str(if path.contains('?') { "&" } else { "?" });
            path.push_str(&format!("timeout={seconds}s"));
        }
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://{}{path}", self.authority(false));
        match tokio::time::timeout(timeout.time, self.exchange(&path, body)).await {
            Err(_) => Err(Error::Timeout { url }),
            Ok(Err(why)) => Err(Error::Transport { url, why }),
            Ok(Ok((code, answer))) if (200..300).contains(&code) => Ok(answer),
            // Redirects are not followed: they could lead anywhere.
            Ok(Ok((code, answer))) => Err(Error::answer(code, &answer)),
        }
    }

    async fn exchange(&self, path: &str, body: Bytes) -> Result<(u16, Bytes), String> {
        let mut request = Request::post(path).body(Full::new(body)).map_err(|e| e.to_string())?;
        let headers = request.headers_mut();
        let host = HeaderValue::from_str(&self.authority(false)).map_err(|e| e.to_string())?;
        headers.insert(HOST, host);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(ACCEPT, HeaderValue::from_static("application/json, */*"));
        headers.insert(USER_AGENT, HeaderValue::from_static("carrack-apiserver"));
        crate::trace::carry_on(headers);
        if let Some(bearer) = &self.bearer {
            headers.insert(AUTHORIZATION, bearer.clone());
        }
        let mut request = Some(request);
        while let Some(mut sender) = self.take() {
            if sender.ready().await.is_err() {
                continue;
            }
            let Some(sent) = request.take() else { break };
            match sender.try_send_request(sent).await {
                Ok(response) => return self.read(response, sender).await,
                // What was not sent may be sent again.
                Err(mut error) => match error.take_message() {
                    Some(unsent) => request = Some(unsent),
                    None => return Err(error.into_error().to_string()),
                },
            }
        }
        let Some(request) = request else { return Err("the request is lost".to_owned()) };
        let mut sender = self.connect().await?;
        let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
        self.read(response, sender).await
    }

    async fn read(&self, response: Response<Incoming>, sender: Sender) -> Result<(u16, Bytes), String> {
        let code = response.status().as_u16();
        let mut body = response.into_body();
        let mut answer = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|e| e.to_string())?;
            if let Ok(data) = frame.into_data() {
                if answer.len() + data.len() > ANSWER_LIMIT {
                    return Err(format!("the answer is larger than {ANSWER_LIMIT} bytes"));
                }
                answer.extend_from_slice(&data);
            }
        }
        let mut idle = self.idle.lock();
        if idle.len() < IDLE {
            idle.push((sender, Instant::now()));
        }
        Ok((code, answer.freeze()))
    }

    /// The connection that was used last, if it still stands.
    fn take(&self) -> Option<Sender> {
        let mut idle = self.idle.lock();
        idle.retain(|(sender, since)| !sender.is_closed() && since.elapsed() < IDLE_TIME);
        idle.pop().map(|(sender, _)| sender)
    }

    async fn connect(&self) -> Result<Sender, String> {
        let stream = self.dial().await?;
        drop(stream.set_nodelay(true));
        match &self.tls {
            None => open(TokioIo::new(stream)).await,
            Some((config, name)) => {
                let stream = TlsConnector::from(config.clone()).connect(name.clone(), stream).await;
                open(TokioIo::new(stream.map_err(|e| tls::failure(&e, &name.to_str()))?)).await
            }
        }
    }

    async fn dial(&self) -> Result<TcpStream, String> {
        let address = match &self.place {
            Place::Service { namespace, name, port, .. } => {
                resolve::service(&self.cluster, namespace, name, *port)?
            }
            Place::Url(_) => match self.host.parse::<IpAddr>() {
                Ok(ip) => Address::Socket((ip, self.port).into()),
                Err(_) => Address::Name(self.host.clone(), self.port),
            },
        };
        match address {
            Address::Socket(address) => {
                TcpStream::connect(address).await.map_err(|e| format!("dial tcp {address}: {}", refusal(&e)))
            }
            Address::Name(host, port) => {
                let found = tokio::net::lookup_host((host.as_str(), port)).await;
                let found = found.map_err(|_| format!("dial tcp: lookup {host}: no such host"))?;
                let mut last = format!("dial tcp: lookup {host}: no such host");
                for address in found {
                    match TcpStream::connect(address).await {
                        Ok(stream) => return Ok(stream),
                        Err(e) => last = format!("dial tcp {address}: {}", refusal(&e)),
                    }
                }
                Err(last)
            }
        }
    }
}

/// The TLS side of a target.
fn config(target: &Target) -> Result<Arc<ClientConfig>, tls::TlsSetupError> {
    let trust = match &target.authorities {
        _ if target.insecure => tls::Trust::Nobody,
        Some(pem) => tls::Trust::Bundle(pem),
        None => tls::Trust::System,
    };
    let identity = target.identity.as_ref().map(|(chain, key)| tls::identity(chain, key)).transpose()?;
    // Not HTTP/2: one connection would tie all calls to one of a Service's endpoints.
    tls::client(trust, identity, &[b"http/1.1"])
}

fn refusal(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "connect: connection refused".to_owned(),
        std::io::ErrorKind::HostUnreachable => "connect: no route to host".to_owned(),
        std::io::ErrorKind::NetworkUnreachable => "connect: network is unreachable".to_owned(),
        _ => error.to_string(),
    }
}

/// Speaks HTTP/1.1 on a connection; a task of its own drives it until it closes.
async fn open<S>(stream: S) -> Result<Sender, String>
where
    S: hyper::rt::Read + hyper::rt::Write + Send + Unpin + 'static,
{
    let (sender, connection) = http1::handshake(stream).await.map_err(|e| e.to_string())?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection to a webhook ended");
        }
    });
    Ok(sender)
}
