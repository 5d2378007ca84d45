//! The Container Runtime Interface, version 1, as Kubernetes 1.36 speaks it, and Carrack's own image service beside it.
//!
//! The modules are generated from the protocol's field numbers and service names by prost and tonic, once, so that no
//! build needs a protobuf compiler. `proto/images.proto` is the source of [`images`]; that of [`v1`] is upstream's
//! `cri-api` (`pkg/apis/runtime/v1/api.proto`).

/// `runtime.v1`: `RuntimeService` and `ImageService` with their messages.
#[allow(missing_docs, clippy::all, rust_2018_idioms)]
#[path = "generated/runtime.rs"]
pub mod v1;

/// `carrack.runtime.v1`: import, export, inspect, verify and tag images.
#[allow(missing_docs, clippy::all, rust_2018_idioms)]
#[path = "generated/images.rs"]
pub mod images;

mod connect;

pub use connect::{ConnectError, connect};
