//! An installation of its own: the binary, the plugins and the manifests, to be damaged at will.

use crate::{Ended, Scratch, binary, command, ended, repository};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// `bin/kvern`, `lib/kvern/*.so` and `share/kvern/manifests` in a scratch directory, as `install`
/// lays them out.
pub struct Layout {
    /// The prefix.
    pub scratch: Scratch,
}

impl Layout {
    /// Copies what was built.
    #[expect(clippy::new_without_default, reason = "it makes an installation")]
    pub fn new() -> Layout {
        let scratch = Scratch::new();
        let built = binary().parent().expect("a binary lies in a directory");
        let make = |name: &str| {
            let path = scratch.path().join(name);
            std::fs::create_dir_all(&path).expect("a directory can be made");
            path
        };
        let copy = |from: &Path, to: &Path| {
            std::fs::copy(from, to).expect("a file can be copied");
        };
        copy(binary(), &make("bin").join("kvern"));
        let lib = make("lib/kvern");
        for entry in std::fs::read_dir(built).expect("the target directory is there").flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let plugin = ["libkvern_kv_", "libkvern_offload_", "libkvern_device_"]
                .iter()
                .any(|prefix| name.starts_with(prefix));
            if plugin && name.ends_with(".so") {
                copy(&entry.path(), &lib.join(name));
            }
        }
        for kind in ["kv", "offload", "device"] {
            let to = make(&format!("share/kvern/manifests/{kind}"));
            let from = repository().join("manifests").join(kind);
            for entry in std::fs::read_dir(from).expect("the manifests are there").flatten() {
                copy(&entry.path(), &to.join(entry.file_name()));
            }
        }
        Layout { scratch }
    }

    /// A manifest, as `kv/resident`.
    pub fn manifest(&self, id: &str) -> PathBuf {
        self.scratch.path().join("share/kvern/manifests").join(format!("{id}.toml"))
    }

    /// A library, as `kvern_kv_resident`.
    pub fn library(&self, name: &str) -> PathBuf {
        self.scratch.path().join("lib/kvern").join(format!("lib{name}.so"))
    }

    /// Replaces text in a manifest, which must hold it.
    pub fn edit(&self, id: &str, from: &str, to: &str) {
        let path = self.manifest(id);
        let text = std::fs::read_to_string(&path).expect("the manifest is there");
        assert!(text.contains(from), "{id} has no `{from}`");
        std::fs::write(path, text.replacen(from, to, 1)).expect("the manifest can be written");
    }

    /// Runs the installed binary.
    pub fn kvern<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Ended {
        let binary = self.scratch.path().join("bin/kvern");
        ended(command(&binary, &self.scratch).args(arguments))
    }
}
