//! Models with random weights against transformers' logits in f32.

use super::{Setup, bits};
use safetensors::SafeTensors;
use std::path::{Path, PathBuf};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/models").join(name)
}

/// Largest difference of logits, relative to their spread.
fn difference(name: &str, chunk: u32) -> f64 {
    let raw = std::fs::read(fixture(name).join("golden.safetensors")).expect("the golden");
    let golden = SafeTensors::deserialize(&raw).expect("safetensors");
    let ids: Vec<u32> = golden
        .tensor("input_ids")
        .expect("ids")
        .data()
        .chunks_exact(8)
        .map(|b| u64::from_le_bytes(b.try_into().expect("eight bytes")) as u32)
        .collect();
    let want: Vec<f32> = golden
        .tensor("logits")
        .expect("logits")
        .data()
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes(b.try_into().expect("four bytes")))
        .collect();
    let model = fixture(name);
    let mut engine = Setup { model, chunk, ..Setup::default() }.load().expect("it loads");
    let got: Vec<f32> = bits(&mut engine, &ids)
        .expect("it scores")
        .into_iter()
        .flatten()
        .map(f32::from_bits)
        .collect();
    assert_eq!(got.len(), want.len());
    let count = want.len() as f64;
    let mean = want.iter().map(|x| f64::from(*x)).sum::<f64>() / count;
    let spread = (want.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / count).sqrt();
    let pairs = got.iter().zip(&want);
    let most = pairs.map(|(a, b)| f64::from((a - b).abs())).fold(0.0, |a: f64, b| {
        assert!(b.is_finite());
        a.max(b)
    });
    most / spread
}

#[test]
fn llamas_are_within_a_ten_thousandth_of_transformers() {
    for name in ["llama-base", "llama-tied-bias-llama3-rope", "llama-odd-sizes"] {
        for chunk in [512, 64, 1] {
            let difference = difference(name, chunk);
            assert!(difference <= 1e-4, "{name} in chunks of {chunk}: {difference:.1e}");
        }
    }
}
