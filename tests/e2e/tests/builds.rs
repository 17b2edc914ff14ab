//! Libraries as other builds make them: with another panic strategy, and from sources of another
//! time.

use kvern_e2e::{Outside, kvern, repository};
use std::path::PathBuf;

#[test]
fn a_plugin_that_aborts_when_it_panics_is_refused_before_it_is_loaded() {
    let outside = Outside::new("kv", "aborts");
    let built = outside.cargo([
        "rustc",
        "--release",
        "--quiet",
        "--crate-type",
        "cdylib",
        "--",
        "-C",
        "panic=abort",
    ]);
    assert_eq!(built.code, Some(0), "{}", built.stderr);
    let library = outside.library().to_string_lossy().into_owned();
    let refused = kvern(&outside.scratch, ["generate", "--prompt", "It", "--kv", &library]);
    assert_eq!(
        refused.refused(1),
        format!(
            "kvern: abi/open: {library} was built with panic = \"abort\", so a panic would end this \
             process: build it with panic = \"unwind\""
        )
    );
}

/// Every frozen epoch: its number and its archive.
fn frozen() -> Vec<(u32, PathBuf)> {
    let directory = repository().join("tests/fixtures/frozen");
    let entries = std::fs::read_dir(directory).expect("frozen sources").flatten();
    let mut found: Vec<(u32, PathBuf)> = entries
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let number = name.strip_prefix("epoch-")?.strip_suffix(".tar.gz")?;
            Some((number.parse().expect("an epoch"), entry.path()))
        })
        .collect();
    found.sort();
    found
}

#[test]
fn a_frozen_plugin_runs_in_its_own_epoch_and_is_refused_in_another_with_both_versions() {
    let archives = frozen();
    let latest = archives.last().expect("this epoch is frozen").0;
    assert_eq!(latest, kvern_abi::EPOCH, "freeze the new epoch: see tests/fixtures/frozen");
    for (epoch, archive) in archives {
        for (kind, flag) in
            [("kv", "--kv"), ("offload", "--offload-cpu-policy"), ("device", "--device")]
        {
            let outside = Outside::frozen(&archive, kind);
            let library = outside.build().to_string_lossy().into_owned();
            let ask = ["generate", "--prompt", "It was", "--max-new-tokens", "12"];
            let ended = kvern(&outside.scratch, ask.iter().chain(&[flag, &library]));
            if epoch == kvern_abi::EPOCH {
                let plain = kvern(&outside.scratch, ask);
                assert_eq!((ended.code, &ended.stdout), (Some(0), &plain.stdout), "{ended:?}");
                continue;
            }
            let line = ended.refused(1);
            let built = format!("{library} was built for epoch {epoch} (kvern-abi ");
            let here = format!("this host speaks epoch {}: build it against", kvern_abi::EPOCH);
            assert!(line.contains(&built) && line.contains(&here), "{line}");
        }
    }
}
