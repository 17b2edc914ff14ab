//! Guesses change the number of sweeps and no token, and what cannot guess is refused in a line.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use kvern_e2e::{Ended, Scratch, binary, command, ended, kvern, tiny_austen};
use serde_json::Value;
use std::io::Write;
use std::process::Stdio;

const PROMPT: &str = "She walked to the window, and";

/// A random model with the words of tiny-austen.
fn draft(scratch: &Scratch, name: &str) -> String {
    let (out, from) = (scratch.at(name), tiny_austen().display().to_string());
    let sizes = "hidden=32,inner=64,layers=2,heads=2,kv_heads=1,head_dim=16,vocabulary=2048";
    let made = kvern(
        scratch,
        ["models", "synth", sizes, "--output", &out, "--tokenizer-from", &from, "--seed", "5"],
    );
    assert_eq!(made.code, Some(0), "{made:?}");
    out
}

fn run(scratch: &Scratch, flags: &[&str]) -> Ended {
    let arguments = ["generate", "--prompt", PROMPT, "--json", "--max-new-tokens", "120"];
    let exact = ["--compute-dtype", "f32", "--ignore-eos"];
    kvern(scratch, arguments.iter().chain(&exact).chain(flags))
}

fn told(document: &Value) -> &Value {
    &document["metrics"]["speculation"]
}

#[test]
fn guesses_by_lookup_or_by_a_draft_change_no_token_greedy_or_drawn() {
    let scratch = Scratch::new();
    let draft = format!("draft={}", draft(&scratch, "draft"));
    let small = ["--kv-cache-strategy", "chunked", "--kv-budget", "512KiB"];
    for sampling in [&["--temperature", "0"][..], &["--temperature", "0.8", "--seed", "3"]] {
        let want = run(&scratch, sampling).json();
        let off = told(&want);
        assert_eq!((&off["mode"], &off["proposed"]), (&"off".into(), &0.into()));
        assert_eq!(off["tokens_per_step"], 1.0);
        for (speculate, mode) in [("ngram", "ngram"), (&draft[..], "draft")] {
            for more in
                [&[][..], &["--speculate-tokens", "3"], &small, &["--memory-budget", "6MiB"]]
            {
                let flags = [sampling, &["--speculate", speculate], more].concat();
                let found = run(&scratch, &flags).json();
                assert_eq!(found["token_ids"], want["token_ids"], "{flags:?}");
                assert_eq!(found["text"], want["text"], "{flags:?}");
                let told = told(&found);
                assert_eq!(told["mode"], mode, "{flags:?}");
                assert!(told["proposed"].as_u64().unwrap() > 0, "{flags:?}: {told}");
                assert_eq!(told["draft_model"].is_null(), mode == "ngram", "{told}");
                for (key, value) in told.as_object().unwrap() {
                    let explained = told["null_reasons"].get(key).is_some();
                    assert_eq!(value.is_null(), explained, "{key} of {told}");
                }
            }
        }
    }
}

#[test]
fn a_text_that_repeats_takes_fewer_steps_by_lookup() {
    let scratch = Scratch::new();
    let times = "the one, the other, and the one, the other, and ".repeat(12);
    let flags = ["--temperature", "0", "--compute-dtype", "f32", "--ignore-eos", "--json"];
    let arguments = ["generate", "--prompt", &times, "--max-new-tokens", "60"];
    let found = kvern(&scratch, arguments.iter().chain(&flags).chain(&["--speculate", "ngram"]));
    let found = found.json();
    assert!(told(&found)["tokens_per_step"].as_f64().unwrap() > 1.5, "{}", told(&found));
    let want = kvern(&scratch, arguments.iter().chain(&flags)).json();
    assert_eq!(found["token_ids"], want["token_ids"]);
}

#[test]
fn variables_profiles_and_files_speculate_too_and_a_flag_wins() {
    let scratch = Scratch::new();
    let arguments =
        ["generate", "--prompt", PROMPT, "--json", "--max-new-tokens", "9", "--temperature", "0"];
    let profile = scratch.write("guess.toml", "[speculate]\nby = \"ngram\"\ntokens = 5\n");
    let flags = ["--profile-manifest", &profile];
    let found = kvern(&scratch, arguments.iter().chain(&flags)).json();
    assert_eq!((&told(&found)["mode"], &told(&found)["tokens_most"]), (&"ngram".into(), &5.into()));
    let by_variable = |more: &[&str]| {
        let mut command = command(binary(), &scratch);
        command.args(arguments).args(more).env("KVERN_SPECULATE", "ngram");
        ended(command.env("KVERN_SPECULATE_TOKENS", "7")).json()
    };
    let found = by_variable(&flags);
    assert_eq!(told(&found)["tokens_most"], 7);
    let found = by_variable(&["--speculate", "off"]);
    assert_eq!(told(&found)["mode"], "off");
    let wrong = scratch.write("wrong.toml", "[speculate]\nby = \"magic\"\n");
    let flags = ["--profile-manifest", &wrong];
    let refused = kvern(&scratch, arguments.iter().chain(&flags));
    let line = refused.refused(1);
    assert!(line.contains("wrong.toml:2: `speculate.by`") && line.contains("ngram"), "{line}");
}

