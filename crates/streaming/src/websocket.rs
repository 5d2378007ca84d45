//! WebSocket, server side: numbered channels (`channel.k8s.io` and its variants), and one plain byte stream (for SPDY
//! inside WebSocket).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut, Bytes, BytesMut};
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use std::time::Duration;
use tokio::io::{
    AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf, duplex, split,
};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error as WsError, Message};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::{BUFFER, Stream};

/// First byte of a message by which a v5 client closes one channel.
const CLOSE_SIGNAL: u8 = 255;
const CHUNK: usize = 32 * 1024;
const MAX_MESSAGE: usize = 16 << 20;
pub(crate) const KEEPALIVE: Duration = Duration::from_secs(60);
pub(crate) const LINGER: Duration = Duration::from_secs(5);

/// How channel numbers and payloads are written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Codec {
    pub base64: bool,
    /// v5: the client may half-close a channel.
    pub close_signal: bool,
}

/// What a channel carries, seen from the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    None,
    Read,
    Write,
    Both,
}

/// The connection behind a set of channels.
pub(crate) struct Channels {
    messages: mpsc::Sender<Message>,
    pumps: TaskTracker,
    done: TaskTracker,
    ended: CancellationToken,
    cut: DropGuard,
}

pub(crate) fn upgraded<IO: AsyncRead + AsyncWrite + Unpin>(
    io: IO,
) -> impl Future<Output = (SplitSink<WebSocketStream<IO>, Message>, SplitStream<WebSocketStream<IO>>)> {
    let config = WebSocketConfig::default()
        .read_buffer_size(16 * 1024)
        .write_buffer_size(0)
        .max_message_size(Some(MAX_MESSAGE))
        .max_frame_size(Some(MAX_MESSAGE));
    async move { WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await.split() }
}

impl Channels {
    /// Serves `io`; gives our end of each channel, in order.
    pub(crate) async fn open<IO>(io: IO, codec: Codec, directions: &[Direction]) -> (Self, Vec<Stream>)
    where
        IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (sink, source) = upgraded(io).await;
        let (messages, queue) = mpsc::channel(16);
        let cut = CancellationToken::new();
        let channels = Channels {
            messages: messages.clone(),
            pumps: TaskTracker::new(),
            done: TaskTracker::new(),
            ended: CancellationToken::new(),
            cut: cut.clone().drop_guard(),
        };
        let (mut inbound, mut streams) = (Vec::new(), Vec::new());
        for (number, direction) in directions.iter().enumerate() {
            let (ours, theirs) = duplex(BUFFER);
            let (outbound, mut writer) = split(ours);
            if matches!(direction, Direction::Write | Direction::Both) {
                channels.pumps.spawn(pump(number as u8, codec, outbound, messages.clone()));
            }
            if matches!(direction, Direction::Read | Direction::Both) {
                inbound.push(Some(writer));
            } else {
                // Shutting an in-memory pipe cannot fail.
                let _ = writer.shutdown().await;
                inbound.push(None);
            }
            streams.push(theirs);
        }
        let (ended, cut_writer) = (channels.ended.clone(), cut.clone());
        channels.done.spawn(async move {
            tokio::select! {
                result = write(sink, queue) => if result.is_err() { ended.cancel() },
                () = cut_writer.cancelled() => {}
            }
        });
        let ended = channels.ended.clone();
        channels.done.spawn(async move {
            tokio::select! {
                () = receive(source, codec, &mut inbound) => {}
                () = cut.cancelled() => {}
                () = ended.cancelled() => {}
            }
            ended.cancel();
            for writer in inbound.iter_mut().flatten() {
                let _ = writer.shutdown().await;
            }
        });
        (channels, streams)
    }

    /// Cancelled when the peer has gone.
    pub(crate) fn ended(&self) -> CancellationToken {
        self.ended.clone()
    }

    /// Sends one message on a channel, past its stream.
    pub(crate) async fn send(&self, number: u8, codec: Codec, payload: &[u8]) {
        // Fails only when the peer is gone, which the streams report.
        let _ = self.messages.send(message(number, codec, payload)).await;
    }

    /// Waits until what was written has been sent (all writable streams must be shut or dropped).
    pub(crate) async fn drained(&self) {
        self.pumps.close();
        tokio::select! {
            () = self.pumps.wait() => {}
            () = self.ended.cancelled() => {}
        }
    }

    /// Sends what is left, then closes.
    pub(crate) async fn close(self) {
        self.drained().await;
        let _ = self.messages.send(goodbye()).await;
        drop(self.messages);
        self.done.close();
        let _ = tokio::time::timeout(LINGER, self.done.wait()).await;
        drop(self.cut);
    }
}

