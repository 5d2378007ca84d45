//! How two objects differ: which fields were added, removed and changed.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{Atom, Comparison, Keyed, Ref, Typed, filled, is_bare, items};
use crate::managed::set::field;

impl<'t> Typed<'t> {
    /// What is different in `new`.
    pub fn compare(
        self,
        place: Ref<'t>,
        old: Option<&Value>,
        new: Option<&Value>,
        path: &mut Vec<String>,
        out: &mut Comparison,
    ) {
        let kind = |v: Option<&Value>| filled(v).map(std::mem::discriminant);
        let leaf = if let (Some(_), Some(_)) = (old, new)
            && matches!(place, Ref::Deduced | Ref::Atomic)
            && kind(old) != kind(new)
        {
            // Forms differ: as a leaf, so that the old form's members go and the new form's come.
            true
        } else {
            let shape = self.atom(place, filled(new).or(old));
            self.descend(&shape, old, new, path, out)
        };
        match (old, new) {
            (None, Some(_)) => out.added.insert(path),
            (Some(_), None) => out.removed.insert(path),
            (Some(old), Some(new)) if leaf && old != new => out.modified.insert(path),
            _ => {}
        }
    }

    /// Compares the members; true if the value is a leaf.
    fn descend(
        self,
        atom: &Atom<'t>,
        old: Option<&Value>,
        new: Option<&Value>,
        path: &mut Vec<String>,
        out: &mut Comparison,
    ) -> bool {
        match atom {
            Atom::Scalar | Atom::Map { atomic: true, .. } | Atom::List { list: Keyed::Atomic, .. } => true,
            _ if is_bare(old) && is_bare(new) => true,
            Atom::Map { owner, element, .. } => {
                let object = |v: Option<&'_ Value>| v.and_then(Value::as_object).cloned().unwrap_or_default();
                let (old, new) = (object(old), object(new));
                let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
                for name in names {
                    path.push(field(name));
                    let place = self.member(*owner, *element, name).unwrap_or(Ref::Atomic);
                    self.compare(place, old.get(name), new.get(name), path, out);
                    path.pop();
                }
                false
            }
            Atom::List { element, list } => {
                let (old, new) = (self.by_name(list, *element, old), self.by_name(list, *element, new));
                let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
                for name in names {
                    path.push(name.clone());
                    let none = Vec::new();
                    let (before, after) = (old.get(name).unwrap_or(&none), new.get(name).unwrap_or(&none));
                    self.compare_items(*element, before, after, path, out);
                    path.pop();
                }
                false
            }
        }
    }

    /// Compares the members of a list that have one name; several of them are taken as a whole.
    fn compare_items(
        self,
        element: Ref<'t>,
        old: &[&Value],
        new: &[&Value],
        path: &mut Vec<String>,
        out: &mut Comparison,
    ) {
        match (old.len(), new.len()) {
            (0 | 1, 0 | 1) => {
                self.compare(element, old.first().copied(), new.first().copied(), path, out);
            }
            (2.., 2..) => {
                if old != new {
                    out.modified.insert(path);
                }
            }
            (2.., _) => {
                if let Some(item) = new.first() {
                    self.compare(element, None, Some(item), path, out);
                }
                out.removed.insert(path);
            }
            _ => {
                if let Some(item) = old.first() {
                    self.compare(element, Some(item), None, path, out);
                }
                out.added.insert(path);
            }
        }
    }

    fn by_name<'v>(
        self,
        list: &Keyed<'_>,
        element: Ref<'t>,
        value: Option<&'v Value>,
    ) -> BTreeMap<String, Vec<&'v Value>> {
        let mut out: BTreeMap<String, Vec<&Value>> = BTreeMap::new();
        for item in items(value) {
            if let Ok(name) = self.item(list, element, item) {
                out.entry(name).or_default().push(item);
            }
        }
        out
    }
}
