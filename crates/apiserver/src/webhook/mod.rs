//! The client for everything that the server asks elsewhere by HTTP: admission and conversion webhooks, webhook
//! authentication and authorization, audit back ends. Connections are kept and used again; Services are resolved through
//! the watch cache, so that no proxy on this machine is needed.

mod endpoint;
mod error;
mod resolve;
mod target;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;

pub use endpoint::{Endpoint, Timeout};
pub use error::Error;
pub use target::{Place, Target};

use crate::ClusterRef;

/// How many endpoints keep their connections; the one that was not asked for longest goes first.
const ENDPOINTS: usize = 200;

/// Makes endpoints and keeps them, by what they are configured as. Shared by everything that calls out.
pub struct Client {
    cluster: ClusterRef,
    endpoints: Mutex<HashMap<Target, (Arc<Endpoint>, Instant)>>,
}

impl Client {
    /// A client that resolves Services in this view of the cluster.
    pub fn new(cluster: ClusterRef) -> Arc<Self> {
        Arc::new(Self { cluster, endpoints: Mutex::default() })
    }

    /// The endpoint of a target: an earlier one with its connections, or a new one. Nothing is connected yet. The error tells
    /// what in the target cannot be used.
    pub fn endpoint(&self, target: &Target) -> Result<Arc<Endpoint>, Error> {
        let mut endpoints = self.endpoints.lock();
        if let Some((endpoint, used)) = endpoints.get_mut(target) {
            *used = Instant::now();
            return Ok(endpoint.clone());
        }
        let endpoint = Arc::new(Endpoint::new(target, self.cluster.clone())?);
        if endpoints.len() >= ENDPOINTS
            && let Some(oldest) = endpoints.iter().min_by_key(|(_, (_, used))| *used).map(|(t, _)| t.clone())
        {
            endpoints.remove(&oldest);
        }
        endpoints.insert(target.clone(), (endpoint.clone(), Instant::now()));
        Ok(endpoint)
    }
}
