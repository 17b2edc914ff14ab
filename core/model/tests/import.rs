//! GGUF files: what comes out is what transformers makes of them, and what is broken is refused.
#![allow(clippy::unwrap_used)] // helpers of tests are tests

use kvern_contract::ErrorKind;
use kvern_model::{Message, Model, import_gguf};
use proptest::prelude::*;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

const GGUF: &[u8] = include_bytes!("golden/tiny.gguf");

fn golden() -> Value {
    serde_json::from_str(include_str!("golden/tiny.json")).unwrap()
}

/// Writes a file and imports it into a directory beside it.
fn import(
    bytes: &[u8],
) -> (tempfile::TempDir, PathBuf, kvern_contract::Result<kvern_model::Imported>) {
    let dir = tempfile::tempdir().unwrap();
    let (file, output) = (dir.path().join("x.gguf"), dir.path().join("model"));
    std::fs::write(&file, bytes).unwrap();
    let imported = import_gguf(&file, &output);
    (dir, output, imported)
}

/// Nothing but the source may lie beside a failed import.
fn check_clean(dir: &Path) {
    let left: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["x.gguf"]);
}

#[test]
fn every_encoding_comes_out_as_transformers_makes_it() {
    let (_dir, output, imported) = import(GGUF);
    assert_eq!(imported.unwrap().tensors, 12);
    let model = Model::open(&output).unwrap();
    let weights = std::fs::read(output.join("model.safetensors")).unwrap();
    let golden = golden();
    let expected = golden["sha256"].as_object().unwrap();
    assert_eq!(model.tensors().len(), expected.len());
    for (name, digest) in expected {
        let tensor = model.tensors().get(name).unwrap();
        let bytes = &weights[tensor.offset as usize..(tensor.offset + tensor.bytes) as usize];
        let found: String = Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(Some(found.as_str()), digest.as_str(), "{name}");
    }
}

#[test]
fn the_config_says_what_transformers_says() {
    let (_dir, output, _) = import(GGUF);
    let model = Model::open(&output).unwrap();
    for (key, expected) in golden()["config"].as_object().unwrap() {
        let found = &model.config().raw[key];
        let same = match (found.as_f64(), expected.as_f64()) {
            (Some(a), Some(b)) => a as f32 == b as f32,
            _ => found == expected,
        };
        assert!(same, "{key}: {found} {expected}");
    }
    assert_eq!(model.generation().eos, [0]);
    assert_eq!(model.name(), "model");
}

#[test]
fn the_tokenizer_and_the_template_travel_along() {
    let (_dir, output, _) = import(GGUF);
    let model = Model::open(&output).unwrap();
    let text = model.text().unwrap();
    let golden = golden();
    let ids: Vec<u32> =
        golden["ids"].as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect();
    let sample = golden["text"].as_str().unwrap();
    assert_eq!(text.encode(sample).unwrap(), ids);
    assert_eq!(text.decode(&ids, false).unwrap(), sample);
    assert!(text.is_special(0) && !text.is_special(2));
    let chat = text.render(&[Message::new("user", "ab")], true).unwrap();
    assert_eq!(chat, "<|start|>ab<|end|>");
    // The file's own splitter cuts before each digit, so that spaces before one stay together.
    assert_eq!(text.encode("a  1").unwrap(), [2, 11, 5]);
}

#[test]
fn a_truncated_file_is_refused_at_every_length_and_leaves_nothing() {
    for cut in (0..2000).step_by(53).chain([GGUF.len() / 2, GGUF.len() - 1]) {
        let (dir, _, imported) = import(&GGUF[..cut]);
        let error = imported.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Damaged, "{cut}: {error}");
        check_clean(dir.path());
    }
}

