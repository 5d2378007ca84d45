//! Local APIServices: one for each group and version that is served here, kept in step at the start for the built-in ones
//! and always for custom resources (upstream: `autoregister`, `crdregistration`).

use std::collections::{BTreeMap, BTreeSet};

use futures::future::join_all;
use serde_json::{Value, json};

use super::{GROUP, RESOURCE, priority};
use crate::read::Read;
use crate::registry::Rows;
use crate::{ClusterRef, Status};

const LABEL: &str = "kube-aggregator.kubernetes.io/automanaged";
const ON_START: &str = "onstart";
const ALWAYS: &str = "true";

/// What is to be done with one APIService.
#[derive(Debug, PartialEq)]
enum Action {
    Create(Value),
    Update(Value),
    Delete(String),
}

fn object(group: &str, version: &str, (own, of_version): (i64, i64), managed: &str) -> Value {
    let mut spec = json!({"groupPriorityMinimum": own, "version": version, "versionPriority": of_version});
    if !group.is_empty() {
        spec["group"] = group.into();
    }
    json!({
        "metadata": {"name": format!("{version}.{group}"), "labels": {LABEL: managed}},
        "spec": spec,
    })
}

/// The APIServices of the built-in groups; the group of APIServices itself has none.
fn built_in(rows: &Rows) -> BTreeMap<String, Value> {
    let mut wanted = BTreeMap::new();
    for row in rows.iter() {
        let (group, version) = (row.group(), row.resource.version.as_ref());
        if let Some(priorities) = priority::of(group, version).filter(|_| group != GROUP) {
            wanted.insert(format!("{version}.{group}"), object(group, version, priorities, ON_START));
        }
    }
    wanted
}

/// Those of the custom resources' served versions.
fn custom(cluster: &ClusterRef) -> BTreeMap<String, Value> {
    let mut wanted = BTreeMap::new();
    for definition in cluster.list("apiextensions.k8s.io", "customresourcedefinitions", None).items {
        let group = definition.text("spec.group");
        for version in definition.items("spec.versions") {
            if version.at("served").as_bool() == Some(true) {
                let name = version.text("name");
                wanted.insert(format!("{name}.{group}"), object(group, name, priority::CUSTOM, ALWAYS));
            }
        }
    }
    wanted
}

/// The actions that bring what is there to what is wanted. What a person wrote, without the label, stays. `start` is the
/// server's first pass, in which built-in ones are looked after as well.
fn plan(present: &[std::sync::Arc<Value>], wanted: &BTreeMap<String, Value>, start: bool) -> Vec<Action> {
    let mut actions = Vec::new();
    let mut seen = BTreeSet::new();
    for object in present {
        seen.insert(object.name());
        let managed = object.label(LABEL).unwrap_or_default();
        if managed != ALWAYS && (managed != ON_START || !start) {
            continue;
        }
        match wanted.get(object.name()) {
            None => actions.push(Action::Delete(object.name().to_owned())),
            Some(new) if new["spec"] != object["spec"] => {
                let mut changed = (**object).clone();
                changed["spec"] = new["spec"].clone();
                actions.push(Action::Update(changed));
            }
            Some(_) => {}
        }
    }
    let missing = wanted.iter().filter(|(name, _)| !seen.contains(name.as_str()));
    actions.extend(
        missing
            .filter(|(_, new)| start || new.label(LABEL) == Some(ALWAYS))
            .map(|(_, new)| Action::Create(new.clone())),
    );
    actions
}

/// Makes, changes and removes what is to be.
pub async fn ensure(cluster: &ClusterRef, rows: &Rows, start: bool) -> Result<(), Status> {
    let mut wanted = built_in(rows);
    // A custom resource cannot take a built-in group's place.
    for (name, object) in custom(cluster) {
        wanted.entry(name).or_insert(object);
    }
    let present = cluster.list(GROUP, RESOURCE, None).items;
    let writes = plan(&present, &wanted, start).into_iter().map(|action| async move {
        let done = match action {
            Action::Create(object) => cluster.create(GROUP, "v1", RESOURCE, "", object).await.map(drop),
            Action::Update(object) => cluster.update(GROUP, "v1", RESOURCE, "", object).await.map(drop),
            Action::Delete(name) => cluster.delete(GROUP, "v1", RESOURCE, "", &name).await,
        };
        match done {
            Err(status) if !matches!(status.reason(), "AlreadyExists" | "Conflict" | "NotFound") => {
                Err(status)
            }
            _ => Ok(()),
        }
    });
    join_all(writes).await.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn only_what_is_managed_is_touched() {
        let wanted: BTreeMap<String, Value> = [
            ("v1.apps".to_owned(), object("apps", "v1", (17_800, 15), ON_START)),
            ("v1.example.com".to_owned(), object("example.com", "v1", (1000, 100), ALWAYS)),
        ]
        .into();
        assert_eq!(plan(&[], &wanted, true).len(), 2);
        assert_eq!(plan(&[], &wanted, false), [Action::Create(wanted["v1.example.com"].clone())]);
        let present: Vec<Arc<Value>> = wanted.values().cloned().map(Arc::new).collect();
        assert_eq!(plan(&present, &wanted, true), []);
        let old = Arc::new(object("gone.example.com", "v1", (1000, 100), ALWAYS));
        let own = Arc::new(json!({"metadata": {"name": "v1.example.com"}, "spec": {"service": {}}}));
        let stale = Arc::new(object("apps", "v1", (1, 1), ON_START));
        let present = [old.clone(), own, stale];
        assert_eq!(plan(&present, &wanted, false), [Action::Delete(old.name().to_owned())]);
        let actions = plan(&present, &wanted, true);
        assert!(
            matches!(&actions[..], [Action::Delete(_), Action::Update(new)] if new["spec"] == wanted["v1.apps"]["spec"])
        );
    }
}
