//! One shim per pod: a small process with a single thread that is the pod's sandbox.
//!
//! It lives in the pod's network, IPC and UTS namespaces and so keeps them, starts the pod's containers, holds their
//! streams, writes their logs, reaps them and remembers how they ended. It outlives the runtime that started it. Nothing here
//! may start a thread: libcontainer, and everything between `fork` and `execve`, relies on there being none.

mod children;
mod create;
mod exec;
mod finish;
mod log;
mod memory;
mod poll;
pub mod protocol;
mod requests;
mod run;
mod setup;
mod spawner;
mod streams;
pub mod sys;
pub mod userns;

/// The entry of `carrack shim ...`, to be called before any thread exists.
///
/// The one argument is `spawn`; standard input is then the runtime's socket.
pub fn main(args: &[String]) -> ! {
    if args.first().is_some_and(|a| a == "spawn") {
        spawner::main()
    }
    eprintln!("carrack shim is started by the runtime, not by hand");
    std::process::exit(2)
}
