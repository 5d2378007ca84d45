//! Running the tree.

use super::builtins::builtin;
use super::descriptors::{move_to, restore};
use super::expand::fits;
use super::parse::{self, Node, Parsed};
use super::read_all;
use crate::{Outcome, find, run};
use nix::errno::Errno;
use nix::sys::signal::{self, SigHandler, Signal};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, pipe};
use std::collections::{BTreeMap, HashMap};
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Applets that run inside the shell because they must or because they are used in every loop.
const INSIDE: &[&str] = &["[", "echo", "false", "kill", "printf", "pwd", "test", "true"];

/// Signals that arrived and have a trap, as bits.
pub(super) static PENDING: AtomicU64 = AtomicU64::new(0);

pub(super) extern "C" fn note(number: i32) {
    PENDING.fetch_or(1 << number, Ordering::Relaxed);
}

/// Where a loop is to go on.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Flow {
    Normal,
    Break(usize),
    Continue(usize),
    Return,
}

pub(super) struct Shell {
    pub(super) variables: BTreeMap<String, String>,
    pub(super) exported: BTreeMap<String, ()>,
    pub(super) functions: HashMap<String, Rc<Node>>,
    pub(super) arguments: Vec<String>,
    pub(super) name: String,
    /// Of the first shell: `$$` is the same in its subshells.
    pub(super) pid: u32,
    pub(super) status: u8,
    pub(super) exit_on_error: bool,
    pub(super) trace: bool,
    /// Set by `exit`.
    pub(super) leaving: bool,
    pub(super) flow: Flow,
    pub(super) traps: BTreeMap<i32, String>,
    pub(super) exit_trap: Option<String>,
    pub(super) background: Option<Pid>,
    pub(super) jobs: Vec<Pid>,
    pub(super) finished: HashMap<Pid, u8>,
    pub(super) interactive: bool,
    /// The next simple command is all that this process is for.
    pub(super) last: bool,
    /// Depth of conditions, in which a failure does not end the shell under `-e`.
    pub(super) tested: usize,
}

