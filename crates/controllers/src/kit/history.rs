//! Hashes of templates, by which revisions are told apart.

use serde::Serialize;

/// Letters and digits that cannot form words, as the reference uses in generated names.
const SAFE: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// A short hash of a value, changed by the number of collisions so far.
pub(crate) fn hash(value: &impl Serialize, collisions: Option<i32>) -> String {
    let bytes = serde_json::to_vec(value).unwrap_or_default();
    let mut sum: u32 = 2_166_136_261;
    let mut eat = |byte: u8| {
        sum = (sum ^ u32::from(byte)).wrapping_mul(16_777_619);
    };
    bytes.into_iter().for_each(&mut eat);
    if let Some(collisions) = collisions {
        collisions.to_le_bytes().into_iter().for_each(&mut eat);
    }
    sum.to_string().bytes().map(|digit| char::from(SAFE[usize::from(digit) % SAFE.len()])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn collisions_change_the_hash() {
        let first = hash(&"template", None);
        assert_eq!(first, hash(&"template", None));
        assert_ne!(first, hash(&"template", Some(1)));
        assert_ne!(first, hash(&"other", None));
        assert!(first.bytes().all(|byte| SAFE.contains(&byte)));
    }
}
