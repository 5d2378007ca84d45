//! `cargo xtask test`: the whole test suite on a fresh machine. Tests need root, and fail where something is missing;
//! this is what makes sure that nothing is.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Result, ensure};

use crate::run as command;

/// A file that a test needs, and the Debian package that brings it.
const NEEDS: &[(&str, &str)] = &[
    ("/usr/bin/kubectl", "kubernetes-client"),
    ("/usr/bin/busybox", "busybox-static"),
    ("/usr/bin/etcd", "etcd-server"),
    ("/usr/sbin/nft", "nftables"),
    ("/usr/sbin/ip", "iproute2"),
    ("/usr/bin/python3", "python3"),
    ("/usr/bin/ps", "procps"),
    ("/usr/sbin/mkfs.ext4", "e2fsprogs"),
];

/// The Python client of the API, of v1.36's time, in an environment of its own.
const PYTHON: &str = "/var/lib/carrack-tests/python";
const PYTHON_CLIENT: &str = "kubernetes==37.0.2";

pub fn run(names: &[&str]) -> Result<()> {
    // The owner of a process's folder in /proc is its effective user.
    ensure!(
        std::fs::metadata("/proc/self")?.uid() == 0,
        "the tests make namespaces, mounts and cgroups: run them as root"
    );
    let missing = NEEDS.iter().filter(|(file, _)| !Path::new(file).exists());
    let mut packages: Vec<&str> = missing.map(|(_, package)| *package).collect();
    let python = |interpreter: &str, module: &str| {
        let import = format!("import {module}");
        let tried = Command::new(interpreter).args(["-c", &import]).stderr(Stdio::null()).status();
        tried.is_ok_and(|status| status.success())
    };
    if !python("/usr/bin/python3", "ensurepip") {
        packages.push("python3-venv");
    }
    if !packages.is_empty() {
        command("apt-get", &["update", "-qq"])?;
        let install = ["install", "-y", "-qq", "--no-install-recommends"];
        command("apt-get", &[&install, packages.as_slice()].concat())?;
    }
    let client = format!("{PYTHON}/bin/python");
    if !python(&client, "kubernetes") {
        command("/usr/bin/python3", &["-m", "venv", "--clear", PYTHON])?;
        command(&client, &["-m", "pip", "install", "--quiet", "--disable-pip-version-check", PYTHON_CLIENT])?;
    }
    // The black-box tests drive the binary itself.
    command("cargo", &["build", "--workspace"])?;
    command("cargo", &[&["test", "--workspace"], names].concat())
}
