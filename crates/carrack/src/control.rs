//! The running cluster's own socket, for its operator on this machine: one JSON request a line, one answer a line. Only
//! root can reach it.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;

/// What can be asked of a running cluster.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Request {
    /// Write the state to a file.
    Backup(PathBuf),
    /// Make the state that of a file.
    Restore(PathBuf),
}

/// What comes back.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Answer {
    /// Done; a line for the person who asked.
    Done(String),
    /// Not done; why.
    Failed(String),
}

/// Longest request: two paths and some words.
const LONGEST_REQUEST: u64 = 16 << 10;

/// Serves until `shutdown`.
pub async fn serve(path: &Path, store: store::Store, shutdown: CancellationToken) -> anyhow::Result<()> {
    // What an earlier run left behind; the lock says that nobody serves it.
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("removing {}", path.display()));
        }
        _ => {}
    }
    let listener = UnixListener::bind(path).with_context(|| format!("listening on {}", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    tokio::spawn(async move {
        while let Some(Ok((stream, _))) = shutdown.run_until_cancelled(listener.accept()).await {
            let store = store.clone();
            tokio::spawn(async move {
                if let Err(error) = answer(stream, store).await {
                    tracing::warn!("an operator's request: {error:#}");
                }
            });
        }
    });
    Ok(())
}

async fn answer(mut stream: UnixStream, store: store::Store) -> anyhow::Result<()> {
    let (read, mut write) = stream.split();
    let mut line = String::new();
    BufReader::new(read.take(LONGEST_REQUEST)).read_line(&mut line).await?;
    let answer = match serde_json::from_str(&line) {
        Ok(Request::Backup(to)) => match store.backup(to.clone()).await {
            Ok(()) => {
                Answer::Done(format!("the state at revision {} is in {}", store.revision(), to.display()))
            }
            Err(error) => Answer::Failed(chain(&error)),
        },
        Ok(Request::Restore(from)) => match store.restore(from).await {
            Ok(revision) => Answer::Done(format!("the backup is in force at revision {revision}")),
            Err(error) => Answer::Failed(chain(&error)),
        },
        Err(error) => Answer::Failed(error.to_string()),
    };
    write.write_all(format!("{}\n", serde_json::to_string(&answer)?).as_bytes()).await?;
    Ok(())
}

fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Asks the running cluster.
pub async fn ask(path: &Path, request: &Request) -> anyhow::Result<String> {
    let stream = UnixStream::connect(path).await;
    let mut stream = stream.context("the cluster does not run; start it with `carrack up`")?;
    stream.write_all(format!("{}\n", serde_json::to_string(request)?).as_bytes()).await?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).await?;
    match serde_json::from_str(&line).context("the cluster ended before it answered")? {
        Answer::Done(text) => Ok(text),
        Answer::Failed(why) => bail!(why),
    }
}