#[test]
fn what_is_not_known_is_refused_by_name() {
    let replace = |from: &[u8], to: &[u8]| {
        assert_eq!(from.len(), to.len());
        let at = GGUF.windows(from.len()).position(|w| w == from).unwrap();
        let mut bytes = GGUF.to_vec();
        bytes[at..at + to.len()].copy_from_slice(to);
        bytes
    };
    let code = |name: &str, code: u32| {
        // A tensor's info is its name, dimensions, sizes, then its type.
        let at = GGUF.windows(name.len()).rposition(|w| w == name.as_bytes()).unwrap() + name.len();
        let dims = u32::from_le_bytes(GGUF[at..at + 4].try_into().unwrap()) as usize;
        let mut bytes = GGUF.to_vec();
        bytes[at + 4 + 8 * dims..at + 8 + 8 * dims].copy_from_slice(&code.to_le_bytes());
        bytes
    };
    let moved = |name: &str, offset: u64| {
        let at = GGUF.windows(name.len()).rposition(|w| w == name.as_bytes()).unwrap() + name.len();
        let dims = u32::from_le_bytes(GGUF[at..at + 4].try_into().unwrap()) as usize;
        let mut bytes = GGUF.to_vec();
        bytes[at + 8 + 8 * dims..at + 16 + 8 * dims].copy_from_slice(&offset.to_le_bytes());
        bytes
    };
    let version = |n: u8| [b"GGUF", &[n][..], &GGUF[5..]].concat();
    let cases: Vec<(Vec<u8>, ErrorKind, &str)> = vec![
        (
            code("blk.0.attn_q.weight", 16),
            ErrorKind::Unsupported,
            "blk.0.attn_q.weight is IQ2_XXS, known: F32",
        ),
        (code("blk.0.attn_q.weight", 39), ErrorKind::Unsupported, "is MXFP4"),
        (code("blk.0.attn_q.weight", 99), ErrorKind::Unsupported, "is of type 99"),
        (
            replace(b"smollm", b"elsewh"),
            ErrorKind::Unsupported,
            "pre-tokenizer 'elsewh' is unknown; known: gpt-2",
        ),
        (replace(b"gpt2", b"bert"), ErrorKind::Unsupported, "tokenizer model 'bert' is unknown"),
        (
            replace(b"blk.0.ffn_gate.weight", b"blk.0.ffn_skip.weight"),
            ErrorKind::Unsupported,
            "tensor blk.0.ffn_skip.weight is none",
        ),
        (
            replace(b"blk.0.ffn_gate.weight", b"blk.7.ffn_gate.weight"),
            ErrorKind::Damaged,
            "mlp.gate_proj.weight is missing",
        ),
        (moved("blk.0.attn_q.weight", 0), ErrorKind::Damaged, "overlap"),
        (moved("blk.0.attn_q.weight", 8), ErrorKind::Damaged, "starts at 8, no multiple of 32"),
        (moved("blk.0.attn_q.weight", 1 << 40), ErrorKind::Damaged, "ends past the file's"),
        (moved("blk.0.attn_q.weight", u64::MAX - 31), ErrorKind::Damaged, "ends past the file's"),
        (version(1), ErrorKind::Unsupported, "GGUF version 1, known are 2 and 3"),
        (version(4), ErrorKind::Unsupported, "GGUF version 4"),
        (b"GGML".to_vec(), ErrorKind::Damaged, "does not begin with GGUF"),
    ];
    for (bytes, kind, expected) in cases {
        let (dir, _, imported) = import(&bytes);
        let error = imported.unwrap_err();
        assert!(error.message.contains(expected), "{expected}: {error}");
        assert_eq!(error.kind, kind, "{error}");
        check_clean(dir.path());
    }
    assert!(import(&version(2)).2.is_ok());
}

#[test]
fn counts_that_no_file_could_hold_are_refused_before_memory_is_taken() {
    for at in [8, 16] {
        for count in [u64::MAX, 1 << 40, 1 << 20] {
            let mut bytes = GGUF.to_vec();
            bytes[at..at + 8].copy_from_slice(&count.to_le_bytes());
            assert_eq!(import(&bytes).2.unwrap_err().kind, ErrorKind::Damaged);
        }
    }
}

