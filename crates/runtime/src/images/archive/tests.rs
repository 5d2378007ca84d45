use super::super::RegistryConfig;
use super::super::content::digest;
use super::*;

/// Blobs and documents of an archive, to be spoilt by tests.
struct Draft {
    entries: Vec<(String, Vec<u8>)>,
}

fn layer() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(5);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    tar.append_data(&mut header, "hello", &b"world"[..]).unwrap();
    tar.into_inner().unwrap()
}

fn path(bytes: &[u8]) -> String {
    format!("blobs/sha256/{}", &digest(bytes)["sha256:".len()..])
}

fn oci() -> Draft {
    let layer = layer();
    let config = serde_json::json!({
        "architecture": super::super::manifest::architecture(), "os": "linux",
        "config": {"Entrypoint": ["/hello"], "Cmd": null},
        "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]},
    })
    .to_string()
    .into_bytes();
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "config": {"mediaType": OCI_CONFIG, "digest": digest(&config), "size": config.len()},
        "layers": [{"mediaType": OCI_LAYER, "digest": digest(&layer), "size": layer.len()}],
    })
    .to_string()
    .into_bytes();
    let index = serde_json::json!({
        "schemaVersion": 2,
        "manifests": [{"mediaType": OCI_MANIFEST, "digest": digest(&manifest), "size": manifest.len(),
                       "annotations": {IMAGE_NAME: "test.local/hello:1"}}],
    })
    .to_string()
    .into_bytes();
    let mut entries = vec![("index.json".to_owned(), index)];
    entries.extend([manifest, config, layer].map(|b| (path(&b), b)));
    Draft { entries }
}

impl Draft {
    fn tar(&self) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        for (path, bytes) in &self.entries {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
            header.set_cksum();
            tar.append(&header, &bytes[..]).unwrap();
        }
        tar.into_inner().unwrap()
    }
}

fn store() -> (tempfile::TempDir, Images) {
    let dir = tempfile::tempdir().unwrap();
    let images = Images::open(dir.path(), RegistryConfig::default()).unwrap();
    (dir, images)
}

async fn import(images: &Images, dir: &Path, tar: &[u8]) -> Result<Vec<Arc<Image>>, Error> {
    let path = dir.join("archive.tar");
    std::fs::write(&path, tar).unwrap();
    images.import(File::open(path).unwrap(), "").await
}

#[tokio::test]
async fn an_archive_goes_in_and_out_and_in() {
    let (dir, images) = store();
    let imported = import(&images, dir.path(), &oci().tar()).await.unwrap();
    assert_eq!(imported[0].tags.first().unwrap(), "test.local/hello:1");
    assert_eq!(images.layers.read(&imported[0].layers, "/hello").unwrap(), b"world");
    let mut out = Vec::new();
    images.export(&["test.local/hello:1".into()], &mut out).unwrap();
    assert_eq!(images.verify(&[]).unwrap(), (3, vec![]));

    let (dir, other) = store();
    let again = import(&other, dir.path(), &out).await.unwrap();
    assert_eq!(again[0].id, imported[0].id);

    other.remove("test.local/hello:1", &Default::default()).await.unwrap();
    assert!(other.list().is_empty());
    assert!(other.content.list().unwrap().is_empty());
    assert_eq!(other.layers.names().unwrap().count(), 0);
}

#[tokio::test]
async fn docker_save_files_are_read() {
    let (dir, images) = store();
    let oci = oci();
    let config = oci.entries[2].1.clone();
    let manifest =
        serde_json::json!([{"Config": "c.json", "RepoTags": ["hello:2"], "Layers": ["x/layer.tar"]}])
            .to_string();
    let draft = Draft {
        entries: vec![
            ("x/layer.tar".into(), layer()),
            ("c.json".into(), config),
            ("manifest.json".into(), manifest.into_bytes()),
        ],
    };
    let imported = import(&images, dir.path(), &draft.tar()).await.unwrap();
    assert_eq!(imported[0].tags.first().unwrap(), "docker.io/library/hello:2");
}

#[tokio::test]
async fn a_spoilt_archive_is_refused_and_leaves_nothing() {
    let spoil: [fn(&mut Draft); 5] = [
        |d| d.entries[3].1[0] ^= 1,
        |d| drop(d.entries.remove(3)),
        |d| d.entries[0].1 = b"{".to_vec(),
        |d| d.entries.push(("../../evil".into(), vec![1])),
        |d| d.entries.push(("blobs/sha256/../../evil".into(), vec![1])),
    ];
    for change in spoil {
        let (dir, images) = store();
        let mut draft = oci();
        change(&mut draft);
        assert!(import(&images, dir.path(), &draft.tar()).await.is_err());
        assert!(images.list().is_empty());
        assert!(images.content.list().unwrap().is_empty());
        assert_eq!(std::fs::read_dir(dir.path().join("ingest")).unwrap().count(), 0);
    }
    let (dir, images) = store();
    let tar = oci().tar();
    assert!(import(&images, dir.path(), &tar[..tar.len() / 2]).await.is_err());
    assert!(import(&images, dir.path(), b"not an archive").await.is_err());
    assert!(images.content.list().unwrap().is_empty());
}
