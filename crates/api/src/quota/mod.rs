//! What ResourceQuotas count: admission charges by these rules and the controller counts anew by them, so that the two
//! always agree (upstream: `pkg/quota/v1/evaluator/core`).

pub mod amounts;
mod scopes;
mod usage;

pub use scopes::{in_scope, terminating};
pub use usage::{Charge, compute};

/// Resources that are not stored, and events.
const IGNORED: [(&str, &str); 11] = [
    ("", "namespaces"),
    ("", "bindings"),
    ("", "componentstatuses"),
    ("", "events"),
    ("events.k8s.io", "events"),
    ("authentication.k8s.io", "tokenreviews"),
    ("authentication.k8s.io", "selfsubjectreviews"),
    ("authorization.k8s.io", "subjectaccessreviews"),
    ("authorization.k8s.io", "selfsubjectaccessreviews"),
    ("authorization.k8s.io", "localsubjectaccessreviews"),
    ("authorization.k8s.io", "selfsubjectrulesreviews"),
];

/// Whether objects of this resource are never counted.
pub fn is_ignored(group: &str, resource: &str) -> bool {
    IGNORED.contains(&(group, resource))
}
