use super::*;

fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
    pairs
        .iter()
        .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
        .collect()
}

fn websocket(protocols: &'static str) -> HeaderMap {
    headers(&[
        ("connection", "keep-alive, Upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("sec-websocket-protocol", protocols),
    ])
}

fn spdy(protocols: &'static str) -> HeaderMap {
    headers(&[("connection", "Upgrade"), ("upgrade", "SPDY/3.1"), ("x-stream-protocol-version", protocols)])
}

#[test]
fn exec_takes_the_clients_first_choice_that_is_known() {
    let cases = [
        (websocket("v5.channel.k8s.io"), ExecProtocol::WebSocket { version: 5, base64: false }),
        (
            websocket("v9.channel.k8s.io, v4.base64.channel.k8s.io"),
            ExecProtocol::WebSocket { version: 4, base64: true },
        ),
        (spdy("v4.channel.k8s.io,v3.channel.k8s.io"), ExecProtocol::Spdy { version: 4 }),
        (spdy("channel.k8s.io"), ExecProtocol::Spdy { version: 1 }),
    ];
    for (headers, expected) in cases {
        let negotiated = negotiate_exec(&headers).expect("a common protocol");
        assert_eq!(negotiated.protocol, expected);
        assert_eq!(negotiated.response.status(), StatusCode::SWITCHING_PROTOCOLS);
    }
}

#[test]
fn the_websocket_answer_proves_the_key() {
    let answer = negotiate_exec(&websocket("v4.channel.k8s.io")).expect("known").response;
    assert_eq!(answer.headers()["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    assert_eq!(answer.headers()["sec-websocket-protocol"], "v4.channel.k8s.io");
}

#[test]
fn portforward_knows_the_tunnel() {
    let negotiated = negotiate_portforward(&websocket("SPDY/3.1+portforward.k8s.io")).expect("known");
    assert_eq!(negotiated.protocol, PortForwardProtocol::TunneledSpdy);
    let negotiated = negotiate_portforward(&spdy("portforward.k8s.io")).expect("known");
    assert_eq!(negotiated.protocol, PortForwardProtocol::Spdy);
}

#[test]
fn refusals_say_what_is_accepted() {
    let refused = negotiate_exec(&spdy("v9.channel.k8s.io")).expect_err("unknown").response();
    assert_eq!(refused.status(), StatusCode::FORBIDDEN);
    assert_eq!(refused.headers().get_all("x-accepted-stream-protocol-versions").iter().count(), 4);
    let refused = negotiate_exec(&HeaderMap::new()).expect_err("no upgrade").response();
    assert_eq!(refused.status(), StatusCode::BAD_REQUEST);
    assert!(negotiate_exec(&websocket("nonsense")).is_err());
}