/// Go's clients take a close without the normal code for a failure.
pub(crate) fn goodbye() -> Message {
    Message::Close(Some(CloseFrame { code: CloseCode::Normal, reason: "".into() }))
}

fn message(number: u8, codec: Codec, payload: &[u8]) -> Message {
    if codec.base64 {
        let mut text = String::with_capacity(1 + payload.len() * 4 / 3 + 4);
        text.push(char::from(b'0' + number));
        STANDARD.encode_string(payload, &mut text);
        Message::text(text)
    } else {
        let mut frame = BytesMut::with_capacity(1 + payload.len());
        frame.put_u8(number);
        frame.extend_from_slice(payload);
        Message::Binary(frame.freeze())
    }
}

async fn pump(
    number: u8,
    codec: Codec,
    mut outbound: ReadHalf<DuplexStream>,
    messages: mpsc::Sender<Message>,
) {
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(CHUNK);
        match outbound.read_buf(&mut buffer).await {
            Ok(read) if read > 0 => {}
            _ => return,
        }
        if messages.send(message(number, codec, &buffer)).await.is_err() {
            return;
        }
        buffer.clear();
    }
}

async fn write<IO>(
    mut sink: SplitSink<WebSocketStream<IO>, Message>,
    mut queue: mpsc::Receiver<Message>,
) -> Result<(), WsError>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    loop {
        match tokio::time::timeout(KEEPALIVE, queue.recv()).await {
            Ok(Some(Message::Close(reason))) => return sink.send(Message::Close(reason)).await,
            Ok(Some(message)) => sink.send(message).await?,
            Ok(None) => return sink.send(goodbye()).await,
            Err(_) => sink.send(Message::Ping(Bytes::new())).await?,
        }
    }
}

async fn receive<IO>(
    mut source: SplitStream<WebSocketStream<IO>>,
    codec: Codec,
    inbound: &mut [Option<WriteHalf<DuplexStream>>],
) where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    while let Some(Ok(message)) = source.next().await {
        let data = match message {
            Message::Binary(data) => data,
            Message::Text(text) => Bytes::from(text),
            Message::Close(_) => return,
            _ => continue,
        };
        let Some((&first, payload)) = data.split_first() else { continue };
        if codec.close_signal && first == CLOSE_SIGNAL {
            let [number] = payload else { return };
            let Some(channel) = inbound.get_mut(usize::from(*number)) else { return };
            if let Some(mut writer) = channel.take() {
                let _ = writer.shutdown().await;
            }
            continue;
        }
        let number = if codec.base64 { first.wrapping_sub(b'0') } else { first };
        let Some(channel) = inbound.get_mut(usize::from(number)) else { continue };
        let Some(writer) = channel else { continue };
        let decoded;
        let payload = if codec.base64 {
            match STANDARD.decode(payload) {
                Ok(bytes) => {
                    decoded = bytes;
                    &decoded
                }
                Err(_) => continue,
            }
        } else {
            payload
        };
        // A reader that went away must not stop the other channels.
        if writer.write_all(payload).await.is_err() {
            *channel = None;
        }
    }
}

/// The payloads of binary messages as one byte stream.
pub(crate) async fn byte_stream<IO>(io: IO) -> DuplexStream
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (mut sink, mut source) = upgraded(io).await;
    let (ours, theirs) = duplex(BUFFER);
    let (mut outbound, mut inbound) = split(ours);
    tokio::spawn(async move {
        while let Some(Ok(message)) = source.next().await {
            match message {
                Message::Binary(data) if inbound.write_all(&data).await.is_err() => return,
                Message::Close(_) => break,
                _ => {}
            }
        }
        let _ = inbound.shutdown().await;
    });
    tokio::spawn(async move {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(CHUNK);
            match outbound.read_buf(&mut buffer).await {
                Ok(read) if read > 0 => {}
                _ => break,
            }
            if sink.send(Message::Binary(buffer.split().freeze())).await.is_err() {
                return;
            }
        }
        let _ = sink.send(goodbye()).await;
    });
    theirs
}
