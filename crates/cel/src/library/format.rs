//! `string.format`: `%s`, `%d`, `%.3f`, `%e`, `%b`, `%x`, `%X` and `%o`.

use super::standard::plain_text;
use super::{Result, list, text};
use crate::error::EvalError;
use crate::functions::Def;
use crate::value::{Key, Map, Value};

pub(super) const FUNCTIONS: &[Def] =
    &[Def("format", &["string_format: string.(list(dyn)) -> string"], format)];

/// How an argument is to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Clause {
    Text,
    Decimal,
    Fixed,
    Scientific,
    Binary,
    /// With capital letters or not.
    Hex(bool),
    Octal,
}

const DEFAULT_PRECISION: usize = 6;
/// Finer is not asked for in earnest, and would make text without end.
const MAX_PRECISION: usize = 1000;

impl Clause {
    /// Why it cannot write a value of a type.
    pub(crate) fn complaint(self, of: &str) -> String {
        let may = match self {
            Self::Text => {
                "string clause can only be used on strings, bools, bytes, ints, doubles, maps, lists, types, \
                 durations, and timestamps"
            }
            Self::Decimal => "decimal clause can only be used on integers",
            Self::Fixed => "fixed-point clause can only be used on doubles",
            Self::Scientific => "scientific clause can only be used on doubles",
            Self::Binary => "only integers and bools can be formatted as binary",
            Self::Hex(_) => "only integers, byte buffers, and strings can be formatted as hex",
            Self::Octal => "octal clause can only be used on integers",
        };
        format!("error during formatting: {may}, was given {of}")
    }
}

/// What writes an argument: its place, its clause and the precision asked for.
type Write<'w> = dyn FnMut(usize, Clause, Option<usize>) -> std::result::Result<String, EvalError> + 'w;

/// The text with each clause replaced by what `write` makes of the argument at its place.
pub(crate) fn interpolate(
    text: &str,
    count: usize,
    write: &mut Write<'_>,
) -> std::result::Result<String, EvalError> {
    let mut out = String::new();
    let mut rest = text;
    let mut next = 0;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('%') {
            out.push('%');
            rest = after;
            continue;
        }
        if next >= count {
            return Err(EvalError::new(format!("index {next} out of range")));
        }
        if rest.is_empty() {
            return Err(EvalError::new("unexpected end of string"));
        }
        let mut precision = None;
        if let Some(after) = rest.strip_prefix('.') {
            let len = after.bytes().take_while(u8::is_ascii_digit).count();
            let unparsed = |why: &str| {
                let why = format!("could not parse formatting clause: error while parsing precision: {why}");
                EvalError::new(why)
            };
            if len == after.len() {
                return Err(unparsed("could not find end of precision specifier"));
            }
            let digits: usize =
                after[..len].parse().map_err(|_| unparsed("error while converting precision to integer"))?;
            precision = Some(digits.min(MAX_PRECISION));
            rest = &after[len..];
        }
        let letter = rest.chars().next().unwrap_or_default();
        let clause = match letter {
            's' => Clause::Text,
            'd' => Clause::Decimal,
            'f' => Clause::Fixed,
            'e' => Clause::Scientific,
            'b' => Clause::Binary,
            'x' => Clause::Hex(false),
            'X' => Clause::Hex(true),
            'o' => Clause::Octal,
            _ => {
                let why =
                    format!("could not parse formatting clause: unrecognized formatting clause \"{letter}\"");
                return Err(EvalError::new(why));
            }
        };
        rest = &rest[1..];
        out.push_str(&write(next, clause, precision)?);
        next += 1;
        if out.len() > super::strings::MAX_JOINED {
            return Err(EvalError::CostExceeded);
        }
    }
    out.push_str(rest);
    Ok(out)
}

fn format<'a>(args: &[Value<'a>]) -> Result<'a> {
    let (text, values) = (text(args.first())?, list(args.get(1))?);
    let made = interpolate(text, values.len(), &mut |at, clause, precision| match values.get(at) {
        Some(value) => write(&value?, clause, precision),
        None => Err(EvalError::new(format!("index {at} out of range"))),
    })?;
    Ok(Value::string(made))
}

fn write(
    value: &Value<'_>,
    clause: Clause,
    precision: Option<usize>,
) -> std::result::Result<String, EvalError> {
    let bad = || EvalError::new(clause.complaint(value.type_of().name()));
    let number = |value: &Value<'_>| match value {
        Value::Double(value) => Some(*value),
        Value::String(text) => match &**text {
            "NaN" => Some(f64::NAN),
            "Infinity" => Some(f64::INFINITY),
            "-Infinity" => Some(f64::NEG_INFINITY),
            _ => None,
        },
        _ => None,
    };
    let precision = precision.unwrap_or(DEFAULT_PRECISION);
    match clause {
        Clause::Text => clause_text(value).ok_or_else(bad)?,
        Clause::Decimal => match value {
            Value::Int(_) | Value::Uint(_) => plain_text(value),
            _ => Err(bad()),
        },
        Clause::Fixed => Ok(fixed(number(value).ok_or_else(bad)?, precision)),
        // The precision asked for has no effect: it is taken for a width.
        Clause::Scientific => Ok(scientific(number(value).ok_or_else(bad)?, DEFAULT_PRECISION)),
        Clause::Binary => match value {
            Value::Int(value) => Ok(signed(*value, |value| format!("{value:b}"))),
            Value::Uint(value) => Ok(format!("{value:b}")),
            Value::Bool(value) => Ok(if *value { "1" } else { "0" }.into()),
            _ => Err(bad()),
        },
        Clause::Octal => match value {
            Value::Int(value) => Ok(signed(*value, |value| format!("{value:o}"))),
            Value::Uint(value) => Ok(format!("{value:o}")),
            _ => Err(bad()),
        },
        Clause::Hex(capital) => {
            let bytes = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
            let small = match value {
                Value::Int(value) => signed(*value, |value| format!("{value:x}")),
                Value::Uint(value) => format!("{value:x}"),
                Value::String(text) => bytes(text.as_bytes()),
                Value::Bytes(value) => bytes(value),
                _ => return Err(bad()),
            };
            Ok(if capital { small.to_uppercase() } else { small })
        }
    }
}

