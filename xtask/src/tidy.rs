//! `cargo xtask tidy`: the house rules that the compiler does not hold.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// Crates that may depend on `store`: only the API server touches the datastore; the binary composes the two.
const MAY_USE_STORE: &[&str] = &["apiserver", "carrack"];

/// What a crate must not depend on, with the invariant behind it (see ARCHITECTURE.md).
const FORBIDDEN: &[(&str, &[&str], &str)] = &[
    ("schema", &["tokio", "hyper", "kube", "k8s-openapi", "api"], "schema is pure and knows no kind by name"),
    (
        "cel",
        &["tokio", "hyper", "kube", "k8s-openapi", "api", "store"],
        "cel is pure and knows no kind by name",
    ),
    ("api", &["tokio", "hyper", "kube", "store"], "api is pure"),
    (
        "exposition",
        &["tokio", "hyper", "kube", "api"],
        "exposition knows no metric by name and serves nothing",
    ),
    ("scheduling", &["tokio", "hyper", "kube", "store"], "scheduling is pure"),
    ("topology", &["tokio", "hyper", "kube", "k8s-openapi", "store"], "topology is pure"),
    ("tls", &["tokio", "hyper", "kube"], "tls holds configurations and connects to nothing"),
    ("ruleset", &["tokio", "hyper", "kube", "rtnetlink"], "ruleset is pure"),
    ("store", &["api", "schema", "kube", "k8s-openapi", "hyper"], "the store knows nothing of Kubernetes"),
    (
        "apiserver",
        &["controllers", "scheduler", "kubelet", "runtime", "network"],
        "the API server knows no client",
    ),
    ("controllers", &["store", "apiserver", "hyper"], "controllers reach the state through the API alone"),
    ("scheduler", &["store", "apiserver", "hyper"], "the scheduler reaches the state through the API alone"),
    ("kubelet", &["store", "apiserver", "runtime", "libcontainer", "network"], "the kubelet speaks CRI"),
    ("plugins", &["kube", "k8s-openapi", "tokio", "cri"], "plugins holds protocol types and no behaviour"),
    (
        "provisioner",
        &["store", "apiserver", "cri"],
        "the provisioner reaches the cluster through the API alone",
    ),
    (
        "runtime",
        &["kube", "k8s-openapi", "api", "store", "apiserver", "kubelet"],
        "the runtime knows no Kubernetes object",
    ),
    ("network", &["kube", "k8s-openapi", "api", "apiserver"], "the network knows no API"),
    ("proxy", &["runtime", "cri", "store", "apiserver"], "the proxy knows no container"),
    ("dns", &["runtime", "cri", "store", "apiserver"], "DNS knows no container"),
    ("cli", &["store", "apiserver"], "the command line knows nothing of the server's insides"),
];

/// Past this a file has certainly a second reason to change.
const LONGEST_FILE: usize = 1000;

pub fn run(root: &Path) -> Result<()> {
    let mut faults = Vec::new();
    dependencies(root, &mut faults)?;
    files(root, &mut faults)?;
    for fault in &faults {
        eprintln!("tidy: {fault}");
    }
    ensure!(faults.is_empty(), "{} house rules are broken", faults.len());
    println!("tidy: all rules hold");
    Ok(())
}

fn dependencies(root: &Path, faults: &mut Vec<String>) -> Result<()> {
    let output = Command::new("cargo")
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .current_dir(root)
        .output()
        .context("starting cargo")?;
    ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let architecture =
        std::fs::read_to_string(root.join("ARCHITECTURE.md")).context("reading ARCHITECTURE.md")?;
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let name = package["name"].as_str().unwrap_or_default();
        let normal =
            package["dependencies"].as_array().into_iter().flatten().filter(|one| one["kind"].is_null());
        let depends: Vec<&str> = normal.filter_map(|one| one["name"].as_str()).collect();
        if depends.contains(&"store") && !MAY_USE_STORE.contains(&name) {
            faults.push(format!("{name} depends on store: only the API server touches the datastore"));
        }
        for (_, forbidden, why) in FORBIDDEN.iter().filter(|(one, ..)| *one == name) {
            for bad in forbidden.iter().filter(|bad| depends.contains(bad)) {
                faults.push(format!("{name} depends on {bad}: {why}"));
            }
        }
        if !architecture.contains(&format!("`{name}`")) {
            faults.push(format!("ARCHITECTURE.md does not name the crate `{name}`"));
        }
    }
    Ok(())
}

fn files(root: &Path, faults: &mut Vec<String>) -> Result<()> {
    let mut folders: Vec<PathBuf> = vec![root.join("crates"), root.join("xtask")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).with_context(|| format!("listing {}", folder.display()))? {
            let path = entry?.path();
            if path.is_dir() {
                if path.file_name().is_some_and(|name| name != "target") {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|end| end == "rs") {
                file(root, &path, faults)?;
            }
        }
    }
    Ok(())
}

fn file(root: &Path, path: &Path, faults: &mut Vec<String>) -> Result<()> {
    let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let name = path.strip_prefix(root).unwrap_or(path).display();
    if text.starts_with("// @generated") || text.contains("is @generated") {
        return Ok(());
    }
    let lines = text.lines().count();
    if lines > LONGEST_FILE {
        faults.push(format!("{name} has {lines} lines: find its second reason to change and split it"));
    }
    let test = path.ends_with("tests.rs") || path.components().any(|part| part.as_os_str() == "tests");
    if !test && lines > 0 && !text.starts_with("//!") {
        faults.push(format!("{name} does not open with what it is for (//!)"));
    }
    for mark in [concat!("TO", "DO"), concat!("FIX", "ME")] {
        if text.contains(mark) {
            faults.push(format!("{name} holds a {mark}: do it, or open an issue"));
        }
    }
    Ok(())
}
