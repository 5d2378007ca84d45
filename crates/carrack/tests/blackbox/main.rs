//! Black-box tests: the real binary, real containers, real kubectl, each test on a machine of its own (a set of
//! namespaces). What a user can do, done.

mod claims;
mod configuration;
mod crashes;
mod csi;
mod faults;
mod images;
mod joining;
mod lifecycle;
mod machine;
mod network;
mod node_api;
mod resources;
mod static_pods;
mod storage;
mod workloads;
mod wrong_input;
