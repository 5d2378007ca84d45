//! The Python client: `session.py` with the interpreter that `cargo xtask test` installs it for.

use std::process::Command;

use crate::server::Server;

const PYTHON: &str = "/var/lib/carrack-tests/python/bin/python";
const SESSION: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/session.py");

#[test]
fn a_session_of_the_python_client() {
    let server = Server::start();
    let output = Command::new(PYTHON)
        .args(["-B", SESSION])
        .arg(server.kubeconfig())
        .env("HOME", server.folder())
        .output()
        .expect("the interpreter that `cargo xtask test` installs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}\n{}", text(&output.stdout), text(&output.stderr));
    assert!(text(&output.stdout).ends_with("the session is over\n"));
}
