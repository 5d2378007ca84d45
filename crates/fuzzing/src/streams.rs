//! Upgraded connections: SPDY frames, and a WebSocket session of exec.

use bytes::BytesMut;
use streaming::spdy::{Compressor, Decoder, Frame, encode};
use streaming::{ExecOptions, ExecProtocol, serve_exec};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

/// Feeds the decoder in two portions, then all at once: what comes of it must not depend on the portions.
pub fn spdy(data: &[u8]) {
    let (first, rest) = data.split_at(data.len() / 2);
    let mut decoder = Decoder::default();
    let mut input = BytesMut::new();
    let mut count = 0;
    'portions: for portion in [first, rest] {
        input.extend_from_slice(portion);
        loop {
            match decoder.next(&mut input) {
                Ok(Some(_)) => count += 1,
                Ok(None) => break,
                Err(_) => break 'portions,
            }
        }
    }
    assert!(count <= data.len() + 2, "events out of nothing");
    // A header block alone, and frames that answer what came.
    let mut out = BytesMut::new();
    let mut compressor = Compressor::default();
    encode(&Frame::Ping(data.len() as u32), &mut compressor, &mut out);
}

pub const SPDY: &[&[u8]] = &[
    b"\x80\x03\0\x06\0\0\0\x04\0\0\0\x01",
    b"\x80\x03\0\x04\0\0\0\x0c\0\0\0\x01\0\0\0\x07\0\x01\0\0",
    b"\x80\x03\0\x01\0\0\0\x0e\0\0\0\x01\0\0\0\0\0\0\x78\xbb\xe3\xc6",
    b"\0\0\0\x01\x01\0\0\x03abc\x80\x03\0\x09\0\0\0\x08\0\0\0\x01\0\0\0\x05",
    b"\x80\x03\0\x03\0\0\0\x08\0\0\0\x01\0\0\0\x05\x80\x03\0\x07\0\0\0\x08\0\0\0\0\0\0\0\0",
];

/// A client that sends the bytes and goes away.
pub fn websocket(data: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let (first, rest) = data.split_first().map_or((0, data), |(first, rest)| (*first, rest));
    let protocol = ExecProtocol::WebSocket { version: 4 + first % 2, base64: first & 2 != 0 };
    let options = ExecOptions { stdin: true, stdout: true, stderr: true, tty: false };
    runtime.block_on(async {
        let (mut client, server) = duplex(1 << 16);
        let Ok(mut streams) = serve_exec(server, protocol, options).await else { return };
        let send = async {
            // The server may have gone before everything was sent.
            let _ = client.write_all(rest).await;
            let _ = client.shutdown().await;
            let mut sink = Vec::new();
            let _ = client.read_to_end(&mut sink).await;
        };
        let receive = async {
            let mut input = Vec::new();
            if let Some(stdin) = &mut streams.stdin {
                let _ = stdin.read_to_end(&mut input).await;
            }
            assert!(input.len() <= rest.len(), "input out of nothing");
            drop(streams);
        };
        tokio::join!(send, receive);
    });
}

pub const WEBSOCKET: &[&[u8]] = &[
    b"\0\x82\x84\0\0\0\0\0abc",
    b"\x01\x82\x82\0\0\0\0\xff\0\x88\x82\0\0\0\0\x03\xe8",
    b"\x02\x81\x83\0\0\0\x000YWI",
    b"\0\x82\xfe\0\x05\0\0\0\0\x04{}..\x89\x80\0\0\0\0",
    b"\0\x02\x81\0\0\0\0\0\x80\x81\0\0\0\0x",
];
