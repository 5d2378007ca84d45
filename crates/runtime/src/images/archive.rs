//! Image archives: reads OCI layouts and `docker save` files, writes one file that is both.
//!
//! An archive is outside input: only blobs whose content has the digest in their name are taken, names are looked up in
//! memory and never become paths, and an import that fails removes what it brought.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::content::Content;
use super::manifest::{Descriptor, MAX_DOCUMENT, Manifest};
use super::reference::{Reference, is_digest};
use super::unpack::decompress;
use super::{Error, Image, Images, blocking, content, toolbox};

const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const REF_NAME: &str = "org.opencontainers.image.ref.name";
const IMAGE_NAME: &str = "io.containerd.image.name";
/// More entries than any image has.
const MAX_ENTRIES: usize = 100_000;

/// One image of a `docker save` file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Vec<String>,
}

/// Manifest digests with the images' names.
type Found = Vec<(String, Vec<String>)>;

impl Images {
    /// Imports the archive in `file`. `name` is used for an image that the archive does not name.
    pub async fn import(&self, file: File, name: &str) -> Result<Vec<Arc<Image>>, Error> {
        let _shared = self.collecting.read().await;
        let content = self.content.clone();
        let name = name.to_owned();
        let mut added = Vec::new();
        let result = async {
            let (result, new) = blocking(move || Ok(read_archive(&content, file, &name))).await?;
            added = new;
            let mut images = Vec::new();
            for (digest, names) in result? {
                let tags = names.iter().map(|n| Reference::parse(n).map(|r| r.to_string()));
                let tags = tags.collect::<Result<Vec<_>, _>>()?;
                images.push(self.finish(&digest, &tags, &[]).await?);
            }
            Ok(images)
        }
        .await;
        if result.is_err() {
            for digest in &added {
                let _ = self.content.remove(digest);
            }
        }
        result
    }

    /// Writes an archive with `names` to `out`. Blocks.
    pub fn export(&self, names: &[String], out: &mut dyn Write) -> Result<(), Error> {
        let broken = |e: io::Error| Error::io("write", Path::new("archive"), e);
        let mut tar = tar::Builder::new(out);
        let mut index = Manifest { schema_version: 2, ..Manifest::default() };
        let mut docker = Vec::new();
        let mut blobs = BTreeMap::new();
        for name in names {
            let image = self.get(name).ok_or_else(|| Error::NotFound(name.clone()))?;
            if image.tags.contains(toolbox::NAME) {
                return Err(Error::Unsupported("export of the built-in toolbox image".into()));
            }
            let (manifest, bytes) = self.documents(&image)?;
            let tag = Reference::parse(name).ok().map(|r| r.to_string());
            let tag = tag.filter(|t| image.tags.contains(t)).or_else(|| image.tags.first().cloned());
            let mut annotations = BTreeMap::new();
            if let Some(tag) = &tag {
                annotations.insert(IMAGE_NAME.to_owned(), tag.clone());
                let short = tag.rsplit_once(':').map_or(tag.as_str(), |(_, t)| t);
                annotations.insert(REF_NAME.to_owned(), short.to_owned());
            }
            index.manifests.push(Descriptor {
                media_type: if manifest.media_type.is_empty() {
                    OCI_MANIFEST.into()
                } else {
                    manifest.media_type.clone()
                },
                digest: image.manifest.clone(),
                size: bytes.len() as u64,
                platform: None,
                annotations,
            });
            let path = |digest: &str| format!("blobs/sha256/{}", &digest["sha256:".len()..]);
            docker.push(DockerImage {
                config: path(&image.id),
                repo_tags: Some(tag.into_iter().collect()),
                layers: manifest.layers.iter().map(|l| path(&l.digest)).collect(),
            });
            let digests = manifest.layers.iter().map(|l| &l.digest).chain([&image.id, &image.manifest]);
            blobs.extend(digests.map(|d| (d.clone(), path(d))));
        }
        let mut document = |path: &str, bytes: &[u8]| {
            let mut header = tar::Header::new_ustar();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, path, bytes).map_err(broken)
        };
        document("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        document("index.json", &serde_json::to_vec(&index).map_err(Error::json("index"))?)?;
        document("manifest.json", &serde_json::to_vec(&docker).map_err(Error::json("manifest"))?)?;
        for (digest, path) in blobs {
            let file = self.content.open_blob(&digest)?;
            let mut header = tar::Header::new_gnu();
            header.set_size(file.metadata().map_err(broken)?.len());
            header.set_mode(0o644);
            tar.append_data(&mut header, &path, file).map_err(broken)?;
        }
        tar.into_inner().and_then(|out| out.flush()).map_err(broken)
    }
}

