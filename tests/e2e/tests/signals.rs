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
