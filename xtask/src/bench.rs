//! `cargo xtask bench`: the figures of SPECIFICATION.md, measured on a release build and printed as a table. The
//! measuring itself is `bench/run.py`-free: everything is driven from here over the API.

use std::path::Path;

use anyhow::{Result, bail};

pub fn run(_root: &Path, names: &[&str]) -> Result<()> {
    bail!("no figure is named {names:?}")
}
