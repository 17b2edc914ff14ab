//! Random models: they open, repeat, and do not depend on how they are cut.
#![allow(clippy::unwrap_used)] // helpers of tests are tests

mod support;

use kvern_model::{Model, SynthDims, SynthSpec, WeightFile, synth};
use std::collections::BTreeMap;
use std::path::Path;

fn spec(seed: u64, shard_bytes: u64) -> SynthSpec {
    SynthSpec { dims: SynthDims::parse("tiny").unwrap(), seed, shard_bytes }
}

/// Every tensor's bytes.
fn contents(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let model = Model::open(dir).unwrap();
    let read = |file: &WeightFile| match file {
        WeightFile::Path(path) => std::fs::read(path).unwrap(),
        WeightFile::Memory { .. } => panic!("on disk"),
    };
    let files: Vec<Vec<u8>> = model.tensors().files.iter().map(read).collect();
    let bytes = |t: &kvern_model::Tensor| {
        files[t.file][t.offset as usize..(t.offset + t.bytes) as usize].to_vec()
    };
    model.tensors().iter().map(|(name, t)| (name.to_string(), bytes(t))).collect()
}

#[test]
fn a_seed_makes_the_same_tensors_however_they_are_cut() {
    let dir = tempfile::tempdir().unwrap();
    let make = |name: &str, seed, shard| {
        let made = synth(&spec(seed, shard), &dir.path().join(name), None).unwrap();
        assert_eq!(made.directory, dir.path().join(name));
        (made.shards, contents(&made.directory))
    };
    let (one, whole) = make("whole", 1, u64::MAX);
    let (many, cut) = make("cut", 1, 50_000);
    assert_eq!(one, 1);
    assert!(many > 3, "{many}");
    assert_eq!(whole, cut);
    assert_eq!(make("each", 1, 0).1, whole);
    let (_, other) = make("other", 2, u64::MAX);
    assert_ne!(whole, other);
    let q = |layer: u32| &whole[&format!("model.layers.{layer}.self_attn.q_proj.weight")];
    assert_ne!(q(0), q(1));
}

#[test]
fn weights_are_small_and_norms_are_ones() {
    let dir = tempfile::tempdir().unwrap();
    let made = synth(&spec(1, u64::MAX), &dir.path().join("m"), None).unwrap();
    let all = contents(&made.directory);
    let value = |pair: &[u8]| {
        f64::from(f32::from_bits(u32::from(u16::from_le_bytes([pair[0], pair[1]])) << 16))
    };
    assert!(all["model.norm.weight"].chunks(2).all(|pair| value(pair) == 1.0));
    let values: Vec<f64> = all["model.embed_tokens.weight"].chunks(2).map(value).collect();
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let deviation =
        (values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / values.len() as f64).sqrt();
    assert!(mean.abs() < 0.0005 && (deviation - 0.02).abs() < 0.0005, "{mean} {deviation}");
}

#[test]
fn tensors_start_at_a_page_for_direct_reads() {
    let dir = tempfile::tempdir().unwrap();
    let made = synth(&spec(1, 50_000), &dir.path().join("m"), None).unwrap();
    let model = Model::open(&made.directory).unwrap();
    for file in 0..model.tensors().files.len() {
        let first =
            model.tensors().iter().filter(|(_, t)| t.file == file).map(|(_, t)| t.offset).min();
        assert_eq!(first.unwrap() % 4096, 0);
    }
}

#[test]
fn a_borrowed_tokenizer_brings_its_vocabulary() {
    let dir = tempfile::tempdir().unwrap();
    let made =
        synth(&spec(1, u64::MAX), &dir.path().join("m"), Some(&support::tiny_austen())).unwrap();
    let model = Model::open(&made.directory).unwrap();
    assert_eq!(model.config().vocab_size, 2048);
    assert_eq!(model.text().unwrap().encode("It was ").unwrap().len(), 3);
    assert_eq!(model.generation().eos, [0]);
}

#[test]
fn sizes_are_read_and_refused_by_name() {
    let dims = SynthDims::parse("8b").unwrap();
    assert_eq!((dims.hidden, dims.layers, dims.head_dim), (4096, 32, 128));
    let custom = "hidden=8, inner=12,layers=1,heads=2,kv_heads=1,head_dim=4,vocabulary=16";
    assert_eq!(SynthDims::parse(custom).unwrap().vocabulary, 16);
    for wrong in [
        "9b",
        "",
        "hidden=8",
        "hidden=8,hidden=8,layers=1,heads=2,kv_heads=1,head_dim=4,vocabulary=16",
        &format!("{custom},x=1"),
    ] {
        let error = SynthDims::parse(wrong).unwrap_err();
        assert!(error.message.contains("known: tiny, 1b, 3b, 8b"), "{error}");
    }
}

#[test]
fn impossible_sizes_leave_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let dims = SynthDims { heads: 3, kv_heads: 2, ..SynthDims::parse("tiny").unwrap() };
    let spec = SynthSpec { dims, seed: 1, shard_bytes: 1 << 30 };
    let error = synth(&spec, &dir.path().join("m"), None).unwrap_err();
    assert!(error.message.contains("num_attention_heads is 3, expected a multiple"), "{error}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}
