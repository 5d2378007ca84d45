//! The streaming half of exec, attach and port-forward: SPDY/3.1 and WebSocket, server side, as CRI runtimes and kubelets
//! speak them to `kubectl`. `negotiate` reads the upgrade headers; `serve_exec`, `serve_attach` and `serve_portforward`
//! turn the upgraded connection into plain byte streams; `tunnel` joins two upgraded connections as they are.

mod answer;
mod exec;
mod negotiate;
mod portforward;
pub mod spdy;
mod tunnel;
mod websocket;

pub use answer::{Payload, serve_answer};
pub use exec::{ExecOptions, ExecStreams, Outcome, Reporter, TerminalSize, serve_attach, serve_exec};
pub use negotiate::{
    AnswerProtocol, ExecProtocol, Negotiated, PortForwardProtocol, Refused, negotiate_answer, negotiate_exec,
    negotiate_portforward,
};
pub use portforward::{Forward, PortForward, serve_portforward};
pub use tunnel::{tunnel, tunnel_io};

/// One byte stream inside a session. Reading gives the peer's bytes until its half-close; `shutdown` or drop closes our half.
pub type Stream = tokio::io::DuplexStream;

/// Bytes kept per stream and direction before the sender has to wait.
pub(crate) const BUFFER: usize = 64 * 1024;

/// What can go wrong with an upgraded connection.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The connection failed or ended early.
    #[error("connection: {0}")]
    Io(#[from] std::io::Error),
    /// The peer broke the SPDY/3.1 framing.
    #[error("SPDY: {0}")]
    Spdy(#[from] spdy::ProtocolError),
    /// The peer broke the WebSocket protocol.
    #[error("WebSocket: {0}")]
    WebSocket(#[from] Box<tokio_tungstenite::tungstenite::Error>),
    /// The client did not open all streams it announced in time.
    #[error("timed out waiting for client to create streams")]
    StreamTimeout,
    /// The connection closed before all streams were there.
    #[error("connection closed before all streams were created")]
    Closed,
}