/// Takes in all blobs, then finds out what the archive's images are.
fn read_archive(content: &Content, file: File, name: &str) -> (Result<Found, Error>, Vec<String>) {
    let mut added = Vec::new();
    let result = take_in(content, file, name, &mut added);
    (result, added)
}

fn take_in(content: &Content, file: File, name: &str, added: &mut Vec<String>) -> Result<Found, Error> {
    let broken = |e: io::Error| Error::invalid("archive", e.to_string());
    let mut archive = tar::Archive::new(decompress(file)?);
    let mut index = None;
    let mut docker = None;
    // What each entry holds, for `docker save` files that name layers by path.
    let mut entries: BTreeMap<String, String> = BTreeMap::new();
    let mut links: Vec<(String, String)> = Vec::new();
    for entry in archive.entries().map_err(broken)? {
        let mut entry = entry.map_err(broken)?;
        let path = entry.path().map_err(broken)?.to_string_lossy().trim_start_matches("./").to_owned();
        if entries.len() + links.len() > MAX_ENTRIES {
            return Err(Error::invalid("archive", "it has too many entries"));
        }
        if path.split('/').any(|part| part == "..") {
            return Err(Error::invalid("archive", format!("{path} leads out of it")));
        }
        let kind = entry.header().entry_type();
        if kind.is_symlink() || kind.is_hard_link() {
            let target =
                entry.link_name().map_err(broken)?.unwrap_or_default().to_string_lossy().into_owned();
            links.push((path, target));
            continue;
        }
        if !kind.is_file() {
            continue;
        }
        match path.as_str() {
            "oci-layout" | "repositories" => {}
            "index.json" => index = Some(small(&mut entry)?),
            "manifest.json" => docker = Some(small(&mut entry)?),
            _ => {
                let digest = blob(content, &path, &mut entry, added)?;
                entries.insert(path, digest);
            }
        }
    }
    for (from, to) in links {
        // Old `docker save` files link equal layers: `../<other>/layer.tar`.
        let base = Path::new(&from).parent().unwrap_or(Path::new(""));
        let mut target = Vec::new();
        for part in base.join(&to).components() {
            match part {
                std::path::Component::Normal(p) => target.push(p.to_string_lossy().into_owned()),
                std::path::Component::ParentDir => {
                    if target.pop().is_none() {
                        return Err(Error::invalid("archive", format!("{from} links out of it")));
                    }
                }
                std::path::Component::CurDir => {}
                _ => return Err(Error::invalid("archive", format!("{from} links out of it"))),
            }
        }
        if let Some(digest) = entries.get(&target.join("/")).cloned() {
            entries.insert(from, digest);
        }
    }
    let found = match (index, docker) {
        (Some(index), _) => from_index(content, &index, name)?,
        (None, Some(docker)) => from_docker(content, &docker, &entries, name, added)?,
        (None, None) => {
            return Err(Error::invalid(
                "archive",
                "it has neither index.json nor manifest.json: not an image archive",
            ));
        }
    };
    if found.is_empty() {
        return Err(Error::NoPlatform(super::manifest::architecture()));
    }
    Ok(found)
}

fn small(entry: &mut impl Read) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    entry
        .take(MAX_DOCUMENT + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| Error::invalid("archive", e.to_string()))?;
    if bytes.len() as u64 > MAX_DOCUMENT {
        return Err(Error::TooLarge { what: "document", limit: MAX_DOCUMENT });
    }
    Ok(bytes)
}

