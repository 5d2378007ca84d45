//! What all pods of the node share.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::KubeletConfig;
use crate::allocation::Allocations;
use crate::cgroups::Cgroups;
use crate::csi::Csi;
use crate::dns::Resolver;
use crate::events::Recorder;
use crate::eviction::Pressures;
use crate::images::Images;
use crate::metrics::Metrics;
use crate::objects::Objects;
use crate::runtime::Cri;
use crate::services::Services;
use crate::tokens::Tokens;

/// The node's services, as pods use them.
pub(crate) struct Context {
    pub config: KubeletConfig,
    pub cri: Cri,
    pub metrics: Metrics,
    pub recorder: Recorder,
    pub objects: Objects,
    pub services: Services,
    pub tokens: Tokens,
    pub csi: Arc<Csi>,
    /// Held by whoever looks for what nobody owns.
    pub housekeeping: tokio::sync::Mutex<()>,
    pub images: Images,
    /// What the node is short of.
    pub pressures: Pressures,
    /// What each pod has been allotted.
    pub allocations: Allocations,
    pub cgroups: Option<Cgroups>,
    /// The node's own name resolution, for pods that inherit it.
    pub resolver: Resolver,
    pub allocatable: BTreeMap<String, Quantity>,
    /// Bytes of memory of the machine.
    pub memory: i64,
}

pub(crate) type Shared = Arc<Context>;
