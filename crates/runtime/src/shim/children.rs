//! The shim's children: those that create containers, the containers, and processes added to them.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use failpoint::step;

use super::protocol::{Event, Exit, Reply, encode};
use super::run::{Role, Shim};
use super::streams::Stream;
use super::sys;

impl Shim {
    pub(super) fn helper(&mut self, id: u32) {
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
            step("shim.start.created");
            self.created(&container, &reply, helper.console);
            step("shim.start.reply");
            for waiter in std::iter::once(connection).chain(helper.waiters) {
                self.reply(waiter, &reply);
            }
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

    pub(super) fn created(&mut self, id: &str, reply: &Reply, console: Option<OwnedFd>) {
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
        if container.forget {
            container.kill_all(libc::SIGKILL);
        }
        if let Some(code) = self.orphans.remove(&pid) {
            self.container_ended(at, code);
        }
    }

    pub(super) fn reap(&mut self) {
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
            } else if let Some(helper) = self.helpers.values().find(|helper| helper.pid == pid) {
                // What it had begun would wait for it for ever, and keep open the pipe that tells of its end.
                let begun = self.containers.iter().find(|c| helper.container.as_ref() == Some(&c.plan.id));
                if let Some(container) = begun.filter(|_| code != 0) {
                    container.kill_all(libc::SIGKILL);
                }
            } else if !self.helpers.is_empty() {
                self.orphans.insert(pid, code);
            }
        }
        if self.helpers.is_empty() {
            self.orphans.clear();
        }
    }

    pub(super) fn exec_ended(&mut self, pid: i32, code: i32) {
        let ids: Vec<u32> =
            self.connections.iter().filter(|(_, c)| c.role == Role::Exec(pid)).map(|(id, _)| *id).collect();
        for id in ids {
            self.set_role(id, Role::Control);
            self.reply(id, &Reply::Exited { code });
        }
    }

    pub(super) fn container_ended(&mut self, at: usize, code: i32) {
        step("shim.exit.kill");
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
        step("shim.exit.write");
        if std::fs::write(format!("{path}.new"), record).is_ok() {
            step("shim.exit.rename");
            let _ = std::fs::rename(format!("{path}.new"), path);
        }
        for connection in self.connections.values_mut() {
            if connection.role == Role::Attached(id.clone()) {
                connection.closing = true;
            }
        }
        step("shim.exit.tell");
        let event = encode(&Event::Exit { id, exit });
        let subscribers: Vec<u32> =
            self.connections.iter().filter(|(_, c)| c.role == Role::Subscriber).map(|(id, _)| *id).collect();
        for subscriber in subscribers {
            self.queue(subscriber, &event);
        }
        if self.containers[at].forget {
            let _ = std::fs::remove_file(format!("{}/exit-{}", self.dir, self.containers[at].plan.id));
            self.containers.remove(at);
        }
    }
}
