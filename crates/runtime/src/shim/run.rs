//! The shim itself: sets the sandbox up, then serves its socket, its children and their streams from one loop.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;

use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::create::Stdio;
use super::log::LogFile;
use super::poll::PollSet;
use super::protocol::{
    ContainerState, Event, ExecPlan, Exit, Ready, Reply, Request, SandboxPlan, StartPlan, decode, encode,
    frame,
};
use super::streams::{Container, Stream};
use super::{create, exec, sys};

/// An attached client that is this far behind makes the shim stop reading the container's output.
const MAX_BEHIND: usize = 1 << 20;

/// A connection, and what it is for.
struct Connection {
    fd: OwnedFd,
    input: Vec<u8>,
    fds: Vec<OwnedFd>,
    output: VecDeque<u8>,
    role: Role,
    closing: bool,
}

#[derive(Clone, PartialEq, Eq)]
enum Role {
    Control,
    Subscriber,
    Attached(String),
    Exec(i32),
}

/// A child that creates a container or adds a process, and the pipe it reports through.
struct Helper {
    report: OwnedFd,
    text: Vec<u8>,
    connection: u32,
    /// Set for the creation of a container.
    container: Option<String>,
    /// Receives the terminal of a container that has one.
    console: Option<OwnedFd>,
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

struct Shim {
    dir: String,
    pause: Option<i32>,
    signals: SignalFd,
    listener: UnixListener,
    connections: BTreeMap<u32, Connection>,
    helpers: BTreeMap<u32, Helper>,
    containers: Vec<Container>,
    /// Ended children nobody has asked about yet: an added process may end before its helper reports its number.
    orphans: BTreeMap<i32, i32>,
    next: u32,
    buffer: Vec<u8>,
    over: bool,
}

/// Never returns; the answer goes to `ready` once.
pub fn main(dir: &str, ready: OwnedFd) -> ! {
    sys::set_name(c"carrack-shim");
    let answer = |message: &Ready| {
        let text = serde_json::to_vec(message).unwrap_or_default();
        sys::write(ready.as_raw_fd(), &text).is_ok()
    };
    match set_up(dir) {
        Ok(mut shim) => {
            let pid = std::process::id() as i32;
            let _ = std::fs::write(format!("{dir}/shim.pid"), pid.to_string());
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

fn set_up(dir: &str) -> Result<Shim, String> {
    let fail = |what: &str| {
        let what = what.to_owned();
        move |e: io::Error| format!("{what}: {e}")
    };
    let text = std::fs::read(format!("{dir}/sandbox.json")).map_err(fail("sandbox.json"))?;
    let plan: SandboxPlan = serde_json::from_slice(&text).map_err(|e| format!("sandbox.json: {e}"))?;
    drop(text);
    let _ = nix::unistd::setsid();
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    std::env::set_current_dir("/").map_err(fail("chdir"))?;
    // SAFETY: plain numbers. Containers whose creator is gone become this process's children; SIGCHLD is no longer ignored.
    unsafe {
        libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1u64);
        libc::signal(libc::SIGCHLD, libc::SIG_DFL);
    }
    for procs in &plan.cgroup_procs {
        sys::put(procs, "0").map_err(fail(procs))?;
    }
    let mut flags = CloneFlags::empty();
    flags.set(CloneFlags::CLONE_NEWNET, plan.network);
    flags.set(CloneFlags::CLONE_NEWIPC, plan.ipc);
    flags.set(CloneFlags::CLONE_NEWUTS, plan.uts);
    unshare(flags).map_err(|e| format!("new namespaces: {e}"))?;
    if plan.uts && !plan.hostname.is_empty() {
        nix::unistd::sethostname(&plan.hostname).map_err(|e| format!("host name: {e}"))?;
    }
    if plan.network {
        loopback_up().map_err(fail("bring loopback up"))?;
    }
    for (name, value) in &plan.sysctls {
        let path = format!("/proc/sys/{}", name.replace('.', "/"));
        sys::put(&path, value).map_err(|e| format!("sysctl {name}={value}: {e}"))?;
    }
    let pause = if plan.pid { Some(start_reaper().map_err(fail("process namespace"))?) } else { None };

    let mut mask = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        mask.add(signal);
    }
    mask.thread_block().map_err(|e| format!("signals: {e}"))?;
    let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .map_err(|e| format!("signals: {e}"))?;
    // A socket's address is at most 107 bytes, so it is named within the directory.
    std::env::set_current_dir(dir).map_err(fail(dir))?;
    let _ = std::fs::remove_file("shim.sock");
    let listener = UnixListener::bind("shim.sock").map_err(fail("shim.sock"))?;
    std::env::set_current_dir("/").map_err(fail("chdir"))?;
    listener.set_nonblocking(true).map_err(fail("shim.sock"))?;
    Ok(Shim {
        dir: dir.to_owned(),
        pause,
        signals,
        listener,
        connections: BTreeMap::new(),
        helpers: BTreeMap::new(),
        containers: Vec::new(),
        orphans: BTreeMap::new(),
        next: 0,
        buffer: vec![0; 16 << 10],
        over: false,
    })
}

fn loopback_up() -> io::Result<()> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: ifreq is plain data; the name fits and is NUL-terminated; the ioctls read and write that one struct.
    unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        for (to, from) in request.ifr_name.iter_mut().zip(b"lo\0") {
            *to = *from as libc::c_char;
        }
        if libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &mut request) < 0 {
            return Err(io::Error::last_os_error());
        }
        request.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short;
        if libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &request) < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Starts the first process of the pod's shared process namespace, which only reaps.
