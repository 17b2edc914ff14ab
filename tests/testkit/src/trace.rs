//! Random traces: a list of steps from a seed, and the shortest list that still fails.

use crate::case::told;
use crate::{Check, Random};
use std::fmt::Debug;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Steps that a seed chose. Any part of a trace must be a trace too: a step that names what is not
/// there does nothing.
pub type Trace<S> = Vec<S>;

/// Runs a trace of each seed. The first that fails is shrunk: steps are left out as long as it
/// fails, and what is left is in the answer, with the seed.
pub fn for_all<S: Clone + Debug>(
    seeds: impl IntoIterator<Item = u64>,
    mut choose: impl FnMut(&mut Random) -> Trace<S>,
    mut check: impl FnMut(&[S]) -> Check,
) -> Check {
    // A panic fails a trace like any other fault, so that it is shrunk too.
    let mut check = |trace: &[S]| {
        let checked = catch_unwind(AssertUnwindSafe(|| check(trace)));
        checked.unwrap_or_else(|payload| Err(told(&*payload)))
    };
    for seed in seeds {
        let trace = choose(&mut Random::new(seed));
        let Err(first) = check(&trace) else { continue };
        let (steps, line) = shrink(trace.clone(), first, &mut check);
        return Err(format!(
            "{line} (seed {seed}, {} of {} steps: {steps:?})",
            steps.len(),
            trace.len()
        ));
    }
    Ok(())
}

/// Checks that a failing trace may cost while it is shrunk.
const TRIES: u32 = 400;

/// Leaves out halves, quarters and so on down to single steps, as long as something fails (delta
/// debugging, Zeller and Hildebrandt, 2002).
fn shrink<S: Clone>(
    mut trace: Trace<S>,
    mut line: String,
    check: &mut impl FnMut(&[S]) -> Check,
) -> (Trace<S>, String) {
    let (mut part, mut tries) = (trace.len().div_ceil(2).max(1), 0);
    loop {
        let (mut at, mut shorter) = (0, false);
        while at < trace.len() && tries < TRIES {
            let mut without = trace.clone();
            without.drain(at..(at + part).min(trace.len()));
            tries += 1;
            match check(&without) {
                Err(again) => (trace, line, shorter) = (without, again, true),
                Ok(()) => at += part,
            }
        }
        if tries >= TRIES || (part == 1 && !shorter) {
            return (trace, line);
        }
        part = (part / 2).max(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(random: &mut Random) -> Trace<u64> {
        (0..200).map(|_| random.below(100)).collect()
    }

    #[test]
    fn a_failure_is_shrunk_to_the_steps_that_it_needs() {
        let needs_both = |trace: &[u64]| {
            let seven = trace.iter().position(|n| *n == 7);
            let then = seven.is_some_and(|at| trace[at..].contains(&13));
            if then { Err("a 13 after a 7".to_owned()) } else { Ok(()) }
        };
        let line = for_all(0..50, numbers, needs_both).expect_err("some seed has both");
        assert!(line.contains("2 of 200 steps: [7, 13]"), "{line}");
    }

    #[test]
    fn a_panic_is_shrunk_like_any_other_failure() {
        let panics = |trace: &[u64]| {
            assert!(!trace.contains(&7), "a seven");
            Ok(())
        };
        let line = for_all(0..9, numbers, panics).expect_err("some seed has a seven");
        assert!(line.starts_with("a panic: a seven (seed "), "{line}");
        assert!(line.contains("1 of 200 steps: [7]"), "{line}");
    }

    #[test]
    fn what_always_holds_is_tried_with_every_seed() {
        let mut tried = 0;
        let check = |_: &[u64]| {
            tried += 1;
            Ok(())
        };
        assert_eq!(for_all(0..9, numbers, check), Ok(()));
        assert_eq!(tried, 9);
    }
}
