//! Where manifests are looked for, and what was found.
//!
//! Directories in order: `--manifests`, `KVERN_MANIFESTS`, the user's data directory, beside the
//! executable. In each, `kv`, `offload` and `device` hold a manifest a plugin. Nothing here knows a
//! plugin by name.

use super::library::executable_dir;
use super::{Kind, Manifest};
use crate::fail::{Failure, Outcome, While};
use std::path::{Path, PathBuf};

/// Every plugin that was found.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Discovery {
    /// Sorted by kind and name; no name twice in a kind.
    pub manifests: Vec<Manifest>,
    /// Directories that were searched and are there.
    pub searched: Vec<PathBuf>,
    /// Whether a manifest must pin its library.
    pub require_pinned: bool,
}

/// The directories, those given first. Only a given one must be there.
pub fn search_path(given: &[PathBuf], configured: &[PathBuf]) -> Outcome<Vec<PathBuf>> {
    let listed = std::env::var_os("KVERN_MANIFESTS").unwrap_or_default();
    let listed = std::env::split_paths(&listed).filter(|p| !p.as_os_str().is_empty());
    let asked: Vec<PathBuf> =
        given.iter().cloned().chain(listed).chain(configured.iter().cloned()).collect();
    if let Some(missing) = asked.iter().find(|p| !p.is_dir()) {
        return Err(Failure::new(format!(
            "{}: no such directory of manifests; name one that holds kv, offload and device",
            missing.display()
        )));
    }
    let beside = executable_dir()
        .map(|bin| [bin.join("manifests"), bin.join("../share/kvern/manifests")])
        .unwrap_or_default();
    let mut out: Vec<PathBuf> = Vec::new();
    for path in asked.into_iter().chain(user_data()).chain(beside) {
        let Ok(real) = path.canonicalize() else { continue };
        if real.is_dir() && !out.contains(&real) {
            out.push(real);
        }
    }
    Ok(out)
}

fn user_data() -> Option<PathBuf> {
    let given = std::env::var_os("XDG_DATA_HOME").map(PathBuf::from).filter(|p| p.is_absolute());
    let home = || std::env::var_os("HOME").map(|h| Path::new(&h).join(".local/share"));
    given.or_else(home).map(|data| data.join("kvern/manifests"))
}

impl Discovery {
    /// Reads every manifest of the directories. A manifest that is wrong in itself, or a name that
    /// two files claim, is a failure; two copies of one manifest are one.
    pub fn read(directories: &[PathBuf], require_pinned: bool) -> Outcome<Discovery> {
        let mut out =
            Discovery { searched: directories.to_vec(), require_pinned, ..Discovery::default() };
        for directory in directories {
            for kind in Kind::ALL {
                for path in manifest_files(&directory.join(kind.word()))? {
                    out.add(kind, Manifest::read(&path)?)?;
                }
            }
        }
        out.manifests.sort_by(|a, b| (a.kind, &a.name.value).cmp(&(b.kind, &b.name.value)));
        Ok(out)
    }

    fn add(&mut self, kind: Kind, manifest: Manifest) -> Outcome<()> {
        if manifest.kind != kind {
            let wrong = format!("is `{}` in a directory of {}", manifest.kind.word(), kind.word());
            return Err(manifest.place(1, "plugin.kind").fault(wrong, "move the file"));
        }
        if let Some(first) = self.find(kind, &manifest.name.value) {
            if first.digest == manifest.digest {
                return Ok(());
            }
            let wrong = format!("`{}` is taken by {}", manifest.name.value, first.path.display());
            let cure = "remove one of the two files, or rename the plugin";
            return Err(manifest.place(manifest.name.line, "plugin.name").fault(wrong, cure));
        }
        self.manifests.push(manifest);
        Ok(())
    }

    /// A plugin by kind and name.
    pub fn find(&self, kind: Kind, name: &str) -> Option<&Manifest> {
        self.manifests.iter().find(|m| m.kind == kind && m.name.value == name)
    }

