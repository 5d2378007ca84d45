//! The runtime's side of a shim's socket, and of the process that shims are forked from.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, Interest};
use tokio::net::UnixStream;

use crate::shim::protocol::{ContainerState, Event, MAX_MESSAGE, Ready, Reply, Request, encode};
use crate::shim::sys;

/// Why a shim did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The shim is gone, or its socket is.
    #[error("shim: {0}")]
    Io(#[from] io::Error),
    /// The shim refused or failed.
    #[error("{0}")]
    Failed(String),
    /// The shim does not know the container.
    #[error("the container is not running")]
    NotFound,
}

/// Starts shims.
pub struct Spawner {
    state_dir: PathBuf,
    socket: Mutex<Option<OwnedFd>>,
}

impl Spawner {
    /// Nothing is started before the first shim is needed. What the processes say goes to `shim.log` in `state_dir`.
    pub fn new(state_dir: &Path) -> Self {
        Self { state_dir: state_dir.to_owned(), socket: Mutex::new(None) }
    }

    fn start(&self) -> io::Result<OwnedFd> {
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        let log =
            std::fs::OpenOptions::new().append(true).create(true).open(self.state_dir.join("shim.log"))?;
        let mut child = Command::new("/proc/self/exe")
            .args(["shim", "spawn"])
            .env_clear()
            .envs(failpoint::inherited())
            .current_dir("/")
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::from(log))
            .spawn()?;
        // Reaped when it ends, which is when this process closes its socket or ends itself.
        std::thread::Builder::new()
            .name("spawner".into())
            .stack_size(64 << 10)
            .spawn(move || child.wait())?;
        Ok(ours)
    }

    /// Starts the shim for the sandbox described in `dir`. Blocks for a few milliseconds.
    pub fn spawn(&self, dir: &Path) -> Result<Ready, Error> {
        let (ready, ready_in) = sys::pipe()?;
        let name = dir.as_os_str().as_encoded_bytes();
        {
            let mut socket = self.socket.lock();
            let sent = match &*socket {
                Some(fd) => sys::send(fd.as_fd(), name, &[ready_in.as_raw_fd()]).is_ok(),
                None => false,
            };
            if !sent {
                let fd = self.start()?;
                sys::send(fd.as_fd(), name, &[ready_in.as_raw_fd()])?;
                *socket = Some(fd);
            }
        }
        drop(ready_in);
        let mut text = Vec::new();
        io::Read::read_to_end(&mut std::fs::File::from(ready), &mut text)?;
        if text.is_empty() {
            return Err(Error::Failed("the shim ended before it was ready; see shim.log".into()));
        }
        serde_json::from_slice(&text).map_err(|e| Error::Failed(e.to_string()))
    }

    /// Starts the process before it is needed, so that the first pod need not wait for it.
    pub fn warm(&self) {
        let mut socket = self.socket.lock();
        if socket.is_none() {
            *socket = self.start().ok();
        }
    }
}

/// A shim, by its directory.
#[derive(Debug, Clone)]
pub struct Shim {
    dir: PathBuf,
}

impl Shim {
    /// The shim that lives in `dir`.
    pub fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    async fn connect(&self) -> io::Result<UnixStream> {
        // Through a descriptor, since the whole path may be longer than a socket's address.
        let dir = std::fs::File::open(&self.dir)?;
        UnixStream::connect(format!("/proc/self/fd/{}/shim.sock", dir.as_raw_fd())).await
    }

    /// One request and its answer.
    pub async fn call(&self, request: &Request) -> Result<Reply, Error> {
        let mut stream = self.connect().await?;
        send(&stream, request, &[]).await?;
        checked(receive(&mut stream).await?)
    }

    /// A request that must simply succeed.
    pub async fn ask(&self, request: &Request) -> Result<(), Error> {
        self.call(request).await.map(|_| ())
    }

    /// A request whose connection is used further.
    pub async fn open(&self, request: &Request, fds: &[RawFd]) -> Result<(UnixStream, Reply), Error> {
        let mut stream = self.connect().await?;
        send(&stream, request, fds).await?;
        let reply = checked(receive(&mut stream).await?)?;
        Ok((stream, reply))
    }

    /// The state now, and all ends of containers from now on.
    pub async fn subscribe(&self) -> Result<(Vec<ContainerState>, Subscription), Error> {
        match self.open(&Request::Subscribe, &[]).await? {
            (stream, Reply::State(states)) => Ok((states, Subscription { stream })),
            (_, other) => Err(Error::Failed(format!("unexpected answer {other:?}"))),
        }
    }

    /// A connection to a port on the pod's loopback.
    pub async fn dial(&self, port: u16) -> Result<tokio::net::TcpStream, Error> {
        let stream = self.connect().await?;
        send(&stream, &Request::Connect { port }, &[]).await?;
        let mut fds = Vec::new();
        let mut bytes = vec![0; 4096];
        let n = loop {
            stream.readable().await?;
            match stream.try_io(Interest::READABLE, || sys::receive(stream.as_fd(), &mut bytes, &mut fds)) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                result => break result?,
            }
        };
        bytes.truncate(n);
        if let Some(fd) = fds.pop() {
            let stream = std::net::TcpStream::from(fd);
            stream.set_nonblocking(true)?;
            return Ok(tokio::net::TcpStream::from_std(stream)?);
        }
        match crate::shim::protocol::decode(&mut bytes) {
            Ok(Some(reply)) => checked(reply).and_then(|_| Err(Error::Failed("no connection came".into()))),
            _ => Err(Error::Failed("no connection came".into())),
        }
    }
}

/// Ends of containers as they happen.
pub struct Subscription {
    stream: UnixStream,
}

impl Subscription {
    /// The next one; an error when the shim has gone.
    pub async fn next(&mut self) -> io::Result<Event> {
        read_message(&mut self.stream).await
    }
}

fn checked(reply: Reply) -> Result<Reply, Error> {
    match reply {
        Reply::Failed(reason) => Err(Error::Failed(reason)),
        Reply::NotFound => Err(Error::NotFound),
        reply => Ok(reply),
    }
}

/// Sends a message; descriptors go beside its first byte.
pub async fn send(stream: &UnixStream, request: &Request, fds: &[RawFd]) -> io::Result<()> {
    let bytes = encode(request);
    let mut sent = 0;
    while sent < bytes.len() {
        stream.writable().await?;
        let now = if sent == 0 { fds } else { &[] };
        match stream.try_io(Interest::WRITABLE, || sys::send(stream.as_fd(), &bytes[sent..], now)) {
            Ok(n) => sent += n,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Reads one answer.
pub async fn receive(stream: &mut UnixStream) -> io::Result<Reply> {
    read_message(stream).await
}

async fn read_message<T: for<'a> serde::Deserialize<'a>>(stream: &mut UnixStream) -> io::Result<T> {
    let length = stream.read_u32_le().await? as usize;
    if length > MAX_MESSAGE {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "message too long"));
    }
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await?;
    serde_json::from_slice(&bytes).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
}