fn blob<R: Read>(
    content: &Content,
    path: &str,
    entry: &mut tar::Entry<'_, R>,
    added: &mut Vec<String>,
) -> Result<String, Error> {
    let named = path.strip_prefix("blobs/sha256/").map(|hex| format!("sha256:{hex}"));
    if named.as_deref().is_some_and(|d| !is_digest(d)) {
        return Err(Error::invalid("archive", format!("{path} is not named by a digest")));
    }
    let size = entry.size();
    let mut writer = content.anonymous()?;
    let mut buffer = vec![0; 256 << 10];
    loop {
        let n = entry.read(&mut buffer).map_err(|e| Error::invalid("archive", format!("{path}: {e}")))?;
        if n == 0 {
            break;
        }
        writer.write(&buffer[..n])?;
    }
    if writer.length() != size {
        return Err(Error::invalid("archive", format!("{path} is cut short")));
    }
    let actual = writer.digest();
    if let Some(expected) = named.filter(|d| *d != actual) {
        return Err(Error::WrongDigest { expected, actual });
    }
    if !content.has(&actual) {
        writer.commit()?;
        added.push(actual.clone());
    }
    Ok(actual)
}

fn from_index(content: &Content, index: &[u8], name: &str) -> Result<Found, Error> {
    let index: Manifest = serde_json::from_slice(index).map_err(Error::json("index.json"))?;
    let only_one = index.manifests.len() == 1;
    let mut found = Vec::new();
    for descriptor in &index.manifests {
        let mut names = Vec::new();
        if let Some(full) = descriptor.annotations.get(IMAGE_NAME) {
            names.push(full.clone());
        } else if let Some(short) = descriptor.annotations.get(REF_NAME).filter(|s| s.contains(['/', ':'])) {
            names.push(short.clone());
        } else if only_one && !name.is_empty() {
            names.push(name.to_owned());
        }
        if let Some(digest) = resolve(content, descriptor, 0)? {
            found.push((digest, names));
        }
    }
    Ok(found)
}

/// Follows nested indexes to the manifest for this machine.
fn resolve(content: &Content, descriptor: &Descriptor, depth: u32) -> Result<Option<String>, Error> {
    if depth > 4 {
        return Err(Error::invalid("index", "it is nested too deep"));
    }
    if let Some(platform) = &descriptor.platform
        && (platform.os != "linux" || platform.architecture != super::manifest::architecture())
        && !platform.os.is_empty()
    {
        return Ok(None);
    }
    let bytes = content.read(&descriptor.digest, MAX_DOCUMENT)?;
    let document: Manifest = serde_json::from_slice(&bytes).map_err(Error::json("manifest"))?;
    if document.config.is_some() {
        return Ok(Some(descriptor.digest.clone()));
    }
    match document.choose() {
        Some(inner) => resolve(content, inner, depth + 1),
        None => Ok(None),
    }
}

/// Makes an OCI manifest for each image of a `docker save` file.
fn from_docker(
    content: &Content,
    docker: &[u8],
    entries: &BTreeMap<String, String>,
    name: &str,
    added: &mut Vec<String>,
) -> Result<Found, Error> {
    let images: Vec<DockerImage> = serde_json::from_slice(docker).map_err(Error::json("manifest.json"))?;
    let only_one = images.len() == 1;
    let mut found = Vec::new();
    for image in images {
        let describe = |path: &String, media_type: &str| {
            let digest = entries
                .get(path)
                .ok_or_else(|| Error::invalid("archive", format!("{path} is missing in it")))?;
            let file = content.path(digest)?;
            let size = std::fs::metadata(&file).map_err(|e| Error::io("read", &file, e))?.len();
            Ok::<_, Error>(Descriptor {
                media_type: media_type.into(),
                digest: digest.clone(),
                size,
                ..Descriptor::default()
            })
        };
        let manifest = Manifest {
            schema_version: 2,
            media_type: OCI_MANIFEST.into(),
            config: Some(describe(&image.config, OCI_CONFIG)?),
            layers: image.layers.iter().map(|l| describe(l, OCI_LAYER)).collect::<Result<_, _>>()?,
            manifests: Vec::new(),
        };
        let bytes = serde_json::to_vec(&manifest).map_err(Error::json("manifest"))?;
        if !content.has(&content::digest(&bytes)) {
            added.push(content::digest(&bytes));
        }
        let digest = content.put(&bytes)?;
        let mut names = image.repo_tags.unwrap_or_default();
        if names.is_empty() && only_one && !name.is_empty() {
            names.push(name.to_owned());
        }
        found.push((digest, names));
    }
    Ok(found)
}

#[cfg(test)]
mod tests;
