//! The promises are the contract's own words, and each has a case: read from the contract's
//! sources, so that neither moves without the other.

use kvern_testkit::{Promise, promises};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// The traits that plugins implement.
const TRAITS: [&str; 6] =
    ["KvStrategy", "KvStore", "KvAttentive", "KvCodec", "OffloadPolicy", "DeviceBackend"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn sources(below: &Path, out: &mut Vec<String>) {
    let mut entries: Vec<PathBuf> = std::fs::read_dir(below)
        .expect("sources")
        .map(|entry| entry.expect("one").path())
        .collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            sources(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs") {
            let text = std::fs::read_to_string(path).expect("text");
            out.push(text.split("#[cfg(test)]").next().unwrap_or_default().to_owned());
        }
    }
}

/// The documentation of every item of the contract, by name: `KvStore`, `KvStore::load`,
/// `Placement::units`, `Op::Linear` with all its fields.
fn documentation() -> BTreeMap<String, String> {
    let mut files = Vec::new();
    sources(&root().join("core/contract/src"), &mut files);
    let mut out: BTreeMap<String, String> = BTreeMap::new();
    for file in files {
        let (mut docs, mut holder, mut member) = (String::new(), String::new(), String::new());
        for line in file.lines() {
            let (text, depth) = (line.trim(), line.len() - line.trim_start().len());
            if let Some(words) = text.strip_prefix("///") {
                docs.push_str(words.trim());
                docs.push('\n');
            } else if !text.starts_with("#[") && !docs.is_empty() {
                match (depth, name_of(text)) {
                    (0, Some(name)) => (holder, member) = (name, String::new()),
                    (4, Some(name)) => member = name,
                    _ => {}
                }
                let parts = [holder.as_str(), member.as_str()];
                let key = parts.iter().filter(|part| !part.is_empty()).copied().collect::<Vec<_>>();
                let entry = out.entry(key.join("::")).or_default();
                *entry += &std::mem::take(&mut docs);
            } else if depth == 0 && text.starts_with("ops!") {
                (holder, member) = ("Op".into(), String::new());
            }
        }
    }
    out
}

/// The name that a line declares: a trait, struct, enum, method, field, variant, or an op by code.
fn name_of(line: &str) -> Option<String> {
    let mut words =
        line.split(|c: char| !(c.is_alphanumeric() || c == '_')).filter(|w| !w.is_empty());
    let first = words.next()?;
    let skip = ["pub", "trait", "struct", "enum", "fn", "const", "type"];
    let mut name = first;
    while skip.contains(&name) || name.chars().all(|c| c.is_ascii_digit()) {
        name = words.next()?;
    }
    Some(name.to_owned())
}

