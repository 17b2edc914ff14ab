//! Where history and weights lie changes nothing of what is said.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use kvern_e2e::{Scratch, kvern, tiny_austen};
use serde_json::Value;

const PLACEMENTS: [[&str; 4]; 4] = [
    ["--offload-cpu-layers", "2", "--offload-cpu-policy", "prefix"],
    ["--offload-cpu-layers", "3", "--offload-cpu-policy", "suffix"],
    ["--offload-cpu-layers", "3", "--offload-cpu-policy", "middle-band"],
    ["--offload-cpu-layers", "3", "--offload-cpu-policy", "interleaved"],
];

fn generate(scratch: &Scratch, flags: &[&str]) -> Value {
    let arguments = ["generate", "--prompt", "She walked to the window, and", "--json"];
    let more = ["--max-new-tokens", "500", "--temperature", "0", "--ignore-eos"];
    kvern(scratch, arguments.iter().chain(&more).chain(flags)).json()
}

fn logits(scratch: &Scratch, flags: &[&str]) -> Vec<u8> {
    let golden = std::fs::read_to_string(tiny_austen().join("golden.json")).unwrap();
    let golden: Value = serde_json::from_str(&golden).unwrap();
    let text: String = golden["logprobs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["text"].as_str().unwrap())
        .collect();
    let (text, out) = (scratch.write("prose.txt", text), scratch.at("logits.safetensors"));
    let arguments = ["perplexity", "--text", &text, "--max-tokens", "700", "--logits", &out];
    let found = kvern(scratch, arguments.iter().chain(flags));
    assert_eq!(found.code, Some(0), "{}", found.stderr);
    let bytes = std::fs::read(&out).unwrap();
    std::fs::remove_file(out).unwrap();
    bytes
}

#[test]
fn history_on_disk_gives_residents_tokens_and_bits() {
    let scratch = Scratch::new();
    let resident = ["--kv-cache-strategy", "resident"];
    let cache = scratch.at("cache");
    let disk = ["--kv-cache-strategy", "chunked", "--kv-budget", "512KiB", "--cache-dir", &cache];
    let (want, found) = (generate(&scratch, &resident), generate(&scratch, &disk));
    assert_eq!(found["token_ids"], want["token_ids"]);
    assert_eq!(want["token_ids"].as_array().unwrap().len(), 500);
    let (state, kept) = (&found["metrics"]["cache_state"], &want["metrics"]["cache_state"]);
    assert!(state["bytes_read"].as_u64().unwrap() > 0, "{state}");
    assert_eq!(kept["bytes_read"], 0);
    assert_eq!(want["metrics"]["cache_dir_size_mb"], Value::Null);
    assert_eq!(want["metrics"]["cache_mode"], "resident-kv");
    assert_eq!(found["metrics"]["cache_mode"], "disk-kv");
    assert!(found["metrics"]["native_runtime_profile"]["events"].get("kvload").is_some());
    assert!(logits(&scratch, &resident) == logits(&scratch, &disk), "logits differ in a bit");
    assert_eq!(scratch.files("cache"), [""; 0].map(std::path::PathBuf::from), "something stayed");
}

#[test]
fn every_placement_gives_the_same_tokens_and_bits() {
    let scratch = Scratch::new();
    let want = generate(&scratch, &[]);
    let bits = logits(&scratch, &[]);
    for placement in &PLACEMENTS {
        let found = generate(&scratch, placement);
        assert_eq!(found["token_ids"], want["token_ids"], "{placement:?}");
        let metrics = &found["metrics"];
        assert_eq!(metrics["offload_cpu_policy"], placement[3]);
        assert_eq!(metrics["offload_cpu_applied_layers"].to_string(), placement[1]);
        let events = &metrics["native_runtime_profile"]["events"];
        assert!(events.get("safetensor_read").is_some(), "{events}");
        assert!(logits(&scratch, placement) == bits, "{placement:?}: logits differ in a bit");
    }
}

#[test]
fn in_the_exact_mode_chunks_of_prefill_do_not_matter() {
    let scratch = Scratch::new();
    let exact = ["--compute-dtype", "f32"];
    let want = logits(&scratch, &exact);
    for chunk in ["1", "64", "100"] {
        let flags = [&exact[..], &["--prefill-chunk", chunk]].concat();
        assert!(logits(&scratch, &flags) == want, "chunks of {chunk}: logits differ in a bit");
    }
}
