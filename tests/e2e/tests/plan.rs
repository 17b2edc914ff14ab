//! What `kvern plan` says is what a run does; what `kvern doctor --probe` measures, both use.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use kvern_e2e::{Ended, Scratch, kvern, tiny_austen};
use serde_json::Value;
use std::path::Path;

/// A run that is the same every time: its context and the rows of its steps are said.
const RUN: [&str; 4] = ["--context-tokens", "64", "--prefill-chunk", "16"];

fn with<'a>(parts: &[&[&'a str]]) -> Vec<&'a str> {
    parts.concat()
}

fn plan(scratch: &Scratch, flags: &[&str]) -> Ended {
    kvern(scratch, with(&[&["plan", "--json"], &RUN, flags]))
}

fn generate(scratch: &Scratch, flags: &[&str]) -> Value {
    let words =
        ["generate", "--json", "--prompt", "It is", "--max-new-tokens", "4", "--ignore-eos"];
    kvern(scratch, with(&[&words, &RUN, flags])).json()
}

/// A model of random weights, in files.
fn made(scratch: &Scratch) -> String {
    let (out, tokenizer) = (scratch.at("made"), tiny_austen());
    let tokenizer = tokenizer.to_string_lossy();
    let made = ["models", "synth", "tiny", "--output", &out, "--tokenizer-from", &tokenizer];
    assert_eq!(kvern(scratch, made).code, Some(0));
    out
}

fn number(value: &Value, path: &str) -> u64 {
    let found = value.pointer(path).and_then(Value::as_u64);
    found.unwrap_or_else(|| panic!("{path} is no number in {value}"))
}

/// Bytes of the units in a tier.
fn bytes(plan: &Value, tier: &str) -> u64 {
    let units = plan["units"].as_array().unwrap().iter().filter(|u| u["tier"] == tier);
    units.map(|u| u["bytes"].as_u64().unwrap()).sum()
}

#[test]
fn a_run_streams_what_its_plan_says_under_every_budget() {
    let scratch = Scratch::new();
    let made = made(&scratch);
    for model in ["tiny-austen", &made] {
        let free = plan(&scratch, &["--model", model]).json();
        let least = number(&free, "/memory_budget/least_bytes");
        let all: u64 = ["kept", "streamed", "by row"].map(|tier| bytes(&free, tier)).iter().sum();
        assert_eq!(bytes(&free, "streamed"), 0, "nothing has to stream");
        let mut streamed = Vec::new();
        for more in [0, all / 4, all / 2, 2 * all] {
            let budget = (least + more).to_string();
            let flags = ["--model", model, "--memory-budget", &budget];
            let plan = plan(&scratch, &flags).json();
            let parts = ["kept", "streamed", "by row"].map(|tier| bytes(&plan, tier));
            assert_eq!(parts.iter().sum::<u64>(), all, "{model} with {budget}");
            assert_eq!(parts[0], number(&plan, "/placement/resident_bytes"));
            let held = plan["memory_budget"]["holders"].as_array().unwrap().iter();
            let held: u64 = held.map(|h| h["bytes"].as_u64().unwrap()).sum();
            assert!(held <= least + more, "{held} of {budget}");
            let run = generate(&scratch, &flags);
            let storage = &run["metrics"]["storage"];
            let sweep = number(&plan, "/sweep/streamed_bytes");
            assert_eq!(sweep, parts[1]);
            assert_eq!(sweep, number(storage, "/sweep_bytes"), "{model} with {budget}");
            for key in ["staging_bytes", "read_ahead_units"] {
                assert_eq!(plan["sweep"][key], storage[key], "{model} with {budget}: {key}");
            }
            assert_eq!(plan["sweep"]["copied_tensors"], storage["misaligned_tensors"]);
            assert_eq!(plan["reading"]["io"], storage["io_path"]);
            streamed.push(sweep);
        }
        assert!(streamed[0] > streamed[1] && streamed[1] > streamed[2], "{streamed:?}");
        assert_eq!(streamed[3], 0, "{streamed:?}");
    }
}

#[test]
fn a_budget_that_is_too_small_is_refused_with_the_least_and_the_least_works() {
    let scratch = Scratch::new();
    let least = number(&plan(&scratch, &[]).json(), "/memory_budget/least_bytes");
    let small = (least - 1).to_string();
    let refused = plan(&scratch, &["--memory-budget", &small]);
    let told = refused.refused(1);
    assert!(told.contains(&format!("at least {least} are needed")), "{told}");
    let least = least.to_string();
    assert_eq!(plan(&scratch, &["--memory-budget", &least]).code, Some(0));
    generate(&scratch, &["--memory-budget", &least]);
    assert_eq!(plan(&scratch, &["--rows", "0"]).code, Some(2));
    assert_eq!(plan(&scratch, &["--model", "nowhere"]).code, Some(1));
}

#[test]
fn a_plan_needs_no_weights() {
    let scratch = Scratch::new();
    let made = made(&scratch);
    let flags = ["--model", &made, "--memory-budget", "64MiB", "--read-path", "buffered"];
    let before = plan(&scratch, &flags).json();
    for file in std::fs::read_dir(&made).unwrap().flatten().map(|entry| entry.path()) {
        if file.extension().is_some_and(|e| e == "safetensors") {
            hollow(&file);
        }
    }
    assert_eq!(plan(&scratch, &flags).json(), before);
}

