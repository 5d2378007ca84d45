//! The kinds of rbac.authorization.k8s.io.

use super::json::{Read, Write};
use super::prepare;
use crate::Strategy;

const GROUP: &str = "rbac.authorization.k8s.io";

pub(super) static ROLE: Strategy = ROLE_BASE;
pub(super) static CLUSTER_ROLE: Strategy = ROLE_BASE;

const ROLE_BASE: Strategy = Strategy {
    prepare_create: prepare::nothing,
    prepare_update: prepare::keep_generation,
    allow_create_on_update: true,
    ..Strategy::GENERIC
};

pub(super) static ROLE_BINDING: Strategy = BINDING_BASE;
pub(super) static CLUSTER_ROLE_BINDING: Strategy = BINDING_BASE;

const BINDING_BASE: Strategy = Strategy {
    default: |binding| {
        binding.child("roleRef").fill_zero("apiGroup", GROUP);
        for subject in binding.items_mut("subjects") {
            if matches!(subject.text("kind"), "User" | "Group") {
                subject.fill_zero("apiGroup", GROUP);
            }
        }
    },
    ..ROLE_BASE
};

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn subjects_get_their_group() {
        let mut binding = json!({"roleRef": {"kind": "Role", "name": "a"},
            "subjects": [{"kind": "User", "name": "u"}, {"kind": "ServiceAccount", "name": "s"}]});
        (ROLE_BINDING.default)(&mut binding);
        assert_eq!(binding["roleRef"]["apiGroup"], GROUP);
        assert_eq!(binding["subjects"][0]["apiGroup"], GROUP);
        assert_eq!(binding["subjects"][1].get("apiGroup"), None);
    }
}
