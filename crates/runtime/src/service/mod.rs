//! The gRPC services on the runtime's socket.

mod archive;
mod image;
mod metrics;
mod runtime;
mod stats;
pub mod status;

use std::pin::Pin;

use futures::Stream;
use tonic::Status;

/// A streaming answer.
type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

pub use archive::ArchiveService;
pub use image::ImageServer;
pub use runtime::RuntimeServer;

/// A list of items in several answers, for lists that would pass the size of one message.
fn chunks<I: Send + 'static, T: Send + 'static>(
    items: Vec<I>,
    wrap: impl Fn(Vec<I>) -> T + Send + 'static,
) -> Answers<T> {
    let mut items = items.into_iter();
    let parts = std::iter::from_fn(move || {
        let part: Vec<I> = items.by_ref().take(100).collect();
        (!part.is_empty()).then(|| Ok(wrap(part)))
    });
    Box::pin(futures::stream::iter(parts))
}

/// Whether labels hold all that a selector asks for.
fn selects(
    selector: &std::collections::HashMap<String, String>,
    labels: &std::collections::HashMap<String, String>,
) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}
