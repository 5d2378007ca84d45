//! Exec and attach sessions: stdin, stdout, stderr, terminal sizes, and the final status on the error stream.

use std::time::Duration;

use bytes::{Buf, BytesMut};
use serde::Deserialize;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::negotiate::ExecProtocol;
use crate::spdy::Connection;
use crate::websocket::{Channels, Codec, Direction};
use crate::{Error, Stream};

const STREAM_CREATION: Duration = Duration::from_secs(30);
const ERROR_CHANNEL: u8 = 3;
/// Bound of one terminal-size message.
const MAX_RESIZE: usize = 4096;

/// Which streams the request asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExecOptions {
    pub stdin: bool,
    pub stdout: bool,
    /// Ignored with `tty`: a terminal has one output.
    pub stderr: bool,
    pub tty: bool,
}

/// A terminal's size in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct TerminalSize {
    pub width: u16,
    pub height: u16,
}

/// The streams of a session.
pub struct ExecStreams {
    /// Read the client's input here; its end is the client's half-close.
    pub stdin: Option<Stream>,
    pub stdout: Option<Stream>,
    pub stderr: Option<Stream>,
    /// Terminal sizes as they change; closed when the client sends no more.
    pub resize: mpsc::Receiver<TerminalSize>,
    /// Cancelled when the client has gone.
    pub ended: CancellationToken,
    /// Ends the session.
    pub reporter: Reporter,
}

/// How the command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Exited(i32),
    /// It could not be run; the reason is for the user.
    Failed(String),
}

/// Tells the client how the command ended and closes the connection.
pub struct Reporter {
    connection: Transport,
    error: Option<Stream>,
    version: u8,
    failure: &'static str,
}

enum Transport {
    Spdy(Connection),
    WebSocket { channels: Channels, codec: Codec },
}

impl Reporter {
    /// Sends everything written to stdout and stderr, then the status, then closes in order. The session's output streams must
    /// have been shut down or dropped before, or this waits for them.
    pub async fn finish(mut self, outcome: Outcome) {
        let status = self.status(&outcome);
        let error = self.error.take();
        // A client that has gone needs no status, so failed sends are of no interest here.
        match self.connection {
            Transport::Spdy(connection) => {
                if let (Some(mut error), Some(text)) = (error, status) {
                    let _ = error.write_all(text.as_bytes()).await;
                    let _ = error.shutdown().await;
                }
                connection.close().await;
            }
            Transport::WebSocket { channels, codec } => {
                // All channels share one order here, and clients take the status for the end of the session.
                drop(error);
                channels.drained().await;
                if let Some(text) = status {
                    channels.send(ERROR_CHANNEL, codec, text.as_bytes()).await;
                }
                channels.close().await;
            }
        }
    }

    fn status(&self, outcome: &Outcome) -> Option<String> {
        let status = match outcome {
            Outcome::Exited(0) => json!({"metadata": {}, "status": "Success"}),
            Outcome::Exited(code) => json!({
                "metadata": {},
                "status": "Failure",
                "message": format!("command terminated with non-zero exit code: exit status {code}"),
                "reason": "NonZeroExitCode",
                "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
            }),
            Outcome::Failed(reason) => json!({
                "metadata": {},
                "status": "Failure",
                "message": format!("Internal error occurred: {}: {reason}", self.failure),
                "reason": "InternalError",
                "code": 500,
            }),
        };
        if self.version >= 4 {
            return Some(status.to_string());
        }
        status["message"].as_str().map(str::to_owned)
    }
}

/// Opens the streams of an exec session on an upgraded connection.
pub async fn serve_exec<IO>(
    io: IO,
    protocol: ExecProtocol,
    options: ExecOptions,
) -> Result<ExecStreams, Error>
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    serve(io, protocol, options, "error executing command in container").await
}

/// Opens the streams of an attach session; it differs from exec only in the words of a failure.
pub async fn serve_attach<IO>(
    io: IO,
    protocol: ExecProtocol,
    options: ExecOptions,
) -> Result<ExecStreams, Error>
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    serve(io, protocol, options, "error attaching to container").await
}

