//! Regular expressions in Go's dialect (RE2), as schemas write them.

use std::borrow::Cow;
use std::sync::Arc;

use regex::Regex;

/// A pattern, compiled when the schema is read; an empty one is none.
#[derive(Clone, Debug, Default)]
pub struct Pattern {
    text: String,
    compiled: Option<Result<Arc<Regex>, String>>,
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Pattern {
    /// Compiles a pattern; a wrong one is kept with its error.
    pub fn new(text: &str) -> Self {
        let compiled = (!text.is_empty()).then(|| {
            let build = regex::RegexBuilder::new(&translate(text)).size_limit(1 << 22).build();
            build.map(Arc::new).map_err(|e| e.to_string())
        });
        Self { text: text.to_owned(), compiled }
    }

    /// As it was written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Why it does not compile.
    pub fn error(&self) -> Option<&str> {
        match &self.compiled {
            Some(Err(error)) => Some(error),
            _ => None,
        }
    }

    /// Whether a text is found fault with: one that has no match, or any text if the pattern is wrong.
    pub fn refuses(&self, text: &str) -> bool {
        match &self.compiled {
            None => false,
            Some(Ok(regex)) => !regex.is_match(text),
            Some(Err(_)) => true,
        }
    }
}

/// Go's classes `\d`, `\w`, `\s` and boundaries are ASCII, those of the regex crate are Unicode; `\z` and `\Q..\E` differ
/// as well.
fn translate(pattern: &str) -> Cow<'_, str> {
    if !pattern.contains('\\') {
        return Cow::Borrowed(pattern);
    }
    let mut out = String::with_capacity(pattern.len() + 16);
    let mut chars = pattern.chars();
    let mut class = 0usize;
    while let Some(c) = chars.next() {
        match c {
            '[' => {
                class += 1;
                out.push(c);
            }
            ']' => {
                class = class.saturating_sub(1);
                out.push(c);
            }
            '\\' => match chars.next() {
                Some('d') if class > 0 => out.push_str("0-9"),
                Some('w') if class > 0 => out.push_str("0-9A-Za-z_"),
                Some('s') if class > 0 => out.push_str(r"\t\n\f\r "),
                Some('d') => out.push_str("[0-9]"),
                Some('w') => out.push_str("[0-9A-Za-z_]"),
                Some('s') => out.push_str(r"[\t\n\f\r ]"),
                Some('D') => out.push_str("[^0-9]"),
                Some('W') => out.push_str("[^0-9A-Za-z_]"),
                Some('S') => out.push_str(r"[^\t\n\f\r ]"),
                Some(b @ ('b' | 'B')) if class == 0 => {
                    out.push_str("(?-u:\\");
                    out.push(b);
                    out.push(')');
                }
                Some('Q') => {
                    let rest: String = chars.clone().collect();
                    let quoted = rest.split("\\E").next().unwrap_or_default();
                    out.push_str(&regex::escape(quoted));
                    let skip = quoted.chars().count() + if rest.len() > quoted.len() { 2 } else { 0 };
                    if skip > 0 {
                        chars.nth(skip - 1);
                    }
                }
                Some(other) => {
                    out.push('\\');
                    out.push(other);
                }
                None => out.push('\\'),
            },
            other => out.push(other),
        }
    }
    Cow::Owned(out)
}
