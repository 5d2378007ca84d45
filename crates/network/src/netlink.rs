//! A small blocking netlink client: messages, attributes, request and answer. Blocking, because every request here is answered by the
//! kernel from memory, and because a socket belongs to the namespace of the thread that opened it.

use crate::error::{Error, Result};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

pub(crate) const NLM_F_REQUEST: u16 = 1;
pub(crate) const NLM_F_ACK: u16 = 4;
pub(crate) const NLM_F_DUMP: u16 = 0x300;
pub(crate) const NLM_F_REPLACE: u16 = 0x100;
pub(crate) const NLM_F_EXCL: u16 = 0x200;
pub(crate) const NLM_F_CREATE: u16 = 0x400;
pub(crate) const NLM_F_APPEND: u16 = 0x800;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSGERR_ATTR_MSG: u16 = 1;
const NLA_F_NESTED: u16 = 0x8000;
const NLA_TYPE_MASK: u16 = 0x3fff;
const HEADER: usize = 16;

/// One netlink message under construction.
#[derive(Clone)]
pub(crate) struct Message {
    bytes: Vec<u8>,
}

impl Message {
    /// Starts a message; `body` is the fixed header of its family (`ifinfomsg`, `nfgenmsg`, ...).
    pub(crate) fn new(kind: u16, flags: u16, body: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
        bytes.extend_from_slice(body);
        let mut message = Self { bytes };
        message.pad();
        message
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    pub(crate) fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(bytes);
        self.pad();
        self
    }

    pub(crate) fn attr(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let length = u16::try_from(4 + value.len()).expect("attributes made here are short");
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.raw(value)
    }

    pub(crate) fn string(&mut self, kind: u16, value: &str) -> &mut Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attr(kind, &bytes)
    }

    pub(crate) fn u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.attr(kind, &value.to_ne_bytes())
    }

    pub(crate) fn be32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.attr(kind, &value.to_be_bytes())
    }

    pub(crate) fn be64(&mut self, kind: u16, value: u64) -> &mut Self {
        self.attr(kind, &value.to_be_bytes())
    }

    pub(crate) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0, 0]);
        self.bytes.extend_from_slice(&(kind | NLA_F_NESTED).to_ne_bytes());
        fill(self);
        let length = u16::try_from(self.bytes.len() - start).expect("callers split long lists");
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    fn finish(mut self, sequence: u32, flags: u16) -> Vec<u8> {
        let length = u32::try_from(self.bytes.len()).expect("messages made here are short");
        self.bytes[0..4].copy_from_slice(&length.to_ne_bytes());
        let old = u16::from_ne_bytes([self.bytes[6], self.bytes[7]]);
        self.bytes[6..8].copy_from_slice(&(old | flags).to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.bytes
    }
}

/// Iterates over attributes: `(type without flags, value)`. Stops at the first malformed one.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let header: [u8; 4] = bytes.get(..4)?.try_into().ok()?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & NLA_TYPE_MASK;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

pub(crate) fn as_u32(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?))
}

/// An answer: the message's type and what follows the netlink header.
pub(crate) struct Answer {
    pub(crate) body: Vec<u8>,
}

/// A netlink socket of one protocol in the network namespace of the thread that opened it.
pub(crate) struct Socket {
    fd: OwnedFd,
    sequence: u32,
}

