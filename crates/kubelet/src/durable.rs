//! Small files that a crash of the machine leaves either as they were or as they are to be.

use std::fs::File;
use std::io::Write;
use std::path::Path;

/// Makes `content` the file's whole content. On return it is on the disk, and so is the file's name.
pub(crate) fn write(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let aside = parent.join(name);
    failpoint::step("kubelet.durable.aside");
    let mut file = File::create(&aside)?;
    file.write_all(content)?;
    file.sync_data()?;
    failpoint::step("kubelet.durable.rename");
    std::fs::rename(&aside, path)?;
    File::open(parent)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("a.json");
        for content in ["1", "22"] {
            write(&path, content.as_bytes()).expect("written");
            assert_eq!(std::fs::read_to_string(&path).expect("read"), content);
        }
        assert_eq!(std::fs::read_dir(dir.path()).expect("listed").count(), 1, "nothing is left beside it");
    }
}
