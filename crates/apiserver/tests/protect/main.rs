//! What keeps a server well and accountable, on whole servers over real stores.

mod fairness;
mod harness;
