//! Named formats (`format.dns1123Label().validate(x)`), patterns' finds, and keys of JSON patches.

use std::any::Any;

use base64::Engine as _;

use super::{Result, int, text};
use crate::error::EvalError;
use crate::functions::Def;
use crate::types::Type;
use crate::value::{Object, Timestamp, Value};

pub(super) const FUNCTIONS: &[Def] = &[
    Def("format.named", &["format-named: (string) -> optional(kubernetes.NamedFormat)"], |args| {
        let name = text(args.first())?;
        let found = FORMATS.iter().position(|format| format.name == &**name);
        Ok(Value::Optional(found.map(|at| Value::object(Format(at)).into())))
    }),
    Def(
        "validate",
        &["format-validate: kubernetes.NamedFormat.(string) -> optional(list(string))"],
        |args| {
            let format = args[0].downcast::<Format>().ok_or_else(EvalError::no_such_overload)?;
            let faults = (FORMATS[format.0].check)(text(args.get(1))?);
            if faults.is_empty() {
                return Ok(Value::Optional(None));
            }
            Ok(Value::some(Value::list(faults.into_iter().map(Value::string).collect())))
        },
    ),
    Def("format.dns1123Label", &["format.dns1123Label: () -> kubernetes.NamedFormat"], |_| named(0)),
    Def("format.dns1123Subdomain", &["format.dns1123Subdomain: () -> kubernetes.NamedFormat"], |_| named(1)),
    Def("format.dns1035Label", &["format.dns1035Label: () -> kubernetes.NamedFormat"], |_| named(2)),
    Def("format.qualifiedName", &["format.qualifiedName: () -> kubernetes.NamedFormat"], |_| named(3)),
    Def("format.dns1123LabelPrefix", &["format.dns1123LabelPrefix: () -> kubernetes.NamedFormat"], |_| {
        named(4)
    }),
    Def(
        "format.dns1123SubdomainPrefix",
        &["format.dns1123SubdomainPrefix: () -> kubernetes.NamedFormat"],
        |_| named(5),
    ),
    Def("format.dns1035LabelPrefix", &["format.dns1035LabelPrefix: () -> kubernetes.NamedFormat"], |_| {
        named(6)
    }),
    Def("format.labelValue", &["format.labelValue: () -> kubernetes.NamedFormat"], |_| named(7)),
    Def("format.uri", &["format.uri: () -> kubernetes.NamedFormat"], |_| named(8)),
    Def("format.uuid", &["format.uuid: () -> kubernetes.NamedFormat"], |_| named(9)),
    Def("format.byte", &["format.byte: () -> kubernetes.NamedFormat"], |_| named(10)),
    Def("format.date", &["format.date: () -> kubernetes.NamedFormat"], |_| named(11)),
    Def("format.datetime", &["format.datetime: () -> kubernetes.NamedFormat"], |_| named(12)),
    Def("find", &["string_find_string: string.(string) -> string"], |args| {
        let found = pattern(args)?.find(text(args.first())?).map_or("", |found| found.as_str()).to_owned();
        Ok(Value::string(found))
    }),
    Def(
        "findAll",
        &[
            "string_find_all_string: string.(string) -> list(string)",
            "string_find_all_string_int: string.(string, int) -> list(string)",
        ],
        |args| {
            let most = args.get(2).map(|most| int(Some(most))).transpose()?;
            Ok(find_all(&pattern(args)?, text(args.first())?, most))
        },
    ),
    Def("jsonpatch.escapeKey", &["string_jsonpatch_escapeKey_string: (string) -> string"], |args| {
        Ok(Value::string(text(args.first())?.replace('~', "~0").replace('/', "~1")))
    }),
];

/// The matches of a pattern, at most so many if that is not negative.
pub(crate) fn find_all<'a>(pattern: &regex::Regex, text: &str, most: Option<i64>) -> Value<'a> {
    let most = most.and_then(|most| usize::try_from(most).ok()).unwrap_or(usize::MAX);
    Value::list(pattern.find_iter(text).take(most).map(|found| Value::string(found.as_str())).collect())
}

