//! Sets of field paths, and their FieldsV1 form. A path element is kept in its written form: `f:name` for a field,
//! `k:{"name":"a"}` for a list element by its keys, `v:"x"` for a member of a set, `i:0` for an index.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// A set of field paths as a tree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Set {
    nodes: BTreeMap<String, Node>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Node {
    /// The path that ends here is in the set.
    member: bool,
    children: Set,
}

impl Node {
    fn is_empty(&self) -> bool {
        !self.member && self.children.is_empty()
    }
}

impl Set {
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Adds a path; the empty path is not tracked.
    pub fn insert(&mut self, path: &[String]) {
        let Some((first, rest)) = path.split_first() else { return };
        let node = self.nodes.entry(first.clone()).or_default();
        match rest {
            [] => node.member = true,
            rest => node.children.insert(rest),
        }
    }

    /// A set of dotted field paths.
    pub fn of(paths: &[&str]) -> Self {
        let mut set = Self::default();
        for path in paths {
            let elements: Vec<String> = path.split('.').map(field).collect();
            set.insert(&elements);
        }
        set
    }

    pub fn has(&self, path: &[String]) -> bool {
        match path.split_first() {
            None => false,
            Some((first, [])) => self.has_member(first),
            Some((first, rest)) => self.child(first).is_some_and(|set| set.has(rest)),
        }
    }

    pub fn has_member(&self, element: &str) -> bool {
        self.nodes.get(element).is_some_and(|node| node.member)
    }

    /// The paths below an element, if there are any.
    pub fn child(&self, element: &str) -> Option<&Self> {
        self.nodes.get(element).map(|node| &node.children).filter(|set| !set.is_empty())
    }

    pub fn union(&self, other: &Self) -> Self {
        let mut out = self.clone();
        for (element, theirs) in &other.nodes {
            let node = out.nodes.entry(element.clone()).or_default();
            node.member |= theirs.member;
            node.children = node.children.union(&theirs.children);
        }
        out
    }

    pub fn intersection(&self, other: &Self) -> Self {
        self.combine(|element, node| {
            let theirs = other.nodes.get(element)?;
            Some(Node {
                member: node.member && theirs.member,
                children: node.children.intersection(&theirs.children),
            })
        })
    }

    /// The paths that are not in `other`; what lies below one of its paths stays.
    pub fn difference(&self, other: &Self) -> Self {
        self.combine(|element, node| match other.nodes.get(element) {
            None => Some(node.clone()),
            Some(theirs) => Some(Node {
                member: node.member && !theirs.member,
                children: node.children.difference(&theirs.children),
            }),
        })
    }

    /// The paths that neither are in `other` nor lie below one of its paths.
    pub fn recursive_difference(&self, other: &Self) -> Self {
        self.combine(|element, node| match other.nodes.get(element) {
            None => Some(node.clone()),
            Some(theirs) if theirs.member => None,
            Some(theirs) => Some(Node {
                member: node.member,
                children: node.children.recursive_difference(&theirs.children),
            }),
        })
    }

    fn combine(&self, keep: impl Fn(&str, &Node) -> Option<Node>) -> Self {
        let nodes = self.nodes.iter().filter_map(|(element, node)| {
            keep(element, node).filter(|n| !n.is_empty()).map(|n| (element.clone(), n))
        });
        Self { nodes: nodes.collect() }
    }

    /// Adds the elements that lead to others, where `named` says that they are declared fields.
    pub(super) fn with_named<R: Copy>(
        &self,
        place: R,
        named: &dyn Fn(R, &str) -> bool,
        down: &dyn Fn(R, &str) -> R,
    ) -> Self {
        let nodes = self.nodes.iter().map(|(element, node)| {
            let member = node.member || (!node.children.is_empty() && named(place, element));
            let children = node.children.with_named(down(place, element), named, down);
            (element.clone(), Node { member, children })
        });
        Self { nodes: nodes.collect() }
    }

