//! `/containerLogs/<namespace>/<pod>/<container>`.

use std::path::PathBuf;

use cri::v1::{ContainerState, ContainerStatus, ContainerStatusRequest};
use futures::StreamExt;
use http::{Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;

use super::{Body, Call, Refusal, Server, answer};
use crate::logs::{self, Alive, Options};
use crate::podutil;
use crate::runtime::{Cri, PodView, container_name};

/// A container that a log belongs to.
struct Writer {
    cri: Cri,
    id: String,
    events: watch::Receiver<u64>,
}

impl Alive for Writer {
    async fn alive(&mut self) -> bool {
        self.events.borrow_and_update();
        let request = ContainerStatusRequest { container_id: self.id.clone(), verbose: false };
        let status = self.cri.runtime().container_status(request).await;
        let status = status.ok().and_then(|response| response.into_inner().status);
        status.is_some_and(|status| {
            matches!(status.state(), ContainerState::ContainerRunning | ContainerState::ContainerCreated)
        })
    }

    async fn changed(&mut self) {
        if self.events.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

fn options(call: &Call<'_>) -> Result<Options, Refusal> {
    let number = |name: &str| -> Result<Option<u64>, Refusal> {
        let Some(text) = call.value(name) else { return Ok(None) };
        text.parse().map(Some).map_err(|_| Refusal::bad_request(format!("invalid {name}: {text:?}")))
    };
    let since = match (number("sinceSeconds")?, call.value("sinceTime")) {
        (Some(seconds), _) => {
            let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
            Timestamp::now().checked_sub(SignedDuration::from_secs(seconds)).ok()
        }
        (None, Some(text)) => {
            let parsed =
                text.parse().map_err(|_| Refusal::bad_request(format!("invalid sinceTime: {text:?}")))?;
            Some(parsed)
        }
        (None, None) => None,
    };
    Ok(Options {
        follow: call.flag("follow"),
        tail: number("tailLines")?,
        since,
        timestamps: call.flag("timestamps"),
        limit: number("limitBytes")?,
        only: match call.value("stream") {
            Some("Stdout") => Some(false),
            Some("Stderr") => Some(true),
            _ => None,
        },
    })
}

pub(super) async fn serve(
    server: &Server,
    call: &Call<'_>,
    namespace: &str,
    pod: &str,
    container: &str,
) -> Result<Response<Body>, Refusal> {
    let options = options(call)?;
    let pod = server.pod(namespace, pod)?;
    if podutil::container(&pod, container).is_none() {
        let message = format!("container {container:?} not found in pod {:?}", podutil::name(&pod));
        return Err(Refusal::not_found(message));
    }
    let view = view(server, &pod).await?;
    let chosen = choose(&pod, &view, container, call.flag("previous"))?;
    let path = PathBuf::from(&chosen.log_path);
    let writer =
        Writer { cri: server.context.cri.clone(), id: chosen.id.clone(), events: server.pods.events() };
    let (sender, receiver) = mpsc::channel(16);
    tokio::spawn(async move {
        if let Err(error) = logs::read(path.clone(), options, writer, sender).await {
            tracing::debug!(%error, path = %path.display(), "cannot read a log");
        }
    });
    let frames = ReceiverStream::new(receiver).map(|bytes| Ok(Frame::data(bytes)));
    let mut response = answer(StatusCode::OK, "text/plain", "");
    *response.body_mut() = BodyExt::boxed(StreamBody::new(frames));
    Ok(response)
}

/// What the runtime has of the pod.
pub(super) async fn view(server: &Server, pod: &Pod) -> Result<PodView, Refusal> {
    let internal = |status: tonic::Status| Refusal::internal(status.message());
    let sandboxes = server.context.cri.sandboxes().await.map_err(internal)?;
    let ids: Vec<String> =
        sandboxes.get(podutil::uid(pod)).into_iter().flatten().map(|found| found.id.clone()).collect();
    server.context.cri.view(&ids).await.map_err(internal)
}

/// The newest instance that has run, or with `previous` the one before the present one.
fn choose<'a>(
    pod: &Pod,
    view: &'a PodView,
    name: &str,
    previous: bool,
) -> Result<&'a ContainerStatus, Refusal> {
    let mut instances = view.containers.iter().filter(|container| {
        container_name(container) == name && container.state() != ContainerState::ContainerCreated
    });
    let newest = instances.next();
    let pod_name = podutil::name(pod);
    if previous {
        // A container that waits for its next start: its newest instance is the previous one.
        let waits =
            pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten()).any(|status| {
                status.name == name && status.state.as_ref().is_some_and(|state| state.waiting.is_some())
            });
        let found = if waits { newest } else { instances.next() };
        return found.ok_or_else(|| {
            let message = format!("previous terminated container {name:?} in pod {pod_name:?} not found");
            Refusal::bad_request(message)
        });
    }
    newest.ok_or_else(|| {
        let statuses = pod.status.iter().flat_map(|status| {
            status.container_statuses.iter().flatten().chain(status.init_container_statuses.iter().flatten())
        });
        let waiting = statuses
            .filter(|status| status.name == name)
            .find_map(|status| status.state.as_ref()?.waiting.as_ref()?.reason.clone());
        let reason = waiting.unwrap_or_else(|| "ContainerCreating".to_owned());
        let why = match reason.as_str() {
            "ErrImagePull" | "ImagePullBackOff" => "trying and failing to pull image".to_owned(),
            other => other.to_owned(),
        };
        Refusal::bad_request(format!("container {name:?} in pod {pod_name:?} is waiting to start: {why}"))
    })
}
