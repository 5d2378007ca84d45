//! Sessions of real clients with the API server that stands alone: kubectl, the Python client, kube-rs. What people and
//! programs do with a cluster, done in order.

mod kube_rs;
mod kubectl;
mod ports;
mod python;
mod server;
