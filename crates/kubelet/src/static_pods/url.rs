//! Static pods from a URL: one Pod or a list of them, asked for again every 20 seconds (`httpCheckFrequency`), since HTTP tells
//! of no change.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use rustls::RootCertStore;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

use super::{MOST_BYTES, ManifestError, StaticPods, parse_from};
use crate::podutil;

const PATIENCE: Duration = Duration::from_secs(10);

/// Where manifests come from, with headers to send.
#[derive(Debug, Clone)]
pub struct ManifestUrl {
    /// `http://...` or `https://...`, with the authorities that the machine trusts.
    pub url: String,
    /// Name and value.
    pub headers: Vec<(String, String)>,
}

/// Asks until shutdown. What cannot be had or read leaves the pods as they are.
pub(crate) async fn follow(
    from: ManifestUrl,
    node: String,
    every: Duration,
    pods: watch::Sender<StaticPods>,
    shutdown: CancellationToken,
) {
    let mut last = None;
    loop {
        let read = async {
            let text = tokio::time::timeout(PATIENCE, get(&from, None))
                .await
                .map_err(|_| "it does not answer".to_owned())??;
            read(&text, &from.url, &node).map_err(|error| error.to_string())
        };
        match read.await {
            Ok(found) => {
                last = None;
                pods.send_if_modified(|now| {
                    let changed = !now.keys().eq(found.keys());
                    if changed {
                        *now = Arc::new(found);
                    }
                    changed
                });
            }
            Err(error) => {
                if last.as_ref() != Some(&error) {
                    tracing::warn!(url = from.url, error, "static pods cannot be had from their URL");
                }
                last = Some(error);
            }
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(every) => {}
        }
    }
}

/// Gets the document; `authorities` are believed instead of the machine's.
async fn get(from: &ManifestUrl, authorities: Option<RootCertStore>) -> Result<Bytes, String> {
    fn said(error: impl std::fmt::Display) -> String {
        error.to_string()
    }
    let url: http::Uri = from.url.parse().map_err(said)?;
    let host = url.host().ok_or("the URL names no host")?.trim_matches(['[', ']']).to_owned();
    let secure = url.scheme_str() == Some("https");
    let port = url.port_u16().unwrap_or(if secure { 443 } else { 80 });
    let authority = url.authority().map(|authority| authority.as_str()).unwrap_or_default();
    let authority = authority.rsplit_once('@').map_or(authority, |(_, authority)| authority);
    let path = url.path_and_query().map_or("/", |path| path.as_str());
    let mut request = http::Request::get(path).header("host", authority);
    for (name, value) in &from.headers {
        request = request.header(name, value);
    }
    let request = request.body(Empty::new()).map_err(said)?;
    let stream = TcpStream::connect((host.as_str(), port)).await.map_err(said)?;
    let answer = if secure {
        let roots = match authorities {
            Some(roots) => roots,
            None => system().map_err(said)?,
        };
        let config = tls::client(&tls::Servers::Of(Arc::new(roots)), None).map_err(said)?;
        let name = ServerName::try_from(host).map_err(said)?;
        let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(said)?;
        exchange(TokioIo::new(stream), request).await.map_err(said)?
    } else {
        exchange(TokioIo::new(stream), request).await.map_err(said)?
    };
    if !answer.status().is_success() {
        return Err(format!("it answers {}", answer.status()));
    }
    let body = Limited::new(answer.into_body(), MOST_BYTES as usize).collect().await;
    Ok(body.map_err(said)?.to_bytes())
}

fn system() -> Result<RootCertStore, tls::Error> {
    let mut roots = RootCertStore::empty();
    if let Some(file) = tls::system_file() {
        tls::add_authorities(&mut roots, &file)?;
    }
    Ok(roots)
}

async fn exchange<IO>(io: IO, request: http::Request<Empty<Bytes>>) -> hyper::Result<http::Response<Incoming>>
where
    IO: hyper::rt::Read + hyper::rt::Write + Send + Unpin + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await?;
    // It ends with the answer's body, or when that is dropped.
    tokio::spawn(connection);
    sender.send_request(request).await
}

