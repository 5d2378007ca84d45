//! Words to strings: variables, command substitution, arithmetic, field splitting, file name patterns.

use super::exec::Shell;
use super::parse::{Part, Word};
use std::path::Path;

/// A character of an expanded word and whether it was quoted.
type Marked = (char, bool);

impl Shell {
    /// Expands to exactly one string.
    pub(super) fn expand_one(&mut self, word: &Word) -> String {
        let mut text = String::new();
        for part in word {
            match part {
                Part::Variable { name, operator: None, .. } if name == "@" || name == "*" => {
                    text += &self.arguments.join(" ");
                }
                part => text += &self.part(part),
            }
        }
        text
    }

    /// Expands to any number of fields.
    pub(super) fn expand(&mut self, word: &Word) -> Vec<String> {
        let mut fields: Vec<Vec<Marked>> = Vec::new();
        let mut open: Option<Vec<Marked>> = None;
        for part in word {
            if let Part::Variable { name, operator: None, quoted: true } = part
                && name == "@"
            {
                let arguments = self.arguments.clone();
                for (index, argument) in arguments.iter().enumerate() {
                    if index > 0 {
                        fields.extend(open.take());
                    }
                    open.get_or_insert_default().extend(argument.chars().map(|c| (c, true)));
                }
                continue;
            }
            let text = self.part(part);
            let (split, quoted) = match part {
                Part::Text { quoted, .. } => (false, *quoted),
                Part::Variable { quoted, .. } | Part::Command { quoted, .. } => (!quoted, *quoted),
                Part::Length(_) | Part::Arithmetic(_) => (false, true),
            };
            if !split {
                // An empty quoted piece next to "$@" must not make a field of its own.
                let alone =
                    word.iter().any(|part| matches!(part, Part::Variable { name, .. } if name == "@"));
                if !(text.is_empty() && alone) {
                    open.get_or_insert_default().extend(text.chars().map(|c| (c, quoted)));
                }
                continue;
            }
            for c in text.chars() {
                if c.is_whitespace() {
                    fields.extend(open.take());
                } else {
                    open.get_or_insert_default().push((c, false));
                }
            }
        }
        fields.extend(open);
        fields.into_iter().flat_map(|field| glob(&field)).collect()
    }

    fn part(&mut self, part: &Part) -> String {
        match part {
            Part::Text { text, quoted } => {
                if !quoted && (text == "~" || text.starts_with("~/")) {
                    return text.replacen('~', &self.get("HOME").unwrap_or_else(|| "/".into()), 1);
                }
                text.clone()
            }
            Part::Length(name) => self.get(name).unwrap_or_default().chars().count().to_string(),
            Part::Variable { name, operator: None, .. } => self.get(name).unwrap_or_default(),
            Part::Variable { name, operator: Some((operator, operand)), .. } => {
                self.substitute(name, operator, operand)
            }
            Part::Command { script, .. } => self.capture(script).trim_end_matches('\n').to_owned(),
            Part::Arithmetic(word) => {
                let text = self.expand_one(word);
                match arithmetic(self, &text) {
                    Some(number) => number.to_string(),
                    None => {
                        eprintln!("sh: arithmetic: {text:?} is not understood");
                        self.status = 2;
                        String::new()
                    }
                }
            }
        }
    }

    fn substitute(&mut self, name: &str, operator: &str, operand: &Word) -> String {
        let value = self.get(name);
        // With a colon, empty counts as unset.
        let set = value.clone().filter(|value| !operator.starts_with(':') || !value.is_empty());
        match operator.trim_start_matches(':') {
            "-" => set.unwrap_or_else(|| self.expand_one(operand)),
            "+" => set.map(|_| self.expand_one(operand)).unwrap_or_default(),
            "=" => set.unwrap_or_else(|| {
                let value = self.expand_one(operand);
                self.set(name, &value);
                value
            }),
            "?" => set.unwrap_or_else(|| {
                let text = self.expand_one(operand);
                eprintln!("sh: {name}: {}", if text.is_empty() { "not set" } else { &text });
                self.status = 1;
                self.leaving = true;
                String::new()
            }),
            cut @ ("#" | "##" | "%" | "%%") => {
                let value = value.unwrap_or_default();
                let pattern = self.expand_one(operand);
                trim(&value, &pattern, cut)
            }
            _ => value.unwrap_or_default(),
        }
    }
}

/// Removes the shortest (`#`, `%`) or longest match from the front (`#`) or the back.
fn trim(value: &str, pattern: &str, cut: &str) -> String {
    let chars: Vec<char> = value.chars().collect();
    let pattern: Vec<Marked> = pattern.chars().map(|c| (c, false)).collect();
    let mut lengths: Vec<usize> = (0..=chars.len()).collect();
    if cut.len() == 2 {
        lengths.reverse();
    }
    for length in lengths {
        let (matched, rest) = if cut.starts_with('#') {
            chars.split_at(length)
        } else {
            let (rest, matched) = chars.split_at(chars.len() - length);
            (matched, rest)
        };
        if fits(&pattern, matched) {
            return rest.iter().collect();
        }
    }
    value.to_owned()
}