fn start_reaper() -> io::Result<i32> {
    unshare(CloneFlags::CLONE_NEWPID)?;
    let pid = sys::fork()?;
    if pid == 0 {
        sys::set_name(c"pause");
        // SAFETY: the calls take plain numbers and locals. The parent's end takes this process along.
        unsafe {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as u64);
            let mut mask: libc::sigset_t = std::mem::zeroed();
            libc::sigfillset(&mut mask);
            libc::sigprocmask(libc::SIG_BLOCK, &mask, std::ptr::null_mut());
            for fd in 3..64 {
                libc::close(fd);
            }
            loop {
                while libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) > 0 {}
                let mut signal = 0;
                libc::sigwait(&mask, &mut signal);
            }
        }
    }
    // The shim's later children are to be in its own namespace again.
    let own = std::fs::File::open("/proc/self/ns/pid")?;
    nix::sched::setns(own, CloneFlags::CLONE_NEWPID)?;
    Ok(pid)
}

impl Shim {
    fn round(&mut self) {
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
        let happened = set.wait();
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

    fn accept(&mut self) {
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

    fn reply(&mut self, connection: u32, reply: &Reply) {
        self.queue(connection, &encode(reply));
    }

    fn queue(&mut self, id: u32, bytes: &[u8]) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.output.extend(bytes);
            connection.flush();
        }
    }

