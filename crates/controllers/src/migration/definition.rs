//! A migration of custom resources in the status of their definition: the condition `StorageMigrating`, and in the end the
//! versions in which objects are still stored, so that an old version may be dropped.

use k8s_openapi::api::storagemigration::v1beta1::StorageVersionMigration;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};

use super::state;
use crate::kit::error::found;
use crate::kit::{Result, now, time};

const MANAGER: &str = "migration-runner-controller";
const MIGRATING: &str = "StorageMigrating";

async fn definition(
    client: &Client,
    migration: &StorageVersionMigration,
) -> Result<Option<CustomResourceDefinition>> {
    let (group, plural) = state::resource(migration);
    if group.is_empty() {
        return Ok(None);
    }
    let api = Api::<CustomResourceDefinition>::all(client.clone());
    found(api.get(&state::qualified(&group, &plural)).await)
}

/// Says that the migration runs, for the definition as it is now.
pub(super) async fn begin(client: &Client, migration: &StorageVersionMigration) -> Result<()> {
    let Some(definition) = definition(client, migration).await? else { return Ok(()) };
    let name = migration.metadata.name.as_deref().unwrap_or_default();
    let status = json!({"conditions": [
        condition(&definition, true, "MigrationRunning", &format!("Migration {name} is running")),
    ]});
    apply(client, &definition, status).await
}

/// Says that it has ended. Where the definition has not changed since it began, nothing is stored in an older version.
pub(super) async fn end(client: &Client, migration: &StorageVersionMigration, succeeded: bool) -> Result<()> {
    let Some(definition) = definition(client, migration).await? else { return Ok(()) };
    let conditions = definition.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let begun = conditions.into_iter().find(|one| one.type_ == MIGRATING);
    let same = begun.is_some_and(|one| one.observed_generation == definition.metadata.generation);
    let (reason, message) = match (succeeded, same) {
        (false, _) => ("MigrationFailed", "The migration has failed"),
        (true, true) => {
            ("MigrationSucceeded", "The migration has succeeded and the stored versions have been updated")
        }
        (true, false) => (
            "MigrationSucceeded",
            "The migration has succeeded but the stored versions have not been updated due to a generation mismatch",
        ),
    };
    let mut status = json!({"conditions": [condition(&definition, false, reason, message)]});
    let stored = definition.spec.versions.iter().find(|version| version.storage);
    if let Some(stored) = stored.filter(|_| succeeded && same) {
        status["storedVersions"] = json!([stored.name]);
    }
    apply(client, &definition, status).await
}

fn condition(definition: &CustomResourceDefinition, holds: bool, reason: &str, message: &str) -> Value {
    json!({
        "type": MIGRATING, "status": if holds { "True" } else { "False" }, "reason": reason, "message": message,
        "lastTransitionTime": time(now()), "observedGeneration": definition.metadata.generation,
    })
}

/// Writes the status of the definition as it was read; a conflict means to look again.
async fn apply(client: &Client, definition: &CustomResourceDefinition, status: Value) -> Result<()> {
    let name = definition.metadata.name.as_deref().unwrap_or_default();
    let patch = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": name, "resourceVersion": definition.metadata.resource_version},
        "status": status,
    });
    let api = Api::<CustomResourceDefinition>::all(client.clone());
    found(api.patch_status(name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(patch)).await)?;
    Ok(())
}
