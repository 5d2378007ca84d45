//! What is wrong with an expression though its types agree.

use std::cell::Cell;

use super::Checked;
use crate::error::{EvalError, Issue};
use crate::library::format::{self, Clause};
use crate::parse::ast::{Expr, Id, Kind, Literal};
use crate::types::Type;
use crate::value::time;

/// Notes what cel-go's validators find after the types are right: literal arguments of `duration`, `timestamp` and
/// `matches` that cannot be read, lists and maps of several types, and format strings that do not fit their arguments.
pub(super) fn validate(checked: &Checked, issues: &mut Vec<Issue>) {
    let mut walk = Walk { checked, found: Vec::new() };
    walk.expr(&checked.ast.root, false);
    let mut found = walk.found;
    // One kind of fault at a time.
    found.sort_by_key(|(order, ..)| *order);
    issues.extend(
        found
            .into_iter()
            .map(|(_, id, message)| Issue { offset: Some(checked.ast.offsets[id as usize]), message }),
    );
}

struct Walk<'c> {
    checked: &'c Checked,
    found: Vec<(u8, Id, String)>,
}

const HOMOGENEOUS: u8 = 3;
const FORMAT: u8 = 4;

impl Walk<'_> {
    /// `exempt`: inside a call of `format`, whose arguments may be of several types.
    fn expr(&mut self, expr: &Expr, exempt: bool) {
        match &expr.kind {
            Kind::Literal(_) | Kind::Ident(_) | Kind::Missing => {}
            Kind::Select { operand, .. } => self.expr(operand, exempt),
            Kind::Call { target, function, args } => {
                if let Some(Expr { id, kind: Kind::Literal(literal) }) = args.first()
                    && let Some((order, name)) = fault(function, literal)
                {
                    self.found.push((order, *id, format!("invalid {name} argument")));
                }
                let exempt = exempt || &**function == "format";
                if let (Some(target), [Expr { kind: Kind::List { elements, .. }, .. }]) = (target, &args[..])
                    && let Kind::Literal(Literal::String(text)) = &target.kind
                    && self.checked.overloads(expr).contains(&"string_format")
                {
                    self.format(expr.id, text, elements);
                }
                target.iter().for_each(|target| self.expr(target, exempt));
                args.iter().for_each(|arg| self.expr(arg, exempt));
            }
            Kind::List { elements, optional } => {
                if !exempt {
                    self.same(elements.iter().zip(optional).map(|(one, optional)| (one, *optional)), true);
                }
                elements.iter().for_each(|one| self.expr(one, exempt));
            }
            Kind::Map(entries) => {
                if !exempt {
                    self.same(entries.iter().map(|one| (&one.key, false)), false);
                    self.same(entries.iter().map(|one| (&one.value, one.optional)), false);
                }
                for entry in entries {
                    self.expr(&entry.key, exempt);
                    self.expr(&entry.value, exempt);
                }
            }
            Kind::Object { fields, .. } => fields.iter().for_each(|one| self.expr(&one.value, exempt)),
            Kind::Fold(fold) => {
                for one in [&fold.range, &fold.init, &fold.condition, &fold.step, &fold.result] {
                    self.expr(one, exempt);
                }
            }
        }
    }

    /// Notes the first, or every, element that is of another type than the first.
    fn same<'e>(&mut self, elements: impl Iterator<Item = (&'e Expr, bool)>, first: bool) {
        let mut wanted: Option<Type> = None;
        for (element, optional) in elements {
            let of = self.checked.type_of(element);
            let of = if optional { of.as_optional().unwrap_or(of) } else { of };
            match &wanted {
                None => wanted = Some(of.clone()),
                Some(wanted) if wanted == of => {}
                Some(wanted) => {
                    self.found.push((
                        HOMOGENEOUS,
                        element.id,
                        format!("expected type '{wanted}' but found '{of}'"),
                    ));
                    if first {
                        return;
                    }
                }
            }
        }
    }

    fn format(&mut self, id: Id, text: &str, args: &[Expr]) {
        let used = Cell::new(0);
        let culprit = Cell::new(id);
        let checked = format::interpolate(text, args.len(), &mut |at, clause, _| {
            used.set(at + 1);
            let fault = |bad: &Expr| {
                culprit.set(bad.id);
                EvalError::new(clause.complaint(self.checked.type_of(bad).name()))
            };
            match misfit(self.checked, &args[at], clause) {
                Some(bad) => Err(fault(bad)),
                None => Ok(String::new()),
            }
        });
        match checked {
            Err(why) => self.found.push((FORMAT, culprit.get(), why.to_string())),
            Ok(_) if args.len() > used.get() => {
                let message = format!(
                    "too many arguments supplied to string.format (expected {}, got {})",
                    used.get(),
                    args.len()
                );
                self.found.push((FORMAT, id, message));
            }
            Ok(_) => {}
        }
    }
}

/// The part of an argument that a clause cannot write.
fn misfit<'e>(checked: &Checked, arg: &'e Expr, clause: Clause) -> Option<&'e Expr> {
    let of = checked.type_of(arg);
    if of.is_dyn() {
        return None;
    }
    let fits = match clause {
        Clause::Text => !matches!(of, Type::Object(_) | Type::Opaque(..) | Type::Error | Type::Param(_)),
        Clause::Decimal | Clause::Octal => matches!(of, Type::Int | Type::Uint),
        Clause::Fixed | Clause::Scientific => matches!(of, Type::Double | Type::String),
        Clause::Binary => matches!(of, Type::Int | Type::Uint | Type::Bool),
        Clause::Hex(_) => matches!(of, Type::Int | Type::Uint | Type::String | Type::Bytes),
    };
    if !fits {
        return Some(arg);
    }
    match &arg.kind {
        Kind::List { elements, .. } if clause == Clause::Text => {
            elements.iter().find_map(|one| misfit(checked, one, clause))
        }
        Kind::Map(entries) if clause == Clause::Text => entries.iter().find_map(|one| {
            misfit(checked, &one.key, clause).or_else(|| misfit(checked, &one.value, clause))
        }),
        _ => None,
    }
}

fn fault(function: &str, literal: &Literal) -> Option<(u8, &'static str)> {
    let text = match literal {
        Literal::String(text) => text,
        Literal::Int(seconds) => {
            let fine = time::Timestamp::new(*seconds, 0).is_ok();
            return match function {
                "duration" => Some((0, "duration")),
                "timestamp" if !fine => Some((1, "timestamp")),
                _ => None,
            };
        }
        _ => return None,
    };
    match function {
        "duration" if time::parse_duration(text).is_none() => Some((0, "duration")),
        "timestamp" if time::Timestamp::parse(text).is_none_or(|at| at.checked().is_err()) => {
            Some((1, "timestamp"))
        }
        "matches" if crate::pattern::compile(text).is_err() => Some((2, "matches")),
        _ => None,
    }
}
