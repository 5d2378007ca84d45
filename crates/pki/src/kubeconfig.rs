//! Kubeconfig files in the form that every kubectl reads, with all credentials inline.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::Identity;

/// A kubeconfig with one cluster, one user and one context, all called by `name` (`user@name` for the context is not
/// used: one name is easier to merge and to remove).
pub fn kubeconfig(name: &str, server: &str, ca_pem: &str, identity: &Identity) -> String {
    let ca = STANDARD.encode(ca_pem);
    let cert = STANDARD.encode(&identity.cert_pem);
    let key = STANDARD.encode(&identity.key_pem);
    let name = quoted(name);
    let server = quoted(server);
    format!(
        "apiVersion: v1\n\
         kind: Config\n\
         clusters:\n\
         - name: {name}\n  cluster:\n    server: {server}\n    certificate-authority-data: {ca}\n\
         users:\n\
         - name: {name}\n  user:\n    client-certificate-data: {cert}\n    client-key-data: {key}\n\
         contexts:\n\
         - name: {name}\n  context:\n    cluster: {name}\n    user: {name}\n\
         current-context: {name}\n\
         preferences: {{}}\n"
    )
}

/// A kubeconfig without a user: what a joining node may know before it has an identity.
pub fn cluster_info(server: &str, ca_pem: &str) -> String {
    let ca = STANDARD.encode(ca_pem);
    let server = quoted(server);
    format!(
        "apiVersion: v1\nkind: Config\nclusters:\n- name: \"\"\n  cluster:\n    server: {server}\n    \
         certificate-authority-data: {ca}\nusers: []\ncontexts: []\ncurrent-context: \"\"\npreferences: {{}}\n"
    )
}

/// A YAML double-quoted scalar.
fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
