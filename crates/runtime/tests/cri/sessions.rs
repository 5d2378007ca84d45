//! Tests of exec, attach and port-forward sessions, with a WebSocket client.

use std::time::Duration;

use cri::v1::*;
use futures::{SinkExt, StreamExt};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use super::harness::Test;

type Socket = tokio_tungstenite::WebSocketStream<tokio_tungstenite::MaybeTlsStream<tokio::net::TcpStream>>;

async fn open(url: &str, protocol: &str) -> Socket {
    let mut request = url.replace("http://", "ws://").into_client_request().unwrap();
    request.headers_mut().insert("Sec-WebSocket-Protocol", protocol.parse().unwrap());
    tokio_tungstenite::connect_async(request).await.unwrap().0
}

/// All that comes on each channel until the session ends.
async fn drain(socket: &mut Socket) -> Vec<Vec<u8>> {
    let mut channels = vec![Vec::new(); 5];
    let read = async {
        while let Some(Ok(message)) = socket.next().await {
            if let Message::Binary(data) = message
                && let Some((channel, data)) = data.split_first()
            {
                channels[usize::from(*channel)].extend_from_slice(data);
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), read).await.expect("the session goes on");
    channels
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub async fn streams_reach_a_client(mut test: Test) {
    let pod = test.pod("sessions");
    let sandbox = test.sandbox(&pod).await;
    let mut config = test.container("main", &["copy"]);
    config.stdin = true;
    config.stdin_once = true;
    let id = test.run(&sandbox, &pod, config).await;

    let exec = |cmd: &[&str], tty, stdin| ExecRequest {
        container_id: id.clone(),
        cmd: cmd.iter().map(|c| (*c).to_owned()).collect(),
        tty,
        stdin,
        stdout: true,
        stderr: !tty,
    };
    let url = test.runtime.exec(exec(&["say", "out", "err"], false, false)).await.unwrap().into_inner().url;
    let channels = drain(&mut open(&url, "v5.channel.k8s.io").await).await;
    assert_eq!((text(&channels[1]), text(&channels[2])), ("out".into(), "err".into()));
    assert!(text(&channels[3]).contains("Success"));
    // A URL is good for one session.
    let mut request = url.replace("http://", "ws://").into_client_request().unwrap();
    request.headers_mut().insert("Sec-WebSocket-Protocol", "v5.channel.k8s.io".parse().unwrap());
    assert!(tokio_tungstenite::connect_async(request).await.is_err());

    let url = test.runtime.exec(exec(&["fail", "9"], false, false)).await.unwrap().into_inner().url;
    let channels = drain(&mut open(&url, "v4.channel.k8s.io").await).await;
    assert!(text(&channels[3]).contains("NonZeroExitCode"), "{}", text(&channels[3]));

    let url = test.runtime.exec(exec(&["copy"], false, true)).await.unwrap().into_inner().url;
    let mut socket = open(&url, "v5.channel.k8s.io").await;
    socket.send(Message::binary(b"\0typed".to_vec())).await.unwrap();
    // Version 5 closes a channel with 255 and its number.
    socket.send(Message::binary(vec![255, 0])).await.unwrap();
    assert_eq!(text(&drain(&mut socket).await[1]), "typed");

    let url = test.runtime.exec(exec(&["say", "on a terminal"], true, true)).await.unwrap().into_inner().url;
    assert_eq!(text(&drain(&mut open(&url, "v5.channel.k8s.io").await).await[1]), "on a terminal");

    let attach =
        AttachRequest { container_id: id.clone(), stdin: true, tty: false, stdout: true, stderr: true };
    let url = test.runtime.attach(attach).await.unwrap().into_inner().url;
    let mut socket = open(&url, "v5.channel.k8s.io").await;
    socket.send(Message::binary(b"\0to the first process".to_vec())).await.unwrap();
    socket.send(Message::binary(vec![255, 0])).await.unwrap();
    assert_eq!(text(&drain(&mut socket).await[1]), "to the first process");
    assert_eq!(test.ended(&id).await.exit_code, 0);
    assert_eq!(test.log(&id).await, ["stdout P to the first process"]);

    let config = test.container("server", &["serve-port", "4711"]);
    let server = test.run(&sandbox, &pod, config).await;
    while test.exec(&server, &["connect", "4711"]).await.0 != 0 {}
    let forward = PortForwardRequest { pod_sandbox_id: sandbox.clone(), port: vec![4711] };
    let url = test.runtime.port_forward(forward).await.unwrap().into_inner().url;
    let mut socket = open(&url, "v4.channel.k8s.io").await;
    let mut data = Vec::new();
    while !text(&data).ends_with("hello from the pod") {
        let message =
            tokio::time::timeout(Duration::from_secs(20), socket.next()).await.unwrap().unwrap().unwrap();
        if let Message::Binary(part) = message
            && part.first() == Some(&0)
        {
            data.extend_from_slice(&part[1..]);
        }
    }

    let mut config = test.container("terminal", &["copy"]);
    config.tty = true;
    config.stdin = true;
    let id = test.run(&sandbox, &pod, config).await;
    let attach =
        AttachRequest { container_id: id.clone(), stdin: true, tty: true, stdout: true, stderr: false };
    let url = test.runtime.attach(attach).await.unwrap().into_inner().url;
    let mut socket = open(&url, "v5.channel.k8s.io").await;
    socket.send(Message::binary(b"\x04{\"Width\":77,\"Height\":33}".to_vec())).await.unwrap();
    // The end of input, as a terminal sends it.
    socket.send(Message::binary(b"\0line\r\x04".to_vec())).await.unwrap();
    let seen = text(&drain(&mut socket).await[1]);
    assert!(seen.contains("line\r\nline"), "{seen:?}");
    assert_eq!(test.ended(&id).await.exit_code, 0);
}
