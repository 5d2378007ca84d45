//! Images: what is stored, by which names, and which layers they are made of.

mod archive;
mod auth;
pub mod content;
mod error;
mod hosts;
pub mod layers;
pub mod manifest;
mod policy;
mod pull;
pub mod reference;
mod registry;
mod toolbox;
mod unpack;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use failpoint::step;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use content::{Content, replace};
pub use error::Error;
use layers::Layers;
use manifest::{Descriptor, ImageConfig, MAX_DOCUMENT, Manifest};
pub use pull::Credentials;
use reference::Reference;
pub use registry::RegistryConfig;

/// An image that is stored whole, with its layers unpacked.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Image {
    /// The digest of its config, which is its name for CRI.
    pub id: String,
    /// The digest of its manifest.
    pub manifest: String,
    /// `domain/path:tag`.
    pub tags: BTreeSet<String>,
    /// `domain/path@digest`.
    pub digests: BTreeSet<String>,
    /// Bytes of its blobs.
    pub size: u64,
    /// Keys of its layers, the uppermost first.
    pub layers: Vec<String>,
    /// Never collected.
    #[serde(default)]
    pub pinned: bool,
    /// How to run it.
    pub config: manifest::RunConfig,
}

/// All images of this runtime.
pub struct Images {
    /// Blobs.
    pub content: Content,
    /// Unpacked layers.
    pub layers: Layers,
    path: PathBuf,
    records: Mutex<BTreeMap<String, Arc<Image>>>,
    registry: RegistryConfig,
    /// Held for reading while content comes in that no record names yet, for writing while garbage is removed.
    collecting: tokio::sync::RwLock<()>,
    /// Bounds downloads of layers over all pulls.
    downloads: tokio::sync::Semaphore,
    /// Pulls of the same image wait for each other, and find it done.
    pulls: Gates,
    /// Pulls of different images share layers; a blob comes in once.
    blobs: Gates,
}

/// Locks by name, kept while anybody holds or awaits them.
#[derive(Default)]
struct Gates(Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<()>>>>);

impl Gates {
    async fn enter(&self, name: &str) -> tokio::sync::OwnedMutexGuard<()> {
        let gate = {
            let mut gates = self.0.lock();
            gates.retain(|_, gate| Arc::strong_count(gate) > 1);
            gates.entry(name.to_owned()).or_default().clone()
        };
        gate.lock_owned().await
    }
}

