//! Rotation by size: a full log is put aside, the runtime opens a new one, and old ones beyond the limit go.

use std::path::{Path, PathBuf};

use cri::v1::{ContainerState, ContainerStatusRequest, ReopenContainerLogRequest};
use tokio_util::sync::CancellationToken;

use crate::context::Shared;
use crate::quantity;

/// When a log is full (bytes), and how many files of it there are: the current one and those put aside.
#[derive(Debug, Clone, Copy)]
struct Limits {
    size: u64,
    files: usize,
}

/// Rotates the logs of all containers until shutdown.
pub(crate) async fn run(context: Shared, shutdown: CancellationToken) {
    let settings = &context.config.settings;
    let size = quantity::value(&settings.container_log_max_size).and_then(|size| u64::try_from(size).ok());
    let files = usize::try_from(settings.container_log_max_files).unwrap_or(usize::MAX);
    let limits = Limits { size: size.unwrap_or(10 << 20), files };
    loop {
        tokio::select! {
            // Sizes are a matter of time, so they are looked at now and then.
            () = tokio::time::sleep(settings.container_log_monitor_interval.0) => {}
            () = shutdown.cancelled() => return,
        }
        for path in full_logs(&context.config.pod_logs_dir, limits.size) {
            if let Err(error) = rotate(&context, &path, limits.files).await {
                tracing::warn!(%error, path = %path.display(), "cannot rotate a container's log");
            }
        }
    }
}

/// `<pod>/<container>/<attempt>.log` files over the limit.
fn full_logs(root: &Path, size: u64) -> Vec<PathBuf> {
    let list = |dir: &Path| -> Vec<PathBuf> {
        std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
    };
    let containers = list(root).into_iter().flat_map(|pod| list(&pod));
    containers
        .flat_map(|container| list(&container))
        .filter(|path| path.extension().is_some_and(|extension| extension == "log"))
        .filter(|path| std::fs::metadata(path).is_ok_and(|data| data.len() >= size))
        .collect()
}

async fn rotate(context: &Shared, path: &Path, files: usize) -> std::io::Result<()> {
    let Some(id) = owner(context, path).await else { return Ok(()) };
    for old in surplus(path, files) {
        tokio::fs::remove_file(old).await?;
    }
    let aside = aside(path);
    tokio::fs::rename(path, &aside).await?;
    let request = ReopenContainerLogRequest { container_id: id };
    if let Err(status) = context.cri.runtime().reopen_container_log(request).await {
        // The runtime still writes to the file, so its name must not be lost.
        tokio::fs::rename(&aside, path).await?;
        return Err(std::io::Error::other(status.message().to_owned()));
    }
    Ok(())
}

fn aside(path: &Path) -> PathBuf {
    let stamp = jiff::Timestamp::now().strftime("%Y%m%d-%H%M%S");
    PathBuf::from(format!("{}.{stamp}", path.display()))
}

/// Files put aside earlier that leave no room for one more, the oldest first.
fn surplus(path: &Path, files: usize) -> Vec<PathBuf> {
    let prefix = format!("{}.", path.display());
    let entries = path.parent().and_then(|dir| std::fs::read_dir(dir).ok());
    let mut old: Vec<PathBuf> = entries
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|found| found.to_string_lossy().starts_with(&prefix))
        .collect();
    old.sort();
    let surplus = (old.len() + 2).saturating_sub(files);
    old.truncate(surplus);
    old
}

/// The running container that writes this file.
async fn owner(context: &Shared, path: &Path) -> Option<String> {
    for container in context.cri.containers(None).await.ok()? {
        if container.state() != ContainerState::ContainerRunning {
            continue;
        }
        let request = ContainerStatusRequest { container_id: container.id.clone(), verbose: false };
        let status = context.cri.runtime().container_status(request).await.ok()?.into_inner().status?;
        if Path::new(&status.log_path) == path {
            return Some(container.id);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_files_are_surplus() {
        let dir = tempfile::tempdir().expect("a directory");
        let log = dir.path().join("0.log");
        for stamp in ["1", "2", "3", "4", "5"] {
            std::fs::write(format!("{}.{stamp}", log.display()), "").expect("written");
        }
        let names: Vec<_> = surplus(&log, 5)
            .iter()
            .filter_map(|path| path.extension()?.to_str().map(str::to_owned))
            .collect();
        assert_eq!(names, ["1", "2"]);
    }
}
