//! Measures a release build of Carrack: `cargo xtask bench [NAME...]` builds both and starts this. The cluster runs on a
//! machine of its own (a set of namespaces), as in the black-box tests. The API server alone (`api`, or a measure of it by
//! name) runs beside the reference if `--reference-apiserver PATH --etcd PATH` name one.

mod api;
mod cluster;
mod figures;
mod node;

use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use anyhow::{Context, bail, ensure};

/// Where the machine's script lies.
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../crates/carrack/tests/blackbox/machine.sh");

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.split_first() {
        Some((first, rest)) if first == "inside" => inside(rest),
        Some((carrack, rest)) => measures(carrack, rest),
        None => bail!("usage: bench CARRACK [--reference-apiserver PATH --etcd PATH] [NAME...]"),
    }
}

/// Measures the API server here and the cluster on a machine of its own.
fn measures(carrack: &str, arguments: &[String]) -> anyhow::Result<()> {
    let (mut apiserver, mut etcd, mut names) = (None, None, Vec::new());
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        match argument.as_str() {
            "--reference-apiserver" => apiserver = rest.next().cloned(),
            "--etcd" => etcd = rest.next().cloned(),
            _ => names.push(argument.clone()),
        }
    }
    let reference = match (apiserver, etcd) {
        (Some(apiserver), Some(etcd)) => Some(api::target::Target::Reference { apiserver, etcd }),
        (None, None) => None,
        _ => bail!("--reference-apiserver and --etcd go together"),
    };
    let of_api = |name: &String| name == "api" || api::NAMES.contains(&name.as_str());
    let (alone, cluster): (Vec<String>, Vec<String>) = names.iter().cloned().partition(of_api);
    if names.is_empty() || !alone.is_empty() {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        runtime.block_on(api::run(carrack, reference, &alone))?;
    }
    if names.is_empty() || !cluster.is_empty() {
        outside(carrack, &cluster)?;
    }
    Ok(())
}

/// Makes the machine and goes on in it.
fn outside(carrack: &str, names: &[String]) -> anyhow::Result<()> {
    let name = format!("carrack-bench-{}", std::process::id());
    let mut keeper = Command::new("sh")
        .args([SCRIPT, "enter", &name])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("starting sh")?;
    let done = measure(&mut keeper, carrack, names);
    keeper.kill()?;
    keeper.wait()?;
    for hierarchy in std::fs::read_dir("/sys/fs/cgroup")?.flatten() {
        remove_groups(&hierarchy.path().join(&name));
    }
    done
}

/// Removes the machine's cgroups, in which the last processes may still be ending.
#[allow(clippy::disallowed_methods, reason = "no event tells that the last process of a cgroup has ended")]
fn remove_groups(group: &std::path::Path) {
    for _ in 0..100 {
        if !group.exists() {
            return;
        }
        let find = Command::new("find")
            .arg(group)
            .args(["-depth", "-type", "d", "-exec", "rmdir", "{}", "+"])
            .stderr(Stdio::null())
            .status();
        if find.is_ok_and(|status| status.success()) {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

fn measure(keeper: &mut std::process::Child, carrack: &str, names: &[String]) -> anyhow::Result<()> {
    use std::io::BufRead;
    let mut line = String::new();
    let stdout = keeper.stdout.take().context("no pipe")?;
    std::io::BufReader::new(stdout).read_line(&mut line)?;
    ensure!(line == "ready\n", "the machine could not be made: is this run as root?");
    let inner = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", keeper.id()))?;
    let status = Command::new("nsenter")
        .args(["--target", inner.trim(), "--mount", "--net", "--pid", "--uts", "--ipc", "--cgroup", "--"])
        .args(["sh", SCRIPT, "member"])
        .arg(std::env::current_exe()?)
        .args(["inside", carrack])
        .args(names)
        .arg0("nsenter")
        .status()?;
    ensure!(status.success(), "measuring failed");
    Ok(())
}

fn inside(arguments: &[String]) -> anyhow::Result<()> {
    let (carrack, names) = arguments.split_first().context("which binary?")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(figures::run(carrack, names))
}
