//! Text to tree: the grammar of CEL with optional syntax, its limits, and cel-go's messages for faults.

pub(crate) mod ast;
mod lexer;
mod literal;
mod macros;
mod recover;
mod set;

use std::sync::Arc;

use self::ast::{Ast, Entry, Expr, FieldInit, Id, Kind, Literal, op};
use self::lexer::{Kind as Lexeme, Token};
use crate::error::{Errors, Issue, MAX_ISSUES};
use crate::escape::RESERVED;

/// The longest expression, in characters.
const MAX_SIZE: usize = 100_000;
/// The deepest nesting of each rule of the grammar, and of a tree.
const MAX_DEPTH: usize = 250;
/// The most nodes of a tree; the macros for optional values copy their target.
const MAX_NODES: usize = 200_000;

/// What of the language is switched on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Syntax {
    /// `cel.bind(name, value, result)`.
    pub bind: bool,
}

/// Ends the parsing.
enum Stop {
    /// The text is no expression; [`recover`] tells why.
    Syntax,
    /// A limit, which is noted already.
    Limit,
}
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
}

/// The tree of an expression.
pub(crate) fn parse(source: &str, syntax: Syntax) -> Result<Ast, Errors> {
    let size = source.chars().count();
    if size > MAX_SIZE {
        let message = format!("expression code point size exceeds limit: size: {size}, limit {MAX_SIZE}");
        return Err(Errors::new(source, vec![Issue { offset: None, message }]));
    }
    let mut issues = Vec::new();
    let (tokens, skipped) = lexer::tokens(source, &mut issues);
    if issues.len() > MAX_ISSUES {
        return Err(Errors::new(source, issues));
    }
    let mut parser = Parser { tokens, at: 0, issues, offsets: Vec::new(), syntax, depth: [0; 4], nesting: 0 };
    let found = parser.issues.len();
    let root = parser.start();
    let Parser { tokens, at, mut issues, offsets, .. } = parser;
    match root {
        Ok(root) if issues.is_empty() => return Ok(Ast { root, offsets }),
        Err(Stop::Syntax) => {
            issues.truncate(found);
            recover::faults(source, &tokens, &skipped, &mut issues);
            if issues.is_empty() {
                let token = tokens[at.min(tokens.len() - 1)];
                let message = format!("Syntax error: mismatched input {}", quoted(token.text));
                issues.push(Issue { offset: Some(token.offset), message });
            }
        }
        _ => {}
    }
    Err(Errors::new(source, issues))
}

impl<'s> Parser<'s> {
    fn start(&mut self) -> Parsed<Expr> {
        let expr = self.expr()?;
        if self.peek().kind == Lexeme::Eof { Ok(expr) } else { Err(Stop::Syntax) }
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
        self.take(sign).ok_or(Stop::Syntax)
    }

    fn issue(&mut self, offset: usize, message: String) {
        self.issues.push(Issue { offset: Some(offset), message });
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
        Stop::Limit
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
            return Err(Stop::Syntax);
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
            _ => return Err(Stop::Syntax),
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
        match token.kind {
            Lexeme::Ident => return self.named(token.offset, ""),
            Lexeme::Int | Lexeme::Uint | Lexeme::Float | Lexeme::Str | Lexeme::Bytes => {
                self.next();
                return Ok(self.literal(token, None));
            }
            Lexeme::Sign => {}
            _ => return Err(Stop::Syntax),
        }
        match token.text {
            "." => {
                self.next();
                if self.peek().kind != Lexeme::Ident {
                    return Err(Stop::Syntax);
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
                    return Err(Stop::Syntax);
                }
                self.next();
                Ok(self.literal(number, Some(token.offset)))
            }
            _ => Err(Stop::Syntax),
        }
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
        let lone = self.take(",").is_some();
        while !lone && !self.is("}") {
            let optional = self.take("?").is_some();
            let token = self.next();
            let field: Arc<str> = match token.kind {
                Lexeme::Ident => token.text.into(),
                Lexeme::EscapedIdent => {
                    self.issue(open.offset, "unsupported syntax: '`'".into());
                    token.text.trim_matches('`').into()
                }
                _ => return Err(Stop::Syntax),
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
