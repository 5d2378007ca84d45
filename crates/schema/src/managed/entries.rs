//! `metadata.managedFields`: who owns which fields, since when, at which version.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::set::Set;

/// What tells one manager from another. For an apply the version is left out, so that it stays one manager.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct Manager {
    pub name: String,
    pub applied: bool,
    pub api_version: String,
    pub subresource: String,
}

/// The fields of one manager.
#[derive(Clone, Debug)]
pub(super) struct Owned {
    pub set: Set,
    pub api_version: String,
    pub time: Option<String>,
}

pub(super) type Managers = BTreeMap<Manager, Owned>;

impl Manager {
    pub fn new(name: &str, applied: bool, api_version: &str, subresource: &str) -> Self {
        Self {
            name: if name.is_empty() { "unknown" } else { name }.to_owned(),
            applied,
            api_version: if applied { String::new() } else { api_version.to_owned() },
            subresource: subresource.to_owned(),
        }
    }
}

/// How messages name a manager.
impl std::fmt::Display for Manager {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.name)?;
        if !self.subresource.is_empty() {
            write!(f, " with subresource {:?}", self.subresource)?;
        }
        if !self.applied {
            write!(f, " using {}", self.api_version)?;
        }
        Ok(())
    }
}

/// The entries of an object; `None` if they are malformed.
pub(super) fn decode(entries: Option<&Value>) -> Option<Managers> {
    let mut managers = Managers::new();
    for entry in entries.and_then(Value::as_array).into_iter().flatten() {
        let text = |name: &str| entry.get(name).and_then(Value::as_str).unwrap_or("");
        let applied = match text("operation") {
            "Apply" => true,
            "Update" => false,
            _ => return None,
        };
        let api_version = text("apiVersion");
        if api_version.is_empty() || text("fieldsType") != "FieldsV1" {
            return None;
        }
        let set = match entry.get("fieldsV1").filter(|v| !v.is_null()) {
            Some(fields) => Set::from_json(fields)?,
            None => Set::default(),
        };
        let mut manager = Manager::new("", applied, api_version, text("subresource"));
        manager.name = text("manager").to_owned();
        let time = Some(text("time")).filter(|t| !t.is_empty()).map(str::to_owned);
        managers.insert(manager, Owned { set, api_version: api_version.to_owned(), time });
    }
    Some(managers)
}

/// The entries in upstream's order: applies first, then by time and name.
pub(super) fn encode(managers: &Managers) -> Vec<Value> {
    let mut sorted: Vec<_> = managers.iter().collect();
    sorted.sort_by(|(a, x), (b, y)| {
        let time = |owned: &Owned| owned.time.clone().unwrap_or_default();
        b.applied
            .cmp(&a.applied)
            .then_with(|| time(x).cmp(&time(y)))
            .then_with(|| a.name.cmp(&b.name))
            .then_with(|| x.api_version.cmp(&y.api_version))
            .then_with(|| a.subresource.cmp(&b.subresource))
    });
    sorted.into_iter().map(|(manager, owned)| entry(manager, owned)).collect()
}

fn entry(manager: &Manager, owned: &Owned) -> Value {
    let mut map = Map::new();
    if !manager.name.is_empty() {
        map.insert("manager".to_owned(), manager.name.as_str().into());
    }
    map.insert("operation".to_owned(), if manager.applied { "Apply" } else { "Update" }.into());
    map.insert("apiVersion".to_owned(), owned.api_version.as_str().into());
    if let Some(time) = &owned.time {
        map.insert("time".to_owned(), time.as_str().into());
    }
    map.insert("fieldsType".to_owned(), "FieldsV1".into());
    map.insert("fieldsV1".to_owned(), owned.set.to_json());
    if !manager.subresource.is_empty() {
        map.insert("subresource".to_owned(), manager.subresource.as_str().into());
    }
    Value::Object(map)
}

/// Whether a client asks to forget all managers: an empty list, or one empty entry.
pub(super) fn is_reset(entries: Option<&Value>) -> bool {
    match entries.and_then(Value::as_array).map(Vec::as_slice) {
        Some([]) => true,
        Some([one]) => one == &json!({}),
        _ => false,
    }
}

/// Merges the oldest updaters into buckets by version, so that no more than ten are kept.
pub(super) fn cap(managers: &mut Managers) {
    const MAX_UPDATERS: usize = 10;
    const BUCKET: &str = "ancient-changes";
    let mut updaters: Vec<Manager> = managers.keys().filter(|m| !m.applied).cloned().collect();
    let mut count = updaters.len();
    if count <= MAX_UPDATERS {
        return;
    }
    let time = |m: &Manager| managers.get(m).and_then(|o| o.time.clone()).unwrap_or_default();
    updaters.sort_by_key(|m| (time(m), m.clone()));
    let mut firsts: BTreeMap<String, Manager> = BTreeMap::new();
    for manager in updaters {
        if count <= MAX_UPDATERS {
            break;
        }
        let Some(owned) = managers.get(&manager).cloned() else { continue };
        let version = owned.api_version.clone();
        let Some(first) = firsts.get(&version) else {
            firsts.insert(version, manager);
            continue;
        };
        let bucket = Manager::new(BUCKET, false, &version, "");
        if !managers.contains_key(&bucket)
            && let Some(owned) = managers.remove(first)
        {
            managers.insert(bucket.clone(), owned);
        }
        managers.remove(&manager);
        if let Some(merged) = managers.get_mut(&bucket) {
            merged.set = merged.set.union(&owned.set);
            merged.time = owned.time;
        }
        count -= 1;
    }
}
