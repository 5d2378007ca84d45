//! What is wrong with an expression, and what went wrong while it was evaluated.

use std::fmt;
use std::sync::Arc;

/// One fault of an expression's text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issue {
    /// Where it stands, in characters from the start; `None` for the whole expression.
    pub offset: Option<usize>,
    pub message: String,
}

/// Every fault of an expression, with the expression itself: written, it shows each fault below its line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Errors {
    pub source: Arc<str>,
    pub issues: Vec<Issue>,
    /// Why it cannot be evaluated though nothing is wrong with its types: a constant that cannot be converted.
    pub instantiation: Option<String>,
}

/// The most faults that are reported.
pub(crate) const MAX_ISSUES: usize = 100;
/// The longest line that a message shows.
const MAX_SNIPPET: usize = 16_384;

impl std::error::Error for Errors {}

impl Errors {
    pub(crate) fn new(source: &str, issues: Vec<Issue>) -> Self {
        Self { source: source.into(), issues, instantiation: None }
    }

    pub(crate) fn instantiation(source: &str, why: &EvalError) -> Self {
        Self { source: source.into(), issues: Vec::new(), instantiation: Some(why.to_string()) }
    }

    /// The message as Kubernetes' validation gives it: `compilation failed: ...` or `program instantiation failed:
    /// ...`.
    pub fn detail(&self) -> String {
        match self.instantiation {
            Some(_) => self.to_string(),
            None => format!("compilation failed: {self}"),
        }
    }

    /// The line and column (from one and from zero) of an offset.
    fn place(&self, offset: usize) -> (usize, usize) {
        let (mut line, mut column) = (1, 0);
        for c in self.source.chars().take(offset) {
            if c == '\n' {
                (line, column) = (line + 1, 0);
            } else {
                column += 1;
            }
        }
        (line, column)
    }

    fn write(&self, f: &mut fmt::Formatter<'_>, issue: &Issue) -> fmt::Result {
        let Some(offset) = issue.offset else {
            return write!(f, "ERROR: <input>:-1:0: {}", issue.message);
        };
        let (line, column) = self.place(offset);
        write!(f, "ERROR: <input>:{line}:{}: {}", column + 1, issue.message)?;
        let text = self.source.split('\n').nth(line - 1).unwrap_or_default();
        if text.len() > MAX_SNIPPET {
            return Ok(());
        }
        let text = text.replace('\t', " ");
        write!(f, "\n | {text}\n | ")?;
        let mut chars = text.chars();
        for c in chars.by_ref().take(column) {
            f.write_str(if c.len_utf8() > 1 { "\u{ff0e}" } else { "." })?;
        }
        f.write_str(if chars.next().is_some_and(|c| c.len_utf8() > 1) { "\u{ff3e}" } else { "^" })
    }
}

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(why) = &self.instantiation {
            return write!(f, "program instantiation failed: {why}");
        }
        let mut order: Vec<&Issue> = self.issues.iter().take(MAX_ISSUES).collect();
        order.sort_by_key(|issue| issue.offset.map_or(0, |at| at + 1));
        for (at, issue) in order.into_iter().enumerate() {
            if at > 0 {
                f.write_str("\n")?;
            }
            self.write(f, issue)?;
        }
        if self.issues.len() > MAX_ISSUES {
            write!(f, "\n{} more errors were truncated", self.issues.len() - MAX_ISSUES)?;
        }
        Ok(())
    }
}

/// Why an evaluation has no result.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EvalError {
    /// The expression failed; `||` and `&&` may absorb it.
    #[error("{0}")]
    Failed(Arc<str>),
    /// The budget is used up.
    #[error("operation cancelled: actual cost limit exceeded")]
    CostExceeded,
    /// The caller asked to stop.
    #[error("operation interrupted")]
    Interrupted,
}

impl EvalError {
    pub fn new(message: impl AsRef<str>) -> Self {
        Self::Failed(message.as_ref().into())
    }

    pub(crate) fn no_such_overload() -> Self {
        Self::new("no such overload")
    }

    /// Whether it ends the whole evaluation, whatever stands around it.
    pub(crate) fn is_final(&self) -> bool {
        !matches!(self, Self::Failed(_))
    }
}
