//! Who may come in and where requests go, against whole servers: aggregation, credentials, rights.

mod aggregation;
mod credentials;
mod nodes;
mod support;
mod walk;
