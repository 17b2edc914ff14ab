//! Adding a plugin touches no file of the host: names come from manifests, and every plugin has
//! one.

use crate::cargo::{packages, value};
use crate::tree::{Tree, finds, holds};

/// The kinds of plugins, as directories and manifests spell them.
const KINDS: [&str; 3] = ["device", "kv", "offload"];

/// Sources that hold no name of a plugin.
const NAMELESS: [&str; 4] =
    ["core/abi/src", "core/engine/src", "core/storage/src", "host/kvern/src"];

/// Files that spell plugins' names because the benchmark's surface fixes them: tables of presets,
/// rules of the selector, and defaults.
const FIXED: [&str; 1] = ["host/kvern/src/selector.rs"];

/// Kinds of devices in the contract's own words: such a word is a fact about a device, also where a
/// plugin is called so.
const DEVICE_KINDS: [&str; 3] = ["cpu", "cuda", "mps"];

fn names(tree: &Tree) -> Vec<(&'static str, String)> {
    let mut names = Vec::new();
    for kind in KINDS {
        for name in tree.directories(&format!("plugins/{kind}")) {
            names.push((kind, name.to_owned()));
        }
    }
    names
}

/// String literals that are a plugin's name or its library's.
fn literals(tree: &Tree) -> Vec<String> {
    let names = names(tree);
    let mut findings = Vec::new();
    for file in NAMELESS.iter().flat_map(|place| tree.below(place, ".rs")) {
        if FIXED.contains(&file.path.as_str()) || file.is_test() {
            continue;
        }
        let source = file.source();
        for (line, text) in source.strings.iter().filter(|(line, _)| !source.is_test[line - 1]) {
            for (kind, name) in &names {
                let library = format!("kvern_{kind}_{}", name.replace('-', "_"));
                let is_name = text == name && !DEVICE_KINDS.contains(&text.as_str());
                if is_name || text.contains(&library) {
                    let what = format!("the host names the {kind} plugin {text:?}");
                    findings.push(file.at(*line, &what));
                }
            }
        }
    }
    findings
}

/// A manifest for every plugin, a plugin for every manifest, one name for file, key and directory.
fn manifests(tree: &Tree) -> Vec<String> {
    let mut findings = Vec::new();
    let packages = packages(tree);
    for (kind, name) in names(tree) {
        let path = format!("manifests/{kind}/{name}.toml");
        let Some(manifest) = tree.file(&path) else {
            findings.push(format!("{path}:1: plugins/{kind}/{name} has no manifest"));
            continue;
        };
        let directory = format!("plugins/{kind}/{name}");
        let package = packages.iter().find(|package| package.directory == directory);
        let library = package.map(|p| p.name.replace('-', "_")).unwrap_or_default();
        for (key, wanted) in [("name", name.as_str()), ("kind", kind), ("library", &library)] {
            let (line, found) = value(manifest, "plugin", key).unwrap_or((1, ""));
            if found != wanted {
                findings.push(manifest.at(line, &format!("{key} is {found:?}, not {wanted:?}")));
            }
        }
    }
    for kind in KINDS {
        for manifest in tree.below(&format!("manifests/{kind}"), ".toml") {
            let name = manifest.path.rsplit('/').next().and_then(|name| name.strip_suffix(".toml"));
            let directory = format!("plugins/{kind}/{}", name.unwrap_or_default());
            if !tree.has(&directory) {
                findings.push(manifest.at(1, &format!("there is no {directory}")));
            }
        }
    }
    findings
}

#[test]
fn the_host_spells_no_plugins_name() {
    let tree = Tree::of(&[
        ("plugins/kv/fancy-store/src/lib.rs", ""),
        ("plugins/device/cpu/src/lib.rs", ""),
        ("core/engine/src/b.rs", "let a = kind == \"cpu\";\nlet b = \"kvern_device_cpu\";\n"),
        (
            "host/kvern/src/a.rs",
            "// \"fancy-store\"\nlet a = \"fancy-store\";\nlet b = \"fancy\";\n",
        ),
        ("core/abi/src/a.rs", "let a = \"libkvern_kv_fancy_store.so\";\n"),
        ("core/engine/src/a.rs", "#[cfg(test)]\nmod tests { const A: &str = \"fancy-store\"; }\n"),
    ]);
    let places = ["core/abi/src/a.rs:1", "core/engine/src/b.rs:2", "host/kvern/src/a.rs:2"];
    finds(literals(&tree), &places);
    holds(literals(&Tree::checkout()));
}

#[test]
fn every_plugin_has_a_manifest_of_its_name() {
    let cargo = "[package]\nname = \"kvern-kv-a\"\n";
    let good = "[plugin]\nname = \"a\"\nkind = \"kv\"\nlibrary = \"kvern_kv_a\"\n";
    let bad = good.replace("\"a\"", "\"b\"");
    let tree = |manifest: &'static str, text: &str| {
        Tree::of(&[("plugins/kv/a/Cargo.toml", cargo), (manifest, text)])
    };
    holds(manifests(&tree("manifests/kv/a.toml", good)));
    finds(manifests(&tree("manifests/kv/a.toml", &bad)), &["manifests/kv/a.toml:2"]);
    let places = ["manifests/kv/a.toml:1", "manifests/kv/c.toml:1"];
    finds(manifests(&tree("manifests/kv/c.toml", good)), &places);
    holds(manifests(&Tree::checkout()));
}