fn signed(value: i64, write: fn(u64) -> String) -> String {
    format!("{}{}", if value < 0 { "-" } else { "" }, write(value.unsigned_abs()))
}

/// With a comma between thousands.
fn fixed(value: f64, precision: usize) -> String {
    if !value.is_finite() {
        return infinite(value);
    }
    let plain = format!("{:.precision$}", value.abs());
    let (whole, fraction) = plain.split_at(plain.find('.').unwrap_or(plain.len()));
    let mut out = String::from(if value < 0.0 { "-" } else { "" });
    for (at, digit) in whole.chars().enumerate() {
        if at > 0 && (whole.len() - at) % 3 == 0 {
            out.push(',');
        }
        out.push(digit);
    }
    out + fraction
}

fn infinite(value: f64) -> String {
    if value.is_nan() {
        "NaN".into()
    } else if value < 0.0 {
        "-\u{221e}".into()
    } else {
        "\u{221e}".into()
    }
}

/// As English typesets it: `1.25×10⁰³`.
fn scientific(value: f64, precision: usize) -> String {
    if !value.is_finite() {
        return infinite(value);
    }
    let plain = format!("{value:.precision$e}");
    let (mantissa, exponent) = plain.split_once('e').unwrap_or((&plain, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let digits = format!("{:02}", exponent.abs());
    let raised = digits.chars().map(|digit| match digit {
        '1' => '\u{b9}',
        '2' => '\u{b2}',
        '3' => '\u{b3}',
        '4' => '\u{2074}',
        '5' => '\u{2075}',
        '6' => '\u{2076}',
        '7' => '\u{2077}',
        '8' => '\u{2078}',
        '9' => '\u{2079}',
        _ => '\u{2070}',
    });
    let sign = if exponent < 0 { "\u{207b}" } else { "" };
    format!("{mantissa}\u{d7}10{sign}{}", raised.collect::<String>())
}

/// What `%s` makes of a value; `None` for values it cannot write.
fn clause_text(value: &Value<'_>) -> Option<std::result::Result<String, EvalError>> {
    Some(match value {
        Value::Null => Ok("null".into()),
        Value::List(_) | Value::Map(_) => literal(value),
        Value::Struct(_) | Value::Object(_) | Value::Optional(_) | Value::Lazy(_) | Value::Preserved(_) => {
            return None;
        }
        _ => plain_text(value),
    })
}

/// A value as it would stand in an expression.
fn literal(value: &Value<'_>) -> std::result::Result<String, EvalError> {
    Ok(match value {
        Value::String(text) => format!("{:?}", &**text),
        Value::Bytes(bytes) => format!("b{:?}", String::from_utf8_lossy(bytes)),
        Value::Timestamp(at) => format!("timestamp(\"{at}\")"),
        Value::Duration(_) => format!("duration(\"{}\")", plain_text(value)?),
        Value::Double(value) if value.is_finite() => format!("{value:.DEFAULT_PRECISION$}"),
        Value::Double(value) => {
            format!(
                "{:?}",
                if value.is_nan() {
                    "NaN"
                } else if *value < 0.0 {
                    "-Inf"
                } else {
                    "+Inf"
                }
            )
        }
        Value::List(list) => {
            let parts = list.iter().map(|one| literal(&one?)).collect::<std::result::Result<Vec<_>, _>>()?;
            format!("[{}]", parts.join(", "))
        }
        Value::Map(map) => {
            let mut entries = entries(map)?;
            entries.sort();
            let parts: Vec<String> =
                entries.into_iter().map(|(key, value)| format!("{key}:{value}")).collect();
            format!("{{{}}}", parts.join(", "))
        }
        other => match clause_text(other) {
            Some(text) => text?,
            None => {
                let of = other.type_of();
                return Err(EvalError::new(format!(
                    "error during formatting: no formatting function for {}",
                    of.name()
                )));
            }
        },
    })
}

fn entries(map: &Map<'_>) -> std::result::Result<Vec<(String, String)>, EvalError> {
    let mut out = Vec::new();
    for key in map.keys() {
        let name = match &key {
            Key::String(text) => format!("{:?}", &**text),
            Key::Double(_) => {
                return Err(EvalError::new(
                    "error during formatting: no formatting function for map key of type double",
                ));
            }
            other => other.to_string(),
        };
        if let Some(value) = map.get(&key) {
            out.push((name, literal(&value?)?));
        }
    }
    Ok(out)
}
