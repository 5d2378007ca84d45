//! Custom resources on a whole server.

mod conversion;
mod lifecycle;
mod published;
#[path = "../support/mod.rs"]
mod support;
