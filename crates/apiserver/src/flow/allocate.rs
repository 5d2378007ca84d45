//! How seats that are not needed are lent: every level gets the same share of what it aims at, within its bounds
//! (upstream: `util/flowcontrol/conc_alloc.go`, KEP-1040).

/// What one level needs.
#[derive(Clone, Copy, Debug)]
pub struct Need {
    pub target: f64,
    pub lower: f64,
    pub upper: f64,
}

/// Below this a target is as good as nothing, but something to divide by.
const SMALLEST_TARGET: f64 = 0.001;

/// Seats for each need and the share of its target that each gets, bounds aside. `None` if the bounds cannot be met.
pub fn allocate(total: f64, needs: &[Need]) -> Option<(Vec<f64>, f64)> {
    const EPSILON: f64 = 1e-7;
    let low: f64 = needs.iter().map(|n| n.lower).sum();
    let high: f64 = needs.iter().map(|n| n.upper).sum();
    let sane = |n: &Need| n.lower >= 0.0 && n.target >= n.lower && n.upper >= n.lower;
    if total < 0.0 || !needs.iter().all(sane) || low - total > EPSILON || total - high > EPSILON {
        return None;
    }
    let target = |n: &Need| n.target.max(SMALLEST_TARGET);
    let at = |share: f64| {
        let seats = needs.iter().map(move |n| (share * target(n)).clamp(n.lower, n.upper));
        seats.collect::<Vec<f64>>()
    };
    // The sum of what `at` gives grows with the share, in straight pieces between the shares at which a bound is met.
    let mut bounds: Vec<f64> =
        needs.iter().flat_map(|n| [n.lower / target(n), n.upper / target(n)]).collect();
    bounds.sort_by(f64::total_cmp);
    let sum = |share: f64| at(share).iter().sum::<f64>();
    let above = bounds.iter().position(|share| sum(*share) >= total);
    let share = match above {
        None => bounds.last().copied().unwrap_or(0.0),
        Some(0) => bounds[0],
        Some(i) => {
            let (from, to) = (bounds[i - 1], bounds[i]);
            let (below, beyond) = (sum(from), sum(to));
            if beyond - below <= EPSILON {
                to
            } else {
                from + (to - from) * (total - below) / (beyond - below)
            }
        }
    };
    Some((at(share), share))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(total: f64, needs: &[(f64, f64, f64)], expect: &[f64]) {
        let needs: Vec<Need> = needs
            .iter()
            .map(|(lower, target, upper)| Need { lower: *lower, target: *target, upper: *upper })
            .collect();
        let (got, _) = allocate(total, &needs).expect("the bounds can be met");
        for (got, expect) in got.iter().zip(expect) {
            assert!((got - expect).abs() < 1e-6, "{needs:?}: {got} is not {expect}");
        }
    }

    #[test]
    fn seats_are_shared_by_target_within_bounds() {
        check(10.0, &[(0.0, 10.0, 100.0), (0.0, 10.0, 100.0)], &[5.0, 5.0]);
        check(30.0, &[(0.0, 10.0, 100.0), (0.0, 20.0, 100.0)], &[10.0, 20.0]);
        check(30.0, &[(0.0, 10.0, 6.0), (0.0, 20.0, 100.0)], &[6.0, 24.0]);
        check(30.0, &[(15.0, 15.0, 100.0), (0.0, 20.0, 100.0), (0.0, 20.0, 100.0)], &[15.0, 7.5, 7.5]);
        check(100.0, &[(10.0, 10.0, 50.0), (20.0, 20.0, 50.0)], &[50.0, 50.0]);
        check(30.0, &[(10.0, 10.0, 50.0), (20.0, 20.0, 50.0)], &[10.0, 20.0]);
        check(7.0, &[(0.0, 0.0, 100.0), (0.0, 0.0, 100.0)], &[3.5, 3.5]);
    }

    #[test]
    fn bounds_that_cannot_be_met_are_told() {
        let need = Need { lower: 5.0, target: 5.0, upper: 6.0 };
        assert!(allocate(4.0, &[need]).is_none());
        assert!(allocate(7.0, &[need]).is_none());
        assert!(allocate(5.0, &[Need { upper: 1.0, ..need }]).is_none());
    }
}
