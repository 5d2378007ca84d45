//! Carrack's own image service: archives in and out, inspection, verification.

use std::io::{self, Write};
use std::sync::Arc;

use bytes::Bytes;
use cri::images::images_server::Images;
use cri::images::{
    ExportRequest, ExportResponse, ImportRequest, ImportResponse, ImportedImage, InspectRequest,
    InspectResponse, TagRequest, TagResponse, VerifyRequest, VerifyResponse,
};
use tokio::sync::mpsc;
use tonic::{Request, Response, Status, Streaming};

use super::Answers;
use crate::error::Error;
use crate::images::manifest::MAX_DOCUMENT;
use crate::node::{Node, blocking, now};

/// Archives over gRPC.
pub struct ArchiveService {
    /// What is served.
    pub node: Arc<Node>,
}

/// The size of the pieces an export is sent in.
const PIECE: usize = 256 << 10;

#[tonic::async_trait]
impl Images for ArchiveService {
    async fn import(
        &self,
        request: Request<Streaming<ImportRequest>>,
    ) -> Result<Response<ImportResponse>, Status> {
        let mut stream = request.into_inner();
        // The archive is kept in a file without a name, which goes by itself.
        let mut file = tempfile_in(&self.node.config.root)?;
        let mut name = String::new();
        while let Some(message) = stream.message().await? {
            if !message.name.is_empty() {
                name = message.name;
            }
            file.write_all(&message.chunk).map_err(Error::io("store the archive"))?;
        }
        io::Seek::rewind(&mut file).map_err(Error::io("read the archive"))?;
        let images = self.node.images.import(file, &name).await;
        if images.is_err() {
            let _ = self.node.images.collect(&self.node.layers_in_use()).await;
        }
        let images = images.map_err(Error::from)?;
        let images = images
            .iter()
            .map(|i| ImportedImage { id: i.id.clone(), names: i.tags.iter().cloned().collect() })
            .collect();
        Ok(Response::new(ImportResponse { images }))
    }

    type ExportStream = Answers<ExportResponse>;

    async fn export(&self, request: Request<ExportRequest>) -> Result<Response<Self::ExportStream>, Status> {
        let names = request.into_inner().images;
        for name in &names {
            if self.node.images.get(name).is_none() {
                return Err(Error::Image(crate::images::Error::NotFound(name.clone())).into());
            }
        }
        let (sender, mut receiver) = mpsc::channel(4);
        let node = self.node.clone();
        tokio::task::spawn_blocking(move || {
            let mut out = io::BufWriter::with_capacity(PIECE, Pieces(sender.clone()));
            if let Err(error) = node.images.export(&names, &mut out) {
                let _ = sender.blocking_send(Err(Error::Image(error).into()));
            }
        });
        Ok(Response::new(Box::pin(futures::stream::poll_fn(move |cx| receiver.poll_recv(cx)))))
    }

    async fn inspect(&self, request: Request<InspectRequest>) -> Result<Response<InspectResponse>, Status> {
        let name = request.into_inner().image;
        self.node.await_toolbox(&name).await;
        let image =
            self.node.images.get(&name).ok_or(crate::images::Error::NotFound(name)).map_err(Error::from)?;
        let (_, manifest) = self.node.images.documents(&image).map_err(Error::from)?;
        let config = self.node.images.content.read(&image.id, MAX_DOCUMENT).map_err(Error::from)?;
        Ok(Response::new(InspectResponse {
            id: image.id.clone(),
            names: image.tags.iter().chain(&image.digests).cloned().collect(),
            manifest_digest: image.manifest.clone(),
            manifest: manifest.into(),
            config: config.into(),
            size: image.size,
        }))
    }

    async fn verify(&self, request: Request<VerifyRequest>) -> Result<Response<VerifyResponse>, Status> {
        let names = request.into_inner().images;
        let node = self.node.clone();
        let (blobs, problems) = blocking(move || Ok(node.images.verify(&names)?)).await?;
        Ok(Response::new(VerifyResponse { blobs, problems }))
    }

    async fn tag(&self, request: Request<TagRequest>) -> Result<Response<TagResponse>, Status> {
        let request = request.into_inner();
        self.node.await_toolbox(&request.image).await;
        self.node.images.tag(&request.image, &request.name).map_err(Error::from)?;
        Ok(Response::new(TagResponse {}))
    }
}

struct Pieces(mpsc::Sender<Result<ExportResponse, Status>>);

impl Write for Pieces {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let piece = &data[..data.len().min(PIECE)];
        let message = ExportResponse { chunk: Bytes::copy_from_slice(piece) };
        self.0.blocking_send(Ok(message)).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn tempfile_in(dir: &std::path::Path) -> Result<std::fs::File, Error> {
    let path = dir.join(format!("import-{}-{}", std::process::id(), now()));
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .map_err(Error::io("store the archive"))?;
    std::fs::remove_file(&path).map_err(Error::io("store the archive"))?;
    Ok(file)
}
