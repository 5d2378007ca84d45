//! The OCI image documents, as far as the runtime reads them. Docker's schema 2 documents have the same fields.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The largest manifest, index or config that is read.
pub const MAX_DOCUMENT: u64 = 8 << 20;

/// Media types of manifests that are asked for.
pub const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

/// Points to content.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What it is.
    #[serde(default)]
    pub media_type: String,
    /// Its name.
    pub digest: String,
    /// Its length.
    #[serde(default)]
    pub size: u64,
    /// What machine it is for; only in an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Free notes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// A machine.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Platform {
    /// In Go's spelling.
    #[serde(default)]
    pub architecture: String,
    /// In Go's spelling.
    #[serde(default)]
    pub os: String,
    /// As `v8`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub variant: String,
}

/// An image manifest, or an index when it has `manifests`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// 2.
    #[serde(default)]
    pub schema_version: u32,
    /// What it is.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub media_type: String,
    /// The image's config.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<Descriptor>,
    /// The image's layers, the lowest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<Descriptor>,
    /// The images of an index.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub manifests: Vec<Descriptor>,
}

/// An image's config.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ImageConfig {
    /// In Go's spelling.
    #[serde(default)]
    pub architecture: String,
    /// In Go's spelling.
    #[serde(default)]
    pub os: String,
    /// How to run it.
    #[serde(default)]
    pub config: RunConfig,
    /// What its layers are.
    #[serde(default)]
    pub rootfs: RootFs,
}

/// How to run an image.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct RunConfig {
    /// `user[:group]`, by name or number.
    #[serde(default, deserialize_with = "or_default")]
    pub user: String,
    /// `name=value`.
    #[serde(default, deserialize_with = "or_default")]
    pub env: Vec<String>,
    /// First words of the command.
    #[serde(default, deserialize_with = "or_default")]
    pub entrypoint: Vec<String>,
    /// Further words.
    #[serde(default, deserialize_with = "or_default")]
    pub cmd: Vec<String>,
    /// Where it starts.
    #[serde(default, deserialize_with = "or_default")]
    pub working_dir: String,
    /// By name or number.
    #[serde(default, deserialize_with = "or_default")]
    pub stop_signal: String,
    /// Paths that hold data.
    #[serde(default, deserialize_with = "or_default")]
    pub volumes: BTreeMap<String, serde_json::Value>,
}

/// What an image's layers are.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct RootFs {
    /// Digests of the layers' tar streams, the lowest first.
    #[serde(default)]
    pub diff_ids: Vec<String>,
}

/// Go writes an empty list as `null`.
fn or_default<'de, D: serde::Deserializer<'de>, T: Default + Deserialize<'de>>(
    from: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// Whether a config of this type says how to run an image. Docker's early ones have none.
pub fn is_image_config(media_type: &str) -> bool {
    matches!(
        media_type,
        "" | "application/octet-stream"
            | "application/vnd.oci.image.config.v1+json"
            | "application/vnd.docker.container.image.v1+json"
    )
}

/// This machine's architecture in Go's spelling.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        other => other,
    }
}

impl Manifest {
    /// The entry of an index that this machine runs.
    pub fn choose(&self) -> Option<&Descriptor> {
        let fits = |d: &&Descriptor| {
            d.platform.as_ref().is_none_or(|p| p.os == "linux" && p.architecture == architecture())
        };
        let exact = |d: &&Descriptor| d.platform.is_some() && fits(d);
        self.manifests.iter().find(exact).or_else(|| self.manifests.iter().find(fits))
    }
}
