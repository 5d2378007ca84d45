//! The node's network: pod links and addresses, host ports, masquerading, and the nftables table that services live in. Speaks netlink
//! only; knows nothing of the API. All calls block for as long as the kernel takes (a few milliseconds at most).

mod conntrack;
mod error;
mod ipam;
mod link;
mod netlink;
mod netns;
mod nft;
mod node;
mod pods;
mod sysctl;

pub use conntrack::{Flow, forget_udp};
pub use error::{Error, Result};
pub use netns::{Namespace, within};
pub use nft::{apply, commit};
pub use node::{add_local_addresses, add_service_routes, remove_local_addresses, teardown};
pub use pods::{HostPort, PodNetwork, PodNetworkConfig};
pub use ruleset::Protocol;
