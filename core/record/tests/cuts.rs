//! The page table beside a naive model, and the power cut at every event of traces and of the roots
//! that were recovered.
#![allow(clippy::unwrap_used)]

mod kit;
mod shelf;

use kit::cut::{Case, Tally};
use kit::trace::{KINDS, Step, Trace, steps};
use kvern_storage::double::MemoryStorage;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

fn any_steps() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec((0..KINDS as u8, any::<u64>()), 1..80)
}

/// The same cases in every run: what fails once fails again, and nothing fails of chance alone.
fn cases(cases: u32) -> ProptestConfig {
    let rng_seed = RngSeed::Fixed(0x7061_6765);
    ProptestConfig { cases, failure_persistence: None, rng_seed, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases(300))]

    #[test]
    fn a_table_answers_as_a_naive_model_does(steps in any_steps()) {
        let mut trace = Trace::start(shelf::open, MemoryStorage::new()).unwrap();
        trace.run(&steps).unwrap();
    }

    #[test]
    fn a_power_cut_in_any_trace_loses_nothing_flushed_and_finds_nothing_wrong(
        steps in any_steps(),
        event in 0u64..90,
        second in 0u64..16,
        seed: u64,
    ) {
        let mut tally = Tally::default();
        Case { open: shelf::open, steps: &steps, event, second, seed }.run(&mut tally);
        tally.assert_nothing_wrong();
    }
}

#[test]
fn a_power_cut_at_every_event_loses_nothing_flushed_and_finds_nothing_wrong() {
    let mut tally = Tally::default();
    for seed in 0..20 {
        let steps = steps(seed, 50);
        for event in 0.. {
            let case = Case { open: shelf::open, steps: &steps, event, second: 2, seed };
            if !case.run(&mut tally).0 {
                break;
            }
        }
    }
    assert!(tally.in_calls >= 1000 && tally.right_tokens > 100_000, "{tally:?}");
    tally.assert_nothing_wrong();
}

#[test]
fn a_recovered_root_is_cut_at_every_event_of_its_second_life() {
    let mut tally = Tally::default();
    for seed in 20..60 {
        let steps = steps(seed, 40);
        for second in 0.. {
            let event = 5 + seed;
            let case = Case { open: shelf::open, steps: &steps, event, second, seed };
            if !case.run(&mut tally).1 {
                break;
            }
        }
    }
    assert!(tally.in_calls >= 500 && tally.right_tokens > 100_000, "{tally:?}");
    tally.assert_nothing_wrong();
}
