use bytes::{Bytes, BytesMut};
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, duplex};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::*;
use crate::spdy::{Compressor, Decoder, Event, Frame, encode};

fn opening(compressor: &mut Compressor) -> BytesMut {
    let mut out = BytesMut::new();
    for (stream, kind) in [(1, "error"), (3, "data")] {
        let headers = [("streamtype", kind), ("port", "8080"), ("requestid", "0")];
        let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        encode(&Frame::SynStream { stream, headers }, compressor, &mut out);
    }
    encode(&Frame::Data { stream: 3, payload: Bytes::from_static(b"ping"), fin: true }, compressor, &mut out);
    out
}

#[tokio::test]
async fn spdy_inside_websocket_carries_a_connection() {
    let (client, server) = duplex(1 << 16);
    let mut session = serve_portforward(server, PortForwardProtocol::TunneledSpdy, &[]).await;
    let mut client = WebSocketStream::from_raw_socket(client, Role::Client, None).await;
    client.send(Message::Binary(opening(&mut Compressor::default()).freeze())).await.expect("sent");
    let forward = session.next().await.expect("a pair");
    assert_eq!(forward.port, 8080);
    let (backend, mut pod) = duplex(1024);
    let joined = tokio::spawn(forward.join(backend));
    let mut text = String::new();
    pod.read_to_string(&mut text).await.expect("readable");
    assert_eq!(text, "ping");
    pod.write_all(b"pong").await.expect("writable");
    drop(pod);
    joined.await.expect("ends");
    let (mut decoder, mut input, mut got) = (Decoder::default(), BytesMut::new(), Vec::new());
    'read: while let Some(Ok(Message::Binary(data))) = client.next().await {
        input.extend_from_slice(&data);
        while let Some(event) = decoder.next(&mut input).expect("valid frames") {
            match event {
                Event::Data { stream: 3, fin: true, .. } => break 'read,
                Event::Data { stream: 3, payload, .. } => got.extend_from_slice(&payload),
                _ => {}
            }
        }
    }
    assert_eq!(got, b"pong");
}

#[tokio::test]
async fn a_port_that_cannot_be_reached_is_told_on_the_error_stream() {
    let (mut client, server) = duplex(1 << 16);
    let mut session = serve_portforward(server, PortForwardProtocol::Spdy, &[]).await;
    client.write_all(&opening(&mut Compressor::default())).await.expect("sent");
    session.next().await.expect("a pair").fail("refused").await;
    drop(session);
    let (mut decoder, mut input, mut error) = (Decoder::default(), BytesMut::new(), Vec::new());
    loop {
        match decoder.next(&mut input).expect("valid frames") {
            Some(Event::Data { stream: 1, payload, .. }) => error.extend_from_slice(&payload),
            Some(_) => {}
            None if client.read_buf(&mut input).await.expect("readable") == 0 => break,
            None => {}
        }
    }
    assert_eq!(error, b"refused");
}

#[tokio::test]
async fn plain_websocket_opens_each_channel_with_its_port() {
    let (client, server) = duplex(1 << 16);
    let protocol = PortForwardProtocol::WebSocket { base64: false };
    let mut session = serve_portforward(server, protocol, &[8080]).await;
    let mut client = WebSocketStream::from_raw_socket(client, Role::Client, None).await;
    let mut forward = session.next().await.expect("a pair");
    assert_eq!(
        client.next().await.expect("data").expect("valid"),
        Message::Binary(Bytes::from_static(b"\0\x90\x1f"))
    );
    assert_eq!(
        client.next().await.expect("error").expect("valid"),
        Message::Binary(Bytes::from_static(b"\x01\x90\x1f"))
    );
    client.send(Message::Binary(Bytes::from_static(b"\0hi"))).await.expect("sent");
    let mut text = [0; 2];
    forward.data.read_exact(&mut text).await.expect("readable");
    assert_eq!(&text, b"hi");
}
