//! `kvern plugins verify`: what it says of good libraries, of bad ones, and of files that are none;
//! and what a manifest may demand of it.

use kvern_e2e::{Layout, Scratch, binary, kvern};
use std::path::PathBuf;

/// A library beside the binary.
fn library(name: &str) -> PathBuf {
    binary().with_file_name(format!("lib{name}.so"))
}

/// A copy of it, so that its card is the test's own.
fn copy(scratch: &Scratch, name: &str) -> String {
    let to = scratch.at(&format!("lib{name}.so"));
    std::fs::copy(library(name), &to).expect("a library");
    to
}

#[test]
fn a_manifest_may_demand_a_verdict_which_is_good_for_that_very_library() {
    let layout = Layout::new();
    let demand = "[plugin]\nrequire_verdict = true";
    layout.edit("offload/suffix", "[plugin]", demand);
    let run = || {
        layout.kvern([
            "generate",
            "--prompt",
            "It",
            "--max-new-tokens",
            "2",
            "--offload-cpu-policy",
            "suffix",
        ])
    };
    let refused = run();
    let line = refused.refused(1);
    let told = "suffix.toml:2: `plugin.require_verdict`: there is no verdict on the library; run \
                `kvern plugins verify ";
    assert!(line.contains(told) && line.ends_with("libkvern_offload_suffix.so`"), "{line}");

    let verified = layout.kvern(["plugins", "verify", "suffix"]);
    assert_eq!(verified.code, Some(0), "{verified:?}");
    let last = verified.stdout.lines().last().expect("a verdict");
    assert!(last.starts_with("kept: ") && last.contains(" 0 broken"), "{last}");
    assert_eq!(run().code, Some(0), "{:?}", run());
    let inspected = layout.kvern(["plugins", "inspect", "suffix", "--json"]).json();
    assert_eq!(inspected["verdict"], "the verdict is good");

    // Another library under the same name: one more byte behind its end.
    let path = layout.library("kvern_offload_suffix");
    let mut bytes = std::fs::read(&path).expect("a library");
    bytes.push(0);
    std::fs::write(&path, bytes).expect("written");
    let stale = run();
    let line = stale.refused(1);
    assert!(line.contains("the verdict on the library is stale: it is of a library"), "{line}");
}

#[test]
fn a_card_that_says_broken_or_nothing_is_no_verdict() {
    let layout = Layout::new();
    layout.edit("offload/suffix", "[plugin]", "[plugin]\nrequire_verdict = true");
    assert_eq!(layout.kvern(["plugins", "verify", "suffix"]).code, Some(0));
    let card = layout.library("kvern_offload_suffix").with_extension("so.verdict.json");
    let text = std::fs::read_to_string(&card).expect("a card");
    let run = || layout.kvern(["plugins", "list"]).stdout;
    for (from, to, said) in [
        ("\"outcome\": \"kept\"", "\"outcome\": \"broken\"", "the library breaks a_description"),
        ("\"schema\": 1", "\"schema\": 2", "is stale: it is by the suite of kvern"),
        ("\"suite\": \"", "\"suite\": \"0", "is stale: it is by the suite of kvern"),
        ("{", "", "is no verdict"),
        ("\"case\": \"every_unit", "\"case\": \"an_unit", "it has not one answer of every_unit"),
        (
            "\"kind\": \"offload\"",
            "\"kind\": \"kv\"",
            "it is of kv `suffix` 0.1.0, and this is offload",
        ),
        ("\"verdict\": \"kept\"", "\"verdict\": \"fine\"", "its verdict is `fine`"),
    ] {
        assert!(text.contains(from), "{text}");
        std::fs::write(&card, text.replacen(from, to, 1)).expect("written");
        assert!(run().contains(said), "{from}: {}", run());
    }
}

