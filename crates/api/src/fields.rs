//! Field selectors in their string form.

/// What is wrong with a selector's text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FieldSelectorError {
    #[error("invalid selector: '{selector}'; can't understand '{term}'")]
    Term { selector: String, term: String },
    #[error("invalid field selector: invalid escape sequence: {0}")]
    Escape(String),
    #[error("invalid field selector: unescaped character in value: {0}")]
    Unescaped(u32),
}

/// One term: a field, and a value that it must or must not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Term {
    pub field: String,
    pub value: String,
    /// `=` and `==`, or `!=`.
    pub equal: bool,
}

/// Terms that must all hold; none choose everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    pub terms: Vec<Term>,
}

impl Selector {
    /// Reads `spec.nodeName=n,status.phase!=Running`; `\`, `,` and `=` in a value are escaped by `\`.
    pub fn parse(text: &str) -> Result<Self, FieldSelectorError> {
        let mut parts = split(text);
        parts.sort_unstable();
        let mut terms = Vec::new();
        for part in parts.into_iter().filter(|part| !part.is_empty()) {
            let operator = part.char_indices().find_map(|(at, _)| {
                ["!=", "==", "="].into_iter().find(|op| part[at..].starts_with(op)).map(|op| (at, op))
            });
            let Some((at, operator)) = operator else {
                return Err(FieldSelectorError::Term { selector: text.to_owned(), term: part.to_owned() });
            };
            terms.push(Term {
                field: part[..at].to_owned(),
                value: unescape(&part[at + operator.len()..])?,
                equal: operator != "!=",
            });
        }
        Ok(Self { terms })
    }

    /// Whether every object is chosen.
    pub fn is_everything(&self) -> bool {
        self.terms.is_empty()
    }

    /// Whether an object is chosen, by the values of its fields; an absent field is empty.
    pub fn matches<'a>(&self, value: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.terms.iter().all(|term| (value(&term.field).unwrap_or_default() == term.value) == term.equal)
    }

    /// The value that a field must have, if there is one.
    pub fn required(&self, field: &str) -> Option<&str> {
        self.terms.iter().find(|term| term.equal && term.field == field).map(|term| term.value.as_str())
    }
}

fn split(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut start, mut escaped) = (0, false);
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn unescape(text: &str) -> Result<String, FieldSelectorError> {
    let mut value = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(next @ ('\\' | ',' | '=')) => value.push(next),
                Some(next) => return Err(FieldSelectorError::Escape(format!("\\{next}"))),
                None => return Err(FieldSelectorError::Escape("\\".to_owned())),
            },
            ',' | '=' => return Err(FieldSelectorError::Unescaped(c.into())),
            _ => value.push(c),
        }
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terms() {
        let selector = Selector::parse(r"b!=x,a=1\,2,c==").expect("a selector");
        let fields = |key: &str| match key {
            "a" => Some("1,2"),
            "b" => Some("y"),
            _ => None,
        };
        assert!(selector.matches(fields));
        assert_eq!(selector.required("a"), Some("1,2"));
        assert!(Selector::parse("").expect("empty").is_everything());
        assert_eq!(
            Selector::parse("abc").expect_err("no operator").to_string(),
            "invalid selector: 'abc'; can't understand 'abc'"
        );
        assert!(Selector::parse("a=b=c").is_err());
        assert!(Selector::parse(r"a=\q").is_err());
    }
}
