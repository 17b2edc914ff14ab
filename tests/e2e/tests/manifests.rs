//! An installation finds its plugins; each way in which a manifest can be wrong is one line with
//! file, line and cure.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use kvern_e2e::{Ended, Layout};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

const RESIDENT: &str = "kv/resident";
const LIBRARY: &str = "kvern_kv_resident";

fn run(layout: &Layout) -> Ended {
    let arguments = ["generate", "--prompt", "It was", "--max-new-tokens", "2"];
    layout.kvern(arguments.iter().chain(&["--kv-cache-strategy", "resident"]))
}

/// The refusal names the manifest with this line, and says this.
fn refused(layout: &Layout, line: usize, said: &str) {
    let ended = run(layout);
    let told = ended.refused(1);
    let place = format!("resident.toml:{line}: ");
    assert!(told.contains(&place) && told.contains(said), "{place} {said}: {told}");
}

/// The line of a key in the shipped manifest.
fn line_of(layout: &Layout, start: &str) -> usize {
    let text = std::fs::read_to_string(layout.manifest(RESIDENT)).unwrap();
    1 + text.lines().position(|l| l.starts_with(start)).unwrap()
}

/// How many plugins this repository has a manifest for.
fn shipped() -> usize {
    let manifests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../manifests");
    let of = |kind: &str| std::fs::read_dir(manifests.join(kind)).unwrap().count();
    ["kv", "offload", "device"].into_iter().map(of).sum()
}

#[test]
fn an_installation_runs_by_itself() {
    let layout = Layout::new();
    let ended = run(&layout);
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{ended:?}");
    let listed = layout.kvern(["plugins", "list", "--json"]).json();
    let rows = listed["plugins"].as_array().unwrap();
    assert_eq!(rows.len(), shipped());
    assert!(rows.iter().all(|row| row["fault"].is_null()), "{listed}");
}

#[test]
fn a_manifest_that_is_wrong_in_itself_is_refused() {
    let cases = [
        ("name = \"resident\"", "name = \"other\"", "name =", "rename"),
        ("kind = \"kv\"", "kind = \"kvs\"", "kind =", "offload"),
        ("version = ", "verison = ", "version =", "did you mean `version`?"),
        ("contract = \"1\"", "contract = 1", "contract =", "string"),
        ("library = \"", "library = \"../", "library =", "bare"),
        ("exact = true", "exact = true\nexact = true", "exact =", "duplicate"),
    ];
    for (from, to, key, said) in cases {
        let layout = Layout::new();
        let line = line_of(&layout, key) + usize::from(said == "duplicate");
        layout.edit(RESIDENT, from, to);
        refused(&layout, line, said);
    }
}

#[test]
fn a_manifest_that_does_not_fit_its_library_is_refused() {
    let cases = [
        ("version = \"0.1.0\"", "version = \"9.9.9\"", "version =", "9.9.9"),
        ("contract = \"1\"", "contract = \"99\"", "contract =", "99"),
        ("exact = true", "exact = false", "exact =", "capabilities.exact"),
        ("store = false", "strre = false", "store =", "did you mean `store`?"),
        ("[options]", "[options]\nspeed = 3", "[options]", "options.speed"),
        (
            "library = \"kvern_kv_resident\"",
            "library = \"kvern_kv_gone\"",
            "library =",
            "libkvern_kv_gone.so",
        ),
        (
            "library = \"kvern_kv_resident\"",
            "library = \"kvern_device_cpu\"",
            "name =",
            "plugin.kind",
        ),
    ];
    for (from, to, key, said) in cases {
        let layout = Layout::new();
        let line = line_of(&layout, key) + usize::from(key == "[options]");
        layout.edit(RESIDENT, from, to);
        refused(&layout, line, said);
    }
}

#[test]
fn a_name_may_be_claimed_once() {
    let layout = Layout::new();
    let text = std::fs::read_to_string(layout.manifest(RESIDENT)).unwrap();
    let other = layout.scratch.at("more");
    layout.scratch.write("more/kv/resident.toml", format!("{text}\n# another\n"));
    let flags = ["generate", "--prompt", "x", "--manifests", &other];
    let ended = layout.kvern(flags);
    let told = ended.refused(1);
    assert!(told.contains("is taken by") && told.contains("resident.toml:2: "), "{told}");
    // A copy is no second claim.
    layout.scratch.write("more/kv/resident.toml", text);
    assert_eq!(layout.kvern(["plugins", "list", "--manifests", &other]).code, Some(0));
}

#[test]
fn a_library_that_others_may_write_is_refused() {
    let layout = Layout::new();
    let line = line_of(&layout, "library =");
    let mode = std::fs::Permissions::from_mode(0o757);
    std::fs::set_permissions(layout.library(LIBRARY), mode).unwrap();
    refused(&layout, line, "chmod o-w");
}

#[test]
fn a_library_outside_its_directories_is_refused() {
    let layout = Layout::new();
    let line = line_of(&layout, "library =");
    let elsewhere = layout.scratch.at("elsewhere.so");
    std::fs::rename(layout.library(LIBRARY), &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, layout.library(LIBRARY)).unwrap();
    refused(&layout, line, "is a link to");
}

#[test]
fn a_pinned_library_must_be_the_one_that_was_pinned() {
    let layout = Layout::new();
    let library = layout.library(LIBRARY).to_string_lossy().into_owned();
    let pinned = layout.kvern(["plugins", "manifest", "--pin", &library]);
    assert_eq!(pinned.code, Some(0), "{}", pinned.stderr);
    std::fs::write(layout.manifest(RESIDENT), &pinned.stdout).unwrap();
    assert_eq!(run(&layout).code, Some(0));
    let mut bytes = std::fs::read(&library).unwrap();
    bytes.push(0);
    std::fs::write(&library, bytes).unwrap();
    let line = line_of(&layout, "sha256 =");
    refused(&layout, line, "plugin.sha256");
}

#[test]
fn an_operator_may_demand_pins() {
    let layout = Layout::new();
    layout.scratch.write("kvern.toml", "[plugins]\nrequire_pinned = true\n");
    refused(&layout, line_of(&layout, "name ="), "--pin");
}

#[test]
fn a_written_manifest_is_the_shipped_one() {
    let layout = Layout::new();
    for id in ["kv/resident", "kv/chunked", "offload/prefix", "device/cpu"] {
        let shipped = std::fs::read_to_string(layout.manifest(id)).unwrap();
        let library = format!("kvern_{}", id.replace(['/', '-'], "_"));
        let library = layout.library(&library);
        let written = layout.kvern(["plugins", "manifest", &library.to_string_lossy()]);
        assert!(shipped.starts_with(written.stdout.trim_end()), "{id}: {}", written.stdout);
    }
}
