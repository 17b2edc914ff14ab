//! Which parts of staging memory are taken. First fit, with one promise: what is begun of a unit
//! can be ended once everything before it is gone.

use std::collections::BTreeMap;

/// Parts of `bytes` bytes that are taken, start to end.
#[derive(Clone, Debug)]
pub(super) struct Ranges {
    bytes: u64,
    taken: BTreeMap<u64, u64>,
}

impl Ranges {
    pub(super) fn new(bytes: u64) -> Self {
        Ranges { bytes, taken: BTreeMap::new() }
    }

    /// Where `this` many bytes can go, so that a unit's other extents, `rest` in order, find room
    /// as well when of all that is taken only its own are left. `own` are starts.
    pub(super) fn place(&self, own: &[u64], this: u64, rest: &[u64]) -> Option<u64> {
        let own = own.iter().filter_map(|start| Some((*start, *self.taken.get(start)?)));
        let mut alone = Ranges { bytes: self.bytes, taken: own.collect() };
        let gaps = self.gaps();
        let fit = gaps.iter().filter(|(start, end)| end - start >= this);
        let mut places = fit.flat_map(|(start, end)| [*start, end - this]);
        places.find(|at| {
            alone.take(*at, this);
            let ends = alone.clone().fill(rest);
            alone.free(*at);
            ends
        })
    }

    pub(super) fn take(&mut self, at: u64, bytes: u64) {
        self.taken.insert(at, at + bytes);
    }

    pub(super) fn free(&mut self, at: u64) {
        self.taken.remove(&at);
    }

    /// Takes these, each where it fits first; whether all did.
    fn fill(mut self, sizes: &[u64]) -> bool {
        sizes.iter().all(|size| {
            let gap = self.gaps().into_iter().find(|(start, end)| end - start >= *size);
            gap.is_some_and(|(start, _)| {
                self.take(start, *size);
                true
            })
        })
    }

    fn gaps(&self) -> Vec<(u64, u64)> {
        let (mut gaps, mut at) = (Vec::new(), 0);
        for (start, end) in &self.taken {
            if *start > at {
                gaps.push((at, *start));
            }
            at = *end;
        }
        if self.bytes > at {
            gaps.push((at, self.bytes));
        }
        gaps
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvern_storage::double::Random;

    #[test]
    fn a_unit_that_was_begun_can_always_be_ended_when_what_came_before_is_gone() {
        let mut random = Random::new(11);
        let (mut begun, mut refused) = (0, 0);
        for _ in 0..2000 {
            let units: Vec<Vec<u64>> = (0..4)
                .map(|_| (0..1 + random.below(4)).map(|_| 1 + random.below(50)).collect())
                .collect();
            let largest = units.iter().map(|u| u.iter().sum::<u64>()).max().unwrap();
            let mut ranges = Ranges::new(largest + random.below(largest));
            // Units come and go in order; each may be begun before the last one is gone.
            let mut before: Vec<(u64, u64)> = Vec::new();
            for unit in &units {
                let mut own: Vec<u64> = Vec::new();
                for (index, this) in unit.iter().enumerate() {
                    let mut at = ranges.place(&own, *this, &unit[index + 1..]);
                    begun += usize::from(at.is_some() && !before.is_empty());
                    if at.is_none() {
                        refused += 1;
                        before.drain(..).for_each(|(start, _)| ranges.free(start));
                        at = ranges.place(&own, *this, &unit[index + 1..]);
                    }
                    let at = at.expect("there is room once the others are gone");
                    let overlaps = ranges.taken.iter().any(|(s, e)| at < *e && *s < at + this);
                    assert!(!overlaps && at + this <= ranges.bytes);
                    ranges.take(at, *this);
                    own.push(at);
                }
                before.drain(..).for_each(|(start, _)| ranges.free(start));
                before = own.iter().zip(unit).map(|(s, n)| (*s, *n)).collect();
            }
        }
        assert!(begun > 1000 && refused > 1000, "{begun} begun, {refused} refused");
    }
}
