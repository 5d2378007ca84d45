//! The runtime driven over CRI by the generated client, with real containers, each test in namespaces and a folder of its own.
//!
//! The test binary is also the shim (as `carrack` is) and, through the built-in image that is made of it, the programs
//! that run in the containers. Needs root.

mod applets;
mod calls;
mod cases;
mod crashes;
mod harness;
mod images;
mod mounting;
mod pack;
mod pulling;
mod registry;
mod sessions;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let name = args.first().and_then(|a| a.rsplit('/').next()).unwrap_or("").to_owned();
    if let Some(code) = applets::run(&name, &args) {
        std::process::exit(code);
    }
    match args.get(1).map(String::as_str) {
        Some("shim") => runtime::shim::main(&args[2..]),
        Some("serve") => harness::serve(&args[2]),
        Some("case") => harness::case(&args[2], &args[3]),
        Some("clean") => harness::clean(&args[2]),
        _ => harness::run_all(&args[1..]),
    }
}
