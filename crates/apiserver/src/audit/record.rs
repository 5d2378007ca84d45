//! What is noted of one request while it is served, for its audit events.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use serde_json::Value;

use crate::UserInfo;

/// How much of a request an event holds; later ones hold all that earlier ones do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    #[default]
    None,
    Metadata,
    Request,
    RequestResponse,
}

impl Level {
    /// The name in policies and events.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Metadata => "Metadata",
            Self::Request => "Request",
            Self::RequestResponse => "RequestResponse",
        }
    }

    /// The level of a name.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::None, Self::Metadata, Self::Request, Self::RequestResponse]
            .into_iter()
            .find(|l| l.name() == name)
    }
}

/// At most so many annotations are kept of one request, so that no webhook can make an event grow without bound.
const MOST_ANNOTATIONS: usize = 256;

/// What the object of the request tells of itself, where the path does not.
#[derive(Clone, Debug, Default)]
pub struct Reference {
    pub name: String,
    pub namespace: String,
    pub uid: String,
    pub resource_version: String,
}

/// The parts of the events that are found out on the way.
#[derive(Debug, Default)]
pub struct Noted {
    pub annotations: BTreeMap<String, String>,
    pub reference: Reference,
    pub request: Option<Value>,
    pub impersonated: Option<std::sync::Arc<UserInfo>>,
}

/// The notes of one request. Everything may be noted at any time; what the level does not ask for is dropped at once.
#[derive(Debug, Default)]
pub struct Record {
    level: Mutex<Option<Level>>,
    noted: Mutex<Noted>,
}

impl Record {
    /// A record of a request that is not audited.
    pub fn off() -> Self {
        Self { level: Mutex::new(Some(Level::None)), noted: Mutex::default() }
    }

    /// Sets the level once the policy has decided.
    pub fn decide(&self, level: Level) {
        *self.level.lock() = Some(level);
        if level == Level::None {
            *self.noted.lock() = Noted::default();
        }
    }

    /// Whether what belongs to a level is asked for; before the policy has decided it may be.
    pub fn wants(&self, level: Level) -> bool {
        self.level.lock().is_none_or(|own| own >= level)
    }

    /// Notes an annotation; the first value of a key stays.
    pub fn annotate(&self, key: impl Into<String>, value: impl Into<String>) {
        self.annotate_at(Level::Metadata, key, value);
    }

    /// Notes an annotation that only events of a level and higher ones hold.
    pub fn annotate_at(&self, level: Level, key: impl Into<String>, value: impl Into<String>) {
        if !self.wants(level) {
            return;
        }
        let mut noted = self.noted.lock();
        let (key, value) = (key.into(), value.into());
        match noted.annotations.get(&key) {
            Some(old) if *old != value => {
                tracing::warn!(key, "an audit annotation is set twice; the first value stays");
            }
            Some(_) => {}
            None if noted.annotations.len() < MOST_ANNOTATIONS => {
                noted.annotations.insert(key, value);
            }
            None => tracing::warn!(key, "a request has too many audit annotations; this one is left out"),
        }
    }

    /// Notes the object that a request brings.
    pub fn object(&self, object: &Value) {
        if !self.wants(Level::Metadata) {
            return;
        }
        let text = |key: &str| {
            let text = object.get("metadata").and_then(|m| m.get(key)).and_then(Value::as_str);
            text.unwrap_or_default().to_owned()
        };
        let reference = Reference {
            name: text("name"),
            namespace: text("namespace"),
            uid: text("uid"),
            resource_version: text("resourceVersion"),
        };
        let whole = self.wants(Level::Request).then(|| object.clone());
        let mut noted = self.noted.lock();
        noted.reference = reference;
        noted.request = whole.or(noted.request.take());
    }

    /// Notes a patch, which is no object.
    pub fn patch(&self, patch: impl FnOnce() -> Value) {
        if self.wants(Level::Request) {
            let patch = patch();
            self.noted.lock().request = Some(patch);
        }
    }

    /// Notes as whom the request is made.
    pub fn impersonated(&self, user: &std::sync::Arc<UserInfo>) {
        if self.wants(Level::Metadata) {
            self.noted.lock().impersonated = Some(user.clone());
        }
    }

    /// Reads what was noted.
    pub fn read<T>(&self, read: impl FnOnce(&Noted) -> T) -> T {
        read(&self.noted.lock())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_value_of_an_annotation_stays_and_levels_choose() {
        let record = Record::default();
        record.annotate("a", "1");
        record.annotate("a", "2");
        record.decide(Level::Metadata);
        record.annotate_at(Level::Request, "b", "1");
        record.object(&serde_json::json!({"metadata": {"name": "n", "uid": "u"}}));
        record.read(|noted| {
            assert_eq!(noted.annotations, [("a".to_owned(), "1".to_owned())].into());
            assert_eq!(noted.reference.name, "n");
            assert!(noted.request.is_none());
        });
        record.decide(Level::None);
        assert!(record.read(|noted| noted.annotations.is_empty()));
        assert!(!record.wants(Level::Metadata));
    }
}
