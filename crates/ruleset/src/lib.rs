//! From services and endpoints to the nftables ruleset that is to be in force: pure data in, pure data out.

#![forbid(unsafe_code)]

mod diff;
mod endpoints;
pub mod nft;
mod protocol;
mod services;

pub use diff::{Step, Transaction, diff};
pub use endpoints::{Choice, Endpoint, choose};
pub use nft::Ruleset;
pub use protocol::{Family, Protocol};
pub use services::{Node, ServicePort, services};

/// Name of the table that services live in.
pub const SERVICES_TABLE: &str = "carrack";
