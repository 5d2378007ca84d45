//! The kubectl-compatible command line: `carrack kubectl ...`, and `kubectl` when the binary is called by that name. It
//! speaks to any Kubernetes API server through a kubeconfig and knows nothing of Carrack's own.

use std::ffi::OsString;
use std::process::ExitCode;

mod args;
mod commands;
mod connect;
mod discovery;
mod error;
mod manifest;
mod output;
mod printer;
mod select;

pub use error::Error;

/// Runs one command. `arguments` does not hold the program's name. Errors are printed; the exit code is kubectl's.
pub fn run(program: &'static str, arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments = std::iter::once(OsString::from(program)).chain(arguments);
    let args = match <args::Args as clap::Parser>::try_parse_from(arguments) {
        Ok(args) => args,
        Err(usage) => {
            let _ = usage.print();
            return ExitCode::from(if usage.use_stderr() { 1 } else { 0 });
        }
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: starting: {error}");
            return ExitCode::FAILURE;
        }
    };
    let code = match runtime.block_on(commands::run(args)) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    };
    // A read of standard input may still be blocked in a thread of its own.
    runtime.shutdown_background();
    code
}
