//! The end of a definition: its instances are deleted, and when the last is gone it goes itself.

use std::sync::Arc;

use serde_json::Value;
use tokio::sync::watch::Receiver;

use super::special::FINALIZER;
use super::{conditions, rows};
use crate::Status;
use crate::read::{Read, object_mut};
use crate::registry::Served;
use crate::server::Server;
use crate::verbs::delete::{DeleteOptions, delete_with};
use crate::verbs::write::Checks;

/// Whether a definition waits for its instances to go.
pub fn is_going(object: &Value) -> bool {
    object.has("metadata.deletionTimestamp") && object.texts("metadata.finalizers").any(|f| f == FINALIZER)
}

/// Takes the next step. The answer rings when an instance changes, if there are any left.
pub async fn step(server: &Arc<Server>, object: &Value) -> Result<Option<Receiver<u64>>, Status> {
    let name = object.name();
    let Some((_, row)) = server.definitions.stored(name) else {
        return unserved(server, object).await;
    };
    let bell = row.cache.bell();
    // Nothing is created any more (see `registry::Anchor`); what was created before is in the cache from here on.
    server.registry.fresh().await?;
    if row.cache.count() > 0 {
        let message = "CustomResource deletion is in progress";
        tell(server, object, (IN_PROGRESS, message), &[IN_PROGRESS, FAILED]).await?;
        if let Err(status) = delete(server, &row).await {
            let message = format!("could not issue all deletes: {}", status.message());
            tell(server, object, (FAILED, &message), &[FAILED]).await?;
            return Err(status);
        }
    }
    server.registry.fresh().await?;
    if row.cache.count() > 0 {
        return Ok(Some(bell));
    }
    gone(server, object, "InstanceDeletionCompleted", "removed all instances").await
}

/// The end of a definition that is not served: it never was, or what is stored cannot be read any more.
async fn unserved(server: &Arc<Server>, object: &Value) -> Result<Option<Receiver<u64>>, Status> {
    let registry = &server.registry;
    let revision = registry.fresh().await?;
    let (group, plural) =
        rows::storage(registry, object.text("spec.group"), object.text("spec.names.plural"));
    if registry.caches.of(&group, &plural, revision).count() == 0 {
        return match conditions::is_true(object, "Established") {
            true => gone(server, object, "InstanceDeletionCompleted", "removed all instances").await,
            false => gone(server, object, "NeverEstablished", "resource was never established").await,
        };
    }
    let message = "could not list instances: the definition cannot be served as it stands";
    tell(server, object, (FAILED, message), &[FAILED]).await?;
    Err(Status::internal(message))
}

const IN_PROGRESS: &str = "InstanceDeletionInProgress";
const FAILED: &str = "InstanceDeletionFailed";

/// Tells how far the deletion is, unless the definition gives one of the reasons `known` already: a failure that lasts is
/// told once.
async fn tell(
    server: &Arc<Server>,
    object: &Value,
    (reason, message): (&str, &str),
    known: &[&str],
) -> Result<(), Status> {
    let row = rows::definitions(server).ok_or_else(Status::no_such_resource)?;
    let Some(present) = server.registry.get(&row, object.name()).await? else { return Ok(()) };
    let mut object = present.value()?;
    let told = conditions::find(&object, "Terminating");
    if !is_going(&object) || told.is_some_and(|c| known.contains(&c.text("reason"))) {
        return Ok(());
    }
    conditions::set(&mut object, "Terminating", true, reason, message);
    conditions::write(server, &object).await
}

/// Deletes all instances; what goes wrong with one does not keep the others.
async fn delete(server: &Arc<Server>, row: &Arc<Served>) -> Result<(), Status> {
    let options = DeleteOptions::default();
    let mut failed = None;
    for instance in row.cache.list("", None).0 {
        match delete_with(server, row, &instance.key, instance.name(), &options, &Checks::OWN).await {
            Err(status) if status.code() == 404 => {}
            Err(status) => failed = Some(status),
            Ok(_) => {}
        }
    }
    failed.map_or(Ok(()), Err)
}

/// Lets the definition go.
async fn gone(
    server: &Arc<Server>,
    object: &Value,
    reason: &str,
    message: &str,
) -> Result<Option<Receiver<u64>>, Status> {
    let row = rows::definitions(server).ok_or_else(Status::no_such_resource)?;
    // The condition may have been written just now.
    let Some(present) = server.registry.get(&row, object.name()).await? else { return Ok(None) };
    let mut object = present.value()?;
    if !is_going(&object) {
        return Ok(None);
    }
    conditions::set(&mut object, "Terminating", false, reason, message);
    let left: Vec<Value> =
        object.items("metadata.finalizers").iter().filter(|f| *f != FINALIZER).cloned().collect();
    let metadata = object_mut(&mut object, "metadata");
    match left.is_empty() {
        true => drop(metadata.remove("finalizers")),
        false => drop(metadata.insert("finalizers".to_owned(), left.into())),
    }
    conditions::write(server, &object).await?;
    Ok(None)
}
