//! Text to tree: the grammar of CEL with optional syntax, its limits, and cel-go's messages for faults.

pub(crate) mod ast;
mod lexer;
mod literal;
mod macros;

use std::sync::Arc;

use self::ast::{Ast, Entry, Expr, FieldInit, Id, Kind, Literal, op};
use self::lexer::{Kind as Lexeme, Token};
use crate::error::{Errors, Issue};
use crate::escape::RESERVED;

/// The longest expression, in characters.
const MAX_SIZE: usize = 100_000;
/// The deepest nesting of each rule of the grammar, and of a tree.
const MAX_DEPTH: usize = 250;
/// The most nodes of a tree; the macros for optional values copy their target.
const MAX_NODES: usize = 200_000;
const EXPECTING: &str = "{'[', '{', '(', '.', '-', '!', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, \
                         STRING, BYTES, IDENTIFIER}";
const EXPECTING_ARGUMENT: &str = "{'[', '{', '(', ')', '.', '-', '!', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, \
                                  NUM_UINT, STRING, BYTES, IDENTIFIER}";
const EXPECTING_ENTRY: &str = "{'[', '{', '}', '(', '.', ',', '-', '!', '?', 'true', 'false', 'null', NUM_FLOAT, \
                               NUM_INT, NUM_UINT, STRING, BYTES, IDENTIFIER}";
const EXPECTING_ELEMENT: &str = "{'[', ']', '{', '(', '.', ',', '-', '!', '?', 'true', 'false', 'null', NUM_FLOAT, \
                                 NUM_INT, NUM_UINT, STRING, BYTES, IDENTIFIER}";

/// What of the language is switched on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Syntax {
    /// `cel.bind(name, value, result)`.
    pub bind: bool,
}

/// Ends the parsing: the fault is noted already.
struct Stop;
type Parsed<T> = Result<T, Stop>;

pub(crate) struct Parser<'s> {
    tokens: Vec<Token<'s>>,
    at: usize,
    issues: Vec<Issue>,
    offsets: Vec<usize>,
    syntax: Syntax,
    /// How deep in expressions, relations, sums and members the parser stands.
    depth: [usize; 4],
    /// How deep in nodes of a kind that counts.
    nesting: usize,
    /// What may stand here, where an expression may begin.
    expecting: &'static str,
}

/// The tree of an expression.
pub(crate) fn parse(source: &str, syntax: Syntax) -> Result<Ast, Errors> {
    let size = source.chars().count();
    if size > MAX_SIZE {
        let message = format!("expression code point size exceeds limit: size: {size}, limit {MAX_SIZE}");
        return Err(Errors::new(source, vec![Issue { offset: None, message }]));
    }
    let mut issues = Vec::new();
    let tokens = lexer::tokens(source, &mut issues);
    let mut parser = Parser {
        tokens,
        at: 0,
        issues,
        offsets: Vec::new(),
        syntax,
        depth: [0; 4],
        nesting: 0,
        expecting: EXPECTING,
    };
    let root = parser.start();
    match root {
        Ok(root) if parser.issues.is_empty() => Ok(Ast { root, offsets: parser.offsets }),
        _ => Err(Errors::new(source, parser.issues)),
    }
}

impl<'s> Parser<'s> {
    fn start(&mut self) -> Parsed<Expr> {
        let expr = self.expr()?;
        let token = self.peek();
        if token.kind != Lexeme::Eof {
            let follows = self.tokens.get(self.at + 1).is_none_or(|next| next.kind == Lexeme::Eof);
            let word = if follows { "extraneous" } else { "mismatched" };
            let message = format!("Syntax error: {word} input {} expecting <EOF>", quoted(token.text));
            return self.stop(token.offset, message);
        }
        Ok(expr)
    }

