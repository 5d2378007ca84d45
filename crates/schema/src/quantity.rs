//! Kubernetes quantities: exact decimal numbers with a decimal, binary or exponent suffix, and their canonical text.
//! A value is a mantissa and a power of ten, never finer than 10^-9 (finer amounts are rounded away from zero).

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

/// How a quantity is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `12e6`
    DecimalExponent,
    /// `12Mi`
    BinarySi,
    /// `12M`
    DecimalSi,
}

/// Why a text is no quantity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    #[error("unable to parse numeric part of quantity")]
    Numeric,
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

/// An exact amount.
#[derive(Clone, Debug)]
pub struct Quantity {
    mantissa: i128,
    exponent: i32,
    format: Format,
    /// The text it was read from, where upstream gives that back unchanged.
    text: Option<Box<str>>,
}

/// Most decimal digits that are kept exactly.
const MAX_DIGITS: usize = 36;
const NANO: i32 = -9;
const DECIMAL: [(&str, i32); 10] =
    [("n", -9), ("u", -6), ("m", -3), ("", 0), ("k", 3), ("M", 6), ("G", 9), ("T", 12), ("P", 15), ("E", 18)];
const BINARY: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];

/// The canonical form of a quantity's text.
pub fn canonical(text: &str) -> Result<String, QuantityError> {
    text.parse::<Quantity>().map(|q| q.to_string())
}

impl Quantity {
    /// A whole number.
    pub fn new(value: i64, format: Format) -> Self {
        Self { mantissa: value.into(), exponent: 0, format, text: None }
    }

    /// A number of thousandths.
    pub fn milli(value: i64, format: Format) -> Self {
        Self { mantissa: value.into(), exponent: -3, format, text: None }
    }

    /// How it is written.
    pub fn format(&self) -> Format {
        self.format
    }

    pub fn is_zero(&self) -> bool {
        self.mantissa == 0
    }

    pub fn is_negative(&self) -> bool {
        self.mantissa < 0
    }

    /// Whether the amount is a whole number.
    pub fn is_whole(&self) -> bool {
        self.scaled(0).1
    }

    /// The amount in whole units, rounded away from zero, within the range of i64.
    pub fn value(&self) -> i64 {
        clamp(self.scaled(0).0)
    }

    /// The amount in thousandths, rounded away from zero, within the range of i64.
    pub fn milli_value(&self) -> i64 {
        clamp(self.scaled(-3).0)
    }

    /// The amount as a floating-point number.
    pub fn approximate(&self) -> f64 {
        // By text, so that a power of ten is not rounded on its own.
        format!("{}e{}", self.mantissa, self.exponent).parse().unwrap_or(f64::NAN)
    }

    /// The sum; a zero takes the other's format.
    pub fn add(&self, other: &Self) -> Self {
        let (a, b, exponent) = aligned(self, other);
        let format = if self.is_zero() { other.format } else { self.format };
        Self { mantissa: a.saturating_add(b), exponent, format, text: None }
    }

    /// The difference; a zero takes the other's format.
    pub fn sub(&self, other: &Self) -> Self {
        self.add(&Self { mantissa: -other.mantissa, text: None, ..other.clone() })
    }

    /// The amount in units of 10^exponent, rounded away from zero, and whether that was exact.
    fn scaled(&self, exponent: i32) -> (i128, bool) {
        if self.exponent >= exponent {
            return (times_ten(self.mantissa, self.exponent.abs_diff(exponent)), true);
        }
        let Some(divisor) = 10i128.checked_pow(exponent.abs_diff(self.exponent)) else {
            return (self.mantissa.signum(), self.mantissa == 0);
        };
        let (quotient, rest) = (self.mantissa / divisor, self.mantissa % divisor);
        (quotient + rest.signum(), rest == 0)
    }
}

fn clamp(value: i128) -> i64 {
    value.clamp(i64::MIN.into(), i64::MAX.into()) as i64
}

