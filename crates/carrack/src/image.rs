//! `carrack image`: the node's images, through CRI and the image service beside it.

use std::path::{Path, PathBuf};

use anyhow::Context;
use cri::images::images_client::ImagesClient;
use cri::images::{ExportRequest, ImportRequest, InspectRequest};
use cri::v1::image_service_client::ImageServiceClient;
use cri::v1::{AuthConfig, ImageSpec, ListImagesRequest, PullImageRequest, RemoveImageRequest};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tonic::transport::Channel;

use crate::args::{Image, ImageCommand, RUNTIME_SOCKET};
use crate::paths::Paths;

/// Bytes of an archive sent in one message.
const CHUNK: usize = 256 << 10;

pub async fn run(args: Image) -> anyhow::Result<()> {
    let own = Paths::existing(&args.data.data_dir).runtime_socket();
    let alone = PathBuf::from(RUNTIME_SOCKET);
    let socket = args.socket.unwrap_or(if !own.exists() && alone.exists() { alone } else { own });
    let channel = cri::connect(&socket.to_string_lossy()).await;
    let channel = channel.context("the container runtime does not run; start it with `carrack up`")?;
    match args.command {
        ImageCommand::Ls => list(channel).await,
        ImageCommand::Pull { image, creds } => pull(channel, image, creds).await,
        ImageCommand::Import { file, name } => import(channel, &file, name).await,
        ImageCommand::Export { file, images } => export(channel, &file, images).await,
        ImageCommand::Rm { images } => remove(channel, images).await,
        ImageCommand::Inspect { image } => inspect(channel, image).await,
    }
}

async fn list(channel: Channel) -> anyhow::Result<()> {
    let request = ListImagesRequest::default();
    let images =
        ImageServiceClient::new(channel).list_images(request).await.map_err(told)?.into_inner().images;
    println!("{:<60} {:<14} {:>10}", "NAME", "ID", "SIZE");
    for image in images {
        let id = image.id.trim_start_matches("sha256:").chars().take(12).collect::<String>();
        let size = format!("{:.1} MB", image.size as f64 / 1e6);
        let names = if image.repo_tags.is_empty() { image.repo_digests } else { image.repo_tags };
        for name in names {
            println!("{name:<60} {id:<14} {size:>10}");
        }
    }
    Ok(())
}

async fn pull(channel: Channel, image: String, creds: Option<String>) -> anyhow::Result<()> {
    let auth = match creds {
        None => None,
        Some(creds) => {
            let (user, password) = creds.split_once(':').context("--creds is USER:PASSWORD")?;
            Some(AuthConfig {
                username: user.to_owned(),
                password: password.to_owned(),
                ..AuthConfig::default()
            })
        }
    };
    let request = PullImageRequest { image: Some(spec(image)), auth, ..PullImageRequest::default() };
    let pulled = ImageServiceClient::new(channel).pull_image(request).await.map_err(told)?.into_inner();
    println!("{}", pulled.image_ref);
    Ok(())
}

async fn import(channel: Channel, file: &Path, name: String) -> anyhow::Result<()> {
    let mut source: Box<dyn AsyncRead + Send + Unpin> = if file.as_os_str() == "-" {
        Box::new(tokio::fs::File::open("/dev/stdin").await?)
    } else {
        let opened = tokio::fs::File::open(file).await;
        Box::new(opened.with_context(|| format!("opening {}", file.display()))?)
    };
    let (sender, receiver) = tokio::sync::mpsc::channel(4);
    let reader = tokio::spawn(async move {
        let mut name = name;
        loop {
            let mut chunk = vec![0; CHUNK];
            let count = source.read(&mut chunk).await?;
            chunk.truncate(count);
            let message = ImportRequest { name: std::mem::take(&mut name), chunk: chunk.into() };
            // A runtime that refuses the archive stops listening, and says why in its answer.
            if count == 0 || sender.send(message).await.is_err() {
                return std::io::Result::Ok(());
            }
        }
    });
    let stream = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let answer = ImagesClient::new(channel).import(stream).await.map_err(told);
    reader.await?.context("reading the archive")?;
    for image in answer?.into_inner().images {
        println!("{} {}", image.names.join(" "), image.id);
    }
    Ok(())
}

async fn export(channel: Channel, file: &Path, images: Vec<String>) -> anyhow::Result<()> {
    let mut chunks =
        ImagesClient::new(channel).export(ExportRequest { images }).await.map_err(told)?.into_inner();
    let to_stdout = file.as_os_str() == "-";
    let target = if to_stdout { PathBuf::from("/dev/stdout") } else { file.with_extension("partial") };
    let mut out = tokio::fs::File::options()
        .write(true)
        .create(!to_stdout)
        .truncate(!to_stdout)
        .open(&target)
        .await
        .with_context(|| format!("writing {}", target.display()))?;
    while let Some(message) = chunks.message().await.map_err(told)? {
        out.write_all(&message.chunk).await.with_context(|| format!("writing {}", target.display()))?;
    }
    out.flush().await?;
    if !to_stdout {
        tokio::fs::rename(&target, file).await?;
    }
    Ok(())
}

async fn remove(channel: Channel, images: Vec<String>) -> anyhow::Result<()> {
    let mut service = ImageServiceClient::new(channel);
    for image in images {
        service.remove_image(RemoveImageRequest { image: Some(spec(image.clone())) }).await.map_err(told)?;
        println!("{image}");
    }
    Ok(())
}

async fn inspect(channel: Channel, image: String) -> anyhow::Result<()> {
    let found =
        ImagesClient::new(channel).inspect(InspectRequest { image }).await.map_err(told)?.into_inner();
    let document = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap_or(Value::Null);
    let shown = json!({
        "id": found.id,
        "names": found.names,
        "manifestDigest": found.manifest_digest,
        "size": found.size,
        "manifest": document(&found.manifest),
        "config": document(&found.config),
    });
    println!("{shown:#}");
    Ok(())
}

fn spec(image: String) -> ImageSpec {
    ImageSpec { image, ..ImageSpec::default() }
}

/// What the runtime said, without the protocol around it.
fn told(status: tonic::Status) -> anyhow::Error {
    anyhow::anyhow!("{}", status.message())
}
