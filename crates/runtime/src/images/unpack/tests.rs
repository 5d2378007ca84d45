use std::os::unix::fs::{FileTypeExt, MetadataExt};

use super::super::content::digest;
use super::*;

struct Layer(tar::Builder<Vec<u8>>);

impl Layer {
    fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    fn entry(mut self, path: &str, kind: EntryType, link: &str, data: &[u8]) -> Self {
        let mut header = tar::Header::new_gnu();
        // The builder's own setters refuse the names that an attacker would write.
        header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
        header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_size(data.len() as u64);
        header.set_mode(0o755);
        header.set_mtime(1000);
        header.set_uid(0);
        header.set_gid(0);
        header.set_device_major(1).unwrap();
        header.set_device_minor(3).unwrap();
        header.set_cksum();
        self.0.append(&header, data).unwrap();
        self
    }

    fn bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

fn run(tar: &[u8], packed: &[u8]) -> (tempfile::TempDir, Result<(), Error>) {
    let dir = tempfile::tempdir().unwrap();
    let blob = dir.path().join("blob");
    std::fs::write(&blob, packed).unwrap();
    let root = dir.path().join("root");
    std::fs::create_dir(&root).unwrap();
    let result = unpack(File::open(&blob).unwrap(), &root, &digest(tar));
    (dir, result)
}

#[test]
fn whiteouts_links_and_devices_become_what_overlayfs_wants() {
    let tar = Layer::new()
        .entry("a/b/file", EntryType::Regular, "", b"hello")
        .entry("a/.wh.gone", EntryType::Regular, "", b"")
        .entry("a/.wh..wh..opq", EntryType::Regular, "", b"")
        .entry("hard", EntryType::Link, "a/b/file", b"")
        .entry("soft", EntryType::Symlink, "/a", b"")
        .entry("null", EntryType::Char, "", b"")
        .bytes();
    let (dir, result) = run(&tar, &tar);
    result.unwrap();
    let root = dir.path().join("root");
    assert_eq!(std::fs::read(root.join("hard")).unwrap(), b"hello");
    assert_eq!(std::fs::metadata(root.join("hard")).unwrap().nlink(), 2);
    let gone = std::fs::symlink_metadata(root.join("a/gone")).unwrap();
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
    assert!(std::fs::symlink_metadata(root.join("null")).unwrap().file_type().is_char_device());
    let mut value = [0; 8];
    let path = CString::new(root.join("a").as_os_str().as_bytes()).unwrap();
    // SAFETY: both strings end with NUL; the buffer's length is given.
    let n = unsafe {
        libc::getxattr(path.as_ptr(), c"trusted.overlay.opaque".as_ptr(), value.as_mut_ptr().cast(), 8)
    };
    assert_eq!(&value[..usize::try_from(n).unwrap()], b"y");
}

#[test]
fn gzip_and_zstd_are_recognized() {
    let tar = Layer::new().entry("x", EntryType::Regular, "", b"1").bytes();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    io::Write::write_all(&mut gzip, &tar).unwrap();
    for packed in [gzip.finish().unwrap(), zstd::encode_all(&tar[..], 1).unwrap()] {
        let (dir, result) = run(&tar, &packed);
        result.unwrap();
        assert!(dir.path().join("root/x").exists());
    }
}

#[test]
fn what_leads_out_is_refused() {
    let file = |l: Layer, path: &str| l.entry(path, EntryType::Regular, "", b"evil").bytes();
    for tar in [
        file(Layer::new(), "../evil"),
        file(Layer::new(), "a/../../evil"),
        file(Layer::new().entry("s", EntryType::Symlink, "/tmp", b""), "s/evil"),
        file(Layer::new().entry("s", EntryType::Symlink, "..", b""), "s/evil"),
        file(Layer::new().entry("s", EntryType::Symlink, "../..", b""), "s/new/evil"),
        Layer::new().entry("h", EntryType::Link, "../blob", b"").bytes(),
        Layer::new().entry(".wh...", EntryType::Regular, "", b"").bytes(),
    ] {
        let (dir, result) = run(&tar, &tar);
        assert!(result.is_err());
        assert!(!dir.path().join("evil").exists());
        assert!(!Path::new("/tmp/evil").exists());
    }
}

#[test]
fn a_truncated_or_wrong_layer_is_refused() {
    let tar = Layer::new().entry("x", EntryType::Regular, "", &[7; 5000]).bytes();
    let (_dir, result) = run(&tar, &tar[..2000]);
    assert!(result.is_err());
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    io::Write::write_all(&mut gzip, &tar).unwrap();
    let packed = gzip.finish().unwrap();
    let (_dir, result) = run(&tar, &packed[..packed.len() - 10]);
    assert!(result.is_err());
    let (_dir, result) = run(b"another", &tar);
    assert!(matches!(result, Err(Error::WrongDigest { .. })));
}

#[test]
fn a_later_entry_replaces_an_earlier_one() {
    let tar = Layer::new()
        .entry("s", EntryType::Symlink, "/etc/passwd", b"")
        .entry("s", EntryType::Regular, "", b"mine")
        .bytes();
    let (dir, result) = run(&tar, &tar);
    result.unwrap();
    assert_eq!(std::fs::read(dir.path().join("root/s")).unwrap(), b"mine");
}
