//! Shell text to a tree.

use std::cell::RefCell;
use std::rc::Rc;

/// A command or a combination of commands.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Node {
    Simple { assignments: Vec<(String, Word)>, words: Vec<Word> },
    Redirected(Box<Node>, Vec<Redirection>),
    Pipeline(Vec<Node>),
    Not(Box<Node>),
    And(Box<Node>, Box<Node>),
    Or(Box<Node>, Box<Node>),
    List(Vec<Node>),
    Background(Box<Node>),
    If { branches: Vec<(Node, Node)>, otherwise: Option<Box<Node>> },
    While { condition: Box<Node>, body: Box<Node>, until: bool },
    For { name: String, words: Option<Vec<Word>>, body: Box<Node> },
    Case { subject: Word, arms: Vec<(Vec<Word>, Node)> },
    Subshell(Box<Node>),
    Function(String, Rc<Node>),
}

/// A word before expansion.
pub(super) type Word = Vec<Part>;

/// A piece of a word; `quoted` pieces are neither split nor globbed.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Part {
    Text { text: String, quoted: bool },
    Variable { name: String, operator: Option<(String, Word)>, quoted: bool },
    Length(String),
    Command { script: String, quoted: bool },
    Arithmetic(Word),
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Redirection {
    pub(super) descriptor: i32,
    pub(super) target: Target,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Target {
    Read(Word),
    Write(Word),
    Append(Word),
    /// A descriptor's number, or `-` to close.
    Duplicate(Word),
    Here(Rc<RefCell<Word>>),
}

pub(super) enum Parsed {
    Whole(Node),
    Incomplete,
    Wrong(String),
}

enum Stop {
    Incomplete,
    Wrong(String),
}

type Result<T> = std::result::Result<T, Stop>;

struct Parser {
    text: Vec<char>,
    at: usize,
    here: Vec<(String, bool, bool, Rc<RefCell<Word>>)>,
    depth: usize,
}

/// Deeper nesting is refused rather than overflow the stack.
const MAX_DEPTH: usize = 200;

pub(super) fn program(text: &str) -> Parsed {
    let mut parser = Parser { text: text.chars().collect(), at: 0, here: Vec::new(), depth: 0 };
    let result = parser.list(&[]).and_then(|node| {
        if !parser.here.is_empty() {
            return Err(Stop::Incomplete);
        }
        match parser.peek() {
            None => Ok(node),
            Some(c) => Err(Stop::Wrong(format!("unexpected {c:?}"))),
        }
    });
    match result {
        Ok(node) => Parsed::Whole(node),
        Err(Stop::Incomplete) => Parsed::Incomplete,
        Err(Stop::Wrong(text)) => Parsed::Wrong(text),
    }
}

/// A word of plain expansion rules, as in a here document.
fn quoted_word(text: &str) -> Result<Word> {
    let mut parser = Parser { text: text.chars().collect(), at: 0, here: Vec::new(), depth: 0 };
    let mut word = Word::new();
    parser.double_quoted(&mut word, None)?;
    Ok(word)
}

impl Parser {
    fn peek(&self) -> Option<char> {
        self.text.get(self.at).copied()
    }

    fn ahead(&self, text: &str) -> bool {
        text.chars().enumerate().all(|(offset, c)| self.text.get(self.at + offset) == Some(&c))
    }

    fn eat(&mut self, text: &str) -> bool {
        let found = self.ahead(text);
        if found {
            self.at += text.chars().count();
        }
        found
    }

    fn next(&mut self) -> Result<char> {
        let c = self.peek().ok_or(Stop::Incomplete)?;
        self.at += 1;
        Ok(c)
    }

    /// Blanks, escaped newlines and comments, not newlines.
    fn blanks(&mut self) {
        loop {
            match self.peek() {
                Some(' ' | '\t' | '\r') => self.at += 1,
                Some('\\') if self.ahead("\\\n") => self.at += 2,
                Some('#') => {
                    while self.peek().is_some_and(|c| c != '\n') {
                        self.at += 1;
                    }
                }
                _ => return,
            }
        }
    }

    fn newlines(&mut self) -> Result<()> {
        loop {
            self.blanks();
            if self.peek() != Some('\n') {
                return Ok(());
            }
            self.at += 1;
            self.here_documents()?;
        }
    }

    fn here_documents(&mut self) -> Result<()> {
        for (end, tabs, literal, slot) in std::mem::take(&mut self.here) {
            let mut body = String::new();
            loop {
                if self.at >= self.text.len() {
                    return Err(Stop::Incomplete);
                }
                let length = self.text[self.at..].iter().position(|c| *c == '\n');
                let stop = length.map_or(self.text.len(), |length| self.at + length);
                let line: String = self.text[self.at..stop].iter().collect();
                self.at = (stop + 1).min(self.text.len());
                let line = if tabs { line.trim_start_matches('\t') } else { &line };
                if line == end {
                    break;
                }
                body += line;
                body.push('\n');
            }
            *slot.borrow_mut() =
                if literal { vec![Part::Text { text: body, quoted: true }] } else { quoted_word(&body)? };
        }
        Ok(())
    }

    /// Whether a reserved word is next, as a word of its own.
    fn keyword(&self, word: &str) -> bool {
        let after = self.text.get(self.at + word.len());
        self.ahead(word) && after.is_none_or(|c| c.is_whitespace() || ";&|()<>#".contains(*c))
    }

    fn expect(&mut self, word: &str) -> Result<()> {
        self.newlines()?;
        if self.keyword(word) {
            self.at += word.len();
            return Ok(());
        }
        Err(match self.peek() {
            None => Stop::Incomplete,
            Some(c) => Stop::Wrong(format!("expected {word:?}, found {c:?}")),
        })
    }

    /// Commands until one of the closing words (not consumed), a `)`, `;;` or the end.
    fn list(&mut self, closing: &[&str]) -> Result<Node> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(Stop::Wrong("nested too deeply".into()));
        }
        let mut nodes = Vec::new();
        loop {
            self.newlines()?;
            let done = self.peek().is_none()
                || self.ahead(")")
                || self.ahead(";;")
                || closing.iter().any(|word| self.keyword(word));
            if done {
                break;
            }
            let node = self.and_or()?;
            self.blanks();
            if self.ahead("&") && !self.ahead("&&") {
                self.at += 1;
                nodes.push(Node::Background(Box::new(node)));
                continue;
            }
            nodes.push(node);
            if self.ahead(";") && !self.ahead(";;") {
                self.at += 1;
            } else if !matches!(self.peek(), None | Some('\n' | ')' | ';')) {
                return Err(Stop::Wrong(format!("unexpected {:?}", self.peek().unwrap_or(' '))));
            }
        }
        self.depth -= 1;
        Ok(if nodes.len() == 1 { nodes.remove(0) } else { Node::List(nodes) })
    }

    fn and_or(&mut self) -> Result<Node> {
        let mut left = self.pipeline()?;
        loop {
            self.blanks();
            if self.eat("&&") {
                self.newlines()?;
                left = Node::And(Box::new(left), Box::new(self.pipeline()?));
            } else if self.eat("||") {
                self.newlines()?;
                left = Node::Or(Box::new(left), Box::new(self.pipeline()?));
            } else {
                return Ok(left);
            }
        }
    }

    fn pipeline(&mut self) -> Result<Node> {
        self.blanks();
        if self.keyword("!") {
            self.at += 1;
            return Ok(Node::Not(Box::new(self.pipeline()?)));
        }
        let mut nodes = vec![self.command()?];
        loop {
            self.blanks();
            if !self.ahead("|") || self.ahead("||") {
                break;
            }
            self.at += 1;
            self.newlines()?;
            nodes.push(self.command()?);
        }
        Ok(if nodes.len() == 1 { nodes.remove(0) } else { Node::Pipeline(nodes) })
    }

    fn command(&mut self) -> Result<Node> {
        self.blanks();
        if self.peek().is_none() {
            return Err(Stop::Incomplete);
        }
        let node = if self.eat("(") {
            let body = self.list(&[])?;
            self.close(")")?;
            Node::Subshell(Box::new(body))
        } else if self.keyword("{") {
            self.at += 1;
            let body = self.list(&["}"])?;
            self.expect("}")?;
            Node::List(vec![body])
        } else if self.keyword("if") {
            self.if_command()?
        } else if self.keyword("while") || self.keyword("until") {
            let until = self.keyword("until");
            self.at += 5;
            let condition = Box::new(self.list(&["do"])?);
            let body = Box::new(self.do_group()?);
            Node::While { condition, body, until }
        } else if self.keyword("for") {
            self.for_command()?
        } else if self.keyword("case") {
            self.case_command()?
        } else {
            return self.simple();
        };
        let mut redirections = Vec::new();
        while let Some(redirection) = self.redirection()? {
            redirections.push(redirection);
        }
        Ok(if redirections.is_empty() { node } else { Node::Redirected(Box::new(node), redirections) })
    }

    fn close(&mut self, text: &str) -> Result<()> {
        self.newlines()?;
        if self.eat(text) {
            return Ok(());
        }
        Err(if self.peek().is_none() { Stop::Incomplete } else { Stop::Wrong(format!("expected {text:?}")) })
    }

    fn do_group(&mut self) -> Result<Node> {
        self.expect("do")?;
        let body = self.list(&["done"])?;
        self.expect("done")?;
        Ok(body)
    }

    fn if_command(&mut self) -> Result<Node> {
        self.at += 2;
        let mut branches = Vec::new();
        let mut otherwise = None;
        loop {
            let condition = self.list(&["then"])?;
            self.expect("then")?;
            let body = self.list(&["elif", "else", "fi"])?;
            branches.push((condition, body));
            if self.keyword("elif") {
                self.at += 4;
                continue;
            }
            if self.keyword("else") {
                self.at += 4;
                otherwise = Some(Box::new(self.list(&["fi"])?));
            }
            self.expect("fi")?;
            return Ok(Node::If { branches, otherwise });
        }
    }

    fn name(&mut self) -> Result<String> {
        self.blanks();
        let start = self.at;
        while self.peek().is_some_and(|c| c == '_' || c.is_ascii_alphanumeric()) {
            self.at += 1;
        }
        if start == self.at {
            return Err(if self.peek().is_none() {
                Stop::Incomplete
            } else {
                Stop::Wrong("expected a name".into())
            });
        }
        Ok(self.text[start..self.at].iter().collect())
    }

    fn for_command(&mut self) -> Result<Node> {
        self.at += 3;
        let name = self.name()?;
        self.newlines()?;
        let words = if self.keyword("in") {
            self.at += 2;
            let mut words = Vec::new();
            while let Some(word) = self.word()? {
                words.push(word);
            }
            Some(words)
        } else {
            None
        };
        self.blanks();
        self.eat(";");
        Ok(Node::For { name, words, body: Box::new(self.do_group()?) })
    }

    fn case_command(&mut self) -> Result<Node> {
        self.at += 4;
        let subject = self.word()?.ok_or_else(|| Stop::Wrong("case of what?".into()))?;
        self.expect("in")?;
        let mut arms = Vec::new();
        loop {
            self.newlines()?;
            if self.keyword("esac") {
                self.at += 4;
                return Ok(Node::Case { subject, arms });
            }
            self.eat("(");
            let mut patterns = Vec::new();
            loop {
                patterns.push(match self.word()? {
                    Some(word) => word,
                    None if self.peek().is_none() => return Err(Stop::Incomplete),
                    None => return Err(Stop::Wrong("expected a pattern".into())),
                });
                self.blanks();
                if !self.eat("|") {
                    break;
                }
            }
            self.close(")")?;
            let body = self.list(&["esac"])?;
            arms.push((patterns, body));
            self.blanks();
            self.eat(";;");
        }
    }

    fn simple(&mut self) -> Result<Node> {
        let (mut assignments, mut words, mut redirections) = (Vec::new(), Vec::new(), Vec::new());
        loop {
            if let Some(redirection) = self.redirection()? {
                redirections.push(redirection);
                continue;
            }
            let Some(word) = self.word()? else { break };
            if words.is_empty()
                && let Some(assignment) = as_assignment(&word)
            {
                assignments.push(assignment);
                continue;
            }
            words.push(word);
            if let ([only], true) = (&words[..], assignments.is_empty() && self.ahead("()")) {
                let name = match &only[..] {
                    [Part::Text { text, quoted: false }] => text.clone(),
                    _ => return Err(Stop::Wrong("not a function name".into())),
                };
                self.at += 2;
                self.newlines()?;
                return Ok(Node::Function(name, Rc::new(self.command()?)));
            }
        }
        if assignments.is_empty() && words.is_empty() && redirections.is_empty() {
            return Err(match self.peek() {
                None => Stop::Incomplete,
                Some(c) => Stop::Wrong(format!("unexpected {c:?}")),
            });
        }
        let node = Node::Simple { assignments, words };
        Ok(if redirections.is_empty() { node } else { Node::Redirected(Box::new(node), redirections) })
    }

    fn redirection(&mut self) -> Result<Option<Redirection>> {
        self.blanks();
        let start = self.at;
        let digits: String = self.text[self.at..].iter().take_while(|c| c.is_ascii_digit()).take(3).collect();
        self.at += digits.len();
        let descriptor = |default| digits.parse().unwrap_or(default);
        let target = |parser: &mut Self| match parser.word()? {
            Some(word) => Ok(word),
            None if parser.peek().is_none() => Err(Stop::Incomplete),
            None => Err(Stop::Wrong("redirection to what?".into())),
        };
        let found = if self.eat("<<") {
            let tabs = self.eat("-");
            let word = target(self)?;
            let literal = word.iter().any(|part| matches!(part, Part::Text { quoted: true, .. }));
            let end = word
                .iter()
                .map(|part| if let Part::Text { text, .. } = part { text.as_str() } else { "" })
                .collect();
            let slot = Rc::new(RefCell::new(Word::new()));
            self.here.push((end, tabs, literal, slot.clone()));
            Redirection { descriptor: descriptor(0), target: Target::Here(slot) }
        } else if self.eat(">>") {
            Redirection { descriptor: descriptor(1), target: Target::Append(target(self)?) }
        } else if self.eat(">&") {
            Redirection { descriptor: descriptor(1), target: Target::Duplicate(target(self)?) }
        } else if self.eat("<&") {
            Redirection { descriptor: descriptor(0), target: Target::Duplicate(target(self)?) }
        } else if self.eat(">|") || self.eat(">") {
            Redirection { descriptor: descriptor(1), target: Target::Write(target(self)?) }
        } else if self.eat("<") {
            Redirection { descriptor: descriptor(0), target: Target::Read(target(self)?) }
        } else {
            self.at = start;
            return Ok(None);
        };
        Ok(Some(found))
    }

    /// The next word, if there is one before an operator or newline.
    fn word(&mut self) -> Result<Option<Word>> {
        self.blanks();
        let mut word = Word::new();
        let mut plain = String::new();
        let mut any = false;
        while let Some(c) = self.peek() {
            match c {
                ' ' | '\t' | '\r' | '\n' | ';' | '&' | '|' | '(' | ')' | '<' | '>' => break,
                '\\' => {
                    self.at += 1;
                    match self.next()? {
                        '\n' => continue,
                        c => {
                            flush(&mut word, &mut plain);
                            word.push(Part::Text { text: c.into(), quoted: true });
                        }
                    }
                }
                '\'' => {
                    flush(&mut word, &mut plain);
                    self.at += 1;
                    let mut text = String::new();
                    loop {
                        match self.next()? {
                            '\'' => break,
                            c => text.push(c),
                        }
                    }
                    word.push(Part::Text { text, quoted: true });
                }
                '"' => {
                    flush(&mut word, &mut plain);
                    self.at += 1;
                    // Even "" makes a word.
                    word.push(Part::Text { text: String::new(), quoted: true });
                    self.double_quoted(&mut word, Some('"'))?;
                }
                '$' | '`' => {
                    flush(&mut word, &mut plain);
                    self.dollar(&mut word, false)?;
                }
                _ => {
                    plain.push(c);
                    self.at += 1;
                }
            }
            any = true;
        }
        flush(&mut word, &mut plain);
        Ok(any.then_some(word))
    }

    fn double_quoted(&mut self, word: &mut Word, end: Option<char>) -> Result<()> {
        let mut text = String::new();
        loop {
            let Some(c) = self.peek() else {
                if end.is_some() {
                    return Err(Stop::Incomplete);
                }
                break;
            };
            if Some(c) == end {
                self.at += 1;
                break;
            }
            match c {
                '\\' => {
                    self.at += 1;
                    match self.next()? {
                        '\n' => {}
                        c @ ('$' | '`' | '"' | '\\') => text.push(c),
                        c => text.extend(['\\', c]),
                    }
                }
                '$' | '`' => {
                    word.push(Part::Text { text: std::mem::take(&mut text), quoted: true });
                    self.dollar(word, true)?;
                }
                _ => {
                    text.push(c);
                    self.at += 1;
                }
            }
        }
        word.push(Part::Text { text, quoted: true });
        Ok(())
    }

    fn dollar(&mut self, word: &mut Word, quoted: bool) -> Result<()> {
        if self.eat("`") {
            let mut script = String::new();
            loop {
                match self.next()? {
                    '`' => break,
                    '\\' if matches!(self.peek(), Some('`' | '\\' | '$')) => script.push(self.next()?),
                    c => script.push(c),
                }
            }
            word.push(Part::Command { script, quoted });
        } else if self.eat("$((") {
            let inner = self.balanced("))")?;
            word.push(Part::Arithmetic(quoted_word(&inner)?));
        } else if self.eat("$(") {
            let script = self.balanced(")")?;
            word.push(Part::Command { script, quoted });
        } else if self.eat("${") {
            if self.ahead("#") && !self.ahead("#}") {
                self.at += 1;
                let name = self.name()?;
                self.close("}")?;
                word.push(Part::Length(name));
                return Ok(());
            }
            let name = match self.peek() {
                Some(c) if "?$!#@*".contains(c) => self.next()?.to_string(),
                _ => self.name()?,
            };
            let mut operator = String::new();
            while let Some(c) = self.peek().filter(|c| ":-=+?#%".contains(*c)) {
                // `##` and `%%`, or one with a colon before it.
                if operator.len() == 2 || (operator.len() == 1 && operator != ":" && !operator.starts_with(c))
                {
                    break;
                }
                operator.push(c);
                self.at += 1;
            }
            let inner = self.balanced("}")?;
            if operator.is_empty() && !inner.is_empty() {
                return Err(Stop::Wrong("bad substitution".into()));
            }
            let operator = if operator.is_empty() { None } else { Some((operator, operand_word(&inner)?)) };
            word.push(Part::Variable { name, operator, quoted });
        } else {
            self.at += 1;
            let name = match self.peek() {
                Some(c) if "?$!#@*".contains(c) || c.is_ascii_digit() => self.next()?.to_string(),
                Some(c) if c == '_' || c.is_ascii_alphabetic() => self.name()?,
                _ => {
                    word.push(Part::Text { text: "$".into(), quoted: true });
                    return Ok(());
                }
            };
            word.push(Part::Variable { name, operator: None, quoted });
        }
        Ok(())
    }

    /// Text up to the closing mark, with brackets and quotes inside balanced.
    fn balanced(&mut self, close: &str) -> Result<String> {
        let mut text = String::new();
        let mut depth = 0usize;
        let mut quote = None;
        loop {
            if depth == 0 && quote.is_none() && self.eat(close) {
                return Ok(text);
            }
            let c = self.next()?;
            text.push(c);
            match (c, quote) {
                ('\\', None | Some('"')) => text.push(self.next()?),
                ('\'' | '"', None) => quote = Some(c),
                (c, Some(open)) if c == open => quote = None,
                ('(', None) => depth += 1,
                ('{', None) if close == "}" => depth += 1,
                (')', None) => depth = depth.saturating_sub(1),
                ('}', None) if close == "}" => depth = depth.saturating_sub(1),
                _ => {}
            }
        }
    }
}