impl Shell {
    pub(super) fn new() -> Self {
        let variables: BTreeMap<String, String> = std::env::vars_os()
            .map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()))
            .collect();
        let exported = variables.keys().map(|name| (name.clone(), ())).collect();
        Self {
            variables,
            exported,
            functions: HashMap::new(),
            arguments: Vec::new(),
            name: "sh".into(),
            pid: std::process::id(),
            status: 0,
            exit_on_error: false,
            trace: false,
            leaving: false,
            flow: Flow::Normal,
            traps: BTreeMap::new(),
            exit_trap: None,
            background: None,
            jobs: Vec::new(),
            finished: HashMap::new(),
            interactive: false,
            last: false,
            tested: 0,
        }
    }

    pub(super) fn set_arguments(&mut self, name: &str, arguments: &[String]) {
        self.name = name.to_owned();
        self.arguments = arguments.to_vec();
    }

    pub(super) fn be_interactive(&mut self) -> io::Result<()> {
        self.interactive = true;
        // SAFETY: ignoring a signal installs no handler.
        unsafe { signal::signal(Signal::SIGINT, SigHandler::SigIgn) }?;
        Ok(())
    }

    pub(super) fn get(&self, name: &str) -> Option<String> {
        match name {
            "?" => Some(self.status.to_string()),
            "$" => Some(self.pid.to_string()),
            "!" => self.background.map(|pid| pid.to_string()),
            "#" => Some(self.arguments.len().to_string()),
            "@" | "*" => Some(self.arguments.join(" ")),
            "0" => Some(self.name.clone()),
            digits if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                self.arguments.get(digits.parse::<usize>().ok()?.checked_sub(1)?).cloned()
            }
            _ => self.variables.get(name).cloned(),
        }
    }

    pub(super) fn set(&mut self, name: &str, value: &str) {
        self.variables.insert(name.to_owned(), value.to_owned());
    }

    /// Runs a script to its end. A script of one simple command is that command's process (`alone`), so that signals reach it.
    pub(super) fn run_script(&mut self, script: &str, alone: bool) -> Outcome {
        match parse::program(script) {
            Parsed::Whole(program) => {
                if let (true, Node::Simple { words, assignments }) = (alone, &program)
                    && assignments.is_empty()
                {
                    let words: Vec<String> = words.iter().flat_map(|word| self.expand(word)).collect();
                    let outside = words.first().is_some_and(|name| {
                        !builtin(name) && !INSIDE.contains(&name.as_str()) && !self.leaving
                    });
                    if outside {
                        return Ok(self.replace(&words));
                    }
                }
                self.run_program(&program);
            }
            Parsed::Incomplete => {
                return Err(crate::Failure { text: "syntax error: unexpected end".into(), code: 2 });
            }
            Parsed::Wrong(error) => {
                return Err(crate::Failure { text: format!("syntax error: {error}"), code: 2 });
            }
        }
        Ok(self.finish())
    }

    /// Whether the shell is to end.
    pub(super) fn run_program(&mut self, program: &Node) -> bool {
        self.run(program);
        if !self.leaving {
            self.traps();
        }
        self.flow = Flow::Normal;
        self.leaving
    }

    pub(super) fn finish(&mut self) -> u8 {
        if let Some(script) = self.exit_trap.take() {
            let status = self.status;
            self.leaving = false;
            self.eval(&script);
            if !self.leaving {
                self.status = status;
            }
        }
        self.status
    }

    pub(super) fn eval(&mut self, script: &str) {
        match parse::program(script) {
            Parsed::Whole(program) => self.run(&program),
            _ => {
                eprintln!("sh: syntax error in {script:?}");
                self.status = 2;
            }
        }
    }

    fn traps(&mut self) {
        let pending = PENDING.swap(0, Ordering::Relaxed);
        for number in 1..64 {
            if pending & 1 << number != 0
                && let Some(script) = self.traps.get(&number).cloned()
            {
                let status = self.status;
                self.eval(&script);
                if !self.leaving {
                    self.status = status;
                }
            }
        }
    }

    fn stopped(&self) -> bool {
        self.leaving || self.flow != Flow::Normal
    }

    fn condition(&mut self, node: &Node) -> bool {
        self.tested += 1;
        self.run(node);
        self.tested -= 1;
        self.status == 0
    }

    fn run(&mut self, node: &Node) {
        self.traps();
        if self.stopped() {
            return;
        }
        match node {
            Node::Simple { assignments, words } => {
                let fields: Vec<String> = words.iter().flat_map(|word| self.expand(word)).collect();
                if self.leaving {
                    return;
                }
                let mut values = Vec::new();
                for (name, word) in assignments {
                    // A failing substitution is the status of a bare assignment.
                    if fields.is_empty() && values.is_empty() {
                        self.status = 0;
                    }
                    values.push((name.clone(), self.expand_one(word)));
                }
                self.simple(values, &fields);
                self.check_error();
            }
            Node::Redirected(inner, redirections) => {
                let saved = self.redirect(redirections);
                if let Some(saved) = saved {
                    // `exec` with redirections alone keeps them.
                    let keep = matches!(&**inner, Node::Simple { words, .. }
                        if matches!(&words[..], [word] if self.expand_one(word) == "exec"));
                    self.run(inner);
                    restore(if keep { Vec::new() } else { saved });
                } else {
                    self.status = 1;
                    self.check_error();
                }
            }
            Node::Pipeline(nodes) => {
                self.pipeline(nodes);
                self.check_error();
            }
            Node::Not(inner) => {
                let truth = self.condition(inner);
                self.status = u8::from(truth);
            }
            Node::And(left, right) => {
                if self.condition(left) && !self.stopped() {
                    self.run(right);
                }
            }
            Node::Or(left, right) => {
                if !self.condition(left) && !self.stopped() {
                    self.run(right);
                }
            }
            Node::List(nodes) => {
                for node in nodes {
                    self.run(node);
                    if self.stopped() {
                        break;
                    }
                }
            }
            Node::Background(inner) => {
                if let Some(pid) = self.fork(|shell| {
                    if !shell.interactive
                        && let Ok(null) = File::open("/dev/null")
                    {
                        move_to(null.into(), 0);
                    }
                    shell.run_last(inner);
                }) {
                    self.background = Some(pid);
                    self.jobs.push(pid);
                    self.status = 0;
                }
            }
            Node::If { branches, otherwise } => {
                for (condition, body) in branches {
                    if self.condition(condition) {
                        return if self.stopped() {
                        } else {
                            self.run(body)
                        };
                    }
                    if self.stopped() {
                        return;
                    }
                }
                self.status = 0;
                if let Some(body) = otherwise {
                    self.run(body);
                }
            }
            Node::While { condition, body, until } => {
                let mut last = 0;
                while self.condition(condition) != *until && !self.stopped() {
                    self.run(body);
                    last = self.status;
                    if self.loop_ends() {
                        break;
                    }
                }
                if !self.leaving {
                    self.status = last;
                }
            }
            Node::For { name, words, body } => {
                let values = match words {
                    Some(words) => words.iter().flat_map(|word| self.expand(word)).collect(),
                    None => self.arguments.clone(),
                };
                self.status = 0;
                for value in values {
                    self.set(name, &value);
                    self.run(body);
                    if self.loop_ends() {
                        break;
                    }
                }
            }
            Node::Case { subject, arms } => {
                let subject: Vec<char> = self.expand_one(subject).chars().collect();
                self.status = 0;
                for (patterns, body) in arms {
                    let hit = patterns.iter().any(|word| {
                        let mut pattern = Vec::new();
                        for part in word {
                            let quoted = !matches!(part, parse::Part::Text { quoted: false, .. });
                            let text = self.expand_one(&vec![part.clone()]);
                            pattern.extend(text.chars().map(|c| (c, quoted)));
                        }
                        fits(&pattern, &subject)
                    });
                    if hit {
                        self.run(body);
                        break;
                    }
                }
            }
            Node::Subshell(inner) => {
                if let Some(pid) = self.fork(|shell| shell.run(inner)) {
                    self.status = self.wait_for(pid);
                }
                self.check_error();
            }
            Node::Function(name, body) => {
                self.functions.insert(name.clone(), body.clone());
                self.status = 0;
            }
        }
    }

    /// Runs a node for which this process was forked: a single command takes its place, so that signals to it arrive.
    fn run_last(&mut self, node: &Node) {
        let inner = if let Node::Redirected(inner, _) = node { inner } else { node };
        self.last = matches!(inner, Node::Simple { .. });
        self.run(node);
    }

    /// After a loop's body: whether the loop is over.
    fn loop_ends(&mut self) -> bool {
        match self.flow {
            Flow::Normal => self.leaving,
            Flow::Return => true,
            Flow::Break(level) => {
                self.flow = if level > 1 { Flow::Break(level - 1) } else { Flow::Normal };
                true
            }
            Flow::Continue(level) => {
                self.flow = if level > 1 { Flow::Continue(level - 1) } else { Flow::Normal };
                level > 1
            }
        }
    }

    fn check_error(&mut self) {
        if self.exit_on_error && self.status != 0 && self.tested == 0 {
            self.leaving = true;
        }
    }

    pub(super) fn simple(&mut self, values: Vec<(String, String)>, fields: &[String]) {
        let Some(name) = fields.first() else {
            for (name, value) in values {
                self.set(&name, &value);
            }
            return;
        };
        if self.trace {
            eprintln!("+ {}", fields.join(" "));
        }
        let function = self.functions.get(name).cloned();
        let inside = function.is_some() || builtin(name) || INSIDE.contains(&name.as_str());
        let last = std::mem::take(&mut self.last);
        if !inside {
            let become_it = |shell: &mut Self| {
                for (name, value) in &values {
                    shell.set(name, value);
                    shell.exported.insert(name.clone(), ());
                }
                shell.status = shell.replace(fields);
            };
            if last {
                return become_it(self);
            }
            let pid = self.fork(become_it);
            if let Some(pid) = pid {
                self.status = self.wait_for(pid);
            }
            return;
        }
        let before: Vec<_> =
            values.iter().map(|(name, _)| (name.clone(), self.variables.get(name).cloned())).collect();
        for (name, value) in &values {
            self.set(name, value);
        }
        if let Some(body) = function {
            let outer = std::mem::replace(&mut self.arguments, fields[1..].to_vec());
            self.run(&body);
            self.arguments = outer;
            if self.flow == Flow::Return {
                self.flow = Flow::Normal;
            }
        } else if builtin(name) {
            self.status = self.builtin(fields);
        } else if let Some(applet) = find(name) {
            self.status = run(name, applet, &fields[1..]);
        }
        for (name, value) in before {
            match value {
                Some(value) => self.set(&name, &value),
                None => drop(self.variables.remove(&name)),
            }
        }
    }

    fn pipeline(&mut self, nodes: &[Node]) {
        let mut input: Option<OwnedFd> = None;
        let mut pids = Vec::new();
        for (index, node) in nodes.iter().enumerate() {
            let last = index + 1 == nodes.len();
            let (next, output) = match if last { None } else { Some(pipe()) } {
                None => (None, None),
                Some(Ok((read, write))) => (Some(read), Some(write)),
                Some(Err(errno)) => {
                    eprintln!("sh: pipe: {}", errno.desc());
                    self.status = 2;
                    break;
                }
            };
            let stdin = input.take();
            let reader = next.as_ref().map(AsRawFd::as_raw_fd);
            let pid = self.fork(|shell| {
                if let Some(fd) = stdin {
                    move_to(fd, 0);
                }
                if let Some(fd) = output {
                    move_to(fd, 1);
                }
                if let Some(fd) = reader {
                    let _ = nix::unistd::close(fd);
                }
                shell.run_last(node);
            });
            pids.extend(pid);
            input = next;
        }
        drop(input);
        for pid in pids {
            self.status = self.wait_for(pid);
        }
    }

    /// Runs `work` in a child process that then ends with the shell's status.
    pub(super) fn fork(&mut self, work: impl FnOnce(&mut Self)) -> Option<Pid> {
        let _ = io::stdout().flush();
        // SAFETY: the shell's process has one thread.
        match unsafe { fork() } {
            Ok(ForkResult::Parent { child }) => Some(child),
            Ok(ForkResult::Child) => {
                self.exit_trap = None;
                for number in std::mem::take(&mut self.traps).into_keys() {
                    if let Ok(signal) = Signal::try_from(number) {
                        // SAFETY: the default action installs no handler.
                        let _ = unsafe { signal::signal(signal, SigHandler::SigDfl) };
                    }
                }
                if self.interactive {
                    // SAFETY: as above.
                    let _ = unsafe { signal::signal(Signal::SIGINT, SigHandler::SigDfl) };
                }
                self.jobs.clear();
                work(self);
                let status = self.finish();
                let _ = io::stdout().flush();
                // SAFETY: ends the process without running the parent's destructors a second time.
                unsafe { libc::_exit(i32::from(status)) }
            }
            Err(errno) => {
                eprintln!("sh: fork: {}", errno.desc());
                self.status = 254;
                None
            }
        }
    }

    /// Waits for one child and reaps all others that end meanwhile (the shell may be a container's first process).
    pub(super) fn wait_for(&mut self, pid: Pid) -> u8 {
        loop {
            if let Some(status) = self.finished.remove(&pid) {
                self.jobs.retain(|job| *job != pid);
                return status;
            }
            let (child, status) = match waitpid(None, None) {
                Ok(WaitStatus::Exited(child, code)) => (child, code as u8),
                Ok(WaitStatus::Signaled(child, signal, _)) => {
                    if signal == Signal::SIGINT && self.interactive {
                        eprintln!();
                    }
                    (child, 128 + signal as u8)
                }
                Ok(_) | Err(Errno::EINTR) => continue,
                Err(_) => return 127,
            };
            if child == pid || self.jobs.contains(&child) {
                self.finished.insert(child, status);
            }
        }
    }

    /// `wait` without operands; a trapped signal ends it early.
    pub(super) fn wait_all(&mut self) -> u8 {
        while let Some(job) = self.jobs.first().copied() {
            if self.finished.remove(&job).is_some() {
                self.jobs.remove(0);
                continue;
            }
            let pending = PENDING.load(Ordering::Relaxed);
            if pending != 0 {
                return 128 + pending.trailing_zeros() as u8;
            }
            match waitpid(None, None) {
                Ok(WaitStatus::Exited(child, code)) => {
                    self.finished.insert(child, code as u8);
                }
                Ok(WaitStatus::Signaled(child, signal, _)) => {
                    self.finished.insert(child, 128 + signal as u8);
                }
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => break,
            }
        }
        self.jobs.clear();
        0
    }

    /// Becomes another program; returns the exit status if that fails.
    pub(super) fn replace(&mut self, fields: &[String]) -> u8 {
        let _ = io::stdout().flush();
        let name = &fields[0];
        let text = |text: &str| CString::new(text.replace('\0', "")).expect("no NUL is left");
        let arguments: Vec<CString> = fields.iter().map(|field| text(field)).collect();
        let environment: Vec<CString> = self
            .exported
            .keys()
            .filter_map(|name| self.variables.get(name).map(|value| text(&format!("{name}={value}"))))
            .collect();
        let mut errno = Errno::ENOENT;
        let path = self.get("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
        let candidates: Vec<String> = if name.contains('/') {
            vec![name.clone()]
        } else {
            path.split(':').map(|folder| format!("{folder}/{name}")).collect()
        };
        for candidate in candidates {
            let Err(error) = nix::unistd::execve(&text(&candidate), &arguments, &environment);
            match error {
                Errno::ENOENT | Errno::ENOTDIR => {}
                Errno::ENOEXEC => {
                    // A script without a first line that names its interpreter.
                    if let Ok(script) = std::fs::read_to_string(&candidate) {
                        self.set_arguments(&candidate, &fields[1..]);
                        return match self.run_script(&script, false) {
                            Ok(status) => status,
                            Err(failure) => {
                                eprintln!("{candidate}: {}", failure.text);
                                failure.code
                            }
                        };
                    }
                }
                other => errno = other,
            }
        }
        // An image without links to the applets still has them.
        if let Some(applet) = find(name) {
            return run(name, applet, &fields[1..]);
        }
        if errno == Errno::ENOENT {
            eprintln!("sh: {name}: not found");
            return 127;
        }
        eprintln!("sh: {name}: {}", errno.desc());
        126
    }

    pub(super) fn capture(&mut self, script: &str) -> String {
        let Ok((read, write)) = pipe() else { return String::new() };
        let reader = read.as_raw_fd();
        let pid = self.fork(|shell| {
            let _ = nix::unistd::close(reader);
            move_to(write, 1);
            shell.eval(script);
        });
        let text = read_all(File::from(read));
        if let Some(pid) = pid {
            self.status = self.wait_for(pid);
        }
        text
    }
}
