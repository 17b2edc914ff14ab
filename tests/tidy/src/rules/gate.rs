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
