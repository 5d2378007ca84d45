//! Running the tree.

use super::expand::fits;
use super::parse::{self, Node, Parsed, Redirection, Target};
use super::read_all;
use crate::{Outcome, find, process, run};
use nix::errno::Errno;
use nix::sys::signal::{self, SaFlags, SigAction, SigHandler, SigSet, Signal};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, dup2_raw, fork, pipe};
use std::collections::{BTreeMap, HashMap};
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Applets that run inside the shell because they must or because they are used in every loop.
const INSIDE: &[&str] = &["[", "echo", "false", "kill", "printf", "pwd", "test", "true"];

/// Signals that arrived and have a trap, as bits.
static PENDING: AtomicU64 = AtomicU64::new(0);

extern "C" fn note(number: i32) {
    PENDING.fetch_or(1 << number, Ordering::Relaxed);
}

/// Where a loop is to go on.
#[derive(Clone, Copy, PartialEq)]
enum Flow {
    Normal,
    Break(usize),
    Continue(usize),
    Return,
}

pub(super) struct Shell {
    variables: BTreeMap<String, String>,
    exported: BTreeMap<String, ()>,
    functions: HashMap<String, Rc<Node>>,
    pub(super) arguments: Vec<String>,
    name: String,
    /// Of the first shell: `$$` is the same in its subshells.
    pid: u32,
    pub(super) status: u8,
    pub(super) exit_on_error: bool,
    pub(super) trace: bool,
    /// Set by `exit`.
    pub(super) leaving: bool,
    flow: Flow,
    traps: BTreeMap<i32, String>,
    exit_trap: Option<String>,
    background: Option<Pid>,
    jobs: Vec<Pid>,
    finished: HashMap<Pid, u8>,
    interactive: bool,
    /// The next simple command is all that this process is for.
    last: bool,
    /// Depth of conditions, in which a failure does not end the shell under `-e`.
    tested: usize,
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

