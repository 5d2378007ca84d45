//! Ranges of sizes and costs, with arithmetic that ends at the largest number.

use super::TRAVERSAL;

/// From the least to the most, of a size or of a cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub min: u64,
    pub max: u64,
}

impl Range {
    pub(super) const ZERO: Self = Self::fixed(0);
    pub(super) const ONE: Self = Self::fixed(1);
    pub(super) const UNKNOWN: Self = Self { min: 0, max: u64::MAX };
    /// What any other range is a part of when they are united.
    pub(super) const EMPTY: Self = Self { min: u64::MAX, max: 0 };

    pub(super) const fn new(min: u64, max: u64) -> Self {
        Self { min, max }
    }

    pub(super) const fn fixed(size: u64) -> Self {
        Self { min: size, max: size }
    }

    pub(super) fn plus(self, other: Self) -> Self {
        Self { min: self.min.saturating_add(other.min), max: self.max.saturating_add(other.max) }
    }

    pub(super) fn times(self, other: Self) -> Self {
        Self { min: self.min.saturating_mul(other.min), max: self.max.saturating_mul(other.max) }
    }

    pub(super) fn by(self, factor: f64) -> Self {
        // The conversion of a number that is too large gives the largest.
        let one = |size: u64| (size as f64 * factor).ceil() as u64;
        Self { min: one(self.min), max: one(self.max) }
    }

    /// The cost of going once through so many characters.
    pub(super) fn traversed(self) -> Self {
        self.by(TRAVERSAL)
    }

    pub(super) fn union(self, other: Self) -> Self {
        Self { min: self.min.min(other.min), max: self.max.max(other.max) }
    }
}
