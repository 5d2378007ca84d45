//! The worst case of an expression's cost, from the sizes that the declarations of its variables allow.

use std::collections::HashMap;
use std::sync::Arc;

use super::size::Range;
use super::{CHECK, CREATE_LIST, CREATE_MAP, CREATE_OBJECT, PATTERN, TRAVERSAL};
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
type Place<'d> = Option<Option<&'d Decl>>;

/// How large the keys and values of a list or map are.
#[derive(Clone, Copy)]
struct Entries {
    list: bool,
    key: Range,
    value: Range,
}

impl Entries {
    fn union(self, other: Self) -> Self {
        Self { list: self.list, key: self.key.union(other.key), value: self.value.union(other.value) }
    }
}

struct Local<'d> {
    name: Arc<str>,
    place: Place<'d>,
    size: Option<Range>,
    entries: Option<Entries>,
}

struct Coster<'d> {
    checked: &'d Checked,
    env: &'d Env,
    places: HashMap<Id, Place<'d>>,
    sizes: HashMap<Id, Range>,
    entries: HashMap<Id, Entries>,
    /// Variables of folds, innermost last.
    locals: Vec<Local<'d>>,
}

/// An argument of a call.
struct Arg<'e, 'd> {
    expr: &'e Expr,
    place: Place<'d>,
    size: Option<Range>,
}

/// The cost of a call without its arguments', or with them; and the size of its result.
struct Call {
    cost: Range,
    result: Option<Range>,
    /// Whether the arguments' costs are in it already.
    whole: bool,
}

impl Call {
    fn of(cost: Range) -> Self {
        Self { cost, result: None, whole: false }
    }

