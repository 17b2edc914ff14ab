//! Where `unsafe` may stand, and that each stands with a reason.

use crate::rust::has_word;
use crate::tree::{Tree, finds, holds};

/// The crates that may write it.
const HOMES: [&str; 5] = [
    "core/abi/",
    "core/storage/",
    "host/kvern/templates/device/",
    "plugins/device/",
    "tests/fixtures/plugins/",
];

/// How far above an unsafe block or impl its reason may begin.
const REACH: usize = 12;

fn homes(tree: &Tree) -> Vec<String> {
    let mut findings = Vec::new();
    for file in tree.below("", ".rs") {
        if HOMES.iter().any(|home| file.path.starts_with(home)) {
            continue;
        }
        for (i, code) in file.source().code.iter().enumerate() {
            if has_word(code, "unsafe") {
                findings.push(file.at(i + 1, &format!("`unsafe` outside of {HOMES:?}")));
            }
        }
    }
    findings
}

fn reasons(tree: &Tree) -> Vec<String> {
    let mut findings = Vec::new();
    for file in tree.below("", ".rs") {
        let source = file.source();
        for (i, code) in source.code.iter().enumerate() {
            let is_block = code.split("unsafe").skip(1).any(|rest| {
                let rest = rest.trim_start();
                rest.starts_with('{') || rest.starts_with("impl")
            });
            let above = &source.comments[i.saturating_sub(REACH)..=i];
            if is_block && has_word(code, "unsafe") && !above.iter().any(|c| c.contains("SAFETY:"))
            {
                let what = format!("no `// SAFETY:` within {REACH} lines above");
                findings.push(file.at(i + 1, &what));
            }
        }
    }
    findings
}

#[test]
fn unsafe_code_stays_in_its_homes() {
    let tree = Tree::of(&[
        ("core/abi/src/a.rs", "unsafe {}\n"),
        ("core/engine/src/a.rs", "#![forbid(unsafe_code)]\n// unsafe\nfn f() { unsafe { g() } }\n"),
    ]);
    finds(homes(&tree), &["core/engine/src/a.rs:3"]);
    holds(homes(&Tree::checkout()));
}

#[test]
fn unsafe_code_has_a_reason_before_it() {
    let far = format!("// SAFETY: too far\n{}unsafe {{}}\n", "\n".repeat(REACH));
    let tree = Tree::of(&[
        ("core/abi/src/a.rs", "// SAFETY: because\nunsafe impl Send for A {}\n"),
        ("core/abi/src/b.rs", "unsafe fn f() {}\nunsafe impl Send for A {}\n"),
        ("core/abi/src/c.rs", &far),
        ("core/abi/src/d.rs", "let a = \"// SAFETY: no\";\nlet b = unsafe { f() };\n"),
    ]);
    let places = ["core/abi/src/b.rs:2", "core/abi/src/c.rs:14", "core/abi/src/d.rs:2"];
    finds(reasons(&tree), &places);
    holds(reasons(&Tree::checkout()));
}
