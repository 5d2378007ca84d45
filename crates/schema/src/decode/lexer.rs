//! A JSON reader over bytes that refuses what Go's encoding/json refuses, in its words.

use serde_json::{Map, Number, Value};

/// Deepest nesting of a text, as in Go.
const MAX_DEPTH: usize = 10_000;
/// Deepest nesting of a value that is kept; deeper ones are refused, so that no later walk overflows its stack.
const MAX_KEPT_DEPTH: usize = 400;

/// The text is not JSON.
#[derive(Debug)]
pub(crate) struct Syntax(pub String);

pub(crate) struct Lexer<'a> {
    data: &'a [u8],
    at: usize,
    depth: usize,
}

impl<'a> Lexer<'a> {
    pub fn new(data: &'a [u8]) -> Self {
        Self { data, at: 0, depth: 0 }
    }

    pub fn position(&self) -> usize {
        self.at
    }

    pub fn since(&self, start: usize) -> &'a [u8] {
        &self.data[start..self.at]
    }

    fn unexpected(&self, context: &str) -> Syntax {
        match self.data.get(self.at) {
            None => Syntax("unexpected end of JSON input".to_owned()),
            Some(byte) => Syntax(format!("invalid character {} {context}", quote(*byte))),
        }
    }

    fn space(&mut self) {
        while let Some(b' ' | b'\t' | b'\r' | b'\n') = self.data.get(self.at) {
            self.at += 1;
        }
    }

    /// The first byte of the value that comes next.
    pub fn peek(&mut self) -> Result<u8, Syntax> {
        self.space();
        match self.data.get(self.at) {
            Some(b @ (b'{' | b'[' | b'"' | b'-' | b'0'..=b'9' | b't' | b'f' | b'n')) => Ok(*b),
            _ => Err(self.unexpected("looking for beginning of value")),
        }
    }

    /// Nothing but space may follow.
    pub fn end(&mut self) -> Result<(), Syntax> {
        self.space();
        if self.at < self.data.len() {
            return Err(self.unexpected("after top-level value"));
        }
        Ok(())
    }

    pub fn literal(&mut self, word: &str) -> Result<(), Syntax> {
        for (i, byte) in word.bytes().enumerate() {
            if self.data.get(self.at) != Some(&byte) {
                let _ = i;
                return Err(self.unexpected(&format!("in literal {word} (expecting {})", quote(byte))));
            }
            self.at += 1;
        }
        Ok(())
    }

    /// Enters an object or array; false if it is empty and already left.
    pub fn enter(&mut self, close: u8) -> Result<bool, Syntax> {
        self.at += 1;
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(Syntax("exceeded max depth".to_owned()));
        }
        self.space();
        if self.data.get(self.at) == Some(&close) {
            self.leave();
            return Ok(false);
        }
        Ok(true)
    }

    fn leave(&mut self) {
        self.at += 1;
        self.depth -= 1;
    }

    /// After a member: true if another follows, false if the container was closed.
    pub fn more(&mut self, close: u8) -> Result<bool, Syntax> {
        self.space();
        match self.data.get(self.at) {
            Some(b',') => {
                self.at += 1;
                self.space();
                Ok(true)
            }
            Some(b) if *b == close => {
                self.leave();
                Ok(false)
            }
            _ if close == b'}' => Err(self.unexpected("after object key:value pair")),
            _ => Err(self.unexpected("after array element")),
        }
    }

    /// An object's key and the colon after it.
    pub fn key(&mut self) -> Result<String, Syntax> {
        if self.data.get(self.at) != Some(&b'"') {
            return Err(self.unexpected("looking for beginning of object key string"));
        }
        let key = self.string()?;
        self.space();
        if self.data.get(self.at) != Some(&b':') {
            return Err(self.unexpected("after object key"));
        }
        self.at += 1;
        Ok(key)
    }

    /// A string; what is not UTF-8 becomes U+FFFD.
    pub fn string(&mut self) -> Result<String, Syntax> {
        self.at += 1;
        let start = self.at;
        // Most strings have no escapes: one look, one copy.
        while let Some(byte) = self.data.get(self.at) {
            match byte {
                b'"' => {
                    let text = String::from_utf8_lossy(&self.data[start..self.at]).into_owned();
                    self.at += 1;
                    return Ok(text);
                }
                b'\\' => break,
                0..0x20 => return Err(self.unexpected("in string literal")),
                _ => self.at += 1,
            }
        }
        let mut bytes = self.data[start..self.at].to_vec();
        loop {
            match self.data.get(self.at) {
                None | Some(0..0x20) => return Err(self.unexpected("in string literal")),
                Some(b'"') => {
                    self.at += 1;
                    return Ok(String::from_utf8_lossy(&bytes).into_owned());
                }
                Some(b'\\') => {
                    self.at += 1;
                    self.escape(&mut bytes)?;
                }
                Some(byte) => {
                    bytes.push(*byte);
                    self.at += 1;
                }
            }
        }
    }

    fn escape(&mut self, out: &mut Vec<u8>) -> Result<(), Syntax> {
        let plain = match self.data.get(self.at) {
            Some(b @ (b'"' | b'\\' | b'/')) => *b,
            Some(b'b') => 0x08,
            Some(b'f') => 0x0c,
            Some(b'n') => b'\n',
            Some(b'r') => b'\r',
            Some(b't') => b'\t',
            Some(b'u') => {
                self.at += 1;
                let unit = self.hex()?;
                let c = self.surrogate(unit)?;
                out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                return Ok(());
            }
            _ => return Err(self.unexpected("in string escape code")),
        };
        out.push(plain);
        self.at += 1;
        Ok(())
    }

    fn hex(&mut self) -> Result<u32, Syntax> {
        let mut value = 0;
        for _ in 0..4 {
            let digit = self.data.get(self.at).and_then(|b| (*b as char).to_digit(16));
            let Some(digit) = digit else {
                return Err(self.unexpected("in \\u hexadecimal character escape"));
            };
            value = value * 16 + digit;
            self.at += 1;
        }
        Ok(value)
    }

    fn surrogate(&mut self, unit: u32) -> Result<char, Syntax> {
        if (0xd800..0xdc00).contains(&unit) && self.data[self.at..].starts_with(b"\\u") {
            let back = self.at;
            self.at += 2;
            let low = self.hex()?;
            if (0xdc00..0xe000).contains(&low) {
                let code = 0x10000 + ((unit - 0xd800) << 10) + (low - 0xdc00);
                return Ok(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER));
            }
            self.at = back;
        }
        Ok(char::from_u32(unit).unwrap_or(char::REPLACEMENT_CHARACTER))
    }

    /// A number's text.
    pub fn number(&mut self) -> Result<&'a str, Syntax> {
        let start = self.at;
        if self.data.get(self.at) == Some(&b'-') {
            self.at += 1;
        }
        match self.data.get(self.at) {
            Some(b'0') => self.at += 1,
            Some(b'1'..=b'9') => self.digits(),
            _ => return Err(self.unexpected("in numeric literal")),
        }
        if self.data.get(self.at) == Some(&b'.') {
            self.at += 1;
            self.some_digits("after decimal point in numeric literal")?;
        }
        if let Some(b'e' | b'E') = self.data.get(self.at) {
            self.at += 1;
            if let Some(b'+' | b'-') = self.data.get(self.at) {
                self.at += 1;
            }
            self.some_digits("in exponent of numeric literal")?;
        }
        Ok(std::str::from_utf8(self.since(start)).expect("a number is ASCII"))
    }

    fn digits(&mut self) {
        while let Some(b'0'..=b'9') = self.data.get(self.at) {
            self.at += 1;
        }
    }

    fn some_digits(&mut self, context: &str) -> Result<(), Syntax> {
        match self.data.get(self.at) {
            Some(b'0'..=b'9') => {
                self.digits();
                Ok(())
            }
            _ => Err(self.unexpected(context)),
        }
    }

    /// Passes over one value, of any depth that a text may have, without recursion.
    pub fn skip(&mut self) -> Result<(), Syntax> {
        let mut open: Vec<u8> = Vec::new();
        loop {
            let opened = match self.peek()? {
                b'{' => self.enter(b'}')?.then_some(b'}'),
                b'[' => self.enter(b']')?.then_some(b']'),
                b'"' => self.string().map(|_| None)?,
                b't' => self.literal("true").map(|()| None)?,
                b'f' => self.literal("false").map(|()| None)?,
                b'n' => self.literal("null").map(|()| None)?,
                _ => self.number().map(|_| None)?,
            };
            match opened {
                Some(close) => open.push(close),
                None => {
                    while let Some(close) = open.last() {
                        if self.more(*close)? {
                            break;
                        }
                        open.pop();
                    }
                }
            }
            match open.last() {
                None => return Ok(()),
                Some(b'}') => {
                    self.key()?;
                }
                Some(_) => {}
            }
        }
    }

    /// Refuses what lies too deep to be kept.
    pub fn kept(&self) -> Result<(), Syntax> {
        if self.depth > MAX_KEPT_DEPTH {
            return Err(Syntax("exceeded max depth".to_owned()));
        }
        Ok(())
    }

    /// One value as it is; `duplicate` is told of each key that its object has already.
    pub fn any(&mut self, duplicate: &mut dyn FnMut(Step<'_>)) -> Result<Value, Syntax> {
        self.kept()?;
        Ok(match self.peek()? {
            b'{' => {
                let mut map = Map::new();
                let mut more = self.enter(b'}')?;
                while more {
                    let key = self.key()?;
                    if map.contains_key(&key) {
                        duplicate(Step::Duplicate(&key));
                    }
                    duplicate(Step::Key(&key));
                    let value = self.any(duplicate)?;
                    duplicate(Step::Back);
                    map.insert(key, value);
                    more = self.more(b'}')?;
                }
                Value::Object(map)
            }
            b'[' => {
                let mut list = Vec::new();
                let mut more = self.enter(b']')?;
                while more {
                    duplicate(Step::Index(list.len()));
                    list.push(self.any(duplicate)?);
                    duplicate(Step::Back);
                    more = self.more(b']')?;
                }
                Value::Array(list)
            }
            b'"' => Value::String(self.string()?),
            b't' => self.literal("true").map(|()| Value::Bool(true))?,
            b'f' => self.literal("false").map(|()| Value::Bool(false))?,
            b'n' => self.literal("null").map(|()| Value::Null)?,
            _ => number_value(self.number()?),
        })
    }
}

/// Where [`Lexer::any`] is: the observer keeps the path.
pub(crate) enum Step<'k> {
    Key(&'k str),
    Index(usize),
    Back,
    Duplicate(&'k str),
}

/// Integers stay integers; whole floats without a point too, as Go would write them.
pub(crate) fn number_value(text: &str) -> Value {
    if !text.contains('.') {
        if let Ok(int) = text.parse::<i64>() {
            return int.into();
        }
        if let Ok(int) = text.parse::<u64>() {
            return int.into();
        }
    }
    let float = text.parse::<f64>().unwrap_or(0.0);
    Number::from_f64(float).map_or(Value::Null, Value::Number)
}

fn quote(byte: u8) -> String {
    match byte {
        b'\'' => r"'\''".to_owned(),
        b'"' => "'\"'".to_owned(),
        b'\\' => r"'\\'".to_owned(),
        b'\n' => r"'\n'".to_owned(),
        b'\r' => r"'\r'".to_owned(),
        b'\t' => r"'\t'".to_owned(),
        0..0x20 | 0x7f..0xa0 => format!("'\\x{byte:02x}'"),
        _ => format!("'{}'", byte as char),
    }
}
