//! Plugins of strangers: a crate from `plugins new` builds, keeps its contract and runs, and the
//! host is the one that was there before.

use kvern_e2e::{Outside, Scratch, binary, kvern, repository};
use serde_json::Value;
use std::path::Path;

/// Its own test passes; verify says so; the host has not changed. Answers crate and library.
fn verified(kind: &str, name: &str) -> (Outside, String) {
    let host = std::fs::read(binary()).expect("the binary");
    let outside = Outside::new(kind, name);
    let library = outside.build().to_string_lossy().into_owned();
    let tested = outside.cargo(["test", "--release", "--quiet"]);
    assert_eq!(tested.code, Some(0), "{}{}", tested.stdout, tested.stderr);
    let ended = kvern(&outside.scratch, ["plugins", "verify", &library, "--json"]);
    let card = ended.json();
    assert_eq!(card["verdict"], "kept", "{card:#}");
    assert_eq!((&card["plugin"]["kind"], &card["plugin"]["name"]), (&kind.into(), &name.into()));
    let kept = std::fs::read_to_string(format!("{library}.verdict.json")).expect("a card");
    assert_eq!(serde_json::from_str::<Value>(&kept).expect("JSON"), card);
    assert!(std::fs::read(binary()).expect("the binary") == host, "the host was built again");
    (outside, library)
}

/// Token ids and metrics of the embedded model with these flags.
fn text(scratch: &Scratch, more: &[&str]) -> Value {
    let ask = ["generate", "--prompt", "It was a truth", "--max-new-tokens", "400", "--json"];
    kvern(scratch, ask.iter().chain(more)).json()
}

#[test]
fn a_kv_strategy_of_a_stranger_is_exact_and_reads_pages_back() {
    let (outside, library) = verified("kv", "my-idea");
    let plain = text(&outside.scratch, &[]);
    let with = text(&outside.scratch, &["--kv", &library, "--kv-budget", "512KiB"]);
    assert_eq!(plain["token_ids"], with["token_ids"]);
    assert!(
        with["metrics"]["cache_state"]["bytes_read"].as_u64() > Some(0),
        "{:#}",
        with["metrics"]
    );
    let source = std::fs::read_to_string(outside.root().join("src/lib.rs")).expect("a source");
    let lines = source.lines().filter(|line| !line.trim().is_empty()).count();
    assert!(lines < 100, "{lines} lines");
}

#[test]
fn an_offload_policy_of_a_stranger_keeps_every_second_layer() {
    let (outside, library) = verified("offload", "every-second");
    let plain = text(&outside.scratch, &[]);
    let with = ["--offload-cpu-policy", library.as_str(), "--offload-cpu-layers", "2"];
    assert_eq!(plain["token_ids"], text(&outside.scratch, &with)["token_ids"]);
}

#[test]
fn a_device_of_a_stranger_runs_the_model() {
    let (outside, library) = verified("device", "plain");
    let plain = text(&outside.scratch, &["--compute-dtype", "f32"]);
    let with = text(&outside.scratch, &["--compute-dtype", "f32", "--device", &library]);
    assert_eq!(plain["token_ids"], with["token_ids"]);
}

#[test]
fn a_scaffold_is_formatted_and_names_no_directory_of_its_template() {
    for kind in ["offload", "device"] {
        let formatted = Outside::new(kind, "tidy").cargo(["fmt", "--check"]);
        // A machine without rustfmt cannot say.
        let cannot = formatted.stderr.contains("not installed");
        assert!(formatted.code == Some(0) || cannot, "{formatted:?}");
    }
    let outside = Outside::new("kv", "tidy");
    let formatted = outside.cargo(["fmt", "--check"]);
    assert!(
        formatted.code == Some(0) || formatted.stderr.contains("not installed"),
        "{formatted:?}"
    );
    let manifest = std::fs::read_to_string(outside.root().join("Cargo.toml")).expect("a manifest");
    let source = repository().canonicalize().expect("the repository");
    assert!(manifest.contains(&format!("{}/core/abi", source.display())), "{manifest}");
}

#[test]
fn a_crate_goes_nowhere_that_is_there_and_takes_no_bad_name_or_kind() {
    let scratch = Scratch::new();
    let new = |kind: &str, name: &str, output: &str| {
        kvern(&scratch, ["plugins", "new", kind, name, "--output", output])
    };
    std::fs::create_dir(scratch.path().join("there")).expect("a directory");
    let there = new("kv", "mine", "there");
    assert_eq!(
        there.refused(1),
        "kvern: there is there already; name a directory that is not, or remove it"
    );
    assert_eq!(
        new("kv", "My Plugin", "out").refused(2),
        "kvern: `My Plugin` is no name for a plugin; write lower-case letters, digits and hyphens, \
         a letter first, at most 40, as in `my-idea`"
    );
    let kind = new("cache", "mine", "out");
    assert_eq!(
        kind.refused(2),
        "kvern: invalid value 'cache' for '<KIND>' [possible values: kv, offload, device]; try \
         `--help`"
    );
    let source =
        kvern(&scratch, ["plugins", "new", "kv", "a", "--output", "o", "--source", "there"]);
    assert!(source.refused(1).contains("holds no core/abi; name Kvern's sources"), "{source:?}");
    assert!(!Path::new(&scratch.at("out")).exists() && !Path::new(&scratch.at("o")).exists());
}
