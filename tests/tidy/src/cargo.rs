//! The few lines of a Cargo.toml that rules read.

use crate::tree::{File, Tree};

/// A dependency, where it is named, and for whom.
pub struct Dependency {
    /// The package's name.
    pub name: String,
    /// Line of the manifest.
    pub line: usize,
    /// Whether tests alone have it.
    pub is_dev: bool,
}

/// A package of the workspace.
pub struct Package<'a> {
    /// Its manifest.
    pub manifest: &'a File,
    /// As `core/contract`.
    pub directory: &'a str,
    /// As `kvern-contract`.
    pub name: String,
    /// All kinds together.
    pub dependencies: Vec<Dependency>,
    /// Whether the workspace's lints apply.
    pub has_lints: bool,
}

/// All packages, by their directories.
pub fn packages(tree: &Tree) -> Vec<Package<'_>> {
    tree.below("", "/Cargo.toml").filter_map(package).collect()
}

fn package(manifest: &File) -> Option<Package<'_>> {
    let directory = manifest.path.strip_suffix("/Cargo.toml")?;
    let mut package = Package {
        manifest,
        directory,
        name: String::new(),
        dependencies: Vec::new(),
        has_lints: false,
    };
    let mut section = String::new();
    for (line, text) in manifest.lines() {
        let text = text.trim();
        if let Some(name) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = name.to_owned();
            if let Some((kind, name)) = section.rsplit_once("dependencies.") {
                let is_dev = kind.ends_with("dev-");
                package.dependencies.push(Dependency { name: name.to_owned(), line, is_dev });
            }
            continue;
        }
        let Some((key, value)) = text.split_once('=') else { continue };
        let (key, value) = (key.trim(), value.trim());
        if section == "package" && key == "name" {
            package.name = value.trim_matches('"').to_owned();
        } else if section == "lints" && key == "workspace" {
            package.has_lints = value == "true";
        } else if section.ends_with("dependencies") && !key.starts_with('#') {
            let renamed =
                value.split_once("package = \"").and_then(|(_, rest)| rest.split('"').next());
            let name = renamed.unwrap_or(key.split('.').next().unwrap_or(key)).to_owned();
            let is_dev = section.contains("dev-dependencies");
            package.dependencies.push(Dependency { name, line, is_dev });
        }
    }
    (!package.name.is_empty()).then_some(package)
}

/// The value of a key of a TOML table, both as written.
pub fn value<'a>(file: &'a File, table: &str, key: &str) -> Option<(usize, &'a str)> {
    let mut inside = false;
    for (line, text) in file.lines() {
        let text = text.trim();
        if text.starts_with('[') {
            inside = text.trim_matches(['[', ']']) == table;
        } else if let Some((name, value)) = text.split_once('=')
            && inside
            && name.trim() == key
        {
            let value = value.trim();
            let quoted = value.strip_prefix('"').and_then(|rest| rest.split('"').next());
            return Some((line, quoted.unwrap_or(value)));
        }
    }
    None
}

#[test]
fn a_manifest_gives_its_dependencies_in_every_spelling() {
    let text = "[package]\nname = \"kvern-x\"\n[dependencies]\na.workspace = true\n\
                b = { version = \"1\", package = \"real-b\" }\n[dev-dependencies]\nc = \"1\"\n\
                [target.'cfg(unix)'.dependencies]\nd = \"1\"\n[dependencies.e]\nversion = \"1\"\n\
                [lints]\nworkspace = true\n";
    let tree = Tree::of(&[("core/x/Cargo.toml", text)]);
    let package = packages(&tree).remove(0);
    assert_eq!((package.name.as_str(), package.directory), ("kvern-x", "core/x"));
    assert!(package.has_lints);
    let all: Vec<(&str, usize, bool)> =
        package.dependencies.iter().map(|d| (d.name.as_str(), d.line, d.is_dev)).collect();
    let wanted =
        [("a", 4, false), ("real-b", 5, false), ("c", 7, true), ("d", 9, false), ("e", 10, false)];
    assert_eq!(all, wanted);
}
