//! The worst case of an expression's cost, from the sizes that the declarations of its variables allow.

use std::collections::HashMap;
use std::sync::Arc;

use super::calls::{Arg, extension};
use super::size::Range;
use super::{CREATE_LIST, CREATE_MAP, CREATE_OBJECT};
use crate::check::{Checked, Reference};
use crate::decl::Decl;
use crate::env::Env;
use crate::parse::ast::{Expr, Fold, Id, Kind, Literal};
use crate::types::Type;

/// The most that an expression can cost.
pub(crate) fn estimate(checked: &Checked, env: &Env) -> u64 {
    let mut coster = Coster {
        checked,
        env,
        places: HashMap::new(),
        sizes: HashMap::new(),
        entries: HashMap::new(),
        locals: Vec::new(),
    };
    coster.cost(&checked.ast.root).max
}

/// Where in the declared data an expression leads, if it is a path of fields and elements.
pub(super) type Place<'d> = Option<Option<&'d Decl>>;

/// How large the keys and values of a list or map are.
#[derive(Clone, Copy)]
pub(super) struct Entries {
    list: bool,
    key: Range,
    value: Range,
}

impl Entries {
    pub(super) fn union(self, other: Self) -> Self {
        Self { list: self.list, key: self.key.union(other.key), value: self.value.union(other.value) }
    }
}

struct Local<'d> {
    name: Arc<str>,
    place: Place<'d>,
    size: Option<Range>,
    entries: Option<Entries>,
}

pub(super) struct Coster<'d> {
    pub(super) checked: &'d Checked,
    pub(super) env: &'d Env,
    places: HashMap<Id, Place<'d>>,
    sizes: HashMap<Id, Range>,
    pub(super) entries: HashMap<Id, Entries>,
    /// Variables of folds, innermost last.
    locals: Vec<Local<'d>>,
}

impl<'d> Coster<'d> {
    fn cost(&mut self, expr: &Expr) -> Range {
        match &expr.kind {
            Kind::Literal(_) | Kind::Missing => Range::ZERO,
            Kind::Ident(name) => {
                let place = match self.local(name) {
                    Some(local) => local.place,
                    None => Some(self.env.sizes(name).or_else(|| self.env.root())),
                };
                self.places.insert(expr.id, place);
                Range::ONE
            }
            Kind::Select { operand, field, test } => {
                if let Some(reference @ (Reference::Variable(_) | Reference::Type(_))) =
                    self.checked.reference(expr)
                {
                    // A name with dots is one identifier.
                    let sizes = match reference {
                        Reference::Variable(name) => self.env.sizes(name),
                        _ => None,
                    };
                    self.places.insert(expr.id, Some(sizes.or_else(|| self.env.root())));
                    return Range::ONE;
                }
                let cost = self.cost(operand);
                if *test {
                    return cost;
                }
                let has_fields =
                    matches!(self.checked.type_of(operand), Type::Map(..) | Type::Object(_) | Type::Param(_));
                let place = match self.place(operand) {
                    None => Some(self.env.root()),
                    Some(decl) => Some(decl.and_then(|decl| {
                        let value = || decl.element().filter(|_| decl.selects_values);
                        decl.field(field).or_else(value)
                    })),
                };
                self.places.insert(expr.id, place);
                cost.plus(Range::fixed(u64::from(has_fields)))
            }
            Kind::Call { target, function, args } => self.call(expr, target.as_deref(), function, args),
            Kind::List { elements, .. } => {
                let mut sum = Range::ZERO;
                let mut item = if elements.is_empty() { Range::ZERO } else { Range::EMPTY };
                for element in elements {
                    sum = sum.plus(self.cost(element));
                    item = item.union(self.size_or_unknown(element));
                }
                self.entries.insert(expr.id, Entries { list: true, key: Range::ONE, value: item });
                sum.plus(Range::fixed(CREATE_LIST))
            }
            Kind::Map(entries) => {
                let mut sum = Range::ZERO;
                let start = if entries.is_empty() { Range::ZERO } else { Range::EMPTY };
                let (mut key, mut value) = (start, start);
                for entry in entries {
                    sum = sum.plus(self.cost(&entry.key));
                    sum = sum.plus(self.cost(&entry.value));
                    key = key.union(self.size_or_unknown(&entry.key));
                    value = value.union(self.size_or_unknown(&entry.value));
                }
                self.entries.insert(expr.id, Entries { list: false, key, value });
                sum.plus(Range::fixed(CREATE_MAP))
            }
            Kind::Object { fields, .. } => {
                let mut sum = Range::fixed(CREATE_OBJECT);
                for field in fields {
                    sum = sum.plus(self.cost(&field.value));
                }
                sum
            }
            Kind::Fold(fold) if fold.is_bind() => self.bind(expr, fold),
            Kind::Fold(fold) => self.fold(expr, fold),
        }
    }

