//! A server of its own for each test, and requests to it without a socket.

use std::sync::Arc;

use apiserver::{ApiServer, Body, Config, UserInfo};
use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use tower::Service;

/// A running server; it ends with the test.
pub struct Running {
    pub server: ApiServer,
    pub shutdown: CancellationToken,
    pub dir: Arc<tempfile::TempDir>,
    pub done: tokio::task::JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// A user in groups, beside that of everybody who is known.
pub fn user(name: &str, groups: &[&str]) -> UserInfo {
    let groups = groups.iter().map(|group| (*group).to_owned()).collect();
    UserInfo { name: name.to_owned(), groups, ..UserInfo::default() }
}

/// Starts a server over a new store.
pub async fn start(change: impl FnOnce(&mut Config)) -> Running {
    let dir = Arc::new(tempfile::tempdir().expect("a temporary directory"));
    start_in(dir, change).await
}

/// Starts a server over what a folder holds.
pub async fn start_in(dir: Arc<tempfile::TempDir>, change: impl FnOnce(&mut Config)) -> Running {
    let mut config = Config::new(dir.path());
    config.bind.set_port(0);
    change(&mut config);
    let file = dir.path().join("store.redb");
    let store = loop {
        // A server that has just ended may hold the file for a moment.
        match store::embedded::open(&file) {
            Ok(store) => break store,
            Err(_) => tokio::task::yield_now().await,
        }
    };
    let server = apiserver::start(config, store).await.expect("the server starts");
    let shutdown = CancellationToken::new();
    let done = tokio::spawn({
        let (server, shutdown) = (server.clone(), shutdown.clone());
        async move { server.serve(shutdown).await }
    });
    Running { server, shutdown, dir, done }
}

/// An answer, read to its end.
pub struct Answer {
    pub head: http::response::Parts,
    pub body: Bytes,
}

impl Answer {
    pub fn code(&self) -> u16 {
        self.head.status.as_u16()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {:?}", self.body))
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("text")
    }

    pub fn header(&self, name: &str) -> &str {
        self.head.headers.get(name).and_then(|h| h.to_str().ok()).unwrap_or_default()
    }

    pub async fn read(response: Response<Body>) -> Self {
        let (head, body) = response.into_parts();
        let Ok(body) = body.collect().await;
        Self { head, body: body.to_bytes() }
    }
}

impl Running {
    /// Sends a request as an administrator.
    pub async fn ask(&self, method: Method, path: &str, body: Option<Value>) -> Answer {
        self.ask_as(UserInfo::system_master("test"), method, path, body).await
    }

    /// Sends a request as a user.
    pub async fn ask_as(&self, user: UserInfo, method: Method, path: &str, body: Option<Value>) -> Answer {
        let body = body.map_or_else(Bytes::new, |value| value.to_string().into());
        let request = Request::builder().method(method).uri(path).header("content-type", "application/json");
        let request = request.body(Full::new(body)).expect("a request");
        self.send(user, request).await
    }

    /// Sends any request.
    pub async fn send<B>(&self, user: UserInfo, request: Request<B>) -> Answer
    where
        B: http_body::Body + Send + Unpin + 'static,
        B::Data: Send,
        B::Error: std::fmt::Display + Send,
    {
        let Ok(response) = self.server.in_process(user).call(request).await;
        Answer::read(response).await
    }

    /// Creates an object.
    pub async fn create(&self, path: &str, object: Value) -> Value {
        let answer = self.ask(Method::POST, path, Some(object)).await;
        assert_eq!(answer.code(), 201, "{}", answer.text());
        answer.json()
    }
}
