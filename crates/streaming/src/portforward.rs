//! Port-forward sessions: the client opens connections to ports of the pod, each a pair of a data and an error stream.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::Stream;
use crate::negotiate::PortForwardProtocol;
use crate::spdy::{Connection, Incoming};
use crate::websocket::{Channels, Codec, Direction, byte_stream};

const STREAM_CREATION: Duration = Duration::from_secs(30);
const MAX_PENDING: usize = 256;

/// One forwarded connection.
pub struct Forward {
    pub port: u16,
    /// The client's bytes; joined with a connection to the pod.
    pub data: Stream,
    error: Stream,
}

impl Forward {
    /// Tells the client why the port could not be reached and ends the pair.
    pub async fn fail(self, reason: &str) {
        let Forward { port: _, data, mut error } = self;
        // A client that has gone needs no reason.
        let _ = error.write_all(reason.as_bytes()).await;
        let _ = error.shutdown().await;
        drop(data);
    }

    /// Joins the client with a connection to the pod until both directions have ended.
    pub async fn join<IO>(mut self, mut backend: IO)
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let copied = tokio::io::copy_bidirectional(&mut self.data, &mut backend).await;
        if let Err(error) = copied {
            tracing::debug!(port = self.port, %error, "forwarded connection broke");
        }
    }
}

/// A port-forward session.
pub struct PortForward {
    forwards: mpsc::Receiver<Forward>,
    ended: CancellationToken,
}

impl PortForward {
    /// The next connection the client opens; `None` once the session has ended.
    pub async fn next(&mut self) -> Option<Forward> {
        self.forwards.recv().await
    }

    /// Cancelled when the client has gone.
    pub fn ended(&self) -> CancellationToken {
        self.ended.clone()
    }
}

/// Serves a port-forward session on an upgraded connection. `ports` matters only to plain WebSocket clients, which fix them in
/// the request. The session ends when the client goes or the returned value is dropped and every forward is done.
pub async fn serve_portforward<IO>(io: IO, protocol: PortForwardProtocol, ports: &[u16]) -> PortForward
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    match protocol {
        PortForwardProtocol::Spdy => spdy(Connection::new(io)),
        PortForwardProtocol::TunneledSpdy => spdy(Connection::new(byte_stream(io).await)),
        PortForwardProtocol::WebSocket { base64 } => {
            websocket(io, Codec { base64, close_signal: false }, ports).await
        }
    }
}

async fn websocket<IO>(io: IO, codec: Codec, ports: &[u16]) -> PortForward
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    // Channel numbers are one byte, and 255 is reserved.
    let ports = &ports[..ports.len().min(127)];
    let directions: Vec<Direction> = ports.iter().flat_map(|_| [Direction::Both, Direction::Write]).collect();
    let (channels, streams) = Channels::open(io, codec, &directions).await;
    let (sender, forwards) = mpsc::channel(ports.len().max(1));
    let mut streams = streams.into_iter();
    for (index, port) in ports.iter().enumerate() {
        let (Some(data), Some(error)) = (streams.next(), streams.next()) else { break };
        // The port in little endian opens both channels of the pair.
        channels.send(2 * index as u8, codec, &port.to_le_bytes()).await;
        channels.send(2 * index as u8 + 1, codec, &port.to_le_bytes()).await;
        // There is room for every port.
        let _ = sender.try_send(Forward { port: *port, data, error });
    }
    let ended = channels.ended();
    tokio::spawn(channels.close());
    PortForward { forwards, ended }
}

fn spdy(mut connection: Connection) -> PortForward {
    let (sender, forwards) = mpsc::channel(16);
    let ended = connection.ended();
    tokio::spawn(async move {
        let mut pairs = Pairs::default();
        loop {
            let incoming = tokio::select! {
                incoming = connection.accept() => incoming,
                () = sender.closed() => None,
            };
            let Some(incoming) = incoming else { break };
            let id = incoming.id;
            match pairs.add(incoming, Instant::now()) {
                Ok(Some(forward)) => {
                    if sender.send(forward).await.is_err() {
                        break;
                    }
                }
                Ok(None) => {}
                Err(reason) => {
                    tracing::debug!(reason, "refused a port-forward stream");
                    connection.reset(id).await;
                }
            }
        }
        drop((pairs, sender));
        connection.close().await;
    });
    PortForward { forwards, ended }
}

/// Streams that wait for their other half, by request.
#[derive(Default)]
struct Pairs {
    waiting: HashMap<String, (Instant, bool, Stream)>,
}

impl Pairs {
    fn add(&mut self, incoming: Incoming, now: Instant) -> Result<Option<Forward>, &'static str> {
        let port: u16 = incoming
            .header("port")
            .and_then(|port| port.parse().ok())
            .filter(|port| *port > 0)
            .ok_or("\"port\" header is required")?;
        let is_data = match incoming.header("streamType") {
            Some("data") => true,
            Some("error") => false,
            _ => return Err("invalid stream type"),
        };
        let request = match incoming.header("requestID") {
            Some(id) => id.to_owned(),
            // Clients from before request ids open the error stream first and the data stream right after it.
            None => incoming.id.wrapping_sub(if is_data { 2 } else { 0 }).to_string(),
        };
        let Some((since, waiting_is_data, other)) = self.waiting.remove(&request) else {
            self.waiting.retain(|_, (since, _, _)| now.duration_since(*since) < STREAM_CREATION);
            if self.waiting.len() >= MAX_PENDING {
                return Err("too many incomplete stream pairs");
            }
            self.waiting.insert(request, (now, is_data, incoming.stream));
            return Ok(None);
        };
        if waiting_is_data == is_data {
            self.waiting.insert(request, (since, waiting_is_data, other));
            return Err("stream already assigned");
        }
        let (data, error) = if is_data { (incoming.stream, other) } else { (other, incoming.stream) };
        Ok(Some(Forward { port, data, error }))
    }
}

#[cfg(test)]
mod tests;
