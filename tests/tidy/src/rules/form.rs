//! The form of the sources: lengths, words that must not stay, tests that cannot fail.

use crate::rust::has_word;
use crate::tree::{Tree, finds, holds};

/// Most lines of a file.
const LINES: usize = 500;

/// Most columns of a line of code or comment, what strings hold not counted.
const COLUMNS: usize = 100;

fn lengths(tree: &Tree) -> Vec<String> {
    let mut findings = Vec::new();
    for file in tree.below("", ".rs") {
        let lines = file.text.lines().count();
        if lines > LINES {
            findings.push(file.at(lines, &format!("{lines} lines, at most {LINES}")));
        }
        let source = file.source();
        for (line, text) in file.lines() {
            let comment = &source.comments[line - 1];
            let columns = source.code[line - 1].chars().count() + comment.chars().count();
            let is_table = comment.trim_start_matches(['/', '!']).trim_start().starts_with('|');
            if text.chars().count() > COLUMNS
                && columns > COLUMNS
                && !is_table
                && !text.contains("://")
            {
                findings.push(file.at(line, &format!("{columns} columns, at most {COLUMNS}")));
            }
        }
    }
    findings
}

/// Macros that leave work behind, and marks of work left behind. In halves, so that this file
/// passes.
fn leftovers() -> (Vec<String>, Vec<String>) {
    let join = |pairs: &[(&str, &str)]| pairs.iter().map(|(a, b)| format!("{a}{b}")).collect();
    (
        join(&[("to", "do!"), ("unimple", "mented!"), ("db", "g!")]),
        join(&[("FIX", "ME"), ("XX", "X"), ("TO", "DO"), ("HA", "CK"), ("Under con", "struction")]),
    )
}

fn words(tree: &Tree) -> Vec<String> {
    let (macros, marks) = leftovers();
    let mut findings = Vec::new();
    for file in tree.below("", ".rs") {
        for (i, code) in file.source().code.iter().enumerate() {
            for word in macros.iter().filter(|word| has_word(code, &word[..word.len() - 1])) {
                if code.contains(word.as_str()) {
                    findings.push(file.at(i + 1, &format!("`{word}` must not stay")));
                }
            }
        }
    }
    for file in ["rs", "toml", "md"].iter().flat_map(|end| tree.below("", end)) {
        for (line, text) in file.lines() {
            for word in marks.iter().filter(|word| has_word(text, word)) {
                findings.push(file.at(line, &format!("`{word}` must not stay")));
            }
        }
    }
    findings
}

/// `matches!(…);` as a statement: its answer is dropped, so as a test it cannot fail.
fn dropped_matches(tree: &Tree) -> Vec<String> {
    let mut findings = Vec::new();
    for file in tree.below("", ".rs") {
        let code = file.source().code.join("\n");
        for (at, word) in code.match_indices("matches!(") {
            let before = code[..at].trim_end().chars().next_back();
            let mut depth = 1;
            let rest = &code[at + word.len()..];
            let end = rest.find(|c| {
                depth += i32::from(c == '(') - i32::from(c == ')');
                depth == 0
            });
            let after = end.and_then(|end| rest[end + 1..].trim_start().chars().next());
            if before.is_none_or(|c| ";{}".contains(c)) && after == Some(';') {
                let line = code[..at].matches('\n').count() + 1;
                findings.push(file.at(line, "the answer of `matches!` is dropped; assert it"));
            }
        }
    }
    findings
}

#[test]
fn files_and_lines_are_short_enough_to_read() {
    let long = "x();\n".repeat(LINES + 1);
    let wide = format!("let a = {};\n", "1 + ".repeat(30));
    let comment =
        format!("// {}\n// |{}\n// https://{}\n", "a".repeat(99), "b".repeat(99), "c".repeat(99));
    let string = format!("let a = \"{}\";\n", "s".repeat(200));
    let tree = Tree::of(&[("a.rs", &long), ("b.rs", &wide), ("c.rs", &comment), ("d.rs", &string)]);
    finds(lengths(&tree), &["a.rs:501", "b.rs:1", "c.rs:1"]);
    holds(lengths(&Tree::checkout()));
}

#[test]
fn no_word_of_unfinished_work_stays() {
    let (macros, marks) = leftovers();
    let code = format!("fn a() {{ {}() }}\n// {} is a macro\n", macros[0], macros[1]);
    let note = format!("a\n{}: later\nNOT{}S\n", marks[0], marks[0]);
    let tree = Tree::of(&[("a.rs", &code), ("b.md", &note)]);
    finds(words(&tree), &["a.rs:1", "b.md:2"]);
    holds(words(&Tree::checkout()));
}

#[test]
fn no_answer_of_matches_is_dropped() {
    let bad = "fn t() {\n    let a = f(); matches!(a,\n        Some((1, _)));\n}\n";
    let good = "fn t() -> bool {\n    assert!(matches!(a, B(_)));\n    matches!(a, B(_))\n}\n";
    let arm = "let a = matches!(b, C);\n";
    let tree = Tree::of(&[("a.rs", bad), ("b.rs", good), ("c.rs", arm)]);
    finds(dropped_matches(&tree), &["a.rs:2"]);
    holds(dropped_matches(&Tree::checkout()));
}
