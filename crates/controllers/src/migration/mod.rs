//! StorageVersionMigrations: every object of a resource is written again as it is, so that it lies in the store in the
//! version and under the key that are in force now. For each resource one migration runs at a time, the oldest first.
//! A migration that was broken off goes on where it was: what is newer than its `resourceVersion` has been written since.

mod definition;
mod state;

use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, StreamExt, TryStreamExt};
use informer::{Informer, Key, Queue};
use k8s_openapi::api::storagemigration::v1beta1::StorageVersionMigration;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::Client;
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
use kube::core::{DynamicObject, ObjectMeta};
use serde_json::json;

use self::state::{FAILED, RUNNING, SUCCEEDED, Step, holds, step};
use crate::kit::discovery::{self, Kind};
use crate::kit::error::found;
use crate::kit::{Context, Error, Result, now, seconds_since, time};

/// The field manager of the writes; it comes to own nothing.
const MANAGER: &str = "storage-version-migrator-controller";
/// Objects in one read.
const PAGE: u32 = 500;
/// Objects that are written side by side.
const WRITES: usize = 8;
/// For how long after its creation a migration waits for its resource to become known.
const PATIENCE: i64 = 60;

struct Controller {
    client: Client,
    migrations: Arc<Informer<StorageVersionMigration>>,
}

/// Runs the controller, where it is asked for.
pub(crate) async fn run(context: Context) {
    if !context.config.storage_migration {
        return;
    }
    let migrations = context.informer::<StorageVersionMigration>();
    let queue = Queue::new();
    let (to, all) = (queue.clone(), migrations.clone());
    migrations.on_change(move |change| {
        // The end of one may be the turn of another.
        let resource = state::resource(change.latest());
        for one in all.list().iter().filter(|one| state::resource(one) == resource) {
            to.add(Key::of(one.as_ref()));
        }
    });
    migrations.synced().await;
    let this = Arc::new(Controller { client: context.client.clone(), migrations });
    let work = move |key: Key| {
        let this = this.clone();
        async move { this.sync(&key).await.map(|()| None::<Duration>) }
    };
    context.work("storage-version-migrator", 5, queue, work).await;
}

/// How a migration ended.
enum Ended {
    Done,
    Failed(String),
}

impl Controller {
    async fn sync(&self, key: &Key) -> Result<()> {
        let Some(migration) = self.migrations.get(key) else { return Ok(()) };
        match step(&migration, &self.migrations.list()) {
            Step::Wait => Ok(()),
            Step::Begin => self.begin(&migration).await,
            Step::Mark => self.mark(&migration).await,
            Step::Migrate => {
                let ended = self.migrate(&migration).await?;
                self.end(&migration, ended).await
            }
            Step::Close => self.close(&migration).await,
        }
    }

    async fn begin(&self, migration: &StorageVersionMigration) -> Result<()> {
        definition::begin(&self.client, migration).await?;
        self.tell(migration, condition(RUNNING, true, "MigrationRunning", "The migration is running".into()))
            .await
    }

    /// Records up to where objects are to be written again.
    async fn mark(&self, migration: &StorageVersionMigration) -> Result<()> {
        let kind = match self.kind(migration).await? {
            Ok(kind) => kind,
            Err(why) => return self.end(migration, Ended::Failed(why)).await,
        };
        let api = Api::<DynamicObject>::all_with(self.client.clone(), &kind.resource);
        let newest = api.list_metadata(&ListParams::default().limit(1)).await?;
        let mut copy = migration.clone();
        copy.status.get_or_insert_default().resource_version = newest.metadata.resource_version;
        self.write(&copy).await
    }

    /// The resource as the server has it; the inner error is why it cannot be migrated.
    async fn kind(&self, migration: &StorageVersionMigration) -> Result<std::result::Result<Kind, String>> {
        let (group, plural) = state::resource(migration);
        let all = discovery::kinds(&self.client).await?;
        let named = |one: &Kind| one.resource.group == group && one.resource.plural == plural;
        let Some(kind) = all.into_iter().find(named) else {
            let age = migration.metadata.creation_timestamp.as_ref().map(|at| seconds_since(at.0, now()));
            // It may have been defined a moment ago.
            if age.is_some_and(|age| age < PATIENCE) {
                return Err(Error::UnknownKind(state::qualified(&group, &plural)));
            }
            return Ok(Err("resource does not exist in discovery".to_owned()));
        };
        const VERBS: [&str; 3] = ["update", "patch", "list"];
        if !VERBS.iter().all(|verb| kind.can(verb)) {
            let name = state::qualified(&group, &plural);
            return Ok(Err(format!("resource {name:?} does not support discovery operations: {VERBS:?}")));
        }
        Ok(Ok(kind))
    }

