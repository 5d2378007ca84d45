//! Keys and certificates of a cluster: authorities, serving and client certificates, signing requests, the
//! ServiceAccount signing key, kubeconfig files. ring does the cryptography; nothing here talks to a network.
#![forbid(unsafe_code)]

mod certificate;
mod cluster;
mod csr;
mod der;
mod error;
pub mod files;
mod key;
mod kubeconfig;
#[cfg(test)]
mod tests;
mod token;

pub use certificate::{AltNames, Authority, Identity, Leaf, Usage, certificate_der, not_after};
pub use cluster::{ClusterPki, LEAF_LIFETIME, apiserver_names};
pub use csr::Request;
pub use error::Error;
pub use key::Key;
pub use kubeconfig::{cluster_info, kubeconfig};
pub use token::{detached_signature, key_id, sign_token};

pub fn pem_block(tag: &str, der: &[u8]) -> String {
    let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    pem::encode_config(&pem::Pem::new(tag, der), config)
}