impl Images {
    /// Opens the store below `root`.
    pub fn open(root: &Path, registry: RegistryConfig) -> Result<Self, Error> {
        let content = Content::open(root)?;
        content.clean_ingest();
        let layers = Layers::open(root)?;
        let path = root.join("images.json");
        let records: Vec<Image> = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(Error::json("images.json"))?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(Error::io("read", &path, e)),
        };
        let records = records.into_iter().map(|i| (i.id.clone(), Arc::new(i))).collect();
        Ok(Self {
            content,
            layers,
            path,
            records: Mutex::new(records),
            downloads: tokio::sync::Semaphore::new(registry.parallel_downloads.max(1)),
            registry,
            collecting: tokio::sync::RwLock::new(()),
            pulls: Gates::default(),
            blobs: Gates::default(),
        })
    }

    /// All images.
    pub fn list(&self) -> Vec<Arc<Image>> {
        self.records.lock().values().cloned().collect()
    }

    /// Finds an image by id, by the start of its id, or by any name.
    pub fn get(&self, name: &str) -> Option<Arc<Image>> {
        let records = self.records.lock();
        let bare = name.strip_prefix("sha256:").unwrap_or(name);
        if bare.len() == 64
            && let Some(image) = records.get(&format!("sha256:{bare}"))
        {
            return Some(image.clone());
        }
        if let Ok(reference) = Reference::parse(name) {
            let full = reference.to_string();
            if let Some(image) =
                records.values().find(|i| i.tags.contains(&full) || i.digests.contains(&full))
            {
                return Some(image.clone());
            }
        }
        let hex = bare.len() >= 6 && bare.bytes().all(|b| b.is_ascii_hexdigit());
        let mut found = records.values().filter(|i| hex && i.id["sha256:".len()..].starts_with(bare));
        match (found.next(), found.next()) {
            (Some(image), None) => Some(image.clone()),
            _ => None,
        }
    }

    /// The whole config document.
    pub fn config(&self, image: &Image) -> Result<ImageConfig, Error> {
        let bytes = self.content.read(&image.id, MAX_DOCUMENT)?;
        serde_json::from_slice(&bytes).map_err(Error::json("image config"))
    }

    /// Records an image whose blobs and layers are there. A name that another image has moves to this one.
    fn record(
        &self,
        manifest_digest: &str,
        manifest: &Manifest,
        config: ImageConfig,
        tags: &[String],
        digests: &[String],
    ) -> Result<Arc<Image>, Error> {
        let id = manifest.config.as_ref().map(|c| c.digest.clone()).unwrap_or_default();
        let layers: Vec<String> = config.rootfs.diff_ids.iter().rev().map(|d| Layers::key(d)).collect();
        let size = manifest.layers.iter().map(|l| l.size).sum::<u64>()
            + manifest.config.as_ref().map_or(0, |c| c.size);
        self.insert(Image {
            id,
            manifest: manifest_digest.to_owned(),
            tags: tags.iter().cloned().collect(),
            digests: digests.iter().cloned().collect(),
            size,
            layers,
            pinned: false,
            config: config.config,
        })
    }

    fn insert(&self, mut image: Image) -> Result<Arc<Image>, Error> {
        let mut records = self.records.lock();
        let mut next = records.clone();
        for other in next.values_mut().filter(|o| o.id != image.id) {
            if other.tags.iter().any(|t| image.tags.contains(t)) {
                let mut changed = (**other).clone();
                changed.tags.retain(|t| !image.tags.contains(t));
                *other = Arc::new(changed);
            }
        }
        if let Some(old) = next.get(&image.id) {
            image.tags.extend(old.tags.iter().cloned());
            image.digests.extend(old.digests.iter().cloned());
            image.pinned |= old.pinned;
        }
        let image = Arc::new(image);
        next.insert(image.id.clone(), image.clone());
        step("image.record.write");
        self.save(&next)?;
        *records = next;
        step("image.record.done");
        Ok(image)
    }

    fn save(&self, records: &BTreeMap<String, Arc<Image>>) -> Result<(), Error> {
        let list: Vec<&Image> = records.values().map(|i| &**i).collect();
        replace(&self.path, &serde_json::to_vec(&list).map_err(Error::json("image records"))?)
    }

    /// Gives an image one more name.
    pub fn tag(&self, image: &str, name: &str) -> Result<(), Error> {
        let image = self.get(image).ok_or_else(|| Error::NotFound(image.to_owned()))?;
        let mut changed = (*image).clone();
        changed.tags = BTreeSet::from([Reference::parse(name)?.to_string()]);
        self.insert(changed).map(|_| ())
    }

    /// Removes an image: by id with all its names, by a name only that one while others are left. Missing ones are fine.
    /// `used` are the keys of layers that containers need.
    pub async fn remove(&self, name: &str, used: &BTreeSet<String>) -> Result<(), Error> {
        let Some(image) = self.get(name) else { return Ok(()) };
        {
            let mut records = self.records.lock();
            let mut next = records.clone();
            let mut changed = (*image).clone();
            if let Ok(reference) = Reference::parse(name) {
                let full = reference.to_string();
                changed.tags.remove(&full);
                changed.digests.remove(&full);
            }
            let by_id = image.id == name || image.id["sha256:".len()..] == *name;
            let untouched = changed.tags == image.tags && changed.digests == image.digests;
            if by_id || untouched || changed.tags.is_empty() {
                next.remove(&image.id);
            } else {
                next.insert(image.id.clone(), Arc::new(changed));
            }
            step("image.remove.record");
            self.save(&next)?;
            *records = next;
        }
        step("image.remove.content");
        self.collect(used).await
    }

    /// Removes blobs and layers that neither an image nor a container needs.
    pub async fn collect(&self, used: &BTreeSet<String>) -> Result<(), Error> {
        // Whoever holds the lock may be adding content that nothing names yet.
        let _exclusive = self.collecting.write().await;
        let mut layers = used.clone();
        let mut blobs = BTreeSet::new();
        for image in self.list() {
            layers.extend(image.layers.iter().cloned());
            blobs.insert(image.id.clone());
            blobs.insert(image.manifest.clone());
            if let Ok((manifest, _)) = self.documents(&image) {
                blobs.extend(manifest.config.into_iter().chain(manifest.layers).map(|l| l.digest));
            }
        }
        let (content, store) = (self.content.clone(), self.layers.clone());
        blocking(move || {
            for digest in content.list()?.into_iter().filter(|d| !blobs.contains(d)) {
                step("image.collect.blob");
                content.remove(&digest)?;
            }
            for key in store.names()?.filter(|k| !layers.contains(k)) {
                step("image.collect.layer");
                store.remove(&key)?;
            }
            Ok(())
        })
        .await
    }

    /// An image's manifest, parsed and as it is.
    pub fn documents(&self, image: &Image) -> Result<(Manifest, Vec<u8>), Error> {
        let bytes = self.content.read(&image.manifest, MAX_DOCUMENT)?;
        let manifest = serde_json::from_slice(&bytes).map_err(Error::json("manifest"))?;
        Ok((manifest, bytes))
    }

    /// Reads manifest and config from the content store, unpacks all layers and records the image.
    async fn finish(&self, digest: &str, tags: &[String], digests: &[String]) -> Result<Arc<Image>, Error> {
        let manifest: Manifest = serde_json::from_slice(&self.content.read(digest, MAX_DOCUMENT)?)
            .map_err(Error::json("manifest"))?;
        let config =
            manifest.config.as_ref().ok_or_else(|| Error::invalid("manifest", "it has no config"))?;
        if !manifest::is_image_config(&config.media_type) {
            return self.finish_artifact(digest, manifest, tags, digests).await;
        }
        let config: ImageConfig = serde_json::from_slice(&self.content.read(&config.digest, MAX_DOCUMENT)?)
            .map_err(Error::json("image config"))?;
        let diff_ids = &config.rootfs.diff_ids;
        if diff_ids.len() != manifest.layers.len() || !diff_ids.iter().all(|d| reference::is_digest(d)) {
            return Err(Error::invalid("image config", "its diff_ids do not match the manifest's layers"));
        }
        if config.os != "linux" && !config.os.is_empty() {
            return Err(Error::Unsupported(format!("operating system {:?}", config.os)));
        }
        let work: Vec<(Descriptor, String)> =
            manifest.layers.iter().cloned().zip(diff_ids.iter().cloned()).collect();
        for (layer, diff_id) in work {
            let (content, layers) = (self.content.clone(), self.layers.clone());
            blocking(move || layers.unpack(&content, &layer, &diff_id)).await?;
        }
        self.record(digest, &manifest, config, tags, digests)
    }

    /// Records content that is no image: its blobs become files, to be mounted as a volume.
    async fn finish_artifact(
        &self,
        digest: &str,
        manifest: Manifest,
        tags: &[String],
        digests: &[String],
    ) -> Result<Arc<Image>, Error> {
        let key = Layers::key(digest);
        let size = manifest.layers.iter().map(|l| l.size).sum();
        let (content, layers, name) = (self.content.clone(), self.layers.clone(), key.clone());
        blocking(move || layers.lay_out(&content, &name, &manifest.layers)).await?;
        self.insert(Image {
            // Many artifacts share one empty config, so that their manifest tells them apart.
            id: digest.to_owned(),
            manifest: digest.to_owned(),
            tags: tags.iter().cloned().collect(),
            digests: digests.iter().cloned().collect(),
            size,
            layers: vec![key],
            pinned: false,
            config: manifest::RunConfig::default(),
        })
    }

    /// Reads every blob of the images again. Blocks.
    pub fn verify(&self, names: &[String]) -> Result<(u64, Vec<String>), Error> {
        let images = if names.is_empty() {
            self.list()
        } else {
            let find = |n: &String| self.get(n).ok_or_else(|| Error::NotFound(n.clone()));
            names.iter().map(find).collect::<Result<_, _>>()?
        };
        let mut blobs = BTreeSet::new();
        let mut problems = Vec::new();
        for image in images {
            if image.tags.contains(toolbox::NAME) {
                continue;
            }
            blobs.extend([image.id.clone(), image.manifest.clone()]);
            match self.documents(&image) {
                Ok((manifest, _)) => blobs.extend(manifest.layers.into_iter().map(|l| l.digest)),
                Err(e) => problems.push(format!("{}: {e}", image.manifest)),
            }
            problems.extend(
                image
                    .layers
                    .iter()
                    .filter(|l| !self.layers.has(l))
                    .map(|l| format!("layer {l} is not unpacked")),
            );
        }
        problems
            .extend(blobs.iter().filter_map(|b| self.content.verify(b).err().map(|e| format!("{b}: {e}"))));
        Ok((blobs.len() as u64, problems))
    }
}

/// Runs file work where it may block.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::invalid("task", error.to_string())),
    }
}
