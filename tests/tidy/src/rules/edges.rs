//! Which crate may know which: the edges of docs/ARCHITECTURE.md, read from the manifests.

use crate::cargo::{Dependency, Package, packages};
use crate::tree::{Tree, finds, holds};

/// Directory, and the crates of ours that what is in it may depend on. The longest that fits
/// counts.
const EDGES: [(&str, &[&str]); 15] = [
    ("core/contract", &[]),
    ("core/abi", &["kvern-contract"]),
    ("core/record", &["kvern-contract"]),
    ("core/model", &["kvern-contract"]),
    ("core/storage", &["kvern-contract"]),
    ("core/engine", &["kvern-contract", "kvern-model", "kvern-storage"]),
    ("core/report", &[]),
    ("host/kvern", &HOST),
    ("host/xtask", &[]),
    ("plugins", &["kvern-contract", "kvern-abi"]),
    ("plugins/kv", &["kvern-contract", "kvern-abi", "kvern-record"]),
    ("tests/fixtures/plugins", &["kvern-contract", "kvern-abi", "kvern-record"]),
    ("tests/testkit", &["kvern-contract", "kvern-record", "kvern-storage"]),
    ("tests/tidy", &[]),
    ("tests", &CORE),
];

const HOST: [&str; 7] = [
    "kvern-abi",
    "kvern-contract",
    "kvern-engine",
    "kvern-model",
    "kvern-report",
    "kvern-storage",
    "kvern-testkit",
];

const CORE: [&str; 8] = [
    "kvern-abi",
    "kvern-contract",
    "kvern-engine",
    "kvern-model",
    "kvern-record",
    "kvern-report",
    "kvern-storage",
    "kvern-testkit",
];

/// Crates of others that one place alone may name, for tests too.
const ALONE: [(&str, &str); 3] = [
    ("abi_stable", "core/abi"),
    ("libloading", "core/abi"),
    ("candle-core", "plugins/device/candle"),
];

