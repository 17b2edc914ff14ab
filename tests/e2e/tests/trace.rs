//! A run can be watched: by a timeline in a file, and by a line on a terminal.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use kvern_e2e::{Ended, Scratch, binary, command, ended, kvern, on_terminal, tiny_austen};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

/// A model of 8 MB, of which 7 are streamed.
fn model(scratch: &Scratch) -> String {
    let sizes = "hidden=256,inner=704,layers=5,heads=4,kv_heads=2,head_dim=64,vocabulary=512";
    let (out, words) = (scratch.at("model"), tiny_austen().to_string_lossy().into_owned());
    let arguments = ["models", "synth", sizes, "--output", &out, "--tokenizer-from", &words];
    let made = kvern(scratch, arguments);
    assert_eq!(made.code, Some(0), "{}", made.stderr);
    out
}

fn generate(scratch: &Scratch, model: &str, more: &[&str]) -> Command {
    let mut command = command(binary(), scratch);
    command.args(["generate", "--model", model, "--prompt", "She walked to the window, and"]);
    command.args(["--temperature", "0", "--ignore-eos", "--offload-cpu-layers", "0"]).args(more);
    command
}

fn number(event: &Value, key: &str) -> f64 {
    event[key].as_f64().unwrap_or_else(|| panic!("no {key}: {event}"))
}

#[test]
fn a_timeline_has_what_a_run_did_in_lanes_that_do_not_overlap() {
    let scratch = Scratch::new();
    let (model, file) = (model(&scratch), scratch.at("run.json"));
    let disk = ["--kv-cache-strategy", "chunked", "--kv-budget", "352KiB", "--cache-dir"];
    let cache = scratch.at("cache");
    let asked = ["--max-new-tokens", "150", "--json", "--trace", &file];
    let began = std::time::Instant::now();
    let mut run = generate(&scratch, &model, &disk);
    let told = ended(run.arg(&cache).args(asked));
    let wall = began.elapsed().as_secs_f64() * 1e6;
    assert_eq!(told.stderr, "");
    let metrics = &told.json()["metrics"];
    let events: Vec<Value> = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    let mut titles = BTreeMap::new();
    for event in events.iter().filter(|e| e["name"] == "thread_name") {
        titles.insert(event["tid"].as_u64().unwrap(), event["args"]["name"].as_str().unwrap());
    }
    let tracks: BTreeSet<&str> = titles.values().copied().collect();
    let expected = [
        "steps",
        "tokens",
        "computing",
        "waiting",
        "weight reads",
        "page loads and writes",
        "store calls",
    ];
    expected.iter().for_each(|track| assert!(tracks.contains(track), "{track}: {tracks:?}"));
    let mut lanes: BTreeMap<u64, Vec<(f64, f64)>> = BTreeMap::new();
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    for event in events.iter().filter(|e| e["ph"] == "X") {
        let (start, took) = (number(event, "ts"), number(event, "dur"));
        assert!(start >= 0.0 && took >= 0.0 && start + took <= wall, "{event}");
        let lane = event["tid"].as_u64().unwrap();
        assert!(titles.contains_key(&lane), "{event}");
        lanes.entry(lane).or_default().push((start, start + took));
        *counts.entry(event["cat"].as_str().unwrap()).or_default() += 1;
    }
    for (lane, mut spans) in lanes {
        spans.sort_by(|a, b| a.partial_cmp(b).unwrap());
        let overlap = spans.windows(2).find(|two| two[1].0 < two[0].1 - 0.002);
        assert!(titles[&lane] == "steps" || overlap.is_none(), "{}: {overlap:?}", titles[&lane]);
    }
    assert_eq!(metrics["output_tokens"], 150);
    assert_eq!((counts["load"], counts["prefill"], counts["decode"]), (1, 1, 149), "{counts:?}");
    assert_eq!((counts["step"], counts["sweep"]), (150, 150));
    // The report counts the same operations, less those of the load.
    let profile = metrics["native_runtime_profile"]["events"].as_object().unwrap();
    for name in ["safetensor_read", "layer_load", "kvload", "kvsave"] {
        let (told, counted) = (counts[name], profile[name]["count"].as_u64().unwrap());
        assert!(told >= counted && counted > 0, "{name}: {told} and {counted}");
    }
    assert_eq!(counts["layer_load"], profile["layer_load"]["count"].as_u64().unwrap());
}

