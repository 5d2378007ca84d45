//! Files of environment variables that an earlier container wrote into a volume (`fileKeyRef`): lines of `NAME='value'`,
//! a subset of what a POSIX shell reads. The rules are those of upstream's `kubelet/util/env`.

/// Why a file cannot be read as variables.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid environment variable format at line {line}: {problem}")]
pub(crate) struct EnvFileError {
    line: usize,
    problem: &'static str,
}

/// The value of `key`; none if the file has no such variable before its first fault.
pub(crate) fn value(text: &str, key: &str) -> Result<Option<String>, EnvFileError> {
    let mut lines = text.lines().enumerate();
    while let Some((index, line)) = lines.next() {
        let wrong = |problem| EnvFileError { line: index + 1, problem };
        let line = line.trim_start_matches([' ', '\t']);
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, rest) = line.split_once('=').ok_or_else(|| wrong("missing '='"))?;
        if name.is_empty() {
            return Err(wrong("empty variable name"));
        }
        if name.ends_with([' ', '\t']) {
            return Err(wrong("whitespace before '=' is not allowed"));
        }
        if rest.starts_with([' ', '\t']) {
            // A shell takes this for an empty value.
            if name == key {
                return Ok(None);
            }
            continue;
        }
        let mut rest =
            rest.strip_prefix('\'').ok_or_else(|| wrong("value must be enclosed in single quotes"))?;
        let mut value = String::new();
        let after = loop {
            match rest.split_once('\'') {
                Some((end, after)) => {
                    value.push_str(end);
                    break after.trim_start_matches([' ', '\t']);
                }
                None => {
                    value.push_str(rest);
                    value.push('\n');
                    rest = lines.next().ok_or_else(|| wrong("unclosed single quote"))?.1;
                }
            }
        };
        if !after.is_empty() && !after.starts_with('#') {
            return Err(wrong("unexpected content after closing quote"));
        }
        if name == key {
            return Ok(Some(value).filter(|value| !value.is_empty()));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_quoted_and_may_span_lines() {
        let text = "# head\n\n  A='one'\nB='two\nthree' # tail\nC= 'x'\nD=''\nA='again'\n";
        let cases = [("A", Some("one")), ("B", Some("two\nthree")), ("C", None), ("D", None), ("E", None)];
        for (key, expected) in cases {
            assert_eq!(value(text, key), Ok(expected.map(str::to_owned)), "{key}");
        }
    }

    #[test]
    fn faults_name_their_line() {
        let cases = [
            ("A='1'\nB", "at line 2: missing '='"),
            ("='x'", "at line 1: empty variable name"),
            ("A ='x'", "at line 1: whitespace before '=' is not allowed"),
            ("A=x", "at line 1: value must be enclosed in single quotes"),
            ("A='x\n\n", "at line 1: unclosed single quote"),
            ("A='x'y", "at line 1: unexpected content after closing quote"),
        ];
        for (text, expected) in cases {
            let error = value(text, "Z").expect_err(text).to_string();
            assert!(error.ends_with(expected), "{text}: {error}");
        }
    }
}