    fn sized(cost: Range, result: Range) -> Self {
        Self { cost, result: Some(result), whole: false }
    }
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
    fn elements(&self, place: Place<'d>) -> Place<'d> {
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

    fn entries_of(&self, expr: &Expr) -> Option<Entries> {
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

    /// How large a list's elements are; `None` if it is not of a type with elements.
    fn element_size(&self, list: &Arg<'_, 'd>) -> Option<(Type, Range)> {
        let of = match self.checked.type_of(list.expr) {
            Type::List(of) | Type::Map(of, _) => (**of).clone(),
            Type::Opaque(_, of) => of.first()?.clone(),
            _ => return None,
        };
        let size = match list.place {
            None => None,
            place => declared(self.elements(place)),
        };
        Some((of, size.unwrap_or(Range::UNKNOWN)))
    }

    /// What Kubernetes' estimator says of a function.
    fn kubernetes(
        &self,
        function: &str,
        overload: &str,
        target: Option<&Arg<'_, 'd>>,
        args: &[Arg<'_, 'd>],
    ) -> Option<Call> {
        let compared = |text: bool| {
            let bytes = Range::new(4, 16);
            let cost = bytes.plus(bytes).traversed();
            if text { cost.plus(args[0].range().traversed()) } else { cost }
        };
        Some(match function {
            "check" => Call::of(Range::fixed(CHECK)),
            "serviceAccount"
            | "path"
            | "group"
            | "resource"
            | "subresource"
            | "namespace"
            | "name"
            | "allowed"
            | "reason"
            | "error"
            | "errored"
            | "masked"
            | "prefixLength"
            | "family"
            | "isUnspecified"
            | "isLoopback"
            | "isLinkLocalMulticast"
            | "isLinkLocalUnicast"
            | "isGlobalUnicast"
            | "format.named"
            | "sign"
            | "asInteger"
            | "isInteger"
            | "asApproximateFloat"
            | "isGreaterThan"
            | "isLessThan"
            | "compareTo"
            | "add"
            | "sub"
            | "major"
            | "minor"
            | "patch"
            | "getScheme"
            | "getHostname"
            | "getHost"
            | "getPort"
            | "getEscapedPath"
            | "getQuery" => Call::of(Range::ONE),
            "fieldSelector" | "labelSelector" if args.len() == 1 => {
                let length = args[0].range();
                let each = (CREATE_LIST + CREATE_OBJECT) as f64;
                Call::of(Range::fixed(CREATE_LIST).plus(length.traversed()).plus(length.by(0.5).by(each)))
            }
            "isSorted" | "sum" | "max" | "min" | "indexOf" | "lastIndexOf" => {
                let target = target?;
                match self.element_size(target) {
                    Some((of, size)) => {
                        let mut each = Range::ONE;
                        if matches!(of, Type::String | Type::Bytes) {
                            each = each.plus(size.traversed());
                        }
                        Call::of(target.range().times(each))
                    }
                    None => Call::of(target.range().traversed()),
                }
            }
            "url" | "jsonpatch.escapeKey" if args.len() == 1 => {
                Call::sized(args[0].range().traversed(), args[0].range())
            }
            "lowerAscii" | "upperAscii" | "substring" | "trim" => {
                Call::sized(target?.range().traversed(), target?.range())
            }
            "replace" if args.len() >= 2 => {
                let size = target?.range();
                Call::sized(size.by(2.0 * TRAVERSAL), replaced(size, args[0].range(), args[1].range()))
            }
            "split" => {
                let size = target?.range();
                let most = match args.get(1).map(|arg| &arg.expr.kind) {
                    Some(Kind::Literal(Literal::Int(limit))) => *limit as u64,
                    _ => size.max,
                };
                Call::sized(size.by(2.0 * TRAVERSAL), Range::new(0, most))
            }
            "join" => {
                let target = target?;
                let count = target.range();
                let mut size = match self.element_size(target) {
                    Some((_, element)) => count.times(element),
                    None => Range::ZERO,
                };
                if let Some(by) = args.first() {
                    let gaps = Range::new(count.min.saturating_sub(1), count.max.saturating_sub(1));
                    size = size.plus(by.range().times(gaps));
                }
                Call::sized(size.traversed(), size)
            }
            "find" | "findAll" if !args.is_empty() => {
                let size = target?.range();
                let text = size.plus(Range::ONE).traversed();
                Call::sized(text.times(args[0].range().by(PATTERN)), Range::new(0, size.max))
            }
            "ip" if overload == "cidr_ip" => Call::of(Range::ONE),
            "cidr" | "isIP" | "isCIDR" | "ip" | "quantity" | "isQuantity" | "semver" | "isSemver"
                if !args.is_empty() =>
            {
                Call::of(args[0].range().traversed())
            }
            "ip.isCanonical" if !args.is_empty() => Call::of(args[0].range().by(2.0 * TRAVERSAL)),
            "containsIP" if !args.is_empty() => Call::of(compared(overload == "cidr_contains_ip_string")),
            "containsCIDR" if !args.is_empty() => {
                let more = Range::new(4, 16).traversed().plus(Range::ONE);
                Call::of(compared(overload == "cidr_contains_cidr_string").plus(more))
            }
            "validate" if !args.is_empty() => {
                Call::of(args[0].range().traversed().by(MAX_NAME_PATTERN * PATTERN))
            }
            "_==_" if args.len() == 2 => {
                let of = self.checked.type_of(args[0].expr);
                if of != self.checked.type_of(args[1].expr) {
                    return None;
                }
                match of.name() {
                    "kubernetes.NamedFormat" => Call::of(Range::new(1, MAX_FORMAT).traversed()),
                    "kubernetes.URL" => {
                        let most = args[1].size.map_or(1, |size| size.max);
                        Call::of(Range::new(1, most).traversed())
                    }
                    name if name == "net.IP" || name == "net.CIDR" || name.starts_with("kubernetes.") => {
                        if matches!(of, Type::Object(_)) && self.env.object(name).is_some() {
                            return None;
                        }
                        Call::of(Range::ONE)
                    }
                    _ => return None,
                }
            }
            _ => return None,
        })
    }

    /// What cel-go's estimator says of an overload.
    fn standard(
        &mut self,
        expr: &Expr,
        overload: &str,
        target: Option<&Arg<'_, 'd>>,
        args: &[Arg<'_, 'd>],
        costs: &[Range],
    ) -> Call {
        match (overload, args) {
            ("string_format", _) => match target {
                Some(target) => Call::of(target.range().traversed()),
                None => Call::of(Range::ONE),
            },
            ("string_to_bytes", [one]) => {
                let size = one.range();
                Call::sized(size.traversed(), Range::new(size.min, size.max.saturating_mul(4)))
            }
            ("bytes_to_string", [one]) => {
                let size = one.range();
                Call::sized(size.traversed(), Range::new(size.min / 4, size.max))
            }
            ("strings_quote", [one]) => {
                let size = one.range();
                let most = size.max.saturating_mul(2).saturating_add(2);
                Call::sized(size.traversed(), Range::new(size.min.saturating_add(2), most))
            }
            ("starts_with_string" | "ends_with_string", [one]) => Call::of(one.range().traversed()),
            ("in_list", [_, list]) => Call::of(list.range()),
            ("matches_string", [pattern]) if target.is_some() => {
                let text = target.map_or(Range::UNKNOWN, Arg::range).plus(Range::ONE).traversed();
                Call::of(text.times(pattern.range().by(PATTERN)))
            }
            ("contains_string", [part]) if target.is_some() => {
                let text = target.map_or(Range::UNKNOWN, Arg::range).traversed();
                Call::of(text.times(part.range().traversed()))
            }
            ("logical_or" | "logical_and", _) => {
                let most = costs.iter().fold(Range::ZERO, |sum, cost| sum.plus(*cost)).max;
                let least = costs.first().map_or(0, |cost| cost.min);
                Call { cost: Range::new(least, most), result: None, whole: true }
            }
            ("conditional", [_, yes, no]) => {
                let size = yes.range().union(no.range());
                if let (Some(yes), Some(no)) = (self.entries_of(yes.expr), self.entries_of(no.expr)) {
                    self.entries.insert(expr.id, yes.union(no));
                }
                Call { cost: costs[0].plus(costs[1].union(costs[2])), result: Some(size), whole: true }
            }
            ("add_string" | "add_bytes" | "add_list", [left, right]) => {
                let size = left.range().plus(right.range());
                if let (Some(left), Some(right)) = (self.entries_of(left.expr), self.entries_of(right.expr)) {
                    self.entries.insert(expr.id, left.union(right));
                }
                let cost = if overload == "add_list" { Range::ONE } else { size.traversed() };
                Call::sized(cost, size)
            }
            (
                "less_string"
                | "greater_string"
                | "less_equals_string"
                | "greater_equals_string"
                | "less_bytes"
                | "greater_bytes"
                | "less_equals_bytes"
                | "greater_equals_bytes"
                | "equals"
                | "not_equals",
                [left, right],
            ) => {
                let most = left.range().max.min(right.range().max);
                Call::of(Range::new(u64::from(most > 0), most).traversed())
            }
            _ => Call::of(Range::ONE),
        }
    }
}

impl Arg<'_, '_> {
    fn range(&self) -> Range {
        self.size.or_else(|| declared(self.place)).unwrap_or(Range::UNKNOWN)
    }

    /// The number that it is, if it is a literal.
    fn whole(&self, otherwise: u64) -> u64 {
        match &self.expr.kind {
            Kind::Literal(Literal::Int(value)) => (*value).max(0) as u64,
            _ => otherwise,
        }
    }
}

const MAX_FORMAT: u64 = 64;
const MAX_NAME_PATTERN: f64 = 128.0;

static KEY: std::sync::LazyLock<Decl> = std::sync::LazyLock::new(|| Decl::plain(Type::String));

fn declared(place: Place<'_>) -> Option<Range> {
    // Sizes of declarations are never negative.
    place.flatten().map(|decl| Range::new(0, decl.max_elements as u64))
}

fn is_scalar(of: &Type) -> bool {
    match of {
        Type::Bool | Type::Double | Type::Duration | Type::Int | Type::Timestamp | Type::Uint => true,
        other => other.as_optional().is_some_and(is_scalar),
    }
}

/// What the extensions for lists and sets say of an overload.
fn extension(overload: &str, target: Option<&Arg<'_, '_>>, args: &[Arg<'_, '_>]) -> Option<Call> {
    let made = |factor: f64, work: Range| {
        Some(Call::sized(work.by(factor).plus(Range::fixed(1 + CREATE_LIST)), work))
    };
    let square = |arg: &Arg<'_, '_>| arg.range().times(arg.range());
    let sets = |factor: f64| match args {
        [left, right] => Some(Call::of(left.range().times(right.range()).by(factor).plus(Range::ONE))),
        _ => None,
    };
    match overload {
        "list_slice" => {
            let size = target?.range();
            let [start, end] = args else { return None };
            made(1.0, Range::fixed(end.whole(size.max).wrapping_sub(start.whole(0))))
        }
        "lists_range" => made(1.0, Range::fixed(args.first()?.whole(u64::MAX))),
        "list_reverse" => made(1.0, target?.range()),
        "list_flatten" | "list_flatten_int" => {
            let depth = args.first().map_or(1, |arg| arg.whole(u64::MAX));
            made(depth as f64, target?.range())
        }
        "list_distinct" => made(2.0, square(target?)),
        "list_sets_contains_list" | "list_sets_intersects_list" => sets(1.0),
        "list_sets_equivalent_list" => sets(2.0),
        _ => {
            let (element, by) = match overload.strip_prefix("list_")?.rsplit_once('_')? {
                (element, "sort") => (element, target?),
                (element, "sortByAssociatedKeys") => (element, args.first()?),
                _ => return None,
            };
            let factor = if matches!(element, "string" | "bytes") { 2.0 + TRAVERSAL } else { 2.0 };
            made(factor, square(by))
        }
    }
}

/// How long a string can be after replacements.
fn replaced(size: Range, old: Range, new: Range) -> Range {
    let (mut count, mut kept) = (Range::ZERO, Range::ZERO);
    if old.min == 0 {
        count.max = size.max.saturating_add(1);
        kept.max = size.max;
    } else if new.max <= old.min {
        kept.max = size.max;
    } else {
        count.max = (size.max as f64 / old.min as f64).ceil() as u64;
    }
    if old.max == 0 {
        count.min = size.min.saturating_add(1);
        kept.min = size.min;
    } else if old.max <= new.min {
        kept.min = size.min;
    } else {
        count.min = (size.min as f64 / old.max as f64).ceil() as u64;
    }
    count.times(new).plus(kept)
}
