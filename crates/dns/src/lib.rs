//! Cluster DNS: answers for the cluster's domain from memory, straight from the watch, and forwards everything else.

#![forbid(unsafe_code)]

pub mod wire;
