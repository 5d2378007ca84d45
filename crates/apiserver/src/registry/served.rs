//! A resource as it is served in one version, and how its objects get from the stored form into that version and back.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use api::Resource;
use bytes::Bytes;
use futures::future::BoxFuture;
use serde_json::Value;
use store::Compare;
use tokio_util::sync::CancellationToken;

use super::cache::Cache;
use super::object::{Object, encode};
use super::{convert, feed};
use crate::Status;
use crate::read::Read;

/// Objects in one conversion; a longer list is converted in several.
const BATCH: usize = 500;

/// The way between the stored objects and one version of a kind that is defined while the server runs.
pub trait Convert: Send + Sync {
    /// Stored objects as this version shows them: converted, pruned and defaulted. As many come out as went in.
    fn read<'a>(&'a self, objects: Vec<Value>) -> BoxFuture<'a, Result<Vec<Value>, Status>>;

    /// The same where nobody can wait; `None` if somebody else would have to be asked.
    fn read_now(&self, object: Value) -> Option<Value>;

    /// An object of this version in the form that is stored.
    fn store<'a>(&'a self, object: Value) -> BoxFuture<'a, Result<Value, Status>>;

    /// An object of this version in another one of its kind, with the type that it has there in the resource's table;
    /// `None` if that version does not exist.
    fn other<'a>(
        &'a self,
        object: Value,
        version: &'a str,
    ) -> BoxFuture<'a, Result<Option<(schema::TypeId, Value)>, Status>>;
}

/// How the stored objects become those of a version.
#[derive(Clone)]
pub enum Form {
    /// They are shown as they lie.
    Stored,
    /// By functions of a built-in kind.
    BuiltIn(&'static convert::Conversion),
    /// By the rules of a custom resource.
    Custom(Arc<dyn Convert>),
}

/// The stored object that a row was made from. Nothing is created in the row once that is gone, replaced or on its way out:
/// each create compares its revision in the same transaction, whichever server it comes through.
pub struct Anchor {
    cache: Arc<Cache>,
    key: String,
    store_key: Bytes,
    uid: String,
    /// Why nothing is created any more.
    closed: &'static str,
    /// The newest revision that was looked at and found to stand.
    seen: AtomicU64,
}

impl Anchor {
    /// The object at `key` of another row, as long as it has this uid.
    pub fn new(row: &Served, key: &str, uid: &str, closed: &'static str) -> Self {
        Self {
            cache: row.cache.clone(),
            key: key.to_owned(),
            store_key: feed::join(&row.storage.0, &row.storage.1, key),
            uid: uid.to_owned(),
            closed,
            seen: AtomicU64::new(0),
        }
    }

    /// What a create has to compare; an error if the object does not stand any more.
    pub fn compare(&self) -> Result<Compare, Status> {
        let object = self.cache.get(&self.key).ok_or_else(Status::no_such_resource)?;
        if self.seen.load(Ordering::Relaxed) != object.revision {
            let value = object.value()?;
            if value.uid() != self.uid {
                return Err(Status::no_such_resource());
            }
            if value.has("metadata.deletionTimestamp") {
                return Err(closed(self.closed));
            }
            self.seen.store(object.revision, Ordering::Relaxed);
        }
        Ok(Compare { key: self.store_key.clone(), mod_revision: object.revision })
    }
}

/// The answer to a create where nothing may be created.
pub fn closed(why: &str) -> Status {
    Status::new(405, "MethodNotAllowed", why).with_causes(Vec::new())
}

/// A resource as it is served in one version.
pub struct Served {
    pub resource: Arc<Resource>,
    pub cache: Arc<Cache>,
    /// Where the objects are stored: group and plural name.
    pub storage: (String, String),
    /// Whether this is the version in which the objects are stored.
    pub primary: bool,
    /// Cancelled when the row is replaced or taken away: its watches end.
    pub gone: CancellationToken,
    /// Why nothing may be created: the resource is about to go.
    pub closed: OnceLock<&'static str>,
    /// No watch begins before this revision: the resource was not what it is now.
    pub since: u64,
    /// The warning that every use gives.
    pub deprecation: Option<Arc<str>>,
    /// What must stand for anything to be created.
    pub anchor: Option<Anchor>,
    form: Form,
    id: u64,
}

static NEXT: AtomicU64 = AtomicU64::new(1);

impl Served {
    pub fn new(
        resource: Arc<Resource>,
        cache: Arc<Cache>,
        storage: (String, String),
        primary: bool,
        form: Form,
    ) -> Self {
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        Self {
            resource,
            cache,
            storage,
            primary,
            gone: CancellationToken::new(),
            closed: OnceLock::new(),
            since: 0,
            deprecation: None,
            anchor: None,
            form,
            id,
        }
    }

    /// No other row has or had the same.
    pub fn id(&self) -> u64 {
        self.id
    }

    pub fn group(&self) -> &str {
        &self.resource.group
    }

    pub fn plural(&self) -> &str {
        &self.resource.plural
    }

    /// The key of an object in the cache.
    pub fn key(&self, namespace: &str, name: &str) -> String {
        if self.resource.namespaced { format!("{namespace}/{name}") } else { name.to_owned() }
    }