fn flat(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The sentences of a section, as of `# Plugin must`.
fn section(docs: &str, title: &str) -> Vec<String> {
    let after = docs.split(&format!("# {title}\n")).nth(1).unwrap_or_default();
    let text = flat(after.split("\n# ").next().unwrap_or_default());
    text.split_inclusive(['.', ';'])
        .map(|s| s.trim().to_owned())
        .filter(|s| !s.is_empty())
        .collect()
}

#[test]
fn every_promise_is_in_the_contracts_own_words() {
    let documentation = documentation();
    for (promise, cases) in promises() {
        let docs = documentation.get(promise.of);
        let docs = docs.unwrap_or_else(|| panic!("the contract has no {}", promise.of));
        let stands = flat(docs).contains(&flat(promise.text));
        assert!(stands, "{promise:?} of {cases:?} does not stand there: {}", flat(docs));
    }
}

#[test]
fn every_sentence_that_a_plugin_must_keep_has_a_case() {
    let promises = promises();
    let tried = |of: &str, sentence: &str| {
        let of_it = promises.iter().filter(|(promise, _)| promise.of == of);
        let mut texts = of_it.map(|(promise, _)| flat(promise.text));
        texts.any(|text| {
            text.contains(sentence) || sentence.contains(text.trim_end_matches(['.', ';']))
        })
    };
    let mut missing = Vec::new();
    for (item, docs) in documentation() {
        let is_method = TRAITS.iter().any(|name| item.starts_with(&format!("{name}::")));
        if is_method {
            for sentence in section(&docs, "Plugin must") {
                if !tried(&item, &sentence) {
                    missing.push(format!("{item}: {sentence}"));
                }
            }
        }
        if item.starts_with("Op::") && item.matches("::").count() == 1 && !tried(&item, "") {
            let has_one = promises.iter().any(|(promise, _)| promise.of == item);
            if !has_one {
                missing.push(format!("{item}: no case"));
            }
        }
    }
    assert!(missing.is_empty(), "without a case:\n{}", missing.join("\n"));
}

#[test]
fn every_error_that_is_an_answer_has_a_case() {
    const KINDS: [&str; 12] = [
        "Invalid",
        "Unsupported",
        "NotFound",
        "Damaged",
        "Mismatch",
        "Busy",
        "OutOfSpace",
        "OverBudget",
        "Io",
        "Timeout",
        "Panicked",
        "Internal",
    ];
    let promises = promises();
    let mut missing = Vec::new();
    for (item, docs) in documentation() {
        if !TRAITS.iter().any(|name| item.starts_with(&format!("{name}::"))) {
            continue;
        }
        let errors = section(&docs, "Errors").join(" ");
        let words = |text: &str| -> Vec<String> {
            text.split(|c: char| !c.is_alphanumeric()).map(str::to_owned).collect()
        };
        let tried: Vec<String> = promises
            .iter()
            .filter(|(promise, _)| promise.of == item)
            .flat_map(|(promise, _)| words(promise.text))
            .collect();
        for kind in KINDS.iter().filter(|kind| words(&errors).iter().any(|word| word == *kind)) {
            if !tried.iter().any(|word| word == kind) {
                missing.push(format!("{item}: {kind}"));
            }
        }
    }
    assert!(missing.is_empty(), "without a case:\n{}", missing.join("\n"));
}

/// Links between items of the contract mean nothing on a page: their words stay.
fn unlinked(text: &str) -> String {
    let (mut out, mut rest) = (String::new(), text);
    while let Some(at) = rest.find('[') {
        let (before, from) = rest.split_at(at);
        out += before;
        let Some((words, after)) = from[1..].split_once(']') else { return out + from };
        match after.strip_prefix('(').and_then(|path| path.split_once(')')) {
            Some((_, after)) => (out, rest) = (out + words, after),
            None if words.starts_with('`') && words.ends_with('`') => {
                (out, rest) = (out + words, after)
            }
            None => (out, rest) = (out + "[" + words + "]", after),
        }
    }
    out + rest
}

/// The table that an author reads: which sentence is tried by which case.
fn table() -> String {
    let mut out = String::from(
        "# Promises\n\nWhat a plugin promises, in the words of the contract, and the cases of \
         `kvern-testkit` that try it. `kvern plugins verify` runs them on a library; a case that a \
         plugin's own description excuses it from is skipped, and the card says so. A test keeps \
         this page equal to the suites: `KVERN_WRITE=1 cargo test --release -p kvern-testkit` \
         writes it.\n",
    );
    let all = promises();
    let holder = |of: &'static str| of.split("::").next().unwrap_or(of);
    let mut holders: Vec<&str> = Vec::new();
    for (promise, _) in &all {
        if !holders.contains(&holder(promise.of)) {
            holders.push(holder(promise.of));
        }
    }
    for name in holders {
        let _ = write!(out, "\n## {name}\n\n| at | promise | case |\n|---|---|---|\n");
        let mut rows: Vec<_> = all.iter().filter(|(p, _)| holder(p.of) == name).collect();
        rows.sort_by_key(|(promise, _)| promise.of);
        for (Promise { of, text }, cases) in rows {
            let cases: Vec<String> = cases.iter().map(|case| format!("`{case}`")).collect();
            let text = unlinked(&flat(text)).replace('|', "\\|");
            let _ = writeln!(out, "| `{of}` | {text} | {} |", cases.join(", "));
        }
    }
    out
}

#[test]
fn the_page_of_promises_is_what_the_suites_say() {
    let path = root().join("docs/PROMISES.md");
    if std::env::var_os("KVERN_WRITE").is_some() {
        std::fs::write(&path, table()).expect("the page can be written");
    }
    let page = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(page == table(), "docs/PROMISES.md is old: run with KVERN_WRITE=1");
}

#[test]
fn links_lose_their_targets_and_shapes_keep_their_brackets() {
    let text = "of [`Persistent`](super::Lifecycle::Persistent), [`Space`], `[row][head]` and [";
    assert_eq!(unlinked(text), "of `Persistent`, `Space`, `[row][head]` and [");
}

#[test]
fn what_the_contract_says_is_read_right() {
    let docs = documentation();
    assert!(
        docs["KvStore::load"].contains("Keep `At` true until then"),
        "{}",
        docs["KvStore::load"]
    );
    assert!(
        docs["Op::Linear"].contains("Up to four weights")
            && docs["Op::Linear"].contains("[outputs]")
    );
    assert!(docs["Placement::units"].contains("Every unit exactly once."));
    assert!(docs["TierFacts::budget_bytes"].contains("Room for weights"));
    let must = section(&docs["KvStore::commit"], "Plugin must");
    assert_eq!(must, ["Not sync.", "It may buffer until `flush`."]);
}
