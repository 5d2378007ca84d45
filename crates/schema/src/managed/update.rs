//! The rules of ownership: an update takes what it changes; an apply takes what it names, may not change what others own
//! unless forced, and gives up (and removes) what it named before and names no more.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde_json::Value;

use super::entries::{Manager, Managers, Owned, cap};
use super::set::Set;
use super::typed::{Comparison, Ref, Typed};
use super::{Context, LAST_APPLIED};
use crate::types::TypeId;

/// Metadata that the server keeps, owned by nobody.
const STRIPPED: [&str; 12] = [
    "apiVersion",
    "kind",
    "metadata",
    "metadata.name",
    "metadata.namespace",
    "metadata.creationTimestamp",
    "metadata.selfLink",
    "metadata.uid",
    "metadata.clusterName",
    "metadata.generation",
    "metadata.managedFields",
    "metadata.resourceVersion",
];

static STRIPPED_SET: LazyLock<Set> = LazyLock::new(|| Set::of(&STRIPPED));

pub(super) enum Failure {
    /// The owners and paths, in order.
    Conflicts(Vec<(Manager, Vec<String>)>),
    Invalid(String),
}

fn compare(context: &Context<'_>, id: TypeId, old: &Value, new: &Value) -> Comparison {
    let mut out = Comparison::default();
    let typed = Typed { types: context.types };
    typed.compare(Ref::Type(id), Some(old), Some(new), &mut Vec::new(), &mut out);
    out.without(&Set::of(context.ignored))
}

fn fields(context: &Context<'_>, id: TypeId, value: &Value) -> Set {
    let mut out = Set::default();
    Typed { types: context.types }.fields(Ref::Type(id), value, &mut Vec::new(), &mut out);
    out
}

/// The object at a version, with its type there.
fn at(context: &Context<'_>, object: &Value, version: &str) -> Option<(TypeId, Value)> {
    if version == context.api_version {
        return Some((context.type_id, object.clone()));
    }
    (context.convert)(object, version)
}

/// Takes what changed from all managers but one. What changed is the answer.
fn take(
    context: &Context<'_>,
    old: &Value,
    new: &Value,
    managers: &mut Managers,
    own: Option<&Manager>,
    force: bool,
) -> Result<Comparison, Vec<(Manager, Vec<String>)>> {
    let mut versions: BTreeMap<String, Option<Comparison>> = BTreeMap::new();
    versions.insert(context.api_version.to_owned(), Some(compare(context, context.type_id, old, new)));
    let mut conflicts = Vec::new();
    let mut taken: Vec<(Manager, Set)> = Vec::new();
    for (manager, owned) in managers.iter().filter(|(m, _)| Some(*m) != own) {
        let version = &owned.api_version;
        let compared = versions.entry(version.clone()).or_insert_with(|| {
            let (id, old) = at(context, old, version)?;
            let (_, new) = at(context, new, version)?;
            Some(compare(context, id, &old, &new))
        });
        let Some(compared) = compared else {
            taken.push((manager.clone(), owned.set.clone()));
            continue;
        };
        let lost = owned.set.intersection(&compared.modified.union(&compared.added));
        conflicts.extend(lost.paths().into_iter().map(|path| (manager.clone(), path)));
        taken.push((manager.clone(), lost.union(&compared.removed)));
    }
    if !force && !conflicts.is_empty() {
        return Err(conflicts);
    }
    for (manager, lost) in taken {
        if let Some(owned) = managers.get_mut(&manager) {
            owned.set = owned.set.difference(&lost);
        }
    }
    managers.retain(|_, owned| !owned.set.is_empty());
    Ok(versions.remove(context.api_version).flatten().unwrap_or_default())
}