    fn peek(&self) -> Token<'s> {
        self.tokens[self.at.min(self.tokens.len() - 1)]
    }

    fn next(&mut self) -> Token<'s> {
        let token = self.peek();
        self.at += 1;
        token
    }

    fn is(&self, sign: &str) -> bool {
        let token = self.peek();
        token.kind == Lexeme::Sign && token.text == sign
    }

    fn take(&mut self, sign: &str) -> Option<Token<'s>> {
        self.is(sign).then(|| self.next())
    }

    fn expect(&mut self, sign: &str) -> Parsed<Token<'s>> {
        match self.take(sign) {
            Some(token) => Ok(token),
            None => {
                let token = self.peek();
                let found = quoted(token.text);
                let follows = self.tokens.get(self.at + 1).is_some_and(|next| {
                    next.kind == Lexeme::Sign && (next.text == sign || next.text == "," && sign != ")")
                });
                if follows && token.kind != Lexeme::Eof && matches!(sign, ")" | "]" | "}") {
                    let expecting = match sign {
                        ")" => "')'".to_owned(),
                        _ => format!("{{'{sign}', ','}}"),
                    };
                    self.issue(
                        token.offset,
                        format!("Syntax error: extraneous input {found} expecting {expecting}"),
                    );
                    return Err(Stop);
                }
                let message = match sign {
                    "]" | "}" => {
                        format!("Syntax error: mismatched input {found} expecting {{'{sign}', ','}}")
                    }
                    ")" if token.kind == Lexeme::Eof => format!("Syntax error: missing ')' at {found}"),
                    _ => format!("Syntax error: mismatched input {found} expecting '{sign}'"),
                };
                self.stop(token.offset, message)
            }
        }
    }

    fn issue(&mut self, offset: usize, message: String) {
        self.issues.push(Issue { offset: Some(offset), message });
    }

    fn stop<T>(&mut self, offset: usize, message: String) -> Parsed<T> {
        self.issue(offset, message);
        Err(Stop)
    }

    fn node(&mut self, offset: usize) -> Id {
        self.offsets.push(offset);
        // The number of nodes is limited far below.
        (self.offsets.len() - 1) as Id
    }

    fn make(&mut self, offset: usize, kind: Kind) -> Expr {
        Expr { id: self.node(offset), kind }
    }

    fn fault(&mut self, offset: usize, message: String) -> Expr {
        self.issue(offset, message);
        self.make(offset, Kind::Missing)
    }

    fn call(&mut self, offset: usize, function: &str, args: Vec<Expr>) -> Expr {
        self.make(offset, Kind::Call { target: None, function: function.into(), args })
    }

    fn too_deep(&mut self, message: String) -> Stop {
        self.issues.push(Issue { offset: None, message });
        Stop
    }

    /// Goes one deeper in a rule of the grammar; the caller leaves by setting the old depth again.
    fn deeper(&mut self, rule: usize) -> Parsed<()> {
        self.depth[rule] += 1;
        if self.depth[rule] > MAX_DEPTH {
            return Err(self.too_deep(format!("expression recursion limit exceeded: {MAX_DEPTH}")));
        }
        Ok(())
    }

    fn nest(&mut self) -> Parsed<()> {
        self.nesting += 1;
        if self.nesting > MAX_DEPTH {
            return Err(self.too_deep("max recursion depth exceeded".into()));
        }
        Ok(())
    }

    fn expr(&mut self) -> Parsed<Expr> {
        let depth = self.depth;
        let nesting = self.nesting;
        self.deeper(EXPR)?;
        let condition = self.logic(true)?;
        let result = match self.take("?") {
            None => condition,
            Some(question) => {
                self.nest()?;
                let yes = self.logic(true)?;
                self.expect(":")?;
                let no = self.expr()?;
                self.call(question.offset, op::CONDITIONAL, vec![condition, yes, no])
            }
        };
        self.depth = depth;
        self.nesting = nesting;
        Ok(result)
    }

    /// A chain of `||`, or of `&&` below it. Chains are kept flat: the operators are commutative.
    fn logic(&mut self, or: bool) -> Parsed<Expr> {
        let (sign, function) = if or { ("||", op::OR) } else { ("&&", op::AND) };
        let first = if or { self.logic(false)? } else { self.relation()? };
        if !self.is(sign) {
            return Ok(first);
        }
        let offset = self.peek().offset;
        let mut terms = vec![first];
        while self.take(sign).is_some() {
            terms.push(if or { self.logic(false)? } else { self.relation()? });
        }
        Ok(self.call(offset, function, terms))
    }

    fn relation(&mut self) -> Parsed<Expr> {
        let depth = self.depth;
        let nesting = self.nesting;
        let mut left = self.sum(0)?;
        loop {
            let token = self.peek();
            let function = match token.text {
                _ if token.kind != Lexeme::Sign => break,
                "<" => "_<_",
                "<=" => "_<=_",
                ">" => "_>_",
                ">=" => "_>=_",
                "==" => op::EQUALS,
                "!=" => op::NOT_EQUALS,
                "in" => "@in",
                _ => break,
            };
            self.next();
            self.deeper(RELATION)?;
            self.nest()?;
            let right = self.sum(0)?;
            left = self.call(token.offset, function, vec![left, right]);
        }
        self.depth = depth;
        self.nesting = nesting;
        Ok(left)
    }

    /// A chain of `+` and `-` (level 0), or of `*`, `/` and `%` (level 1).
    fn sum(&mut self, level: usize) -> Parsed<Expr> {
        let depth = self.depth;
        let nesting = self.nesting;
        let mut left = if level == 0 { self.sum(1)? } else { self.unary()? };
        loop {
            let token = self.peek();
            let function = match (level, token.text) {
                _ if token.kind != Lexeme::Sign => break,
                (0, "+") => op::ADD,
                (0, "-") => "_-_",
                (1, "*") => "_*_",
                (1, "/") => "_/_",
                (1, "%") => "_%_",
                _ => break,
            };
            self.next();
            self.deeper(SUM)?;
            self.nest()?;
            let right = if level == 0 { self.sum(1)? } else { self.unary()? };
            left = self.call(token.offset, function, vec![left, right]);
        }
        self.depth = depth;
        self.nesting = nesting;
        Ok(left)
    }

    fn unary(&mut self) -> Parsed<Expr> {
        let token = self.peek();
        let function = match token.text {
            _ if token.kind != Lexeme::Sign => return self.member(),
            "!" => op::NOT,
            "-" => op::NEGATE,
            _ => return self.member(),
        };
        let mut count = 0;
        while self.is(token.text) {
            // The last minus before a number belongs to the number, if it is the only one.
            let number = self.tokens.get(self.at + 1).is_some_and(|next| {
                matches!(next.kind, Lexeme::Int | Lexeme::Float) && token.text == "-" && count == 0
            });
            if number {
                return self.member();
            }
            self.next();
            count += 1;
        }
        let after = self.peek();
        if after.kind == Lexeme::Sign && matches!(after.text, "-" | "!") && token.text == "-" {
            let message = format!("Syntax error: no viable alternative at input '-{}'", after.text);
            return self.stop(after.offset, message);
        }
        let operand = self.member()?;
        if count % 2 == 0 {
            return Ok(operand);
        }
        Ok(self.call(token.offset, function, vec![operand]))
    }

    fn member(&mut self) -> Parsed<Expr> {
        let depth = self.depth;
        let nesting = self.nesting;
        let mut expr = self.primary()?;
        loop {
            let token = self.peek();
            match token.text {
                _ if token.kind != Lexeme::Sign => break,
                "." => {
                    self.deeper(MEMBER)?;
                    self.nest()?;
                    self.next();
                    expr = self.selection(token, expr)?;
                }
                "[" => {
                    self.deeper(MEMBER)?;
                    self.nest()?;
                    self.next();
                    let optional = self.take("?").is_some();
                    let index = self.expr()?;
                    if !self.is("]") && self.peek().kind == Lexeme::Eof {
                        let end = self.peek().offset;
                        return self.stop(end, "Syntax error: missing ']' at '<EOF>'".into());
                    }
                    self.expect("]")?;
                    let function = if optional { op::OPT_INDEX } else { op::INDEX };
                    expr = self.call(token.offset, function, vec![expr, index]);
                }
                _ => break,
            }
        }
        self.depth = depth;
        self.nesting = nesting;
        Ok(expr)
    }

    /// What follows a dot.
    fn selection(&mut self, dot: Token<'s>, operand: Expr) -> Parsed<Expr> {
        let optional = self.take("?").is_some();
        let token = self.next();
        let field: Arc<str> = match token.kind {
            Lexeme::Ident => token.text.into(),
            Lexeme::EscapedIdent => {
                self.issue(token.offset, "unsupported syntax: '`'".into());
                token.text.trim_matches('`').into()
            }
            _ => {
                let message = if matches!(token.text, "true" | "false" | "null") {
                    format!("Syntax error: mismatched input '{}' expecting IDENTIFIER", token.text)
                } else if token.kind == Lexeme::Eof {
                    "Syntax error: no viable alternative at input '.'".into()
                } else {
                    format!("Syntax error: no viable alternative at input '.{}'", token.text)
                };
                return self.stop(token.offset, message);
            }
        };
        if optional {
            let name = self.make(token.offset, Kind::Literal(Literal::String(field)));
            return Ok(self.call(dot.offset, op::OPT_SELECT, vec![operand, name]));
        }
        if let Some(open) = self.take("(") {
            let args = self.arguments()?;
            return self.member_call(open.offset, operand, field, args);
        }
        Ok(self.make(dot.offset, Kind::Select { operand: Box::new(operand), field, test: false }))
    }

    fn arguments(&mut self) -> Parsed<Vec<Expr>> {
        let mut args = Vec::new();
        if self.take(")").is_some() {
            return Ok(args);
        }
        self.expecting = EXPECTING_ARGUMENT;
        loop {
            args.push(self.expr()?);
            if self.take(",").is_none() {
                break;
            }
        }
        self.expect(")")?;
        Ok(args)
    }

    fn primary(&mut self) -> Parsed<Expr> {
        let token = self.peek();
        if begins(&token) {
            self.expecting = EXPECTING;
        }
        match token.kind {
            Lexeme::Ident => return self.named(token.offset, ""),
            Lexeme::Int | Lexeme::Uint | Lexeme::Float | Lexeme::Str | Lexeme::Bytes => {
                self.next();
                return Ok(self.literal(token, None));
            }
            Lexeme::Sign => {}
            _ => return self.unexpected(),
        }
        match token.text {
            "." => {
                self.next();
                if self.peek().kind != Lexeme::Ident {
                    let next = self.peek();
                    let message = format!("Syntax error: no viable alternative at input '.{}'", next.text);
                    return self.stop(next.offset, message);
                }
                self.named(token.offset, ".")
            }
            "(" => {
                self.next();
                let inner = self.expr()?;
                self.expect(")")?;
                Ok(inner)
            }
            "[" => self.list(),
            "{" => self.map(),
            "true" | "false" | "null" => {
                self.next();
                let literal = match token.text {
                    "true" => Literal::Bool(true),
                    "false" => Literal::Bool(false),
                    _ => Literal::Null,
                };
                Ok(self.make(token.offset, Kind::Literal(literal)))
            }
            "-" => {
                self.next();
                let number = self.peek();
                if !matches!(number.kind, Lexeme::Int | Lexeme::Float) {
                    self.expecting = EXPECTING;
                    return self.unexpected();
                }
                self.next();
                Ok(self.literal(number, Some(token.offset)))
            }
            _ => self.unexpected(),
        }
    }

    /// A token stands where an expression must begin. If one begins behind it, the token is passed over.
    fn unexpected(&mut self) -> Parsed<Expr> {
        let token = self.peek();
        let begins = token.kind != Lexeme::Eof && self.tokens.get(self.at + 1).is_some_and(begins);
        let word = if begins { "extraneous" } else { "mismatched" };
        let expecting = self.expecting;
        let found = quoted(token.text);
        self.issue(token.offset, format!("Syntax error: {word} input {found} expecting {expecting}"));
        if begins {
            self.next();
            return self.primary();
        }
        Err(Stop)
    }

    /// An identifier, a call of a function, or an object's literal.
    fn named(&mut self, start: usize, dot: &str) -> Parsed<Expr> {
        if let Some(end) = self.object_name() {
            let mut name = String::from(dot);
            while self.at < end {
                name.push_str(self.next().text);
            }
            return self.object(name.into());
        }
        let token = self.next();
        if RESERVED.contains(&token.text) {
            return Ok(self.fault(start, format!("reserved identifier: {}", token.text)));
        }
        let name: Arc<str> = format!("{dot}{}", token.text).into();
        match self.take("(") {
            Some(open) => {
                let args = self.arguments()?;
                self.global_call(open.offset, name, args)
            }
            None => Ok(self.make(token.offset, Kind::Ident(name))),
        }
    }

    /// Where the name of an object's literal ends, if one begins here.
    fn object_name(&self) -> Option<usize> {
        let mut at = self.at;
        loop {
            if self.tokens.get(at)?.kind != Lexeme::Ident {
                return None;
            }
            at += 1;
            let next = self.tokens.get(at)?;
            match (next.kind, next.text) {
                (Lexeme::Sign, ".") => at += 1,
                (Lexeme::Sign, "{") => return Some(at),
                _ => return None,
            }
        }
    }

    fn object(&mut self, name: Arc<str>) -> Parsed<Expr> {
        let open = self.expect("{")?;
        let mut fields = Vec::new();
        while !self.is("}") {
            let optional = self.take("?").is_some();
            let token = self.next();
            let field: Arc<str> = match token.kind {
                Lexeme::Ident => token.text.into(),
                Lexeme::EscapedIdent => {
                    self.issue(open.offset, "unsupported syntax: '`'".into());
                    token.text.trim_matches('`').into()
                }
                _ => {
                    let expected = if optional || !fields.is_empty() {
                        "{IDENTIFIER, ESC_IDENTIFIER}"
                    } else {
                        "{'}', ',', '?', IDENTIFIER, ESC_IDENTIFIER}"
                    };
                    let message =
                        format!("Syntax error: mismatched input {} expecting {expected}", quoted(token.text));
                    return self.stop(token.offset, message);
                }
            };
            let colon = self.expect(":")?;
            let id = self.node(colon.offset);
            let value = self.expr()?;
            fields.push(FieldInit { id, name: field, value, optional });
            if self.take(",").is_none() {
                break;
            }
        }
        self.expect("}")?;
        Ok(self.make(open.offset, Kind::Object { name, fields }))
    }

    fn list(&mut self) -> Parsed<Expr> {
        let open = self.next();
        let (mut elements, mut optional) = (Vec::new(), Vec::new());
        self.expecting = EXPECTING_ELEMENT;
        if self.take(",").is_none() {
            while !self.is("]") {
                optional.push(self.take("?").is_some());
                elements.push(self.expr()?);
                if self.take(",").is_none() {
                    break;
                }
            }
        }
        self.expect("]")?;
        Ok(self.make(open.offset, Kind::List { elements, optional }))
    }

    fn map(&mut self) -> Parsed<Expr> {
        let open = self.next();
        let mut entries = Vec::new();
        self.expecting = EXPECTING_ENTRY;
        if self.take(",").is_none() {
            while !self.is("}") {
                let optional = self.take("?").is_some();
                let key = self.expr()?;
                self.expect(":")?;
                let value = self.expr()?;
                entries.push(Entry { key, value, optional });
                if self.take(",").is_none() {
                    break;
                }
            }
        }
        self.expect("}")?;
        Ok(self.make(open.offset, Kind::Map(entries)))
    }

    fn literal(&mut self, token: Token<'_>, minus: Option<usize>) -> Expr {
        let offset = minus.unwrap_or(token.offset);
        match literal::read(token, minus.is_some()) {
            Ok(literal) => self.make(offset, Kind::Literal(literal)),
            Err(message) => self.fault(offset, message.into()),
        }
    }
}

/// Whether an expression may begin with a token.
fn begins(token: &Token<'_>) -> bool {
    match token.kind {
        Lexeme::Sign => matches!(token.text, "[" | "{" | "(" | "." | "-" | "!" | "true" | "false" | "null"),
        Lexeme::Eof | Lexeme::EscapedIdent => false,
        _ => true,
    }
}

const EXPR: usize = 0;
const RELATION: usize = 1;
const SUM: usize = 2;
const MEMBER: usize = 3;

fn quoted(text: &str) -> String {
    if text == "<EOF>" {
        return "'<EOF>'".into();
    }
    let escaped = text.replace('\n', "\\n").replace('\r', "\\r").replace('\t', "\\t");
    format!("'{escaped}'")
}
