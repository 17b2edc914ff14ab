//! The files that rules look at: the checkout's, or a small made-up tree's.

use crate::rust::Source;
use std::collections::BTreeSet;
use std::path::Path;

/// A text file by its path from the root, with `/` between names.
pub struct File {
    /// As `core/contract/src/lib.rs`.
    pub path: String,
    /// All of it.
    pub text: String,
}

impl File {
    /// A finding in this file.
    pub fn at(&self, line: usize, what: &str) -> String {
        format!("{}:{line}: {what}", self.path)
    }

    /// Lines, numbered from 1.
    pub fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text.lines().enumerate().map(|(i, line)| (i + 1, line))
    }

    /// The file as Rust.
    pub fn source(&self) -> Source {
        Source::of(&self.text)
    }

    /// Whether all of it is test code.
    pub fn is_test(&self) -> bool {
        self.path.contains("/tests/")
            || self.path.ends_with("/tests.rs")
            || self.path.starts_with("tests/")
    }
}

/// Text files, and the names of all others.
#[derive(Default)]
pub struct Tree {
    files: Vec<File>,
    names: BTreeSet<String>,
}

impl Tree {
    /// The checkout.
    pub fn checkout() -> Tree {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let mut tree = Tree::default();
        tree.walk(&root, "");
        assert!(tree.file("Cargo.toml").is_some(), "{} is no checkout", root.display());
        tree
    }

    /// A made-up one.
    pub fn of(files: &[(&str, &str)]) -> Tree {
        let mut tree = Tree::default();
        for (path, text) in files {
            tree.add(path, Some(text.to_string()));
        }
        tree
    }

    fn walk(&mut self, directory: &Path, name: &str) {
        let entries = std::fs::read_dir(directory).expect("a readable directory");
        for entry in entries {
            let entry = entry.expect("a readable entry");
            let own = entry.file_name().to_string_lossy().into_owned();
            let path = if name.is_empty() { own.clone() } else { format!("{name}/{own}") };
            if entry.path().is_dir() {
                let kept = [".ci", ".cargo"].contains(&own.as_str());
                if kept || !(own.starts_with('.') || own == "target") {
                    self.walk(&entry.path(), &path);
                }
            } else {
                let read =
                    ["rs", "toml", "md"].iter().any(|end| path.ends_with(&format!(".{end}")));
                let text =
                    (read || path == ".ci/run").then(|| std::fs::read_to_string(entry.path()));
                self.add(&path, text.map(|text| text.expect("a text file")));
            }
        }
    }

    fn add(&mut self, path: &str, text: Option<String>) {
        let mut name = path;
        self.names.insert(name.to_owned());
        while let Some((parent, _)) = name.rsplit_once('/') {
            self.names.insert(parent.to_owned());
            name = parent;
        }
        if let Some(text) = text {
            self.files.push(File { path: path.to_owned(), text });
            self.files.sort_by(|a, b| a.path.cmp(&b.path));
        }
    }

    /// Whether a file or directory of this path is there.
    pub fn has(&self, path: &str) -> bool {
        path.is_empty() || self.names.contains(path)
    }

    /// The text file of this path.
    pub fn file(&self, path: &str) -> Option<&File> {
        self.files.iter().find(|file| file.path == path)
    }

    /// Text files below a directory (all for an empty one) whose names end so.
    pub fn below(&self, directory: &str, end: &str) -> impl Iterator<Item = &File> {
        self.files.iter().filter(move |file| {
            let inside = file.path.strip_prefix(directory);
            inside.is_some_and(|rest| directory.is_empty() || rest.starts_with('/'))
                && file.path.ends_with(end)
        })
    }

    /// Names of the directories just below one, sorted.
    pub fn directories(&self, of: &str) -> Vec<&str> {
        let names = self.names.iter().filter_map(|name| {
            let (parent, own) = name.rsplit_once('/')?;
            let is_directory =
                self.names.iter().any(|other| other.starts_with(&format!("{name}/")));
            (parent == of && is_directory).then_some(own)
        });
        names.collect()
    }
}

/// Fails with every finding on a line of its own.
#[track_caller]
pub fn holds(findings: Vec<String>) {
    assert!(findings.is_empty(), "\n{}\n", findings.join("\n"));
}

/// Fails unless these places, and no others, are found: `path:line` each.
#[track_caller]
pub fn finds(findings: Vec<String>, places: &[&str]) {
    let found: Vec<&str> =
        findings.iter().map(|f| f.split_once(": ").map_or(f.as_str(), |(at, _)| at)).collect();
    assert_eq!(found, places, "{findings:#?}");
}
