//! exec, attach and port-forward: the runtime names a URL, and the upgraded connection is joined with it byte for byte.

use cri::v1::{
    AttachRequest, CheckpointContainerRequest, ContainerState, ContainerStatus, ExecRequest, ExecSyncRequest,
    PortForwardRequest,
};
use http::{HeaderValue, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::{Body, Call, Refusal, Server, full, log};
use crate::runtime::container_name;

async fn running(
    server: &Server,
    namespace: &str,
    pod: &str,
    container: &str,
) -> Result<ContainerStatus, Refusal> {
    let pod = server.pod(namespace, pod)?;
    let view = log::view(server, &pod).await?;
    let found = view.containers.into_iter().find(|found| {
        container_name(found) == container && found.state() == ContainerState::ContainerRunning
    });
    found.ok_or_else(|| Refusal::not_found(format!("container not found (\"{container}\")")))
}

pub(super) async fn exec(
    server: &Server,
    request: &mut Request<Incoming>,
    call: &Call<'_>,
    namespace: &str,
    pod: &str,
    container: &str,
) -> Result<Response<Body>, Refusal> {
    let container = running(server, namespace, pod, container).await?;
    let tty = call.flag("tty");
    let ask = ExecRequest {
        container_id: container.id,
        cmd: call.values("command"),
        tty,
        stdin: call.flag("input"),
        stdout: call.flag("output"),
        stderr: call.flag("error") && !tty,
    };
    if !ask.stdin && !ask.stdout && !ask.stderr {
        return Err(Refusal::bad_request("you must specify at least 1 of stdin, stdout, stderr"));
    }
    let answer = server.context.cri.runtime().exec(ask).await;
    join(request, &answer.map_err(|status| Refusal::internal(status.message()))?.into_inner().url).await
}

/// Runs a command to its end and answers with what it wrote.
pub(super) async fn run(
    server: &Server,
    call: &Call<'_>,
    namespace: &str,
    pod: &str,
    container: &str,
) -> Result<Response<Body>, Refusal> {
    let container = running(server, namespace, pod, container).await?;
    let command = call.value("cmd").unwrap_or_default();
    let cmd: Vec<String> = command.split_whitespace().map(str::to_owned).collect();
    let request = ExecSyncRequest { container_id: container.id, cmd, timeout: 0 };
    let answer = server.context.cri.runtime().exec_sync(request).await;
    let answer = answer.map_err(|status| Refusal::internal(status.message()))?.into_inner();
    let mut output = answer.stdout.to_vec();
    output.extend_from_slice(&answer.stderr);
    if answer.exit_code != 0 {
        let text = String::from_utf8_lossy(&output).into_owned();
        return Err(Refusal::internal(format!(
            "command {command:?} exited with {}: {text}",
            answer.exit_code
        )));
    }
    Ok(super::answer(StatusCode::OK, "text/plain; charset=utf-8", output))
}

/// Asks the runtime for a checkpoint; one that cannot make any says so.
pub(super) async fn checkpoint(
    server: &Server,
    namespace: &str,
    pod: &str,
    container: &str,
) -> Result<Response<Body>, Refusal> {
    let found = running(server, namespace, pod, container).await?;
    let dir = server.context.config.root_dir.join("checkpoints");
    let at = jiff::Timestamp::now().to_string();
    let file = dir.join(format!("checkpoint-{pod}_{namespace}-{container}-{at}.tar"));
    let location = file.to_string_lossy().into_owned();
    let request =
        CheckpointContainerRequest { container_id: found.id, location: location.clone(), timeout: 0 };
    match server.context.cri.runtime().checkpoint_container(request).await {
        Ok(_) => {
            let list = serde_json::json!({"items": [location]});
            Ok(super::answer(StatusCode::OK, "application/json", list.to_string()))
        }
        Err(status) => {
            let unimplemented = status.code() == tonic::Code::Unimplemented;
            let code =
                if unimplemented { StatusCode::NOT_IMPLEMENTED } else { StatusCode::INTERNAL_SERVER_ERROR };
            let message =
                format!("checkpointing of {namespace}/{pod}/{container} failed ({})", status.message());
            Err(Refusal::new(code, message))
        }
    }
}

pub(super) async fn attach(
    server: &Server,
    request: &mut Request<Incoming>,
    call: &Call<'_>,
    namespace: &str,
    pod: &str,
    container: &str,
) -> Result<Response<Body>, Refusal> {
    let container = running(server, namespace, pod, container).await?;
    let tty = call.flag("tty");
    let ask = AttachRequest {
        container_id: container.id,
        stdin: call.flag("input"),
        tty,
        stdout: call.flag("output"),
        stderr: call.flag("error") && !tty,
    };
    let answer = server.context.cri.runtime().attach(ask).await;
    join(request, &answer.map_err(|status| Refusal::internal(status.message()))?.into_inner().url).await
}

pub(super) async fn port_forward(
    server: &Server,
    request: &mut Request<Incoming>,
    call: &Call<'_>,
    namespace: &str,
    pod: &str,
) -> Result<Response<Body>, Refusal> {
    let pod = server.pod(namespace, pod)?;
    let view = log::view(server, &pod).await?;
    let sandbox =
        view.sandbox.filter(|_| true).ok_or_else(|| Refusal::not_found("the pod has no sandbox"))?;
    let lists = [call.values("port"), call.values("ports")].concat();
    let port = lists.iter().flat_map(|list| list.split(',')).filter_map(|port| port.parse().ok()).collect();
    let ask = PortForwardRequest { pod_sandbox_id: sandbox.id, port };
    let answer = server.context.cri.runtime().port_forward(ask).await;
    join(request, &answer.map_err(|status| Refusal::internal(status.message()))?.into_inner().url).await
}

/// Sends the request on to `url`. If that switches protocols, so do we, and the two connections become one.
async fn join(request: &mut Request<Incoming>, url: &str) -> Result<Response<Body>, Refusal> {
    let unreachable = |error: &dyn std::fmt::Display| {
        Refusal::new(StatusCode::BAD_GATEWAY, format!("error dialing backend: {error}"))
    };
    let target: Uri = url.parse().map_err(|error| unreachable(&error))?;
    let authority = target.authority().ok_or_else(|| unreachable(&"the runtime's URL has no host"))?.clone();
    let address = format!("{}:{}", authority.host(), authority.port_u16().unwrap_or(80));
    let stream = TcpStream::connect(address).await.map_err(|error| unreachable(&error))?;
    let _ = stream.set_nodelay(true);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| unreachable(&error))?;
    tokio::spawn(connection.with_upgrades());
    let path = target.path_and_query().map_or("/", |path| path.as_str());
    let mut onward = Request::builder().method(request.method().clone()).uri(path);
    for (name, value) in request.headers() {
        // The client's credentials are for us, not for the runtime.
        if name != http::header::HOST && name != http::header::AUTHORIZATION {
            onward = onward.header(name, value);
        }
    }
    let host = HeaderValue::from_str(authority.as_str()).map_err(|error| unreachable(&error))?;
    let onward = onward.header(http::header::HOST, host).body(Empty::<Bytes>::new());
    let onward = onward.map_err(|error| unreachable(&error))?;
    let mut response = sender.send_request(onward).await.map_err(|error| unreachable(&error))?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(response.map(|body| body.map_err(std::io::Error::other).boxed()));
    }
    let backend = hyper::upgrade::on(&mut response);
    let client = hyper::upgrade::on(request);
    tokio::spawn(async move {
        if let Err(error) = streaming::tunnel(client, backend).await {
            tracing::debug!(%error, "a stream to a container broke");
        }
    });
    Ok(response.map(|_| full("")))
}
