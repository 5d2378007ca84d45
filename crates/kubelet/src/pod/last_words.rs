//! Termination messages: what a container left in its file, or the end of its log.

use std::collections::HashMap;
use std::path::Path;

use cri::v1::{ContainerState, ContainerStatus};
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use crate::container::{TERMINATION_LOG, TERMINATION_POLICY};
use crate::logs;
use crate::runtime::PodView;

const MAX_MESSAGE: u64 = 4096;
const MAX_LOG_LINES: usize = 80;
const MAX_LOG: u64 = 2048;

/// Puts the messages of ended containers into the view. Each is read once and kept in `known`.
pub(super) async fn fill(view: &mut PodView, known: &mut HashMap<String, String>) {
    known.retain(|id, _| view.containers.iter().any(|container| container.id == *id));
    for container in &mut view.containers {
        if container.state() != ContainerState::ContainerExited {
            continue;
        }
        if !known.contains_key(&container.id) {
            known.insert(container.id.clone(), read(container).await);
        }
        if let Some(text) = known.get(&container.id)
            && !text.is_empty()
        {
            container.message = text.clone();
        }
    }
}

async fn read(container: &ContainerStatus) -> String {
    let mut text = match container.annotations.get(TERMINATION_LOG) {
        Some(path) => head(Path::new(path)).await,
        None => String::new(),
    };
    let fall_back =
        container.annotations.get(TERMINATION_POLICY).is_some_and(|policy| policy == "FallbackToLogsOnError");
    if text.is_empty() && fall_back && container.exit_code != 0 {
        text = tail_of_log(Path::new(&container.log_path)).await;
    }
    text
}

async fn head(path: &Path) -> String {
    let Ok(file) = tokio::fs::File::open(path).await else { return String::new() };
    let mut bytes = Vec::new();
    match file.take(MAX_MESSAGE).read_to_end(&mut bytes).await {
        Ok(_) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(_) => String::new(),
    }
}

async fn tail_of_log(path: &Path) -> String {
    let Ok(mut file) = tokio::fs::File::open(path).await else { return String::new() };
    let length = file.metadata().await.map_or(0, |data| data.len());
    // Each line carries about forty bytes of time and stream name besides its text.
    let window = MAX_LOG + 64 * MAX_LOG_LINES as u64;
    let from = length.saturating_sub(window);
    let mut bytes = Vec::new();
    if file.seek(std::io::SeekFrom::Start(from)).await.is_err()
        || file.take(window).read_to_end(&mut bytes).await.is_err()
    {
        return String::new();
    }
    let text = String::from_utf8_lossy(&bytes);
    let skip = usize::from(from > 0);
    let lines: Vec<&str> = text.split_inclusive('\n').skip(skip).collect();
    let start = lines.len().saturating_sub(MAX_LOG_LINES);
    let mut out = String::new();
    for line in &lines[start..] {
        if let Some(line) = logs::parse_line(line.as_bytes()) {
            out.push_str(&String::from_utf8_lossy(line.content));
            if !line.partial {
                out.push('\n');
            }
        }
    }
    let cut = out.len().saturating_sub(MAX_LOG as usize);
    out.split_off(out.ceil_char_boundary(cut))
}
