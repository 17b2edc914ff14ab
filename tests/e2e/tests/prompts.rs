//! Many prompts in one run: each has the answer that it has alone, and what is wrong with one line
//! is told in its own.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use kvern_e2e::{Ended, Scratch, binary, command, kvern};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Write;
use std::process::Stdio;

const PROMPTS: [&str; 4] =
    ["It is a truth", "The sea", "Anne walked to the window, and", "She could not"];

fn write(scratch: &Scratch, lines: &[String]) -> String {
    let path = scratch.at("prompts.jsonl");
    std::fs::write(&path, lines.join("\n")).unwrap();
    path
}

fn prompt(id: usize) -> String {
    json!({"id": id, "prompt": PROMPTS[id], "max_new_tokens": 3 + 5 * id}).to_string()
}

/// The lines of stdout by their ids.
fn answers(ended: &Ended) -> BTreeMap<String, Value> {
    let lines = ended.stdout.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let mut answers = BTreeMap::new();
    for line in lines {
        let twice = answers.insert(line["id"].to_string(), line);
        assert!(twice.is_none(), "an id has one line: {ended:?}");
    }
    answers
}

#[test]
fn each_prompt_has_the_answer_that_it_has_alone_however_many_run_at_once() {
    let scratch = Scratch::new();
    let file = write(&scratch, &(0..4).map(prompt).collect::<Vec<_>>());
    let exact = ["--compute-dtype", "f32", "--temperature", "0.8", "--seed", "7", "--ignore-eos"];
    let alone: Vec<Value> = (0..4)
        .map(|id| {
            let new = (3 + 5 * id).to_string();
            let args = ["generate", "--prompt", PROMPTS[id], "--max-new-tokens", &new, "--json"];
            kvern(&scratch, args.iter().chain(&exact)).json()
        })
        .collect();
    for more in [&[][..], &["--batch", "2"], &["--batch", "1"], &["--memory-budget", "4MiB"]] {
        let ended =
            kvern(&scratch, ["generate", "--prompts", &file].iter().chain(&exact).chain(more));
        assert_eq!(ended.code, Some(0), "{ended:?}");
        let answers = answers(&ended);
        assert_eq!(answers.len(), 4, "{more:?}");
        for (id, alone) in alone.iter().enumerate() {
            let answer = &answers[&id.to_string()];
            assert_eq!(answer["token_ids"], alone["token_ids"], "{id} {more:?}");
            assert_eq!(answer["text"], alone["text"], "{id} {more:?}");
            assert_eq!(answer["output_tokens"], json!(3 + 5 * id));
            assert_eq!(answer["prompt_tokens"], alone["metrics"]["prompt_tokens"]);
            assert_eq!(answer["finish_reason"], "length");
            let times = (&answer["time_to_first_token_ms"], &answer["total_ms"]);
            assert!(times.0.as_f64().unwrap() <= times.1.as_f64().unwrap(), "{answer}");
        }
    }
}

#[test]
fn short_answers_come_first_and_make_room_for_others() {
    let scratch = Scratch::new();
    let line = |id: usize, new: usize| {
        json!({"id": id, "prompt": "The sea", "max_new_tokens": new}).to_string()
    };
    let file = write(&scratch, &[line(0, 60), line(1, 2), line(2, 2)]);
    let args = ["generate", "--prompts", &file, "--batch", "2", "--ignore-eos", "-v"];
    let ended = kvern(&scratch, args);
    let ids: Vec<Value> = (ended.stdout.lines())
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["id"].clone())
        .collect();
    assert_eq!(ids, [1, 2, 0]);
    assert!(ended.stderr.contains("3 prompts, 64 new tokens"), "{}", ended.stderr);
    // The longest decides: a step serves all.
    assert!(ended.stderr.contains(" 60 sweeps"), "{}", ended.stderr);
}

#[test]
fn a_broken_line_is_told_in_its_place_and_the_others_are_served() {
    let scratch = Scratch::new();
    let long = json!({"id": "long", "prompt": "sea ".repeat(3000)}).to_string();
    let lines = [
        prompt(0),
        "{\"id\": 9, \"prompt\":".into(),
        "nonsense".into(),
        long,
        json!({"id": "typed", "prompt": 5}).to_string(),
        json!({"id": "empty", "prompt": "x", "max_new_tokens": 0}).to_string(),
        String::new(),
        prompt(1),
        prompt(1),
    ];
    let file = write(&scratch, &lines);
    let ended = kvern(&scratch, ["generate", "--prompts", &file]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let told: Vec<&str> = ended.stderr.lines().collect();
    assert!(told.len() == 1 && told[0].starts_with("kvern: 6 of 8 prompts"), "{told:?}");
    let lines: Vec<Value> =
        ended.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 8);
    let errors: Vec<&str> = lines.iter().filter_map(|line| line["error"].as_str()).collect();
    let parts =
        ["line 2: ", "line 3: ", "context", "line 5: ", "max_new_tokens is 0", "line 8 too"];
    for part in parts {
        assert_eq!(errors.iter().filter(|e| e.contains(part)).count(), 1, "{part}: {errors:?}");
    }
    let served: Vec<&Value> = lines.iter().filter(|line| line["text"].is_string()).collect();
    assert_eq!(served.len(), 2);
}

#[test]
fn prompts_come_from_stdin_too() {
    let scratch = Scratch::new();
    let mut child = command(binary(), &scratch)
        .args(["generate", "--prompts", "-", "--max-new-tokens", "2"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"{\"prompt\": \"The\"}\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    let line: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&line["id"], &line["output_tokens"]), (&json!(1), &json!(2)));
}

#[test]
fn a_file_without_prompts_and_flags_that_do_not_go_together_are_refused() {
    let scratch = Scratch::new();
    let empty = write(&scratch, &["  ".into()]);
    assert!(kvern(&scratch, ["generate", "--prompts", &empty]).refused(1).contains("no prompt"));
    let missing = kvern(&scratch, ["generate", "--prompts", "nowhere.jsonl"]);
    assert!(missing.refused(1).contains("nowhere.jsonl"));
    for args in [
        ["generate", "--prompt", "x", "--batch", "2"],
        ["generate", "--prompts", &empty, "--prompt", "x"],
        ["generate", "--prompts", &empty, "--batch", "0"],
        ["generate", "--prompts", &empty, "--json", "--ignore-eos"],
    ] {
        kvern(&scratch, args).refused(2);
    }
}
