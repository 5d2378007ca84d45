//! `cargo xtask bench`: builds the release binary and measures it (see the package `bench`).

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::run as command;

pub fn run(root: &Path, names: &[&str]) -> Result<()> {
    command("cargo", &["build", "--release", "--package", "carrack", "--package", "bench"])?;
    let metadata = Command::new("cargo")
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .current_dir(root)
        .output()
        .context("starting cargo")?;
    let metadata: serde_json::Value = serde_json::from_slice(&metadata.stdout)?;
    let target = Path::new(metadata["target_directory"].as_str().context("cargo names its target folder")?);
    // The host is built for by name (see .cargo/config.toml), so its folder carries that name.
    let release = std::fs::read_dir(target)?
        .flatten()
        .map(|entry| entry.path().join("release"))
        .find(|folder| folder.join("carrack").exists())
        .context("the release build left no binary")?;
    let status = Command::new(release.join("bench")).arg(release.join("carrack")).args(names).status()?;
    ensure!(status.success(), "measuring failed");
    Ok(())
}
