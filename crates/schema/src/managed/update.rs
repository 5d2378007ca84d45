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
    let own = object.get("apiVersion").and_then(Value::as_str);
    if version == context.api_version && own.is_none_or(|own| own == version) {
        return Some((context.type_id, object.clone()));
    }
    (context.convert)(object, version)
}

/// Brings what managers own into line with the types of today: of a value that has become atomic they own the whole.
/// Managers of versions that are no longer served are forgotten.
fn reconcile(context: &Context<'_>, live: &Value, managers: &mut Managers) {
    let typed = Typed { types: context.types };
    managers.retain(|_, owned| {
        let id = match owned.api_version == context.api_version {
            true => Some(context.type_id),
            false => at(context, live, &owned.api_version).map(|(id, _)| id),
        };
        let Some(id) = id else { return false };
        owned.set = typed.reconcile(id, &owned.set);
        true
    });
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
    reconcile(context, live, &mut managers);
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
    reconcile(context, live, &mut managers);
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

/// Removes what the manager applied last time and neither it nor anybody else names now. It works at the version of the
/// last apply; what cannot be brought there stays.
fn prune(context: &Context<'_>, merged: Value, managers: &Managers, last: Option<&Owned>) -> Value {
    let Some(last) = last.filter(|l| !l.set.is_empty()) else { return merged };
    let Some((id, whole)) = at(context, &merged, &last.api_version) else { return merged };
    let typed = Typed { types: context.types };
    let was = typed.with_named(id, &last.set);
    let pruned = typed.remove(Ref::Type(id), &whole, &was);
    let mut owned: BTreeMap<&str, Set> = BTreeMap::new();
    for manager in managers.values() {
        let set = owned.entry(&manager.api_version).or_default();
        *set = set.union(&manager.set);
    }
    // What others own, and what this manager still names, comes back; first at the version that is pruned, since a
    // conversion may need it.
    let mut state = (whole, pruned);
    if let Some(set) = owned.remove(last.api_version.as_str()) {
        state = add_back(context, state, &last.api_version, &set);
    }
    for (version, set) in owned {
        state = add_back(context, state, version, &set);
    }
    // What nobody owned before comes back: only what was this manager's may go.
    let (Some((id, whole)), Some((_, pruned))) =
        (at(context, &state.0, &last.api_version), at(context, &state.1, &last.api_version))
    else {
        return merged;
    };
    let kept = typed.with_named(id, &fields(context, id, &pruned));
    let all = typed.with_named(id, &fields(context, id, &whole));
    let pruned = typed.remove(Ref::Type(id), &whole, &all.difference(&kept).intersection(&was));
    at(context, &pruned, context.api_version).map_or(merged, |(_, pruned)| pruned)
}

/// The merged object and what is left of it, both at a version, with what is owned at that version back in.
fn add_back(
    context: &Context<'_>,
    (whole, pruned): (Value, Value),
    version: &str,
    owned: &Set,
) -> (Value, Value) {
    let (Some((id, at_whole)), Some((_, at_pruned))) =
        (at(context, &whole, version), at(context, &pruned, version))
    else {
        return (whole, pruned);
    };
    let typed = Typed { types: context.types };
    let named = |set: &Set| typed.with_named(id, set);
    let kept = named(&fields(context, id, &at_pruned)).union(&named(owned));
    let all = named(&fields(context, id, &at_whole));
    let pruned = typed.remove(Ref::Type(id), &at_whole, &all.difference(&kept));
    (at_whole, pruned)
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
