//! The changes of a kind. Lists are streamed (`sendInitialEvents`) where the server can, and paged where it refuses, which
//! an older server does and one whose etcd cannot tell its progress.

use std::fmt::Debug;
use std::pin::Pin;
use std::time::Duration;

use futures::stream::{self, Stream, StreamExt};
use kube::runtime::watcher::{self, Event, InitialListStrategy};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;

/// The wait after a failure; it doubles with each until something is heard again.
const FIRST_RETRY: Duration = Duration::from_millis(20);
const LAST_RETRY: Duration = Duration::from_secs(10);
/// Objects on a page where the server does not stream.
const PAGE: u32 = 500;

type Events<K> = Pin<Box<dyn Stream<Item = watcher::Result<Event<K>>> + Send>>;

struct Following<K: Resource> {
    api: Api<K>,
    config: watcher::Config,
    events: Events<K>,
    /// Nothing has been listed whole yet, and the list is streamed.
    trying: bool,
    wait: Duration,
    failed: bool,
}

/// Lists and then watches until it is dropped. An error is told and tried again after a while; one that says that the server
/// streams no lists is not told, as another way is then taken.
pub fn follow<K>(
    api: Api<K>,
    config: watcher::Config,
) -> impl Stream<Item = watcher::Result<Event<K>>> + Send + use<K>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let config = watcher::Config {
        initial_list_strategy: InitialListStrategy::StreamingList,
        page_size: None,
        ..config
    };
    let events = watcher::watcher(api.clone(), config.clone()).boxed();
    let start = Following { api, config, events, trying: true, wait: FIRST_RETRY, failed: false };
    stream::unfold(start, |mut this| async move {
        if std::mem::take(&mut this.failed) {
            tokio::time::sleep(this.wait).await;
            this.wait = (this.wait * 2).min(LAST_RETRY);
        }
        loop {
            let event = this.events.next().await?;
            match &event {
                Ok(event) => {
                    this.wait = FIRST_RETRY;
                    this.trying &= !matches!(event, Event::InitDone);
                }
                Err(error) if this.trying && refused(error) => {
                    tracing::debug!(%error, "lists are paged, as the server does not stream them");
                    this.trying = false;
                    this.config.initial_list_strategy = InitialListStrategy::ListWatch;
                    this.config.page_size = Some(PAGE);
                    this.events = watcher::watcher(this.api.clone(), this.config.clone()).boxed();
                    continue;
                }
                Err(_) => this.failed = true,
            }
            return Some((event, this));
        }
    })
}

fn refused(error: &watcher::Error) -> bool {
    let status = match error {
        watcher::Error::WatchStartFailed(kube::Error::Api(status)) => status,
        watcher::Error::WatchError(status) => status,
        _ => return false,
    };
    matches!(status.code, 400 | 406 | 422 | 500 | 501)
}

#[tokio::test]
async fn a_server_that_does_not_stream_lists_is_paged() {
    use http::{Request, Response};
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::client::Body;
    use serde_json::json;

    let served = tower::service_fn(|request: Request<Body>| async move {
        let query = request.uri().query().unwrap_or_default().to_owned();
        let body = if query.contains("sendInitialEvents=true") {
            let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 500,
                "reason": "InternalError", "message": "the storage cannot tell its progress"});
            json!({"type": "ERROR", "object": status})
        } else {
            assert!(!query.contains("watch=true"), "nothing is watched before it is listed");
            json!({"kind": "ConfigMapList", "apiVersion": "v1", "metadata": {"resourceVersion": "7"},
                "items": [{"metadata": {"name": "a", "namespace": "n", "resourceVersion": "5"}}]})
        };
        Ok::<_, std::convert::Infallible>(Response::new(Body::from(body.to_string().into_bytes())))
    });
    let client = kube::Client::new(served, "default");
    let events = follow(Api::<ConfigMap>::all(client), watcher::Config::default());
    let heard: Vec<_> = events.take(4).map(|event| event.expect("nothing fails")).collect().await;
    let kinds: Vec<&str> = heard
        .iter()
        .map(|event| match event {
            Event::Init => "init",
            Event::InitApply(_) => "object",
            Event::InitDone => "done",
            Event::Apply(_) | Event::Delete(_) => "change",
        })
        .collect();
    assert_eq!(kinds[..], ["init", "init", "object", "done"]);
}
