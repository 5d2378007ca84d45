//! Dynamic resource allocation: the claims that pods get from templates, and what becomes of pods whose devices are tainted.

mod claims;
mod taints;

pub(crate) use claims::run as claims;
pub(crate) use taints::run as taints;