/// The word inside `${x:-...}`: blanks belong to it.
fn operand_word(text: &str) -> Result<Word> {
    if !text.contains(['\'', '"']) {
        let mut word = quoted_word(text)?;
        // Patterns of `#` and `%` must stay patterns.
        for part in &mut word {
            if let Part::Text { quoted, .. } = part {
                *quoted = false;
            }
        }
        return Ok(word);
    }
    let mut parser = Parser { text: text.chars().collect(), at: 0, here: Vec::new(), depth: 0 };
    Ok(parser.word()?.unwrap_or_default())
}

fn flush(word: &mut Word, plain: &mut String) {
    if !plain.is_empty() {
        word.push(Part::Text { text: std::mem::take(plain), quoted: false });
    }
}

fn as_assignment(word: &Word) -> Option<(String, Word)> {
    let Some(Part::Text { text, quoted: false }) = word.first() else { return None };
    let (name, value) = text.split_once('=')?;
    let valid = name.chars().all(|c| c == '_' || c.is_ascii_alphanumeric())
        && name.chars().next().is_some_and(|c| !c.is_ascii_digit());
    if !valid {
        return None;
    }
    let mut rest = vec![Part::Text { text: value.to_owned(), quoted: true }];
    rest.extend(word[1..].iter().cloned());
    Some((name.to_owned(), rest))
}
