//! Dynamic resource allocation: `DRAPlugin`, which a driver serves on each node, in the versions that drivers speak.

/// `dra/v1`.
#[allow(missing_docs, clippy::all, rust_2018_idioms)]
#[path = "generated/dra_v1.rs"]
pub mod v1;

/// `dra/v1beta1`: the same messages under another service name.
#[allow(missing_docs, clippy::all, rust_2018_idioms)]
#[path = "generated/dra_v1beta1.rs"]
pub mod v1beta1;

/// `dra-health/v1alpha1`: `DRAResourceHealth`, which tells the health of a driver's devices.
#[allow(missing_docs, clippy::all, rust_2018_idioms)]
#[path = "generated/dra_health.rs"]
pub mod health;
