//! From services and endpoints to the nftables ruleset that is to be in force: pure data in, pure data out.

#![forbid(unsafe_code)]

mod diff;
pub mod nft;
mod protocol;

pub use diff::{Step, Transaction, diff};
pub use nft::Ruleset;
pub use protocol::{Family, Protocol};

/// Name of the table that services live in.
pub const SERVICES_TABLE: &str = "carrack";