/// Leaves a file's header, and no weight of it.
fn hollow(file: &Path) {
    let whole = std::fs::read(file).unwrap();
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap());
    let opened = std::fs::OpenOptions::new().write(true).open(file).unwrap();
    opened.set_len(header).unwrap();
    opened.set_len(whole.len() as u64).unwrap();
}

#[test]
fn a_plan_of_many_rows_has_room_for_as_many_sequences() {
    let scratch = Scratch::new();
    let kv = |plan: &Value| {
        let held = plan["memory_budget"]["holders"].as_array().unwrap().iter();
        held.filter(|h| h["holder"] == "kv frames").map(|h| h["bytes"].as_u64().unwrap()).sum()
    };
    let one = plan(&scratch, &[]).json();
    let many = plan(&scratch, &["--rows", "32"]).json();
    let (few, most): (u64, u64) = (kv(&one), kv(&many));
    // A page of 64 tokens, K and V of 2 heads of 32 channels in bf16, in each of 6 layers.
    let page = 64 * 2 * 2 * 32 * 2;
    assert!(few >= 6 * page && most >= 32 * 6 * page, "{few} and {most}");
    assert_eq!((number(&one, "/sequences"), number(&many, "/sequences")), (1, 32));
}

#[test]
fn a_plan_is_text_for_people_in_a_hundred_columns() {
    let scratch = Scratch::new();
    let made = made(&scratch);
    for model in ["tiny-austen", &made] {
        let ended = kvern(&scratch, ["plan", "--model", model]);
        assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
        let long = ended.stdout.lines().find(|line| line.chars().count() > 100);
        assert_eq!(long, None);
        for word in ["memory budget", "read path", "prediction", "attention+mlp", "doctor --probe"]
        {
            assert!(ended.stdout.contains(word), "{word} is not in {}", ended.stdout);
        }
    }
}

#[test]
fn what_the_doctor_measures_is_kept_and_used_and_a_damaged_file_is_not() {
    let scratch = Scratch::new();
    let (made, cache) = (made(&scratch), scratch.at("cache"));
    let place = ["--model", &made, "--cache-dir", &cache];
    let told = kvern(&scratch, with(&[&["doctor", "--probe", "--json"], &place])).json();
    assert_eq!(told["advice"]["not_measured"], Value::Array(Vec::new()), "{told}");
    let names = || scratch.files("cache").into_iter().map(|p| p.file_name().unwrap().to_owned());
    assert_eq!(names().collect::<Vec<_>>(), ["ceilings.json"]);
    let file = Path::new(&cache).join("ceilings.json");
    let kept = std::fs::read_to_string(&file).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&kept).unwrap(), told["advice"]["ceilings"]);

    let least = number(&plan(&scratch, &place).json(), "/memory_budget/least_bytes").to_string();
    let small = with(&[&place, &["--memory-budget", &least]]);
    let known = plan(&scratch, &small);
    assert_eq!(known.stderr, "");
    let known = known.json();
    for path in ["/ceilings/drive/bytes_per_second", "/ceilings/device/weight_bytes_per_second"] {
        assert!(known.pointer(path).unwrap().as_f64().unwrap() > 0.0, "{path} in {known}");
    }
    let foreseen = &known["prediction"];
    let second = |key: &str| foreseen[key].as_f64().unwrap();
    let longer = second("read_seconds").max(second("compute_seconds"));
    let sum = longer + second("apart_seconds");
    assert!((second("seconds_per_sweep") / sum - 1.0).abs() < 1e-9 && longer > 0.0, "{foreseen}");
    let many = plan(&scratch, &with(&[&place, &["--rows", "32"]])).json();
    assert_eq!(many["prediction"]["rows"], 32);
    let ceiling =
        generate(&scratch, &small)["metrics"]["storage"]["ceiling_bytes_per_second"].clone();
    assert_eq!(ceiling, known["ceilings"]["drive"]["bytes_per_second"]);
    let plain = kvern(&scratch, with(&[&["doctor"], &place]));
    assert!(plain.code == Some(0) && plain.stdout.contains("drive reads"), "{}", plain.stdout);

    let foreign = kept.replacen("\"cores\": ", "\"cores\": 9", 1);
    for (damaged, word) in [(&kept[..kept.len() / 2], "EOF"), ("", "EOF"), (&foreign, "machine")] {
        std::fs::write(&file, damaged).unwrap();
        let ended = plan(&scratch, &small);
        let lines: Vec<&str> = ended.stderr.lines().collect();
        assert!(lines.len() == 1 && lines[0].starts_with("kvern: warning: "), "{lines:?}");
        assert!(lines[0].contains(word) && lines[0].contains("doctor --probe"), "{lines:?}");
        let found = ended.json();
        assert!(found["ceilings"]["drive"].is_null() && found["prediction"].is_null(), "{found}");
        assert!(found["null_reasons"]["prediction"].is_string(), "{found}");
    }
}

#[test]
fn a_doctor_that_cannot_keep_what_it_measures_does_not_measure() {
    let scratch = Scratch::new();
    let ended = kvern(&scratch, ["doctor", "--probe", "--cache-dir", "/proc/nowhere"]);
    assert!(ended.refused(1).contains("/proc/nowhere"), "{ended:?}");
}
