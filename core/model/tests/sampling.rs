//! Choosing tokens: transformers' order, ties, broken numbers, and sequences that never move.
#![allow(clippy::unwrap_used)] // helpers of tests are tests

use kvern_model::{Sampler, Sampling};
use proptest::prelude::*;

fn sampler(change: impl FnOnce(&mut Sampling)) -> Sampler {
    let mut sampling = Sampling { temperature: 1.0, seed: 1, ..Sampling::greedy() };
    change(&mut sampling);
    Sampler::new(sampling).unwrap()
}

/// Which tokens come up in many draws, ascending.
fn support(mut sampler: Sampler, logits: &[f32], history: &[u32]) -> Vec<u32> {
    let mut all: Vec<u32> = (0..3000).map(|_| sampler.sample(logits, history)).collect();
    all.sort_unstable();
    all.dedup();
    all
}

#[test]
fn greedy_takes_the_best_and_the_lower_of_equals() {
    let mut greedy = Sampler::new(Sampling::greedy()).unwrap();
    assert_eq!(greedy.sample(&[0.0, 3.0, 2.0, 3.0], &[]), 1);
    assert_eq!(greedy.sample(&[f32::NAN, -1.0, f32::NAN, -1.0], &[]), 1);
    assert_eq!(greedy.sample(&[1.0, f32::INFINITY], &[]), 1);
}

#[test]
fn broken_logits_still_give_a_token() {
    for temperature in [0.0, 0.7] {
        let mut s =
            sampler(|s| (s.temperature, s.top_k, s.top_p, s.min_p) = (temperature, 3, 0.5, 0.1));
        assert_eq!(s.sample(&[], &[1, 2]), 0);
        assert_eq!(s.sample(&[f32::NAN; 4], &[]), 0);
        assert_eq!(s.sample(&[f32::NEG_INFINITY; 4], &[]), 0);
        assert_eq!(s.sample(&[f32::NAN, f32::INFINITY, f32::INFINITY, 2.0], &[]), 1);
        assert_eq!(s.sample(&[f32::NEG_INFINITY, f32::NAN, -5.0], &[]), 2);
    }
    let mut cold = sampler(|s| s.temperature = 1e-40);
    assert_eq!(cold.sample(&[1.0, 3.0, 2.0], &[]), 1);
}

#[test]
fn top_k_keeps_the_best_and_those_equal_to_the_last() {
    let logits = [1.0, 3.0, 2.0, 2.0, 0.5];
    assert_eq!(support(sampler(|s| s.top_k = 1), &logits, &[]), [1]);
    assert_eq!(support(sampler(|s| s.top_k = 2), &logits, &[]), [1, 2, 3]);
    assert_eq!(support(sampler(|s| s.top_k = 99), &logits, &[]), [0, 1, 2, 3, 4]);
}

#[test]
fn top_p_keeps_the_smallest_set_of_that_probability() {
    let logits: Vec<f32> = [0.5f32, 0.3, 0.15, 0.05].iter().map(|p| p.ln()).collect();
    assert_eq!(support(sampler(|s| s.top_p = 0.4), &logits, &[]), [0]);
    assert_eq!(support(sampler(|s| s.top_p = 0.6), &logits, &[]), [0, 1]);
    assert_eq!(support(sampler(|s| s.top_p = 0.94), &logits, &[]), [0, 1, 2]);
    assert_eq!(support(sampler(|s| s.top_p = 1e-9), &logits, &[]), [0]);
    // After top-k: of 0.5 and 0.3 alone, the first already has 0.6.
    assert_eq!(support(sampler(|s| (s.top_k, s.top_p) = (2, 0.6)), &logits, &[]), [0]);
}

#[test]
fn min_p_drops_by_the_share_of_the_best() {
    let logits: Vec<f32> = [0.5f32, 0.3, 0.15, 0.05].iter().map(|p| p.ln()).collect();
    assert_eq!(support(sampler(|s| s.min_p = 0.5), &logits, &[]), [0, 1]);
    assert_eq!(support(sampler(|s| s.min_p = 0.2), &logits, &[]), [0, 1, 2]);
    assert_eq!(support(sampler(|s| s.min_p = 1.0), &logits, &[]), [0]);
}

