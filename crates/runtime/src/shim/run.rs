//! The shim itself: sets the sandbox up, then serves its socket, its children and their streams from one loop.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;

use failpoint::step;
use nix::sys::signalfd::SignalFd;

use super::poll::PollSet;
use super::protocol::{Ready, Reply, Request, decode, encode, frame};
use super::streams::{Container, Stream};
use super::{memory, setup, sys};

/// An attached client that is this far behind makes the shim stop reading the container's output.
const MAX_BEHIND: usize = 1 << 20;

/// After so many milliseconds without anything to do, memory is given back.
const REST: u16 = 1000;

/// A connection, and what it is for.
pub(super) struct Connection {
    pub(super) fd: OwnedFd,
    pub(super) input: Vec<u8>,
    pub(super) fds: Vec<OwnedFd>,
    pub(super) output: VecDeque<u8>,
    pub(super) role: Role,
    pub(super) closing: bool,
}

#[derive(Clone, PartialEq, Eq)]
pub(super) enum Role {
    Control,
    Subscriber,
    Attached(String),
    Exec(i32),
}

/// A child that creates a container or adds a process, and the pipe it reports through.
pub(super) struct Helper {
    pub(super) pid: i32,
    pub(super) report: OwnedFd,
    pub(super) text: Vec<u8>,
    pub(super) connection: u32,
    /// Others that asked for the same: a runtime that was started anew repeats what it does not know to be done.
    pub(super) waiters: Vec<u32>,
    /// Set for the creation of a container.
    pub(super) container: Option<String>,
    /// Receives the terminal of a container that has one.
    pub(super) console: Option<OwnedFd>,
}

#[derive(Clone, Copy)]
enum Key {
    Signals,
    Listener,
    Connection(u32),
    Helper(u32),
    Output(usize, Stream),
    Input(usize),
}

pub(super) struct Shim {
    pub(super) dir: String,
    pub(super) pause: Option<i32>,
    pub(super) signals: SignalFd,
    pub(super) listener: UnixListener,
    pub(super) connections: BTreeMap<u32, Connection>,
    pub(super) helpers: BTreeMap<u32, Helper>,
    pub(super) containers: Vec<Container>,
    /// Ended children nobody has asked about yet: an added process may end before its helper reports its number.
    pub(super) orphans: BTreeMap<i32, i32>,
    pub(super) next: u32,
    pub(super) buffer: Vec<u8>,
    pub(super) over: bool,
    /// Something happened since memory was last given back.
    pub(super) stirred: bool,
}

/// Never returns; the answer goes to `ready` once.
pub fn main(dir: &str, ready: OwnedFd) -> ! {
    sys::set_name(c"carrack-shim");
    let answer = |message: &Ready| {
        let text = serde_json::to_vec(message).unwrap_or_default();
        sys::write(ready.as_raw_fd(), &text).is_ok()
    };
    match setup::set_up(dir) {
        Ok(mut shim) => {
            let pid = std::process::id() as i32;
            step("shim.setup.pid");
            let _ = std::fs::write(format!("{dir}/shim.pid"), pid.to_string());
            step("shim.setup.ready");
            if !answer(&Ready::Up { pid, pause: shim.pause }) {
                // The runtime ended meanwhile, and nobody knows of this sandbox.
                shim.shut_down();
            }
            drop(ready);
            while !shim.over {
                shim.round();
            }
            sys::exit(0)
        }
        Err(error) => {
            answer(&Ready::Failed(error));
            sys::exit(1)
        }
    }
}

impl Shim {
    pub(super) fn round(&mut self) {
        let mut set = PollSet::new();
        set.add(Key::Signals, self.signals.as_fd().as_raw_fd(), true, false);
        set.add(Key::Listener, self.listener.as_raw_fd(), true, false);
        for (id, connection) in &self.connections {
            let read = match &connection.role {
                Role::Attached(container) => self
                    .containers
                    .iter()
                    .find(|c| c.plan.id == *container)
                    .is_none_or(Container::wants_input),
                _ => true,
            };
            set.add(Key::Connection(*id), connection.fd.as_raw_fd(), read, !connection.output.is_empty());
        }
        for (id, helper) in &self.helpers {
            set.add(Key::Helper(*id), helper.report.as_raw_fd(), true, false);
        }
        for (index, container) in self.containers.iter().enumerate() {
            let held = self
                .connections
                .values()
                .any(|c| c.output.len() > MAX_BEHIND && c.role == Role::Attached(container.plan.id.clone()));
            for (stream, fd) in [(Stream::Out, &container.stdout), (Stream::Err, &container.stderr)] {
                if let (Some(fd), false) = (fd, held) {
                    set.add(Key::Output(index, stream), fd.as_raw_fd(), true, false);
                }
            }
            if let (Some(fd), false) = (&container.stdin, container.input.is_empty()) {
                set.add(Key::Input(index), fd.as_raw_fd(), false, true);
            }
        }
        // Output before children: what a process wrote last is logged before its end is told.
        let happened = set.wait(self.stirred.then_some(REST));
        self.stirred = !happened.is_empty();
        if !self.stirred {
            memory::let_go();
        }
        for (key, ..) in &happened {
            // These name containers by their place, which the second pass may change.
            match *key {
                Key::Output(index, stream) => self.output(index, stream),
                Key::Input(index) => self.containers[index].flush_input(),
                _ => {}
            }
        }
        for (key, readable, writable) in &happened {
            match *key {
                Key::Helper(id) => self.helper(id),
                Key::Connection(id) => self.connection(id, *readable, *writable),
                Key::Listener => self.accept(),
                _ => {}
            }
        }
        if happened.iter().any(|(key, ..)| matches!(key, Key::Signals)) {
            while let Ok(Some(_)) = self.signals.read_signal() {}
            self.reap();
        }
        self.connections.retain(|_, c| !(c.closing && c.output.is_empty()));
    }

