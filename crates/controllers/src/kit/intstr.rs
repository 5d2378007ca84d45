//! Numbers that may be given as a percentage of a total.

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// The number, or its share of `total` rounded up or down; `None` if it is neither.
pub(crate) fn scaled(value: &IntOrString, total: i32, round_up: bool) -> Option<i32> {
    match value {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(text) => {
            let percent: i64 = text.strip_suffix('%')?.parse().ok()?;
            let product = percent * i64::from(total);
            let share = if round_up { (product + 99).div_euclid(100) } else { product.div_euclid(100) };
            i32::try_from(share).ok()
        }
    }
}

/// How many more and how many fewer pods than `desired` a rolling update may have; never neither.
pub(crate) fn fenceposts(
    surge: Option<&IntOrString>,
    unavailable: Option<&IntOrString>,
    desired: i32,
) -> (i32, i32) {
    let surge = surge.and_then(|value| scaled(value, desired, true)).unwrap_or_default();
    let unavailable = unavailable.and_then(|value| scaled(value, desired, false)).unwrap_or_default();
    if surge == 0 && unavailable == 0 { (0, 1) } else { (surge, unavailable) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_round_as_told() {
        let percent = IntOrString::String("25%".into());
        assert_eq!(scaled(&percent, 3, true), Some(1));
        assert_eq!(scaled(&percent, 3, false), Some(0));
        assert_eq!(scaled(&IntOrString::Int(7), 3, true), Some(7));
        assert_eq!(scaled(&IntOrString::String("x".into()), 3, true), None);
        assert_eq!(fenceposts(None, Some(&percent), 3), (0, 1));
        assert_eq!(fenceposts(Some(&percent), Some(&percent), 10), (3, 2));
    }
}
