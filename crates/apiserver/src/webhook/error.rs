//! What can go wrong when the server calls out, in the words of the reference's client, which tests and operators know.

use serde_json::Value;

/// Why a call out gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration cannot be used.
    #[error("{0}")]
    Target(String),
    /// No answer came: name resolution, connection, TLS or transfer failed.
    #[error("Post {url:?}: {why}")]
    Transport { url: String, why: String },
    /// The time was up.
    #[error("Post {url:?}: context deadline exceeded")]
    Timeout { url: String },
    /// The answer is no success. `status` is the body if it is a `Status` object.
    #[error("{message}")]
    Answer { code: u16, message: String, status: Option<Value> },
    /// The answer is no JSON, or too large.
    #[error("{0}")]
    Body(String),
}

impl Error {
    /// The code of an answer that is no success.
    pub fn status_code(&self) -> Option<u16> {
        match self {
            Self::Answer { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// An answer with a code that is no success.
    pub(super) fn answer(code: u16, body: &[u8]) -> Self {
        let status = serde_json::from_slice::<Value>(body)
            .ok()
            .filter(|v| v["kind"] == "Status" && v["status"].as_str().is_some_and(|s| s != "Success"));
        let told = status.as_ref().and_then(|s| s["message"].as_str()).filter(|m| !m.is_empty());
        let message = match (told, code) {
            (Some(message), _) => message.to_owned(),
            (None, 400) => "the server rejected our request for an unknown reason".to_owned(),
            (None, 401) => "the server has asked for the client to provide credentials".to_owned(),
            (None, 403) => {
                let text = text(body);
                if text.is_empty() { "forbidden".to_owned() } else { text }
            }
            (None, 404) => "the server could not find the requested resource".to_owned(),
            (None, 405) => "the server does not allow this method on the requested resource".to_owned(),
            (None, 406 | 415) => "the server was unable to respond with a content type that the client supports".to_owned(),
            (None, 429) => {
                "the server has received too many requests and has asked us to try again later".to_owned()
            }
            (None, 503) => "the server is currently unable to handle the request".to_owned(),
            (None, 504) => "the server was unable to return a response in the time allotted, but may still be processing the request".to_owned(),
            (None, 500..) => format!(
                "an error on the server ({:?}) has prevented the request from succeeding",
                match text(body) {
                    text if text.is_empty() => "unknown".to_owned(),
                    text => text,
                }
            ),
            (None, code) => format!(
                "the server responded with the status code {code} but did not return more information"
            ),
        };
        Self::Answer { code, message, status }
    }
}

/// The beginning of a body as one line of text.
fn text(body: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(&body[..body.len().min(1024)]).into_owned();
    text.trim().replace(['\n', '\r'], " ")
}
