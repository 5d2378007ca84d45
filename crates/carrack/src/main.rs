//! The command line of Carrack: one binary, several roles. Roles only compose the parts.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;

mod access;
mod accounts;
mod addons;
mod args;
mod backup;
mod control;
mod down;
mod flags;
mod image;
mod kubeconfig;
mod kubelet_root;
mod lock;
mod memory;
mod node;
mod parts;
mod paths;
mod port;
mod preflight;
mod progress;
mod status;
mod up;

use args::{Args, Command};

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let name = arguments.first().map(Path::new).and_then(Path::file_name).unwrap_or_default().to_owned();
    let name = name.to_string_lossy();
    // These come before anything that might start a thread: the shim runs libcontainer, which may only be used where no
    // other thread exists, and applets are to be as small as they can.
    match (&*name, arguments.get(1).and_then(|word| word.to_str())) {
        ("toolbox", _) => return toolbox::main(arguments),
        (applet, _) if toolbox::APPLETS.contains(&applet) => return toolbox::main(arguments),
        ("kubectl", _) => return cli::run("kubectl", arguments.into_iter().skip(1)),
        (_, Some("shim")) => runtime::shim::main(&words(&arguments[2..])),
        (_, Some("toolbox")) => return toolbox::main(arguments[1..].to_vec()),
        (_, Some("kubectl")) => return cli::run("carrack kubectl", arguments.into_iter().skip(2)),
        _ => {}
    }
    let args = Args::parse();
    if let Command::Up(up) = &args.command
        && up.detach
    {
        return report(up::detach(up));
    }
    bound_allocator();
    report(run(args))
}

fn run(args: Args) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let done = runtime.block_on(async {
        match args.command {
            Command::Up(up) => up::run(up).await,
            Command::Down(down) => down::run(down).await,
            Command::Status(status) => status::run(status).await,
            Command::Backup(backup) => backup::backup(backup).await,
            Command::Restore(restore) => backup::restore(restore).await,
            Command::Image(image) => image::run(image).await,
            Command::Apiserver(part) => parts::apiserver(part).await,
            Command::Controllers(part) => parts::controllers(part).await,
            Command::Scheduler(part) => parts::scheduler(part).await,
            Command::Kubelet(part) => parts::kubelet(part).await,
            Command::Runtime(part) => parts::runtime(part).await,
            Command::Proxy(part) => parts::proxy(part).await,
            Command::Dns(part) => parts::dns(part).await,
        }
    });
    runtime.shutdown_background();
    done
}

fn report(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Keeps the C library's allocator to two arenas: with one for every thread, freed memory stays spread over all of them.
fn bound_allocator() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt changes allocator parameters; no other thread exists yet.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 1 << 20);
    }
}

/// This binary, to be started again in another role.
fn own_binary() -> std::process::Command {
    let mut command = std::process::Command::new("/proc/self/exe");
    command.arg0("carrack");
    command
}

fn words(arguments: &[OsString]) -> Vec<String> {
    arguments.iter().map(|word| word.to_string_lossy().into_owned()).collect()
}
