//! Static pods: manifests in a folder, one pod a file, run whether or not the API server is there. A file that comes, changes
//! or goes is seen through inotify. Names, uids and annotations are given as upstream's file source gives them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, Toleration};
use schema::FieldValidation;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::inotify::Watch;
use crate::podutil;

/// Marks a pod that comes from a file, and says so.
pub(crate) const SOURCE: &str = "kubernetes.io/config.source";
/// The hash of the manifest, which is the static pod's uid.
pub(crate) const HASH: &str = "kubernetes.io/config.hash";
/// On the copy in the API: the hash of the static pod that it shows.
pub(crate) const MIRROR: &str = "kubernetes.io/config.mirror";
/// A manifest larger than this is none.
const MOST_BYTES: u64 = 10 << 20;

pub(crate) mod url;

/// Why a manifest is not run.
#[derive(Debug, thiserror::Error)]
enum ManifestError {
    #[error("it cannot be read: {0}")]
    Read(#[from] std::io::Error),
    #[error("it is larger than {MOST_BYTES} bytes")]
    Large,
    #[error("it is no Pod of v1: {0}")]
    Decode(String),
    #[error("{0}")]
    Invalid(String),
}

/// The static pods of the folder, by uid.
pub(crate) type StaticPods = Arc<BTreeMap<String, Arc<Pod>>>;

/// Whether the pod comes from this node and not from the API.
pub(crate) fn is_static(pod: &Pod) -> bool {
    annotation(pod, SOURCE).is_some_and(|source| source != "api") && annotation(pod, MIRROR).is_none()
}

/// The static pod's hash, if this is the copy of one in the API.
pub(crate) fn mirrored(pod: &Pod) -> Option<&str> {
    annotation(pod, MIRROR)
}

pub(crate) fn annotation<'a>(pod: &'a Pod, key: &str) -> Option<&'a str> {
    pod.metadata.annotations.as_ref()?.get(key).map(String::as_str)
}

/// The copy of a static pod that the API is to show.
pub(crate) fn mirror_of(pod: &Pod, node_uid: Option<&str>, node: &str) -> Pod {
    let mut copy = pod.clone();
    let annotations = copy.metadata.annotations.get_or_insert_default();
    let hash = annotations.get(HASH).cloned().unwrap_or_default();
    annotations.insert(MIRROR.to_owned(), hash);
    copy.metadata.uid = None;
    copy.status = None;
    if let Some(uid) = node_uid {
        copy.metadata.owner_references =
            Some(vec![k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference {
                api_version: "v1".to_owned(),
                kind: "Node".to_owned(),
                name: node.to_owned(),
                uid: uid.to_owned(),
                controller: Some(true),
                block_owner_deletion: None,
            }]);
    }
    copy
}

/// The static pods of a folder and of a URL together.
pub(crate) fn merged(folder: &StaticPods, url: &StaticPods) -> StaticPods {
    let mut all: BTreeMap<String, Arc<Pod>> = (**folder).clone();
    let names: std::collections::HashSet<(String, String)> =
        all.values().map(|pod| (podutil::namespace(pod).to_owned(), podutil::name(pod).to_owned())).collect();
    for (uid, pod) in url.iter() {
        let name = (podutil::namespace(pod).to_owned(), podutil::name(pod).to_owned());
        if !names.contains(&name) {
            all.insert(uid.clone(), pod.clone());
        }
    }
    Arc::new(all)
}

/// Follows the folder until shutdown.
pub(crate) async fn follow(
    dir: PathBuf,
    node: String,
    pods: watch::Sender<StaticPods>,
    shutdown: CancellationToken,
) {
    let watch = match Watch::new().and_then(|watch| watch.add_files(&dir).map(|()| watch)) {
        Ok(watch) => Some(watch),
        Err(error) => {
            tracing::warn!(%error, dir = %dir.display(), "cannot follow the folder of static pods; it is read once");
            None
        }
    };
    loop {
        let found = read(&dir, &node);
        pods.send_if_modified(|now| {
            let changed = now.len() != found.len() || !now.keys().eq(found.keys());
            if changed {
                *now = Arc::new(found);
            }
            changed
        });
        let Some(watch) = &watch else { return shutdown.cancelled().await };
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = watch.changed() => {}
        }
    }
}

/// The pods of the folder's manifests; one that is none is told of and left out.
fn read(dir: &Path, node: &str) -> BTreeMap<String, Arc<Pod>> {
    let mut pods = BTreeMap::new();
    let mut names: BTreeMap<(String, String), PathBuf> = BTreeMap::new();
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    files.sort();
    for file in files {
        let hidden = file.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if hidden || !file.is_file() {
            continue;
        }
        match manifest(&file, node) {
            Ok(pod) => {
                let name = (podutil::namespace(&pod).to_owned(), podutil::name(&pod).to_owned());
                if let Some(first) = names.get(&name) {
                    tracing::warn!(file = %file.display(), first = %first.display(), "two manifests name the same static pod");
                    continue;
                }
                names.insert(name, file);
                pods.insert(podutil::uid(&pod).to_owned(), Arc::new(pod));
            }
            Err(error) => {
                tracing::warn!(file = %file.display(), %error, "a static pod's manifest is not run")
            }
        }
    }
    pods
}

fn manifest(file: &Path, node: &str) -> Result<Pod, ManifestError> {
    if std::fs::metadata(file)?.len() > MOST_BYTES {
        return Err(ManifestError::Large);
    }
    parse(&std::fs::read(file)?, &file.to_string_lossy(), node)
}

