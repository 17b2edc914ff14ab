//! The gate: one command, the same in the README and in CI.

use crate::markdown::fenced;
use crate::tree::{Tree, finds, holds};

/// What tests everything.
const COMMAND: &str = "cargo kvern test";

fn gate(tree: &Tree) -> Vec<String> {
    let mut findings = Vec::new();
    let readme = tree.file("README.md").map(fenced).unwrap_or_default();
    if !readme.iter().any(|(_, line)| line.trim() == COMMAND) {
        findings.push(format!("README.md:1: no fenced line `{COMMAND}`"));
    }
    let Some(run) = tree.file(".ci/run") else {
        findings.push(".ci/run:1: there is none".to_owned());
        return findings;
    };
    let work: Vec<(usize, &str)> = run
        .lines()
        .filter(|(_, line)| !line.trim().is_empty() && !line.starts_with(['#']))
        .filter(|(_, line)| *line != "set -euo pipefail")
        .collect();
    if work.iter().map(|(_, line)| *line).ne([COMMAND]) {
        let line = work.iter().find(|(_, line)| *line != COMMAND).map_or(1, |(line, _)| *line);
        findings.push(run.at(line, &format!("it runs `{COMMAND}` and nothing else")));
    }
    findings
}

#[test]
fn ci_runs_the_readmes_test_command_and_nothing_else() {
    let readme = "# K\n```\ncargo kvern test\n```\n";
    let run = "#!/usr/bin/env bash\nset -euo pipefail\ncargo kvern test\n";
    let more = format!("{run}echo done\n");
    holds(gate(&Tree::of(&[("README.md", readme), (".ci/run", run)])));
    finds(gate(&Tree::of(&[("README.md", readme), (".ci/run", &more)])), &[".ci/run:4"]);
    finds(gate(&Tree::of(&[("README.md", "# K\n"), (".ci/run", run)])), &["README.md:1"]);
    finds(gate(&Tree::of(&[("README.md", readme)])), &[".ci/run:1"]);
    holds(gate(&Tree::checkout()));
}

/// Code of the border and the contracts, by docs/ABI.md's recipe: without tests, comments and
/// empty lines.
fn abi_code(tree: &Tree) -> String {
    let mut code = String::new();
    let places = ["core/abi/src", "core/contract/src"];
    for file in places.iter().flat_map(|place| tree.below(place, ".rs")) {
        code.push_str(&file.path);
        code.push('\n');
        for line in file.text.lines().take_while(|line| *line != "#[cfg(test)]").map(str::trim) {
            if !line.is_empty() && !line.starts_with("//") {
                code.push_str(line);
                code.push('\n');
            }
        }
    }
    code
}

fn abi_hash(tree: &Tree) -> Vec<String> {
    let hash = crate::sha256::hex(abi_code(tree).as_bytes());
    let Some(page) = tree.file("docs/ABI.md") else {
        return vec!["docs/ABI.md:1: there is none".to_owned()];
    };
    let said = page.lines().find_map(|(line, text)| Some((line, text.strip_prefix("abi-hash: ")?)));
    match said {
        Some((_, said)) if said == hash => Vec::new(),
        Some((line, _)) => {
            let what = format!("the border's code has {hash}; see the rules of change above it");
            vec![page.at(line, &what)]
        }
        None => vec![page.at(1, "no line `abi-hash: …`")],
    }
}

#[test]
fn the_border_does_not_move_without_its_document() {
    let code = "//! doc\n\n  fn a() {} \n#[cfg(test)]\nmod tests;\n";
    let moved = code.replace("a()", "b()");
    let commented = code.replace("doc", "other");
    let hash = crate::sha256::hex(b"core/abi/src/a.rs\nfn a() {}\n");
    let page = format!("# A\nabi-hash: {hash}\n");
    let tree = |code: &str| Tree::of(&[("core/abi/src/a.rs", code), ("docs/ABI.md", &page)]);
    holds(abi_hash(&tree(code)));
    holds(abi_hash(&tree(&commented)));
    finds(abi_hash(&tree(&moved)), &["docs/ABI.md:2"]);
    finds(abi_hash(&Tree::of(&[("docs/ABI.md", "# A\n")])), &["docs/ABI.md:1"]);
    holds(abi_hash(&Tree::checkout()));
}