    async fn migrate(&self, migration: &StorageVersionMigration) -> Result<Ended> {
        let kind = match self.kind(migration).await? {
            Ok(kind) => kind,
            Err(why) => return Ok(Ended::Failed(why)),
        };
        let upto = migration.status.as_ref().and_then(|status| status.resource_version.clone());
        let upto = upto.unwrap_or_default();
        let api = Api::<DynamicObject>::all_with(self.client.clone(), &kind.resource);
        let mut params = ListParams::default().limit(PAGE);
        loop {
            let page = api.list_metadata(&params).await?;
            let old = page.items.into_iter().map(|item| item.metadata).filter(|meta| {
                meta.resource_version.as_deref().is_some_and(|version| !state::newer(version, &upto))
            });
            let written = stream::iter(old).map(|meta| self.rewrite(&kind, meta)).buffer_unordered(WRITES);
            let failed: Vec<Option<String>> = written.try_collect().await?;
            if let Some(why) = failed.into_iter().flatten().next() {
                return Ok(Ended::Failed(why));
            }
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params.continue_token = Some(token),
                None => return Ok(Ended::Done),
            }
        }
    }

    /// Writes one object as it is. What somebody else has written or deleted since needs no more; the answer is what can
    /// never succeed.
    async fn rewrite(&self, kind: &Kind, meta: ObjectMeta) -> Result<Option<String>> {
        let name = meta.name.unwrap_or_default();
        let api = match meta.namespace.as_deref() {
            Some(namespace) if kind.namespaced => {
                Api::<DynamicObject>::namespaced_with(self.client.clone(), namespace, &kind.resource)
            }
            _ => Api::all_with(self.client.clone(), &kind.resource),
        };
        // An apply that names nothing changes nothing. With the uid a deleted object is not made anew.
        let patch = json!({
            "apiVersion": kind.resource.api_version, "kind": kind.resource.kind,
            "metadata": {"uid": meta.uid, "resourceVersion": meta.resource_version},
        });
        let done = api.patch_metadata(&name, &PatchParams::apply(MANAGER), &Patch::Apply(patch)).await;
        match done.map_err(Error::from) {
            Ok(_) => Ok(None),
            Err(error) if error.is_conflict() => Ok(None),
            Err(error) => match &error {
                Error::Client(kube::Error::Api(status)) if !passing(status.code) => {
                    Ok(Some(format!("{} {name}: {}", kind.resource.kind, status.message)))
                }
                _ => Err(error),
            },
        }
    }

    async fn end(&self, migration: &StorageVersionMigration, ended: Ended) -> Result<()> {
        let told = match ended {
            Ended::Done => condition(SUCCEEDED, true, "StorageVersionMigrationSucceeded", String::new()),
            Ended::Failed(why) => {
                let why = format!("migration encountered unhandled error: {why}");
                condition(FAILED, true, "StorageVersionMigrationFailed", why)
            }
        };
        self.tell(migration, told).await
    }

    /// A migration that has ended runs no more.
    async fn close(&self, migration: &StorageVersionMigration) -> Result<()> {
        definition::end(&self.client, migration, holds(migration, SUCCEEDED)).await?;
        self.tell(migration, condition(RUNNING, false, "MigrationCompleted", "Migration completed".into()))
            .await
    }

    async fn tell(&self, migration: &StorageVersionMigration, told: Condition) -> Result<()> {
        let mut copy = migration.clone();
        let conditions = copy.status.get_or_insert_default().conditions.get_or_insert_default();
        conditions.retain(|one| one.type_ != told.type_);
        conditions.push(told);
        self.write(&copy).await
    }

    async fn write(&self, migration: &StorageVersionMigration) -> Result<()> {
        let name = migration.metadata.name.as_deref().unwrap_or_default();
        let api = Api::<StorageVersionMigration>::all(self.client.clone());
        found(api.replace_status(name, &PostParams::default(), migration).await)?;
        Ok(())
    }
}

fn condition(kind: &str, holds: bool, reason: &str, message: String) -> Condition {
    Condition {
        type_: kind.to_owned(),
        status: if holds { "True" } else { "False" }.to_owned(),
        reason: reason.to_owned(),
        message,
        last_transition_time: time(now()),
        observed_generation: None,
    }
}

/// Whether an answer may be another one later.
fn passing(code: u16) -> bool {
    matches!(code, 429 | 500 | 503 | 504)
}
