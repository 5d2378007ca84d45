//! What a migration needs next, told by its conditions and those of the others.

use std::cmp::Ordering;
use std::sync::Arc;

use k8s_openapi::api::storagemigration::v1beta1::StorageVersionMigration as Migration;

pub(super) const RUNNING: &str = "Running";
pub(super) const SUCCEEDED: &str = "Succeeded";
pub(super) const FAILED: &str = "Failed";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing, or another one of the resource comes first.
    Wait,
    /// Say that it runs.
    Begin,
    /// Record up to which version objects are to be written again.
    Mark,
    Migrate,
    /// It has ended: say that it runs no more.
    Close,
}

/// Group and plural name of what is migrated.
pub(super) fn resource(migration: &Migration) -> (String, String) {
    let resource = migration.spec.as_ref().map(|spec| &spec.resource);
    resource.map(|one| (one.group.clone(), one.resource.clone())).unwrap_or_default()
}

/// `widgets.example.com`, or `secrets`.
pub(super) fn qualified(group: &str, plural: &str) -> String {
    if group.is_empty() { plural.to_owned() } else { format!("{plural}.{group}") }
}

pub(super) fn holds(migration: &Migration, kind: &str) -> bool {
    let conditions = migration.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|one| one.type_ == kind && one.status == "True")
}

fn ended(migration: &Migration) -> bool {
    holds(migration, SUCCEEDED) || holds(migration, FAILED)
}

/// Whether the first resourceVersion is above the second, however many digits they have.
pub(super) fn newer(one: &str, other: &str) -> bool {
    one.len().cmp(&other.len()).then_with(|| one.cmp(other)) == Ordering::Greater
}

pub(super) fn step(migration: &Migration, all: &[Arc<Migration>]) -> Step {
    let running = holds(migration, RUNNING);
    if ended(migration) {
        return if running { Step::Close } else { Step::Wait };
    }
    if running {
        let version = migration.status.as_ref().and_then(|status| status.resource_version.as_deref());
        return if version.unwrap_or_default().is_empty() { Step::Mark } else { Step::Migrate };
    }
    let place = |one: &Migration| {
        let created = one.metadata.creation_timestamp.as_ref().map(|at| at.0);
        (created, one.metadata.name.clone())
    };
    let own = resource(migration);
    let first = all
        .iter()
        .filter(|other| resource(other) == own && other.metadata.uid != migration.metadata.uid)
        .all(|other| !holds(other, RUNNING) && (ended(other) || place(migration) < place(other)));
    if first { Step::Begin } else { Step::Wait }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn migration(name: &str, resource: &str, version: &str, conditions: &[&str]) -> Arc<Migration> {
        let conditions: Vec<_> = conditions
            .iter()
            .map(|kind| {
                json!({"type": kind, "status": "True", "reason": "R", "message": "",
                    "lastTransitionTime": "2026-01-01T00:00:00Z"})
            })
            .collect();
        let whole = json!({
            "metadata": {"name": name, "uid": name, "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"resource": {"group": "", "resource": resource}},
            "status": {"resourceVersion": version, "conditions": conditions},
        });
        Arc::new(serde_json::from_value(whole).expect("a migration"))
    }

    #[test]
    fn one_runs_at_a_time_for_each_resource() {
        let check = |all: &[Arc<Migration>], expect: &[Step]| {
            let steps: Vec<Step> = all.iter().map(|one| step(one, all)).collect();
            assert_eq!(steps, expect);
        };
        let new = |name| migration(name, "secrets", "", &[]);
        check(&[new("a"), new("b")], &[Step::Begin, Step::Wait]);
        check(&[migration("a", "pods", "", &[]), new("b")], &[Step::Begin, Step::Begin]);
        check(&[new("a"), migration("b", "secrets", "", &[RUNNING])], &[Step::Wait, Step::Mark]);
        check(&[migration("a", "secrets", "7", &[RUNNING]), new("b")], &[Step::Migrate, Step::Wait]);
        check(&[migration("a", "secrets", "7", &[RUNNING, FAILED]), new("b")], &[Step::Close, Step::Wait]);
        check(&[migration("a", "secrets", "7", &[SUCCEEDED]), new("b")], &[Step::Wait, Step::Begin]);
    }

    #[test]
    fn versions_are_numbers_of_any_length() {
        assert!(newer("10", "9") && newer("123456789012345678901", "2") && newer("12", "11"));
        assert!(!newer("9", "10") && !newer("7", "7"));
    }
}