    fn connection(&mut self, id: u32, readable: bool, writable: bool) {
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
    fn closed(&mut self, id: u32) {
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

    fn input_ended(&mut self, container: &str) {
        let Some(container) = self.containers.iter_mut().find(|c| c.plan.id == container) else { return };
        if container.plan.stdin_once {
            container.input_ends = true;
            container.flush_input();
        }
    }

    fn attached_input(&mut self, id: u32, container_id: &str) {
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

    fn request(&mut self, id: u32, request: Request, fds: Vec<OwnedFd>) {
        let reply = match request {
            Request::State => Reply::State(self.state()),
            Request::Subscribe => {
                self.set_role(id, Role::Subscriber);
                Reply::State(self.state())
            }
            Request::Start(plan) => match self.start(id, *plan) {
                Ok(()) => return,
                Err(error) => Reply::Failed(error),
            },
            Request::Exec(plan) => match self.exec(id, &plan, fds) {
                Ok(()) => return,
                Err(reply) => reply,
            },
            Request::Kill => {
                if let Some(Connection { role: Role::Exec(pid), .. }) = self.connections.get(&id) {
                    // SAFETY: plain numbers; the process is not reaped while the connection has this role.
                    unsafe { libc::kill(*pid, libc::SIGKILL) };
                }
                return;
            }
            Request::Signal { id: container, signal, all } => self.with(&container, |c| {
                c.signal(signal, all);
                Reply::Ok
            }),
            Request::Attach { id: container } => {
                let reply = self.with(&container, |_| Reply::Ok);
                if matches!(reply, Reply::Ok) {
                    self.set_role(id, Role::Attached(container.clone()));
                }
                let over = self.containers.iter().any(|c| c.plan.id == container && c.exit.is_some());
                self.reply(id, &reply);
                if over && let Some(connection) = self.connections.get_mut(&id) {
                    connection.closing = true;
                }
                return;
            }
            Request::Resize { id: container, width, height } => self.with(&container, |c| {
                let terminal = c.stdout.as_ref().filter(|_| c.plan.tty);
                match terminal.map(|t| sys::resize(t.as_raw_fd(), width, height)) {
                    Some(Err(e)) => Reply::Failed(e.to_string()),
                    _ => Reply::Ok,
                }
            }),
            Request::ReopenLog { id: container } => self.with(&container, |c| match c.log.reopen() {
                Ok(()) => Reply::Ok,
                Err(e) => Reply::Failed(format!("open log: {e}")),
            }),
            Request::Connect { port } => return self.connect(id, port),
            Request::Forget { id: container } => {
                self.containers.retain(|c| c.plan.id != container || c.running());
                Reply::Ok
            }
            Request::Shutdown => {
                self.shut_down();
                Reply::Ok
            }
        };
        self.reply(id, &reply);
    }

    fn with(&mut self, id: &str, act: impl FnOnce(&mut Container) -> Reply) -> Reply {
        self.containers.iter_mut().find(|c| c.plan.id == id).map_or(Reply::NotFound, act)
    }

    fn set_role(&mut self, id: u32, role: Role) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.role = role;
        }
    }

    fn state(&self) -> Vec<ContainerState> {
        let state = |c: &Container| ContainerState {
            id: c.plan.id.clone(),
            pid: c.pid,
            started_at: c.started_at,
            exit: c.exit.clone(),
        };
        self.containers.iter().filter(|c| c.pid > 0).map(state).collect()
    }

    fn start(&mut self, connection: u32, plan: StartPlan) -> Result<(), String> {
        if self.containers.iter().any(|c| c.plan.id == plan.id) {
            return Err("the container was started before".into());
        }
        let log = LogFile::open(&plan.log).map_err(|e| format!("open log {}: {e}", plan.log))?;
        let mut container = Container::new(plan, log);
        let system = |e: io::Error| e.to_string();
        let (report, report_in) = sys::pipe().map_err(system)?;
        let mut console = None;
        let stdio = if container.plan.tty {
            let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(system)?;
            console = Some(OwnedFd::from(ours));
            Stdio::Terminal(theirs.into())
        } else {
            let (stdout, stdout_in) = sys::pipe().map_err(system)?;
            let (stderr, stderr_in) = sys::pipe().map_err(system)?;
            for fd in [&stdout, &stderr] {
                sys::nonblocking(fd.as_raw_fd()).map_err(system)?;
            }
            container.stdout = Some(stdout);
            container.stderr = Some(stderr);
            let mut stdin = None;
            if container.plan.stdin {
                let (theirs, ours) = sys::pipe().map_err(system)?;
                sys::nonblocking(ours.as_raw_fd()).map_err(system)?;
                container.stdin = Some(ours);
                stdin = Some(theirs);
            }
            Stdio::Pipes { stdin, stdout: stdout_in, stderr: stderr_in }
        };
        if sys::fork().map_err(system)? == 0 {
            self.forget_for_child();
            create::run(&self.dir, &container.plan, stdio, report_in);
        }
        self.next += 1;
        self.helpers.insert(
            self.next,
            Helper {
                report,
                text: Vec::new(),
                connection,
                container: Some(container.plan.id.clone()),
                console,
            },
        );
        self.containers.push(container);
        Ok(())
    }

    fn exec(&mut self, connection: u32, plan: &ExecPlan, fds: Vec<OwnedFd>) -> Result<(), Reply> {
        let Some(container) = self.containers.iter().find(|c| c.plan.id == plan.id) else {
            return Err(Reply::NotFound);
        };
        if !container.running() {
            return Err(Reply::Failed("the container is not running".into()));
        }
        let (report, report_in) = sys::pipe().map_err(|e| Reply::Failed(e.to_string()))?;
        if sys::fork().map_err(|e| Reply::Failed(e.to_string()))? == 0 {
            exec::run(plan, &container.plan, container.pid, fds, report_in);
        }
        self.next += 1;
        self.helpers.insert(
            self.next,
            Helper { report, text: Vec::new(), connection, container: None, console: None },
        );
        Ok(())
    }

    /// In the child: what belongs to other containers is not to be kept open by this one's creation.
    fn forget_for_child(&mut self) {
        self.connections.clear();
        self.helpers.clear();
        self.containers.clear();
    }

    fn helper(&mut self, id: u32) {
        let Some(helper) = self.helpers.get_mut(&id) else { return };
        let mut chunk = [0; 4096];
        match sys::read(helper.report.as_raw_fd(), &mut chunk) {
            Ok(Some(n)) if n > 0 => return helper.text.extend_from_slice(&chunk[..n]),
            Ok(None) => return,
            Ok(Some(_)) | Err(_) => {}
        }
        let Some(helper) = self.helpers.remove(&id) else { return };
        let text = String::from_utf8_lossy(&helper.text).into_owned();
        let pid = text.lines().find_map(|l| l.strip_prefix('P')?.parse::<i32>().ok());
        let error =
            text.split_once('E').filter(|_| text.starts_with('E') || text.contains("\nE")).map(|_| {
                let from = if text.starts_with('E') { 1 } else { text.find("\nE").map_or(0, |at| at + 2) };
                text[from..].trim_end().to_owned()
            });
        let connection = helper.connection;
        let reply = match (pid, error) {
            (Some(pid), None) => Reply::Started { pid },
            (_, Some(error)) => Reply::Failed(error),
            (None, None) => Reply::Failed("the process ended before it could report".into()),
        };
        if let Some(container) = helper.container {
            self.created(&container, &reply, helper.console);
            self.reply(connection, &reply);
        } else {
            self.reply(connection, &reply);
            if let Reply::Started { pid } = reply {
                self.set_role(connection, Role::Exec(pid));
                if let Some(code) = self.orphans.remove(&pid) {
                    self.exec_ended(pid, code);
                } else if !self.connections.contains_key(&connection) {
                    // SAFETY: plain numbers; the process is not reaped yet.
                    unsafe { libc::kill(pid, libc::SIGKILL) };
                }
            }
        }
        self.reap();
    }

    fn created(&mut self, id: &str, reply: &Reply, console: Option<OwnedFd>) {
        let Some(at) = self.containers.iter().position(|c| c.plan.id == id) else { return };
        let Reply::Started { pid } = *reply else {
            self.containers[at].kill_all(libc::SIGKILL);
            self.containers.remove(at);
            return;
        };
        let container = &mut self.containers[at];
        container.pid = pid;
        container.started_at = sys::now();
        if let Some(console) = console {
            let mut fds = Vec::new();
            let _ = sys::receive(console.as_fd(), &mut [0; 16], &mut fds);
            if let Some(master) = fds.pop() {
                let _ = sys::nonblocking(master.as_raw_fd());
                container.stdin = if container.plan.stdin { master.try_clone().ok() } else { None };
                container.stdout = Some(master);
            }
        }
        if let Some(code) = self.orphans.remove(&pid) {
            self.container_ended(at, code);
        }
    }

    fn output(&mut self, index: usize, stream: Stream) {
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

    fn reap(&mut self) {
        loop {
            let mut status = 0;
            // SAFETY: `status` lives through the call.
            let pid = unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG) };
            if pid <= 0 {
                break;
            }
            let code = sys::exit_code(status);
            if let Some(at) = self.containers.iter().position(|c| c.pid == pid && c.exit.is_none()) {
                self.container_ended(at, code);
            } else if self.connections.values().any(|c| c.role == Role::Exec(pid)) {
                self.exec_ended(pid, code);
            } else if !self.helpers.is_empty() {
                self.orphans.insert(pid, code);
            }
        }
        if self.helpers.is_empty() {
            self.orphans.clear();
        }
    }

