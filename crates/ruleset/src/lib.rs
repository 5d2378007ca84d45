//! From services and endpoints to the nftables ruleset that is to be in force: pure data in, pure data out.

#![forbid(unsafe_code)]

mod protocol;

pub use protocol::{Family, Protocol};
