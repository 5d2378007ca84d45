//! What lies in the store is sealed as the configuration says, and stays readable when that changes.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use apiserver::Config;
use http::Method;
use prost::Message;
use serde_json::{Value, json};

use crate::harness::{Running, start_in};

const SECRETS: &str = "/api/v1/namespaces/default/secrets";

fn configured(rules: &str) -> impl FnOnce(&mut Config) {
    let text =
        format!("apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n{rules}");
    move |config| {
        let path = config.data_dir.join("encryption.yaml");
        std::fs::write(&path, text).expect("written");
        config.encryption = Some((path, false));
    }
}

fn rule(resources: &str, providers: &str) -> String {
    format!("- resources: [{resources}]\n  providers: [{providers}]\n")
}

fn key(kind: &str, names: &[&str]) -> String {
    use base64::Engine as _;
    let secret =
        |name: &str| base64::engine::general_purpose::STANDARD.encode(&name.repeat(32).as_bytes()[..32]);
    let keys: Vec<String> =
        names.iter().map(|name| format!("{{name: {name}, secret: {}}}", secret(name))).collect();
    format!("{kind}: {{keys: [{}]}}", keys.join(", "))
}

/// Ends a server, and reads from its store what lies there as `GROUP/RESOURCE/KEY`.
async fn stop(mut running: Running, keys: &[&str]) -> (Arc<tempfile::TempDir>, Vec<String>) {
    running.shutdown.cancel();
    (&mut running.done).await.expect("the server ended");
    let dir = running.dir.clone();
    drop(running);
    let file = dir.path().join("store.redb");
    let store = loop {
        match store::embedded::open(&file) {
            Ok(store) => break store,
            Err(_) => tokio::task::yield_now().await,
        }
    };
    let mut values = Vec::new();
    for key in keys {
        let (value, _) = store.get(format!("/registry/{key}").into(), None).await.expect("read");
        values.push(String::from_utf8_lossy(&value.expect("it is there").value).into_owned());
    }
    (dir, values)
}

async fn secret(running: &Running, name: &str) -> Value {
    let answer = running.ask(Method::GET, &format!("{SECRETS}/{name}"), None).await;
    assert_eq!(answer.code(), 200, "{}", answer.text());
    answer.json()
}

/// A write that changes nothing.
async fn touch(running: &Running, name: &str) {
    let object = secret(running, name).await;
    let answer = running.ask(Method::PUT, &format!("{SECRETS}/{name}"), Some(object)).await;
    assert_eq!(answer.code(), 200, "{}", answer.text());
}

fn dir() -> Arc<tempfile::TempDir> {
    Arc::new(tempfile::tempdir().expect("a folder"))
}

#[tokio::test]
async fn keys_are_exchanged_without_losing_what_they_sealed() {
    let object = json!({"metadata": {"name": "s"}, "stringData": {"k": "hidden"}});
    let own = ["core/secrets/default/s"];
    // The server's own key first.
    let running = start_in(dir(), |_| {}).await;
    running.create(SECRETS, object).await;
    let map = json!({"metadata": {"name": "m"}, "data": {"k": "plain"}});
    running.create("/api/v1/namespaces/default/configmaps", map).await;
    let (dir, values) = stop(running, &["core/secrets/default/s", "core/configmaps/default/m"]).await;
    assert!(values[0].starts_with("carrack:aesgcm:v1:") && !values[0].contains("aGlkZGVu"));
    assert!(values[1].starts_with('{') && values[1].contains("plain"));
    // Each step reads what the one before has written, and a write that changes nothing seals it anew.
    let steps: [(String, &str); 5] = [
        (rule("secrets", &format!("{{{}}}", key("aesgcm", &["one"]))), "k8s:enc:aesgcm:v1:one:"),
        (rule("secrets", &format!("{{{}}}", key("aesgcm", &["two", "one"]))), "k8s:enc:aesgcm:v1:two:"),
        (
            rule("'*.'", &format!("{{{}}}, {{{}}}", key("secretbox", &["three"]), key("aesgcm", &["two"]))),
            "k8s:enc:secretbox:v1:three:",
        ),
        (
            rule("'*.*'", &format!("{{{}}}, {{{}}}", key("aescbc", &["four"]), key("secretbox", &["three"]))),
            "k8s:enc:aescbc:v1:four:",
        ),
        (
            rule(
                "'*.*'",
                &format!(
                    "{{identity: {{}}}}, {{{}}}, {{{}}}",
                    key("aescbc", &["four"]),
                    key("secretbox", &["three"])
                ),
            ),
            "{",
        ),
    ];
    let mut dir = dir;
    for (i, (rules, prefix)) in steps.into_iter().enumerate() {
        // The last steps seal everything, also what was plain.
        let rules = match i {
            2 | 3 => rules.replace("]\n", ", {identity: {}}]\n").replacen(", {identity: {}}]\n", "]\n", 1),
            _ => rules,
        };
        let running = start_in(dir, configured(&rules)).await;
        assert_eq!(secret(&running, "s").await["data"]["k"], "aGlkZGVu");
        touch(&running, "s").await;
        let (next, values) = stop(running, &own).await;
        assert!(values[0].starts_with(prefix), "{prefix}: {}", values[0]);
        dir = next;
    }
}

