//! Container logs as the runtime writes them (CRI log format), read for `kubectl logs`: from the end, since a time, and on
//! and on across rotations.

use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use jiff::Timestamp;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::fs::File;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncSeekExt, SeekFrom};
use tokio::sync::mpsc;

mod rotate;

pub(crate) use rotate::run as run_rotation;

const CHUNK: usize = 32 * 1024;
/// A line longer than this is handed on in parts.
const MAX_LINE: usize = 1 << 20;

/// A line of a log file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Line<'a> {
    pub time: &'a str,
    pub stderr: bool,
    /// The writer cut the line here; the next one goes on.
    pub partial: bool,
    /// Without the line feed.
    pub content: &'a [u8],
}

/// Splits `time stream tag content`.
pub(crate) fn parse_line(line: &[u8]) -> Option<Line<'_>> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let mut parts = line.splitn(4, |byte| *byte == b' ');
    let time = std::str::from_utf8(parts.next()?).ok()?;
    let stderr = match parts.next()? {
        b"stdout" => false,
        b"stderr" => true,
        _ => return None,
    };
    let tag = parts.next()?;
    let partial = tag.split(|byte| *byte == b':').any(|tag| tag == b"P");
    Some(Line { time, stderr, partial, content: parts.next().unwrap_or_default() })
}

/// What of a log is wanted.
#[derive(Debug, Clone, Default)]
pub(crate) struct Options {
    pub follow: bool,
    pub tail: Option<u64>,
    pub since: Option<Timestamp>,
    pub timestamps: bool,
    pub limit: Option<u64>,
    /// Only stdout (`false`) or stderr (`true`).
    pub only: Option<bool>,
}

/// Tells whether the container may still write.
pub(crate) trait Alive {
    fn alive(&mut self) -> impl Future<Output = bool> + Send;
    /// Resolves when the answer may have changed.
    fn changed(&mut self) -> impl Future<Output = ()> + Send;
}

struct Output {
    sender: mpsc::Sender<Bytes>,
    options: Options,
    left: Option<u64>,
    line_start: bool,
}

impl Output {
    /// Sends a line as it was asked for; `false` when nothing more is wanted.
    async fn line(&mut self, raw: &[u8]) -> bool {
        let Some(line) = parse_line(raw) else { return true };
        if self.options.only.is_some_and(|stderr| stderr != line.stderr) {
            return true;
        }
        if let Some(since) = self.options.since
            && line.time.parse::<Timestamp>().is_ok_and(|time| time < since)
        {
            return true;
        }
        let mut out = BytesMut::with_capacity(line.content.len() + 40);
        if self.options.timestamps && self.line_start {
            out.extend_from_slice(line.time.as_bytes());
            out.extend_from_slice(b" ");
        }
        out.extend_from_slice(line.content);
        if !line.partial {
            out.extend_from_slice(b"\n");
        }
        self.line_start = !line.partial;
        if let Some(left) = &mut self.left {
            out.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
            *left -= out.len() as u64;
        }
        let sent = out.is_empty() || self.sender.send(out.freeze()).await.is_ok();
        sent && self.left != Some(0)
    }
}

/// Reads the log at `path` into `sender` until its end, or, when following, until the container has ended.
pub(crate) async fn read(
    path: PathBuf,
    options: Options,
    mut container: impl Alive,
    sender: mpsc::Sender<Bytes>,
) -> std::io::Result<()> {
    let watch = if options.follow { Some(watch(&path)?) } else { None };
    let mut file = open(&path, options.follow, watch.as_ref(), &mut container).await?;
    if let Some(lines) = options.tail {
        let at = tail_offset(&mut file, lines).await?;
        file.seek(SeekFrom::Start(at)).await?;
    }
    let mut output = Output { sender, left: options.limit, options, line_start: true };
    let mut buffer = BytesMut::new();
    let mut over = false;
    loop {
        buffer.reserve(CHUNK);
        if file.read_buf(&mut buffer).await? > 0 {
            while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
                let line = buffer.split_to(end + 1);
                if !output.line(&line).await {
                    return Ok(());
                }
            }
            if buffer.len() > MAX_LINE {
                buffer.clear();
            }
            continue;
        }
        let Some(watch) = &watch else { return Ok(()) };
        if let Some(next) = rotated(&file, &path).await {
            file = next;
            continue;
        }
        if over {
            return Ok(());
        }
        // A container that has ended may have written since the last read, so one more is due.
        over = !container.alive().await;
        if over {
            continue;
        }
        tokio::select! {
            result = wait(watch) => result?,
            () = container.changed() => {}
            () = output.sender.closed() => return Ok(()),
        }
    }
}

async fn open(
    path: &Path,
    follow: bool,
    watch: Option<&AsyncFd<OwnedFd>>,
    container: &mut impl Alive,
) -> std::io::Result<File> {
    loop {
        match File::open(path).await {
            // While it rotates, the file is missing for a moment.
            Err(error)
                if follow && error.kind() == std::io::ErrorKind::NotFound && container.alive().await =>
            {
                let Some(watch) = watch else { return Err(error) };
                let _ = tokio::time::timeout(Duration::from_secs(1), wait(watch)).await;
            }
            other => return other,
        }
    }
}

fn watch(path: &Path) -> std::io::Result<AsyncFd<OwnedFd>> {
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
    let flags = AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO;
    let dir = path.parent().unwrap_or(path);
    inotify.add_watch(dir, flags)?;
    // SAFETY: the descriptor is owned by what is registered, so it stays open and the same for as long.
    Ok(unsafe { AsyncFd::register(OwnedFd::from(inotify)) }?)
}

async fn wait(watch: &AsyncFd<OwnedFd>) -> std::io::Result<()> {
    let mut guard = watch.readable().await?;
    // What happened does not matter: the file is looked at again.
    match nix::unistd::read(watch.get_ref(), &mut [0; 4096]) {
        Ok(_) => {}
        Err(nix::errno::Errno::EAGAIN) => guard.clear_ready(),
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

/// The file now at `path`, if it is another one than `file`.
async fn rotated(file: &File, path: &Path) -> Option<File> {
    let open = file.metadata().await.ok()?;
    let now = tokio::fs::metadata(path).await.ok()?;
    if (open.dev(), open.ino()) == (now.dev(), now.ino()) {
        return None;
    }
    File::open(path).await.ok()
}

/// Where the last `lines` lines begin.
async fn tail_offset(file: &mut File, lines: u64) -> std::io::Result<u64> {
    let mut at = file.seek(SeekFrom::End(0)).await?;
    if lines == 0 {
        return Ok(at);
    }
    let mut seen = 0;
    let end = at;
    let mut block = vec![0; CHUNK];
    while at > 0 {
        let size = at.min(CHUNK as u64);
        at -= size;
        file.seek(SeekFrom::Start(at)).await?;
        let block = &mut block[..size as usize];
        file.read_exact(block).await?;
        for (index, byte) in block.iter().enumerate().rev() {
            let position = at + index as u64;
            // The line feed at the very end closes the last line.
            if *byte == b'\n' && position + 1 != end {
                seen += 1;
                if seen == lines {
                    return Ok(position + 1);
                }
            }
        }
    }
    Ok(0)
}

#[cfg(test)]
mod tests;
