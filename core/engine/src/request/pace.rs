//! How many tokens are worth guessing: as many as have a fair chance to count, by what came of the
//! guesses before.

/// A guess is worth its row where it counts at least so often.
const CHANCE_LEAST: f64 = 0.1;
/// How much of what was seen before weighs beside a step.
const MEMORY: f64 = 0.9;

/// How often a guess was right where all before it were.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    right: f64,
    tried: f64,
}

impl Default for Pace {
    /// Hopeful, and soon persuaded otherwise.
    fn default() -> Self {
        Pace { right: 1.6, tried: 2.0 }
    }
}

impl Pace {
    /// So many guesses of a step were right, and then perhaps one was wrong.
    pub(super) fn learn(&mut self, right: usize, missed: bool) {
        self.right = self.right * MEMORY + right as f64;
        self.tried = self.tried * MEMORY + right as f64 + f64::from(u8::from(missed));
    }

    /// How many to guess, at least one and at most `most`: the n-th counts with the n-th power of
    /// the chance.
    pub(super) fn count(&self, most: usize) -> usize {
        let chance = (self.right / self.tried.max(f64::MIN_POSITIVE)).clamp(0.0, 1.0);
        let worth = (2..=most as i32).take_while(|n| chance.powi(*n) >= CHANCE_LEAST);
        worth.last().map_or(most.min(1), |n| n as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_are_guessed_where_they_come_true_and_one_where_they_do_not() {
        let mut pace = Pace::default();
        assert!(pace.count(16) > 4, "hopeful at first");
        (0..40).for_each(|_| pace.learn(0, true));
        assert_eq!((pace.count(16), pace.count(0)), (1, 0));
        (0..40).for_each(|_| pace.learn(7, false));
        assert_eq!(pace.count(16), 16);
        // Every second guess is right: the third counts once in eight times.
        let mut pace = Pace::default();
        (0..40).for_each(|_| pace.learn(1, true));
        assert_eq!(pace.count(16), 3);
    }
}