    pub(super) fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            let fd = OwnedFd::from(stream);
            if sys::nonblocking(fd.as_raw_fd()).is_err() {
                continue;
            }
            self.next += 1;
            self.connections.insert(
                self.next,
                Connection {
                    fd,
                    input: Vec::new(),
                    fds: Vec::new(),
                    output: VecDeque::new(),
                    role: Role::Control,
                    closing: false,
                },
            );
        }
    }

    pub(super) fn reply(&mut self, connection: u32, reply: &Reply) {
        self.queue(connection, &encode(reply));
    }

    pub(super) fn queue(&mut self, id: u32, bytes: &[u8]) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.output.extend(bytes);
            connection.flush();
        }
    }

    pub(super) fn connection(&mut self, id: u32, readable: bool, writable: bool) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        if writable {
            connection.flush();
        }
        if !readable {
            return;
        }
        match sys::receive(connection.fd.as_fd(), &mut self.buffer, &mut connection.fds) {
            Ok(0) => return self.closed(id),
            Ok(n) => connection.input.extend_from_slice(&self.buffer[..n]),
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => return,
            Err(_) => return self.closed(id),
        }
        loop {
            let Some(connection) = self.connections.get_mut(&id) else { return };
            if let Role::Attached(container) = connection.role.clone() {
                return self.attached_input(id, &container);
            }
            match decode::<Request>(&mut connection.input) {
                Ok(Some(request)) => {
                    let fds = std::mem::take(&mut connection.fds);
                    self.request(id, request, fds);
                }
                Ok(None) => return,
                Err(_) => return self.closed(id),
            }
        }
    }

    /// The other side has gone: an added process it waited for goes with it.
    pub(super) fn closed(&mut self, id: u32) {
        let Some(connection) = self.connections.remove(&id) else { return };
        match connection.role {
            // SAFETY: plain numbers. The role ends when the process is reaped, so the number is still its own.
            Role::Exec(pid) => unsafe {
                libc::kill(pid, libc::SIGKILL);
            },
            Role::Attached(container) => self.input_ended(&container),
            Role::Control | Role::Subscriber => {}
        }
    }

    pub(super) fn input_ended(&mut self, container: &str) {
        let Some(container) = self.containers.iter_mut().find(|c| c.plan.id == container) else { return };
        if container.plan.stdin_once {
            container.input_ends = true;
            container.flush_input();
        }
    }

    pub(super) fn attached_input(&mut self, id: u32, container_id: &str) {
        while let Some(connection) = self.connections.get_mut(&id) {
            let Some(header) = connection.input.first_chunk::<5>() else { return };
            let kind = header[0];
            let length = u32::from_le_bytes([header[1], header[2], header[3], header[4]]) as usize;
            if length > frame::MAX {
                return self.closed(id);
            }
            if connection.input.len() < 5 + length {
                return;
            }
            let data: Vec<u8> = connection.input.drain(..5 + length).skip(5).collect();
            match kind {
                frame::STDIN => {
                    if let Some(container) = self.containers.iter_mut().find(|c| c.plan.id == container_id) {
                        container.feed(&data);
                    }
                }
                frame::STDIN_END => self.input_ended(container_id),
                _ => {}
            }
        }
    }

    pub(super) fn output(&mut self, index: usize, stream: Stream) {
        let kind = if stream == Stream::Out { frame::STDOUT } else { frame::STDERR };
        let mut buffer = std::mem::take(&mut self.buffer);
        if let Some(data) = self.containers[index].read(stream, &mut buffer) {
            let id = &self.containers[index].plan.id;
            for connection in self.connections.values_mut() {
                if matches!(&connection.role, Role::Attached(to) if to == id) {
                    connection.output.push_back(kind);
                    connection.output.extend((data.len() as u32).to_le_bytes());
                    connection.output.extend(data);
                    connection.flush();
                }
            }
        }
        self.buffer = buffer;
    }

    /// How many bytes of output can be read now.
    pub(super) fn pending(&self, at: usize, stream: Stream) -> i32 {
        let container = &self.containers[at];
        let fd = if stream == Stream::Out { &container.stdout } else { &container.stderr };
        let Some(fd) = fd else { return 0 };
        let mut length = 0;
        // SAFETY: FIONREAD writes one int, which lives through the call.
        if unsafe { libc::ioctl(fd.as_raw_fd(), libc::FIONREAD, &mut length) } < 0 { 0 } else { length }
    }

    pub(super) fn shut_down(&mut self) {
        step("shim.end.containers");
        for container in &self.containers {
            container.signal(libc::SIGKILL, true);
            container.kill_all(libc::SIGKILL);
        }
        if let Some(pause) = self.pause {
            // SAFETY: plain numbers; the reaper is a child of this process that is not reaped before it ends.
            unsafe { libc::kill(pause, libc::SIGKILL) };
        }
        step("shim.end.done");
        self.over = true;
    }
}

impl Connection {
    pub(super) fn flush(&mut self) {
        loop {
            let (chunk, _) = self.output.as_slices();
            if chunk.is_empty() {
                return;
            }
            match sys::send(self.fd.as_fd(), chunk, &[]) {
                Ok(n) => drop(self.output.drain(..n)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    self.output.clear();
                    self.closing = true;
                    return;
                }
            }
        }
    }
}