impl Socket {
    /// `protocol` is `libc::NETLINK_ROUTE` or `libc::NETLINK_NETFILTER`.
    pub(crate) fn open(protocol: i32) -> Result<Self> {
        let failed = |action| move |source| Error::Socket { action, source };
        // SAFETY: plain system call; the returned descriptor is owned by nobody else.
        let raw = unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol) };
        if raw < 0 {
            let source = io::Error::last_os_error();
            if source.raw_os_error() == Some(libc::EPROTONOSUPPORT) && protocol == libc::NETLINK_NETFILTER {
                return Err(Error::Unsupported {
                    feature: "nfnetlink (CONFIG_NETFILTER_NETLINK)",
                    consequence: "services, host ports and masquerading cannot work",
                });
            }
            return Err(failed("open socket")(source));
        }
        // SAFETY: `raw` was just returned by socket(2).
        let fd = unsafe { OwnedFd::from_raw_fd(raw) };
        for (option, value) in [(libc::NETLINK_EXT_ACK, 1), (libc::NETLINK_CAP_ACK, 1)] {
            set_option(&fd, libc::SOL_NETLINK, option, value).map_err(failed("set socket option"))?;
        }
        // Large batches and dumps; the forced variants need CAP_NET_ADMIN and otherwise the limit stays.
        for option in [libc::SO_SNDBUFFORCE, libc::SO_RCVBUFFORCE] {
            let _ = set_option(&fd, libc::SOL_SOCKET, option, 8 << 20);
        }
        let timeout = libc::timeval { tv_sec: 10, tv_usec: 0 };
        // SAFETY: the pointer and length describe `timeout`, which outlives the call.
        unsafe {
            libc::setsockopt(
                fd.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_RCVTIMEO,
                (&raw const timeout).cast(),
                size_of::<libc::timeval>() as u32,
            );
        }
        Ok(Self { fd, sequence: 1 })
    }

    /// Sends one request and waits for its acknowledgement; `action` completes "kernel refused to ...".
    pub(crate) fn request(&mut self, message: Message, action: impl FnOnce() -> String) -> Result<()> {
        let sequence = self.next();
        self.send(&message.finish(sequence, NLM_F_ACK))?;
        self.collect(sequence, action).map(|_| ())
    }

    /// Sends a dump request and returns all its answers.
    pub(crate) fn dump(&mut self, message: Message, action: impl FnOnce() -> String) -> Result<Vec<Answer>> {
        let sequence = self.next();
        self.send(&message.finish(sequence, NLM_F_DUMP))?;
        self.collect(sequence, action)
    }

    /// Sends messages as one datagram (an nftables batch): only the last but one needs an acknowledgement, errors come for any.
    pub(crate) fn batch(
        &mut self,
        messages: Vec<Message>,
        mut action: impl FnMut(usize) -> String,
    ) -> Result<()> {
        let first = self.sequence + 1;
        let count = messages.len();
        let mut bytes = Vec::with_capacity(messages.iter().map(Message::len).sum());
        for (index, message) in messages.into_iter().enumerate() {
            let flags = if index + 2 == count { NLM_F_ACK } else { 0 };
            let sequence = self.next();
            bytes.extend(message.finish(sequence, flags));
        }
        // The kernel takes a datagram only whole.
        let needed = i32::try_from(bytes.len()).unwrap_or(i32::MAX).max(8 << 20);
        let _ = set_option(&self.fd, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, needed);
        self.send(&bytes)?;
        let acknowledged = first + (count as u32) - 2;
        let mut failure = None;
        loop {
            let received = match self.receive() {
                Ok(received) => received,
                // After an error at the batch's head the kernel sends no further answers.
                Err(error) if error.is(nix::errno::Errno::EAGAIN) && failure.is_some() => break,
                Err(error) => return Err(failure.unwrap_or(error)),
            };
            let mut done = false;
            for (header, body) in messages_of(&received) {
                if header.kind != NLMSG_ERROR || header.sequence < first {
                    continue;
                }
                let index = (header.sequence - first) as usize;
                let code = as_u32(body).ok_or(Error::Malformed)? as i32;
                if code != 0 && failure.is_none() {
                    failure = Some(refusal(code, header.flags, body, action(index)));
                }
                // An error aborts the whole batch; the acknowledgement may then never come.
                done |= header.sequence >= acknowledged || code != 0;
            }
            if done {
                break;
            }
        }
        self.drain();
        failure.map_or(Ok(()), Err)
    }

    fn next(&mut self) -> u32 {
        self.sequence += 1;
        self.sequence
    }

    fn send(&self, bytes: &[u8]) -> Result<()> {
        // SAFETY: the pointer and length describe `bytes`.
        let sent = unsafe { libc::send(self.fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
        if sent < 0 {
            return Err(Error::Socket { action: "send request", source: io::Error::last_os_error() });
        }
        Ok(())
    }

    fn receive(&self) -> Result<Vec<u8>> {
        let mut buffer = vec![0; 64 << 10];
        // SAFETY: the pointer and length describe `buffer`.
        let length = unsafe { libc::recv(self.fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
        if length < 0 {
            return Err(Error::Socket { action: "wait for answer", source: io::Error::last_os_error() });
        }
        buffer.truncate(length as usize);
        Ok(buffer)
    }

    fn drain(&self) {
        let mut buffer = [0u8; 4096];
        // SAFETY: the pointer and length describe `buffer`.
        while unsafe {
            libc::recv(self.fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), libc::MSG_DONTWAIT)
        } > 0
        {}
    }

    fn collect(&mut self, sequence: u32, action: impl FnOnce() -> String) -> Result<Vec<Answer>> {
        let mut answers = Vec::new();
        loop {
            let received = self.receive()?;
            for (header, body) in messages_of(&received) {
                if header.sequence != sequence {
                    continue;
                }
                match header.kind {
                    NLMSG_ERROR | NLMSG_DONE => {
                        let code = as_u32(body).unwrap_or(0) as i32;
                        if code == 0 {
                            return Ok(answers);
                        }
                        return Err(refusal(code, header.flags, body, action()));
                    }
                    _ => answers.push(Answer { body: body.to_vec() }),
                }
            }
        }
    }
}

struct Header {
    kind: u16,
    flags: u16,
    sequence: u32,
}

fn messages_of(mut bytes: &[u8]) -> impl Iterator<Item = (Header, &[u8])> {
    std::iter::from_fn(move || {
        let head = bytes.get(..HEADER)?;
        let length = as_u32(head)? as usize;
        let header = Header {
            kind: u16::from_ne_bytes([head[4], head[5]]),
            flags: u16::from_ne_bytes([head[6], head[7]]),
            sequence: as_u32(&head[8..])?,
        };
        let body = bytes.get(HEADER..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((header, body))
    })
}

fn refusal(code: i32, flags: u16, body: &[u8], action: String) -> Error {
    let mut message = String::new();
    if flags & NLM_F_ACK_TLVS != 0 {
        // The code, then the request's header (all of the request unless capped), then attributes.
        let echoed = if flags & NLM_F_CAPPED != 0 {
            HEADER
        } else {
            body.get(4..).and_then(as_u32).unwrap_or(HEADER as u32) as usize
        };
        for (kind, value) in attributes(body.get(4 + echoed.next_multiple_of(4)..).unwrap_or_default()) {
            if kind == NLMSGERR_ATTR_MSG {
                message = String::from_utf8_lossy(value).trim_end_matches('\0').to_owned();
            }
        }
    }
    Error::Refused { action, message, source: io::Error::from_raw_os_error(-code) }
}

fn set_option(fd: &OwnedFd, level: i32, option: i32, value: i32) -> io::Result<()> {
    // SAFETY: the pointer and length describe `value`, which outlives the call.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of::<i32>() as libc::socklen_t,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
