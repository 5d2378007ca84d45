//! Name/value header blocks, compressed with zlib and the dictionary of SPDY/3 (draft section 2.6.10.1). One zlib stream spans
//! all blocks of a direction, so every block must pass through here in order.
//!
//! The pure-Rust deflate has no "set dictionary" call. A dictionary is the window both sides start with, so it is
//! fed as a stored block whose output is thrown away; the zlib header in front is written and read by hand.

use bytes::{Buf, BufMut, BytesMut};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::ProtocolError;

/// Header names in lower case with their values (several values of a name are joined by NUL on the wire).
pub type Headers = Vec<(String, String)>;

/// Bound of one decompressed block.
const MAX_BLOCK: usize = 64 * 1024;

const LENGTH_PREFIXED: &str = "options head post put delete trace accept accept-charset accept-encoding \
accept-language accept-ranges age allow authorization cache-control connection content-base content-encoding \
content-language content-length content-location content-md5 content-range content-type date etag expect expires from \
host if-match if-modified-since if-none-match if-range if-unmodified-since last-modified location max-forwards pragma \
proxy-authenticate proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade user-agent \
vary via warning www-authenticate method get status 200|OK version HTTP/1.1 url public set-cookie keep-alive origin";

const TAIL: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505\
203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden404 Not \
Found500 Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec \
00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,application/xml,\
application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,\
utf-,*,enq=0.";

/// Adler-32 of the dictionary, as it stands in the zlib header of a stream that uses it.
const DICTIONARY_ID: u32 = 0xe3c6_a7c2;

fn dictionary() -> Vec<u8> {
    let mut out = Vec::with_capacity(1423);
    for word in LENGTH_PREFIXED.split(' ') {
        let word = word.replace('|', " ");
        out.put_u32(word.len() as u32);
        out.extend_from_slice(word.as_bytes());
    }
    out.extend_from_slice(TAIL.as_bytes());
    out
}

/// Compresses header blocks of one direction.
pub struct Compressor {
    deflate: Compress,
    started: bool,
}

impl Default for Compressor {
    fn default() -> Self {
        let mut deflate = Compress::new(Compression::fast(), false);
        let mut discarded = Vec::with_capacity(4096);
        deflate
            .compress_vec(&dictionary(), &mut discarded, FlushCompress::Sync)
            .expect("compressing a fixed text into a large enough buffer cannot fail");
        Compressor { deflate, started: false }
    }
}

impl Compressor {
    /// The compressed block for `headers`.
    pub fn block(&mut self, headers: &Headers) -> Vec<u8> {
        let mut plain = Vec::new();
        plain.put_u32(headers.len() as u32);
        for (name, value) in headers {
            plain.put_u32(name.len() as u32);
            plain.extend_from_slice(name.to_ascii_lowercase().as_bytes());
            plain.put_u32(value.len() as u32);
            plain.extend_from_slice(value.as_bytes());
        }
        let mut out = Vec::with_capacity(plain.len() + 128);
        if !self.started {
            self.started = true;
            // CMF 0x78 (deflate, 32 KiB window); FLG with FDICT set, chosen so that the pair is a multiple of 31.
            out.put_slice(&[0x78, 0x20]);
            out.put_u32(DICTIONARY_ID);
        }
        let before = self.deflate.total_in();
        loop {
            let done = (self.deflate.total_in() - before) as usize;
            out.reserve(64);
            self.deflate
                .compress_vec(&plain[done..], &mut out, FlushCompress::Sync)
                .expect("deflate of in-memory data into a growing buffer cannot fail");
            if (self.deflate.total_in() - before) as usize == plain.len() && out.len() < out.capacity() {
                return out;
            }
        }
    }
}

/// Decompresses header blocks of one direction.
pub struct Decompressor {
    inflate: Decompress,
    header: BytesMut,
    started: bool,
}

impl Default for Decompressor {
    fn default() -> Self {
        Decompressor { inflate: Decompress::new(false), header: BytesMut::new(), started: false }
    }
}

impl Decompressor {
    /// The headers in a compressed block.
    pub fn headers(&mut self, block: &[u8]) -> Result<Headers, ProtocolError> {
        let mut input = block;
        if !self.started {
            // The zlib header may be split over blocks only by a hostile peer, but that must not matter.
            self.header.extend_from_slice(block);
            let needed = if self.header.get(1).is_some_and(|flags| flags & 0x20 != 0) { 6 } else { 2 };
            if self.header.len() < needed {
                return Ok(Vec::new());
            }
            let mut head = std::mem::take(&mut self.header).freeze();
            let (cmf, flags) = (head.get_u8(), head.get_u8());
            if cmf & 0x0f != 8 || (u16::from(cmf) * 256 + u16::from(flags)) % 31 != 0 {
                return Err(ProtocolError::Compression);
            }
            if flags & 0x20 != 0 {
                if head.get_u32() != DICTIONARY_ID {
                    return Err(ProtocolError::Compression);
                }
                self.prime()?;
            }
            self.started = true;
            input = &block[block.len() - head.len()..];
        }
        let plain = self.inflate(input)?;
        parse(&plain)
    }

    fn prime(&mut self) -> Result<(), ProtocolError> {
        let dictionary = dictionary();
        let length = dictionary.len() as u16;
        let mut stored = vec![0x00];
        stored.put_u16_le(length);
        stored.put_u16_le(!length);
        stored.extend_from_slice(&dictionary);
        let primed = self.inflate(&stored)?;
        if primed == dictionary { Ok(()) } else { Err(ProtocolError::Compression) }
    }

    fn inflate(&mut self, mut input: &[u8]) -> Result<Vec<u8>, ProtocolError> {
        let mut out = Vec::with_capacity(1024);
        loop {
            let (consumed, produced) = (self.inflate.total_in(), out.len());
            out.reserve(1024);
            let status = self
                .inflate
                .decompress_vec(input, &mut out, FlushDecompress::Sync)
                .map_err(|_| ProtocolError::Compression)?;
            input = &input[(self.inflate.total_in() - consumed) as usize..];
            if out.len() > MAX_BLOCK {
                return Err(ProtocolError::HeadersTooLarge(MAX_BLOCK));
            }
            match status {
                Status::StreamEnd => return Err(ProtocolError::Compression),
                _ if input.is_empty() && out.len() < out.capacity() => return Ok(out),
                _ if out.len() == produced && self.inflate.total_in() == consumed => {
                    return if input.is_empty() { Ok(out) } else { Err(ProtocolError::Compression) };
                }
                _ => {}
            }
        }
    }
}

fn parse(mut plain: &[u8]) -> Result<Headers, ProtocolError> {
    if plain.is_empty() {
        return Ok(Vec::new());
    }
    let count = number(&mut plain)?;
    let mut headers = Vec::new();
    for _ in 0..count {
        let name = text(&mut plain)?;
        headers.push((name, text(&mut plain)?));
    }
    Ok(headers)
}

fn number(plain: &mut &[u8]) -> Result<usize, ProtocolError> {
    if plain.len() < 4 {
        return Err(ProtocolError::Headers);
    }
    Ok(plain.get_u32() as usize)
}

fn text(plain: &mut &[u8]) -> Result<String, ProtocolError> {
    let length = number(plain)?;
    let (head, rest) = plain.split_at_checked(length).ok_or(ProtocolError::Headers)?;
    *plain = rest;
    Ok(String::from_utf8_lossy(head).into_owned())
}

#[cfg(test)]
mod tests;
