//! The content store: blobs by their SHA-256, written so that a blob with its final name is always whole.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

use failpoint::step;
use sha2::{Digest, Sha256};

use super::Error;
use super::reference::is_digest;

/// Blobs below one directory: `blobs/sha256/<hex>`, and `ingest/` for those still coming in.
#[derive(Debug, Clone)]
pub struct Content {
    blobs: PathBuf,
    ingest: PathBuf,
}

impl Content {
    /// Opens the store, making its directories.
    pub fn open(root: &Path) -> Result<Self, Error> {
        let content = Self { blobs: root.join("blobs/sha256"), ingest: root.join("ingest") };
        for dir in [&content.blobs, &content.ingest] {
            std::fs::create_dir_all(dir).map_err(|e| Error::io("make", dir, e))?;
        }
        Ok(content)
    }

    /// Where a blob is or would be.
    pub fn path(&self, digest: &str) -> Result<PathBuf, Error> {
        // The digest becomes a file name: nothing else may pass.
        if !is_digest(digest) {
            return Err(Error::Unsupported(format!("digest {digest:?}")));
        }
        Ok(self.blobs.join(&digest["sha256:".len()..]))
    }

    /// Whether a blob is there.
    pub fn has(&self, digest: &str) -> bool {
        self.path(digest).is_ok_and(|p| p.is_file())
    }

    /// Reads a small blob whole, at most `limit` bytes.
    pub fn read(&self, digest: &str, limit: u64) -> Result<Vec<u8>, Error> {
        let path = self.path(digest)?;
        let file = File::open(&path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => Error::MissingBlob(digest.to_owned()),
            _ => Error::io("open", &path, e),
        })?;
        let mut bytes = Vec::new();
        file.take(limit + 1).read_to_end(&mut bytes).map_err(|e| Error::io("read", &path, e))?;
        if bytes.len() as u64 > limit {
            return Err(Error::TooLarge { what: "document", limit });
        }
        Ok(bytes)
    }

    /// Opens a blob for reading.
    pub fn open_blob(&self, digest: &str) -> Result<File, Error> {
        let path = self.path(digest)?;
        File::open(&path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => Error::MissingBlob(digest.to_owned()),
            _ => Error::io("open", &path, e),
        })
    }

    /// Starts a blob of known digest, going on where an earlier attempt stopped.
    pub fn writer(&self, digest: &str) -> Result<Writer, Error> {
        let path = self.ingest.join(self.path(digest)?.file_name().unwrap_or_default());
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(|e| Error::io("open", &path, e))?;
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; 256 << 10];
        let mut length = 0;
        loop {
            let n = file.read(&mut buffer).map_err(|e| Error::io("read", &path, e))?;
            if n == 0 {
                break;
            }
            hasher.update(&buffer[..n]);
            length += n as u64;
        }
        Ok(Writer { content: self.clone(), path, file, hasher, length, expect: Some(digest.to_owned()) })
    }

    /// Starts a blob whose digest is not known.
    pub fn anonymous(&self) -> Result<Writer, Error> {
        let path = self.ingest.join(format!("new-{}", uuid::Uuid::new_v4().simple()));
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(|e| Error::io("create", &path, e))?;
        Ok(Writer { content: self.clone(), path, file, hasher: Sha256::new(), length: 0, expect: None })
    }

    /// Stores a small document and gives its digest.
    pub fn put(&self, bytes: &[u8]) -> Result<String, Error> {
        let digest = digest(bytes);
        if !self.has(&digest) {
            let mut writer = self.anonymous()?;
            writer.write(bytes)?;
            writer.commit()?;
        }
        Ok(digest)
    }

    /// The digests of all blobs.
    pub fn list(&self) -> Result<Vec<String>, Error> {
        let entries = std::fs::read_dir(&self.blobs).map_err(|e| Error::io("list", &self.blobs, e))?;
        Ok(entries.flatten().map(|e| format!("sha256:{}", e.file_name().to_string_lossy())).collect())
    }

    /// Removes a blob; a missing one is fine.
    pub fn remove(&self, digest: &str) -> Result<(), Error> {
        let path = self.path(digest)?;
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", &path, e)),
            _ => Ok(()),
        }
    }

    /// Removes what half-done imports left; half-done pulls stay, to be resumed, unless they are older than a day.
    pub fn clean_ingest(&self) {
        for entry in std::fs::read_dir(&self.ingest).into_iter().flatten().flatten() {
            let old = || {
                let age = entry.metadata().ok()?.modified().ok()?.elapsed().ok()?;
                Some(age.as_secs() > 86_400)
            };
            if entry.file_name().to_string_lossy().starts_with("new-") || old().unwrap_or(false) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }

    /// Reads a blob again and tells whether it is what its name says.
    pub fn verify(&self, digest: &str) -> Result<(), Error> {
        let mut file = self.open_blob(digest)?;
        let mut hasher = Sha256::new();
        io::copy(&mut file, &mut hasher).map_err(|e| Error::io("read", Path::new(digest), e))?;
        let actual = format!("sha256:{}", hex(&hasher.finalize()));
        if actual == digest {
            Ok(())
        } else {
            Err(Error::WrongDigest { expected: digest.to_owned(), actual })
        }
    }
}

