//! Protocol negotiation by request headers, as upstream's `httpstream.Handshake` and WebSocket handshake do it.

use http::header::{CONNECTION, HeaderMap, HeaderName, HeaderValue, UPGRADE};
use http::{Response, StatusCode};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");
const ACCEPTED_PROTOCOLS: HeaderName = HeaderName::from_static("x-accepted-stream-protocol-versions");
const WS_PROTOCOL: HeaderName = HeaderName::from_static("sec-websocket-protocol");
const WS_KEY: HeaderName = HeaderName::from_static("sec-websocket-key");
const WS_ACCEPT: HeaderName = HeaderName::from_static("sec-websocket-accept");

/// Prefix of WebSocket subprotocols that carry a whole SPDY connection.
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";

/// How an exec or attach session is framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExecProtocol {
    /// SPDY/3.1 with `[vN.]channel.k8s.io`, N from 1 to 4.
    Spdy { version: u8 },
    /// WebSocket with `[vN.][base64.]channel.k8s.io`.
    WebSocket { version: u8, base64: bool },
}

/// How a port-forward session is framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortForwardProtocol {
    /// SPDY/3.1 with `portforward.k8s.io`.
    Spdy,
    /// WebSocket with a pair of channels per port, fixed by the request.
    WebSocket { base64: bool },
    /// SPDY/3.1 inside binary WebSocket messages.
    TunneledSpdy,
}

/// How an answer is put into WebSocket messages (`binary.k8s.io` and its variants).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AnswerProtocol {
    /// The payloads are base64 text.
    pub base64: bool,
}

/// A protocol both sides speak, and the 101 answer that says so.
#[derive(Debug)]
pub struct Negotiated<P> {
    pub protocol: P,
    pub response: Response<()>,
}

/// The request cannot be upgraded; `response` carries the reason for the client.
#[derive(Debug, thiserror::Error)]
#[error("unable to upgrade: {message}")]
pub struct Refused {
    status: StatusCode,
    message: String,
    accepted: &'static [&'static str],
}

impl Refused {
    fn bad_request(message: impl Into<String>) -> Self {
        Refused { status: StatusCode::BAD_REQUEST, message: message.into(), accepted: &[] }
    }

    /// The HTTP answer for the client, body as text.
    pub fn response(&self) -> Response<String> {
        let mut response = Response::new(format!("{self}\n"));
        *response.status_mut() = self.status;
        for name in self.accepted {
            response.headers_mut().append(ACCEPTED_PROTOCOLS, HeaderValue::from_static(name));
        }
        response
    }
}

/// Chooses the protocol of an exec or attach request.
pub fn negotiate_exec(headers: &HeaderMap) -> Result<Negotiated<ExecProtocol>, Refused> {
    if is_websocket(headers) {
        const OFFERED: [(&str, u8, bool); 5] = [
            ("v5.channel.k8s.io", 5, false),
            ("v4.channel.k8s.io", 4, false),
            ("v4.base64.channel.k8s.io", 4, true),
            ("channel.k8s.io", 1, false),
            ("base64.channel.k8s.io", 1, true),
        ];
        let names: &[&str] = &OFFERED.map(|(name, _, _)| name);
        let (name, response) = websocket(headers, names)?;
        let (version, base64) = OFFERED
            .iter()
            .find(|(offered, _, _)| Some(*offered) == name)
            .map_or((1, false), |(_, version, base64)| (*version, *base64));
        return Ok(Negotiated { protocol: ExecProtocol::WebSocket { version, base64 }, response });
    }
    let (name, response) =
        spdy(headers, &["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"])?;
    let version = match name {
        "v4.channel.k8s.io" => 4,
        "v3.channel.k8s.io" => 3,
        "v2.channel.k8s.io" => 2,
        _ => 1,
    };
    Ok(Negotiated { protocol: ExecProtocol::Spdy { version }, response })
}

