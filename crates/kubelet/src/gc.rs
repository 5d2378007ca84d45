//! Garbage: ended containers beyond the last of each name, and images nobody uses while the disk is full.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cri::v1::{
    Container, ContainerState, Image, ImageFsInfoRequest, ImageSpec, ListImagesRequest,
    RemoveContainerRequest, RemoveImageRequest,
};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::context::Shared;
use crate::manager::Pods;
use crate::metrics::IMAGES_COLLECTED;
use crate::node::capacity;
use crate::podutil;
use crate::runtime::{CONTAINER_NAME, POD_UID};

const INTERVAL: Duration = Duration::from_secs(60);

/// Collects garbage until shutdown.
pub(crate) async fn run(context: Shared, pods: Pods, shutdown: CancellationToken) {
    let mut unused_since: HashMap<String, Instant> = HashMap::new();
    loop {
        tokio::select! {
            () = tokio::time::sleep(INTERVAL) => {}
            () = shutdown.cancelled() => return,
        }
        if let Err(status) = containers(&context).await {
            tracing::warn!(status = status.message(), "cannot remove ended containers");
        }
        if let Err(status) = images(&context, &pods, &mut unused_since).await {
            tracing::warn!(status = status.message(), "cannot remove unused images");
        }
    }
}

/// Of each container name in a pod the newest instance is kept, and the newest ended one.
fn surplus(mut containers: Vec<Container>) -> Vec<String> {
    containers.sort_by_key(|container| std::cmp::Reverse(container.created_at));
    let mut ended: HashSet<(String, String)> = HashSet::new();
    let mut out = Vec::new();
    for container in containers {
        if container.state() != ContainerState::ContainerExited {
            continue;
        }
        let label = |key: &str| container.labels.get(key).cloned().unwrap_or_default();
        // Two are kept, for a container that waits for its restart shows its last end and the one before.
        if !ended.insert((label(POD_UID), format!("{}/1", label(CONTAINER_NAME))))
            && !ended.insert((label(POD_UID), format!("{}/2", label(CONTAINER_NAME))))
        {
            out.push(container.id);
        }
    }
    out
}

async fn containers(context: &Shared) -> Result<(), Status> {
    for id in surplus(context.cri.containers(None).await?) {
        context.cri.runtime().remove_container(RemoveContainerRequest { container_id: id }).await?;
    }
    Ok(())
}

/// Where images and writable layers lie.
pub(crate) async fn image_place(context: &Shared) -> Option<PathBuf> {
    let info = context.cri.images().image_fs_info(ImageFsInfoRequest {}).await.ok()?.into_inner();
    let id = info.image_filesystems.first()?.fs_id.as_ref()?;
    Some(PathBuf::from(&id.mountpoint))
}

/// Removes images that nobody has used for too long, and, once the disk is fuller than the high threshold, unused ones until
/// it is emptier than the low one.
async fn images(
    context: &Shared,
    pods: &Pods,
    unused_since: &mut HashMap<String, Instant>,
) -> Result<(), Status> {
    let settings = &context.config.settings;
    let place = image_place(context).await.unwrap_or_else(|| context.config.root_dir.clone());
    let mut unused = unused(context, pods).await?;
    let now = Instant::now();
    unused_since.retain(|id, _| unused.iter().any(|image| image.id == *id));
    for image in &unused {
        unused_since.entry(image.id.clone()).or_insert(now);
    }
    let age =
        |image: &Image| unused_since.get(&image.id).map_or(Duration::ZERO, |at| now.duration_since(*at));
    unused.sort_by_key(|image| std::cmp::Reverse(age(image)));
    let (least, most) = (settings.image_minimum_gc_age.0, settings.image_maximum_gc_age.0);
    let high = u64::from(settings.image_gc_high_threshold_percent);
    let low = u64::from(settings.image_gc_low_threshold_percent);
    // A hundred percent switches it off.
    let mut needed = high < 100 && full(&place) >= high;
    for image in unused {
        let (age, too_old) = (age(&image), !most.is_zero() && age(&image) > most);
        // What was in use a moment ago may be wanted again at once.
        if !too_old && (!needed || age < least) {
            continue;
        }
        // One that cannot be removed must not keep the others.
        if let Err(status) = remove(context, &image.id).await {
            tracing::warn!(image = image.id, status = status.message(), "cannot remove an unused image");
            continue;
        }
        let reason = if too_old { "age" } else { "space" };
        context.metrics.count(IMAGES_COLLECTED, &[("reason", reason)]);
        needed = needed && full(&place) > low;
    }
    let percent = full(&place);
    if needed && percent >= high {
        let message = format!(
            "Insufficient free disk space on the node's image filesystem ({percent}% used, \
             imageGCHighThresholdPercent is {high}). Failed to free sufficient space by deleting unused images. Consider \
             resizing the disk or deleting unused files."
        );
        let node = crate::events::node(&context.config.node_name);
        context.recorder.warning(node, "FreeDiskSpaceFailed", message);
    }
    Ok(())
}

