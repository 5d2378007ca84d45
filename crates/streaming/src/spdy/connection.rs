//! A SPDY/3.1 server connection over any byte stream: accepts the peer's streams, moves their bytes with bounded buffers,
//! answers pings and closes in order.
//!
//! Go's `spdystream`, which `kubectl` uses, neither sends WINDOW_UPDATE nor heeds windows. Send windows are therefore
//! counted from the start but bind only once the peer has shown that it takes part in flow control.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{
    AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf, duplex, split,
};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::frame::{Decoder, Event, Frame, encode};
use super::headers::{Compressor, Headers};
use crate::{BUFFER, Error, Stream};

mod window;

use window::Windows;

const MAX_STREAMS: usize = 2000;
const QUEUED_FRAMES: usize = 64;
const CHUNK: usize = 32 * 1024;
const KEEPALIVE: Duration = Duration::from_secs(60);
/// How long the peer may take to close its side after ours is closed.
const LINGER: Duration = Duration::from_secs(5);

/// A stream the peer opened; it has been answered already.
#[derive(Debug)]
pub struct Incoming {
    pub id: u32,
    pub headers: Headers,
    pub stream: Stream,
}

impl Incoming {
    /// The first value of a header (names are lower case on the wire).
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

/// The connection. Dropping it cuts the peer off; `close` ends it in order.
pub struct Connection {
    incoming: mpsc::Receiver<Incoming>,
    frames: mpsc::Sender<Frame>,
    pumps: TaskTracker,
    ended: CancellationToken,
    cut: DropGuard,
    done: TaskTracker,
}

impl Connection {
    /// Starts serving `io`.
    pub fn new<IO>(io: IO) -> Self
    where
        IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (reader, writer) = split(io);
        let (frames, queue) = mpsc::channel(QUEUED_FRAMES);
        let (accepted, incoming) = mpsc::channel(16);
        let cut = CancellationToken::new();
        let connection = Connection {
            incoming,
            frames: frames.clone(),
            pumps: TaskTracker::new(),
            ended: CancellationToken::new(),
            cut: cut.clone().drop_guard(),
            done: TaskTracker::new(),
        };
        let (ended, cut_writer) = (connection.ended.clone(), cut.clone());
        connection.done.spawn(async move {
            tokio::select! {
                result = write(writer, queue) => if let Err(error) = result {
                    tracing::debug!(%error, "SPDY peer is gone");
                    ended.cancel();
                },
                () = cut_writer.cancelled() => {}
            }
        });
        let mut receiver = Receiver {
            frames,
            accepted: Some(accepted),
            streams: HashMap::new(),
            windows: Arc::new(Windows::default()),
            pumps: connection.pumps.clone(),
            last: 0,
        };
        let ended = connection.ended.clone();
        connection.done.spawn(async move {
            let guard = ended.clone().drop_guard();
            tokio::select! {
                result = receiver.run(reader) => if let Err(error) = result {
                    tracing::debug!(%error, "SPDY connection broke");
                },
                () = cut.cancelled() => {}
                () = ended.cancelled() => {}
            }
            receiver.abandon().await;
            drop(guard);
        });
        connection
    }

    /// The next stream of the peer; `None` once the connection has ended.
    pub async fn accept(&mut self) -> Option<Incoming> {
        self.incoming.recv().await
    }

    /// Cancelled when the peer has gone.
    pub fn ended(&self) -> CancellationToken {
        self.ended.clone()
    }

    /// Resets a stream.
    pub async fn reset(&self, stream: u32) {
        // A send fails only when the connection is gone, and then nothing is left to reset.
        let _ = self.frames.send(Frame::Reset { stream, status: 5 }).await;
    }

    /// Sends what the streams still hold (all of our halves must be shut or dropped), says goodbye, and waits for the peer to
    /// close.
    pub async fn close(self) {
        self.pumps.close();
        tokio::select! {
            () = self.pumps.wait() => {}
            () = self.ended.cancelled() => {}
        }
        let _ = self.frames.send(Frame::GoAway { last: 0 }).await;
        self.done.close();
        drop(self.incoming);
        // Either way the guard then ends what is left.
        let _ = tokio::time::timeout(LINGER, self.done.wait()).await;
        drop(self.cut);
    }
}

async fn write<IO>(mut io: WriteHalf<IO>, mut queue: mpsc::Receiver<Frame>) -> std::io::Result<()>
where
    IO: AsyncRead + AsyncWrite,
{
    let (mut compressor, mut out, mut ping) = (Compressor::default(), BytesMut::new(), 2u32);
    loop {
        let frame = match tokio::time::timeout(KEEPALIVE, queue.recv()).await {
            Ok(Some(frame)) => frame,
            Ok(None) => break,
            Err(_) => {
                ping = ping.wrapping_add(2);
                Frame::Ping(ping)
            }
        };
        let mut last = matches!(frame, Frame::GoAway { .. });
        encode(&frame, &mut compressor, &mut out);
        while out.len() < 2 * CHUNK && !last {
            let Ok(frame) = queue.try_recv() else { break };
            last = matches!(frame, Frame::GoAway { .. });
            encode(&frame, &mut compressor, &mut out);
        }
        io.write_all(&out).await?;
        io.flush().await?;
        out.clear();
        if last {
            break;
        }
    }
    io.shutdown().await
}

