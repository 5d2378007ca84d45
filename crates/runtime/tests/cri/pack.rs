//! Makes images for tests: OCI documents around one layer that holds the test binary.

use sha2::{Digest, Sha256};

/// `sha256:<hex>` of some bytes.
pub fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect();
    format!("sha256:{hex}")
}

/// An image by its parts: blobs by digest, with the manifest's digest.
pub struct Packed {
    /// Manifest, config and layer.
    pub blobs: Vec<Vec<u8>>,
    /// Of the manifest.
    pub manifest: String,
}

/// Packs the test binary as `/app/<name>` for each name, to be run by `entrypoint`.
pub fn pack(names: &[&str], entrypoint: &[&str]) -> Packed {
    pack_file(&std::fs::read("/proc/self/exe").unwrap(), names, entrypoint)
}

/// Packs any file so.
pub fn pack_file(binary: &[u8], names: &[&str], entrypoint: &[&str]) -> Packed {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(binary.len() as u64);
    header.set_mode(0o755);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    tar.append_data(&mut header, "app/binary", binary).unwrap();
    for name in names {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Link);
        header.set_size(0);
        header.set_mode(0o755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        tar.append_link(&mut header, format!("app/{name}"), "app/binary").unwrap();
    }
    let tar = tar.into_inner().unwrap();
    let layer = zstd::encode_all(&tar[..], 1).unwrap();
    let arch = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let config = serde_json::json!({
        "architecture": arch, "os": "linux",
        "config": {"Entrypoint": entrypoint, "Env": ["PATH=/app"], "User": "7:8"},
        "rootfs": {"type": "layers", "diff_ids": [digest(&tar)]},
    })
    .to_string()
    .into_bytes();
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json",
                   "digest": digest(&config), "size": config.len()},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar+zstd",
                    "digest": digest(&layer), "size": layer.len()}],
    })
    .to_string()
    .into_bytes();
    Packed { manifest: digest(&manifest), blobs: vec![manifest, config, layer] }
}

impl Packed {
    /// As an OCI archive.
    pub fn archive(&self, name: &str) -> Vec<u8> {
        let index = serde_json::json!({
            "schemaVersion": 2,
            "manifests": [{"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": self.manifest,
                           "size": self.blobs[0].len(), "annotations": {"io.containerd.image.name": name}}],
        });
        let mut tar = tar::Builder::new(Vec::new());
        let mut add = |path: &str, bytes: &[u8]| {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, path, bytes).unwrap();
        };
        add("index.json", index.to_string().as_bytes());
        for blob in &self.blobs {
            add(&format!("blobs/sha256/{}", &digest(blob)["sha256:".len()..]), blob);
        }
        tar.into_inner().unwrap()
    }
}