/// Gives what an update changed to its manager.
pub(super) fn update(
    context: &Context<'_>,
    live: &Value,
    new: &Value,
    mut managers: Managers,
    manager: &str,
) -> Managers {
    let Ok(changed) = take(context, live, new, &mut managers, None, true) else { return managers };
    let set = changed.modified.union(&changed.added).difference(&STRIPPED_SET);
    if !set.is_empty() {
        let manager = Manager::new(manager, false, context.api_version, context.subresource);
        let owned = managers.entry(manager).or_insert_with(|| Owned {
            set: Set::default(),
            api_version: context.api_version.to_owned(),
            time: None,
        });
        owned.set = owned.set.union(&set);
        owned.time = Some(context.now.to_owned()).filter(|t| !t.is_empty());
    }
    cap(&mut managers);
    managers
}

/// Merges a configuration in. The object is `None` if it stays as it is.
pub(super) fn apply(
    context: &Context<'_>,
    live: &Value,
    config: &Value,
    mut managers: Managers,
    manager: &str,
    force: bool,
) -> Result<(Option<Value>, Managers), Failure> {
    let typed = Typed { types: context.types };
    let merged = typed.merge(Ref::Type(context.type_id), Some(live), Some(config));
    let merged = merged.ok_or_else(|| Failure::Invalid("failed to merge config".to_owned()))?;
    let key = Manager::new(manager, true, context.api_version, context.subresource);
    let last = managers.get(&key).cloned();
    let set = fields(context, context.type_id, config).recursive_difference(&Set::of(context.ignored));
    let owned = Owned {
        set,
        api_version: context.api_version.to_owned(),
        time: last.as_ref().and_then(|l| l.time.clone()),
    };
    managers.insert(key.clone(), owned);
    let new = prune(context, merged, &managers, last.as_ref());
    take(context, live, &new, &mut managers, Some(&key), force).map_err(Failure::Conflicts)?;
    let changed = *live != new;
    if let Some(owned) = managers.get_mut(&key) {
        owned.set = owned.set.difference(&STRIPPED_SET);
        if changed {
            owned.time = Some(context.now.to_owned());
        }
    }
    managers.retain(|_, owned| !owned.set.is_empty());
    Ok((changed.then_some(new), managers))
}

/// Removes what the manager applied last time and neither it nor anybody else names now.
fn prune(context: &Context<'_>, merged: Value, managers: &Managers, last: Option<&Owned>) -> Value {
    let Some(last) = last.filter(|l| !l.set.is_empty()) else { return merged };
    // Across versions, what is removed cannot be told apart from what conversion moves.
    if last.api_version != context.api_version {
        return merged;
    }
    let id = context.type_id;
    let typed = Typed { types: context.types };
    let place = Ref::Type(id);
    let named = |set: &Set| typed.with_named(id, set);
    let was = named(&last.set);
    let all = named(&fields(context, id, &merged));
    let mut pruned = typed.remove(place, &merged, &was);
    // Add back what others own, and what this manager still names.
    let owned = managers
        .values()
        .filter(|o| o.api_version == context.api_version)
        .fold(Set::default(), |sum, o| sum.union(&o.set));
    let kept = named(&fields(context, id, &pruned)).union(&named(&owned));
    pruned = typed.remove(place, &merged, &all.difference(&kept));
    // Add back what nobody owned before: only what was this manager's may go.
    let kept = named(&fields(context, id, &pruned));
    typed.remove(place, &merged, &all.difference(&kept).intersection(&was))
}

/// What client-side apply owns by its annotation, and has not been changed since.
pub(super) fn last_applied(context: &Context<'_>, live: &Value) -> Option<Set> {
    let text = live.pointer("/metadata/annotations")?.get(LAST_APPLIED)?.as_str()?;
    let applied: Value = serde_json::from_str(text).ok()?;
    if applied.get("apiVersion")?.as_str()? != context.api_version {
        return None;
    }
    let mut changed = Comparison::default();
    let typed = Typed { types: context.types };
    typed.compare(Ref::Type(context.type_id), Some(&applied), Some(live), &mut Vec::new(), &mut changed);
    let set = fields(context, context.type_id, &applied);
    Some(set.difference(&changed.modified).difference(&changed.added).difference(&changed.removed))
}