    fn exec_ended(&mut self, pid: i32, code: i32) {
        let ids: Vec<u32> =
            self.connections.iter().filter(|(_, c)| c.role == Role::Exec(pid)).map(|(id, _)| *id).collect();
        for id in ids {
            self.set_role(id, Role::Control);
            self.reply(id, &Reply::Exited { code });
        }
    }

    fn container_ended(&mut self, at: usize, code: i32) {
        let container = &self.containers[at];
        let oom = container.ran_out_of_memory();
        // Whatever the first process left behind would hold the container's streams and mounts.
        container.kill_all(libc::SIGKILL);
        for stream in [Stream::Out, Stream::Err] {
            loop {
                let fd = if stream == Stream::Out {
                    &self.containers[at].stdout
                } else {
                    &self.containers[at].stderr
                };
                let before = fd.is_some();
                let length = self.pending(at, stream);
                if !before || length == 0 {
                    break;
                }
                self.output(at, stream);
            }
        }
        let container = &mut self.containers[at];
        container.exit = Some(Exit { code, at: sys::now(), oom });
        container.stdin = None;
        container.input.clear();
        let id = container.plan.id.clone();
        let exit = container.exit.clone().unwrap_or_default();
        if container.drained() {
            // Nothing more can come.
        } else {
            let mut scratch = [0; 1];
            for stream in [Stream::Out, Stream::Err] {
                let _ = container.read(stream, &mut scratch);
            }
            container.stdout = None;
            container.stderr = None;
        }
        let record = serde_json::to_vec(&exit).unwrap_or_default();
        let path = format!("{}/exit-{id}", self.dir);
        if std::fs::write(format!("{path}.new"), record).is_ok() {
            let _ = std::fs::rename(format!("{path}.new"), path);
        }
        for connection in self.connections.values_mut() {
            if connection.role == Role::Attached(id.clone()) {
                connection.closing = true;
            }
        }
        let event = encode(&Event::Exit { id, exit });
        let subscribers: Vec<u32> =
            self.connections.iter().filter(|(_, c)| c.role == Role::Subscriber).map(|(id, _)| *id).collect();
        for subscriber in subscribers {
            self.queue(subscriber, &event);
        }
    }