fn read(
    text: &[u8],
    url: &str,
    node: &str,
) -> Result<BTreeMap<String, Arc<k8s_openapi::api::core::v1::Pod>>, ManifestError> {
    let document: serde_json::Value =
        serde_saphyr::from_slice(text).map_err(|error| ManifestError::Decode(error.to_string()))?;
    let kind = document["kind"].as_str().unwrap_or_default();
    let items = match (kind, document["items"].as_array()) {
        ("PodList" | "List", Some(items)) => items.clone(),
        _ => vec![document],
    };
    let mut pods = BTreeMap::new();
    for mut item in items {
        // Items of a list need not say again what they are.
        if let Some(fields) = item.as_object_mut() {
            fields.entry("kind").or_insert_with(|| "Pod".into());
            fields.entry("apiVersion").or_insert_with(|| "v1".into());
        }
        let pod = parse_from(item.to_string().as_bytes(), url, node, "http")?;
        pods.insert(podutil::uid(&pod).to_owned(), Arc::new(pod));
    }
    Ok(pods)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn documents_are_had_over_tls_from_a_server_that_is_known() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let now = std::time::SystemTime::now().into();
        let authority = pki::Authority::generate("ca", time::Duration::days(1), now).unwrap();
        let key = pki::Key::generate().unwrap();
        let names = pki::AltNames { ips: vec!["127.0.0.1".parse().unwrap()], ..pki::AltNames::default() };
        let request = pki::Request::create(&key, "server", &[], &names).unwrap();
        let request = pki::Request::from_pem(&request).unwrap();
        let chain = authority.sign(&request, &["digital signature", "server auth"], 3600).unwrap();
        let served = Arc::new(crate::tls::Served::default());
        served.set(&chain, &key.to_pem()).unwrap();
        let config = crate::tls::server(served, &authority.cert_pem(), "VersionTLS13").unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(mut stream) = acceptor.accept(stream).await else { continue };
                let mut asked = vec![0; 4096];
                let count = stream.read(&mut asked).await.unwrap_or(0);
                let asked = String::from_utf8_lossy(&asked[..count]).into_owned();
                let good = asked.starts_with("GET /pods?x=1 HTTP/1.1\r\n") && asked.contains("x-own: 2");
                let status = if good { "200 OK" } else { "400 Bad Request" };
                let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 4\r\n\r\npods");
                let _ = stream.write_all(answer.as_bytes()).await;
                let _ = stream.shutdown().await;
            }
        });
        let headers = vec![("x-own".to_owned(), "2".to_owned())];
        let from = ManifestUrl { url: format!("https://127.0.0.1:{port}/pods?x=1"), headers };
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ca.pem");
        std::fs::write(&file, authority.cert_pem()).unwrap();
        let mut roots = RootCertStore::empty();
        tls::add_authorities(&mut roots, &file).unwrap();
        assert_eq!(get(&from, Some(roots)).await.unwrap(), "pods");
        let stranger = get(&from, Some(RootCertStore::empty())).await.unwrap_err();
        assert!(stranger.contains("certificate"), "{stranger}");
    }

    #[test]
    fn one_pod_or_a_list() {
        let pod = |name: &str| {
            format!(
                "{{\"metadata\": {{\"name\": \"{name}\"}}, \"spec\": {{\"containers\": [{{\"name\": \"c\", \"image\": \"i\"}}]}}}}"
            )
        };
        let one = format!(
            "apiVersion: v1\nkind: Pod\n{}",
            "metadata: {name: a}\nspec: {containers: [{name: c, image: i}]}\n"
        );
        assert_eq!(read(one.as_bytes(), "http://u", "n").unwrap().len(), 1);
        let list = format!(
            "{{\"apiVersion\": \"v1\", \"kind\": \"PodList\", \"items\": [{}, {}]}}",
            pod("a"),
            pod("b")
        );
        let pods = read(list.as_bytes(), "http://u", "n").unwrap();
        let mut names: Vec<&str> = pods.values().map(|pod| podutil::name(pod)).collect();
        names.sort_unstable();
        assert_eq!(names, ["a-n", "b-n"]);
        assert!(pods.values().all(|pod| super::super::is_static(pod)));
        assert!(read(b"{", "http://u", "n").is_err());
        assert!(read(b"{\"kind\": \"Service\", \"apiVersion\": \"v1\"}", "http://u", "n").is_err());
    }
}
