//! `exec`: a command in a container, with its standard streams and, with `-t`, this terminal.

use std::io::IsTerminal;
use std::os::fd::AsFd;

use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{AttachParams, AttachedProcess, TerminalSize};
use tokio::fs::File;
use tokio::io::{AsyncRead, AsyncWriteExt};
use tokio::signal::unix::{SignalKind, signal};

use super::pod_of;
use crate::Error;
use crate::args::Exec;
use crate::connect::Connection;

pub(super) async fn run(connection: &Connection, exec: Exec) -> Result<u8, Error> {
    let pod = pod_of(connection, &exec.target).await?;
    let terminal = exec.tty && std::io::stdin().is_terminal();
    if exec.tty && !terminal {
        eprintln!("Unable to use a TTY - input is not a terminal or the right kind of file");
    }
    let parameters = AttachParams {
        container: exec.container.clone(),
        stdin: exec.stdin,
        stdout: true,
        stderr: !terminal,
        tty: terminal,
        ..AttachParams::default()
    };
    let pods: Api<Pod> = Api::namespaced(connection.client.clone(), &connection.namespace);
    let mut process = pods.exec(&pod, exec.command.clone(), &parameters).await?;
    let _raw = terminal.then(raw::enable).transpose()?;
    if terminal {
        follow_size(&mut process)?;
    }
    if let Some(mut stdin) = process.stdin() {
        let mut input = own(std::io::stdin())?;
        tokio::spawn(async move {
            let _ = tokio::io::copy(&mut input, &mut stdin).await;
            let _ = stdin.shutdown().await;
        });
    }
    let (stdout, stderr) = (process.stdout(), process.stderr());
    let status = process.take_status();
    let (mut out, mut err) = (own(std::io::stdout())?, own(std::io::stderr())?);
    tokio::try_join!(copy(stdout, &mut out), copy(stderr, &mut err))?;
    let status = match status {
        Some(status) => status.await,
        None => None,
    };
    let Some(status) = status.filter(|status| status.status.as_deref() == Some("Failure")) else {
        return Ok(0);
    };
    let causes = status.details.and_then(|details| details.causes).unwrap_or_default();
    let code = causes.iter().find(|cause| cause.reason.as_deref() == Some("ExitCode"));
    match code.and_then(|code| code.message.as_deref()).and_then(|code| code.parse().ok()) {
        Some(code) => {
            eprintln!("command terminated with exit code {code}");
            Ok(code)
        }
        None => Err(Error::Usage(status.message.unwrap_or_else(|| "the command could not be run".into()))),
    }
}

/// A standard stream as an asynchronous file of our own.
fn own(stream: impl AsFd) -> std::io::Result<File> {
    Ok(File::from_std(stream.as_fd().try_clone_to_owned()?.into()))
}

async fn copy(from: Option<impl AsyncRead + Unpin>, to: &mut File) -> std::io::Result<()> {
    if let Some(mut from) = from {
        tokio::io::copy(&mut from, to).await?;
    }
    to.flush().await
}

/// Tells the process the terminal's size, now and whenever it changes.
fn follow_size(process: &mut AttachedProcess) -> Result<(), Error> {
    let Some(mut sizes) = process.terminal_size() else { return Ok(()) };
    let mut changed = signal(SignalKind::window_change())?;
    tokio::spawn(async move {
        loop {
            let Some((width, height)) = raw::size() else { return };
            if futures::SinkExt::send(&mut sizes, TerminalSize { width, height }).await.is_err() {
                return;
            }
            changed.recv().await;
        }
    });
    Ok(())
}

/// The terminal in raw mode.
mod raw {
    use std::os::fd::AsRawFd;

    use nix::libc;
    use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

    /// Puts the terminal back when dropped.
    pub struct Raw(Termios);

    pub fn enable() -> std::io::Result<Raw> {
        let before = tcgetattr(std::io::stdin())?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(std::io::stdin(), SetArg::TCSANOW, &raw)?;
        Ok(Raw(before))
    }

    impl Drop for Raw {
        fn drop(&mut self) {
            let _ = tcsetattr(std::io::stdin(), SetArg::TCSANOW, &self.0);
        }
    }

    /// Columns and rows.
    pub fn size() -> Option<(u16, u16)> {
        let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: TIOCGWINSZ writes one winsize to the address given, which outlives the call.
        let done = unsafe { libc::ioctl(std::io::stdin().as_raw_fd(), libc::TIOCGWINSZ, &mut size) };
        (done == 0).then_some((size.ws_col, size.ws_row))
    }
}