/// A manifest's pod, with defaults, and with the name, uid and annotations of a static pod.
fn parse(text: &[u8], source: &str, node: &str) -> Result<Pod, ManifestError> {
    parse_from(text, source, node, "file")
}

fn parse_from(text: &[u8], source: &str, node: &str, kind: &str) -> Result<Pod, ManifestError> {
    let decode = |error: &dyn std::fmt::Display| ManifestError::Decode(error.to_string());
    let row = api::resources().find("", "v1", "pods").ok_or_else(|| decode(&"pods are not known"))?;
    let decoded = schema::decode_yaml(&row.types, row.type_id, text, FieldValidation::Warn);
    let decoded = decoded.map_err(|error| decode(&error))?;
    for warning in decoded.warnings {
        tracing::warn!(source, warning, "in a static pod's manifest");
    }
    let mut value = decoded.value;
    let is = |key: &str, wanted: &str| value.get(key).and_then(|v| v.as_str()) == Some(wanted);
    if !is("kind", "Pod") || !is("apiVersion", "v1") {
        return Err(decode(&"kind has to be Pod and apiVersion v1"));
    }
    schema::fill_defaults(&row.types, row.type_id, &mut value);
    row.strategy.default(&mut value);
    let uid = hash(text, source, node);
    let mut pod: Pod = serde_json::from_value(value).map_err(|error| decode(&error))?;
    let meta = &mut pod.metadata;
    let name = meta.name.take().filter(|name| !name.is_empty());
    let name = name.ok_or_else(|| ManifestError::Invalid("metadata.name: Required value".to_owned()))?;
    meta.name = Some(format!("{name}-{}", node.to_lowercase()));
    meta.namespace = meta.namespace.take().filter(|n| !n.is_empty()).or_else(|| Some("default".to_owned()));
    meta.uid = Some(uid.clone());
    let now = jiff::Timestamp::now().to_string();
    let annotations = meta.annotations.get_or_insert_default();
    let given = [(SOURCE, kind.to_owned()), (HASH, uid), ("kubernetes.io/config.seen", now)];
    annotations.extend(given.map(|(key, value)| (key.to_owned(), value)));
    pod.status = None;
    let spec = pod.spec.get_or_insert_default();
    if spec.containers.is_empty() {
        return Err(ManifestError::Invalid("spec.containers: Required value".to_owned()));
    }
    if spec.service_account_name.as_ref().is_some_and(|name| !name.is_empty()) {
        let text = "spec.serviceAccountName: Forbidden: a static pod may not reference service accounts";
        return Err(ManifestError::Invalid(text.to_owned()));
    }
    spec.node_name = Some(node.to_owned());
    // Nothing moves a static pod away from its node.
    spec.tolerations.get_or_insert_default().push(Toleration {
        operator: Some("Exists".to_owned()),
        effect: Some("NoExecute".to_owned()),
        ..Toleration::default()
    });
    Ok(pod)
}

/// A uid that stays as long as file, node and content do.
fn hash(text: &[u8], source: &str, node: &str) -> String {
    let space = uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_URL, format!("{node}\0{source}").as_bytes());
    uuid::Uuid::new_v5(&space, text).simple().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEB: &str =
        "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec: {containers: [{name: a, image: i}]}\n";

    #[test]
    fn a_manifest_becomes_a_pod_of_the_node() {
        let pod = parse(WEB.as_bytes(), "/m/web.yaml", "N1").expect("a pod");
        assert_eq!((podutil::namespace(&pod), podutil::name(&pod)), ("default", "web-n1"));
        assert!(is_static(&pod));
        let spec = podutil::spec(&pod);
        assert_eq!(spec.node_name.as_deref(), Some("N1"));
        assert_eq!(spec.restart_policy.as_deref(), Some("Always"), "defaults are filled in");
        let copy = mirror_of(&pod, Some("u"), "N1");
        assert_eq!(mirrored(&copy), pod.metadata.uid.as_deref());
        assert!(!is_static(&copy) && copy.metadata.uid.is_none());
    }

    #[test]
    fn bad_manifests_say_why() {
        for (text, why) in [
            ("kind: Service\napiVersion: v1\n", "kind has to be Pod"),
            ("apiVersion: v1\nkind: Pod\nspec: {containers: [{name: a}]}\n", "metadata.name"),
            ("apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {}\n", "spec.containers"),
            ("{", "no Pod"),
        ] {
            let error = parse(text.as_bytes(), "f", "n").expect_err(text).to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[tokio::test]
    async fn the_folder_is_followed() {
        let dir = tempfile::tempdir().expect("a directory");
        let (sender, mut pods) = watch::channel(StaticPods::default());
        let stop = CancellationToken::new();
        let task = tokio::spawn(follow(dir.path().to_owned(), "n".to_owned(), sender, stop.clone()));
        let mut wait = async |count: usize| {
            pods.wait_for(|now| now.len() == count)
                .await
                .expect("followed")
                .keys()
                .cloned()
                .collect::<Vec<_>>()
        };
        std::fs::write(dir.path().join("web.yaml"), WEB).expect("written");
        let first = wait(1).await;
        std::fs::write(dir.path().join(".hidden"), WEB).expect("written");
        std::fs::write(dir.path().join("more.yaml"), WEB.replace("web", "more")).expect("written");
        assert!(wait(2).await.contains(&first[0]));
        std::fs::remove_file(dir.path().join("web.yaml")).expect("removed");
        assert_ne!(wait(1).await, first);
        stop.cancel();
        task.await.expect("ended");
    }
}
