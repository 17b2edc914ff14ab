//! Runs with a plugin that misbehaves, and what is expected of them.
#![allow(dead_code, reason = "each test file uses some of it")]

use kvern_e2e::{Ended, Scratch, binary, command, ended};
use serde_json::Value;
use std::path::PathBuf;

/// A fixture's library; it lies beside the binary.
pub fn fixture(name: &str) -> PathBuf {
    let beside = binary().parent().expect("a binary lies in a directory");
    beside.join(format!("libkvern_fixture_bad_{name}.so"))
}

/// A kind of plugin, and the flags that choose a library of it and give it an option.
#[derive(Clone, Copy)]
pub struct Kind {
    pub word: &'static str,
    pub library: &'static str,
    pub option: &'static str,
}

pub const KV: Kind = Kind { word: "kv", library: "--kv", option: "--kv-option" };
pub const OFFLOAD: Kind =
    Kind { word: "offload", library: "--offload-cpu-policy", option: "--offload-option" };
pub const DEVICE: Kind = Kind { word: "device", library: "--device", option: "--device-option" };

/// Flags that choose the fixture of a kind with a fault.
pub fn flags(kind: Kind, fault: &str) -> Vec<String> {
    let library = fixture(kind.word).to_string_lossy().into_owned();
    let fault = format!("fault={fault}");
    [kind.library, &library, kind.option, &fault].map(Into::into).into()
}

/// A run of 500 tokens, more than the budgets in these tests keep in memory.
pub fn generate(scratch: &Scratch, flags: &[String]) -> Ended {
    generate_where(scratch, flags, &[])
}

/// The same with variables of the environment.
pub fn generate_where(scratch: &Scratch, flags: &[String], variables: &[(&str, &str)]) -> Ended {
    let arguments = ["generate", "--prompt", "She walked to the window, and", "--json"];
    let more = ["--max-new-tokens", "500", "--temperature", "0", "--ignore-eos"];
    let cache = scratch.at("cache");
    let mut run = command(binary(), scratch);
    run.args(arguments).args(more).args(["--cache-dir", &cache]).args(flags);
    ended(run.envs(variables.iter().copied()))
}

/// More flags after some.
pub fn with(mut flags: Vec<String>, more: &[&str]) -> Vec<String> {
    flags.extend(more.iter().map(|flag| flag.to_string()));
    flags
}

/// The run's tokens are those of a run with everything in memory and well. Answers its counters.
pub fn same_text(scratch: &Scratch, ended: &Ended) -> Value {
    let resident = with(Vec::new(), &["--kv-cache-strategy", "resident"]);
    let (found, want) = (ended.json(), generate(scratch, &resident).json());
    assert_eq!(found["token_ids"], want["token_ids"]);
    found["metrics"]["cache_state"].clone()
}

/// All that was said on stderr, save the line that a plugin's own panic hook says.
pub fn said(ended: &Ended) -> Vec<&str> {
    let hook = "kvern: a plugin panicked at ";
    ended.stderr.lines().filter(|line| !line.starts_with(hook)).collect()
}

/// What the watchdog says.
pub fn hung(who: &str, word: &str, operation: &str, seconds: u32) -> String {
    format!(
        "{who} ({}) has not come back from {operation} in {seconds} s: ended; report it to its \
         author, or give it longer with --plugin-deadline",
        fixture(word).display()
    )
}

/// What is said of a crash.
pub fn crashed(who: &str, word: &str, operation: &str, signal: &str) -> String {
    format!("{who} ({}) crashed in {operation}: {signal}", fixture(word).display())
}

/// The two lanes of a benchmark with these flags: cold start, warm runtime.
pub fn lanes(scratch: &Scratch, flags: &[String]) -> [Value; 2] {
    let mut run = command(binary(), scratch);
    let cache = scratch.at("cache");
    run.args(["bench", "--no-record-history", "--cache-dir", &cache]).args(flags);
    let report = ended(&mut run).json();
    let target = &report["runtime_comparison"]["primary_target"];
    ["cold_start", "warm_runtime"].map(|lane| target[lane]["optimized_native"].clone())
}

/// A lane that is unavailable for this reason.
pub fn unavailable(lane: &Value, reason: &str) {
    assert_eq!(lane["status"], "unavailable", "{lane}");
    assert_eq!(lane["details"]["reason"], reason);
}