fn pattern(args: &[Value<'_>]) -> std::result::Result<regex::Regex, EvalError> {
    crate::pattern::compile(text(args.get(1))?).map_err(|why| EvalError::new(format!("Illegal regex: {why}")))
}

/// A named format, by its place in the table.
#[derive(Debug, PartialEq, Eq)]
struct Format(usize);

struct Row {
    name: &'static str,
    /// How long a pattern its check counts as.
    length: u64,
    check: fn(&str) -> Vec<String>,
}

fn named<'a>(at: usize) -> Result<'a> {
    Ok(Value::object(Format(at)))
}

impl Object for Format {
    fn type_of(&self) -> Type {
        Type::object("kubernetes.NamedFormat")
    }

    fn equals(&self, other: &dyn Object) -> bool {
        other.as_any().downcast_ref::<Self>() == Some(self)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn size(&self) -> Option<u64> {
        Some(FORMATS[self.0].length)
    }
}

const FORMATS: [Row; 13] = [
    Row { name: "dns1123Label", length: 30, check: label },
    Row { name: "dns1123Subdomain", length: 60, check: subdomain },
    Row { name: "dns1035Label", length: 30, check: label_1035 },
    Row { name: "qualifiedName", length: 60, check: qualified },
    Row { name: "dns1123LabelPrefix", length: 30, check: |text| label(&masked(text)) },
    Row { name: "dns1123SubdomainPrefix", length: 60, check: |text| subdomain(&masked(text)) },
    Row { name: "dns1035LabelPrefix", length: 30, check: |text| label_1035(&masked(text)) },
    Row { name: "labelValue", length: 40, check: label_value },
    Row {
        name: "uri",
        length: 1103,
        check: |text| unless(super::urls::is_uri(text), "invalid URI for request"),
    },
    Row { name: "uuid", length: 70, check: |text| unless(is_uuid(text), "does not match the UUID format") },
    Row { name: "byte", length: 84, check: |text| unless(is_base64(text), "invalid base64") },
    Row {
        name: "date",
        length: 71,
        check: |text| unless(Timestamp::parse_date(text).is_some(), "invalid date"),
    },
    Row {
        name: "datetime",
        length: 71,
        check: |text| unless(Timestamp::parse_lenient(text).is_some(), "invalid datetime"),
    },
];

fn unless(fine: bool, fault: &str) -> Vec<String> {
    if fine { Vec::new() } else { vec![fault.into()] }
}

/// A prefix for generated names may end with a hyphen.
fn masked(text: &str) -> String {
    match text.strip_suffix('-') {
        Some(before) if !before.is_empty() => format!("{before}a"),
        _ => text.into(),
    }
}

fn is_label(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    !text.is_empty() && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

fn label(text: &str) -> Vec<String> {
    let mut faults = too_long(text, 63);
    faults.extend(unless(
        is_label(text),
        "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end \
         with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
         '[a-z0-9]([-a-z0-9]*[a-z0-9])?')",
    ));
    faults
}

fn subdomain(text: &str) -> Vec<String> {
    let mut faults = too_long(text, 253);
    faults.extend(unless(
        text.split('.').all(is_label),
        "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start \
         and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
         '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')",
    ));
    faults
}

fn label_1035(text: &str) -> Vec<String> {
    let mut faults = too_long(text, 63);
    faults.extend(unless(
        is_label(text) && text.starts_with(|c: char| c.is_ascii_lowercase()),
        "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic \
         character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation \
         is '[a-z]([-a-z0-9]*[a-z0-9])?')",
    ));
    faults
}

fn too_long(text: &str, most: usize) -> Vec<String> {
    unless(text.len() <= most, &format!("must be no more than {most} characters"))
}

fn is_word(text: &str) -> bool {
    let end = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_alphanumeric());
    let inner = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    text.bytes().all(inner) && end(text.bytes().next()) && end(text.bytes().last())
}

fn label_value(text: &str) -> Vec<String> {
    let mut faults = too_long(text, 63);
    faults.extend(unless(
        text.is_empty() || is_word(text),
        "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start \
         and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for \
         validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')",
    ));
    faults
}

fn qualified(text: &str) -> Vec<String> {
    const NAME: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an \
                        alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation \
                        is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
    let mut faults = Vec::new();
    let parts: Vec<&str> = text.split('/').collect();
    let name = match parts[..] {
        [name] => name,
        [prefix, name] => {
            if prefix.is_empty() {
                faults.push("prefix part must be non-empty".to_owned());
            } else {
                faults.extend(subdomain(prefix).into_iter().map(|fault| format!("prefix part {fault}")));
            }
            name
        }
        _ => {
            return vec![format!(
                "a qualified name {NAME} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
            )];
        }
    };
    if name.is_empty() {
        faults.push("name part must be non-empty".to_owned());
    } else {
        faults.extend(too_long(name, 63).into_iter().map(|fault| format!("name part {fault}")));
    }
    faults.extend(unless(is_word(name), &format!("name part {NAME}")));
    faults
}

fn is_uuid(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    let hex = |text: &str| text.bytes().all(|b| b.is_ascii_hexdigit());
    match parts[..] {
        [one] => one.len() == 32 && hex(one),
        [a, b, c, d, e] => {
            [a.len(), b.len(), c.len(), d.len(), e.len()] == [8, 4, 4, 4, 12]
                && parts.iter().all(|part| hex(part))
        }
        _ => false,
    }
}

fn is_base64(text: &str) -> bool {
    base64::engine::general_purpose::STANDARD.decode(text).is_ok()
}