/// A blob coming in. Dropped before [`Writer::commit`], one of known digest stays to be resumed, another goes.
pub struct Writer {
    content: Content,
    path: PathBuf,
    file: File,
    hasher: Sha256,
    length: u64,
    expect: Option<String>,
}

impl Writer {
    /// How much is there.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Appends.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.file.write_all(bytes).map_err(|e| Error::io("write", &self.path, e))?;
        self.hasher.update(bytes);
        self.length += bytes.len() as u64;
        Ok(())
    }

    /// The digest of what is there.
    pub fn digest(&self) -> String {
        format!("sha256:{}", hex(&self.hasher.clone().finalize()))
    }

    /// Starts again from nothing.
    pub fn restart(&mut self) -> Result<(), Error> {
        let failed = |e| Error::io("truncate", &self.path, e);
        self.file.set_len(0).map_err(failed)?;
        self.file.rewind().map_err(failed)?;
        self.hasher = Sha256::new();
        self.length = 0;
        Ok(())
    }

    /// Makes the blob durable under its digest, which it gives; one with the wrong digest is removed.
    pub fn commit(mut self) -> Result<String, Error> {
        let actual = format!("sha256:{}", hex(&std::mem::take(&mut self.hasher).finalize()));
        if let Some(expected) = self.expect.take().filter(|e| *e != actual) {
            // Without an expectation `drop` removes it, so that nobody goes on from wrong content.
            return Err(Error::WrongDigest { expected, actual });
        }
        step("image.blob.sync");
        self.file.sync_all().map_err(|e| Error::io("sync", &self.path, e))?;
        let to = self.content.path(&actual)?;
        step("image.blob.rename");
        std::fs::rename(&self.path, &to).map_err(|e| Error::io("rename", &to, e))?;
        sync_dir(&self.content.blobs)?;
        step("image.blob.done");
        // Nothing is left under the temporary name for `drop` to remove.
        Ok(actual)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if self.expect.is_none() {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Makes changes of a directory's entries durable.
pub fn sync_dir(dir: &Path) -> Result<(), Error> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(|e| Error::io("sync", dir, e))
}

/// Replaces a file by new content in one step, durably.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let temporary = path.with_extension("new");
    let write = || {
        let mut file = File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        step("image.file.rename");
        std::fs::rename(&temporary, path)
    };
    write().map_err(|e| Error::io("write", path, e))?;
    match path.parent() {
        Some(dir) => sync_dir(dir),
        None => Ok(()),
    }
}

/// The digest of bytes in memory.
pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(bytes)))
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_is_there_only_when_it_is_whole_and_right() {
        let dir = tempfile::tempdir().unwrap();
        let content = Content::open(dir.path()).unwrap();
        let expected = digest(b"hello");
        let mut writer = content.writer(&expected).unwrap();
        writer.write(b"hel").unwrap();
        drop(writer);
        assert!(!content.has(&expected));
        let mut writer = content.writer(&expected).unwrap();
        assert_eq!(writer.length(), 3);
        writer.write(b"lo").unwrap();
        assert_eq!(writer.commit().unwrap(), expected);
        content.verify(&expected).unwrap();

        let other = digest(b"other");
        let mut writer = content.writer(&other).unwrap();
        writer.write(b"not it").unwrap();
        assert!(matches!(writer.commit(), Err(Error::WrongDigest { .. })));
        assert!(!content.has(&other));
        assert_eq!(std::fs::read_dir(dir.path().join("ingest")).unwrap().count(), 0);
    }

    #[test]
    fn a_digest_cannot_name_another_file() {
        let dir = tempfile::tempdir().unwrap();
        let content = Content::open(dir.path()).unwrap();
        assert!(content.path("sha256:../../etc/passwd").is_err());
    }
}
