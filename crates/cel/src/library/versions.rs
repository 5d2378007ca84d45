//! Quantities and semantic versions.

use std::any::Any;
use std::cmp::Ordering;

use schema::quantity::{Format, Quantity};

use super::{Result, text};
use crate::error::EvalError;
use crate::functions::Def;
use crate::types::Type;
use crate::value::{Object, Value};

pub(super) const FUNCTIONS: &[Def] = &[
    Def("quantity", &["string_to_quantity: (string) -> kubernetes.Quantity"], |args| {
        quantity(text(args.first())?)
    }),
    Def("isQuantity", &["is_quantity_string: (string) -> bool"], |args| {
        Ok(Value::Bool(text(args.first())?.parse::<Quantity>().is_ok()))
    }),
    Def("sign", &["quantity_sign: (kubernetes.Quantity) -> int"], |args| {
        let amount = amount(args.first())?;
        Ok(Value::Int(if amount.is_zero() {
            0
        } else if amount.is_negative() {
            -1
        } else {
            1
        }))
    }),
    Def(
        "isGreaterThan",
        &[
            "quantity_is_greater_than: kubernetes.Quantity.(kubernetes.Quantity) -> bool",
            "semver_is_greater_than: kubernetes.Semver.(kubernetes.Semver) -> bool",
        ],
        |args| Ok(Value::Bool(order(args)? == Ordering::Greater)),
    ),
    Def(
        "isLessThan",
        &[
            "quantity_is_less_than: kubernetes.Quantity.(kubernetes.Quantity) -> bool",
            "semver_is_less_than: kubernetes.Semver.(kubernetes.Semver) -> bool",
        ],
        |args| Ok(Value::Bool(order(args)? == Ordering::Less)),
    ),
    Def(
        "compareTo",
        &[
            "quantity_compare_to: kubernetes.Quantity.(kubernetes.Quantity) -> int",
            "semver_compare_to: kubernetes.Semver.(kubernetes.Semver) -> int",
        ],
        |args| Ok(Value::Int(order(args)? as i64)),
    ),
    Def("asApproximateFloat", &["quantity_get_float: kubernetes.Quantity.() -> double"], |args| {
        Ok(Value::Double(amount(args.first())?.approximate()))
    }),
    Def("asInteger", &["quantity_get_int: kubernetes.Quantity.() -> int"], |args| {
        whole(args)?.map(Value::Int).ok_or_else(|| EvalError::new("cannot convert value to integer"))
    }),
    Def("isInteger", &["quantity_is_integer: kubernetes.Quantity.() -> bool"], |args| {
        Ok(Value::Bool(whole(args)?.is_some()))
    }),
    Def(
        "add",
        &[
            "quantity_add: kubernetes.Quantity.(kubernetes.Quantity) -> kubernetes.Quantity",
            "quantity_add_int: kubernetes.Quantity.(int) -> kubernetes.Quantity",
        ],
        |args| combine(args, Quantity::add),
    ),
    Def(
        "sub",
        &[
            "quantity_sub: kubernetes.Quantity.(kubernetes.Quantity) -> kubernetes.Quantity",
            "quantity_sub_int: kubernetes.Quantity.(int) -> kubernetes.Quantity",
        ],
        |args| combine(args, Quantity::sub),
    ),
    Def(
        "semver",
        &[
            "string_to_semver: (string) -> kubernetes.Semver",
            "string_bool_to_semver: (string, bool) -> kubernetes.Semver",
        ],
        |args| semver(args)?.map(Value::object).map_err(EvalError::new),
    ),
    Def(
        "isSemver",
        &["is_semver_string: (string) -> bool", "is_semver_string_bool: (string, bool) -> bool"],
        |args| Ok(Value::Bool(semver(args)?.is_ok())),
    ),
    Def("major", &["semver_major: kubernetes.Semver.() -> int"], |args| number(args, 0)),
    Def("minor", &["semver_minor: kubernetes.Semver.() -> int"], |args| number(args, 1)),
    Def("patch", &["semver_patch: kubernetes.Semver.() -> int"], |args| number(args, 2)),
];

