//! Order statistics of a few samples, as the report defines them.

use serde::{Deserialize, Serialize};

/// Five numbers that stand for samples; the unit is the samples' own.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Sum {
    /// Smallest sample.
    pub min: f64,
    /// Middle sample, or the mean of the two middle ones.
    pub median: f64,
    /// The sorted sample at index round((n - 1) x 0.95), half to even.
    pub p95: f64,
    /// Largest sample.
    pub max: f64,
    /// Arithmetic mean.
    pub mean: f64,
}

impl Sum {
    /// Summarises samples in any order; `None` where there are none, or one of them is not a
    /// number.
    pub fn of(samples: &[f64]) -> Option<Sum> {
        if samples.is_empty() || samples.iter().any(|x| !x.is_finite()) {
            return None;
        }
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let mean = sorted.iter().sum::<f64>() / sorted.len() as f64;
        Some(Sum {
            min: sorted[0],
            median: median(&sorted),
            p95: p95(&sorted),
            max: sorted[sorted.len() - 1],
            mean,
        })
    }
}

/// The middle of ascending samples, or the mean of the two middle ones; 0 of none.
pub fn median(sorted: &[f64]) -> f64 {
    match (sorted.len(), sorted.len() / 2) {
        (0, _) => 0.0,
        (n, middle) if n % 2 == 1 => sorted[middle],
        (_, middle) => (sorted[middle - 1] + sorted[middle]) / 2.0,
    }
}

/// The ascending sample at index round((n - 1) x 0.95), half to even; 0 of none.
pub fn p95(sorted: &[f64]) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    sorted[((last as f64 * 0.95).round_ties_even() as usize).min(last)]
}

/// A lane's timings, milliseconds.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Stats {
    /// Samples measured.
    pub iterations: u32,
    /// Samples thrown away before them.
    pub warmup_iterations: u32,
    /// Shortest, milliseconds.
    pub min_ms: f64,
    /// Middle, milliseconds.
    pub median_ms: f64,
    /// See [`p95`], milliseconds.
    pub p95_ms: f64,
    /// Longest, milliseconds.
    pub max_ms: f64,
    /// Mean, milliseconds.
    pub mean_ms: f64,
    /// Every sample, in the order in which it was taken, milliseconds.
    pub samples_ms: Vec<f64>,
}

impl Stats {
    /// Statistics of samples in milliseconds; `None` where there are none, or one is not a number.
    pub fn of(samples_ms: &[f64], warmup_iterations: u32) -> Option<Stats> {
        let sum = Sum::of(samples_ms)?;
        Some(Stats {
            iterations: samples_ms.len() as u32,
            warmup_iterations,
            min_ms: sum.min,
            median_ms: sum.median,
            p95_ms: sum.p95,
            max_ms: sum.max,
            mean_ms: sum.mean,
            samples_ms: samples_ms.to_vec(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p95_rounds_its_index_half_to_even() {
        // 11 samples: 10 x 0.95 = 9.5 rounds to 10; 31: 30 x 0.95 = 28.5 rounds to 28.
        let ascending = |n: u32| (0..n).map(f64::from).collect::<Vec<_>>();
        assert_eq!(p95(&ascending(11)), 10.0);
        assert_eq!(p95(&ascending(31)), 28.0);
        assert_eq!(p95(&ascending(1)), 0.0);
    }

    #[test]
    fn samples_are_sorted_before_they_are_judged() {
        let sum = Sum::of(&[3.0, 1.0, 2.0, 10.0]).unwrap();
        assert_eq!((sum.min, sum.median, sum.p95, sum.max, sum.mean), (1.0, 2.5, 10.0, 10.0, 4.0));
        assert_eq!(Stats::of(&[3.0, 1.0], 1).unwrap().samples_ms, [3.0, 1.0]);
    }

    #[test]
    fn no_samples_and_no_numbers_give_no_summary() {
        assert_eq!(Sum::of(&[]), None);
        assert_eq!(Sum::of(&[1.0, f64::NAN]), None);
        assert_eq!(Stats::of(&[], 0), None);
    }
}
