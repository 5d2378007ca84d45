//! Objects as YAML, in the block style of the reference: keys sorted, lists at the indentation of their key.

use serde_json::Value;

/// A document.
pub fn write(value: &Value) -> String {
    let mut out = String::new();
    node(&mut out, value, 0, false);
    if !out.ends_with('\n') {
        out.push('\n');
    }
    out
}

fn pad(out: &mut String, depth: usize) {
    out.extend(std::iter::repeat_n("  ", depth));
}

/// Writes a value that begins on its own line, or (`inline`) behind a dash.
fn node(out: &mut String, value: &Value, depth: usize, inline: bool) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (i, (key, value)) in map.iter().enumerate() {
                if i > 0 || !inline {
                    pad(out, depth);
                }
                out.push_str(&scalar(key, depth));
                out.push(':');
                match value {
                    Value::Object(inner) if !inner.is_empty() => {
                        out.push('\n');
                        node(out, value, depth + 1, false);
                    }
                    Value::Array(list) if !list.is_empty() => {
                        out.push('\n');
                        node(out, value, depth, false);
                    }
                    other => {
                        out.push(' ');
                        leaf(out, other, depth + 1);
                    }
                }
            }
        }
        Value::Array(list) if !list.is_empty() => {
            for (i, item) in list.iter().enumerate() {
                if i > 0 || !inline {
                    pad(out, depth);
                }
                out.push_str("- ");
                match item {
                    Value::Object(inner) if !inner.is_empty() => node(out, item, depth + 1, true),
                    Value::Array(inner) if !inner.is_empty() => node(out, item, depth + 1, true),
                    other => leaf(out, other, depth + 1),
                }
            }
        }
        other => leaf(out, other, depth),
    }
}

fn leaf(out: &mut String, value: &Value, depth: usize) {
    match value {
        Value::Object(_) => out.push_str("{}"),
        Value::Array(_) => out.push_str("[]"),
        Value::String(text) => out.push_str(&scalar(text, depth)),
        other => out.push_str(&other.to_string()),
    }
    out.push('\n');
}

/// A string, quoted where it would be read as something else; several lines as a literal block.
fn scalar(text: &str, depth: usize) -> String {
    if text.contains('\n')
        && !text.starts_with([' ', '\n'])
        && text.chars().all(|c| c == '\n' || !c.is_control())
    {
        let mut block = String::from(match (text.ends_with('\n'), text.ends_with("\n\n")) {
            (true, true) => "|+",
            (true, false) => "|",
            (false, _) => "|-",
        });
        for line in text.strip_suffix('\n').unwrap_or(text).split('\n') {
            block.push('\n');
            if !line.is_empty() {
                pad(&mut block, depth.max(1));
                block.push_str(line);
            }
        }
        return block;
    }
    if text.is_empty() || ambiguous(text) {
        return quoted(text);
    }
    text.to_owned()
}

fn quoted(text: &str) -> String {
    if text.chars().any(|c| c.is_control() || c == '\'') {
        Value::from(text).to_string()
    } else if looks_typed(text) {
        format!("\"{text}\"")
    } else {
        format!("'{text}'")
    }
}

/// Whether plain text would be read as a number, a boolean, null or a time.
fn looks_typed(text: &str) -> bool {
    text.is_empty()
        || matches!(
            text.to_ascii_lowercase().as_str(),
            "true"
                | "false"
                | "yes"
                | "no"
                | "on"
                | "off"
                | "null"
                | "~"
                | "y"
                | "n"
                | ".nan"
                | ".inf"
                | "-.inf"
        )
        || text.parse::<f64>().is_ok()
        || ((text.starts_with("0x") || text.starts_with("0o") || text.starts_with("0b")) && text.len() > 2)
        || text.get(..10).is_some_and(|d| {
            d.bytes().enumerate().all(|(i, b)| if i == 4 || i == 7 { b == b'-' } else { b.is_ascii_digit() })
        })
}

fn ambiguous(text: &str) -> bool {
    let first = text.chars().next().unwrap_or(' ');
    looks_typed(text)
        || text.starts_with(' ')
        || text.ends_with([' ', ':'])
        || "!&*{}[],#|>@`\"'%".contains(first)
        || (matches!(first, '-' | '?' | ':') && (text.len() == 1 || text.as_bytes()[1] == b' '))
        || text.contains(": ")
        || text.contains(" #")
        || text.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn block_style() {
        let value = json!({"a": {"b": [1, {"c": "x", "d": []}, "true"]}, "e": "l1\nl2\n", "f": "", "g": "2020-01-01T00:00:00Z"});
        let want = "a:\n  b:\n  - 1\n  - c: x\n    d: []\n  - \"true\"\ne: |\n  l1\n  l2\nf: \"\"\ng: \"2020-01-01T00:00:00Z\"\n";
        assert_eq!(write(&value), want);
    }
}
