//! Logs and watches over WebSocket, for clients that cannot read a response while it comes: the answer's pieces become
//! messages, one event of a watch each.

use bytes::{Buf, Bytes};
use futures::{Stream, StreamExt, stream};
use http::header::{CONNECTION, CONTENT_TYPE, HeaderName, UPGRADE};
use http::{HeaderMap, Response, StatusCode};
use http_body_util::BodyDataStream;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use streaming::{AnswerProtocol, Payload, negotiate_answer, serve_answer};

use super::body::Body;
use super::negotiate::{Format, Output};

/// How an answer is cut into messages.
#[derive(Clone, Copy, Debug)]
pub enum Framing {
    /// As its pieces come.
    Pieces,
    /// A line each, as text.
    Lines,
    /// What stands behind a length of four bytes.
    Lengths,
}

impl Framing {
    /// The framing of a watch's events.
    pub fn of_watch(output: Output) -> Self {
        match output.format {
            Format::Json => Self::Lines,
            Format::Protobuf => Self::Lengths,
            Format::Yaml | Format::Cbor => Self::Pieces,
        }
    }

    /// The messages of a piece, which holds whole lines or whole frames.
    fn cut(self, mut piece: Bytes) -> Vec<Payload> {
        let mut payloads = Vec::new();
        match self {
            Self::Pieces => payloads.push(Payload::Binary(piece)),
            Self::Lines => {
                while !piece.is_empty() {
                    let end = piece.iter().position(|byte| *byte == b'\n').map_or(piece.len(), |at| at + 1);
                    payloads.push(Payload::Text(piece.split_to(end)));
                }
            }
            Self::Lengths => {
                while piece.len() >= 4 {
                    let length = (piece.get_u32() as usize).min(piece.len());
                    payloads.push(Payload::Binary(piece.split_to(length)));
                }
            }
        }
        payloads
    }
}

/// A connection that is to carry an answer as messages. It travels with the answer until everything has seen that.
#[derive(Clone)]
pub struct Pending {
    answer: Response<()>,
    protocol: AnswerProtocol,
    upgrade: OnUpgrade,
    framing: Framing,
}

/// Whether the client wants its answer over WebSocket.
pub fn wanted(headers: &HeaderMap) -> bool {
    negotiate_answer(headers).is_some()
}

/// The headers without the wish for another protocol, for who makes the answer.
pub fn plain(headers: &mut HeaderMap) {
    let mut names = vec![CONNECTION, UPGRADE];
    names.extend(headers.keys().filter(|name| name.as_str().starts_with("sec-websocket-")).cloned());
    for name in names {
        headers.remove::<HeaderName>(name);
    }
}

/// Notes on a good answer that it goes over the connection; other answers stay as they are.
pub fn note(
    mut response: Response<Body>,
    headers: &HeaderMap,
    upgrade: Option<OnUpgrade>,
    framing: Framing,
) -> Response<Body> {
    let (Some(negotiated), Some(upgrade)) = (negotiate_answer(headers), upgrade) else { return response };
    if response.status() != StatusCode::OK {
        return response;
    }
    match negotiated {
        Ok(negotiated) => {
            let (answer, protocol) = (negotiated.response, negotiated.protocol);
            response.extensions_mut().insert(Pending { answer, protocol, upgrade, framing });
            response
        }
        Err(refused) => refused.response().map(|text| Body::Full(text.into())),
    }
}

/// Lets a noted answer go: the client is told that the protocol changes, and gets the messages then.
pub fn start(mut response: Response<Body>) -> Response<Body> {
    let Some(Pending { answer, protocol, upgrade, framing }) = response.extensions_mut().remove() else {
        return response;
    };
    let (mut parts, ()) = answer.into_parts();
    if let Some(kind) = response.headers_mut().remove(CONTENT_TYPE) {
        parts.headers.insert(CONTENT_TYPE, kind);
    }
    let messages = messages(response.into_body(), framing);
    tokio::spawn(async move {
        let served = match upgrade.await {
            Ok(io) => serve_answer(TokioIo::new(io), protocol, messages).await,
            Err(error) => Err(std::io::Error::other(error).into()),
        };
        if let Err(error) = served {
            tracing::debug!(error = &error as &dyn std::error::Error, "an answer over WebSocket broke off");
        }
    });
    Response::from_parts(parts, Body::Empty)
}

fn messages(body: Body, framing: Framing) -> impl Stream<Item = Payload> + Send {
    let pieces = BodyDataStream::new(body).map(|piece| match piece {
        Ok(piece) => piece,
        Err(never) => match never {},
    });
    pieces.flat_map(move |piece| stream::iter(framing.cut(piece)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_cut_into_messages() {
        let text = |text: &'static str| Payload::Text(Bytes::from_static(text.as_bytes()));
        let bytes = |bytes: &'static [u8]| Payload::Binary(Bytes::from_static(bytes));
        let cases: [(Framing, &'static [u8], Vec<Payload>); 4] = [
            (Framing::Pieces, b"a\nb", vec![bytes(b"a\nb")]),
            (Framing::Lines, b"{1}\n{2}\n", vec![text("{1}\n"), text("{2}\n")]),
            (Framing::Lengths, b"\0\0\0\x01a\0\0\0\x02bc", vec![bytes(b"a"), bytes(b"bc")]),
            (Framing::Lines, b"", vec![]),
        ];
        for (framing, piece, expected) in cases {
            assert_eq!(framing.cut(Bytes::from_static(piece)), expected, "{framing:?}");
        }
    }
}