    /// What every key of a namespace begins with; the empty prefix means all.
    pub fn prefix(&self, namespace: &str) -> String {
        if self.resource.namespaced && !namespace.is_empty() {
            format!("{namespace}/")
        } else {
            String::new()
        }
    }

    pub fn not_found(&self, name: &str) -> Status {
        Status::not_found(self.group(), self.plural(), name)
    }

    /// Whether the objects are shown as they are stored.
    pub fn is_stored(&self) -> bool {
        matches!(self.form, Form::Stored)
    }

    /// Whether selectors look at the stored objects; those of custom resources look at the version served.
    pub fn selects_stored(&self) -> bool {
        !matches!(self.form, Form::Custom(_))
    }

    /// An object of the cache as this version shows it.
    pub async fn view(&self, object: &Arc<Object>) -> Result<Arc<Object>, Status> {
        match &self.form {
            Form::Stored => Ok(object.clone()),
            Form::BuiltIn(conversion) => self.built_in(conversion, object),
            Form::Custom(custom) => {
                let view = object.view(self.id);
                let shown = view.get_or_try_init(|| async {
                    let mut values = custom.read(vec![object.value()?]).await?;
                    let value =
                        values.pop().ok_or_else(|| Status::internal("a conversion lost an object"))?;
                    shown(object, &value)
                });
                Ok(shown.await?.clone().unwrap_or_else(|| object.clone()))
            }
        }
    }

    /// Several objects; what has to be converted is converted together.
    pub async fn views(&self, mut objects: Vec<Arc<Object>>) -> Result<Vec<Arc<Object>>, Status> {
        let custom = match &self.form {
            Form::Stored => return Ok(objects),
            Form::BuiltIn(conversion) => {
                return objects.iter().map(|object| self.built_in(conversion, object)).collect();
            }
            Form::Custom(custom) => custom,
        };
        for batch in objects.chunks_mut(BATCH) {
            let missing: Vec<_> = batch
                .iter()
                .map(|object| (object.clone(), object.view(self.id)))
                .filter(|(_, view)| !view.initialized())
                .collect();
            if !missing.is_empty() {
                let values: Result<Vec<Value>, Status> = missing.iter().map(|(o, _)| o.value()).collect();
                let values = custom.read(values?).await?;
                if values.len() != missing.len() {
                    return Err(Status::internal("a conversion lost an object"));
                }
                for ((object, view), value) in missing.iter().zip(&values) {
                    // Somebody else may have been faster.
                    drop(view.set(shown(object, value)?));
                }
            }
            for object in batch {
                *object = self.view(object).await?;
            }
        }
        Ok(objects)
    }

    /// The tree of an object of the cache as this version shows it.
    pub async fn read(&self, object: &Arc<Object>) -> Result<Value, Status> {
        match &self.form {
            Form::Stored => object.value(),
            _ => self.view(object).await?.value(),
        }
    }

    /// The same where nobody can wait: an object that a webhook would have to convert is shown as it is stored.
    pub fn read_now(&self, object: &Object) -> Result<Value, Status> {
        let value = object.value()?;
        Ok(match &self.form {
            Form::Stored => value,
            Form::BuiltIn(conversion) => self.converted(conversion, value),
            Form::Custom(custom) => custom.read_now(value.clone()).unwrap_or(value),
        })
    }

    /// An object of this version in the form that is stored.
    pub async fn store(&self, mut object: Value) -> Result<Value, Status> {
        match &self.form {
            Form::Stored => Ok(object),
            Form::BuiltIn(conversion) => {
                (conversion.to_storage)(&mut object);
                Ok(object)
            }
            Form::Custom(custom) => custom.store(object).await,
        }
    }

    /// An object of this version in another one (`apps/v1`) of its kind, with its type there.
    pub async fn other(
        &self,
        object: &Value,
        version: &str,
    ) -> Result<Option<(schema::TypeId, Value)>, Status> {
        match &self.form {
            Form::Custom(custom) => custom.other(object.clone(), version).await,
            _ => Ok(convert::between(&self.resource, object, version)),
        }
    }

    /// The same where it takes no waiting; the outer `None` where it may.
    pub fn other_now(&self, object: &Value, version: &str) -> Option<Option<(schema::TypeId, Value)>> {
        self.selects_stored().then(|| convert::between(&self.resource, object, version))
    }

    fn converted(&self, conversion: &convert::Conversion, mut value: Value) -> Value {
        (conversion.from_storage)(&mut value);
        self.resource.normalize(&mut value);
        value
    }

    fn built_in(
        &self,
        conversion: &convert::Conversion,
        object: &Arc<Object>,
    ) -> Result<Arc<Object>, Status> {
        let value = self.converted(conversion, object.value()?);
        Ok(Arc::new(object.with(&encode(&value)?)?))
    }
}

/// A converted object; `None` if it is the stored one.
fn shown(object: &Arc<Object>, value: &Value) -> Result<Option<Arc<Object>>, Status> {
    let shown = object.with(&encode(value)?)?;
    Ok((shown.json() != object.json()).then(|| Arc::new(shown)))
}
