//! The API server: HTTP front, request pipeline, generic registry, watch cache, discovery and streaming proxies. Only this
//! crate uses `store`; everything else reaches the cluster's state through the API that this crate serves.

mod attributes;
pub mod authn;
pub mod authz;
pub mod bootstrap;
mod config;
mod hooks;
mod read;
mod status;
#[cfg(test)]
mod testing;
pub mod transform;

pub use attributes::{Attributes, Decision, Operation, UserInfo, Verdict};
pub use config::Config;
pub use hooks::{
    AdmissionRequest, Admit, Answer, Authenticate, Authorize, Cluster, ClusterRef, Hooks, Rotation, Snapshot,
    Transform,
};
pub use status::{Cause, Status};