fn allowed(package: &Package<'_>) -> &'static [&'static str] {
    let fits = |place: &str| {
        let rest = package.directory.strip_prefix(place);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    let places = EDGES.iter().filter(|(place, _)| fits(place));
    places.max_by_key(|(place, _)| place.len()).map_or(&[], |(_, allowed)| *allowed)
}

/// Edges between our crates. Tests of a crate may use every core crate and one plugin: two of them
/// would export the same symbols into one program.
fn edges(tree: &Tree) -> Vec<String> {
    let mut findings = Vec::new();
    let all = packages(tree);
    let is_plugin = |name: &str| {
        all.iter().any(|package| package.name == name && package.directory.starts_with("plugins/"))
    };
    for package in packages(tree) {
        let is_tried = |d: &&Dependency| d.is_dev && is_plugin(&d.name);
        let tried = package.dependencies.iter().find(is_tried).map(|d| d.line);
        for dependency in package.dependencies.iter().filter(|d| d.name.starts_with("kvern")) {
            let allowed = if dependency.is_dev { &CORE[..] } else { allowed(&package) };
            if !allowed.contains(&dependency.name.as_str()) && tried != Some(dependency.line) {
                let (who, whom) = (&package.name, &dependency.name);
                let what = format!("{who} must not depend on {whom}, but on {allowed:?} alone");
                findings.push(package.manifest.at(dependency.line, &what));
            }
        }
    }
    findings
}

/// Crates of others that only one of ours may depend on.
fn alone(tree: &Tree) -> Vec<String> {
    let mut findings = Vec::new();
    for package in packages(tree) {
        for dependency in &package.dependencies {
            let candle = dependency.name.starts_with("candle");
            let name = if candle { "candle-core" } else { dependency.name.as_str() };
            let place = ALONE.iter().find(|(other, _)| *other == name).map(|(_, place)| *place);
            // A fixture that breaks the border on purpose builds the border by hand.
            let is_fixture = package.directory.starts_with("tests/fixtures/plugins/");
            if (candle || !is_fixture) && place.is_some_and(|place| place != package.directory) {
                let (name, place) = (&dependency.name, place.unwrap_or_default());
                let what = format!("only {place} may depend on {name}");
                findings.push(package.manifest.at(dependency.line, &what));
            }
        }
    }
    findings
}

/// The contract depends on serde and nothing else.
fn contract(tree: &Tree) -> Vec<String> {
    let mut findings = Vec::new();
    for package in packages(tree).iter().filter(|p| p.directory == "core/contract") {
        for dependency in package.dependencies.iter().filter(|d| d.name != "serde" && !d.is_dev) {
            let what = format!("kvern-contract depends on serde alone, not on {}", dependency.name);
            findings.push(package.manifest.at(dependency.line, &what));
        }
    }
    findings
}

/// Every crate takes the workspace's lints.
fn lints(tree: &Tree) -> Vec<String> {
    let packages = packages(tree);
    let without = packages.iter().filter(|package| !package.has_lints);
    without.map(|p| p.manifest.at(1, "no `[lints] workspace = true`")).collect()
}

#[test]
fn crates_depend_on_each_other_along_the_edges_alone() {
    let manifest = |name: &str, rest: &str| format!("[package]\nname = \"{name}\"\n{rest}");
    let engine = manifest(
        "kvern-engine",
        "[dependencies]\nkvern-model.workspace = true\nkvern-abi.workspace = true\n",
    );
    let kv = manifest("kvern-kv-x", "[dependencies]\nkvern-record.workspace = true\n");
    let device = manifest(
        "kvern-device-x",
        "[dependencies]\nkvern-record.workspace = true\n[dev-dependencies]\nkvern-storage = {}\n",
    );
    let test = manifest(
        "kvern-e2e",
        "[dependencies]\nkvern-device-x = {}\n[dev-dependencies]\nkvern-kv-x = {}\nkvern-device-x = {}\n",
    );
    let report = manifest("kvern-report", "[dependencies]\nkvern-engine = {}\n");
    let tree = Tree::of(&[
        ("core/engine/Cargo.toml", &engine),
        ("core/report/Cargo.toml", &report),
        ("plugins/device/x/Cargo.toml", &device),
        ("plugins/kv/x/Cargo.toml", &kv),
        ("tests/e2e/Cargo.toml", &test),
    ]);
    let places = [
        "core/engine/Cargo.toml:5",
        "core/report/Cargo.toml:4",
        "plugins/device/x/Cargo.toml:4",
        "tests/e2e/Cargo.toml:4",
        "tests/e2e/Cargo.toml:7",
    ];
    finds(edges(&tree), &places);
    holds(edges(&Tree::checkout()));
}

#[test]
fn the_loader_and_candle_each_have_one_home() {
    let text = "[package]\nname = \"kvern\"\n[dependencies]\nserde = \"1\"\ncandle-nn = \"1\"\n\
                [dev-dependencies]\nabi_stable = \"1\"\n";
    let tree = Tree::of(&[("host/kvern/Cargo.toml", text)]);
    finds(alone(&tree), &["host/kvern/Cargo.toml:5", "host/kvern/Cargo.toml:7"]);
    let home = text.replace("abi_stable", "candle-core");
    let tree = Tree::of(&[("plugins/device/candle/Cargo.toml", &home)]);
    holds(alone(&tree));
    holds(alone(&Tree::checkout()));
}

#[test]
fn the_contract_depends_on_serde_alone() {
    let text =
        "[package]\nname = \"kvern-contract\"\n[dependencies]\nserde = \"1\"\nlibc = \"1\"\n";
    finds(
        contract(&Tree::of(&[("core/contract/Cargo.toml", text)])),
        &["core/contract/Cargo.toml:5"],
    );
    holds(contract(&Tree::checkout()));
}

#[test]
fn every_crate_takes_the_workspaces_lints() {
    let without = "[package]\nname = \"kvern-x\"\n[lints.rust]\nunsafe_code = \"allow\"\n";
    finds(lints(&Tree::of(&[("core/x/Cargo.toml", without)])), &["core/x/Cargo.toml:1"]);
    holds(lints(&Tree::checkout()));
}