#[tokio::test]
async fn a_wrong_file_is_told_at_the_start() {
    let dir = dir();
    let mut config = Config::new(dir.path());
    config.bind.set_port(0);
    configured(&rule("secrets", "{aesgcm: {keys: [{name: a, secret: '?'}]}}"))(&mut config);
    let store = store::embedded::open(&dir.path().join("store.redb")).expect("a store");
    let error = apiserver::start(config, store).await.map(drop).expect_err("refused");
    let text = std::iter::successors(Some(&error as &dyn std::error::Error), |e| e.source())
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ");
    assert!(text.contains("resources[0].providers[0].aesgcm.keys[0].secret: must be base64"), "{text}");
}

/// A KMS v2 plug-in whose sealing is an exclusive or with its key's name.
#[derive(Clone)]
struct Plugin {
    key: String,
    calls: Arc<[AtomicUsize; 3]>,
}

#[derive(Clone, PartialEq, Message)]
struct Fields {
    #[prost(bytes = "vec", tag = "1")]
    one: Vec<u8>,
    #[prost(string, tag = "2")]
    two: String,
    #[prost(string, tag = "3")]
    three: String,
}

#[derive(Clone, PartialEq, Message)]
struct Sealed {
    #[prost(bytes = "vec", tag = "1")]
    ciphertext: Vec<u8>,
    #[prost(string, tag = "2")]
    key_id: String,
    #[prost(btree_map = "string, bytes", tag = "3")]
    annotations: BTreeMap<String, Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
struct Asked {
    #[prost(bytes = "vec", tag = "1")]
    ciphertext: Vec<u8>,
    #[prost(string, tag = "2")]
    uid: String,
    #[prost(string, tag = "3")]
    key_id: String,
    #[prost(btree_map = "string, bytes", tag = "4")]
    annotations: BTreeMap<String, Vec<u8>>,
}

fn mix(key: &str, bytes: &[u8]) -> Vec<u8> {
    bytes.iter().zip(key.bytes().cycle()).map(|(a, b)| a ^ b).collect()
}

impl Plugin {
    async fn answer(self, request: http::Request<tonic::body::Body>) -> http::Response<tonic::body::Body> {
        let method = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
        let handle = move |asked: tonic::Request<Asked>| {
            let (plugin, method, asked) = (self.clone(), method.clone(), asked.into_inner());
            async move {
                let answer = match method.as_str() {
                    "Status" => {
                        plugin.calls[0].fetch_add(1, Ordering::Relaxed);
                        let one = b"v2".to_vec();
                        Fields { one, two: "ok".to_owned(), three: plugin.key.clone() }.encode_to_vec()
                    }
                    "Encrypt" => {
                        plugin.calls[1].fetch_add(1, Ordering::Relaxed);
                        let annotations =
                            [("key.test.io".to_owned(), plugin.key.clone().into_bytes())].into();
                        let ciphertext = mix(&plugin.key, &asked.ciphertext);
                        Sealed { ciphertext, key_id: plugin.key, annotations }.encode_to_vec()
                    }
                    _ => {
                        plugin.calls[2].fetch_add(1, Ordering::Relaxed);
                        if asked.annotations.get("key.test.io") != Some(&asked.key_id.clone().into_bytes()) {
                            return Err(tonic::Status::invalid_argument("the annotations are not mine"));
                        }
                        let one = mix(&asked.key_id, &asked.ciphertext);
                        Fields { one, ..Fields::default() }.encode_to_vec()
                    }
                };
                // All answers are encoded by hand: one message type carries them.
                Ok(tonic::Response::new(Raw(answer)))
            }
        };
        let mut grpc = tonic::server::Grpc::new(Codec);
        grpc.unary(Handler(handle), request).await
    }
}

struct Raw(Vec<u8>);

/// Decodes the largest request; encodes what is encoded already.
#[derive(Clone, Copy, Default)]
struct Codec;

impl tonic::codec::Codec for Codec {
    type Encode = Raw;
    type Decode = Asked;
    type Encoder = Codec;
    type Decoder = tonic_prost::ProstDecoder<Asked>;

