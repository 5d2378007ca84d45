//! Processes added to a running container: with their output collected, or with their streams carried to a client.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use cri::v1::{ExecRequest, ExecSyncRequest, ExecSyncResponse};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use streaming::{ExecOptions, ExecProtocol, ExecStreams, Outcome};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;

use crate::error::Error;
use crate::node::client::{self, receive};
use crate::node::{Container, Node};
use crate::shim::protocol::{ExecPlan, Reply, Request};
use crate::shim::sys;

/// Output beyond this is dropped, as the kubelet's own limit is.
const MAX_OUTPUT: usize = 16 << 20;
/// How long output may still come when the process has ended: others may hold its streams open.
const DRAIN: Duration = Duration::from_secs(1);

fn pipe() -> Result<(OwnedFd, OwnedFd), Error> {
    sys::pipe().map_err(Error::io("pipe"))
}

fn reader(fd: OwnedFd) -> Result<pipe::Receiver, Error> {
    pipe::Receiver::from_owned_fd(fd).map_err(Error::io("pipe"))
}

/// Reads to the end, keeping at most [`MAX_OUTPUT`].
async fn collect(mut from: impl AsyncRead + Unpin, into: &mut Vec<u8>) {
    let mut buffer = vec![0; 16 << 10];
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        let room = MAX_OUTPUT.saturating_sub(into.len());
        into.extend_from_slice(&buffer[..n.min(room)]);
    }
}

async fn exit_code(mut connection: UnixStream) -> Result<i32, Error> {
    match receive(&mut connection).await {
        Ok(Reply::Exited { code }) => Ok(code),
        Ok(other) => Err(Error::Internal(format!("unexpected answer of the shim: {other:?}"))),
        Err(error) => Err(client::Error::Io(error).into()),
    }
}

/// Runs a command to its end and gives its output.
pub async fn exec_sync(
    node: &Arc<Node>,
    container: &Container,
    request: ExecSyncRequest,
) -> Result<ExecSyncResponse, Error> {
    if request.cmd.is_empty() {
        return Err(Error::Invalid("no command is given".into()));
    }
    let sandbox = node.sandbox(&container.sandbox)?;
    let (out, out_in) = pipe()?;
    let (err, err_in) = pipe()?;
    let plan =
        ExecPlan { id: container.id.clone(), args: request.cmd, tty: false, stdio: [false, true, true] };
    let fds = [out_in.as_raw_fd(), err_in.as_raw_fd()];
    let limit = u64::try_from(request.timeout).ok().filter(|s| *s > 0).map(Duration::from_secs);
    let opened = sandbox.shim.open(&Request::Exec(plan), &fds).await;
    drop((out_in, err_in));
    let (connection, _) = opened?;

    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let run = async {
        let mut output = std::pin::pin!(async {
            tokio::join!(collect(reader(out)?, &mut stdout), collect(reader(err)?, &mut stderr));
            Ok::<_, Error>(())
        });
        let mut ended = std::pin::pin!(exit_code(connection));
        tokio::select! {
            code = &mut ended => {
                let code = code?;
                let _ = tokio::time::timeout(DRAIN, output).await;
                Ok(code)
            }
            result = &mut output => {
                result?;
                ended.await
            }
        }
    };
    // When the time is over the connection is dropped, which makes the shim kill the process.
    let code = match limit {
        Some(limit) => tokio::time::timeout(limit, run)
            .await
            .map_err(|_| Error::Timeout(format!("command timed out after {} s", limit.as_secs())))??,
        None => run.await?,
    };
    Ok(ExecSyncResponse { stdout: stdout.into(), stderr: stderr.into(), exit_code: code })
}

/// Serves an exec session.
pub async fn run(node: Arc<Node>, request: ExecRequest, upgrade: OnUpgrade, protocol: ExecProtocol) {
    let options = ExecOptions {
        stdin: request.stdin,
        stdout: request.stdout,
        stderr: request.stderr,
        tty: request.tty,
    };
    let upgraded = match upgrade.await {
        Ok(upgraded) => upgraded,
        Err(error) => return tracing::debug!(%error, "exec upgrade"),
    };
    let session = match streaming::serve_exec(TokioIo::new(upgraded), protocol, options).await {
        Ok(session) => session,
        Err(error) => return tracing::debug!(%error, "exec session"),
    };
    let ExecStreams { stdin, stdout, stderr, resize, ended, reporter } = session;
    let streams = Streams { stdin, stdout, stderr, resize };
    let work = async {
        if request.tty {
            with_terminal(&node, &request, streams).await
        } else {
            with_pipes(&node, &request, streams).await
        }
    };
    let result = tokio::select! {
        result = work => result,
        // The client has gone: dropping the work closes the shim's connection, which ends the process.
        () = ended.cancelled() => return,
    };
    reporter
        .finish(match result {
            Ok(code) => Outcome::Exited(code),
            Err(error) => Outcome::Failed(error.to_string()),
        })
        .await;
}

struct Streams {
    stdin: Option<streaming::Stream>,
    stdout: Option<streaming::Stream>,
    stderr: Option<streaming::Stream>,
    resize: tokio::sync::mpsc::Receiver<streaming::TerminalSize>,
}

