//! Resource quantities as whole numbers: bytes, counts and thousandths of a core. Rounds up, as upstream's
//! `Quantity.Value` and `MilliValue` do.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// The value in whole units; `None` if it is no quantity.
pub(crate) fn value(quantity: &Quantity) -> Option<i64> {
    scaled(&quantity.0, 1)
}

/// The value in thousandths.
pub(crate) fn milli(quantity: &Quantity) -> Option<i64> {
    scaled(&quantity.0, 1000)
}

/// The named amount in whole units.
pub(crate) fn amount(list: Option<&BTreeMap<String, Quantity>>, name: &str) -> Option<i64> {
    value(list?.get(name)?)
}

/// The named amount in thousandths.
pub(crate) fn milli_amount(list: Option<&BTreeMap<String, Quantity>>, name: &str) -> Option<i64> {
    milli(list?.get(name)?)
}

fn scaled(text: &str, factor: i128) -> Option<i64> {
    let end =
        text.find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '+' | '-'))).unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (numerator, mut denominator): (i128, i128) = match suffix {
        "" => (1, 1),
        "n" => (1, 1_000_000_000),
        "u" => (1, 1_000_000),
        "m" => (1, 1000),
        "k" => (1000, 1),
        "M" => (1_000_000, 1),
        "G" => (1_000_000_000, 1),
        "T" => (1_000_000_000_000, 1),
        "P" => (1_000_000_000_000_000, 1),
        "E" => (1_000_000_000_000_000_000, 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        "Ei" => (1 << 60, 1),
        exponent => {
            let power: i32 = exponent.strip_prefix(['e', 'E'])?.parse().ok()?;
            let scale = 10i128.checked_pow(power.unsigned_abs())?;
            if power < 0 { (1, scale) } else { (scale, 1) }
        }
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits: i128 = format!("{whole}{fraction}").parse().ok()?;
    denominator = denominator.checked_mul(10i128.checked_pow(fraction.len() as u32)?)?;
    let product = digits.checked_mul(numerator)?.checked_mul(factor)?;
    let rounded = product.div_euclid(denominator) + i128::from(product.rem_euclid(denominator) != 0);
    Some(i64::try_from(rounded).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_round_up() {
        for (text, whole, thousandths) in [
            ("1", 1, 1000),
            ("100m", 1, 100),
            ("1.5", 2, 1500),
            ("64Mi", 67_108_864, 67_108_864_000),
            ("1e3", 1000, 1_000_000),
            ("0.5Gi", 536_870_912, 536_870_912_000),
            ("2k", 2000, 2_000_000),
        ] {
            let quantity = Quantity(text.to_owned());
            assert_eq!((value(&quantity), milli(&quantity)), (Some(whole), Some(thousandths)), "{text}");
        }
        assert_eq!(value(&Quantity("much".into())), None);
    }
}