    /// Lets the elements that `whole` says are owned as a whole stand for what lies below them.
    pub(super) fn reconcile<R: Copy>(
        &self,
        place: R,
        whole: &dyn Fn(R) -> bool,
        down: &dyn Fn(R, &str) -> R,
    ) -> Self {
        let nodes = self.nodes.iter().map(|(element, node)| {
            let below = down(place, element);
            let node = match !node.children.is_empty() && whole(below) {
                true => Node { member: true, children: Self::default() },
                false => Node { member: node.member, children: node.children.reconcile(below, whole, down) },
            };
            (element.clone(), node)
        });
        Self { nodes: nodes.collect() }
    }

    /// All paths.
    pub fn paths(&self) -> Vec<Vec<String>> {
        let mut out = Vec::new();
        self.collect(&mut Vec::new(), &mut out);
        out
    }

    fn collect(&self, prefix: &mut Vec<String>, out: &mut Vec<Vec<String>>) {
        for (element, node) in &self.nodes {
            prefix.push(element.clone());
            if node.member {
                out.push(prefix.clone());
            }
            node.children.collect(prefix, out);
            prefix.pop();
        }
    }

    /// The FieldsV1 form.
    pub fn to_json(&self) -> Value {
        let mut map = Map::new();
        for (element, node) in &self.nodes {
            let mut inner = node.children.to_json();
            if let (true, false, Some(inner)) = (node.member, node.children.is_empty(), inner.as_object_mut())
            {
                inner.insert(".".to_owned(), Value::Object(Map::new()));
            }
            map.insert(element.clone(), inner);
        }
        Value::Object(map)
    }

    /// Reads the FieldsV1 form; elements of an unknown kind are left out. `None` if it is malformed.
    pub fn from_json(value: &Value) -> Option<Self> {
        let mut set = Self::default();
        for (element, inner) in value.as_object()? {
            if element == "." {
                continue;
            }
            let Some(element) = canonical(element)? else { continue };
            let children = Self::from_json(inner)?;
            let member = children.is_empty() || inner.get(".").is_some();
            set.nodes.insert(element, Node { member, children });
        }
        Some(set)
    }
}

/// The written form of an element, with keys in order; `Some(None)` for a kind of element that is not known.
fn canonical(element: &str) -> Option<Option<String>> {
    let (kind, rest) = element.split_once(':')?;
    Some(match kind {
        "f" | "i" => Some(element.to_owned()),
        "v" => Some(format!("v:{}", serde_json::from_str::<Value>(rest).ok()?)),
        "k" => {
            let Value::Object(map) = serde_json::from_str(rest).ok()? else { return None };
            Some(keys(map.into_iter().collect()))
        }
        kind if kind.len() == 1 => None,
        _ => return None,
    })
}

/// The element of a field.
pub fn field(name: &str) -> String {
    format!("f:{name}")
}

/// The element of a list member by its keys.
pub fn keys(mut keys: Vec<(String, Value)>) -> String {
    keys.sort_by(|a, b| a.0.cmp(&b.0));
    let parts: Vec<String> = keys.iter().map(|(k, v)| format!("{}:{v}", Value::from(k.as_str()))).collect();
    format!("k:{{{}}}", parts.join(","))
}

/// A path as messages show it: `.spec.ports[port=80,protocol="TCP"].name`.
pub fn display(path: &[String]) -> String {
    let mut out = String::new();
    for element in path {
        let (kind, rest) = element.split_once(':').unwrap_or(("", element));
        match kind {
            "f" => {
                out.push('.');
                out.push_str(rest);
            }
            "v" => out.push_str(&format!("[={rest}]")),
            "k" => {
                let map: Map<String, Value> = serde_json::from_str(rest).unwrap_or_default();
                let mut parts: Vec<String> = map.iter().map(|(k, v)| format!("{k}={v}")).collect();
                parts.sort();
                out.push_str(&format!("[{}]", parts.join(",")));
            }
            _ => out.push_str(&format!("[{rest}]")),
        }
    }
    out
}
