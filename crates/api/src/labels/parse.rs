//! The grammar of label selectors.

use super::{Operator, Requirement, key_error};
use crate::names;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    End,
    ClosedParen,
    Comma,
    Not,
    DoubleEquals,
    Equals,
    Greater,
    Identifier,
    In,
    Less,
    NotEquals,
    NotIn,
    OpenParen,
}

fn keyword(text: &str) -> Option<Token> {
    Some(match text {
        ")" => Token::ClosedParen,
        "," => Token::Comma,
        "!" => Token::Not,
        "==" => Token::DoubleEquals,
        "=" => Token::Equals,
        ">" => Token::Greater,
        "in" => Token::In,
        "<" => Token::Less,
        "!=" => Token::NotEquals,
        "notin" => Token::NotIn,
        "(" => Token::OpenParen,
        _ => return None,
    })
}

fn is_special(c: char) -> bool {
    matches!(c, '=' | '!' | '(' | ')' | ',' | '>' | '<')
}

fn scan(text: &str) -> Vec<(Token, String)> {
    let mut tokens = Vec::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches([' ', '\t', '\r', '\n']);
        let Some(first) = rest.chars().next().filter(|c| *c != '\0') else {
            tokens.push((Token::End, String::new()));
            return tokens;
        };
        if is_special(first) {
            // The longest keyword that it begins; each of these is one alone.
            let two = rest.get(..2).filter(|two| keyword(two).is_some());
            let literal = two.unwrap_or(&rest[..1]);
            tokens.push((keyword(literal).unwrap_or(Token::Identifier), literal.to_owned()));
            rest = &rest[literal.len()..];
        } else {
            let end = rest
                .find(|c: char| is_special(c) || matches!(c, ' ' | '\t' | '\r' | '\n' | '\0'))
                .unwrap_or(rest.len());
            tokens.push((keyword(&rest[..end]).unwrap_or(Token::Identifier), rest[..end].to_owned()));
            rest = &rest[end..];
        }
    }
}

struct Parser {
    tokens: Vec<(Token, String)>,
    at: usize,
}

/// The requirements of a selector's text, sorted by key.
pub(super) fn requirements(text: &str) -> Result<Vec<Requirement>, String> {
    let mut parser = Parser { tokens: scan(text), at: 0 };
    let mut found = Vec::new();
    loop {
        let (token, literal) = parser.peek();
        match token {
            Token::Identifier | Token::Not => {
                let requirement =
                    parser.requirement().map_err(|e| format!("unable to parse requirement: {e}"))?;
                found.push(requirement);
                match parser.next() {
                    (Token::End, _) => break,
                    (Token::Comma, _) => {
                        let (token, literal) = parser.peek();
                        if !matches!(token, Token::Identifier | Token::Not) {
                            return Err(format!("found '{literal}', expected: identifier after ','"));
                        }
                    }
                    (_, literal) => {
                        return Err(format!("found '{literal}', expected: ',' or 'end of string'"));
                    }
                }
            }
            Token::End => break,
            _ => return Err(format!("found '{literal}', expected: !, identifier, or 'end of string'")),
        }
    }
    found.sort_by(|a, b| a.key.cmp(&b.key));
    Ok(found)
}

impl Parser {
    /// The next token where a key or value is due: there `in` and `notin` are words like any other.
    fn peek(&self) -> (Token, String) {
        let (token, literal) = self.tokens[self.at.min(self.tokens.len() - 1)].clone();
        match token {
            Token::In | Token::NotIn => (Token::Identifier, literal),
            _ => (token, literal),
        }
    }

    fn next(&mut self) -> (Token, String) {
        let found = self.peek();
        self.at += 1;
        found
    }

    fn requirement(&mut self) -> Result<Requirement, String> {
        let (mut token, mut key) = self.next();
        let absent = token == Token::Not;
        if absent {
            (token, key) = self.next();
        }
        if token != Token::Identifier {
            return Err(format!("found '{key}', expected: identifier"));
        }
        if let Some(error) = key_error("<nil>", &key) {
            return Err(error);
        }
        let ends = matches!(self.peek().0, Token::End | Token::Comma);
        let (operator, values) = match (absent, ends) {
            (true, _) => (Operator::DoesNotExist, Vec::new()),
            (false, true) => (Operator::Exists, Vec::new()),
            (false, false) => self.comparison()?,
        };
        let requirement = Requirement { key, operator, values };
        check(&requirement)?;
        Ok(requirement)
    }