#[test]
fn a_directory_that_holds_something_is_never_written_to() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("x.gguf");
    std::fs::write(&file, GGUF).unwrap();
    let output = dir.path().join("out");
    std::fs::create_dir(&output).unwrap();
    std::fs::write(output.join("mine"), b"mine").unwrap();
    let error = import_gguf(&file, &output).unwrap_err();
    assert!(error.message.contains("exists and is not empty"), "{error}");
    assert_eq!(std::fs::read_dir(&output).unwrap().count(), 1);
    std::fs::remove_file(output.join("mine")).unwrap();
    assert!(import_gguf(&file, &output).is_ok(), "an empty directory is filled");
    assert!(import_gguf(&dir.path().join("absent"), &dir.path().join("o")).is_err());
}

/// The fixture with one more tensor, in f32, behind the others.
fn with_tensor(name: &str, values: &[f32]) -> Vec<u8> {
    let info =
        |bytes: &[u8]| [&(name.len() as u64).to_le_bytes()[..], name.as_bytes(), bytes].concat();
    // The last info of the header ends where its tensor's name, sizes, type and offset do; padding
    // follows.
    let last = b"blk.0.ffn_down.weight";
    let end =
        GGUF.windows(last.len()).rposition(|w| w == last).unwrap() + last.len() + 4 + 16 + 4 + 8;
    let start = end.next_multiple_of(32);
    let data = (GGUF.len() - start).next_multiple_of(32);
    let more = info(
        &[
            &1u32.to_le_bytes()[..],
            &(values.len() as u64).to_le_bytes(),
            &0u32.to_le_bytes(),
            &(data as u64).to_le_bytes(),
        ]
        .concat(),
    );
    let mut bytes = [&GGUF[..end], &more].concat();
    bytes[8..16].copy_from_slice(&13u64.to_le_bytes());
    bytes.resize(bytes.len().next_multiple_of(32), 0);
    bytes.extend(&GGUF[start..]);
    bytes.resize(bytes.len().next_multiple_of(32), 0);
    bytes.extend(values.iter().flat_map(|x| x.to_le_bytes()));
    bytes
}

#[test]
fn factors_of_long_contexts_become_the_rule_behind_them() {
    // As converters write them for theta 50000 (the fixture's), 32 frequencies, factor 8 and 8192
    // tokens.
    let one = |i: i32| {
        let wavelength = 2.0 * std::f32::consts::PI * 50000f32.powf(i as f32 / 32.0);
        let share = ((8192.0 / wavelength - 1.0) / 3.0).clamp(0.0, 1.0);
        1.0 / ((1.0 - share) / 8.0 + share)
    };
    let mut factors: Vec<f32> = (0..32).map(one).collect();
    let (_dir, output, imported) = import(&with_tensor("rope_freqs.weight", &factors));
    imported.unwrap();
    let kind = Model::open(&output).unwrap().config().rope.kind.clone();
    let expected = kvern_model::RopeKind::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };
    assert_eq!(kind, expected);
    factors[20] *= 1.1;
    let (dir, _, imported) = import(&with_tensor("rope_freqs.weight", &factors));
    assert!(
        imported.unwrap_err().message.contains("rope_freqs.weight holds factors of no known rule")
    );
    check_clean(dir.path());
    let (_dir, _, imported) = import(&with_tensor("rope_freqs.weight", &factors[1..]));
    assert!(imported.unwrap_err().message.contains("is [31], expected [32] in F32"));
    let (_dir, _, imported) = import(&with_tensor("blk.0.attn_q.weight", &factors));
    assert!(imported.unwrap_err().message.contains("two tensors have one name"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn a_mutated_file_never_panics(
        changes in prop::collection::vec((0usize..1900, any::<u8>()), 1..5),
        cut in any::<Option<prop::sample::Index>>(),
    ) {
        let mut bytes = GGUF.to_vec();
        for (at, byte) in changes {
            bytes[at] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(GGUF.len()));
        }
        let (dir, output, imported) = import(&bytes);
        match imported {
            Ok(_) => prop_assert!(Model::open(&output).is_ok()),
            Err(_) => check_clean(dir.path()),
        }
    }
}
