//! Reading of JSON objects by path.

pub(crate) use api::read::{Read, object_mut};
