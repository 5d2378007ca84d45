//! What all pods of the node share.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::KubeletConfig;
use crate::allocation::Allocations;
use crate::cgroups::Cgroups;
use crate::claims::ClaimManager;
use crate::csi::Csi;
use crate::devices::Devices;
use crate::dns::Resolver;
use crate::events::Recorder;
use crate::eviction::Pressures;
use crate::features::Features;
use crate::images::Images;
use crate::metrics::Metrics;
use crate::objects::Objects;
use crate::pinning::Pinning;
use crate::resize::Rules;
use crate::runtime::Cri;
use crate::services::Services;
use crate::tokens::Tokens;
use crate::userns::UserNamespaces;

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
    /// Whether the machine goes down.
    pub going_down: tokio::sync::watch::Sender<bool>,
    pub features: Features,
    /// Ranges of ids of pods with user namespaces.
    pub users: UserNamespaces,
    pub rules: Rules,
    /// Who has which processors and memory.
    pub pinning: Pinning,
    /// The pods' ResourceClaims.
    pub claims: ClaimManager,
    /// Devices that plug-ins offer.
    pub devices: Arc<Devices>,
    /// Bytes of memory of the machine.
    pub memory: i64,
    /// When this process began.
    pub started: jiff::Timestamp,
}

pub(crate) type Shared = Arc<Context>;
