//! Shuffle sharding: a flow's hash deals it a hand of queues, so that two flows share all their queues only by rare chance
//! (upstream: `util/shufflesharding`).

/// Most cards of a hand: a deck of two needs a bit for each, and a larger deck more.
const LARGEST_HAND: usize = 60;

/// Deals `hand` different numbers below `deck`, the same ones for the same hash.
pub fn deal(mut hash: u64, deck: usize, hand: usize) -> impl Iterator<Item = usize> {
    let hand = hand.min(LARGEST_HAND).min(deck);
    let mut drawn = [0usize; LARGEST_HAND];
    for (i, card) in drawn.iter_mut().enumerate().take(hand) {
        let left = (deck - i) as u64;
        *card = (hash % left) as usize;
        hash /= left;
    }
    // Each number counts among the cards that are left; it is turned into one of the whole deck.
    let mut cards = drawn;
    for (i, card) in cards.iter_mut().enumerate().take(hand) {
        for earlier in drawn[..i].iter().rev() {
            if *card >= *earlier {
                *card += 1;
            }
        }
    }
    cards.into_iter().take(hand)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_hand_has_no_card_twice() {
        for (deck, hand) in [(1, 1), (8, 3), (64, 6), (128, 6), (6, 6)] {
            for seed in 0..500u64 {
                let hash = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
                let cards: Vec<usize> = deal(hash, deck, hand).collect();
                let distinct: BTreeSet<usize> = cards.iter().copied().collect();
                assert_eq!(distinct.len(), hand, "{cards:?}");
                assert!(cards.iter().all(|card| *card < deck));
                assert_eq!(cards, deal(hash, deck, hand).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn every_hand_is_dealt_evenly() {
        // All hands of two out of four, in order: twelve.
        let mut counts = std::collections::BTreeMap::<Vec<usize>, usize>::new();
        for hash in 0..1200 {
            *counts.entry(deal(hash, 4, 2).collect()).or_default() += 1;
        }
        assert_eq!(counts.len(), 12);
        assert!(counts.values().all(|count| *count == 100));
    }
}
