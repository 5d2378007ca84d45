//! The built-in kinds as rows: the type table, the resource table, and for each kind a [`Strategy`]. Pure: no I/O.

mod behavior;
pub mod custom;
pub mod expressions;
pub mod fields;
pub mod kinds;
pub mod labels;
pub mod names;
pub mod quota;
pub mod read;
mod resource;
mod strategy;
mod table;

pub use behavior::{Behavior, Custom, Findings};
pub use resource::{Column, Resource, Resources, Subresource};
pub use schema::field::{self, FieldError, FieldErrorKind};
pub use schema::quantity;
pub use strategy::{
    ScalePaths, Strategy, generic_prepare_create, generic_prepare_status, generic_prepare_update,
    generic_row, ratchet,
};
pub use table::{Gated, bootstrap, gated, resources, types};

#[cfg(test)]
mod tests;