    fn local(&self, name: &str) -> Option<&Local<'d>> {
        self.locals.iter().rev().find(|local| *local.name == *name)
    }

    fn place(&self, expr: &Expr) -> Place<'d> {
        if let Kind::Ident(name) = &expr.kind
            && let Some(local) = self.local(name)
        {
            return local.place;
        }
        self.places.get(&expr.id).copied().flatten()
    }

    /// The elements of a place; of none it is the whole, as in cel-go's paths.
    pub(super) fn elements(&self, place: Place<'d>) -> Place<'d> {
        match place {
            None => Some(self.env.root()),
            Some(decl) => Some(decl.and_then(Decl::element)),
        }
    }

    fn keys(&self, place: Place<'d>) -> Place<'d> {
        match place {
            None => Some(self.env.root()),
            // Keys are strings of a length that nothing tells, which counts as nothing.
            Some(decl) => Some(decl.and_then(|decl| decl.element().map(|_| &*KEY))),
        }
    }

    fn size(&mut self, expr: &Expr) -> Option<Range> {
        if let Some(size) = self.sizes.get(&expr.id) {
            return Some(*size);
        }
        let inline = match &expr.kind {
            Kind::Literal(Literal::String(text)) => Some(text.chars().count()),
            Kind::Literal(Literal::Bytes(bytes)) => Some(bytes.len()),
            Kind::Literal(_) => Some(1),
            Kind::List { elements, .. } => Some(elements.len()),
            Kind::Map(entries) => Some(entries.len()),
            _ => None,
        };
        if let Some(size) = inline {
            return Some(Range::fixed(size as u64));
        }
        if let Some(size) = declared(self.place(expr)) {
            self.sizes.insert(expr.id, size);
            return Some(size);
        }
        if is_scalar(self.checked.type_of(expr)) {
            return Some(Range::ONE);
        }
        match &expr.kind {
            Kind::Ident(name) => self.local(name).and_then(|local| local.size),
            _ => None,
        }
    }

    fn size_or_unknown(&mut self, expr: &Expr) -> Range {
        self.size(expr).unwrap_or(Range::UNKNOWN)
    }

    pub(super) fn entries_of(&self, expr: &Expr) -> Option<Entries> {
        if let Some(entries) = self.entries.get(&expr.id) {
            return Some(*entries);
        }
        match &expr.kind {
            Kind::Ident(name) => self.local(name).and_then(|local| local.entries),
            _ => None,
        }
    }

    fn copy_sizes(&mut self, to: &Expr, from: &Expr) {
        if let Some(size) = self.size(from) {
            self.sizes.insert(to.id, size);
        }
        if let Some(entries) = self.entries_of(from) {
            self.entries.insert(to.id, entries);
        }
    }

    fn push(&mut self, name: &Arc<str>, expr: &Expr) {
        let (place, size, entries) = (self.place(expr), self.size(expr), self.entries_of(expr));
        self.locals.push(Local { name: name.clone(), place, size, entries });
    }

    fn bind(&mut self, expr: &Expr, fold: &Fold) -> Range {
        let sum = self.cost(&fold.range).plus(self.cost(&fold.init));
        self.push(&fold.accu, &fold.init);
        let sum = sum.plus(self.cost(&fold.result));
        self.copy_sizes(expr, &fold.result);
        self.locals.pop();
        sum
    }

    fn fold(&mut self, expr: &Expr, fold: &Fold) -> Range {
        let mut sum = self.cost(&fold.range).plus(self.cost(&fold.init));
        self.push(&fold.accu, &fold.init);
        let entries = self.entries_of(&fold.range);
        let list = entries.map_or_else(
            || matches!(self.checked.type_of(&fold.range), Type::List(_)),
            |entries| entries.list,
        );
        let place = self.place(&fold.range);
        let (elements, keys) = (self.elements(place), self.keys(place));
        let local = |name: &Arc<str>, place, size| Local { name: name.clone(), place, size, entries: None };
        match &fold.var2 {
            Some(var2) => {
                // Indices are nowhere in the data.
                let key_place = if list { Some(None) } else { keys };
                self.locals.push(local(&fold.var, key_place, entries.map(|entries| entries.key)));
                self.locals.push(local(var2, elements, entries.map(|entries| entries.value)));
            }
            None => {
                let (place, size) = if list {
                    (elements, entries.map(|entries| entries.value))
                } else {
                    (keys, entries.map(|entries| entries.key))
                };
                self.locals.push(local(&fold.var, place, size));
            }
        }
        let turn = self.cost(&fold.condition).plus(self.cost(&fold.step));
        self.locals.pop();
        if fold.var2.is_some() {
            self.locals.pop();
        }
        sum = sum.plus(self.cost(&fold.result));
        self.locals.pop();
        let count = self.size_or_unknown(&fold.range);
        sum = sum.plus(count.times(turn));
        match &fold.init.kind {
            Kind::Literal(_) => {
                if let Some(size) = self.size(&fold.init) {
                    self.sizes.insert(expr.id, size);
                }
            }
            Kind::List { .. } | Kind::Map(_) => {
                self.sizes.insert(expr.id, count);
                if let Some(entries) = self.entries_of(&fold.step) {
                    self.entries.insert(expr.id, entries);
                }
            }
            _ => {}
        }
        sum
    }

    fn call(&mut self, expr: &Expr, target: Option<&Expr>, function: &str, args: &[Expr]) -> Range {
        if function == "dyn"
            && let [arg] = args
        {
            let cost = self.cost(arg);
            self.copy_sizes(expr, arg);
            return cost.plus(Range::ONE);
        }
        let costs: Vec<Range> = args.iter().map(|arg| self.cost(arg)).collect();
        let given: Vec<Arg<'_, 'd>> = args.iter().map(|arg| self.arg(arg)).collect();
        let overloads = self.checked.overloads(expr).to_vec();
        let Some(Reference::Function { function, .. }) = self.checked.reference(expr) else {
            return if overloads.is_empty() {
                Range::ZERO
            } else {
                // `a.?b`
                costs.iter().fold(Range::ONE, |sum, cost| sum.plus(*cost))
            };
        };
        let receiver = target.filter(|_| !function.name.contains('.'));
        let mut sum = Range::ZERO;
        let receiver = receiver.map(|target| {
            sum = sum.plus(self.cost(target));
            self.arg(target)
        });
        let all = costs.iter().fold(Range::ZERO, |sum, cost| sum.plus(*cost));
        let mut cost = Range::EMPTY;
        let mut result: Option<Range> = None;
        for overload in overloads {
            let call = match extension(overload, receiver.as_ref(), &given)
                .or_else(|| self.kubernetes(function.name, overload, receiver.as_ref(), &given))
            {
                Some(call) => call,
                None => self.standard(expr, overload, receiver.as_ref(), &given, &costs),
            };
            cost = cost.union(if call.whole { call.cost } else { call.cost.plus(all) });
            if let Some(size) = call.result {
                result = Some(result.map_or(size, |result| result.union(size)));
            }
            if matches!(overload, "index_list" | "index_map")
                && let Some(operand) = args.first()
            {
                result = self.entries_of(operand).map(|entries| entries.value);
                let place = self.elements(self.place(operand));
                self.places.insert(expr.id, place);
            }
            if result.is_none() {
                result = self.size(expr);
            }
        }
        if let Some(result) = result {
            self.sizes.insert(expr.id, result);
        }
        sum.plus(cost)
    }

    fn arg<'e>(&mut self, expr: &'e Expr) -> Arg<'e, 'd> {
        Arg { expr, place: self.place(expr), size: self.size(expr) }
    }
}

static KEY: std::sync::LazyLock<Decl> = std::sync::LazyLock::new(|| Decl::plain(Type::String));

pub(super) fn declared(place: Place<'_>) -> Option<Range> {
    // Sizes of declarations are never negative.
    place.flatten().map(|decl| Range::new(0, decl.max_elements as u64))
}

fn is_scalar(of: &Type) -> bool {
    match of {
        Type::Bool | Type::Double | Type::Duration | Type::Int | Type::Timestamp | Type::Uint => true,
        other => other.as_optional().is_some_and(is_scalar),
    }
}
