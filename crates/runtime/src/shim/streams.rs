//! A container as its shim holds it: streams, log, and how it goes on.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, OwnedFd};

use super::log::{LineWriter, LogFile};
use super::protocol::{Exit, StartPlan};
use super::sys;

/// Which of a container's descriptors something is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output, or the terminal.
    Out,
    /// Error output.
    Err,
}

/// Input that waits for the container to read it is bounded by this; then its senders wait.
const MAX_INPUT: usize = 64 << 10;

/// A container of this pod.
pub struct Container {
    /// As it was asked for.
    pub plan: StartPlan,
    /// Its first process, once that exists.
    pub pid: i32,
    /// When that was started.
    pub started_at: i64,
    /// How it ended.
    pub exit: Option<Exit>,
    /// Nobody will ask for it any more once it has ended.
    pub forget: bool,
    /// Writing end of its input, or the terminal.
    pub stdin: Option<OwnedFd>,
    /// Input that it has not read yet.
    pub input: VecDeque<u8>,
    /// Close the input when all of it has been read.
    pub input_ends: bool,
    /// Reading ends.
    pub stdout: Option<OwnedFd>,
    /// Reading ends.
    pub stderr: Option<OwnedFd>,
    out_lines: LineWriter,
    err_lines: LineWriter,
    /// Where its output is kept.
    pub log: LogFile,
}

impl Container {
    /// Before its first process exists.
    pub fn new(plan: StartPlan, log: LogFile) -> Self {
        Self {
            plan,
            pid: 0,
            started_at: 0,
            exit: None,
            forget: false,
            stdin: None,
            input: VecDeque::new(),
            input_ends: false,
            stdout: None,
            stderr: None,
            out_lines: LineWriter::new("stdout"),
            err_lines: LineWriter::new("stderr"),
            log,
        }
    }

    /// Whether its process runs.
    pub fn running(&self) -> bool {
        self.pid > 0 && self.exit.is_none()
    }

    /// Whether more input may be taken.
    pub fn wants_input(&self) -> bool {
        self.stdin.is_none() || self.input.len() < MAX_INPUT
    }

    /// Queues input and writes what goes at once. Input for a container without one is dropped.
    pub fn feed(&mut self, data: &[u8]) {
        if self.stdin.is_some() {
            self.input.extend(data);
            self.flush_input();
        }
    }

    /// Writes queued input while the container takes it.
    pub fn flush_input(&mut self) {
        while let Some(stdin) = &self.stdin {
            let (chunk, _) = self.input.as_slices();
            if chunk.is_empty() {
                if self.input_ends {
                    self.stdin = None;
                }
                return;
            }
            match sys::write(stdin.as_raw_fd(), chunk) {
                Ok(Some(n)) => drop(self.input.drain(..n)),
                Ok(None) => return,
                Err(_) => {
                    self.stdin = None;
                    self.input.clear();
                }
            }
        }
    }

    /// Reads output once, logs it, and gives it; `None` when there is nothing now. The stream is closed at its end.
    pub fn read<'a>(&mut self, stream: Stream, buffer: &'a mut [u8]) -> Option<&'a [u8]> {
        let slot = match stream {
            Stream::Out => &mut self.stdout,
            Stream::Err => &mut self.stderr,
        };
        let fd = slot.as_ref()?.as_raw_fd();
        let now = sys::now();
        match sys::read(fd, buffer) {
            Ok(Some(n)) if n > 0 => {
                let lines = if stream == Stream::Out { &mut self.out_lines } else { &mut self.err_lines };
                lines.push(&buffer[..n], now, &mut self.log);
                Some(&buffer[..n])
            }
            Ok(None) => None,
            // A terminal whose last process went gives EIO, a pipe gives 0.
            Ok(Some(_)) | Err(_) => {
                *slot = None;
                let lines = if stream == Stream::Out { &mut self.out_lines } else { &mut self.err_lines };
                lines.finish(now, &mut self.log);
                None
            }
        }
    }

    /// Whether all its output has been read.
    pub fn drained(&self) -> bool {
        self.stdout.is_none() && self.stderr.is_none()
    }

    /// Sends a signal to the first process, or to all that are in the container's cgroups.
    pub fn signal(&self, signal: i32, all: bool) {
        if !self.running() {
            return;
        }
        if all {
            self.kill_all(signal);
        }
        // SAFETY: plain numbers. The process is this shim's child and not reaped yet, so the number is still its own.
        unsafe { libc::kill(self.pid, signal) };
    }

    /// Signals whatever is left in the container's cgroups.
    pub fn kill_all(&self, signal: i32) {
        if signal == libc::SIGKILL
            && self.plan.cgroups.iter().any(|dir| sys::put(&format!("{dir}/cgroup.kill"), "1").is_ok())
        {
            return;
        }
        let Some(dir) = self.plan.cgroups.first() else { return };
        let Ok(list) = std::fs::read_to_string(format!("{dir}/cgroup.procs")) else { return };
        for pid in list.lines().filter_map(|l| l.parse::<i32>().ok()).filter(|p| *p > 1) {
            // SAFETY: plain numbers; the process was in the container's cgroup just now.
            unsafe { libc::kill(pid, signal) };
        }
    }

    /// Whether the kernel killed a process of the container for want of memory.
    pub fn ran_out_of_memory(&self) -> bool {
        let Some(path) = &self.plan.oom_events else { return false };
        std::fs::read_to_string(path).is_ok_and(|text| {
            text.lines()
                .filter_map(|line| line.strip_prefix("oom_kill "))
                .any(|count| count.trim().parse::<u64>().is_ok_and(|n| n > 0))
        })
    }
}
