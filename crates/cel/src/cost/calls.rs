//! The worst cases of calls: those that Kubernetes' estimator knows, the extensions for lists and sets, and cel-go's own.

use super::estimate::{Coster, Place, declared};
use super::size::Range;
use super::{CHECK, CREATE_LIST, CREATE_OBJECT, PATTERN, TRAVERSAL};
use crate::parse::ast::{Expr, Kind, Literal};
use crate::types::Type;

const MAX_FORMAT: u64 = 64;
const MAX_NAME_PATTERN: f64 = 128.0;

/// An argument of a call.
pub(super) struct Arg<'e, 'd> {
    pub expr: &'e Expr,
    pub place: Place<'d>,
    pub size: Option<Range>,
}

/// The cost of a call without its arguments', or with them; and the size of its result.
pub(super) struct Call {
    pub cost: Range,
    pub result: Option<Range>,
    /// Whether the arguments' costs are in it already.
    pub whole: bool,
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
    pub(super) fn kubernetes(
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
    pub(super) fn standard(
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

/// What the extensions for lists and sets say of an overload.
pub(super) fn extension(overload: &str, target: Option<&Arg<'_, '_>>, args: &[Arg<'_, '_>]) -> Option<Call> {
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