/// Whether `text` as a whole fits a pattern of `*`, `?`, `[...]` and literals.
pub(super) fn fits(pattern: &[Marked], text: &[char]) -> bool {
    match pattern {
        [] => text.is_empty(),
        [('*', false), rest @ ..] => (0..=text.len()).any(|taken| fits(rest, &text[taken..])),
        [('?', false), rest @ ..] => !text.is_empty() && fits(rest, &text[1..]),
        [('[', false), rest @ ..] if rest.iter().skip(1).any(|(c, _)| *c == ']') => {
            let end = rest.iter().skip(1).position(|(c, _)| *c == ']').unwrap_or(0) + 1;
            let mut class: Vec<char> = rest[..end].iter().map(|(c, _)| *c).collect();
            let negate = matches!(class.first(), Some('!' | '^'));
            if negate {
                class.remove(0);
            }
            let Some(c) = text.first() else { return false };
            let mut found = class.contains(c);
            found |= class.windows(3).any(|window| window[1] == '-' && (window[0]..=window[2]).contains(c));
            found != negate && fits(&rest[end + 1..], &text[1..])
        }
        [(literal, _), rest @ ..] => text.first() == Some(literal) && fits(rest, &text[1..]),
    }
}

/// File names for a field with unquoted pattern characters, or the field itself.
fn glob(field: &[Marked]) -> Vec<String> {
    let plain: String = field.iter().map(|(c, _)| *c).collect();
    if !field.iter().any(|(c, quoted)| !quoted && "*?[".contains(*c)) {
        return vec![plain];
    }
    let absolute = plain.starts_with('/');
    let mut found = vec![if absolute { "/".to_owned() } else { String::new() }];
    for piece in field.split(|(c, _)| *c == '/').filter(|piece| !piece.is_empty()) {
        let literal: String = piece.iter().map(|(c, _)| *c).collect();
        let pattern = piece.iter().any(|(c, quoted)| !quoted && "*?[".contains(*c));
        let mut next = Vec::new();
        for base in found {
            if !pattern {
                let path = format!("{base}{literal}");
                if Path::new(&path).symlink_metadata().is_ok() {
                    next.push(path + "/");
                }
                continue;
            }
            let folder = if base.is_empty() { "." } else { &base };
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                let hidden = name.starts_with('.') && !literal.starts_with('.');
                if !hidden && fits(piece, &name.chars().collect::<Vec<_>>()) {
                    next.push(format!("{base}{name}/"));
                }
            }
        }
        found = next;
    }
    let mut names: Vec<String> = found.iter().map(|path| path.trim_end_matches('/').to_owned()).collect();
    names.sort();
    if names.is_empty() { vec![plain] } else { names }
}

/// Integer arithmetic with the operators of C that scripts use.
fn arithmetic(shell: &Shell, text: &str) -> Option<i64> {
    let tokens = tokens(text)?;
    let mut at = 0;
    let value = binary(shell, &tokens, &mut at, 0)?;
    (at == tokens.len()).then_some(value)
}

fn tokens(text: &str) -> Option<Vec<String>> {
    let mut tokens = Vec::new();
    let chars: Vec<char> = text.chars().collect();
    let mut at = 0;
    while at < chars.len() {
        let c = chars[at];
        if c.is_whitespace() {
            at += 1;
        } else if c == '_' || c.is_ascii_alphanumeric() {
            let length = chars[at..].iter().take_while(|c| **c == '_' || c.is_ascii_alphanumeric()).count();
            tokens.push(chars[at..at + length].iter().collect());
            at += length;
        } else {
            let pair: String = chars[at..].iter().take(2).collect();
            let length = if ["==", "!=", "<=", ">=", "&&", "||"].contains(&pair.as_str()) { 2 } else { 1 };
            if !"+-*/%()<>=!&|".contains(c) {
                return None;
            }
            tokens.push(chars[at..at + length].iter().collect());
            at += length;
        }
    }
    Some(tokens)
}

const LEVELS: &[&[&str]] =
    &[&["||"], &["&&"], &["==", "!="], &["<", "<=", ">", ">="], &["+", "-"], &["*", "/", "%"]];

fn binary(shell: &Shell, tokens: &[String], at: &mut usize, level: usize) -> Option<i64> {
    let Some(operators) = LEVELS.get(level) else { return unary(shell, tokens, at) };
    let mut left = binary(shell, tokens, at, level + 1)?;
    while let Some(operator) = tokens.get(*at).filter(|token| operators.contains(&token.as_str())) {
        *at += 1;
        let right = binary(shell, tokens, at, level + 1)?;
        left = match operator.as_str() {
            "||" => i64::from(left != 0 || right != 0),
            "&&" => i64::from(left != 0 && right != 0),
            "==" => i64::from(left == right),
            "!=" => i64::from(left != right),
            "<" => i64::from(left < right),
            "<=" => i64::from(left <= right),
            ">" => i64::from(left > right),
            ">=" => i64::from(left >= right),
            "+" => left.wrapping_add(right),
            "-" => left.wrapping_sub(right),
            "*" => left.wrapping_mul(right),
            "/" => left.checked_div(right)?,
            _ => left.checked_rem(right)?,
        };
    }
    Some(left)
}

fn unary(shell: &Shell, tokens: &[String], at: &mut usize) -> Option<i64> {
    let token = tokens.get(*at)?;
    *at += 1;
    match token.as_str() {
        "-" => unary(shell, tokens, at).map(i64::wrapping_neg),
        "+" => unary(shell, tokens, at),
        "!" => unary(shell, tokens, at).map(|value| i64::from(value == 0)),
        "(" => {
            let value = binary(shell, tokens, at, 0)?;
            *at += 1;
            (tokens.get(*at - 1)? == ")").then_some(value)
        }
        text if text.starts_with(|c: char| c.is_ascii_digit()) => text.parse().ok(),
        name => {
            let value = shell.get(name).unwrap_or_default();
            if value.trim().is_empty() { Some(0) } else { value.trim().parse().ok() }
        }
    }
}
