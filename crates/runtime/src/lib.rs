//! The container runtime: a CRI v1 server over a unix socket, and the shims that hold the containers.
//!
//! [`serve`] is the server; [`shim::main`] is what `carrack shim` runs, one process per pod, which lives on when the server
//! ends. Knows nothing of Kubernetes objects.

mod cgroups;
mod config;
mod error;
pub mod images;
mod node;
mod service;
pub mod shim;
mod spec;
mod stream;
mod teardown;

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use cri::images::images_server::ImagesServer;
use cri::v1::image_service_server::ImageServiceServer;
use cri::v1::runtime_service_server::RuntimeServiceServer;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;

pub use config::{NetworkMode, RuntimeConfig};
pub use error::Error;
pub use images::RegistryConfig;
pub use teardown::teardown;

/// The longest message: a list of many pods, or an exec's output.
const MAX_MESSAGE: usize = 32 << 20;

/// Serves CRI until `shutdown`. Containers go on afterwards, and the next call finds them.
pub async fn serve(config: RuntimeConfig, shutdown: CancellationToken) -> Result<(), Error> {
    let socket = config.socket.clone();
    let node = tokio::task::spawn_blocking(move || node::Node::open(config))
        .await
        .map_err(|e| Error::Internal(e.to_string()))??;
    let node = Arc::new(node);
    node.recover().await?;
    tokio::spawn(node.clone().make_toolbox());
    let warming = node.clone();
    tokio::task::spawn_blocking(move || warming.warm());
    let streaming = stream::Streaming::start(node.clone(), shutdown.clone())
        .await
        .map_err(Error::io("start the streaming server"))?;

    if let Some(dir) = socket.parent() {
        std::fs::create_dir_all(dir).map_err(Error::io("make the socket's directory"))?;
    }
    let _ = std::fs::remove_file(&socket);
    let listener =
        UnixListener::bind(&socket).map_err(Error::io(format!("listen on {}", socket.display())))?;
    std::fs::set_permissions(&socket, PermissionsExt::from_mode(0o600))
        .map_err(Error::io("protect the socket"))?;

    let runtime = service::RuntimeServer { node: node.clone(), streaming };
    let images = service::ImageServer { node: node.clone() };
    let archives = service::ArchiveService { node };
    tonic::transport::Server::builder()
        .add_service(
            RuntimeServiceServer::new(runtime)
                .max_decoding_message_size(MAX_MESSAGE)
                .max_encoding_message_size(MAX_MESSAGE),
        )
        .add_service(
            ImageServiceServer::new(images)
                .max_decoding_message_size(MAX_MESSAGE)
                .max_encoding_message_size(MAX_MESSAGE),
        )
        .add_service(ImagesServer::new(archives))
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), shutdown.cancelled_owned())
        .await
        .map_err(|e| Error::Internal(e.to_string()))
}
