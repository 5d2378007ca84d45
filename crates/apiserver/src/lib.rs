//! The API server: HTTP front, request pipeline, generic registry, watch cache, discovery and streaming proxies. Only this
//! crate uses `store`; everything else reaches the cluster's state through the API that this crate serves.

mod access;
pub mod admission;
mod aggregation;
mod attributes;
pub mod audit;
pub mod authn;
pub mod authz;
pub mod bootstrap;
mod config;
mod config_file;
mod crds;
mod dial;
mod discovery;
mod duration;
mod expiry;
mod features;
mod flow;
mod hooks;
mod http;
mod lifecycle;
mod managed;
mod metrics;
mod openapi;
mod pipeline;
mod publish;
mod query;
mod read;
mod registry;
mod relay;
mod render;
mod request;
mod selector;
mod serve;
mod server;
mod special;
mod start;
mod status;
#[cfg(test)]
mod testing;
mod tls;
mod trace;
pub mod transform;
mod upkeep;
mod verbs;
pub mod webhook;
mod yaml;

pub use crate::http::body::Body;
pub use crate::http::negotiate::negotiable;
pub use access::{Access, AccessError, AccessOptions, Assembled, OidcOptions, WebhookOptions};
pub use api::{FieldError, FieldErrorKind};
pub use attributes::{Attributes, Decision, Gvk, Gvr, Operation, UserInfo, Verdict};
pub use config::{Config, Protection};
pub use duration::parse as parse_duration;
pub use features::{FeatureError, Features, RuntimeConfig};
pub use hooks::{
    AdmissionRequest, Admit, Answer, Authenticate, Authorize, Cluster, ClusterRef, Hooks, Rotation, Snapshot,
    Transform,
};
pub use metrics::write_process_metrics;
pub use query::Query;
pub use request::RequestInfo;
pub use server::{ApiServer, Error, InProcess};
pub use start::start;
pub use status::{Cause, Status};
pub use yaml::write as write_yaml;