async fn with_pipes(node: &Arc<Node>, request: &ExecRequest, streams: Streams) -> Result<i32, Error> {
    let container = node.container(&request.container_id)?;
    let sandbox = node.sandbox(&container.sandbox)?;
    let Streams { stdin, stdout, stderr, .. } = streams;
    let mut theirs = Vec::new();
    let mut input = None;
    if let Some(stdin) = stdin {
        let (end, ours) = pipe()?;
        input = Some((stdin, pipe::Sender::from_owned_fd(ours).map_err(Error::io("pipe"))?));
        theirs.push(end);
    }
    let mut outputs = Vec::new();
    let mut stdio = [input.is_some(), false, false];
    for (number, stream) in [(1, stdout), (2, stderr)] {
        if let Some(stream) = stream {
            let (ours, end) = pipe()?;
            outputs.push((reader(ours)?, stream));
            theirs.push(end);
            stdio[number] = true;
        }
    }
    let plan = ExecPlan { id: container.id.clone(), args: request.cmd.clone(), tty: false, stdio };
    let fds: Vec<i32> = theirs.iter().map(AsRawFd::as_raw_fd).collect();
    let opened = sandbox.shim.open(&Request::Exec(plan), &fds).await;
    drop(theirs);
    let (connection, _) = opened?;
    let feeding = tokio::spawn(async move {
        if let Some((mut from, mut to)) = input {
            let _ = tokio::io::copy(&mut from, &mut to).await;
        }
    });
    let _feeding = AbortOnDrop(feeding.abort_handle());
    let mut copying = tokio::task::JoinSet::new();
    for (mut from, mut to) in outputs {
        copying.spawn(async move {
            let _ = tokio::io::copy(&mut from, &mut to).await;
            let _ = to.shutdown().await;
        });
    }
    let code = exit_code(connection).await?;
    let _ = tokio::time::timeout(DRAIN, async { while copying.join_next().await.is_some() {} }).await;
    Ok(code)
}

struct AbortOnDrop(tokio::task::AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn with_terminal(node: &Arc<Node>, request: &ExecRequest, streams: Streams) -> Result<i32, Error> {
    let container = node.container(&request.container_id)?;
    let sandbox = node.sandbox(&container.sandbox)?;
    let Streams { stdin, stdout, mut resize, .. } = streams;
    let (ours, theirs) = UnixStream::pair().map_err(Error::io("socket pair"))?;
    let plan = ExecPlan { id: container.id.clone(), args: request.cmd.clone(), tty: true, stdio: [false; 3] };
    let opened = sandbox.shim.open(&Request::Exec(plan), &[theirs.as_raw_fd()]).await;
    drop(theirs);
    let (connection, _) = opened?;
    let master = terminal(&ours).await?;
    // SAFETY: an `OwnedFd` names the same open descriptor for as long as it lives.
    let master = unsafe { AsyncFd::register(master) };
    let master = Arc::new(master.map_err(|e| Error::io("terminal")(e.into()))?);

    let to_terminal = {
        let master = master.clone();
        tokio::spawn(async move {
            let Some(mut stdin) = stdin else { return };
            let mut buffer = vec![0; 4096];
            while let Ok(n @ 1..) = stdin.read(&mut buffer).await {
                if write_all(&master, &buffer[..n]).await.is_err() {
                    return;
                }
            }
        })
    };
    let _to_terminal = AbortOnDrop(to_terminal.abort_handle());
    let resizing = {
        let master = master.clone();
        tokio::spawn(async move {
            while let Some(size) = resize.recv().await {
                let _ = sys::resize(master.as_raw_fd(), size.width, size.height);
            }
        })
    };
    let _resizing = AbortOnDrop(resizing.abort_handle());
    let mut from_terminal = tokio::spawn(async move {
        let Some(mut stdout) = stdout else { return };
        let mut buffer = vec![0; 16 << 10];
        while let Ok(n @ 1..) = read(&master, &mut buffer).await {
            if stdout.write_all(&buffer[..n]).await.is_err() {
                return;
            }
        }
        let _ = stdout.shutdown().await;
    });
    let _from_terminal = AbortOnDrop(from_terminal.abort_handle());
    let code = exit_code(connection).await?;
    let _ = tokio::time::timeout(DRAIN, &mut from_terminal).await;
    Ok(code)
}

/// Takes the terminal's master end from the socket that the process sent it through.
async fn terminal(socket: &UnixStream) -> Result<OwnedFd, Error> {
    use std::os::fd::AsFd;
    let fail = Error::io("terminal");
    let mut fds = Vec::new();
    loop {
        socket.readable().await.map_err(Error::io("terminal"))?;
        let received = socket
            .try_io(tokio::io::Interest::READABLE, || sys::receive(socket.as_fd(), &mut [0; 16], &mut fds));
        match received {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(fail(e)),
            Ok(_) => break,
        }
    }
    let master = fds.pop().ok_or_else(|| Error::Internal("the process sent no terminal".into()))?;
    sys::nonblocking(master.as_raw_fd()).map_err(fail)?;
    Ok(master)
}

async fn read(terminal: &AsyncFd<OwnedFd>, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        let mut ready = terminal.readable().await?;
        match sys::read(terminal.as_raw_fd(), buffer)? {
            Some(n) => return Ok(n),
            None => ready.clear_ready(),
        }
    }
}

async fn write_all(terminal: &AsyncFd<OwnedFd>, mut data: &[u8]) -> io::Result<()> {
    while !data.is_empty() {
        let mut ready = terminal.writable().await?;
        match sys::write(terminal.as_raw_fd(), data)? {
            Some(n) => data = &data[n..],
            None => ready.clear_ready(),
        }
    }
    Ok(())
}
