//! The audit log file: one JSON event a line, rotated by size, old files kept by number and age.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use jiff::tz::TimeZone;

/// How the file is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// Bytes; 0: the file grows without bound.
    pub size: u64,
    /// Old files kept; 0: all.
    pub backups: usize,
    /// Age of the oldest file kept; zero: any.
    pub age: Duration,
    /// Whether old files are compressed.
    pub compress: bool,
}

/// A file that is rotated when it is full.
pub struct Rotating {
    path: PathBuf,
    rotation: Rotation,
    file: File,
    size: u64,
    /// The time in the newest old file's name.
    last: Option<Timestamp>,
}

const STAMP: &str = "%Y-%m-%dT%H-%M-%S%.3f";

impl Rotating {
    /// Opens the file to append to it; its folder is made. Only its owner can read it.
    pub fn open(path: &Path, rotation: Rotation) -> io::Result<Self> {
        if let Some(folder) = path.parent().filter(|f| !f.as_os_str().is_empty()) {
            std::fs::create_dir_all(folder)?;
        }
        let file = open(path)?;
        let size = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), rotation, file, size, last: None })
    }

    /// Appends whole lines.
    pub fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        let after = self.size + lines.len() as u64;
        if self.rotation.size > 0 && self.size > 0 && after > self.rotation.size {
            self.rotate()?;
        }
        self.file.write_all(lines)?;
        self.size += lines.len() as u64;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        // Two rotations in one millisecond must neither lose a file nor change their order.
        let millisecond = Duration::from_millis(1);
        let mut at = self.last.map_or(Timestamp::now(), |last| Timestamp::now().max(last + millisecond));
        let mut to = self.backup(at);
        while to.exists() || zipped(&to).exists() {
            at += millisecond;
            to = self.backup(at);
        }
        self.last = Some(at);
        std::fs::rename(&self.path, &to)?;
        self.file = open(&self.path)?;
        self.size = 0;
        if self.rotation.compress {
            compress(&to)?;
        }
        self.clean()
    }

    /// `NAME-TIME.EXTENSION`, in the same folder.
    fn backup(&self, at: Timestamp) -> PathBuf {
        let (stem, extension) = self.parts();
        let stamp = at.to_zoned(TimeZone::UTC).strftime(STAMP).to_string();
        self.path.with_file_name(format!("{stem}-{stamp}{extension}"))
    }

    fn parts(&self) -> (String, String) {
        let text = |part: Option<&std::ffi::OsStr>| part.unwrap_or_default().to_string_lossy().into_owned();
        let extension = text(self.path.extension());
        let extension = if extension.is_empty() { extension } else { format!(".{extension}") };
        (text(self.path.file_stem()), extension)
    }

    /// Old files, the newest first.
    fn backups(&self) -> io::Result<Vec<PathBuf>> {
        let (stem, extension) = self.parts();
        let folder = self.path.parent().filter(|f| !f.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut found = Vec::new();
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let name = name.strip_suffix(".gz").unwrap_or(&name);
            let middle = name.strip_prefix(&stem).and_then(|n| n.strip_prefix('-'));
            let stamp = middle.and_then(|n| n.strip_suffix(&extension)).unwrap_or_default();
            if stamp.len() == "2006-01-02T15-04-05.000".len() && stamp.as_bytes()[10] == b'T' {
                found.push((stamp.to_owned(), path));
            }
        }
        found.sort_by(|a, b| b.cmp(a));
        Ok(found.into_iter().map(|(_, path)| path).collect())
    }

    fn clean(&self) -> io::Result<()> {
        let limit = SystemTime::now().checked_sub(self.rotation.age).filter(|_| !self.rotation.age.is_zero());
        for (i, path) in self.backups()?.into_iter().enumerate() {
            let many = self.rotation.backups > 0 && i >= self.rotation.backups;
            let modified = path.metadata().and_then(|m| m.modified()).ok();
            let old = limit.zip(modified).is_some_and(|(limit, modified)| modified < limit);
            if many || old {
                std::fs::remove_file(path)?;
            }
        }
        Ok(())
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

fn zipped(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".gz");
    name.into()
}

fn compress(path: &Path) -> io::Result<()> {
    let to = zipped(path);
    let mut encoder = flate2::write::GzEncoder::new(open(&to)?, flate2::Compression::default());
    io::copy(&mut File::open(path)?, &mut encoder)?;
    encoder.finish()?.sync_all()?;
    std::fs::remove_file(path)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn full_files_are_put_aside_and_old_ones_go() {
        for compress in [false, true] {
            let dir = tempfile::tempdir().expect("a folder");
            let path = dir.path().join("log").join("audit.log");
            let rotation = Rotation { size: 10, backups: 2, age: Duration::ZERO, compress };
            let mut log = Rotating::open(&path, rotation.clone()).expect("opened");
            for line in [
                "aaaa\n",
                "bbbb\n",
                "cccc\n",
                "dddd\n",
                "eeee\n",
                "ffff\n",
                "gggg\n",
                "much longer than a file\n",
            ] {
                log.write(line.as_bytes()).expect("written");
            }
            assert_eq!(std::fs::read_to_string(&path).expect("read"), "much longer than a file\n");
            let backups = log.backups().expect("listed");
            assert_eq!(backups.len(), 2);
            let mut text = String::new();
            let file = File::open(&backups[0]).expect("opened");
            if compress {
                flate2::read::GzDecoder::new(file).read_to_string(&mut text).expect("unpacked");
            } else {
                (&file).read_to_string(&mut text).expect("read");
            }
            assert_eq!(text, "gggg\n");
            // Another start goes on where the first ended.
            drop(log);
            let mut log = Rotating::open(&path, rotation).expect("opened");
            log.write(b"hhhh\n").expect("written");
            assert_eq!(std::fs::read_to_string(&path).expect("read"), "hhhh\n");
        }
    }

    #[test]
    fn old_files_go_by_age_and_others_files_stay() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("audit.log");
        let old = dir.path().join("audit-2001-02-03T04-05-06.007.log");
        let strange = dir.path().join("audit-of-mine.log");
        for file in [&old, &strange] {
            let file = File::create(file).expect("made");
            file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000)).expect("dated");
        }
        let rotation = Rotation { size: 4, backups: 0, age: Duration::from_secs(86_400), compress: false };
        let mut log = Rotating::open(&path, rotation).expect("opened");
        for _ in 0..3 {
            log.write(b"abc\n").expect("written");
        }
        assert!(!old.exists() && strange.exists());
        assert_eq!(log.backups().expect("listed").len(), 2);
    }
}