    /// The names of a kind.
    pub fn names(&self, kind: Kind) -> Vec<&str> {
        let of_kind = self.manifests.iter().filter(|m| m.kind == kind);
        of_kind.map(|m| m.name.value.as_str()).collect()
    }

    /// The same, to keep.
    pub fn names_owned(&self, kind: Kind) -> Vec<String> {
        self.names(kind).into_iter().map(String::from).collect()
    }

    /// A plugin by kind and name, or a line that says what there is.
    pub fn demand(&self, kind: Kind, name: &str) -> Outcome<&Manifest> {
        self.find(kind, name).ok_or_else(|| self.unknown(kind, name))
    }

    fn unknown(&self, kind: Kind, name: &str) -> Failure {
        let names = self.names(kind);
        if names.is_empty() {
            return Failure::new(format!(
                "no {} `{name}`: no manifests/{} directory with one was found; `kvern doctor` \
                 lists where it was looked for",
                kind.title(),
                kind.word()
            ));
        }
        let hint = crate::near::hint(name, names.iter().copied());
        let hint = if hint.is_empty() { ";".to_string() } else { hint };
        Failure::new(format!("no {} `{name}`{hint} found: {}", kind.title(), names.join(", ")))
    }
}

/// The `.toml` files of a directory, sorted; none where it is not there.
fn manifest_files(directory: &Path) -> Outcome<Vec<PathBuf>> {
    if !directory.is_dir() {
        return Ok(Vec::new());
    }
    let mut out = Vec::new();
    for entry in std::fs::read_dir(directory).during(directory.display())? {
        let path = entry.during(directory.display())?.path();
        if path.extension().is_some_and(|e| e == "toml") && path.is_file() {
            out.push(path);
        }
    }
    out.sort();
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(name: &str, files: &[(&str, &str)]) -> PathBuf {
        let root =
            std::env::temp_dir().join(format!("kvern-discovery-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&root);
        for (path, version) in files {
            let path = root.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            let stem = path.file_stem().unwrap().to_string_lossy().into_owned();
            let text = format!(
                "[plugin]\nname = \"{stem}\"\nkind = \"kv\"\nversion = \"{version}\"\n\
                 contract = \"1\"\nlibrary = \"x\"\n"
            );
            std::fs::write(path, text).unwrap();
        }
        root
    }

    #[test]
    fn two_files_may_not_claim_one_name_unless_they_are_copies() {
        let root =
            tree("twice", &[("a/kv/x.toml", "1"), ("b/kv/x.toml", "1"), ("c/kv/x.toml", "2")]);
        let read = |dirs: &[&str]| {
            Discovery::read(&dirs.iter().map(|d| root.join(d)).collect::<Vec<_>>(), false)
        };
        assert_eq!(read(&["a", "b"]).unwrap().manifests.len(), 1);
        let failure = read(&["a", "c"]).unwrap_err();
        assert!(failure.message.contains("is taken by"), "{}", failure.message);
        std::fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn an_unknown_name_lists_the_known_ones_and_the_nearest() {
        let root = tree("unknown", &[("kv/alpha.toml", "1"), ("kv/beta.toml", "1")]);
        let found = Discovery::read(std::slice::from_ref(&root), false).unwrap();
        let said = found.demand(Kind::Kv, "alhpa").unwrap_err().message;
        assert_eq!(said, "no KV strategy `alhpa`, did you mean `alpha`? found: alpha, beta");
        assert!(found.demand(Kind::Device, "x").unwrap_err().message.contains("doctor"));
        std::fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn a_manifest_in_the_wrong_directory_is_refused() {
        let root = tree("wrong", &[("device/x.toml", "1")]);
        let failure = Discovery::read(std::slice::from_ref(&root), false).unwrap_err();
        assert!(failure.message.contains("directory of device"), "{}", failure.message);
        std::fs::remove_dir_all(root).unwrap();
    }
}