/// A quantity as a value.
#[derive(Clone, Debug)]
pub(crate) struct Amount {
    amount: Quantity,
    /// Whether it can be asked for as an integer.
    whole: bool,
}

impl Object for Amount {
    fn type_of(&self) -> Type {
        Type::object("kubernetes.Quantity")
    }

    fn equals(&self, other: &dyn Object) -> bool {
        other.as_any().downcast_ref::<Self>().is_some_and(|other| self.amount == other.amount)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// A version by the rules of semver.org.
#[derive(Clone, Debug)]
pub(crate) struct Version {
    numbers: [u64; 3],
    pre: Vec<String>,
    build: String,
}

impl Object for Version {
    fn type_of(&self) -> Type {
        Type::object("kubernetes.Semver")
    }

    fn equals(&self, other: &dyn Object) -> bool {
        other.as_any().downcast_ref::<Self>().is_some_and(|other| self.order(other) == Ordering::Equal)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Version {
    pub(crate) fn parse(text: &str) -> std::result::Result<Self, String> {
        if text.is_empty() {
            return Err("Version string empty".into());
        }
        let parts: Vec<&str> = text.splitn(3, '.').collect();
        let [major, minor, rest] = parts[..] else {
            return Err("No Major.Minor.Patch elements found".into());
        };
        let (rest, build) = rest.split_once('+').map_or((rest, None), |(rest, build)| (rest, Some(build)));
        let (patch, pre) = rest.split_once('-').map_or((rest, None), |(patch, pre)| (patch, Some(pre)));
        let number = |name: &str, text: &str| {
            if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
                return Err(format!("Invalid character(s) found in {name} number {text:?}"));
            }
            if text.len() > 1 && text.starts_with('0') {
                return Err(format!("{name} number must not contain leading zeroes {text:?}"));
            }
            text.parse::<u64>().map_err(|why| why.to_string())
        };
        let numbers = [number("Major", major)?, number("Minor", minor)?, number("Patch", patch)?];
        let identifier =
            |text: &&str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        let mut all = Vec::new();
        if let Some(pre) = pre {
            for one in pre.split('.') {
                if one.is_empty() {
                    return Err("Prerelease is empty".into());
                }
                if !identifier(&one) {
                    return Err(format!("Invalid character(s) found in prerelease {one:?}"));
                }
                if one.len() > 1 && one.starts_with('0') && one.bytes().all(|b| b.is_ascii_digit()) {
                    return Err(format!(
                        "Numeric PreRelease version must not contain leading zeroes {one:?}"
                    ));
                }
                all.push(one.to_owned());
            }
        }
        if let Some(build) = build {
            for one in build.split('.') {
                if one.is_empty() {
                    return Err("Build meta data is empty".into());
                }
                if !identifier(&one) {
                    return Err(format!("Invalid character(s) found in build meta data {one:?}"));
                }
            }
        }
        Ok(Self { numbers, pre: all, build: build.unwrap_or_default().into() })
    }

    /// As [`Self::parse`] after a leading `v`, leading zeroes and missing numbers are put right.
    fn parse_normalized(text: &str) -> std::result::Result<Self, String> {
        let text = text.strip_prefix('v').unwrap_or(text);
        let mut parts: Vec<String> = text.splitn(3, '.').map(str::to_owned).collect();
        for part in parts.iter_mut().filter(|part| part.len() > 1) {
            let trimmed = part.trim_start_matches('0');
            let digit = trimmed.starts_with(|c: char| c.is_ascii_digit());
            *part = if digit { trimmed.to_owned() } else { format!("0{trimmed}") };
        }
        if parts.len() < 3 {
            if parts.last().is_some_and(|last| last.contains(['+', '-'])) {
                return Err("short version cannot contain PreRelease/Build meta data".into());
            }
            parts.resize(3, "0".into());
        }
        Self::parse(&parts.join("."))
    }

    fn order(&self, other: &Self) -> Ordering {
        self.numbers.cmp(&other.numbers).then_with(|| match (self.pre.is_empty(), other.pre.is_empty()) {
            (true, true) => Ordering::Equal,
            (true, false) => Ordering::Greater,
            (false, true) => Ordering::Less,
            (false, false) => {
                let pairs = self.pre.iter().zip(&other.pre).map(|(a, b)| identifiers(a, b));
                let first = pairs.into_iter().find(|order| order.is_ne());
                first.unwrap_or_else(|| self.pre.len().cmp(&other.pre.len()))
            }
        })
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [major, minor, patch] = self.numbers;
        write!(f, "{major}.{minor}.{patch}")?;
        if !self.pre.is_empty() {
            write!(f, "-{}", self.pre.join("."))?;
        }
        if !self.build.is_empty() {
            write!(f, "+{}", self.build)?;
        }
        Ok(())
    }
}

/// Numbers come before words and are compared as numbers.
fn identifiers(a: &str, b: &str) -> Ordering {
    let number = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    match (number(a), number(b)) {
        (true, true) => a.len().cmp(&b.len()).then_with(|| a.cmp(b)),
        (true, false) => Ordering::Less,
        (false, true) => Ordering::Greater,
        (false, false) => a.cmp(b),
    }
}

/// An amount as a value.
pub(crate) fn quantity<'a>(given: &str) -> Result<'a> {
    let amount = given.parse::<Quantity>().map_err(|why| EvalError::new(why.to_string()))?;
    // Upstream keeps a number with a fraction as such, even if there is nothing in it.
    let whole = !given.contains('.') && !given.ends_with(['n', 'u', 'm']) && amount.is_whole();
    Ok(Value::object(Amount { amount, whole }))
}

/// A version as a value.
pub(crate) fn version_of<'a>(given: &str) -> Result<'a> {
    Version::parse(given).map(Value::object).map_err(EvalError::new)
}

fn semver(args: &[Value<'_>]) -> std::result::Result<std::result::Result<Version, String>, EvalError> {
    let given = text(args.first())?;
    let normalize = match args.get(1) {
        None => false,
        Some(value) => value.as_bool().ok_or_else(EvalError::no_such_overload)?,
    };
    Ok(if normalize { Version::parse_normalized(given) } else { Version::parse(given) })
}

fn version<'v>(value: Option<&'v Value<'_>>) -> std::result::Result<&'v Version, EvalError> {
    value.and_then(Value::downcast::<Version>).ok_or_else(EvalError::no_such_overload)
}

fn number<'a>(args: &[Value<'a>], at: usize) -> Result<'a> {
    // Larger numbers wrap, as in Go's conversion.
    Ok(Value::Int(version(args.first())?.numbers[at] as i64))
}

fn amount<'v>(value: Option<&'v Value<'_>>) -> std::result::Result<&'v Quantity, EvalError> {
    value.and_then(Value::downcast::<Amount>).map(|one| &one.amount).ok_or_else(EvalError::no_such_overload)
}

fn other(args: &[Value<'_>]) -> std::result::Result<Quantity, EvalError> {
    match args.get(1) {
        Some(Value::Int(value)) => Ok(Quantity::new(*value, Format::DecimalExponent)),
        other => amount(other).cloned(),
    }
}

fn combine<'a>(args: &[Value<'a>], by: fn(&Quantity, &Quantity) -> Quantity) -> Result<'a> {
    let is_whole = |value: &Value<'_>| match value.downcast::<Amount>() {
        Some(one) => one.whole,
        None => matches!(value, Value::Int(_)),
    };
    let whole = args.iter().all(is_whole);
    Ok(Value::object(Amount { amount: by(amount(args.first())?, &other(args)?), whole }))
}

fn whole(args: &[Value<'_>]) -> std::result::Result<Option<i64>, EvalError> {
    let one = args[0].downcast::<Amount>().ok_or_else(EvalError::no_such_overload)?;
    let value = one.amount.value();
    Ok((one.whole && Quantity::new(value, Format::DecimalSi) == one.amount).then_some(value))
}

fn order(args: &[Value<'_>]) -> std::result::Result<Ordering, EvalError> {
    match amount(args.first()) {
        Ok(left) => Ok(left.cmp(amount(args.get(1))?)),
        Err(_) => Ok(version(args.first())?.order(version(args.get(1))?)),
    }
}
