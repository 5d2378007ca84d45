//! Whether a recorded history of one register is linearizable: whether there is an order of its operations, each between its
//! call and its return, in which every read sees the last write (Wing and Gong, with Lowe's memory of states seen).

use std::collections::HashSet;

/// What an operation did, as its client knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Saw this value; 0: absent.
    Read(u64),
    /// Wrote the second value over the first.
    Swap(u64, u64),
    /// Found another value than the first, which was this.
    Refused(u64, u64),
}

/// One operation. Times are of one clock; an operation whose fate is unknown returns at the end of time.
#[derive(Clone, Copy, Debug)]
pub struct Operation {
    pub called: u64,
    pub returned: u64,
    pub action: Action,
}

/// The time of what never returned.
pub const NEVER: u64 = u64::MAX;

impl Operation {
    /// The register after the operation; none if it cannot have happened.
    fn apply(&self, value: u64) -> Option<u64> {
        match self.action {
            Action::Read(seen) => (seen == value).then_some(value),
            Action::Swap(from, to) => (from == value).then_some(to),
            Action::Refused(wanted, seen) => (seen == value && wanted != value).then_some(value),
        }
    }
}

/// Finds an order, or none. The register begins absent.
pub fn check(operations: &[Operation]) -> bool {
    let mut operations = operations.to_vec();
    operations.sort_by_key(|one| one.called);
    let mut done = vec![false; operations.len()];
    let mut seen: HashSet<(Vec<bool>, u64)> = HashSet::new();
    // Each choice with the value before it, to be undone.
    let mut stack: Vec<(usize, u64)> = Vec::new();
    let (mut value, mut start) = (0, 0);
    loop {
        // Everything that must have returned has been placed.
        if operations.iter().zip(&done).all(|(one, done)| *done || one.returned == NEVER) {
            return true;
        }
        let earliest = operations
            .iter()
            .zip(&done)
            .filter(|(_, done)| !**done)
            .map(|(one, _)| one.returned)
            .min()
            .unwrap_or(NEVER);
        let choice = (start..operations.len()).find_map(|at| {
            let one = &operations[at];
            if done[at] || one.called > earliest {
                return None;
            }
            let after = one.apply(value)?;
            done[at] = true;
            let new = seen.insert((done.clone(), after));
            if !new {
                done[at] = false;
            }
            new.then_some((at, after))
        });
        match (choice, stack.pop()) {
            (Some((at, after)), last) => {
                stack.extend(last);
                stack.push((at, value));
                (value, start) = (after, 0);
            }
            (None, Some((at, before))) => {
                done[at] = false;
                (value, start) = (before, at + 1);
            }
            (None, None) => return false,
        }
    }
}

#[test]
fn stale_reads_and_lost_writes_are_found() {
    use Action::{Read, Refused, Swap};
    let check_all = |expect: bool, operations: &[(u64, u64, Action)]| {
        let operations: Vec<_> = operations
            .iter()
            .map(|(called, returned, action)| Operation {
                called: *called,
                returned: *returned,
                action: *action,
            })
            .collect();
        assert_eq!(check(&operations), expect, "{operations:?}");
    };
    check_all(true, &[(1, 2, Read(0)), (3, 4, Swap(0, 1)), (5, 6, Read(1))]);
    // A read during a write may see either.
    check_all(true, &[(1, 9, Swap(0, 1)), (2, 3, Read(0)), (4, 5, Read(1))]);
    check_all(false, &[(1, 9, Swap(0, 1)), (2, 3, Read(1)), (4, 5, Read(0))]);
    check_all(false, &[(1, 2, Swap(0, 1)), (3, 4, Read(0))]);
    check_all(false, &[(1, 2, Swap(0, 1)), (3, 4, Swap(0, 2))]);
    check_all(true, &[(1, 2, Swap(0, 1)), (3, 4, Refused(0, 1)), (5, 6, Read(1))]);
    // What never returned may have happened, at any time, or not.
    check_all(true, &[(1, NEVER, Swap(0, 1)), (3, 4, Read(0)), (5, 6, Read(1))]);
    check_all(true, &[(1, NEVER, Swap(0, 1)), (3, 4, Read(0)), (5, 6, Swap(0, 2))]);
    check_all(false, &[(3, NEVER, Swap(0, 1)), (1, 2, Read(1))]);
}
