//! `carrack apiserver` on a free port of the loopback interface, with a folder of its own. Dropping it ends it.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

const CARRACK: &str = env!("CARGO_BIN_EXE_carrack");

pub struct Server {
    process: Child,
    folder: tempfile::TempDir,
}

impl Server {
    pub fn start() -> Self {
        let folder = tempfile::Builder::new().prefix("carrack-").tempdir().expect("a temporary folder");
        let mut process = Command::new(CARRACK)
            .args(["apiserver", "--port", "0", "--data-dir"])
            .arg(folder.path().join("data"))
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let mut lines = BufReader::new(process.stderr.take().expect("piped")).lines().map_while(Result::ok);
        let ready = lines.by_ref().any(|line| line.starts_with("serving on "));
        assert!(ready, "the server says where it serves");
        // What it says later must not block it.
        std::thread::spawn(move || lines.for_each(drop));
        Self { process, folder }
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.path().join("data/admin.kubeconfig")
    }

    /// A folder for a client's own files.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
