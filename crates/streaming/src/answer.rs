//! One answer as WebSocket messages to the client: what browsers use for logs and watches, since they cannot read a response
//! while it comes.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::{SinkExt, Stream, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::tungstenite::{Error as WsError, Message};

use crate::websocket::{KEEPALIVE, LINGER, goodbye, upgraded};
use crate::{AnswerProtocol, Error};

/// One message to the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Payload {
    /// Text, which must be UTF-8 (else it goes out as bytes).
    Text(Bytes),
    /// Bytes.
    Binary(Bytes),
}

impl Payload {
    fn message(self, protocol: AnswerProtocol) -> Message {
        let (Payload::Text(bytes) | Payload::Binary(bytes)) = &self;
        if protocol.base64 {
            return Message::text(STANDARD.encode(bytes));
        }
        match self {
            Payload::Text(bytes) => match bytes.clone().try_into() {
                Ok(text) => Message::Text(text),
                Err(_) => Message::Binary(bytes),
            },
            Payload::Binary(bytes) => Message::Binary(bytes),
        }
    }
}

/// Sends the messages until there are no more or the client closes; then closes.
///
/// # Errors
/// If the connection breaks.
pub async fn serve_answer<IO, S>(io: IO, protocol: AnswerProtocol, payloads: S) -> Result<(), Error>
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    S: Stream<Item = Payload> + Send,
{
    let (mut sink, mut source) = upgraded(io).await;
    let mut payloads = std::pin::pin!(payloads);
    let mut said = false;
    loop {
        let message = tokio::select! {
            payload = payloads.next() => match payload {
                Some(payload) => payload.message(protocol),
                None => break,
            },
            // The client has nothing to say; that it closes, or breaks off, ends the answer.
            message = source.next() => match message {
                Some(Ok(message)) if !message.is_close() => continue,
                _ => {
                    said = true;
                    break;
                }
            },
            () = tokio::time::sleep(KEEPALIVE) => Message::Ping(Bytes::new()),
        };
        within(sink.send(message)).await?;
    }
    if said {
        // Sends the reply to the client's close, if it is still there.
        let _ = within(sink.close()).await;
    } else {
        within(sink.send(goodbye())).await?;
        // A client that gets our close answers it; an end before that would look to it like a failure.
        let _ = tokio::time::timeout(LINGER, async { while let Some(Ok(_)) = source.next().await {} }).await;
    }
    Ok(())
}

/// Cuts off a client that takes nothing.
async fn within(sending: impl Future<Output = Result<(), WsError>>) -> Result<(), Error> {
    match tokio::time::timeout(KEEPALIVE, sending).await {
        Ok(sent) => Ok(sent.map_err(Box::new)?),
        Err(_) => Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()),
    }
}

#[cfg(test)]
mod tests {
    use futures::stream;
    use tokio_tungstenite::WebSocketStream;
    use tokio_tungstenite::tungstenite::protocol::Role;

    use super::*;

    async fn received(base64: bool, payloads: Vec<Payload>) -> Vec<Message> {
        let (client, server) = tokio::io::duplex(1 << 16);
        let serving = tokio::spawn(serve_answer(server, AnswerProtocol { base64 }, stream::iter(payloads)));
        let client = WebSocketStream::from_raw_socket(client, Role::Client, None).await;
        let messages = client.map(|message| message.expect("a good frame")).collect().await;
        serving.await.expect("no panic").expect("the answer went out");
        messages
    }

    #[tokio::test]
    async fn each_payload_is_a_message_and_the_end_is_a_close() {
        let text = || Payload::Text(Bytes::from_static(b"{}\n"));
        let bytes = || Payload::Binary(Bytes::from_static(&[0, 255]));
        let plain = received(false, vec![text(), bytes()]).await;
        assert_eq!(plain[..2], [Message::text("{}\n"), Message::binary(vec![0, 255])]);
        assert!(plain[2].is_close(), "{plain:?}");
        let coded = received(true, vec![text(), bytes()]).await;
        assert_eq!(coded[..2], [Message::text("e30K"), Message::text("AP8=")]);
    }

    #[tokio::test]
    async fn a_client_that_closes_ends_the_answer() {
        let (client, server) = tokio::io::duplex(1 << 16);
        let serving = tokio::spawn(serve_answer(server, AnswerProtocol { base64: false }, stream::pending()));
        let mut client = WebSocketStream::from_raw_socket(client, Role::Client, None).await;
        client.close(None).await.expect("sent");
        serving.await.expect("no panic").expect("a clean end");
    }
}
