//! Ctrl-C ends after the current token; a reader that has enough is no error; neither leaves
//! anything on disk.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use kvern_e2e::{Scratch, binary, command, ended};
use std::io::Read;
use std::path::PathBuf;
use std::process::{Command, Stdio};

fn interrupt(child: &std::process::Child) {
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(sent.unwrap().success());
}

#[test]
fn ctrl_c_ends_with_130_and_removes_what_is_on_disk() {
    let scratch = Scratch::new();
    let cache = scratch.at("cache");
    let mut child = command(binary(), &scratch)
        .args(["generate", "--prompt", "She walked to the window, and", "--ignore-eos"])
        .args(["--max-new-tokens", "3500", "--kv-cache-strategy", "chunked", "--cache-dir", &cache])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 1000];
    child.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    interrupt(&child);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert!(output.stdout.ends_with(b"\n"), "the text ends with its line");
    assert_eq!(scratch.files("cache"), Vec::<PathBuf>::new());
}

#[test]
fn ctrl_c_ends_a_chat_that_waits() {
    let scratch = Scratch::new();
    let mut child = command(binary(), &scratch)
        .args(["chat", "--max-new-tokens", "4"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    use std::io::Write;
    child.stdin.as_mut().unwrap().write_all(b"It was a truth\n").unwrap();
    let mut answer = [0; 4];
    child.stdout.as_mut().unwrap().read_exact(&mut answer).unwrap();
    interrupt(&child);
    // The pipe stays open: only the signal can end it.
    let stdin = child.stdin.take();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    drop(stdin);
}

#[test]
fn a_closed_pipe_is_quiet() {
    let scratch = Scratch::new();
    let mut child = command(binary(), &scratch)
        .args([
            "generate",
            "--prompt",
            "It was a truth",
            "--max-new-tokens",
            "3000",
            "--ignore-eos",
        ])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 20];
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut first).unwrap();
    drop(stdout);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[test]
fn a_chat_answers_each_line_and_ends_with_its_input() {
    let scratch = Scratch::new();
    let lines = scratch.write("lines.txt", "It was a truth\n\nShe walked\n");
    let file = std::fs::File::open(lines).unwrap();
    let ended =
        ended(command(binary(), &scratch).args(["chat", "--max-new-tokens", "6"]).stdin(file));
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
    assert!(ended.stdout.lines().count() >= 2, "{ended:?}");
}

/// The processes that a process started and that have not ended.
fn started_by(parent: u32) -> Vec<u32> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(id) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        if stat_of(id).is_some_and(|(state, of)| of == parent && state != "Z") {
            found.push(id);
        }
    }
    found
}

/// State and parent of a process; nothing once it is gone.
fn stat_of(id: u32) -> Option<(String, u32)> {
    let text = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // The name before it may hold anything.
    let mut words = text.rsplit_once(')')?.1.split_whitespace();
    Some((words.next()?.into(), words.next()?.parse().ok()?))
}

/// Asks until there is an answer.
fn at_last<T>(what: &str, ask: impl Fn() -> Option<T>) -> T {
    let start = std::time::Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(start.elapsed().as_secs() < 60, "{what}");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

#[test]
fn a_lane_ends_with_the_process_that_started_it() {
    let scratch = Scratch::new();
    let library = binary().parent().unwrap().join("libkvern_fixture_bad_device.so");
    let room = scratch.at("room");
    std::fs::create_dir_all(&room).unwrap();
    let mut bench = command(binary(), &scratch)
        .args(["bench", "--no-record-history", "--cache-dir", &scratch.at("cache")])
        .args(["--device", library.to_str().unwrap(), "--device-option", "fault=hang-in-open"])
        .env("TMPDIR", &room)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lane = at_last("no lane began", || started_by(bench.id()).first().copied());
    // It has begun its trail, and hangs from then on.
    at_last("the trail keeps its name", || scratch.files("room").is_empty().then_some(()));
    bench.kill().unwrap();
    bench.wait().unwrap();
    at_last("the lane lives on", || {
        stat_of(lane).is_none_or(|(state, _)| state == "Z").then_some(())
    });
    assert_eq!(scratch.files("room"), Vec::<PathBuf>::new());
}

#[test]
fn a_trails_variable_changes_no_file_that_has_something_in_it() {
    let scratch = Scratch::new();
    let precious = scratch.write("precious", "words");
    let own = std::process::id();
    for word in [precious.clone(), format!("{own}:{precious}")] {
        let ran = ended(command(binary(), &scratch).arg("--version").env("KVERN_TRAIL", word));
        assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
        assert_eq!(std::fs::read(&precious).unwrap(), b"words");
    }
}

#[test]
fn a_deadline_of_nothing_is_refused_by_every_command_that_calls_plugins() {
    let scratch = Scratch::new();
    let commands: [&[&str]; 3] =
        [&["plugins", "list"], &["generate", "--prompt", "x"], &["plugins", "verify", "x"]];
    for arguments in commands {
        for wrong in ["0", "soon"] {
            let mut run = command(binary(), &scratch);
            let ran = ended(run.args(arguments).env("KVERN_PLUGIN_DEADLINE", wrong));
            let line = ran.refused(2);
            assert!(
                line.contains("PLUGIN_DEADLINE") || line.contains("--plugin-deadline"),
                "{line}"
            );
        }
    }
}