async fn serve<IO>(
    io: IO,
    protocol: ExecProtocol,
    mut options: ExecOptions,
    failure: &'static str,
) -> Result<ExecStreams, Error>
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    options.stderr &= !options.tty;
    match protocol {
        ExecProtocol::Spdy { version } => serve_spdy(io, version, options, failure).await,
        ExecProtocol::WebSocket { version, base64 } => {
            let codec = Codec { base64, close_signal: version >= 5 };
            Ok(serve_websocket(io, version, codec, options, failure).await)
        }
    }
}

async fn serve_spdy<IO>(
    io: IO,
    version: u8,
    options: ExecOptions,
    failure: &'static str,
) -> Result<ExecStreams, Error>
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut connection = Connection::new(io);
    let resizes = options.tty && version >= 3;
    let expected = 1
        + usize::from(options.stdin)
        + usize::from(options.stdout)
        + usize::from(options.stderr)
        + usize::from(resizes);
    let (mut stdin, mut stdout, mut stderr, mut error, mut resize) = (None, None, None, None, None);
    let collect = async {
        let mut received = 0;
        while received < expected {
            let incoming = connection.accept().await.ok_or(Error::Closed)?;
            let slot = match incoming.header("streamType") {
                Some("error") => &mut error,
                Some("stdin") => &mut stdin,
                Some("stdout") => &mut stdout,
                Some("stderr") => &mut stderr,
                Some("resize") => &mut resize,
                other => {
                    tracing::debug!(kind = ?other, "unexpected stream type");
                    continue;
                }
            };
            if slot.replace(incoming.stream).is_none() {
                received += 1;
            }
        }
        Ok::<(), Error>(())
    };
    tokio::time::timeout(STREAM_CREATION, collect).await.map_err(|_| Error::StreamTimeout)??;
    Ok(ExecStreams {
        stdin,
        stdout,
        stderr,
        resize: sizes(resize),
        ended: connection.ended(),
        reporter: Reporter { connection: Transport::Spdy(connection), error, version, failure },
    })
}

async fn serve_websocket<IO>(
    io: IO,
    version: u8,
    codec: Codec,
    options: ExecOptions,
    failure: &'static str,
) -> ExecStreams
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let when = |wanted: bool, direction| if wanted { direction } else { Direction::None };
    let directions = [
        when(options.stdin, Direction::Read),
        when(options.stdout, Direction::Write),
        when(options.stderr, Direction::Write),
        Direction::Write,
        Direction::Read,
    ];
    let (channels, streams) = Channels::open(io, codec, &directions).await;
    let lowest = if options.stdout {
        1
    } else if options.stderr {
        2
    } else {
        ERROR_CHANNEL
    };
    // Tells the client that the session stands.
    channels.send(lowest, codec, &[]).await;
    let mut streams = streams.into_iter();
    let mut take = |wanted: bool| streams.next().filter(|_| wanted);
    let (stdin, stdout, stderr) = (take(options.stdin), take(options.stdout), take(options.stderr));
    let (error, resize) = (take(true), take(true));
    ExecStreams {
        stdin,
        stdout,
        stderr,
        resize: sizes(resize),
        ended: channels.ended(),
        reporter: Reporter { connection: Transport::WebSocket { channels, codec }, error, version, failure },
    }
}

/// Reads concatenated JSON sizes until the stream ends or makes no sense.
fn sizes(stream: Option<Stream>) -> mpsc::Receiver<TerminalSize> {
    let (sender, receiver) = mpsc::channel(8);
    let Some(mut stream) = stream else { return receiver };
    tokio::spawn(async move {
        let mut buffer = BytesMut::new();
        loop {
            let mut values = serde_json::Deserializer::from_slice(&buffer).into_iter::<TerminalSize>();
            let next = values.next();
            let used = values.byte_offset();
            match next {
                Some(Ok(size)) => {
                    buffer.advance(used);
                    if sender.send(size).await.is_err() {
                        return;
                    }
                    continue;
                }
                Some(Err(error)) if !error.is_eof() => return,
                _ => {}
            }
            if buffer.len() > MAX_RESIZE {
                return;
            }
            match stream.read_buf(&mut buffer).await {
                Ok(read) if read > 0 => {}
                _ => return,
            }
        }
    });
    receiver
}

#[cfg(test)]
mod tests;
