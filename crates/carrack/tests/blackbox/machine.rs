//! A machine of its own for each black-box test, with the real binary on it. Dropping it ends everything on it.
#![allow(
    clippy::disallowed_methods,
    reason = "a test outside the cluster has no event to wait for but the command it repeats"
)]

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/blackbox/machine.sh");
const CARRACK: &str = env!("CARGO_BIN_EXE_carrack");
pub const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples");

/// How long anything may take before a test gives up on it. Not a promise of speed: the suite shares two cores.
pub const PATIENCE: Duration = Duration::from_secs(120);

pub struct Machine {
    keeper: Child,
    /// The machine's first process, as this process sees it.
    inner: u32,
    name: String,
    folder: tempfile::TempDir,
    server: Option<Child>,
    /// Parts that run alone.
    parts: Vec<Child>,
    /// What the server said on its standard error.
    said: Arc<Mutex<String>>,
}

/// What a command answered.
#[derive(Debug)]
pub struct Answer {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Answer {
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{}\n{}", self.out, self.err);
        self.out
    }

    #[track_caller]
    pub fn failed(self) -> String {
        assert_ne!(self.code, Some(0), "it should have failed: {}", self.out);
        self.err
    }
}

impl Machine {
    pub fn new() -> Machine {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("carrack-test-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let mut keeper = Command::new("sh")
            .args([SCRIPT, "enter", &name])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("sh starts");
        let mut line = String::new();
        let stdout = keeper.stdout.take().expect("piped");
        BufReader::new(stdout).read_line(&mut line).expect("the machine says something");
        assert_eq!(line, "ready\n", "the machine could not be made: is this run as root?");
        let children = format!("/proc/{0}/task/{0}/children", keeper.id());
        let inner = std::fs::read_to_string(children).expect("the keeper lives");
        let inner = inner.trim().parse().expect("the keeper has one child");
        let folder = tempfile::Builder::new().prefix("carrack-").tempdir().expect("a temporary folder");
        let said = Arc::default();
        Machine { keeper, inner, name, folder, server: None, parts: Vec::new(), said }
    }

    /// A machine with a running cluster.
    pub fn up() -> Machine {
        let mut machine = Machine::new();
        machine.start();
        machine
    }

    pub fn data_dir(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// A folder for the test's own files, seen inside as well.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A command on this machine.
    pub fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.inner.to_string()]);
        command.args(["--mount", "--net", "--pid", "--uts", "--ipc", "--cgroup", "--"]);
        command.args(["sh", SCRIPT, "member", program]).args(args);
        command.env("KUBECONFIG", self.data_dir().join("admin.kubeconfig")).env("HOME", self.folder.path());
        command
    }

    pub fn run(&self, program: &str, args: &[&str]) -> Answer {
        answer(self.command(program, args).stdin(Stdio::null()).output().expect("nsenter starts"))
    }

    pub fn run_with_input(&self, program: &str, args: &[&str], input: &str) -> Answer {
        let mut command = self.command(program, args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("nsenter starts");
        child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("the command reads its input");
        answer(child.wait_with_output().expect("our child"))
    }

    pub fn carrack(&self, args: &[&str]) -> Answer {
        self.run(CARRACK, args)
    }

    /// The built-in kubectl.
    pub fn own_kubectl(&self, args: &[&str]) -> Answer {
        self.run(CARRACK, &[&["kubectl"], args].concat())
    }

    /// Real kubectl.
    pub fn kubectl(&self, args: &[&str]) -> Answer {
        self.run("/usr/bin/kubectl", args)
    }

    pub fn apply(&self, manifest: &str) -> Answer {
        self.run_with_input("/usr/bin/kubectl", &["apply", "-f", "-"], manifest)
    }

    /// Applies one of the examples.
    pub fn example(&self, file: &str) {
        self.kubectl(&["apply", "-f", &format!("{EXAMPLES}/{file}")]).ok();
    }

    /// Starts `carrack up` and waits until it says that the cluster is ready.
    pub fn start(&mut self) {
        self.start_with(&[]);
    }

    /// The same with further flags.
    pub fn start_with(&mut self, flags: &[&str]) {
        let data = self.data_dir();
        let data = data.to_string_lossy();
        let own = ["up", "--data-dir", &data, "--node-name", "node-1"];
        let mut command = self.command(CARRACK, &[&own, flags].concat());
        command.env("CARRACK_FAIL_AT", self.orders());
        let mut child = command.stderr(Stdio::piped()).stdin(Stdio::null()).spawn().expect("nsenter starts");
        let mut said = String::new();
        let lines = BufReader::new(child.stderr.take().expect("piped"));
        let mut lines = lines.lines().map_while(Result::ok);
        let ready = lines.by_ref().any(|line| {
            let _ = writeln!(said, "{line}");
            line.contains("Ctrl-C stops")
        });
        if !ready {
            let _ = child.wait();
            panic!("carrack up failed:\n{said}\n{}", self.log());
        }
        // What it says later must not block it.
        self.said = Arc::default();
        let kept = self.said.clone();
        std::thread::spawn(move || {
            for line in lines {
                let _ = writeln!(kept.lock().expect("no panic with the lock"), "{line}");
            }
        });
        self.server = Some(child);
    }

    /// Starts one part of a cluster alone; what it says goes to a file of its name in the test's folder.
    pub fn start_part(&mut self, name: &str, args: &[&str]) {
        let log = std::fs::File::create(self.folder.path().join(format!("{name}.log"))).expect("a file");
        let mut command = self.command(CARRACK, &[&[name], args].concat());
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a file")).stderr(log);
        self.parts.push(command.spawn().expect("nsenter starts"));
    }

    fn orders(&self) -> PathBuf {
        self.folder.path().join("fail-at")
    }

    /// Has the control plane be killed at a step (crate `failpoint`); at none if the order is empty.
    pub fn kill_at(&self, order: &str) {
        let fresh = self.folder.path().join("fail-at.new");
        std::fs::write(&fresh, order).expect("written");
        std::fs::rename(fresh, self.orders()).expect("renamed");
    }

    /// The names of the steps that control planes of this machine have met.
    pub fn steps_met(&self) -> BTreeSet<String> {
        let list = self.orders().with_file_name("fail-at.met");
        std::fs::read_to_string(list).unwrap_or_default().lines().map(str::to_owned).collect()
    }

    /// The step at which the control plane was killed, if it was.
    pub fn killed_at(&mut self) -> Option<String> {
        let server = self.server.as_mut().expect("up was started");
        server.try_wait().expect("our child")?;
        // The last line may be on its way still.
        let started = Instant::now();
        loop {
            let said = self.said.lock().expect("no panic with the lock").clone();
            if let Some(at) = said.lines().find_map(|line| line.strip_prefix("killed at ")) {
                self.server = None;
                return Some(at.to_owned());
            }
            assert!(started.elapsed() < PATIENCE, "carrack up ended:\n{said}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The process of the control plane.
    pub fn server_pid(&self) -> i32 {
        let server = self.server.as_ref().expect("up was started").id();
        // nsenter forks for the pid namespace.
        let children = std::fs::read_to_string(format!("/proc/{server}/task/{server}/children"));
        children.expect("it runs").trim().parse().expect("nsenter has one child")
    }

    /// Ends the control plane as Ctrl-C does, or at once.
    pub fn stop(&mut self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.server_pid()), signal).expect("it runs");
        self.server.take().expect("up was started").wait().expect("our child");
    }

    /// What the cluster, or each part of it that runs alone, wrote into its log, the last part of it.
    pub fn log(&self) -> String {
        let entries = std::fs::read_dir(self.folder.path()).into_iter().flatten().flatten();
        let own =
            entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "log"));
        let mut said = String::new();
        for file in std::iter::once(self.data_dir().join("log/carrack.log")).chain(own) {
            let Ok(text) = std::fs::read_to_string(&file) else { continue };
            let lines: Vec<&str> = text.lines().collect();
            let last = lines[lines.len().saturating_sub(60)..].join("\n");
            let _ = writeln!(said, "{}:\n{last}", file.display());
        }
        said
    }

    /// Asks until the answer is right.
    #[track_caller]
    pub fn eventually(
        &self,
        what: &str,
        program: &str,
        args: &[&str],
        right: impl Fn(&Answer) -> bool,
    ) -> String {
        let started = Instant::now();
        loop {
            let answer = self.run(program, args);
            if right(&answer) {
                return answer.out;
            }
            if started.elapsed() > PATIENCE {
                let pods = self.kubectl(&["get", "pods,events", "-A", "-o", "wide"]);
                panic!("{what} did not come about: {answer:?}\n{}\n{}", pods.out, self.log());
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Waits for a jsonpath of an object to have a value.
    #[track_caller]
    pub fn wait_for(&self, object: &str, path: &str, value: &str) {
        let template = format!("jsonpath={path}");
        let args = ["get", object, "-o", &template];
        self.eventually(&format!("{object} {path}={value}"), "/usr/bin/kubectl", &args, |answer| {
            answer.out == value
        });
    }

    /// The body of an HTTP answer, asked for from the machine itself.
    pub fn http(&self, url: &str) -> Answer {
        self.run(CARRACK, &["toolbox", "http", url])
    }
}

fn answer(output: Output) -> Answer {
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    Answer { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Some(mut server) = self.server.take() {
            let _ = server.kill();
            let _ = server.wait();
        }
        // With its first process, all of the machine's processes end, and with them its mounts and networks.
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
        for part in &mut self.parts {
            let _ = part.kill();
            let _ = part.wait();
        }
        self.remove_cgroups();
    }
}

impl Machine {
    fn remove_cgroups(&self) {
        let Ok(hierarchies) = std::fs::read_dir("/sys/fs/cgroup") else { return };
        for hierarchy in hierarchies.flatten() {
            let top = hierarchy.path().join(&self.name);
            let started = Instant::now();
            // The last processes may still be on their way out.
            while top.exists() && started.elapsed() < PATIENCE {
                remove_tree(&top);
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
}

fn remove_tree(folder: &Path) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove_tree(&entry.path());
        }
    }
    let _ = std::fs::remove_dir(folder);
}
