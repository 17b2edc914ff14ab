//! What is not there: the absences of docs/ARCHITECTURE.md, read from the sources.

use crate::rust::has_word;
use crate::tree::{Tree, finds, holds};

/// Where, and which words its code never has. Paths are matched as written.
const ABSENCES: [(&str, &[&str]); 11] = [
    ("core/contract/src", &["unsafe", "std::fs", "std::net", "std::thread", "std::process"]),
    ("core/record/src", &["std::fs", "std::net", "std::thread", "std::process"]),
    ("core/engine/src", &["libloading", "dlopen", "dlsym", "abi_stable", "std::net"]),
    ("core/model/src", &["libloading", "dlopen", "abi_stable"]),
    ("core/report/src", &["std::net", "std::thread"]),
    ("core/storage/src", &["std::net"]),
    ("host", &["libloading", "dlopen", "abi_stable", "candle_core"]),
    ("plugins/kv", &["std::fs", "std::process", "libloading", "abi_stable"]),
    ("plugins/offload", &["std::fs", "std::net", "std::thread", "std::time", "abi_stable"]),
    ("plugins/device", &["std::fs", "std::net", "std::process", "libloading", "abi_stable"]),
    ("tests/conformance", &["libloading", "abi_stable"]),
];

fn absences(tree: &Tree) -> Vec<String> {
    let mut findings = Vec::new();
    for (place, words) in ABSENCES {
        let inside_tests = place.starts_with("tests/");
        for file in tree.below(place, ".rs").filter(|file| inside_tests || !file.is_test()) {
            for (line, code) in file.source().live() {
                for word in words.iter().filter(|word| has_word(code, word)) {
                    let what = format!("nothing below {place} names `{word}`");
                    findings.push(file.at(line, &what));
                }
            }
        }
    }
    findings
}

#[test]
fn each_crate_leaves_to_others_what_is_theirs() {
    holds(absences(&Tree::checkout()));
}

#[test]
fn a_word_in_code_is_found_and_one_in_a_comment_a_string_or_a_test_is_not() {
    let tree = Tree::of(&[
        ("core/contract/src/a.rs", "// unsafe\nconst A: &str = \"std::fs\";\nuse std::fs::File;\n"),
        ("core/engine/src/a.rs", "fn a() {}\nuse libloading::Library;\n"),
        ("plugins/kv/x/src/lib.rs", "#[cfg(test)]\nmod tests {\n    use std::fs;\n}\n"),
        ("plugins/kv/x/tests/a.rs", "use std::fs;\n"),
        ("plugins/offload/x/src/lib.rs", "fn f() { std::time::Instant::now(); }\n"),
    ]);
    let places =
        ["core/contract/src/a.rs:3", "core/engine/src/a.rs:2", "plugins/offload/x/src/lib.rs:1"];
    finds(absences(&tree), &places);
}
