//! Which types agree, and what type variables become by it.

use std::collections::HashMap;
use std::sync::Arc;

use crate::types::Type;

/// What type variables stand for. A try that fails leaves no trace.
#[derive(Debug, Default)]
pub(super) struct Mapping {
    bound: HashMap<Arc<str>, Type>,
    /// What to set back, newest last.
    trail: Vec<(Arc<str>, Option<Type>)>,
}

impl Mapping {
    pub(super) fn find(&self, of: &Type) -> Option<&Type> {
        match of {
            Type::Param(name) => self.bound.get(name),
            _ => None,
        }
    }

    pub(super) fn add(&mut self, name: &Arc<str>, to: Type) {
        let old = self.bound.insert(name.clone(), to);
        self.trail.push((name.clone(), old));
    }

    fn attempt(&mut self, work: impl FnOnce(&mut Self) -> bool) -> bool {
        self.trail.clear();
        if work(self) {
            return true;
        }
        while let Some((name, old)) = self.trail.pop() {
            match old {
                Some(old) => self.bound.insert(name, old),
                None => self.bound.remove(&name),
            };
        }
        false
    }

    /// Whether a value of `from` is one of `to`; type variables are bound if so.
    pub(super) fn assignable(&mut self, to: &Type, from: &Type) -> bool {
        self.attempt(|map| map.agree(to, from))
    }

    pub(super) fn assignable_all(&mut self, to: &[Type], from: &[Type]) -> bool {
        self.attempt(|map| map.agree_all(to, from))
    }

    fn agree_all(&mut self, left: &[Type], right: &[Type]) -> bool {
        left.len() == right.len() && left.iter().zip(right).all(|(a, b)| self.agree(a, b))
    }

    fn agree(&mut self, left: &Type, right: &Type) -> bool {
        if let Type::Param(name) = right {
            let (valid, bound) = self.substitutes(left, name, right);
            if valid {
                return true;
            }
            if bound {
                return false;
            }
        }
        if let Type::Param(name) = left {
            return self.substitutes(right, name, left).0;
        }
        if left.is_dyn_or_error() || right.is_dyn_or_error() {
            return true;
        }
        match (left, right) {
            (Type::Null, other) | (other, Type::Null) => nullable(other),
            (Type::List(a), Type::List(b)) => self.agree(a, b),
            (Type::Map(ak, av), Type::Map(bk, bv)) => self.agree(ak, bk) && self.agree(av, bv),
            (Type::Opaque(a, of_a), Type::Opaque(b, of_b)) => a == b && self.agree_all(of_a, of_b),
            (Type::Type(_), Type::Type(_)) => true,
            _ => left == right,
        }
    }

    /// Whether the variable can stand for `of`, and whether it is bound already.
    fn substitutes(&mut self, of: &Type, name: &Arc<str>, variable: &Type) -> (bool, bool) {
        if of == variable {
            return (true, true);
        }
        if let Some(bound) = self.bound.get(name).cloned() {
            if *of == bound {
                return (true, true);
            }
            if self.agree(of, &bound) {
                let general = most_general(of, &bound).clone();
                if self.absent(variable, &general) {
                    self.add(name, general);
                }
                return (true, true);
            }
            return (false, true);
        }
        if self.absent(variable, of) {
            self.add(name, of.clone());
            return (true, false);
        }
        (false, false)
    }

    /// Whether the variable does not occur in a type.
    fn absent(&self, variable: &Type, within: &Type) -> bool {
        if variable == within {
            return false;
        }
        match within {
            Type::Param(name) => self.bound.get(name).is_none_or(|bound| self.absent(variable, bound)),
            Type::List(of) => self.absent(variable, of),
            Type::Map(key, value) => self.absent(variable, key) && self.absent(variable, value),
            Type::Opaque(_, of) => of.iter().all(|one| self.absent(variable, one)),
            Type::Type(Some(of)) => self.absent(variable, of),
            _ => true,
        }
    }

    /// The type with its variables replaced; those that are not bound stay, or become `dyn`.
    pub(super) fn substitute(&self, of: &Type, free_to_dyn: bool) -> Type {
        if let Some(bound) = self.find(of) {
            return self.substitute(bound, free_to_dyn);
        }
        match of {
            Type::Param(_) if free_to_dyn => Type::Dyn,
            Type::List(inner) => Type::list(self.substitute(inner, free_to_dyn)),
            Type::Map(key, value) => {
                Type::map(self.substitute(key, free_to_dyn), self.substitute(value, free_to_dyn))
            }
            Type::Opaque(name, inner) if !inner.is_empty() => {
                let inner = inner.iter().map(|one| self.substitute(one, free_to_dyn)).collect();
                Type::Opaque(name.clone(), inner)
            }
            Type::Type(Some(inner)) => Type::Type(Some(Arc::new(self.substitute(inner, free_to_dyn)))),
            _ => of.clone(),
        }
    }
}

fn nullable(of: &Type) -> bool {
    matches!(of, Type::Null | Type::Opaque(..) | Type::Object(_) | Type::Duration | Type::Timestamp)
}

/// The more general of two types that agree.
pub(super) fn most_general<'t>(left: &'t Type, right: &'t Type) -> &'t Type {
    if less_specific(left, right) { left } else { right }
}

fn less_specific(left: &Type, right: &Type) -> bool {
    if left.is_dyn() || matches!(left, Type::Param(_)) {
        return true;
    }
    if right.is_dyn() || matches!(right, Type::Param(_)) {
        return false;
    }
    match (left, right) {
        (Type::Opaque(a, of_a), Type::Opaque(b, of_b)) => {
            a == b
                && of_a.len() == of_b.len()
                && of_a.iter().zip(of_b.iter()).all(|(a, b)| less_specific(a, b))
        }
        (Type::List(a), Type::List(b)) => less_specific(a, b),
        (Type::Map(ak, av), Type::Map(bk, bv)) => less_specific(ak, bk) && less_specific(av, bv),
        (Type::Type(_), Type::Type(_)) => true,
        _ => left == right,
    }
}
