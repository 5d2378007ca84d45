//! SPDY/3.1, server side: header compression, framing, and a connection that hands out streams.
//! Written to the SPDY/3.1 draft; what only Go's `spdystream` peers do is noted where it matters.

mod connection;
mod frame;
mod headers;

pub use connection::{Connection, Incoming};
pub use frame::{Decoder, Event, Frame, encode};
pub use headers::{Compressor, Decompressor, Headers};

/// The peer broke the protocol; the connection cannot go on.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ProtocolError {
    #[error("unsupported version {0}")]
    Version(u16),
    #[error("control frame of type {kind} has a wrong length {length}")]
    Length { kind: u16, length: usize },
    #[error("header block cannot be decompressed")]
    Compression,
    #[error("header block is larger than {0} bytes")]
    HeadersTooLarge(usize),
    #[error("malformed header block")]
    Headers,
}