    fn encoder(&mut self) -> Codec {
        Codec
    }

    fn decoder(&mut self) -> Self::Decoder {
        tonic::codec::Codec::decoder(&mut tonic_prost::ProstCodec::<Asked, Asked>::default())
    }
}

impl tonic::codec::Encoder for Codec {
    type Item = Raw;
    type Error = tonic::Status;

    fn encode(&mut self, item: Raw, buffer: &mut tonic::codec::EncodeBuf<'_>) -> Result<(), tonic::Status> {
        bytes::BufMut::put_slice(buffer, &item.0);
        Ok(())
    }
}

struct Handler<F>(F);

impl<F, A> tonic::server::UnaryService<Asked> for Handler<F>
where
    F: Fn(tonic::Request<Asked>) -> A,
    A: Future<Output = Result<tonic::Response<Raw>, tonic::Status>> + Send + 'static,
{
    type Response = Raw;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<tonic::Response<Raw>, tonic::Status>> + Send>>;

    fn call(&mut self, request: tonic::Request<Asked>) -> Self::Future {
        Box::pin((self.0)(request))
    }
}

#[derive(Clone)]
struct Service(Plugin);

impl tonic::server::NamedService for Service {
    const NAME: &'static str = "v2.KeyManagementService";
}

impl tower::Service<http::Request<tonic::body::Body>> for Service {
    type Response = http::Response<tonic::body::Body>;
    type Error = std::convert::Infallible;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Self::Error>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        let plugin = self.0.clone();
        Box::pin(async move { Ok(plugin.answer(request).await) })
    }
}

/// Serves a plug-in on a socket until the task is aborted.
fn serve(socket: &Path, plugin: Plugin) -> tokio::task::JoinHandle<()> {
    drop(std::fs::remove_file(socket));
    let listener = tokio::net::UnixListener::bind(socket).expect("bound");
    tokio::spawn(async move {
        let incoming = tokio_stream::wrappers::UnixListenerStream::new(listener);
        let server = tonic::transport::Server::builder().add_service(Service(plugin));
        drop(server.serve_with_incoming(incoming).await);
    })
}

#[tokio::test]
async fn a_plug_in_keeps_the_key() {
    let dir = dir();
    let socket = dir.path().join("kms.sock");
    let calls = Arc::new([const { AtomicUsize::new(0) }; 3]);
    let first = serve(&socket, Plugin { key: "first".to_owned(), calls: calls.clone() });
    let provider = format!("{{kms: {{apiVersion: v2, name: k, endpoint: 'unix://{}'}}}}", socket.display());
    let rules = rule("secrets", &provider);
    let running = start_in(dir, configured(&rules)).await;
    for name in ["a", "b", "c"] {
        running.create(SECRETS, json!({"metadata": {"name": name}, "stringData": {"k": "hidden"}})).await;
    }
    let health = running.ask(Method::GET, "/readyz/kms-providers", None).await;
    assert_eq!((health.code(), health.text()), (200, "ok"));
    assert_eq!(calls[1].load(Ordering::Relaxed), 1, "one seed for all values");
    let (dir, values) = stop(running, &["core/secrets/default/a", "core/secrets/default/b"]).await;
    for value in values {
        assert!(value.starts_with("k8s:enc:kms:v2:k:") && value.contains("first"), "{value}");
    }
    // Another start knows no seed; the plug-in opens it once for all values. Its key has changed meanwhile.
    first.abort();
    let before = calls[2].load(Ordering::Relaxed);
    let second = serve(&socket, Plugin { key: "second".to_owned(), calls: calls.clone() });
    let running = start_in(dir, configured(&rules)).await;
    for name in ["a", "b", "c"] {
        assert_eq!(secret(&running, name).await["data"]["k"], "aGlkZGVu");
    }
    assert_eq!(calls[2].load(Ordering::Relaxed) - before, 1);
    touch(&running, "a").await;
    let (_dir, values) = stop(running, &["core/secrets/default/a", "core/secrets/default/b"]).await;
    assert!(values[0].contains("second") && values[1].contains("first"));
    second.abort();
}
