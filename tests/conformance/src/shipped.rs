//! What ships: a manifest each, and the library that it names.

use kvern_abi::{Plugin, PluginKind};
use std::path::{Path, PathBuf};

/// A manifest that ships.
pub struct Shipped {
    /// From the directory.
    pub kind: PluginKind,
    /// From the file's stem.
    pub name: String,
    /// All of it.
    pub text: String,
    /// Where its library is.
    pub library: PathBuf,
}

impl Shipped {
    /// The value of a key of `[plugin]`, without quotes.
    pub fn value(&self, key: &str) -> String {
        let table = self.text.split("[plugin]").nth(1).unwrap_or_default();
        let lines = table.lines().skip(1).take_while(|line| !line.trim().starts_with('['));
        let pairs = lines.filter_map(|line| line.split_once('='));
        let mut values = pairs.filter(|(name, _)| name.trim() == key);
        let value = values.next().map(|(_, value)| value.trim().trim_matches('"'));
        value.unwrap_or_else(|| panic!("{}: no {key}", self.name)).to_owned()
    }

    /// A new instance.
    pub fn open(&self) -> Plugin {
        assert!(
            self.library.is_file(),
            "{} is not built; run `cargo kvern test`, which builds every library first",
            self.library.display()
        );
        kvern_abi::open(&self.library).unwrap_or_else(|error| panic!("{}: {error}", self.name))
    }
}

/// Manifests of a kind, sorted by name; there is at least one.
pub fn of(kind: PluginKind) -> Vec<Shipped> {
    let root = std::env::var_os("KVERN_CONFORMANCE_MANIFESTS").map(PathBuf::from);
    let root =
        root.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../manifests"));
    let root = root.join(kind.to_string());
    let entries = std::fs::read_dir(&root).expect("a directory of manifests");
    let paths = entries.map(|entry| entry.expect("a readable entry").path());
    let mut shipped: Vec<Shipped> = paths
        .filter(|path| path.extension().is_some_and(|e| e == "toml"))
        .map(|path| {
            let name = path.file_stem().expect("a stem").to_string_lossy().into_owned();
            let text = std::fs::read_to_string(&path).expect("a readable manifest");
            let mut shipped = Shipped { kind, name, text, library: PathBuf::new() };
            shipped.library = release().join(format!("lib{}.so", shipped.value("library")));
            shipped
        })
        .collect();
    shipped.sort_by(|a, b| a.name.cmp(&b.name));
    assert!(!shipped.is_empty(), "no manifest in {}", root.display());
    shipped
}

/// Where cargo lays the libraries: above the directory of this test's own binary.
fn release() -> PathBuf {
    let own = std::env::current_exe().expect("this program has a path");
    own.ancestors().nth(2).expect("target/release/deps").to_owned()
}