    /// How many bytes of output can be read now.
    fn pending(&self, at: usize, stream: Stream) -> i32 {
        let container = &self.containers[at];
        let fd = if stream == Stream::Out { &container.stdout } else { &container.stderr };
        let Some(fd) = fd else { return 0 };
        let mut length = 0;
        // SAFETY: FIONREAD writes one int, which lives through the call.
        if unsafe { libc::ioctl(fd.as_raw_fd(), libc::FIONREAD, &mut length) } < 0 { 0 } else { length }
    }

    /// This process is in the pod's network namespace, so its loopback is the pod's.
    fn connect(&mut self, id: u32, port: u16) {
        use std::net::{Ipv4Addr, Ipv6Addr, TcpStream};
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))
            .or_else(|first| TcpStream::connect((Ipv6Addr::LOCALHOST, port)).map_err(|_| first));
        match stream {
            Ok(stream) => {
                let Some(connection) = self.connections.get_mut(&id) else { return };
                if sys::send(connection.fd.as_fd(), &encode(&Reply::Ok), &[stream.as_raw_fd()]).is_err() {
                    connection.closing = true;
                }
            }
            Err(error) => {
                self.reply(id, &Reply::Failed(format!("connect to port {port} in the pod: {error}")))
            }
        }
    }

    fn shut_down(&mut self) {
        for container in &self.containers {
            container.signal(libc::SIGKILL, true);
            container.kill_all(libc::SIGKILL);
        }
        if let Some(pause) = self.pause {
            // SAFETY: plain numbers; the reaper is a child of this process that is not reaped before it ends.
            unsafe { libc::kill(pause, libc::SIGKILL) };
        }
        self.over = true;
    }
}

impl Connection {
    fn flush(&mut self) {
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
