//! A checksum of a set of keys and their revisions that changes in constant time with each member, so that a cache can hold
//! it up to date and compare it with the store's.

/// The checksum of a set. It finds faults, not forgeries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Digest(u64);

impl Digest {
    /// A key that has come, at the revision of its last write.
    pub fn add(&mut self, key: &[u8], mod_revision: u64) {
        self.0 = self.0.wrapping_add(member(key, mod_revision));
    }

    /// A key that has gone, at the revision that it was added with.
    pub fn remove(&mut self, key: &[u8], mod_revision: u64) {
        self.0 = self.0.wrapping_sub(member(key, mod_revision));
    }
}

/// FNV-1a over the key, then mixed with the revision (the finalizer of SplitMix64).
fn member(key: &[u8], mod_revision: u64) -> u64 {
    let fold = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    let mut hash = key.iter().fold(0xcbf2_9ce4_8422_2325, fold);
    hash ^= mod_revision.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

#[test]
fn the_order_does_not_matter_and_every_member_does() {
    let of = |members: &[(&str, u64)]| {
        let mut digest = Digest::default();
        members.iter().for_each(|(key, at)| digest.add(key.as_bytes(), *at));
        digest
    };
    let base = of(&[("a", 1), ("b", 2)]);
    assert_eq!(base, of(&[("b", 2), ("a", 1)]));
    for other in [&[("a", 1)][..], &[("a", 2), ("b", 1)], &[("a", 1), ("b", 3)], &[("a", 1), ("c", 2)]] {
        assert_ne!(base, of(other));
    }
    let mut changed = base;
    changed.remove(b"a", 1);
    assert_eq!(changed, of(&[("b", 2)]));
}
