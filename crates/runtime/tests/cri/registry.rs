//! A small registry on loopback: bearer and basic authentication, an index, and downloads that break off.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use http::{Request, Response, StatusCode, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper_util::rt::TokioIo;

use super::pack::{Packed, digest};

/// What it serves and how badly.
pub struct Registry {
    address: std::net::SocketAddr,
    blobs: HashMap<String, Vec<u8>>,
    index: Vec<u8>,
    /// Downloads of blobs that break off half-way before one goes through.
    pub breaks: AtomicU32,
    /// Requests that asked for a part.
    pub resumed: AtomicU32,
}

type Body = BoxBody<Bytes, std::io::Error>;

fn whole(status: StatusCode, bytes: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Full::new(bytes.into()).map_err(|never| match never {}).boxed());
    *response.status_mut() = status;
    response
}

impl Registry {
    /// Serves `packed` as `test/app:1` behind an index, for user `user` with password `password`.
    pub async fn start(packed: &Packed) -> Arc<Self> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let arch = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        let entry = |arch: &str, digest: &str| {
            serde_json::json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest,
                               "size": 1, "platform": {"architecture": arch, "os": "linux"}})
        };
        let index = serde_json::json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [entry("riscv64", &digest(b"other")), entry(arch, &packed.manifest)],
        });
        let registry = Arc::new(Self {
            address: listener.local_addr().unwrap(),
            blobs: packed.blobs.iter().map(|b| (digest(b), b.clone())).collect(),
            index: index.to_string().into_bytes(),
            breaks: AtomicU32::new(0),
            resumed: AtomicU32::new(0),
        });
        let served = registry.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let served = served.clone();
                let service = hyper::service::service_fn(move |request| {
                    let answer = served.answer(&request);
                    async move { Ok::<_, Infallible>(answer) }
                });
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        registry
    }

    /// The image's name here.
    pub fn name(&self) -> String {
        format!("{}/test/app:1", self.address)
    }

    fn answer(&self, request: &Request<Incoming>) -> Response<Body> {
        let path = request.uri().path();
        let authorization =
            request.headers().get(header::AUTHORIZATION).and_then(|v| v.to_str().ok()).unwrap_or("");
        if path == "/token" {
            // user:password
            if authorization != "Basic dXNlcjpwYXNzd29yZA==" {
                return whole(StatusCode::UNAUTHORIZED, r#"{"errors":[{"message":"wrong password"}]}"#);
            }
            return whole(StatusCode::OK, r#"{"token":"the-token"}"#);
        }
        if authorization != "Bearer the-token" {
            let challenge = format!(
                "Bearer realm=\"http://{}/token\",service=\"test\",scope=\"repository:test/app:pull\"",
                self.address
            );
            let mut response = whole(StatusCode::UNAUTHORIZED, "");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge.parse().unwrap());
            return response;
        }
        let Some(rest) = path.strip_prefix("/v2/test/app/") else { return whole(StatusCode::NOT_FOUND, "") };
        if rest == "manifests/1" {
            return whole(StatusCode::OK, self.index.clone());
        }
        if rest == "blobs/hang" {
            return whole(StatusCode::OK, "");
        }
        let Some(blob) = rest.rsplit('/').next().and_then(|d| self.blobs.get(d)) else {
            return whole(StatusCode::NOT_FOUND, r#"{"errors":[{"code":"MANIFEST_UNKNOWN"}]}"#);
        };
        let from = request
            .headers()
            .get(header::RANGE)
            .and_then(|v| v.to_str().ok())
            .and_then(|v| v.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
        let (status, part) = match from {
            Some(from) => {
                self.resumed.fetch_add(1, Ordering::Relaxed);
                (StatusCode::PARTIAL_CONTENT, blob[from..].to_vec())
            }
            None => (StatusCode::OK, blob.clone()),
        };
        let large = part.len() > 100_000;
        let one_less = |n: u32| n.checked_sub(1);
        if large && self.breaks.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).is_ok() {
            let half = Bytes::from(part[..part.len() / 2].to_vec());
            let frames = [Ok(Frame::data(half)), Err(std::io::Error::other("cut"))];
            let mut response = Response::new(BodyExt::boxed(StreamBody::new(futures::stream::iter(frames))));
            *response.status_mut() = status;
            return response;
        }
        whole(status, part)
    }
}
