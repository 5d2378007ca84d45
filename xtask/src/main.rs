//! The project's own tasks: `cargo xtask <task>`.

mod generate;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["generate", "--facts", facts] => generate::run(&PathBuf::from(facts), root()?),
        _ => bail!("usage: cargo xtask generate --facts DIR"),
    }
}

/// The project's top folder.
fn root() -> Result<&'static Path> {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask lies in the project's top folder")
}