#[test]
fn what_is_no_plugin_of_this_host_is_refused_in_a_line_and_has_no_card() {
    let scratch = Scratch::new();
    let whole = std::fs::read(library("kvern_offload_prefix")).expect("a library");
    let text = scratch.write("text.so", "no library");
    let short = scratch.write("short.so", &whole[..whole.len() / 2]);
    // The machine's number in the header of an ELF file: 183 is AArch64, 62 x86-64.
    let mut foreign = whole.clone();
    foreign[18] = if foreign[18] == 183 { 62 } else { 183 };
    let foreign = scratch.write("foreign.so", foreign);
    let verify = |path: &str| kvern(&scratch, ["plugins", "verify", path]);
    for (path, said) in [
        (text.clone(), "text.so"),
        (short, "short.so"),
        (copy(&scratch, "kvern_fixture_bad_stamp"), "was built for epoch 999"),
        (copy(&scratch, "kvern_fixture_bad_missing_symbol"), "no symbol"),
        (copy(&scratch, "kvern_fixture_bad_layout"), "layout"),
        (foreign, "foreign.so"),
        ("no-such-plugin".into(), "no plugin `no-such-plugin`"),
    ] {
        let ended = verify(&path);
        let line = ended.refused(1);
        assert!(line.contains(said), "{line}");
        assert!(!std::path::Path::new(&format!("{path}.verdict.json")).exists(), "{path}");
    }
}

#[test]
fn a_path_is_judged_as_a_path_and_the_users_settings_are_not_the_judges() {
    let scratch = Scratch::new();
    let verify = |path: &str| kvern(&scratch, ["plugins", "verify", path]);
    let directory = verify("/");
    assert_eq!(directory.refused(1), "kvern: / is no regular file; name a library or a plugin");
    let missing = verify("./libmine.so");
    assert!(missing.refused(1).starts_with("kvern: ./libmine.so: No such file"), "{missing:?}");
    let path = copy(&scratch, "kvern_offload_prefix");
    let mut command = kvern_e2e::command(binary(), &scratch);
    command.env("KVERN_MODEL", "no-such-model").env("KVERN_KV_BUDGET", "1");
    let ended = kvern_e2e::ended(command.args(["plugins", "verify", &path]));
    assert_eq!(ended.code, Some(0), "{ended:?}");
}

#[test]
fn one_case_can_be_run_alone_and_leaves_no_card() {
    let scratch = Scratch::new();
    let path = copy(&scratch, "kvern_offload_prefix");
    let case = "the_same_question_has_the_same_answer";
    let card = kvern(&scratch, ["plugins", "verify", &path, "--case", case, "--json"]).json();
    assert_eq!(card["counts"]["kept"], 1);
    assert_eq!(card["cases"][0]["case"], case);
    assert!(!std::path::Path::new(&format!("{path}.verdict.json")).exists());
    let none = kvern(&scratch, ["plugins", "verify", &path, "--case", "no_such_case"]);
    assert!(none.refused(2).contains("offload plugins has no case `no_such_case`"), "{none:?}");
}

#[test]
fn a_library_of_another_kind_than_its_manifest_says_is_refused() {
    let layout = Layout::new();
    let (from, to) = (layout.library("kvern_kv_resident"), layout.library("kvern_offload_suffix"));
    std::fs::copy(from, to).expect("a library");
    let ended = layout.kvern(["plugins", "verify", "offload/suffix"]);
    let line = ended.refused(1);
    assert!(
        line.contains("`plugin.kind`: is `offload`, but the library is a KV strategy"),
        "{line}"
    );
}

#[test]
fn a_library_that_is_written_meanwhile_has_no_verdict() {
    let scratch = Scratch::new();
    let path = copy(&scratch, "kvern_offload_prefix");
    let (ended, stop) = (kvern_e2e::Scratch::new(), std::sync::atomic::AtomicBool::new(false));
    let refused = std::thread::scope(|scope| {
        scope.spawn(|| {
            use std::io::Write;
            let mut file = std::fs::OpenOptions::new().append(true).open(&path).expect("a library");
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                file.write_all(&[0]).expect("written");
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
        });
        let refused = kvern(&ended, ["plugins", "verify", &path]);
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        refused
    });
    let line = refused.refused(1);
    assert!(
        line.ends_with("was written while it was verified; verify it again when it is whole"),
        "{line}"
    );
    assert!(!std::path::Path::new(&format!("{path}.verdict.json")).exists());
}
