//! The kinds of resource.k8s.io: claims, classes and slices, and what they share.

mod claim;
mod selectors;
mod shared;
mod slice;
mod status;
#[cfg(test)]
mod tests;

pub(crate) use claim::{claim, claim_template, class, same_spec};
pub use selectors::selector_env;
pub(crate) use slice::{slice, slice_update};
pub(crate) use status::claim_status;
