//! Where things are: the checkout, what was built, and the plugins that the directories name.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The places that every command needs.
pub(crate) struct Layout {
    /// The checkout: where the workspace's Cargo.toml is.
    pub(crate) root: PathBuf,
    /// Where cargo puts what it builds: this program lies there itself, so whatever chose the
    /// directory (CARGO_TARGET_DIR, a configuration, a default) chose it for both.
    pub(crate) release: PathBuf,
    /// The cargo that runs this.
    pub(crate) cargo: OsString,
}

impl Layout {
    /// Finds them from the environment that `cargo run` gives.
    pub(crate) fn find() -> Result<Layout, String> {
        let own = std::env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let root = own.ancestors().nth(2).map(Path::to_path_buf);
        let root = root.filter(|root| root.join("host/xtask").is_dir()).ok_or_else(|| {
            format!("{} is not host/xtask of a checkout; run `cargo kvern` there", own.display())
        })?;
        let program = std::env::current_exe()
            .map_err(|error| format!("the path of this program is unknown: {error}"))?;
        let release = program
            .parent()
            .map(Path::to_path_buf)
            .ok_or_else(|| format!("{} is in no directory", program.display()))?;
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        Ok(Layout { root, release, cargo })
    }

    /// File names of the plugins' libraries, from the directories `plugins/<kind>/<name>`, sorted.
    pub(crate) fn libraries(&self) -> Result<Vec<String>, String> {
        let mut libraries = Vec::new();
        for kind in directories(&self.root.join("plugins"))? {
            for plugin in directories(&kind)? {
                let manifest = plugin.join("Cargo.toml");
                if !manifest.is_file() {
                    continue;
                }
                let text = std::fs::read_to_string(&manifest)
                    .map_err(|error| format!("{}: {error}", manifest.display()))?;
                let name = package_name(&text)
                    .ok_or_else(|| format!("{}: no package name", manifest.display()))?;
                libraries.push(format!(
                    "{}{}{}",
                    std::env::consts::DLL_PREFIX,
                    name.replace('-', "_"),
                    std::env::consts::DLL_SUFFIX
                ));
            }
        }
        libraries.sort();
        Ok(libraries)
    }
}

fn directories(of: &Path) -> Result<Vec<PathBuf>, String> {
    let entries = std::fs::read_dir(of).map_err(|error| format!("{}: {error}", of.display()))?;
    let mut found: Vec<PathBuf> =
        entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| path.is_dir()).collect();
    found.sort();
    Ok(found)
}

/// `name` of the `[package]` table.
fn package_name(toml: &str) -> Option<&str> {
    let package = toml.lines().map(str::trim).skip_while(|line| *line != "[package]").skip(1);
    let mut keys = package.take_while(|line| !line.starts_with('['));
    keys.find_map(|line| {
        let (key, value) = line.split_once('=')?;
        (key.trim() == "name").then(|| value.trim().trim_matches('"'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_name_is_the_package_tables_own() {
        let text = "[lib]\nname = \"other\"\n[package]\nversion = \"1\"\nname = \"kvern-kv-x\"\n";
        assert_eq!(package_name(text), Some("kvern-kv-x"));
        assert_eq!(package_name("[package]\nversion = \"1\"\n[lib]\nname = \"other\"\n"), None);
    }

    #[test]
    fn every_plugin_directory_gives_a_library() {
        let layout = Layout::find().expect("this is a checkout");
        let libraries = layout.libraries().expect("plugins are readable");
        assert!(libraries.len() >= 3, "{libraries:?}");
        assert!(
            libraries.iter().all(|name| name.starts_with("libkvern_") && name.ends_with(".so"))
        );
    }
}
