//! SPDY/3.1 frames, without I/O: `Decoder` takes bytes in any portions and gives events, `encode` writes frames.
//! Data frames are handed on piecewise, so a 16 MiB frame needs no 16 MiB buffer.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::ProtocolError;
use super::headers::{Compressor, Decompressor, Headers};

const VERSION: u16 = 3;
const FLAG_FIN: u8 = 0x01;
/// Largest control frame that is accepted (a compressed header block is far smaller).
const MAX_CONTROL: usize = 64 * 1024;

/// Something the peer sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    SynStream {
        stream: u32,
        fin: bool,
        headers: Headers,
    },
    Reset {
        stream: u32,
    },
    /// The peer's receive window for new streams.
    InitialWindow(u32),
    Ping(u32),
    GoAway,
    WindowUpdate {
        stream: u32,
        delta: u32,
    },
    /// A piece of a data frame; `fin` only on the last piece.
    Data {
        stream: u32,
        payload: Bytes,
        fin: bool,
    },
}

/// Something to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Opens a stream (only clients of this protocol do so; used by tests).
    SynStream {
        stream: u32,
        headers: Headers,
    },
    SynReply {
        stream: u32,
    },
    /// Status codes of draft section 2.6.3: 1 protocol error, 3 refused stream, 5 cancel.
    Reset {
        stream: u32,
        status: u32,
    },
    Ping(u32),
    GoAway {
        last: u32,
    },
    WindowUpdate {
        stream: u32,
        delta: u32,
    },
    Data {
        stream: u32,
        payload: Bytes,
        fin: bool,
    },
}

/// Appends `frame` to `out`.
pub fn encode(frame: &Frame, compressor: &mut Compressor, out: &mut BytesMut) {
    let control = |out: &mut BytesMut, kind: u16, length: usize| {
        out.put_u16(0x8000 | VERSION);
        out.put_u16(kind);
        out.put_u32(length as u32);
    };
    match frame {
        Frame::SynStream { stream, headers } => {
            let block = compressor.block(headers);
            control(out, 1, 10 + block.len());
            out.put_u32(*stream);
            out.put_u32(0);
            out.put_u16(0);
            out.extend_from_slice(&block);
        }
        Frame::SynReply { stream } => {
            let block = compressor.block(&Headers::new());
            control(out, 2, 4 + block.len());
            out.put_u32(*stream);
            out.extend_from_slice(&block);
        }
        Frame::Reset { stream, status } => {
            control(out, 3, 8);
            out.put_u32(*stream);
            out.put_u32(*status);
        }
        Frame::Ping(id) => {
            control(out, 6, 4);
            out.put_u32(*id);
        }
        Frame::GoAway { last } => {
            control(out, 7, 8);
            out.put_u32(*last);
            out.put_u32(0);
        }
        Frame::WindowUpdate { stream, delta } => {
            control(out, 9, 8);
            out.put_u32(*stream);
            out.put_u32(*delta);
        }
        Frame::Data { stream, payload, fin } => {
            out.put_u32(stream & 0x7fff_ffff);
            out.put_u32(u32::from(*fin) << 24 | (payload.len() as u32 & 0x00ff_ffff));
            out.extend_from_slice(payload);
        }
    }
}

/// Turns received bytes into events.
#[derive(Default)]
pub struct Decoder {
    decompressor: Decompressor,
    data: Option<PartialData>,
}

struct PartialData {
    stream: u32,
    left: usize,
    fin: bool,
}

impl Decoder {
    /// The next event in `input`, or `None` when more bytes are needed. After an error the connection must be closed.
    pub fn next(&mut self, input: &mut BytesMut) -> Result<Option<Event>, ProtocolError> {
        loop {
            if let Some(data) = &mut self.data {
                if input.is_empty() && data.left > 0 {
                    return Ok(None);
                }
                let payload = input.split_to(data.left.min(input.len())).freeze();
                data.left -= payload.len();
                let event = Event::Data { stream: data.stream, payload, fin: data.fin && data.left == 0 };
                if data.left == 0 {
                    self.data = None;
                }
                return Ok(Some(event));
            }
            if input.len() < 8 {
                return Ok(None);
            }
            let head = u32::from_be_bytes([input[0], input[1], input[2], input[3]]);
            let (flags, length) = (input[4], u32::from_be_bytes([0, input[5], input[6], input[7]]) as usize);
            if head & 0x8000_0000 == 0 {
                input.advance(8);
                self.data = Some(PartialData { stream: head, left: length, fin: flags & FLAG_FIN != 0 });
                continue;
            }
            let (version, kind) = ((head >> 16) as u16 & 0x7fff, head as u16);
            if version != VERSION {
                return Err(ProtocolError::Version(version));
            }
            if length > MAX_CONTROL {
                return Err(ProtocolError::Length { kind, length });
            }
            if input.len() < 8 + length {
                return Ok(None);
            }
            input.advance(8);
            let body = input.split_to(length).freeze();
            if let Some(event) = self.control(kind, flags, body)? {
                return Ok(Some(event));
            }
        }
    }

    fn control(&mut self, kind: u16, flags: u8, mut body: Bytes) -> Result<Option<Event>, ProtocolError> {
        let length = body.len();
        let least = match kind {
            1 => 10,
            2 | 4 | 6 | 8 => 4,
            3 | 7 | 9 => 8,
            _ => 0,
        };
        if length < least {
            return Err(ProtocolError::Length { kind, length });
        }
        Ok(match kind {
            1 => {
                let stream = body.get_u32() & 0x7fff_ffff;
                body.advance(6);
                let headers = self.decompressor.headers(&body)?;
                Some(Event::SynStream { stream, fin: flags & FLAG_FIN != 0, headers })
            }
            // Replies and late headers mean nothing to a server, but their blocks advance the shared zlib stream.
            2 | 8 => {
                body.advance(4);
                self.decompressor.headers(&body)?;
                None
            }
            3 => Some(Event::Reset { stream: body.get_u32() & 0x7fff_ffff }),
            4 => {
                let entries = (body.get_u32() as usize).min(body.len() / 8);
                let mut window = None;
                for _ in 0..entries {
                    let (id, value) = (body.get_u32() & 0x00ff_ffff, body.get_u32());
                    if id == 7 {
                        window = Some(Event::InitialWindow(value & 0x7fff_ffff));
                    }
                }
                window
            }
            6 => Some(Event::Ping(body.get_u32())),
            7 => Some(Event::GoAway),
            9 => Some(Event::WindowUpdate {
                stream: body.get_u32() & 0x7fff_ffff,
                delta: body.get_u32() & 0x7fff_ffff,
            }),
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests;
