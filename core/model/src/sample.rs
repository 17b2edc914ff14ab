//! From logits to the next token, in transformers' order of operations, with numbers that never
//! move.

use crate::error::invalid;
use crate::generation::GenerationConfig;
use crate::rng::Rng;
use kvern_contract::Result;

/// How a token is chosen. Operations apply in the order of the fields.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Divides positive logits of tokens in the history, multiplies negative ones; 1 for nothing.
    /// Greedy choices too.
    pub repetition_penalty: f32,
    /// Divides logits; 0 chooses the best token, and nothing below applies.
    pub temperature: f32,
    /// Keeps that many of the best and those equal to the last of them; 0 for all.
    pub top_k: u32,
    /// Keeps the smallest set of the best that has this much probability; 1 for all.
    pub top_p: f32,
    /// Drops what is less probable than this share of the best; 0 for nothing.
    pub min_p: f32,
    /// Chooses the sequence of random numbers.
    pub seed: u64,
}

impl Sampling {
    /// The best token each time.
    pub fn greedy() -> Sampling {
        Sampling {
            repetition_penalty: 1.0,
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            seed: 0,
        }
    }

    /// What a model's authors ask for.
    pub fn of(generation: &GenerationConfig, seed: u64) -> Sampling {
        let repetition_penalty = generation.repetition_penalty;
        if !generation.do_sample {
            return Sampling { repetition_penalty, seed, ..Sampling::greedy() };
        }
        Sampling {
            repetition_penalty,
            temperature: generation.temperature,
            top_k: generation.top_k,
            top_p: generation.top_p,
            min_p: generation.min_p,
            seed,
        }
    }

    fn check(&self) -> Result<()> {
        let wrong = |name: &str, found: f32, expected: &str| {
            Err(invalid("model/sample", format!("{name} is {found}, expected {expected}")))
        };
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return wrong("temperature", self.temperature, "a number of at least 0");
        }
        if !(self.repetition_penalty > 0.0 && self.repetition_penalty.is_finite()) {
            return wrong("repetition_penalty", self.repetition_penalty, "a positive number");
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return wrong("top_p", self.top_p, "a number above 0, at most 1");
        }
        if !(0.0..=1.0).contains(&self.min_p) {
            return wrong("min_p", self.min_p, "a number from 0 to 1");
        }
        Ok(())
    }
}

/// Chooses tokens by one [`Sampling`]; the same seed and logits give the same tokens, always.
#[derive(Clone, Debug)]
pub struct Sampler {
    sampling: Sampling,
    rng: Rng,
    seen: Vec<u64>,
    kept: Vec<(f32, u32)>,
    weights: Vec<f64>,
}

impl Sampler {
    /// A sampler at the start of its random sequence.
    ///
    /// # Errors
    /// `Invalid`, naming the value that is out of range.
    pub fn new(sampling: Sampling) -> Result<Sampler> {
        sampling.check()?;
        let rng = Rng::new(sampling.seed);
        let (seen, kept, weights) = (Vec::new(), Vec::new(), Vec::new());
        Ok(Sampler { sampling, rng, seen, kept, weights })
    }

    /// The next token from the logits of all of them, one each, in order of ids. `history` is every
    /// token so far, the prompt too; only a repetition penalty reads it. Ties go to the lower id;
    /// NaN counts as never; without any choice the answer is 0.
    pub fn sample(&mut self, logits: &[f32], history: &[u32]) -> u32 {
        let penalty = self.sampling.repetition_penalty;
        let mark = penalty != 1.0;
        if mark {
            self.mark(logits.len(), history);
        }
        let seen = &self.seen;
        let scores = logits.iter().enumerate().map(|(id, logit)| {
            let repeated = mark && seen[id / 64] >> (id % 64) & 1 == 1;
            let score = match repeated {
                true if *logit < 0.0 => logit * penalty,
                true => logit / penalty,
                false => *logit,
            };
            (if score.is_nan() { f32::NEG_INFINITY } else { score }, id as u32)
        });
        let best = scores
            .clone()
            .fold((f32::NEG_INFINITY, 0), |best, next| if next.0 > best.0 { next } else { best });
        // One infinite logit leaves no probability for the others, and no difference to compute.
        if self.sampling.temperature == 0.0 || !best.0.is_finite() {
            return best.1;
        }
        let temperature = self.sampling.temperature;
        let scaled = scores.map(|(score, id)| (score / temperature, id));
        self.kept.clear();
        self.kept.extend(scaled.filter(|(score, _)| *score > f32::NEG_INFINITY));
        if self.kept.is_empty() || !(best.0 / temperature).is_finite() {
            return best.1;
        }
        self.keep_top_k();
        self.kept.sort_unstable_by(by_score);
        self.keep_probable();
        self.draw()
    }

    fn mark(&mut self, tokens: usize, history: &[u32]) {
        self.seen.clear();
        self.seen.resize(tokens.div_ceil(64), 0);
        for id in history.iter().map(|id| *id as usize).filter(|id| *id < tokens) {
            self.seen[id / 64] |= 1 << (id % 64);
        }
    }

    fn keep_top_k(&mut self) {
        let k = self.sampling.top_k as usize;
        if k == 0 || k >= self.kept.len() {
            return;
        }
        let (_, last, _) = self.kept.select_nth_unstable_by(k - 1, by_score);
        let last = last.0;
        self.kept.retain(|(score, _)| *score >= last);
    }

    /// Applies top-p, then min-p, to what is kept, which is sorted; at least the best stays.
    fn keep_probable(&mut self) {
        self.weigh();
        let total: f64 = self.weights.iter().sum();
        if self.sampling.top_p < 1.0 {
            // As transformers: from the least probable on, drop while the sum stays within 1 -
            // top_p.
            let room = (1.0 - f64::from(self.sampling.top_p)) * total;
            let mut dropped = 0.0;
            while self.kept.len() > 1 {
                dropped += self.weights[self.kept.len() - 1];
                if dropped > room {
                    break;
                }
                self.kept.pop();
            }
        }
        if self.sampling.min_p > 0.0 {
            let least = f64::from(self.sampling.min_p) * self.weights[0];
            let keep = self.weights[..self.kept.len()].partition_point(|w| *w >= least);
            self.kept.truncate(keep.max(1));
        }
        self.weights.truncate(self.kept.len());
    }

    /// Probabilities of what is kept, up to a factor; the best has 1.
    fn weigh(&mut self) {
        let best = f64::from(self.kept[0].0);
        self.weights.clear();
        self.weights.extend(self.kept.iter().map(|(score, _)| (f64::from(*score) - best).exp()));
    }

    fn draw(&mut self) -> u32 {
        let total: f64 = self.weights.iter().sum();
        let mut left = self.rng.next_unit() * total;
        for (weight, (_, id)) in self.weights.iter().zip(&self.kept) {
            left -= weight;
            if left < 0.0 {
                return *id;
            }
        }
        // Rounding may leave a crumb: it belongs to the best.
        self.kept[0].1
    }
}

/// Best first, then the lower id. Scores are not NaN.
fn by_score(a: &(f32, u32), b: &(f32, u32)) -> std::cmp::Ordering {
    b.0.total_cmp(&a.0).then(a.1.cmp(&b.1))
}