async fn remove(context: &Shared, id: &str) -> Result<(), Status> {
    let spec = ImageSpec { image: id.to_owned(), ..ImageSpec::default() };
    context.cri.images().remove_image(RemoveImageRequest { image: Some(spec) }).await?;
    Ok(())
}

/// Images that no container uses and that are not pinned.
async fn unused(context: &Shared, pods: &Pods) -> Result<Vec<Image>, Status> {
    let mounted = mounted(context, pods).await?;
    let listed =
        context.cri.images().list_images(ListImagesRequest { filter: None }).await?.into_inner().images;
    let used: HashSet<String> = context
        .cri
        .containers(None)
        .await?
        .into_iter()
        .flat_map(|container| {
            [
                container.image_ref,
                container.image_id,
                container.image.map(|image| image.image).unwrap_or_default(),
            ]
        })
        .collect();
    let unused = listed.into_iter().filter(|image| {
        let names = std::iter::once(&image.id).chain(&image.repo_digests).chain(&image.repo_tags);
        !image.pinned && !mounted.contains(&image.id) && !names.into_iter().any(|name| used.contains(name))
    });
    Ok(unused.collect())
}

/// Ids of the images behind the image volumes of this node's pods.
async fn mounted(context: &Shared, pods: &Pods) -> Result<HashSet<String>, Status> {
    let mut names = HashSet::new();
    for pod in pods.list() {
        let volumes = podutil::spec(&pod).volumes.iter().flatten();
        names.extend(volumes.filter_map(|volume| volume.image.as_ref()?.reference.clone()));
    }
    let mut ids = HashSet::new();
    for name in names {
        ids.extend(crate::images::find(&context.cri, &name).await?.map(|image| image.id));
    }
    Ok(ids)
}

/// Removes ended containers and every image that nobody uses: the disk is needed.
pub(crate) async fn reclaim(context: &Shared, pods: &Pods) -> Result<(), Status> {
    containers(context).await?;
    for image in unused(context, pods).await? {
        remove(context, &image.id).await?;
    }
    Ok(())
}

/// How full the file system is, in percent.
fn full(place: &Path) -> u64 {
    capacity::file_system(place)
        .map_or(0, |(size, free, _, _)| ((size - free.min(size)) * 100).checked_div(size).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_ended_containers_are_kept() {
        let container = |id: &str, name: &str, at: i64, state: ContainerState| Container {
            id: id.to_owned(),
            created_at: at,
            state: state as i32,
            labels: [(POD_UID, "u"), (CONTAINER_NAME, name)]
                .map(|(k, v)| (k.to_owned(), v.to_owned()))
                .into(),
            ..Container::default()
        };
        let ended = ContainerState::ContainerExited;
        let list = vec![
            container("1", "a", 1, ended),
            container("2", "a", 2, ended),
            container("3", "a", 3, ended),
            container("4", "a", 4, ContainerState::ContainerRunning),
            container("5", "b", 5, ended),
        ];
        assert_eq!(surplus(list), ["1"]);
    }
}