#[test]
fn temperature_comes_before_the_cuts() {
    let logits: Vec<f32> = [0.5f32, 0.3, 0.2].iter().map(|p| p.ln()).collect();
    // At temperature 0.25 the first has 0.5^4 / (0.5^4 + 0.3^4 + 0.2^4) = 0.866.
    assert_eq!(support(sampler(|s| (s.temperature, s.top_p) = (0.25, 0.75)), &logits, &[]), [0]);
    assert_eq!(support(sampler(|s| s.top_p = 0.75), &logits, &[]), [0, 1]);
}

#[test]
fn a_penalty_divides_what_is_positive_and_multiplies_what_is_not_once() {
    let mut s = Sampler::new(Sampling { repetition_penalty: 2.0, ..Sampling::greedy() }).unwrap();
    assert_eq!(s.sample(&[4.0, 3.0], &[0, 0, 0]), 1); // 2 against 3
    assert_eq!(s.sample(&[4.0, 1.5], &[0, 0, 0]), 0); // not 0.5 against 1.5
    assert_eq!(s.sample(&[-1.0, -1.5], &[0]), 1); // -2 against -1.5
    assert_eq!(s.sample(&[4.0, 3.0], &[7, u32::MAX]), 0);
}

#[test]
fn probabilities_come_out_as_asked() {
    let logits: Vec<f32> = [0.5f32, 0.3, 0.2].iter().map(|p| p.ln()).collect();
    let mut s = sampler(|_| {});
    let mut counts = [0i32; 3];
    for _ in 0..100_000 {
        counts[s.sample(&logits, &[]) as usize] += 1;
    }
    for (count, expected) in counts.iter().zip([50_000, 30_000, 20_000]) {
        assert!((count - expected).abs() < 700, "{counts:?}"); // more than four deviations
    }
}

#[test]
fn a_seed_gives_its_tokens_forever() {
    let logits: Vec<f32> = (0..100).map(|i| ((i * 37) % 100) as f32 / 20.0).collect();
    let mut s = sampler(|s| (s.temperature, s.top_k, s.top_p, s.seed) = (0.8, 40, 0.95, 42));
    let drawn: Vec<u32> = (0..12).map(|_| s.sample(&logits, &[])).collect();
    assert_eq!(drawn, GOLDEN);
}
const GOLDEN: [u32; 12] = [40, 62, 64, 32, 13, 24, 54, 51, 8, 29, 97, 94];

#[test]
fn values_out_of_range_are_refused_by_name() {
    let check = |name: &str, sampling: Sampling| {
        assert!(Sampler::new(sampling).unwrap_err().message.starts_with(name), "{name}");
    };
    let base = Sampling::greedy;
    check("temperature is -1", Sampling { temperature: -1.0, ..base() });
    check("temperature is NaN", Sampling { temperature: f32::NAN, ..base() });
    check("top_p is 0", Sampling { top_p: 0.0, ..base() });
    check("min_p is 2", Sampling { min_p: 2.0, ..base() });
    check("repetition_penalty is 0", Sampling { repetition_penalty: 0.0, ..base() });
}

proptest! {
    #[test]
    fn any_logits_give_a_token_of_theirs(
        logits in prop::collection::vec(any::<f32>(), 0..40),
        history in prop::collection::vec(any::<u32>(), 0..8),
        temperature in prop::sample::select(vec![0.0f32, 1e-38, 0.5, 1.0, 3e38]),
        top_k in 0u32..50, top_p in 0.0001f32..=1.0, min_p in 0.0f32..=1.0,
        repetition_penalty in prop::sample::select(vec![1e-30f32, 0.5, 1.0, 1.3, 1e30]),
        seed in any::<u64>(),
    ) {
        let sampling = Sampling { repetition_penalty, temperature, top_k, top_p, min_p, seed };
        let token = Sampler::new(sampling).unwrap().sample(&logits, &history) as usize;
        prop_assert!(token < logits.len().max(1));
    }
}
