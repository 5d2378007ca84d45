//! What keeps a server well and accountable, on whole servers over real stores.

mod audit;
mod encryption;
mod fairness;
mod harness;
mod health;
mod limits;
mod tracing;
