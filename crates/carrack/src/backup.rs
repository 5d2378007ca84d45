//! `carrack backup` and `carrack restore`: the cluster's state as one file, while it runs.

use std::path::Path;

use crate::args::{Backup, Restore};
use crate::control::{Request, ask};
use crate::paths::Paths;

pub async fn backup(args: Backup) -> anyhow::Result<()> {
    let paths = Paths::existing(&args.data.data_dir);
    println!("{}", ask(&paths.control_socket(), &Request::Backup(std::path::absolute(&args.file)?)).await?);
    Ok(())
}

pub async fn restore(args: Restore) -> anyhow::Result<()> {
    let file: &Path = &args.file;
    anyhow::ensure!(file.is_file(), "{} is not a file", file.display());
    let paths = Paths::existing(&args.data.data_dir);
    println!("{}", ask(&paths.control_socket(), &Request::Restore(std::path::absolute(file)?)).await?);
    Ok(())
}