#[test]
fn what_cannot_guess_is_refused_in_a_line() {
    let scratch = Scratch::new();
    for wrong in ["magic", "draft", "draft=", "ngram=3"] {
        let ended = run(&scratch, &["--speculate", wrong]);
        assert!(ended.refused(2).contains("ngram, draft=MODEL"), "{wrong}");
    }
    for tokens in ["0", "33", "x"] {
        run(&scratch, &["--speculate", "ngram", "--speculate-tokens", tokens]).refused(2);
    }
    assert!(run(&scratch, &["--speculate-tokens", "4"]).refused(2).contains("--speculate"));
    let nowhere = run(&scratch, &["--speculate", "draft=nowhere"]);
    assert!(nowhere.refused(1).contains("no model `nowhere`"), "{nowhere:?}");
    let itself = run(&scratch, &["--speculate", "draft=tiny-austen"]);
    assert!(itself.refused(1).contains("the model itself"), "{itself:?}");
    // A directory is itself by any name.
    let (copy, link) = (draft(&scratch, "copy"), scratch.at("link"));
    std::os::unix::fs::symlink(&copy, &link).unwrap();
    let linked = run(&scratch, &["--model", &copy, "--speculate", &format!("draft={link}")]);
    assert!(linked.refused(1).contains("the model itself"), "{linked:?}");
    // Without words, and with other words.
    let mute = scratch.at("mute");
    kvern(&scratch, ["models", "synth", "tiny", "--output", &mute]);
    let said = run(&scratch, &["--speculate", &format!("draft={mute}")]);
    assert!(said.refused(1).contains("tokenizer.json"), "{said:?}");
    let other = draft(&scratch, "other");
    let path = format!("{other}/tokenizer.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let mut tokenizer: Value = serde_json::from_str(&text).unwrap();
    let vocabulary = tokenizer["model"]["vocab"].as_object_mut().unwrap();
    let (a, b) = (vocabulary["!"].clone(), vocabulary["\""].clone());
    vocabulary.insert("!".into(), b);
    vocabulary.insert("\"".into(), a);
    std::fs::write(&path, tokenizer.to_string()).unwrap();
    let said = run(&scratch, &["--speculate", &format!("draft={other}")]);
    assert!(said.refused(1).contains("its vocabulary is another: \"!\" is"), "{said:?}");
}

#[test]
fn a_budget_that_a_draft_leaves_too_little_of_is_refused_with_what_both_need() {
    let scratch = Scratch::new();
    let speculate = format!("draft={}", draft(&scratch, "draft"));
    let at = |budget: &str| run(&scratch, &["--speculate", &speculate, "--memory-budget", budget]);
    let refused = at("1MiB");
    let line = refused.refused(1);
    let least = line.split("at least ").nth(1).unwrap().split(' ').next().unwrap();
    assert!(line.contains("for draft,") && line.contains("for tiny-austen"), "{line}");
    let least: u64 = least.parse().unwrap();
    assert!(at(&(least - 1).to_string()).refused(1).contains(&format!("at least {least}")));
    let found = at(&(least + (1 << 20)).to_string()).json();
    assert!(found["metrics"]["offload_cpu_applied_layers"].as_u64().unwrap() < 6);
    assert_eq!(told(&found)["draft_model"], "draft");
}

#[test]
fn a_conversation_speculates_and_says_what_it_says_without() {
    let scratch = Scratch::new();
    let speculate = format!("draft={}", draft(&scratch, "draft"));
    let talk = |more: &[&str]| {
        let mut command = command(binary(), &scratch);
        command.args(["chat", "--max-new-tokens", "30", "--temperature", "0", "--ignore-eos"]);
        command.args(["--compute-dtype", "f32", "--context-tokens", "300"]).args(more);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let text = "She walked to the window, and\nshe walked to the window, and\nthen\n";
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let want = talk(&[]);
    assert_eq!(talk(&["--speculate", "ngram"]), want);
    assert_eq!(talk(&["--speculate", &speculate]), want);
}

#[test]
fn many_prompts_are_guessed_for_in_one_batch_and_say_what_they_say_without() {
    let scratch = Scratch::new();
    let speculate = format!("draft={}", draft(&scratch, "draft"));
    let lines = ["It is a truth", PROMPT, "The sea", "Anne could not"]
        .iter()
        .enumerate()
        .map(|(id, prompt)| serde_json::json!({"id": id, "prompt": prompt}).to_string());
    let file = scratch.write("prompts.jsonl", lines.collect::<Vec<_>>().join("\n"));
    let answers = |more: &[&str]| {
        let exact = ["--compute-dtype", "f32", "--ignore-eos", "--max-new-tokens", "50"];
        let drawn = ["--temperature", "0.7", "--seed", "2"];
        let arguments = ["generate", "--prompts", &file];
        let ended = kvern(&scratch, arguments.iter().chain(&exact).chain(&drawn).chain(more));
        assert_eq!(ended.code, Some(0), "{ended:?}");
        let answer = |line: &str| {
            let line: Value = serde_json::from_str(line).unwrap();
            (line["id"].as_u64().unwrap(), line["token_ids"].clone())
        };
        ended.stdout.lines().map(answer).collect::<std::collections::BTreeMap<_, _>>()
    };
    let want = answers(&[]);
    assert_eq!(want.len(), 4);
    for by in ["ngram", &speculate] {
        assert_eq!(answers(&["--speculate", by]), want, "{by}");
        assert_eq!(answers(&["--speculate", by, "--batch", "2"]), want, "{by}, two at once");
    }
}
