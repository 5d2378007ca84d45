//! What the runtime asks of a shim.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use failpoint::step;

use super::create::Stdio;
use super::log::LogFile;
use super::protocol::{ContainerState, ExecPlan, Reply, Request, StartPlan, encode};
use super::run::{Connection, Helper, Role, Shim};
use super::streams::Container;
use super::{create, exec, sys};

impl Shim {
    pub(super) fn request(&mut self, id: u32, request: Request, fds: Vec<OwnedFd>) {
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
                self.forget(&container);
                Reply::Ok
            }
            Request::Shutdown => {
                self.shut_down();
                Reply::Ok
            }
        };
        self.reply(id, &reply);
    }

    pub(super) fn with(&mut self, id: &str, act: impl FnOnce(&mut Container) -> Reply) -> Reply {
        self.containers.iter_mut().find(|c| c.plan.id == id).map_or(Reply::NotFound, act)
    }

    pub(super) fn set_role(&mut self, id: u32, role: Role) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.role = role;
        }
    }

    pub(super) fn state(&self) -> Vec<ContainerState> {
        let state = |c: &Container| ContainerState {
            id: c.plan.id.clone(),
            pid: c.pid,
            started_at: c.started_at,
            exit: c.exit.clone(),
        };
        self.containers.iter().filter(|c| c.pid > 0).map(state).collect()
    }

    pub(super) fn start(&mut self, connection: u32, plan: StartPlan) -> Result<(), String> {
        if let Some(known) = self.containers.iter().find(|c| c.plan.id == plan.id) {
            let pid = known.pid;
            let starting = self.helpers.values_mut().find(|h| h.container.as_ref() == Some(&plan.id));
            match starting {
                Some(helper) if pid == 0 => helper.waiters.push(connection),
                _ => self.reply(connection, &Reply::Started { pid }),
            }
            return Ok(());
        }
        step("shim.start.log");
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
        step("shim.start.fork");
        let pid = sys::fork().map_err(system)?;
        if pid == 0 {
            self.forget_for_child();
            create::run(&self.dir, &container.plan, stdio, report_in);
        }
        self.next += 1;
        self.helpers.insert(
            self.next,
            Helper {
                pid,
                report,
                text: Vec::new(),
                connection,
                waiters: Vec::new(),
                container: Some(container.plan.id.clone()),
                console,
            },
        );
        self.containers.push(container);
        step("shim.start.forked");
        Ok(())
    }

    /// Forgets a container that has ended, and ends one that has not, to be forgotten then.
    fn forget(&mut self, id: &str) {
        step("shim.forget.container");
        let starting = self.helpers.values().any(|h| h.container.as_deref() == Some(id));
        self.containers.retain(|c| c.plan.id != id || c.running() || starting);
        if let Some(container) = self.containers.iter_mut().find(|c| c.plan.id == id) {
            container.forget = true;
            container.kill_all(libc::SIGKILL);
        }
    }

    pub(super) fn exec(&mut self, connection: u32, plan: &ExecPlan, fds: Vec<OwnedFd>) -> Result<(), Reply> {
        let Some(container) = self.containers.iter().find(|c| c.plan.id == plan.id) else {
            return Err(Reply::NotFound);
        };
        if !container.running() {
            return Err(Reply::Failed("the container is not running".into()));
        }
        let (report, report_in) = sys::pipe().map_err(|e| Reply::Failed(e.to_string()))?;
        let pid = sys::fork().map_err(|e| Reply::Failed(e.to_string()))?;
        if pid == 0 {
            exec::run(plan, &container.plan, container.pid, fds, report_in);
        }
        self.next += 1;
        self.helpers.insert(
            self.next,
            Helper {
                pid,
                report,
                text: Vec::new(),
                connection,
                waiters: Vec::new(),
                container: None,
                console: None,
            },
        );
        Ok(())
    }

    /// In the child: what belongs to other containers is not to be kept open by this one's creation.
    pub(super) fn forget_for_child(&mut self) {
        self.connections.clear();
        self.helpers.clear();
        self.containers.clear();
    }

    /// This process is in the pod's network namespace, so its loopback is the pod's.
    pub(super) fn connect(&mut self, id: u32, port: u16) {
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
}