    fn comparison(&mut self) -> Result<(Operator, Vec<String>), String> {
        let (token, literal) = self.tokens[self.at.min(self.tokens.len() - 1)].clone();
        self.at += 1;
        let operator = match token {
            Token::In | Token::Equals | Token::DoubleEquals => Operator::In,
            Token::NotIn | Token::NotEquals => Operator::NotIn,
            Token::Greater => Operator::GreaterThan,
            Token::Less => Operator::LessThan,
            _ => return Err(format!("found '{literal}', expected: in, notin, =, ==, !=, gt, lt")),
        };
        let mut values = match token {
            Token::In | Token::NotIn => self.values()?,
            _ => vec![self.exact_value()?],
        };
        values.sort_unstable();
        values.dedup();
        Ok((operator, values))
    }

    fn exact_value(&mut self) -> Result<String, String> {
        if matches!(self.peek().0, Token::End | Token::Comma) {
            return Ok(String::new());
        }
        match self.next() {
            (Token::Identifier, value) => Ok(value),
            (_, literal) => Err(format!("found '{literal}', expected: identifier")),
        }
    }

    fn values(&mut self) -> Result<Vec<String>, String> {
        let (token, literal) = self.next();
        if token != Token::OpenParen {
            return Err(format!("found '{literal}' expected: '('"));
        }
        match self.peek() {
            (Token::ClosedParen, _) => {
                self.at += 1;
                Ok(vec![String::new()])
            }
            (Token::Identifier | Token::Comma, literal) => {
                let values = self.list()?;
                match self.next().0 {
                    Token::ClosedParen => Ok(values),
                    _ => Err(format!("found '{literal}', expected: ')'")),
                }
            }
            (_, literal) => Err(format!("found '{literal}', expected: ',', ')' or identifier")),
        }
    }

    fn list(&mut self) -> Result<Vec<String>, String> {
        let mut values = Vec::new();
        loop {
            match self.next() {
                (Token::Identifier, value) => {
                    values.push(value);
                    match self.peek() {
                        (Token::Comma, _) => {}
                        (Token::ClosedParen, _) => return Ok(values),
                        (_, literal) => return Err(format!("found '{literal}', expected: ',' or ')'")),
                    }
                }
                (Token::Comma, _) => {
                    if values.is_empty() {
                        values.push(String::new());
                    }
                    match self.peek().0 {
                        Token::ClosedParen => {
                            values.push(String::new());
                            return Ok(values);
                        }
                        Token::Comma => values.push(String::new()),
                        _ => {}
                    }
                }
                (_, literal) => return Err(format!("found '{literal}', expected: ',', or identifier")),
            }
        }
    }
}

/// What is wrong with a requirement, several findings in brackets.
pub(super) fn check(requirement: &Requirement) -> Result<(), String> {
    let Requirement { key, operator, values } = requirement;
    let mut wrong: Vec<String> = key_error("key", key).into_iter().collect();
    let listed = serde_json::Value::from(values.clone());
    match operator {
        Operator::In | Operator::NotIn if values.is_empty() => wrong.push(format!(
            "values: Invalid value: {listed}: for 'in', 'notin' operators, values set can't be empty"
        )),
        Operator::Exists | Operator::DoesNotExist if !values.is_empty() => wrong.push(format!(
            "values: Invalid value: {listed}: values set must be empty for exists and does not exist"
        )),
        Operator::GreaterThan | Operator::LessThan => {
            for (at, value) in values.iter().enumerate().filter(|(_, value)| value.parse::<i64>().is_err()) {
                wrong.push(format!(
                    "values[{at}]: Invalid value: {value:?}: for 'Gt', 'Lt' operators, the value must be an integer"
                ));
            }
        }
        _ => {}
    }
    for (at, value) in values.iter().enumerate() {
        let words = names::label_value(value);
        if !words.is_empty() {
            wrong.push(format!("values[{at}][{key}]: Invalid value: {value:?}: {}", words.join("; ")));
        }
    }
    match wrong.as_slice() {
        [] => Ok(()),
        [one] => Err(one.clone()),
        several => Err(format!("[{}]", several.join(", "))),
    }
}
