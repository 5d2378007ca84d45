//! The forms in which objects are printed: `-o json|yaml|name|wide|jsonpath=...`.

use serde_json::Value;

use crate::Error;

/// What `-o` asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Table { wide: bool },
    Json,
    Yaml,
    Name,
    JsonPath(String),
}

impl Form {
    pub fn parse(text: Option<&str>) -> Result<Form, Error> {
        Ok(match text {
            None => Form::Table { wide: false },
            Some("wide") => Form::Table { wide: true },
            Some("json") => Form::Json,
            Some("yaml") => Form::Yaml,
            Some("name") => Form::Name,
            Some(other) => match other.strip_prefix("jsonpath=") {
                Some(template) => Form::JsonPath(template.to_owned()),
                None => {
                    return Err(Error::Usage(format!(
                        "unable to match a printer suitable for the output format \"{other}\", allowed formats are: json,name,wide,yaml,jsonpath=TEMPLATE"
                    )));
                }
            },
        })
    }

    /// A document in this form; tables and names are printed elsewhere.
    pub fn render(&self, document: &Value) -> Result<String, Error> {
        Ok(match self {
            Form::Json => format!("{document:#}\n"),
            Form::Yaml => serde_saphyr::to_string(document)
                .map_err(|error| Error::Usage(format!("writing YAML: {error}")))?,
            Form::JsonPath(template) => jsonpath(document, template)?,
            Form::Table { .. } | Form::Name => String::new(),
        })
    }
}

/// The part of kubectl's JSONPath that scripts use most: text, `{.a.b}`, `{.a[0]}`, `{.items[*].name}`, `{"\n"}`.
pub(crate) fn jsonpath(document: &Value, template: &str) -> Result<String, Error> {
    let mut out = String::new();
    let mut rest = template;
    while let Some((text, after)) = rest.split_once('{') {
        out.push_str(text);
        let Some((expression, after)) = after.split_once('}') else {
            return Err(Error::Usage(format!("error parsing jsonpath {template}: unclosed action")));
        };
        if let Some(quoted) = expression.strip_prefix('"').and_then(|text| text.strip_suffix('"')) {
            out.push_str(&quoted.replace("\\n", "\n").replace("\\t", "\t"));
        } else {
            let found: Vec<String> = walk(document, expression)?.into_iter().map(plain).collect();
            out.push_str(&found.join(" "));
        }
        rest = after;
    }
    out.push_str(rest);
    Ok(out)
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// The values at a path such as `.status.conditions[*].type`, `.a\.b`, `['a.b']`, `[?(@.type=="Ready")].status`.
pub(crate) fn walk<'a>(document: &'a Value, path: &str) -> Result<Vec<&'a Value>, Error> {
    let mut found = vec![document];
    let mut rest = path.trim().trim_start_matches('$');
    while !rest.is_empty() {
        let step;
        if let Some(after) = rest.strip_prefix('[') {
            let Some((inside, after)) = after.split_once(']') else {
                return Err(Error::Usage(format!("error parsing jsonpath {path}: unterminated array")));
            };
            step = inside.trim().to_owned();
            rest = after;
            found = index(&found, &step, path)?;
            continue;
        }
        let text = rest.strip_prefix('.').unwrap_or(rest);
        let mut name = String::new();
        let mut characters = text.char_indices();
        let mut end = text.len();
        while let Some((at, character)) = characters.next() {
            match character {
                '\\' => name.extend(characters.next().map(|(_, escaped)| escaped)),
                '.' | '[' => {
                    end = at;
                    break;
                }
                other => name.push(other),
            }
        }
        rest = &text[end..];
        if !name.is_empty() {
            found = found.into_iter().filter_map(|value| value.get(&name)).collect();
        }
    }
    Ok(found)
}

fn index<'a>(values: &[&'a Value], step: &str, path: &str) -> Result<Vec<&'a Value>, Error> {
    let wrong = || Error::Usage(format!("error parsing jsonpath {path}: [{step}] is not understood"));
    let mut found = Vec::new();
    for value in values {
        if step == "*" {
            match value {
                Value::Array(items) => found.extend(items),
                Value::Object(fields) => found.extend(fields.values()),
                _ => {}
            }
        } else if let Some(filter) = step.strip_prefix("?(@").and_then(|filter| filter.strip_suffix(')')) {
            let (left, right) = filter.split_once("==").ok_or_else(wrong)?;
            let right = right.trim().trim_matches(['"', '\'']);
            for item in value.as_array().into_iter().flatten() {
                if walk(item, left)?.iter().any(|found| plain(found) == right) {
                    found.push(item);
                }
            }
        } else if let Some(name) = step.strip_prefix('\'').and_then(|name| name.strip_suffix('\'')) {
            found.extend(value.get(name));
        } else {
            let at: i64 = step.parse().map_err(|_| wrong())?;
            let items = value.as_array().map(Vec::as_slice).unwrap_or_default();
            let at = if at < 0 { items.len() as i64 + at } else { at };
            found.extend(usize::try_from(at).ok().and_then(|at| items.get(at)));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn paths_find_values() {
        let document = json!({
            "metadata": {"labels": {"app.kubernetes.io/name": "x"}},
            "items": [{"name": "a", "ok": true}, {"name": "b", "ok": false}],
        });
        for (template, expected) in [
            ("{.items[*].name}", "a b"),
            ("{.items[1].name}{\"\\n\"}", "b\n"),
            ("{.items[-1].name}", "b"),
            ("{.items[?(@.name==\"a\")].ok}", "true"),
            ("{.metadata.labels.app\\.kubernetes\\.io/name}", "x"),
            ("{.metadata.labels['app.kubernetes.io/name']}", "x"),
            ("name={.items[0].name};{.none}", "name=a;"),
        ] {
            assert_eq!(jsonpath(&document, template).expect(template), expected, "{template}");
        }
        assert!(jsonpath(&document, "{.items").is_err());
    }
}
