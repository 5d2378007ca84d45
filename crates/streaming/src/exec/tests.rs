use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use tokio::io::{DuplexStream, duplex};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::*;
use crate::spdy::{Compressor, Decoder, Event, Frame, encode};

const ALL: ExecOptions = ExecOptions { stdin: true, stdout: true, stderr: true, tty: false };

async fn websocket_client(io: DuplexStream) -> WebSocketStream<DuplexStream> {
    WebSocketStream::from_raw_socket(io, Role::Client, None).await
}

async fn echo(mut streams: ExecStreams, outcome: Outcome) {
    let mut input = Vec::new();
    streams.stdin.take().expect("stdin").read_to_end(&mut input).await.expect("readable");
    streams.stdout.take().expect("stdout").write_all(&input).await.expect("writable");
    drop(streams.stderr.take());
    streams.reporter.finish(outcome).await;
}

#[tokio::test]
async fn websocket_v5_echoes_after_the_half_close_and_reports_the_exit_code() {
    let (client, server) = duplex(1 << 16);
    let protocol = ExecProtocol::WebSocket { version: 5, base64: false };
    let streams = serve_exec(server, protocol, ALL).await.expect("served");
    let session = tokio::spawn(echo(streams, Outcome::Exited(3)));
    let mut client = websocket_client(client).await;
    client.send(Message::Binary(Bytes::from_static(b"\0hello"))).await.expect("sent");
    client.send(Message::Binary(Bytes::from_static(b"\xff\0"))).await.expect("sent");
    let mut messages = Vec::new();
    let close = loop {
        match client.next().await.expect("a close at the end").expect("valid") {
            Message::Binary(data) => messages.push(data),
            other => break other,
        }
    };
    let Message::Close(Some(frame)) = close else { panic!("a close with a code expected, got {close:?}") };
    assert_eq!(u16::from(frame.code), 1000, "Go's clients take anything else for a failure");
    drop(client);
    session.await.expect("session ends");
    assert_eq!(messages[0], &b"\x01"[..], "greeting on stdout");
    assert_eq!(messages[1], &b"\x01hello"[..]);
    assert_eq!(messages[2][0], 3);
    let status: serde_json::Value = serde_json::from_slice(&messages[2][1..]).expect("a Status");
    assert_eq!(status["reason"], "NonZeroExitCode");
    assert_eq!(status["details"]["causes"][0]["message"], "3");
}

#[tokio::test]
async fn websocket_base64_is_text_both_ways() {
    let (client, server) = duplex(1 << 16);
    let protocol = ExecProtocol::WebSocket { version: 4, base64: true };
    let mut streams = serve_exec(server, protocol, ALL).await.expect("served");
    let mut client = websocket_client(client).await;
    client.send(Message::text("0aGk=")).await.expect("sent");
    let mut input = [0; 2];
    streams.stdin.as_mut().expect("stdin").read_exact(&mut input).await.expect("input");
    assert_eq!(&input, b"hi");
    streams.stderr.as_mut().expect("stderr").write_all(b"ho").await.expect("writable");
    assert_eq!(client.next().await.expect("greeting").expect("valid"), Message::text("1"));
    assert_eq!(client.next().await.expect("data").expect("valid"), Message::text("2aG8="));
}

#[tokio::test]
async fn resizes_arrive_in_order() {
    let (client, server) = duplex(1 << 16);
    let protocol = ExecProtocol::WebSocket { version: 4, base64: false };
    let options = ExecOptions { tty: true, ..ALL };
    let mut streams = serve_exec(server, protocol, options).await.expect("served");
    assert!(streams.stderr.is_none(), "a terminal has one output");
    let mut client = websocket_client(client).await;
    for (width, height) in [(80, 24), (100, 30)] {
        let text = format!("\x04{{\"Width\":{width},\"Height\":{height}}}");
        client.send(Message::Binary(text.into())).await.expect("sent");
        assert_eq!(streams.resize.recv().await, Some(TerminalSize { width, height }));
    }
    client.send(Message::Binary(Bytes::from_static(b"\x04nonsense"))).await.expect("sent");
    assert_eq!(streams.resize.recv().await, None);
}

#[tokio::test]
async fn spdy_waits_for_all_streams_and_reports_success() {
    let (mut client, server) = duplex(1 << 16);
    let serving = tokio::spawn(serve_exec(server, ExecProtocol::Spdy { version: 4 }, ALL));
    let (mut compressor, mut out) = (Compressor::default(), BytesMut::new());
    for (stream, kind) in [(1, "error"), (3, "stdin"), (5, "stdout"), (7, "stderr")] {
        let headers = vec![("streamtype".to_owned(), kind.to_owned())];
        encode(&Frame::SynStream { stream, headers }, &mut compressor, &mut out);
    }
    encode(
        &Frame::Data { stream: 3, payload: Bytes::from_static(b"hello"), fin: true },
        &mut compressor,
        &mut out,
    );
    client.write_all(&out).await.expect("sent");
    let streams = serving.await.expect("runs").expect("served");
    let session = tokio::spawn(echo(streams, Outcome::Exited(0)));
    let (mut decoder, mut input, mut stdout, mut error) =
        (Decoder::default(), BytesMut::new(), Vec::new(), Vec::new());
    loop {
        match decoder.next(&mut input).expect("valid frames") {
            Some(Event::Data { stream: 5, payload, .. }) => stdout.extend_from_slice(&payload),
            Some(Event::Data { stream: 1, payload, .. }) => error.extend_from_slice(&payload),
            Some(_) => {}
            None if client.read_buf(&mut input).await.expect("readable") == 0 => break,
            None => {}
        }
    }
    drop(client);
    session.await.expect("session ends");
    assert_eq!(stdout, b"hello");
    let status: serde_json::Value = serde_json::from_slice(&error).expect("a Status");
    assert_eq!(status["status"], "Success");
}