fn times_ten(mantissa: i128, power: u32) -> i128 {
    match 10i128.checked_pow(power).and_then(|p| mantissa.checked_mul(p)) {
        Some(value) => value,
        None if mantissa == 0 => 0,
        None if mantissa < 0 => i128::MIN + 1,
        None => i128::MAX,
    }
}

fn aligned(a: &Quantity, b: &Quantity) -> (i128, i128, i32) {
    let exponent = a.exponent.min(b.exponent);
    let lift = |q: &Quantity| times_ten(q.mantissa, q.exponent.abs_diff(exponent));
    (lift(a), lift(b), exponent)
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        let (a, b, _) = aligned(self, other);
        a.cmp(&b)
    }
}

/// Sign, digits before and after the point, the text up to the suffix, and the suffix.
struct Parts<'a> {
    negative: bool,
    whole: &'a str,
    fraction: &'a str,
    suffix: &'a str,
}

fn split(text: &str) -> Result<Parts<'_>, QuantityError> {
    let negative = text.starts_with('-');
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    let digits = |s: &str| s.bytes().take_while(u8::is_ascii_digit).count();
    let stripped = unsigned.trim_start_matches('0');
    let (whole, rest) = stripped.split_at(digits(stripped));
    let (fraction, rest) = match rest.strip_prefix('.') {
        Some(rest) => rest.split_at(digits(rest)),
        None => ("", rest),
    };
    let tail = rest.trim_start_matches(|c| "eEinumkKMGTP".contains(c));
    let tail = tail.strip_prefix(['-', '+']).unwrap_or(tail);
    if digits(tail) != tail.len() {
        return Err(QuantityError::Format);
    }
    Ok(Parts { negative, whole, fraction, suffix: rest })
}

/// Base, exponent and format of a suffix.
fn suffix(text: &str) -> Option<(u32, i32, Format)> {
    if let Some((_, exponent)) = DECIMAL.iter().find(|(s, _)| *s == text) {
        return Some((10, *exponent, Format::DecimalSi));
    }
    if let Some(power) = BINARY.iter().position(|s| *s == text) {
        return Some((2, power as i32 * 10, Format::BinarySi));
    }
    let exponent = text.strip_prefix(['e', 'E'])?;
    Some((10, exponent.parse().ok()?, Format::DecimalExponent))
}

impl FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        if text.is_empty() {
            return Err(QuantityError::Format);
        }
        let Parts { negative, whole, fraction, suffix: tail } = split(text)?;
        let (base, power, mut format) = suffix(tail).ok_or(QuantityError::Suffix)?;
        let keep = keeps_text(text, whole, fraction, base, power);
        let digits: String = [whole, fraction].concat();
        let digits = digits.trim_start_matches('0');
        let dropped = digits.len().saturating_sub(MAX_DIGITS);
        let kept = &digits[..digits.len() - dropped];
        let mut mantissa: i128 =
            if kept.is_empty() { 0 } else { kept.parse().map_err(|_| QuantityError::Numeric)? };
        let mut exponent = dropped as i32 - fraction.len() as i32;
        if base == 10 {
            exponent = exponent.saturating_add(power);
        } else {
            mantissa = mantissa.saturating_mul(1 << power);
        }
        let mut value = Self { mantissa, exponent, format, text: None };
        if exponent < NANO {
            value = Self { mantissa: value.scaled(NANO).0, exponent: NANO, format, text: None };
        }
        if format == Format::BinarySi {
            let max = Self::new(i64::MAX, format);
            let one = Self::new(1, format);
            if value > max {
                value = max;
            }
            if !value.is_zero() && value < one {
                format = Format::DecimalSi;
            }
        }
        value.format = format;
        if negative {
            value.mantissa = -value.mantissa;
        }
        value.text = keep.then(|| text.into());
        Ok(value)
    }
}