    fn eval(&mut self, script: &str) {
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

    fn simple(&mut self, values: Vec<(String, String)>, fields: &[String]) {
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
    fn fork(&mut self, work: impl FnOnce(&mut Self)) -> Option<Pid> {
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
    fn wait_for(&mut self, pid: Pid) -> u8 {
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
    fn wait_all(&mut self) -> u8 {
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
    fn replace(&mut self, fields: &[String]) -> u8 {
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

    fn redirect(&mut self, redirections: &[Redirection]) -> Option<Vec<(RawFd, Option<OwnedFd>)>> {
        let _ = io::stdout().flush();
        let mut saved = Vec::new();
        for redirection in redirections {
            let opened: io::Result<Option<OwnedFd>> = match &redirection.target {
                Target::Read(word) => self.open(word, File::options().read(true)),
                Target::Write(word) => {
                    self.open(word, File::options().write(true).create(true).truncate(true))
                }
                Target::Append(word) => self.open(word, File::options().append(true).create(true)),
                Target::Here(word) => {
                    let word = word.borrow().clone();
                    let text = self.expand_one(&word);
                    here(&text).map(Some)
                }
                Target::Duplicate(word) => match self.expand_one(word).as_str() {
                    "-" => Ok(None),
                    number => match number.parse::<RawFd>() {
                        Ok(number) => duplicate(number).map(Some),
                        Err(_) => Err(io::ErrorKind::InvalidInput.into()),
                    },
                },
            };
            match opened {
                Ok(fd) => {
                    saved.push((redirection.descriptor, duplicate(redirection.descriptor).ok()));
                    match fd {
                        Some(fd) => move_to(fd, redirection.descriptor),
                        None => drop(nix::unistd::close(redirection.descriptor)),
                    }
                }
                Err(error) => {
                    eprintln!("sh: redirection: {error}");
                    restore(saved);
                    return None;
                }
            }
        }
        Some(saved)
    }

    fn open(&mut self, word: &parse::Word, options: &std::fs::OpenOptions) -> io::Result<Option<OwnedFd>> {
        let name = self.expand_one(word);
        options
            .open(&name)
            .map(|file| Some(file.into()))
            .map_err(|error| io::Error::new(error.kind(), format!("{name}: {error}")))
    }

    fn builtin(&mut self, fields: &[String]) -> u8 {
        let number = |at: usize, default: i64| {
            fields.get(at).map_or(Some(default), |text| text.parse::<i64>().ok()).unwrap_or(2)
        };
        match fields[0].as_str() {
            ":" => 0,
            "cd" => {
                let home = self.get("HOME").unwrap_or_else(|| "/".into());
                let folder = match fields.get(1).map(String::as_str) {
                    None => home,
                    Some("-") => self.get("OLDPWD").unwrap_or(home),
                    Some(folder) => folder.to_owned(),
                };
                let before = std::env::current_dir().unwrap_or_default();
                if let Err(error) = std::env::set_current_dir(&folder) {
                    eprintln!("cd: {folder}: {error}");
                    return 1;
                }
                self.set("OLDPWD", &before.to_string_lossy());
                let now = std::env::current_dir().unwrap_or_default();
                self.set("PWD", &now.to_string_lossy());
                0
            }
            "exit" => {
                self.leaving = true;
                number(1, self.status.into()) as u8
            }
            "return" => {
                self.flow = Flow::Return;
                number(1, self.status.into()) as u8
            }
            "break" => {
                self.flow = Flow::Break(number(1, 1).max(1) as usize);
                0
            }
            "continue" => {
                self.flow = Flow::Continue(number(1, 1).max(1) as usize);
                0
            }
            "export" | "local" | "readonly" => {
                for field in &fields[1..] {
                    let (name, value) = field
                        .split_once('=')
                        .map_or((field.as_str(), None), |(name, value)| (name, Some(value)));
                    if let Some(value) = value {
                        self.set(name, value);
                    }
                    if fields[0] == "export" {
                        self.exported.insert(name.to_owned(), ());
                    }
                }
                0
            }
            "unset" => {
                for name in &fields[1..] {
                    self.variables.remove(name);
                    self.functions.remove(name);
                }
                0
            }
            "set" => {
                let mut rest = &fields[1..];
                while let Some(option) =
                    rest.first().filter(|arg| arg.starts_with(['-', '+']) && arg.len() > 1)
                {
                    let on = option.starts_with('-');
                    rest = &rest[1..];
                    if option == "--" {
                        break;
                    }
                    if option.contains('e') {
                        self.exit_on_error = on;
                    }
                    if option.contains('x') {
                        self.trace = on;
                    }
                    if option.ends_with('o') && !rest.is_empty() {
                        rest = &rest[1..];
                    }
                }
                if !rest.is_empty() || fields.get(1).is_some_and(|arg| arg == "--") {
                    self.arguments = rest.to_vec();
                }
                0
            }
            "shift" => {
                let count = number(1, 1).max(0) as usize;
                if count > self.arguments.len() {
                    return 1;
                }
                self.arguments.drain(..count);
                0
            }
            "read" => self.read(&fields[1..]),
            "eval" => {
                self.eval(&fields[1..].join(" "));
                self.status
            }
            "." | "source" => match fields.get(1).map(std::fs::read_to_string) {
                Some(Ok(script)) => {
                    self.eval(&script);
                    self.status
                }
                Some(Err(error)) => {
                    eprintln!("sh: {}: {error}", fields[1]);
                    1
                }
                None => 2,
            },
            "exec" => {
                if fields.len() < 2 {
                    return 0;
                }
                let status = self.replace(&fields[1..]);
                self.leaving = true;
                status
            }
            "trap" => self.trap(&fields[1..]),
            "wait" => match fields.get(1).and_then(|pid| pid.parse().ok()) {
                Some(pid) => self.wait_for(Pid::from_raw(pid)),
                None => self.wait_all(),
            },
            "umask" => {
                if let Some(mode) = fields.get(1).and_then(|text| u32::from_str_radix(text, 8).ok()) {
                    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(mode));
                }
                0
            }
            "command" | "type" => {
                let name = fields.get(1..).unwrap_or_default().iter().find(|arg| !arg.starts_with('-'));
                let Some(name) = name else { return 1 };
                if fields[0] == "command" && fields.get(1).is_some_and(|arg| !arg.starts_with('-')) {
                    self.simple(Vec::new(), &fields[1..]);
                    return self.status;
                }
                let path = self.get("PATH").unwrap_or_default();
                let found = path
                    .split(':')
                    .map(|folder| format!("{folder}/{name}"))
                    .find(|path| std::path::Path::new(path).exists());
                let known = builtin(name) || self.functions.contains_key(name) || find(name).is_some();
                match found {
                    Some(path) => println!("{path}"),
                    None if known => println!("{name}"),
                    None => return 127,
                }
                0
            }
            _ => 127,
        }
    }

    fn read(&mut self, names: &[String]) -> u8 {
        let raw = names.iter().any(|name| name == "-r");
        let names: Vec<&String> = names.iter().filter(|name| !name.starts_with('-')).collect();
        let mut line = String::new();
        let whole = match super::read_line(&mut line) {
            Ok(whole) => whole,
            Err(_) => return 1,
        };
        let mut line = line.trim_end_matches('\n').to_owned();
        if !raw {
            line = line.replace('\\', "");
        }
        let mut rest = line.trim();
        for (index, name) in names.iter().enumerate() {
            let (word, after) = if index + 1 == names.len() {
                (rest, "")
            } else {
                rest.split_once(char::is_whitespace).unwrap_or((rest, ""))
            };
            self.set(name, word);
            rest = after.trim_start();
        }
        u8::from(!whole)
    }

    fn trap(&mut self, args: &[String]) -> u8 {
        let Some((script, names)) = args.split_first() else {
            for (number, script) in &self.traps {
                println!("trap -- '{script}' {number}");
            }
            return 0;
        };
        for name in names {
            if name == "EXIT" || name == "0" {
                self.exit_trap = (script != "-").then(|| script.clone());
                continue;
            }
            let Some(Some(signal)) = process::signal_named(name) else {
                eprintln!("trap: {name}: no such signal");
                return 1;
            };
            let handler = match script.as_str() {
                "-" => SigHandler::SigDfl,
                "" => SigHandler::SigIgn,
                _ => SigHandler::Handler(note),
            };
            self.traps.remove(&(signal as i32));
            if matches!(handler, SigHandler::Handler(_)) {
                self.traps.insert(signal as i32, script.clone());
            }
            // Without SA_RESTART, so that `wait` and `read` notice.
            let action = SigAction::new(handler, SaFlags::empty(), SigSet::empty());
            // SAFETY: the handler only sets a bit of an atomic.
            if unsafe { signal::sigaction(signal, &action) }.is_err() {
                return 1;
            }
        }
        0
    }
}

fn builtin(name: &str) -> bool {
    matches!(
        name,
        ":" | "."
            | "break"
            | "cd"
            | "command"
            | "continue"
            | "eval"
            | "exec"
            | "exit"
            | "export"
            | "local"
            | "read"
            | "readonly"
            | "return"
            | "set"
            | "shift"
            | "source"
            | "trap"
            | "type"
            | "umask"
            | "unset"
            | "wait"
    )
}

/// Makes `fd` known as `number`.
fn move_to(fd: OwnedFd, number: RawFd) {
    if fd.as_raw_fd() == number {
        let _ = fd.into_raw_fd();
        return;
    }
    // SAFETY: whatever `number` was is meant to be replaced; the copy is owned by nobody in this process.
    if let Ok(copy) = unsafe { dup2_raw(&fd, number) } {
        let _ = copy.into_raw_fd();
    }
}

/// A copy out of the way of the numbers that scripts use, closed on exec.
fn duplicate(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: fcntl fails cleanly on a number that is not open.
    let copy = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 10) };
    if copy < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

fn restore(saved: Vec<(RawFd, Option<OwnedFd>)>) {
    let _ = io::stdout().flush();
    for (number, fd) in saved.into_iter().rev() {
        match fd {
            Some(fd) => move_to(fd, number),
            None => drop(nix::unistd::close(number)),
        }
    }
}

/// A here document as an anonymous file.
fn here(text: &str) -> io::Result<OwnedFd> {
    let fd = nix::sys::memfd::memfd_create("here", nix::sys::memfd::MFdFlags::MFD_CLOEXEC)?;
    let mut file = File::from(fd);
    file.write_all(text.as_bytes())?;
    io::Seek::rewind(&mut file)?;
    Ok(file.into())
}
