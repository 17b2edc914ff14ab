//! Even spacing: so many of so many, none nearer to its neighbours than need be.

/// `count` of `of` indices, ascending and all different: the middles of `count` equal parts, the
/// i-th at floor((2i + 1) of / (2 count)). More than there are is all of them.
pub(crate) fn spread(count: u32, of: u32) -> impl Iterator<Item = u32> {
    let (count, of) = (u128::from(count.min(of)), u128::from(of));
    (0..count).map(move |i| ((2 * i + 1) * of / (2 * count)) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_chosen_is_as_even_as_whole_numbers_allow() {
        assert_eq!(spread(2, 8).collect::<Vec<_>>(), [2, 6]);
        assert_eq!(spread(3, 8).collect::<Vec<_>>(), [1, 4, 6]);
        assert_eq!(spread(1, 24).collect::<Vec<_>>(), [12]);
        assert_eq!(spread(9, 4).collect::<Vec<_>>(), [0, 1, 2, 3]);
        assert_eq!(spread(0, 4).count() + spread(3, 0).count(), 0);
        for of in 1..80u32 {
            for count in 1..=of {
                let chosen: Vec<u32> = spread(count, of).collect();
                assert_eq!(chosen.len(), count as usize);
                assert!(chosen.iter().all(|index| *index < of), "{count} of {of}");
                // Round the ring, too: after the last layer comes the next sweep's first.
                let next = chosen.iter().skip(1).copied().chain([chosen[0] + of]);
                for (one, other) in chosen.iter().zip(next) {
                    let gap = other - one;
                    assert!((of / count..=of.div_ceil(count)).contains(&gap), "{count} of {of}");
                }
            }
        }
    }
}