struct Receiver {
    frames: mpsc::Sender<Frame>,
    accepted: Option<mpsc::Sender<Incoming>>,
    /// The side of each stream that takes the peer's bytes, until its half-close.
    streams: HashMap<u32, WriteHalf<DuplexStream>>,
    windows: Arc<Windows>,
    pumps: TaskTracker,
    last: u32,
}

impl Receiver {
    async fn run<IO>(&mut self, mut io: ReadHalf<IO>) -> Result<(), Error>
    where
        IO: AsyncRead + AsyncWrite,
    {
        let (mut decoder, mut input) = (Decoder::default(), BytesMut::with_capacity(CHUNK));
        loop {
            input.reserve(CHUNK);
            if io.read_buf(&mut input).await? == 0 {
                return Ok(());
            }
            while let Some(event) = decoder.next(&mut input)? {
                self.handle(event).await?;
            }
        }
    }

    /// Ends every stream: readers see the end, writers fail.
    async fn abandon(&mut self) {
        self.windows.abandon();
        for (_, mut writer) in self.streams.drain() {
            let _ = writer.shutdown().await;
        }
    }

    async fn send(&self, frame: Frame) -> Result<(), Error> {
        self.frames.send(frame).await.map_err(|_| Error::Closed)
    }

    async fn handle(&mut self, event: Event) -> Result<(), Error> {
        match event {
            Event::SynStream { stream, fin, headers } => self.open(stream, fin, headers).await,
            Event::Reset { stream } => {
                if let Some(mut writer) = self.streams.remove(&stream) {
                    let _ = writer.shutdown().await;
                }
                self.windows.forget(stream);
                Ok(())
            }
            Event::InitialWindow(window) => {
                self.windows.initial(window);
                Ok(())
            }
            Event::WindowUpdate { stream, delta } => {
                self.windows.add(stream, delta);
                Ok(())
            }
            // Even identifiers are answers to our own.
            Event::Ping(id) if id % 2 == 1 => self.send(Frame::Ping(id)).await,
            Event::Ping(_) => Ok(()),
            Event::GoAway => {
                self.accepted = None;
                Ok(())
            }
            Event::Data { stream, payload, fin } => self.data(stream, payload, fin).await,
        }
    }

    async fn open(&mut self, id: u32, fin: bool, headers: Headers) -> Result<(), Error> {
        // Identifiers of a client are odd and grow.
        if id.is_multiple_of(2) || id <= self.last {
            return self.send(Frame::Reset { stream: id, status: 1 }).await;
        }
        self.last = id;
        if self.pumps.len() >= MAX_STREAMS {
            return self.send(Frame::Reset { stream: id, status: 3 }).await;
        }
        let Some(accepted) = &self.accepted else { return Ok(()) };
        let (ours, theirs) = duplex(BUFFER);
        let (outbound, inbound) = split(ours);
        self.windows.open(id);
        self.send(Frame::SynReply { stream: id }).await?;
        if fin {
            let mut inbound = inbound;
            inbound.shutdown().await?;
        } else {
            self.streams.insert(id, inbound);
        }
        self.pumps.spawn(pump(id, outbound, self.frames.clone(), self.windows.clone()));
        // When nobody accepts any more, the dropped stream ends by itself.
        let _ = accepted.send(Incoming { id, headers, stream: theirs }).await;
        Ok(())
    }

    async fn data(&mut self, id: u32, payload: Bytes, fin: bool) -> Result<(), Error> {
        if !payload.is_empty() {
            if let Some(writer) = self.streams.get_mut(&id) {
                // A reader that went away must not stop the others: its bytes are dropped.
                if writer.write_all(&payload).await.is_err() {
                    self.streams.remove(&id);
                }
            }
            let delta = payload.len() as u32;
            self.send(Frame::WindowUpdate { stream: 0, delta }).await?;
            if !fin && self.streams.contains_key(&id) {
                self.send(Frame::WindowUpdate { stream: id, delta }).await?;
            }
        }
        if fin && let Some(mut writer) = self.streams.remove(&id) {
            let _ = writer.shutdown().await;
        }
        Ok(())
    }
}

/// Sends what one stream's owner writes, then its half-close.
async fn pump(
    id: u32,
    mut outbound: ReadHalf<DuplexStream>,
    frames: mpsc::Sender<Frame>,
    windows: Arc<Windows>,
) {
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(CHUNK);
        let Ok(read) = outbound.read_buf(&mut buffer).await else { break };
        if read == 0 {
            break;
        }
        while !buffer.is_empty() {
            let Some(granted) = windows.take(id, buffer.len().min(CHUNK)).await else { return };
            let payload = buffer.split_to(granted).freeze();
            if frames.send(Frame::Data { stream: id, payload, fin: false }).await.is_err() {
                return;
            }
        }
    }
    windows.forget(id);
    let _ = frames.send(Frame::Data { stream: id, payload: Bytes::new(), fin: true }).await;
}

#[cfg(test)]
mod tests;
