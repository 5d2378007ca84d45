//! Lists: of values, of JSON, or two lists in a row.

use std::sync::Arc;

use super::{Value, wrap};
use crate::decl::Decl;
use crate::error::EvalError;

/// A list.
#[derive(Clone, Debug)]
pub struct List<'a> {
    repr: Repr<'a>,
    pub(crate) kind: ListKind<'a>,
}

/// How lists of a schema compare and join (`x-kubernetes-list-type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ListKind<'a> {
    Atomic,
    Set,
    /// By these fields of the elements.
    Map(&'a [String]),
}

#[derive(Clone, Debug)]
enum Repr<'a> {
    Owned(Arc<Vec<Value<'a>>>),
    Json(&'a [serde_json::Value], Option<&'a Decl>),
    /// Joining takes no time, as its cost says; the length is known.
    Joined(Arc<(List<'a>, List<'a>)>, usize),
}

impl<'a> List<'a> {
    pub(crate) fn owned(elements: Vec<Value<'a>>) -> Self {
        Self { repr: Repr::Owned(Arc::new(elements)), kind: ListKind::Atomic }
    }

    pub(crate) fn json(
        elements: &'a [serde_json::Value],
        items: Option<&'a Decl>,
        kind: ListKind<'a>,
    ) -> Self {
        Self { repr: Repr::Json(elements, items), kind }
    }

    /// How many elements it has.
    pub fn len(&self) -> usize {
        match &self.repr {
            Repr::Owned(elements) => elements.len(),
            Repr::Json(elements, _) => elements.len(),
            Repr::Joined(_, len) => *len,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether it is of JSON with a schema.
    pub(crate) fn is_typed(&self) -> bool {
        matches!(self.repr, Repr::Json(_, Some(_))) || self.kind != ListKind::Atomic
    }

    /// The element at an index.
    pub fn get(&self, mut at: usize) -> Option<Result<Value<'a>, EvalError>> {
        let mut list = self;
        loop {
            match &list.repr {
                Repr::Owned(elements) => return elements.get(at).cloned().map(Ok),
                Repr::Json(elements, items) => return elements.get(at).map(|one| wrap(one, *items)),
                Repr::Joined(two, _) => {
                    let first = two.0.len();
                    if at < first {
                        list = &two.0;
                    } else {
                        at -= first;
                        list = &two.1;
                    }
                }
            }
        }
    }

    /// The elements in order.
    pub fn iter(&self) -> Iter<'a> {
        Iter { rest: vec![(self.clone(), 0)] }
    }

    /// Adds an element, in place where nobody else holds the list.
    pub(crate) fn push(&mut self, value: Value<'a>) {
        if let Repr::Owned(elements) = &mut self.repr {
            Arc::make_mut(elements).push(value);
            return;
        }
        let one = List::owned(vec![value]);
        *self = self.clone().join(one);
    }

    fn join(self, other: List<'a>) -> Self {
        if other.is_empty() {
            return self;
        }
        let kind = self.kind;
        if self.is_empty() {
            return Self { repr: other.repr, kind };
        }
        let len = self.len().saturating_add(other.len());
        Self { repr: Repr::Joined(Arc::new((self, other)), len), kind }
    }

    /// `self + other`: a set keeps each element once; of a map list's elements those of `other` take the place of
    /// those with the same keys.
    pub(crate) fn concat(&self, other: &List<'a>) -> Result<Self, EvalError> {
        let elements = match self.kind {
            ListKind::Atomic => return Ok(self.clone().join(other.clone())),
            ListKind::Set => {
                let mut seen = std::collections::HashSet::new();
                let mut elements = Vec::new();
                for one in self.iter() {
                    let one = one?;
                    seen.insert(super::equal::identity(&one));
                    elements.push(one);
                }
                for one in other.iter() {
                    let one = one?;
                    if seen.insert(super::equal::identity(&one)) {
                        elements.push(one);
                    }
                }
                elements
            }
            ListKind::Map(keys) => {
                let mut place = std::collections::HashMap::new();
                let mut elements = Vec::new();
                for one in self.iter() {
                    let one = one?;
                    place.insert(super::equal::keys(&one, keys)?, elements.len());
                    elements.push(one);
                }
                for one in other.iter() {
                    let one = one?;
                    match place.get(&super::equal::keys(&one, keys)?) {
                        Some(at) => elements[*at] = one,
                        None => elements.push(one),
                    }
                }
                elements
            }
        };
        Ok(Self { repr: Repr::Owned(Arc::new(elements)), kind: self.kind })
    }
}

/// The elements of a list.
#[derive(Debug)]
pub struct Iter<'a> {
    /// Lists that are to come, the next one last, with where to go on in it.
    rest: Vec<(List<'a>, usize)>,
}

impl<'a> Iterator for Iter<'a> {
    type Item = Result<Value<'a>, EvalError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let (list, at) = self.rest.pop()?;
            if let Repr::Joined(two, _) = &list.repr {
                self.rest.push((two.1.clone(), 0));
                self.rest.push((two.0.clone(), 0));
                continue;
            }
            if let Some(one) = list.get(at) {
                self.rest.push((list, at + 1));
                return Some(one);
            }
        }
    }
}