/// Chooses the protocol of a port-forward request.
pub fn negotiate_portforward(headers: &HeaderMap) -> Result<Negotiated<PortForwardProtocol>, Refused> {
    if is_websocket(headers) {
        let (name, response) =
            websocket(headers, &[TUNNEL, "v4.channel.k8s.io", "v4.base64.channel.k8s.io"])?;
        let protocol = match name {
            Some(TUNNEL) => PortForwardProtocol::TunneledSpdy,
            name => PortForwardProtocol::WebSocket { base64: name == Some("v4.base64.channel.k8s.io") },
        };
        return Ok(Negotiated { protocol, response });
    }
    let (_, response) = spdy(headers, &["portforward.k8s.io"])?;
    Ok(Negotiated { protocol: PortForwardProtocol::Spdy, response })
}

/// Chooses the protocol of a plain answer (a log, a watch) over WebSocket; none if the client asks for no WebSocket.
pub fn negotiate_answer(headers: &HeaderMap) -> Option<Result<Negotiated<AnswerProtocol>, Refused>> {
    is_websocket(headers).then(|| {
        let (name, response) = websocket(headers, &["binary.k8s.io", "base64.binary.k8s.io"])?;
        Ok(Negotiated { protocol: AnswerProtocol { base64: name == Some("base64.binary.k8s.io") }, response })
    })
}

fn values<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> + use<'a> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|value| !value.is_empty())
}

fn wants_upgrade(headers: &HeaderMap, to: &str) -> bool {
    values(headers, &CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade"))
        && values(headers, &UPGRADE).any(|token| token.eq_ignore_ascii_case(to))
}

fn is_websocket(headers: &HeaderMap) -> bool {
    wants_upgrade(headers, "websocket")
}

fn switching(upgrade: &'static str) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    response.headers_mut().insert(UPGRADE, HeaderValue::from_static(upgrade));
    response
}

fn websocket<'a>(
    headers: &HeaderMap,
    offered: &[&'a str],
) -> Result<(Option<&'a str>, Response<()>), Refused> {
    let key = headers
        .get(&WS_KEY)
        .ok_or_else(|| Refused::bad_request("header Sec-WebSocket-Key does not exist in request"))?;
    let mut asked = values(headers, &WS_PROTOCOL).peekable();
    let chosen = if asked.peek().is_none() {
        None
    } else {
        let found = asked.find_map(|name| offered.iter().find(|offer| **offer == name));
        Some(*found.ok_or_else(|| {
            let asked: Vec<_> = values(headers, &WS_PROTOCOL).collect();
            Refused::bad_request(format!(
                "requested protocol(s) are not supported: {asked:?}; supports {offered:?}"
            ))
        })?)
    };
    let mut response = switching("websocket");
    let accept = HeaderValue::from_str(&derive_accept_key(key.as_bytes()))
        .expect("a base64 digest is always a valid header value");
    response.headers_mut().insert(WS_ACCEPT, accept);
    if let Some(name) = chosen {
        let value = HeaderValue::from_str(name).expect("offered names are plain ASCII");
        response.headers_mut().insert(WS_PROTOCOL, value);
    }
    Ok((chosen, response))
}

fn spdy(
    headers: &HeaderMap,
    offered: &'static [&'static str],
) -> Result<(&'static str, Response<()>), Refused> {
    if !wants_upgrade(headers, "SPDY/3.1") {
        return Err(Refused::bad_request("missing upgrade headers in request"));
    }
    let asked: Vec<&str> = values(headers, &STREAM_PROTOCOL).collect();
    if asked.is_empty() {
        return Err(Refused::bad_request("header X-Stream-Protocol-Version does not exist in request"));
    }
    let Some(chosen) = asked.iter().find_map(|name| offered.iter().find(|offer| *offer == name)) else {
        return Err(Refused {
            status: StatusCode::FORBIDDEN,
            message: format!(
                "unable to negotiate protocol: client supports {asked:?}, server accepts {offered:?}"
            ),
            accepted: offered,
        });
    };
    let mut response = switching("SPDY/3.1");
    response.headers_mut().insert(STREAM_PROTOCOL, HeaderValue::from_static(chosen));
    Ok((chosen, response))
}

#[cfg(test)]
mod tests;
