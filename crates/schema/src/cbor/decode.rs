//! CBOR to JSON values. What JSON cannot say is refused: other simple values, numbers that are none, keys that are no
//! strings, and repeated keys.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Map, Number, Value};

use super::CborError;

/// Deepest nesting; the reader recurses.
const MAX_DEPTH: usize = 400;

/// The value of a whole body.
pub fn decode(body: &[u8]) -> Result<Value, CborError> {
    let mut reader = Reader { body, at: 0 };
    let value = reader.value(0)?;
    match body.len() - reader.at {
        0 => Ok(value),
        rest => Err(CborError::Trailing(rest)),
    }
}

/// How many bytes the first item takes.
pub fn item_length(body: &[u8]) -> Result<usize, CborError> {
    let mut reader = Reader { body, at: 0 };
    reader.value(0)?;
    Ok(reader.at)
}

struct Reader<'a> {
    body: &'a [u8],
    at: usize,
}

/// The head of an item. No argument: an item of indefinite length.
struct Head {
    major: u8,
    info: u8,
    argument: Option<u64>,
}

const BREAK: u8 = 0xff;

impl<'a> Reader<'a> {
    fn take(&mut self, length: u64) -> Result<&'a [u8], CborError> {
        let length = usize::try_from(length).map_err(|_| CborError::Truncated)?;
        let rest = self.body.get(self.at..).unwrap_or_default();
        let taken = rest.get(..length).ok_or(CborError::Truncated)?;
        self.at += length;
        Ok(taken)
    }

    fn head(&mut self) -> Result<Head, CborError> {
        let start = self.at;
        let first = self.take(1)?[0];
        let (major, info) = (first >> 5, first & 0x1f);
        let argument = match info {
            0..=23 => Some(u64::from(info)),
            24..=27 => {
                let bytes = self.take(1 << (info - 24))?;
                Some(bytes.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
            }
            31 if matches!(major, 2..=5) => None,
            _ => return Err(CborError::Malformed(start)),
        };
        Ok(Head { major, info, argument })
    }

    /// Whether an item of indefinite length ends here.
    fn ends(&mut self) -> Result<bool, CborError> {
        let next = *self.body.get(self.at).ok_or(CborError::Truncated)?;
        if next == BREAK {
            self.at += 1;
        }
        Ok(next == BREAK)
    }

    fn value(&mut self, depth: usize) -> Result<Value, CborError> {
        if depth > MAX_DEPTH {
            return Err(CborError::Depth);
        }
        let head = self.head()?;
        self.behind(head, depth)
    }

    fn behind(&mut self, head: Head, depth: usize) -> Result<Value, CborError> {
        match (head.major, head.argument) {
            (0, Some(number)) => i64::try_from(number)
                .map(Value::from)
                .map_err(|_| CborError::Unsupported("an integer does not fit 64 bits")),
            (1, Some(number)) => i64::try_from(number)
                .map(|number| Value::from(!number))
                .map_err(|_| CborError::Unsupported("an integer does not fit 64 bits")),
            (2 | 3, _) => self.string(&head).map(Value::String),
            (4, count) => self.array(count, depth).map(Value::Array),
            (5, count) => self.map(count, depth).map(Value::Object),
            (6, Some(tag)) => self.tagged(tag, depth),
            (7, Some(argument)) => simple(head.info, argument),
            _ => Err(CborError::Malformed(self.at)),
        }
    }

    /// The content of a string, in one piece or several.
    fn raw(&mut self, head: &Head) -> Result<Vec<u8>, CborError> {
        if let Some(length) = head.argument {
            return Ok(self.take(length)?.to_vec());
        }
        let mut whole = Vec::new();
        while !self.ends()? {
            let start = self.at;
            let piece = self.head()?;
            let (true, Some(length)) = (piece.major == head.major, piece.argument) else {
                return Err(CborError::Malformed(start));
            };
            let piece = self.take(length)?;
            if head.major == 3 {
                std::str::from_utf8(piece).map_err(|_| CborError::Unsupported("invalid UTF-8 string"))?;
            }
            whole.extend_from_slice(piece);
        }
        Ok(whole)
    }

    fn string(&mut self, head: &Head) -> Result<String, CborError> {
        let raw = self.raw(head)?;
        match head.major {
            // Upstream keeps such bytes in its strings; as JSON they read so.
            2 => Ok(String::from_utf8_lossy(&raw).into_owned()),
            _ => String::from_utf8(raw).map_err(|_| CborError::Unsupported("invalid UTF-8 string")),
        }
    }

    fn array(&mut self, count: Option<u64>, depth: usize) -> Result<Vec<Value>, CborError> {
        let mut items = Vec::new();
        let mut left = count;
        loop {
            match &mut left {
                Some(0) => return Ok(items),
                Some(left) => *left -= 1,
                None if self.ends()? => return Ok(items),
                None => {}
            }
            items.push(self.value(depth + 1)?);
        }
    }

    fn map(&mut self, count: Option<u64>, depth: usize) -> Result<Map<String, Value>, CborError> {
        let mut map = Map::new();
        let mut left = count;
        loop {
            match &mut left {
                Some(0) => return Ok(map),
                Some(left) => *left -= 1,
                None if self.ends()? => return Ok(map),
                None => {}
            }
            let head = self.head()?;
            if !matches!(head.major, 2 | 3) {
                return Err(CborError::Unsupported("a map key is no string"));
            }
            let key = self.string(&head)?;
            let value = self.value(depth + 1)?;
            if map.contains_key(&key) {
                return Err(CborError::Duplicate(key));
            }
            map.insert(key, value);
        }
    }

    fn tagged(&mut self, tag: u64, depth: usize) -> Result<Value, CborError> {
        let start = self.at;
        match tag {
            0 => match self.value(depth + 1)? {
                Value::String(text) => text
                    .parse::<jiff::Timestamp>()
                    .map(|_| Value::String(text))
                    .map_err(|_| CborError::Unsupported("a time is not in RFC 3339")),
                _ => Err(CborError::Malformed(start)),
            },
            1 => epoch(&self.value(depth + 1)?),
            2 | 3 => Err(CborError::Unsupported("big numbers are not supported")),
            21..=23 => {
                let head = self.head()?;
                if head.major != 2 {
                    return self.behind(head, depth + 1);
                }
                let raw = self.raw(&head)?;
                Ok(Value::String(match tag {
                    21 => URL_SAFE_NO_PAD.encode(raw),
                    22 => STANDARD.encode(raw),
                    _ => raw.iter().map(|byte| format!("{byte:02X}")).collect(),
                }))
            }
            _ => self.value(depth + 1),
        }
    }
}

