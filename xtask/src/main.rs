//! The project's own tasks: `cargo xtask <task>`.

mod bench;
mod generate;
#[cfg(feature = "protocols")]
mod protocols;
mod test;
mod tidy;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

const USAGE: &str = "usage: cargo xtask TASK
  test [NAME...]        install what the tests need and run them all (as root)
  tidy                  hold the house rules: who may depend on whom, file lengths, docs in step
  bench [NAME...]       measure a release build and print a table
  generate --facts DIR  make the kinds' table anew from the facts in DIR
  protocols KUBERNETES CSI
                        make the gRPC types anew from Kubernetes' source tree and the CSI specification's folder
                        (cargo run --package xtask --features protocols -- protocols ...)";

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["generate", "--facts", facts] => generate::run(&PathBuf::from(facts), root()?),
        #[cfg(feature = "protocols")]
        ["protocols", kubernetes, csi] => protocols::run(kubernetes.as_ref(), csi.as_ref(), root()?),
        ["test", names @ ..] => test::run(names),
        ["tidy"] => tidy::run(root()?),
        ["bench", names @ ..] => bench::run(root()?, names),
        _ => bail!("{USAGE}"),
    }
}

/// The project's top folder.
fn root() -> Result<&'static Path> {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask lies in the project's top folder")
}

/// Runs a command in the project's top folder, showing what it prints; an error if it fails.
fn run(program: &str, args: &[&str]) -> Result<()> {
    let status = Command::new(program).args(args).current_dir(root()?).status();
    let status = status.with_context(|| format!("starting {program}"))?;
    ensure!(status.success(), "`{program} {}` failed", args.join(" "));
    Ok(())
}
