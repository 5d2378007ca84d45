//! Domain names.

use super::WireError;
use std::fmt;

/// A domain name in wire form: labels with their lengths, up to the root. Case is kept; comparison is exact, so that compression keeps
/// case too. Look things up by [`Name::lower`].
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(Vec<u8>);

const MAX: usize = 255;
/// No honest name follows more pointers than it has labels.
const MAX_HOPS: usize = 127;

impl Name {
    /// The root.
    pub fn root() -> Self {
        Self(vec![0])
    }

    /// Reads the dotted form, with or without the last dot. `None` if a label is empty or too long, or the whole is.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.strip_suffix('.').unwrap_or(text);
        if text.is_empty() {
            return Some(Self::root());
        }
        Self::from_labels(text.split('.').map(str::as_bytes))
    }

    /// Joins labels.
    pub fn from_labels<'a>(labels: impl IntoIterator<Item = &'a [u8]>) -> Option<Self> {
        let mut bytes = Vec::with_capacity(64);
        for label in labels {
            if label.is_empty() || label.len() > 63 {
                return None;
            }
            bytes.push(label.len() as u8);
            bytes.extend(label);
        }
        bytes.push(0);
        (bytes.len() <= MAX).then_some(Self(bytes))
    }

    /// The labels, the root not included.
    pub fn labels(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = self.0.as_slice();
        std::iter::from_fn(move || {
            let (&length, after) = rest.split_first()?;
            if length == 0 {
                return None;
            }
            let (label, after) = after.split_at_checked(usize::from(length))?;
            rest = after;
            Some(label)
        })
    }

    /// The dotted form in lower case, without the last dot.
    pub fn lower(&self) -> String {
        let mut text = self.dotted();
        text.make_ascii_lowercase();
        text
    }

    /// The wire form.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    fn dotted(&self) -> String {
        let mut text = String::with_capacity(self.0.len());
        for label in self.labels() {
            if !text.is_empty() {
                text.push('.');
            }
            for &byte in label {
                match byte {
                    b'.' | b'\\' => text.extend(['\\', byte as char]),
                    0x21..=0x7e => text.push(byte as char),
                    _ => text.push_str(&format!("\\{byte:03}")),
                }
            }
        }
        text
    }

    /// Reads a name at `at`; returns also where the message goes on.
    pub(super) fn decode(bytes: &[u8], mut at: usize) -> Result<(Self, usize), WireError> {
        let mut name = Vec::with_capacity(64);
        let mut after = None;
        let mut hops = 0;
        loop {
            let length = *bytes.get(at).ok_or(WireError::Short)?;
            match length {
                0 => {
                    name.push(0);
                    if name.len() > MAX {
                        return Err(WireError::BadName);
                    }
                    return Ok((Self(name), after.unwrap_or(at + 1)));
                }
                1..=63 => {
                    let end = at + 1 + usize::from(length);
                    name.extend(bytes.get(at..end).ok_or(WireError::Short)?);
                    if name.len() > MAX {
                        return Err(WireError::BadName);
                    }
                    at = end;
                }
                0xc0.. => {
                    let low = *bytes.get(at + 1).ok_or(WireError::Short)?;
                    let target = usize::from(length & 0x3f) << 8 | usize::from(low);
                    after.get_or_insert(at + 2);
                    // Pointers lead backwards only, so that there is no circle.
                    hops += 1;
                    if target >= at || hops > MAX_HOPS {
                        return Err(WireError::BadName);
                    }
                    at = target;
                }
                _ => return Err(WireError::BadName),
            }
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.", self.dotted())
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{self}")
    }
}
