use std::io;

use super::*;

/// A client that speaks raw frames.
struct Client {
    io: DuplexStream,
    compressor: Compressor,
    decoder: Decoder,
    input: BytesMut,
}

impl Client {
    fn connect() -> (Client, Connection) {
        let (io, server) = duplex(1 << 20);
        let client = Client {
            io,
            compressor: Compressor::default(),
            decoder: Decoder::default(),
            input: BytesMut::new(),
        };
        (client, Connection::new(server))
    }

    async fn send(&mut self, frame: Frame) {
        let mut out = BytesMut::new();
        encode(&frame, &mut self.compressor, &mut out);
        self.io.write_all(&out).await.expect("server reads");
    }

    async fn open(&mut self, stream: u32) {
        self.send(Frame::SynStream { stream, headers: vec![("streamtype".into(), "data".into())] }).await;
    }

    async fn data(&mut self, stream: u32, payload: &'static [u8], fin: bool) {
        self.send(Frame::Data { stream, payload: Bytes::from_static(payload), fin }).await;
    }

    /// The next event that is not flow control; `None` at the end.
    async fn next(&mut self) -> Option<Event> {
        loop {
            match self.decoder.next(&mut self.input).expect("server speaks SPDY") {
                Some(Event::WindowUpdate { .. }) => {}
                Some(event) => return Some(event),
                None => {
                    if self.io.read_buf(&mut self.input).await.expect("readable") == 0 {
                        return None;
                    }
                }
            }
        }
    }
}

#[tokio::test]
async fn bytes_flow_both_ways_and_halves_close_alone() -> io::Result<()> {
    let (mut client, mut server) = Client::connect();
    client.open(1).await;
    client.data(1, b"question", true).await;
    let mut incoming = server.accept().await.expect("a stream");
    assert_eq!(incoming.header("streamType"), Some("data"));
    let mut text = String::new();
    incoming.stream.read_to_string(&mut text).await?;
    assert_eq!(text, "question");
    incoming.stream.write_all(b"answer").await?;
    drop(incoming);
    assert_eq!(
        client.next().await,
        Some(Event::Data { stream: 1, payload: Bytes::from_static(b"answer"), fin: false })
    );
    assert_eq!(client.next().await, Some(Event::Data { stream: 1, payload: Bytes::new(), fin: true }));
    let closing = tokio::spawn(server.close());
    assert_eq!(client.next().await, Some(Event::GoAway));
    assert_eq!(client.next().await, None);
    drop(client);
    closing.await?;
    Ok(())
}

#[tokio::test]
async fn pings_are_answered_and_bad_stream_ids_reset() {
    let (mut client, _server) = Client::connect();
    client.send(Frame::Ping(7)).await;
    assert_eq!(client.next().await, Some(Event::Ping(7)));
    client.open(2).await;
    assert_eq!(client.next().await, Some(Event::Reset { stream: 2 }));
}

#[tokio::test]
async fn a_peer_with_flow_control_is_not_overrun() -> io::Result<()> {
    let (mut client, mut server) = Client::connect();
    client.send(Frame::WindowUpdate { stream: 0, delta: 1 << 20 }).await;
    client.open(1).await;
    let mut incoming = server.accept().await.expect("a stream");
    let writing = tokio::spawn(async move {
        incoming.stream.write_all(&vec![1; 100 * 1024]).await?;
        incoming.stream.shutdown().await
    });
    let mut got = 0;
    while got < 64 * 1024 {
        let Some(Event::Data { payload, fin: false, .. }) = client.next().await else {
            panic!("data expected")
        };
        got += payload.len();
    }
    assert_eq!(got, 64 * 1024, "nothing past the window");
    client.send(Frame::Ping(1)).await;
    assert_eq!(client.next().await, Some(Event::Ping(1)), "no data before the window opens");
    client.send(Frame::WindowUpdate { stream: 1, delta: 64 * 1024 }).await;
    loop {
        match client.next().await {
            Some(Event::Data { payload, fin, .. }) => {
                got += payload.len();
                if fin {
                    break;
                }
            }
            other => panic!("data expected, got {other:?}"),
        }
    }
    assert_eq!(got, 100 * 1024);
    writing.await??;
    Ok(())
}

#[tokio::test]
async fn a_vanished_peer_ends_every_stream() -> io::Result<()> {
    let (mut client, mut server) = Client::connect();
    client.open(1).await;
    let mut incoming = server.accept().await.expect("a stream");
    drop(client);
    assert_eq!(incoming.stream.read(&mut [0; 8]).await?, 0);
    server.ended().cancelled().await;
    assert!(server.accept().await.is_none());
    Ok(())
}
