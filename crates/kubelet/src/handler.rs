//! The actions that probes and lifecycle hooks share: TCP and exec against a container; `http` has the third.

use std::time::Duration;

use cri::v1::ExecSyncRequest;
use k8s_openapi::api::core::v1::Container;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::net::TcpStream;

use crate::runtime::Cri;

pub(crate) mod http;

/// What is kept of an output or a body at most.
const MAX_OUTPUT: usize = 10 * 1024;

/// How an action ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Good,
    /// Good, but somebody should know.
    Warned,
    Bad,
    /// It could not be carried out, which says nothing about the container.
    Errored,
}

/// What an action gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    pub outcome: Outcome,
    /// Why not, or the output.
    pub output: String,
}

impl Answer {
    pub(crate) fn no(output: impl Into<String>) -> Self {
        Answer { outcome: Outcome::Bad, output: output.into() }
    }

    pub(crate) fn yes(output: impl Into<String>) -> Self {
        Answer { outcome: Outcome::Good, output: output.into() }
    }

    pub(crate) fn warned(output: impl Into<String>) -> Self {
        Answer { outcome: Outcome::Warned, output: output.into() }
    }

    pub(crate) fn errored(output: impl Into<String>) -> Self {
        Answer { outcome: Outcome::Errored, output: output.into() }
    }

    pub(crate) fn is_good(&self) -> bool {
        matches!(self.outcome, Outcome::Good | Outcome::Warned)
    }
}

/// The number of a port given by number or by its name in the container.
pub(crate) fn port(port: &IntOrString, container: &Container) -> Result<u16, String> {
    match port {
        IntOrString::Int(number) => u16::try_from(*number)
            .ok()
            .filter(|port| *port > 0)
            .ok_or(format!("invalid port number: {number}")),
        IntOrString::String(name) => container
            .ports
            .iter()
            .flatten()
            .find(|port| port.name.as_deref() == Some(name))
            .and_then(|port| u16::try_from(port.container_port).ok())
            .or_else(|| name.parse().ok())
            .ok_or(format!("couldn't find port: {name:?}")),
    }
}

fn join_host(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// Opens a connection and closes it.
pub(crate) async fn tcp(host: &str, port: u16, timeout: Duration) -> Answer {
    let target = join_host(host, port);
    match tokio::time::timeout(timeout, TcpStream::connect(&target)).await {
        Ok(Ok(_)) => Answer::yes(""),
        Ok(Err(error)) => Answer::no(format!("dial tcp {target}: connect: {}", reason(&error))),
        Err(_) => Answer::no(format!("dial tcp {target}: i/o timeout")),
    }
}

fn reason(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        std::io::ErrorKind::HostUnreachable => "no route to host".to_owned(),
        _ => error.to_string(),
    }
}

/// Runs a command in the container; exit code 0 is good.
pub(crate) async fn exec(cri: &Cri, id: &str, command: &[String], timeout: Duration) -> Answer {
    let request = ExecSyncRequest {
        container_id: id.to_owned(),
        cmd: command.to_vec(),
        timeout: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
    };
    let expired =
        || Answer::no(format!("command timed out: {command:?} timed out after {}s", timeout.as_secs()));
    // The runtime keeps the time; ours is the fallback.
    match tokio::time::timeout(timeout + Duration::from_secs(2), cri.runtime().exec_sync(request)).await {
        Ok(Ok(response)) => {
            let response = response.into_inner();
            let mut output = String::from_utf8_lossy(&response.stdout).into_owned();
            output.push_str(&String::from_utf8_lossy(&response.stderr));
            output.truncate(output.floor_char_boundary(MAX_OUTPUT));
            if response.exit_code == 0 { Answer::yes(output) } else { Answer::no(output) }
        }
        Ok(Err(status)) if status.code() == tonic::Code::DeadlineExceeded => expired(),
        Ok(Err(status)) => {
            Answer::errored(format!("rpc error: code = {:?} desc = {}", status.code(), status.message()))
        }
        Err(_) => expired(),
    }
}
