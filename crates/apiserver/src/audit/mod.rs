//! Audit: who did what, when, and how it was answered.

mod record;

pub use record::{Level, Record};