/// Upstream gives a text back as it came when it looks canonical already; the test is a rough one, and clients see it.
fn keeps_text(text: &str, whole: &str, fraction: &str, base: u32, power: i32) -> bool {
    const FAST_DIGITS: i32 = 18;
    if whole.is_empty() && fraction.is_empty() {
        return text == "0";
    }
    let whole = if whole.is_empty() { "0" } else { whole };
    let digits = [whole, fraction].concat();
    let Ok(value) = digits.parse::<i64>() else { return false };
    if base == 10 {
        let scale = power.saturating_sub(fraction.len() as i32);
        let short = FAST_DIGITS - (digits.len() as i32) >= 0;
        return short
            && scale >= NANO
            && scale % 3 == 0
            && !digits.ends_with("000")
            && !digits.starts_with('0');
    }
    let precision = 15 - whole.len() as i32 - (power as f32 * 3.0 / 10.0) as i32 - 1;
    fraction.is_empty() && precision >= 0 && value.checked_mul(1 << power).is_some() && value & 7 != 0
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(text) = &self.text {
            return f.write_str(text);
        }
        if self.is_zero() {
            return f.write_str("0");
        }
        let mut format = self.format;
        if format == Format::BinarySi {
            let (whole, exact) = self.scaled(0);
            if exact && whole.unsigned_abs() >= 1024 {
                return binary(whole, f);
            }
            format = Format::DecimalSi;
        }
        let (mut mantissa, mut exponent) = (self.mantissa, self.exponent);
        while mantissa % 10 == 0 {
            mantissa /= 10;
            exponent += 1;
        }
        while exponent % 3 != 0 {
            mantissa = mantissa.saturating_mul(10);
            exponent -= 1;
        }
        let suffix = DECIMAL.iter().find(|(_, e)| *e == exponent).map_or("", |(s, _)| s);
        match format {
            Format::DecimalExponent if exponent != 0 => write!(f, "{mantissa}e{exponent}"),
            _ => write!(f, "{mantissa}{suffix}"),
        }
    }
}

fn binary(mut whole: i128, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let mut power = 0;
    while whole % 1024 == 0 && power + 1 < BINARY.len() {
        whole /= 1024;
        power += 1;
    }
    write!(f, "{whole}{}", BINARY[power])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_forms() {
        for (text, want) in [
            ("0", "0"),
            ("1024Mi", "1Gi"),
            ("1.5Gi", "1536Mi"),
            ("0.1", "100m"),
            ("0.100", "100m"),
            ("1.500", "1.500"),
            ("1000m", "1"),
            ("1e3", "1e3"),
            ("1000e0", "1e3"),
            ("12E", "12E"),
            ("0.5Ki", "512"),
            ("1025Ki", "1025Ki"),
            ("1000000", "1M"),
            ("100000", "100k"),
            ("-1500m", "-1500m"),
            ("0.0000000001", "1n"),
            ("0.1Mi", "104857600m"),
            ("9223372036854775807Ki", "9223372036854775807"),
            ("00", "0"),
        ] {
            assert_eq!(canonical(text).as_deref(), Ok(want), "{text}");
        }
    }

    #[test]
    fn refusals() {
        for (text, want) in [
            ("", QuantityError::Format),
            ("1 Gi", QuantityError::Format),
            ("1GB", QuantityError::Format),
            ("1kk", QuantityError::Suffix),
            ("1K", QuantityError::Suffix),
        ] {
            assert_eq!(canonical(text), Err(want), "{text}");
        }
    }

    #[test]
    fn arithmetic() {
        let q = |s: &str| s.parse::<Quantity>().expect("a quantity");
        assert_eq!(q("1").add(&q("500m")).to_string(), "1500m");
        assert_eq!(q("1Gi").sub(&q("1Mi")).to_string(), "1023Mi");
        assert!(q("1Ki") > q("1k") && q("1000m") == q("1"));
        assert_eq!((q("1500m").value(), q("0.5").milli_value()), (2, 500));
    }
}
