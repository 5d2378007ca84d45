//! CRI's `ImageService`.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use cri::v1::image_service_server::ImageService;
use cri::v1::{
    FilesystemIdentifier, FilesystemUsage, ImageFilter, ImageFsInfoRequest, ImageFsInfoResponse,
    ImageStatusRequest, ImageStatusResponse, ListImagesRequest, ListImagesResponse, PullImageRequest,
    PullImageResponse, RemoveImageRequest, RemoveImageResponse, StreamImagesRequest, StreamImagesResponse,
    UInt64Value,
};
use tonic::{Request, Response, Status};

use super::{Answers, chunks, status};
use crate::error::Error;
use crate::images::Credentials;
use crate::node::{Node, blocking, now};

/// Images over CRI.
pub struct ImageServer {
    /// What is served.
    pub node: Arc<Node>,
}

fn name(spec: Option<cri::v1::ImageSpec>) -> Result<String, Status> {
    let name = spec.unwrap_or_default().image;
    if name.is_empty() { Err(Status::invalid_argument("no image is named")) } else { Ok(name) }
}

impl ImageServer {
    async fn list(&self, filter: Option<ImageFilter>) -> Vec<cri::v1::Image> {
        let wanted = filter.and_then(|f| f.image).map(|i| i.image).unwrap_or_default();
        if wanted.is_empty() {
            return self.node.images.list().iter().map(|i| status::image(i)).collect();
        }
        self.node.await_toolbox(&wanted).await;
        self.node.images.get(&wanted).iter().map(|i| status::image(i)).collect()
    }
}

#[tonic::async_trait]
impl ImageService for ImageServer {
    async fn list_images(
        &self,
        request: Request<ListImagesRequest>,
    ) -> Result<Response<ListImagesResponse>, Status> {
        Ok(Response::new(ListImagesResponse { images: self.list(request.into_inner().filter).await }))
    }

    type StreamImagesStream = Answers<StreamImagesResponse>;

    async fn stream_images(
        &self,
        request: Request<StreamImagesRequest>,
    ) -> Result<Response<Self::StreamImagesStream>, Status> {
        let images = self.list(request.into_inner().filter).await;
        Ok(Response::new(chunks(images, |images| StreamImagesResponse { images })))
    }

    async fn image_status(
        &self,
        request: Request<ImageStatusRequest>,
    ) -> Result<Response<ImageStatusResponse>, Status> {
        let request = request.into_inner();
        let wanted = name(request.image)?;
        self.node.await_toolbox(&wanted).await;
        let image = self.node.images.get(&wanted);
        let mut info = std::collections::HashMap::new();
        if let Some(image) = image.as_ref().filter(|_| request.verbose)
            && let Ok(config) = self.node.images.config(image)
        {
            let text = serde_json::json!({ "imageSpec": config }).to_string();
            info.insert("info".to_owned(), text);
        }
        Ok(Response::new(ImageStatusResponse { image: image.map(|i| status::image(&i)), info }))
    }

    async fn pull_image(
        &self,
        request: Request<PullImageRequest>,
    ) -> Result<Response<PullImageResponse>, Status> {
        let request = request.into_inner();
        let wanted = name(request.image)?;
        self.node.await_toolbox(&wanted).await;
        let credentials = request.auth.as_ref().map(Credentials::from_cri).unwrap_or_default();
        let image = self.node.images.pull(&wanted, &credentials).await.map_err(Error::from)?;
        Ok(Response::new(PullImageResponse { image_ref: image.id.clone() }))
    }

    async fn remove_image(
        &self,
        request: Request<RemoveImageRequest>,
    ) -> Result<Response<RemoveImageResponse>, Status> {
        let wanted = name(request.into_inner().image)?;
        self.node.images.remove(&wanted, &self.node.layers_in_use()).await.map_err(Error::from)?;
        Ok(Response::new(RemoveImageResponse {}))
    }

    async fn image_fs_info(
        &self,
        _: Request<ImageFsInfoRequest>,
    ) -> Result<Response<ImageFsInfoResponse>, Status> {
        let root = self.node.config.root.clone();
        let usage = |dir: std::path::PathBuf| async move {
            let (bytes, inodes) = blocking({
                let dir = dir.clone();
                move || Ok(disk_usage(&dir))
            })
            .await?;
            Ok::<_, Error>(FilesystemUsage {
                timestamp: now(),
                fs_id: Some(FilesystemIdentifier { mountpoint: dir.to_string_lossy().into_owned() }),
                used_bytes: Some(UInt64Value { value: bytes }),
                inodes_used: Some(UInt64Value { value: inodes }),
            })
        };
        Ok(Response::new(ImageFsInfoResponse {
            image_filesystems: vec![usage(root.join("images")).await?],
            container_filesystems: vec![usage(root.join("containers")).await?],
        }))
    }
}

/// Bytes and inodes below a directory; each hard link counts once per name.
pub fn disk_usage(dir: &Path) -> (u64, u64) {
    let mut total = (0, 1);
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let Ok(metadata) = entry.metadata() else { continue };
        if metadata.is_dir() {
            let (bytes, inodes) = disk_usage(&entry.path());
            total = (total.0 + bytes + metadata.blocks() * 512, total.1 + inodes);
        } else {
            total = (total.0 + metadata.blocks() * 512, total.1 + 1);
        }
    }
    total
}
