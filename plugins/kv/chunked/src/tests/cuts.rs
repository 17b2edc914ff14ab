//! Power cuts in random traces, by the thousand.

use super::kit::cut::{Case, Tally};
use super::kit::trace::steps;
use super::open;
use kvern_storage::double::Random;

/// Cuts in the middle of a call, unless `KVERN_POWER_CUTS` says how many.
const CUTS: usize = 1000;

#[test]
fn a_power_cut_anywhere_loses_nothing_flushed_and_finds_nothing_wrong() {
    let wanted = std::env::var("KVERN_POWER_CUTS");
    let wanted = wanted.map_or(CUTS, |text| text.parse().expect("KVERN_POWER_CUTS is a number"));
    let mut tally = Tally::default();
    // Every second cut is one of a root that was recovered from the cut before it.
    for seed in 0.. {
        if tally.in_calls >= wanted {
            break;
        }
        let mut random = Random::new(seed);
        let steps = steps(random.bits(), 60);
        let (event, second) = (random.below(120), random.below(16));
        Case { open, steps: &steps, event, second, seed: random.bits() }.run(&mut tally);
    }
    println!("{tally:?}");
    tally.assert_nothing_wrong();
    assert!(tally.right_tokens > 500 * tally.cuts, "there is much to lose: {tally:?}");
}
