//! The built-in image: the running binary itself, with a link for each of its tools.
//!
//! Its layer is made from `/proc/self/exe` and so never downloaded. Its digests stand for the binary's identity (size,
//! time, inode), since hashing the binary at each start would cost more than the rest of the start.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;

use super::layers::Layers;
use super::manifest::{Descriptor, ImageConfig, Manifest, RootFs, RunConfig, architecture};
use super::{Error, Image, Images, content};

/// Its full name.
pub const NAME: &str = "carrack.dev/toolbox:latest";

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n";
const GROUP: &str = "root:x:0:\nnogroup:x:65534:\n";
const NSSWITCH: &str = "passwd: files\ngroup: files\nhosts: files dns\n";

impl Images {
    /// Makes the image unless the one there is of this very binary. Blocks.
    pub fn ensure_toolbox(&self, applets: &[&str]) -> Result<Arc<Image>, Error> {
        let exe = Path::new("/proc/self/exe");
        let metadata = std::fs::metadata(exe).map_err(|e| Error::io("read", exe, e))?;
        let identity = format!(
            "toolbox {} {} {} {} {}",
            metadata.len(),
            metadata.mtime(),
            metadata.mtime_nsec(),
            metadata.ino(),
            applets.join(" ")
        );
        let diff_id = content::digest(identity.as_bytes());
        let key = Layers::key(&diff_id);
        if let Some(image) = self.get(NAME).filter(|i| i.layers == [key.clone()] && self.layers.has(&key)) {
            return Ok(image);
        }
        if !self.layers.has(&key) {
            self.layers.build(&key, |dir| fill(dir, exe, applets).map_err(|e| Error::io("fill", dir, e)))?;
        }
        let config = ImageConfig {
            architecture: architecture().into(),
            os: "linux".into(),
            config: RunConfig {
                env: vec!["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into()],
                entrypoint: vec!["/bin/toolbox".into()],
                working_dir: "/".into(),
                ..RunConfig::default()
            },
            rootfs: RootFs { diff_ids: vec![diff_id.clone()] },
        };
        let bytes = serde_json::to_vec(&config).map_err(Error::json("image config"))?;
        let id = self.content.put(&bytes)?;
        let manifest = Manifest {
            schema_version: 2,
            media_type: "application/vnd.oci.image.manifest.v1+json".into(),
            config: Some(Descriptor {
                media_type: "application/vnd.oci.image.config.v1+json".into(),
                digest: id.clone(),
                size: bytes.len() as u64,
                ..Descriptor::default()
            }),
            layers: Vec::new(),
            manifests: Vec::new(),
        };
        let manifest = self.content.put(&serde_json::to_vec(&manifest).map_err(Error::json("manifest"))?)?;
        let repository = NAME.rsplit_once(':').map_or(NAME, |(r, _)| r);
        self.insert(Image {
            id,
            digests: [format!("{repository}@{manifest}")].into(),
            manifest,
            tags: [NAME.to_owned()].into(),
            size: metadata.len(),
            layers: vec![key],
            pinned: true,
            config: config.config,
        })
    }
}

fn fill(root: &Path, exe: &Path, applets: &[&str]) -> std::io::Result<()> {
    for dir in ["bin", "etc", "root", "tmp", "usr", "var", "proc", "sys", "dev", "run"] {
        std::fs::create_dir(root.join(dir))?;
    }
    std::fs::set_permissions(root, PermissionsExt::from_mode(0o755))?;
    std::fs::set_permissions(root.join("tmp"), PermissionsExt::from_mode(0o1777))?;
    std::fs::set_permissions(root.join("root"), PermissionsExt::from_mode(0o700))?;
    for (name, text) in [("passwd", PASSWD), ("group", GROUP), ("nsswitch.conf", NSSWITCH)] {
        std::fs::write(root.join("etc").join(name), text)?;
    }
    for dir in ["sbin", "usr/bin", "usr/sbin"] {
        symlink("/bin", root.join(dir))?;
    }
    let to = root.join("carrack");
    // On one filesystem a link costs nothing; the binary cannot be written while it runs.
    let real = std::fs::read_link(exe)?;
    if std::fs::hard_link(&real, &to).is_err() {
        std::fs::copy(exe, &to)?;
        std::fs::set_permissions(&to, PermissionsExt::from_mode(0o755))?;
    }
    for name in applets.iter().copied().chain(["toolbox"]) {
        let link = root.join("bin").join(name);
        if !name.contains('/') && std::fs::symlink_metadata(&link).is_err() {
            symlink("/carrack", link)?;
        }
    }
    Ok(())
}
