//! Attach sessions: a client on the streams of a container's first process.

use std::sync::Arc;

use cri::v1::AttachRequest;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use streaming::{ExecOptions, ExecProtocol, ExecStreams, Outcome};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::error::Error;
use crate::node::Node;
use crate::shim::protocol::{Request, frame};

/// Serves an attach session.
pub async fn run(node: Arc<Node>, request: AttachRequest, upgrade: OnUpgrade, protocol: ExecProtocol) {
    let options = ExecOptions {
        stdin: request.stdin,
        stdout: request.stdout,
        stderr: request.stderr,
        tty: request.tty,
    };
    let upgraded = match upgrade.await {
        Ok(upgraded) => upgraded,
        Err(error) => return tracing::debug!(%error, "attach upgrade"),
    };
    let session = match streaming::serve_attach(TokioIo::new(upgraded), protocol, options).await {
        Ok(session) => session,
        Err(error) => return tracing::debug!(%error, "attach session"),
    };
    let ExecStreams { stdin, stdout, stderr, mut resize, ended, reporter } = session;
    let connection = match open(&node, &request).await {
        Ok(connection) => connection,
        Err(error) => return reporter.finish(Outcome::Failed(error.to_string())).await,
    };
    let (mut from, mut to) = connection.into_split();

    let feeding = tokio::spawn(async move {
        let Some(mut stdin) = stdin else {
            // Without input the connection's sending half stays open: its end would count as the client's.
            return std::future::pending().await;
        };
        let mut buffer = vec![0; 16 << 10];
        while let Ok(n @ 1..) = stdin.read(&mut buffer).await {
            if to.write_all(&header(frame::STDIN, n)).await.is_err()
                || to.write_all(&buffer[..n]).await.is_err()
            {
                return;
            }
        }
        let _ = to.write_all(&header(frame::STDIN_END, 0)).await;
        std::future::pending::<()>().await;
    });
    let resizing = {
        let node = node.clone();
        let id = request.container_id.clone();
        tokio::spawn(async move {
            while let Some(size) = resize.recv().await {
                let Ok(container) = node.container(&id) else { return };
                let Ok(sandbox) = node.sandbox(&container.sandbox) else { return };
                let request =
                    Request::Resize { id: container.id.clone(), width: size.width, height: size.height };
                let _ = sandbox.shim.ask(&request).await;
            }
        })
    };
    let output = async {
        let (mut stdout, mut stderr) = (stdout, stderr);
        let mut buffer = vec![0; frame::MAX];
        while let Ok(kind) = from.read_u8().await {
            let Ok(length) = from.read_u32_le().await else { break };
            let length = length as usize;
            if length > frame::MAX || from.read_exact(&mut buffer[..length]).await.is_err() {
                break;
            }
            let stream = if kind == frame::STDERR { &mut stderr } else { &mut stdout };
            if let Some(stream) = stream
                && stream.write_all(&buffer[..length]).await.is_err()
            {
                break;
            }
        }
    };
    let gone = tokio::select! {
        () = output => false,
        () = ended.cancelled() => true,
    };
    feeding.abort();
    resizing.abort();
    if !gone {
        reporter.finish(Outcome::Exited(0)).await;
    }
}

async fn open(node: &Node, request: &AttachRequest) -> Result<UnixStream, Error> {
    let container = node.container(&request.container_id)?;
    let sandbox = node.sandbox(&container.sandbox)?;
    let (connection, _) = sandbox.shim.open(&Request::Attach { id: container.id.clone() }, &[]).await?;
    Ok(connection)
}

fn header(kind: u8, length: usize) -> [u8; 5] {
    let length = (length as u32).to_le_bytes();
    [kind, length[0], length[1], length[2], length[3]]
}
