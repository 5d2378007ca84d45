//! What `up` is doing, with times, on the terminal or through a pipe to the process that waits for it.

use std::fs::File;
use std::io::{IsTerminal, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};

/// Steps, each told when it is done.
pub struct Progress {
    started: Instant,
    spinner: Option<ProgressBar>,
    pipe: Option<File>,
}

impl Progress {
    /// Progress to the terminal; to the pipe `fd` if there is one.
    pub fn new(fd: Option<i32>) -> Progress {
        // SAFETY: the number was given by the parent process, which opened the descriptor for this and nothing else.
        let pipe = fd.map(|fd| File::from(unsafe { OwnedFd::from_raw_fd(fd) }));
        // What is started from here must not hold the pipe open.
        if let Some(pipe) = &pipe
            && let Err(error) = fcntl(pipe, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))
        {
            tracing::warn!("the pipe to the waiting process: {error}");
        }
        let spinner = (pipe.is_none() && std::io::stderr().is_terminal()).then(|| {
            let style = ProgressStyle::with_template("  {spinner} {msg}").expect("a constant template");
            let bar = ProgressBar::new_spinner().with_style(style);
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        Progress { started: Instant::now(), spinner, pipe }
    }

    /// What is being done now.
    pub fn doing(&self, what: &str) {
        if let Some(spinner) = &self.spinner {
            spinner.set_message(what.to_owned());
        }
    }

    /// A step is done.
    pub fn done(&mut self, what: &str) {
        let line = format!("  {:>6.2} s  {what}", self.started.elapsed().as_secs_f64());
        self.line(&line);
    }

    /// A line of its own.
    pub fn line(&mut self, line: &str) {
        match (&mut self.pipe, &self.spinner) {
            // Nobody may be reading any more; the cluster does not depend on it.
            (Some(pipe), _) => drop(writeln!(pipe, "{line}")),
            (None, Some(spinner)) => spinner.println(line),
            (None, None) => eprintln!("{line}"),
        }
    }

    /// No more steps: whoever waits at the other end of the pipe goes on.
    pub fn finish(self) {
        if let Some(spinner) = self.spinner {
            spinner.finish_and_clear();
        }
    }
}
