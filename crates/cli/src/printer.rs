//! Tables as the server makes them, in aligned columns.

use serde_json::Value;

/// How to print tables.
#[derive(Clone, Copy, Default)]
pub(crate) struct Style {
    pub wide: bool,
    pub headers: bool,
    pub namespace: bool,
    pub labels: bool,
}

/// The lines of a server-side Table. `name` turns an object's name into what is shown in the first column.
pub(crate) fn table(document: &Value, style: Style, name: impl Fn(&str) -> String) -> Vec<Vec<String>> {
    let columns = document["columnDefinitions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let shown: Vec<usize> = (0..columns.len())
        .filter(|at| style.wide || columns[*at]["priority"].as_i64().unwrap_or(0) == 0)
        .collect();
    let mut rows = Vec::new();
    if style.headers {
        let mut row: Vec<String> = Vec::new();
        if style.namespace {
            row.push("NAMESPACE".into());
        }
        let title = |at: &usize| columns[*at]["name"].as_str().unwrap_or_default().to_uppercase();
        row.extend(shown.iter().map(title));
        if style.labels {
            row.push("LABELS".into());
        }
        rows.push(row);
    }
    for line in document["rows"].as_array().into_iter().flatten() {
        let metadata = &line["object"]["metadata"];
        let mut row = Vec::new();
        if style.namespace {
            row.push(metadata["namespace"].as_str().unwrap_or_default().to_owned());
        }
        for (position, at) in shown.iter().enumerate() {
            let text = cell(&line["cells"][*at]);
            row.push(if position == 0 { name(&text) } else { text });
        }
        if style.labels {
            let labels = metadata["labels"].as_object().into_iter().flatten();
            let pairs: Vec<String> =
                labels.map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default())).collect();
            row.push(if pairs.is_empty() { "<none>".into() } else { pairs.join(",") });
        }
        rows.push(row);
    }
    rows
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => "<none>".into(),
        Value::String(text) if text.is_empty() => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Aligns columns with three spaces between, as kubectl does.
pub(crate) fn align(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |at: usize| rows.iter().filter_map(|row| row.get(at)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|at| width(at).unwrap_or(0)).collect();
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (at, cell) in row.iter().enumerate() {
            line.push_str(cell);
            if at + 1 < row.len() {
                line.extend(std::iter::repeat_n(' ', widths[at] - cell.chars().count() + 3));
            }
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn columns_are_aligned_and_wide_ones_hidden() {
        let document = json!({
            "columnDefinitions": [{"name": "Name"}, {"name": "Ready"}, {"name": "Node", "priority": 1}],
            "rows": [
                {"cells": ["web", "1/1", "n1"], "object": {"metadata": {"namespace": "default"}}},
                {"cells": ["database", "0/1", null], "object": {"metadata": {"namespace": "data"}}},
            ],
        });
        let style = Style { headers: true, ..Style::default() };
        let text = align(&table(&document, style, str::to_owned));
        assert_eq!(text, "NAME       READY\nweb        1/1\ndatabase   0/1\n");
        let style = Style { wide: true, namespace: true, ..Style::default() };
        let text = align(&table(&document, style, |name| format!("pod/{name}")));
        assert_eq!(text, "default   pod/web        1/1   n1\ndata      pod/database   0/1   <none>\n");
    }
}