/// Seconds since 1970 as a time.
fn epoch(value: &Value) -> Result<Value, CborError> {
    let bad = || CborError::Unsupported("a time is out of range");
    let time = match (value.as_i64(), value.as_f64()) {
        (Some(seconds), _) => jiff::Timestamp::from_second(seconds),
        (None, Some(seconds)) => jiff::SignedDuration::try_from_secs_f64(seconds)
            .map_err(|_| bad())
            .map(jiff::Timestamp::from_duration)?,
        _ => return Err(bad()),
    };
    time.map(|time| Value::String(time.to_string())).map_err(|_| bad())
}

fn simple(info: u8, argument: u64) -> Result<Value, CborError> {
    let number = match info {
        20 => return Ok(Value::Bool(false)),
        21 => return Ok(Value::Bool(true)),
        22 => return Ok(Value::Null),
        25 => half(argument as u16),
        26 => f64::from(f32::from_bits(argument as u32)),
        27 => f64::from_bits(argument),
        _ => return Err(CborError::Unsupported("a simple value is none of true, false and null")),
    };
    let number = Number::from_f64(number).ok_or(CborError::Unsupported("a number is not finite"))?;
    Ok(Value::Number(number))
}

fn half(bits: u16) -> f64 {
    let (exponent, fraction) = (i32::from(bits >> 10 & 0x1f), f64::from(bits & 0x3ff));
    let size = match exponent {
        0 => fraction * 2f64.powi(-24),
        31 if fraction == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        _ => (1024.0 + fraction) * 2f64.powi(exponent - 25),
    };
    if bits & 0x8000 == 0 { size } else { -size }
}