#[test]
fn a_timeline_that_cannot_be_written_costs_a_warning_and_not_the_run() {
    let scratch = Scratch::new();
    let flags = ["generate", "--prompt", "It is a truth", "--max-new-tokens", "20"];
    let want = kvern(&scratch, flags);
    let told = kvern(&scratch, flags.iter().chain(&["--trace", "/dev/full"]));
    assert_eq!((told.code, &told.stdout), (Some(0), &want.stdout), "{}", told.stderr);
    assert!(told.stderr.starts_with("kvern: warning: --trace /dev/full: "), "{}", told.stderr);
    assert_eq!(told.stderr.lines().count(), 1, "{}", told.stderr);
}

#[test]
fn a_timeline_that_cannot_be_made_is_refused_before_anything_is_read() {
    let scratch = Scratch::new();
    let text = scratch.write("text", "It is a truth");
    let file = scratch.at("not/there.json");
    for command in [&["generate", "--prompt", "a"][..], &["chat"], &["perplexity", "--text", &text]]
    {
        let flags = ["--model", "/no/model", "--trace", &file];
        let told = kvern(&scratch, command.iter().chain(&flags));
        let line = told.refused(1);
        assert!(line.contains("--trace") && line.contains("not/there.json"), "{line}");
    }
}

#[test]
fn chat_and_perplexity_are_watched_too() {
    let scratch = Scratch::new();
    let (text, file) = (scratch.write("text", "It is a truth"), scratch.at("run.json"));
    for arguments in [&["chat"][..], &["perplexity", "--text", &text]] {
        let told = kvern(&scratch, arguments.iter().chain(&["--trace", &file]));
        assert_eq!(told.code, Some(0), "{}", told.stderr);
        let events: Vec<Value> =
            serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
        assert!(events.iter().any(|e| e["cat"] == "load"), "{arguments:?}");
        let scored = events.iter().any(|e| e["cat"] == "score");
        assert_eq!(scored, arguments[0] == "perplexity");
    }
}

/// A run in which the load and every sweep take longer than what is worth a line.
fn slow(scratch: &Scratch, model: &str, more: &[&str]) -> Command {
    let mut run = generate(scratch, model, &["--drive-rate", "2500KB", "--max-new-tokens", "2"]);
    run.args(more);
    run
}

#[test]
fn progress_is_shown_on_a_terminal_cleared_at_the_end_and_nowhere_else() {
    let scratch = Scratch::new();
    let model = model(&scratch);
    let want = ended(&mut slow(&scratch, &model, &[]));
    assert_eq!((want.code, want.stderr.as_str()), (Some(0), ""), "no line into a pipe");
    let shown = on_terminal(slow(&scratch, &model, &[]), false);
    assert_eq!((shown.code, &shown.stdout), (Some(0), &want.stdout));
    assert!(shown.stderr.contains("prompt 0 of 8 tokens; sweep "), "{:?}", shown.stderr);
    assert!(shown.stderr.contains(" MiB/s"), "{:?}", shown.stderr);
    assert_eq!(screen(&shown), "");
    let hidden = on_terminal(slow(&scratch, &model, &["--no-progress"]), false);
    assert_eq!((hidden.stderr.as_str(), &hidden.stdout), ("", &want.stdout));
}

#[test]
fn a_line_of_progress_leaves_text_on_the_same_terminal_alone() {
    let scratch = Scratch::new();
    let model = model(&scratch);
    let mut run = slow(&scratch, &model, &[]);
    let text = ended(&mut run).stdout;
    let shown = on_terminal(slow(&scratch, &model, &[]), true);
    assert_eq!(shown.code, Some(0));
    assert!(shown.stderr.contains("sweep "), "{:?}", shown.stderr);
    assert_eq!(screen(&shown), text.trim_end());
}

/// What is left on the screen.
fn screen(told: &Ended) -> String {
    let mut parser = vt100::Parser::new(24, 80, 0);
    parser.process(told.stderr.as_bytes());
    parser.screen().contents().trim_end().to_string()
}
