//! The embedded model says what transformers says on the same weights.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use kvern_e2e::{Scratch, kvern, tiny_austen};
use serde_json::Value;

const EXACT: [&str; 4] = ["--kv-dtype", "f32", "--compute-dtype", "f32"];

fn golden() -> Value {
    let text = std::fs::read_to_string(tiny_austen().join("golden.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

/// Log-probabilities of a golden text under these flags.
fn scores(scratch: &Scratch, row: &Value, flags: &[&str]) -> Vec<f64> {
    let text = scratch.write("text.txt", row["text"].as_str().unwrap());
    let arguments = ["perplexity", "--text", &text, "--max-tokens", "512", "--json"];
    let found = kvern(scratch, arguments.iter().chain(flags)).json();
    assert_eq!(found["token_ids"], row["ids"]);
    let scores = numbers(&found["token_logprobs"]);
    let mean = scores.iter().sum::<f64>() / scores.len() as f64;
    assert!((found["perplexity"].as_f64().unwrap() / (-mean).exp() - 1.0).abs() < 1e-9);
    assert_eq!(found["tokens"].as_u64().unwrap() as usize, scores.len());
    scores
}

#[test]
fn greedy_texts_equal_the_goldens() {
    let scratch = Scratch::new();
    for row in golden()["greedy"].as_array().unwrap() {
        let count = row["ids"].as_array().unwrap().len().to_string();
        let prompt = row["prompt"].as_str().unwrap();
        let arguments =
            ["generate", "--prompt", prompt, "--max-new-tokens", &count, "--ignore-eos"];
        let more = ["--temperature", "0", "--json"];
        let found = kvern(&scratch, arguments.iter().chain(&more).chain(&EXACT)).json();
        if row["smallest_margin"].as_f64().unwrap() > 1e-3 {
            assert_eq!(found["token_ids"], row["ids"], "{prompt}");
            assert_eq!(found["text"], row["text"], "{prompt}");
        }
    }
}

#[test]
fn log_probabilities_equal_the_goldens_on_both_devices() {
    let scratch = Scratch::new();
    for device in ["cpu", "candle"] {
        for row in golden()["logprobs"].as_array().unwrap() {
            let flags = [&EXACT[..], &["--device", device]].concat();
            let found = scores(&scratch, row, &flags);
            for (a, b) in found.iter().zip(numbers(&row["logprobs"])) {
                assert!((a - b).abs() <= 1e-3, "{device}: {a} and {b}");
            }
        }
    }
}

#[test]
fn the_default_dtypes_cost_little() {
    let scratch = Scratch::new();
    for device in ["cpu", "candle"] {
        let (mut total, mut count) = (0.0, 0);
        for row in golden()["logprobs"].as_array().unwrap() {
            let found = scores(&scratch, row, &["--device", device]);
            let wanted = numbers(&row["logprobs"]);
            total += found.iter().zip(&wanted).map(|(a, b)| (a - b).abs()).sum::<f64>();
            count += wanted.len();
        }
        assert!(total / f64::from(count as u32) <= 0.01, "{device}: {}", total / count as f64);
    }
}

#[test]
fn text_streams_to_stdout_and_nothing_else_does() {
    let scratch = Scratch::new();
    let row = &golden()["greedy"][0];
    let count = row["ids"].as_array().unwrap().len().to_string();
    let prompt = scratch.write("prompt.txt", row["prompt"].as_str().unwrap());
    let arguments = ["generate", "--prompt-file", &prompt, "--max-new-tokens", &count];
    let found = kvern(&scratch, arguments.iter().chain(&["--ignore-eos"]).chain(&EXACT));
    assert_eq!((found.code, found.stderr.as_str()), (Some(0), ""));
    assert_eq!(found.stdout.trim_end(), row["text"].as_str().unwrap().trim_end());
}
