//! Help, settings and the small commands.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use kvern_e2e::{Scratch, binary, command, ended, kvern, repository, tiny_austen};
use serde_json::Value;

const COMMANDS: [&[&str]; 17] = [
    &["generate"],
    &["chat"],
    &["perplexity"],
    &["bench"],
    &["bench", "probe"],
    &["models"],
    &["models", "list"],
    &["models", "inspect"],
    &["models", "import"],
    &["models", "pull"],
    &["models", "synth"],
    &["plugins"],
    &["plugins", "list"],
    &["plugins", "inspect"],
    &["plugins", "manifest"],
    &["plan"],
    &["doctor"],
];

#[test]
fn every_command_explains_itself_in_one_line_first() {
    let scratch = Scratch::new();
    for words in COMMANDS {
        let ended = kvern(&scratch, words.iter().chain(&["--help"]));
        assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{words:?}");
        let lines: Vec<&str> = ended.stdout.lines().collect();
        assert!((10..100).contains(&lines[0].len()), "{words:?}: {}", lines[0]);
        assert!(lines[1].is_empty(), "{words:?}: {}", lines[1]);
    }
    let version = kvern(&scratch, ["--version"]).stdout;
    assert!(version.starts_with("kvern 0."), "{version}");
}

#[test]
fn completions_and_pages_are_made_for_every_command() {
    let scratch = Scratch::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = kvern(&scratch, ["completions", shell]);
        assert!(script.code == Some(0) && script.stdout.contains("perplexity"), "{shell}");
    }
    let pages = scratch.at("man");
    assert_eq!(kvern(&scratch, ["man", "--output", &pages]).code, Some(0));
    for words in COMMANDS {
        let page = scratch.path().join("man").join(format!("kvern-{}.1", words.join("-")));
        assert!(std::fs::read_to_string(&page).unwrap().contains(".TH"), "{}", page.display());
    }
}

/// The prefill chunk that ran, under these flags, environment and files.
fn chunk(scratch: &Scratch, flags: &[&str], env: Option<&str>) -> u64 {
    let prompt = "She walked to the window, and looked at the sea, and thought of nothing at all. ";
    let mut command = command(binary(), scratch);
    command.args(["generate", "--prompt", prompt, "--max-new-tokens", "1", "--json"]).args(flags);
    if let Some(value) = env {
        command.env("KVERN_PREFILL_CHUNK", value);
    }
    ended(&mut command).json()["metrics"]["chunked_prefill"]["chunk_tokens"].as_u64().unwrap()
}

#[test]
fn flags_go_before_environment_before_profile_before_file() {
    let scratch = Scratch::new();
    scratch.write("kvern.toml", "[run]\nprefill_chunk = 3\n");
    let profile = scratch.write("small.toml", "[run]\nprefill_chunk = 4\n");
    let profile = ["--profile-manifest", profile.as_str()];
    assert_eq!(chunk(&scratch, &[], None), 3);
    assert_eq!(chunk(&scratch, &profile, None), 4);
    assert_eq!(chunk(&scratch, &profile, Some("5")), 5);
    let flags = [&profile[..], &["--prefill-chunk", "6"]].concat();
    assert_eq!(chunk(&scratch, &flags, Some("5")), 6);
}

#[test]
fn settings_files_are_read_strictly() {
    let scratch = Scratch::new();
    scratch.write("kvern.toml", "[run]\nprefil_chunk = 3\n");
    let ended = kvern(&scratch, ["generate", "--prompt", "x"]);
    let told = ended.refused(1);
    assert!(told.contains("kvern.toml:2") && told.contains("`prefill_chunk`"), "{told}");
}

#[test]
fn the_shipped_profiles_run() {
    let scratch = Scratch::new();
    let profiles = std::fs::read_dir(repository().join("manifests/profiles")).unwrap();
    for entry in profiles.flatten() {
        let path = entry.path().to_string_lossy().into_owned();
        let arguments = ["generate", "--prompt", "It was", "--max-new-tokens", "2"];
        let ended = kvern(&scratch, arguments.iter().chain(&["--profile-manifest", &path]));
        assert_eq!(ended.code, Some(0), "{path}: {}", ended.stderr);
    }
}

#[test]
fn the_doctor_says_what_would_run() {
    let scratch = Scratch::new();
    let told = kvern(&scratch, ["doctor", "--json"]).json();
    assert!(told["choice"]["fault"].is_null(), "{told}");
    assert_eq!(told["choice"]["plugins"]["device"], "cpu");
    assert!(told["machine"]["cores"].as_u64().unwrap() > 0);
    assert!(told["drive"]["file_system"].is_string(), "{told}");
    let text = kvern(&scratch, ["doctor", "--cache-dir", "/proc/nowhere"]);
    assert_eq!(text.code, Some(0));
    let line = |start: &str| text.stdout.lines().find(|l| l.trim_start().starts_with(start));
    assert!(line("would use kv").is_some_and(|l| l.contains("rule")), "{}", text.stdout);
    assert!(line("writable").is_some_and(|l| l.contains("no: ")), "{}", text.stdout);
}

#[test]
fn a_made_model_runs_by_its_name() {
    let scratch = Scratch::new();
    let (out, tokenizer) = (scratch.at("models/made"), tiny_austen());
    let tokenizer = tokenizer.to_string_lossy();
    let made = ["models", "synth", "tiny", "--output", &out, "--tokenizer-from", &tokenizer];
    assert_eq!(kvern(&scratch, made).code, Some(0));
    let listed = kvern(&scratch, ["models", "list", "--json"]).json();
    let names: Vec<&str> =
        listed["models"].as_array().unwrap().iter().filter_map(|m| m["name"].as_str()).collect();
    assert_eq!(names, ["tiny-austen", "made"]);
    let arguments = ["generate", "--model", "made", "--prompt", "hi", "--max-new-tokens", "3"];
    let found = kvern(&scratch, arguments.iter().chain(&["--ignore-eos", "--json"])).json();
    assert_eq!(found["token_ids"].as_array().unwrap().len(), 3);
    assert_eq!(kvern(&scratch, ["models", "inspect", "made"]).code, Some(0));
    // Nothing is written over.
    let again = kvern(&scratch, ["models", "synth", "tiny", "--output", &out]);
    assert!(again.refused(1).contains(&out), "{again:?}");
}

#[test]
fn the_same_seed_draws_the_same_tokens() {
    let scratch = Scratch::new();
    let draw = |seed: &str| -> Value {
        let arguments = ["generate", "--prompt", "It was a truth", "--json", "--seed", seed];
        let more = ["--max-new-tokens", "24", "--temperature", "1.5", "--ignore-eos"];
        kvern(&scratch, arguments.iter().chain(&more)).json()["token_ids"].clone()
    };
    assert_eq!(draw("7"), draw("7"));
    assert_ne!(draw("7"), draw("8"));
}

#[test]
fn a_stop_string_ends_the_text_before_it() {
    let scratch = Scratch::new();
    let arguments = ["generate", "--prompt", "It was a truth", "--max-new-tokens", "200", "--json"];
    let whole = kvern(&scratch, arguments).json();
    let text = whole["text"].as_str().unwrap();
    let stop: String = text.chars().skip(12).take(5).collect();
    let found = kvern(&scratch, arguments.iter().chain(&["--stop", &stop])).json();
    let ended = text.split(&stop).next().unwrap();
    assert_eq!(found["text"], ended);
    assert_eq!(found["metrics"]["finish_reason"], "stop-string");
}
