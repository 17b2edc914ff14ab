//! Rope of a GGUF file: a rule in its keys, or factors in a tensor whose rule is found again.

use super::config::shortest;
use super::dequant::Encoding;
use super::read::Header;
use crate::error::{damaged, unsupported};
use kvern_contract::Result;
use serde_json::{Value as Json, json};
use std::fs::File;
use std::os::unix::fs::FileExt;

const OPERATION: &str = "model/gguf";
/// The tensor that holds what each frequency is divided by.
pub(super) const FACTORS: &str = "rope_freqs.weight";
/// What every model of the llama3 rule has, and the file does not say.
const LOW: f64 = 1.0;
const HIGH: f64 = 4.0;

/// `rope_parameters` of `config.json`.
pub(super) fn convert(header: &Header, file: &File, head_dim: u32) -> Result<Json> {
    let theta = header.number("llama.rope.freq_base").unwrap_or(10000.0);
    if let Some(factors) = factors(header, file, head_dim)? {
        let Some((factor, original)) = llama3(&factors, f64::from(theta)) else {
            let message = format!(
                "tensor {FACTORS} holds factors of no known rule; take the model from its Hugging Face directory"
            );
            return Err(unsupported(OPERATION, message));
        };
        return Ok(json!({
            "rope_type": "llama3", "rope_theta": shortest(theta), "factor": shortest(factor),
            "low_freq_factor": LOW, "high_freq_factor": HIGH, "original_max_position_embeddings": original
        }));
    }
    let kind = header.text("llama.rope.scaling.type").unwrap_or("none");
    match (kind, header.number("llama.rope.scaling.factor")) {
        ("none", _) => Ok(json!({"rope_type": "default", "rope_theta": shortest(theta)})),
        ("linear", Some(factor)) => {
            let factor = shortest(factor);
            Ok(json!({"rope_type": "linear", "rope_theta": shortest(theta), "factor": factor}))
        }
        (other, _) => {
            let message = format!("rope scaling '{other}' is unknown; known: none, linear");
            Err(unsupported(OPERATION, message))
        }
    }
}

/// The factors of `head_dim / 2` frequencies, if the file has any.
fn factors(header: &Header, file: &File, head_dim: u32) -> Result<Option<Vec<f32>>> {
    let Some(tensor) = header.tensors.get(FACTORS) else { return Ok(None) };
    let expected = [u64::from(head_dim / 2)];
    if tensor.encoding != Encoding::F32 || tensor.shape != expected {
        let found = &tensor.shape;
        let message = format!("tensor {FACTORS} is {found:?}, expected {expected:?} in F32");
        return Err(damaged(OPERATION, message));
    }
    let mut bytes = vec![0; tensor.bytes as usize];
    file.read_exact_at(&mut bytes, tensor.offset)
        .map_err(|e| damaged(OPERATION, format!("tensor {FACTORS}: {e}")))?;
    let value = |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
    Ok(Some(bytes.chunks_exact(4).map(value).collect()))
}

/// The factor and original context of the llama3 rule that gives these factors.
fn llama3(factors: &[f32], theta: f64) -> Option<(f32, u32)> {
    let factor = factors.iter().copied().fold(1.0f32, f32::max);
    let wavelength = |i: usize| {
        2.0 * std::f64::consts::PI * theta.powf(2.0 * i as f64 / (2 * factors.len()) as f64)
    };
    // A frequency on the ramp gives the context; without one, the context is what the first of the
    // kind had.
    let whole = f64::from(factor);
    let ramp = |(i, x): (usize, &f32)| {
        let share = (1.0 / f64::from(*x) - 1.0 / whole) / (1.0 - 1.0 / whole);
        let on_it = *x > 1.0 && *x < factor && share.is_finite();
        on_it.then(|| (share * (HIGH - LOW) + LOW) * wavelength(i))
    };
    let original = factors.iter().enumerate().find_map(ramp).unwrap_or(8192.0).round();
    let expected = |i: usize| {
        let turns = original / wavelength(i);
        let share = ((turns - LOW) / (HIGH - LOW)).clamp(0.0, 1.0);
        1.0 / ((1.0 - share) / whole + share)
    };
    let good = |(i, x): (usize, &f32)| (f64::from(*x) / expected(i) - 1.0).abs() < 1e-3;
    let fits = (1.0..=f64::from(u32::MAX)).contains(&original) && whole.is_finite();
    (fits && factors.iter().enumerate().all(good)).then_some((factor, original as u32))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As converters write them, in f32.
    fn written(dim: usize, theta: f32, factor: f32, original: f32) -> Vec<f32> {
        let frequency = |i: usize| 1.0 / theta.powf(2.0 * i as f32 / dim as f32);
        let one = |i| {
            let wavelength = 2.0 * std::f32::consts::PI / frequency(i);
            if wavelength < original / 4.0 {
                1.0
            } else if wavelength > original {
                factor
            } else {
                let share = (original / wavelength - 1.0) / 3.0;
                1.0 / ((1.0 - share) / factor + share)
            }
        };
        (0..dim / 2).map(one).collect()
    }

    #[test]
    fn the_rule_behind_written_factors_is_found_again() {
        for (dim, theta, factor, original) in [
            (128, 5e5, 8.0, 8192),
            (64, 5e5, 32.0, 8192),
            (128, 1e6, 16.0, 4096),
            (64, 1e4, 8.0, 2048),
        ] {
            let factors = written(dim, theta, factor, original as f32);
            assert_eq!(
                llama3(&factors, f64::from(theta)),
                Some((factor, original)),
                "{dim} {theta}"
            );
        }
    }

    #[test]
    fn factors_of_another_rule_are_not_taken_for_it() {
        let mut factors = written(128, 5e5, 8.0, 8192.0);
        factors[40] *= 1.01;
        assert_eq!(llama3(&factors, 5e5), None);
        for wrong in [f32::NAN, f32::INFINITY, 0.0, -1.0] {
            factors[40] = wrong;
            assert_eq!(llama3(&factors, 5e5), None, "{wrong}");
        }
        assert_eq!(llama3(&written(128, 5e5, 8.0, 8192.0), 1e4), None, "another theta");
    }
}
