//! A plugin's crate outside of the workspace, as an author has one.

use crate::{Ended, Scratch, binary, ended, kvern};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What `kvern plugins new` wrote, in a scratch directory.
pub struct Outside {
    /// Where it lies; the crate is `crate` in it.
    pub scratch: Scratch,
    library: String,
}

impl Outside {
    /// Writes one.
    pub fn new(kind: &str, name: &str) -> Outside {
        let scratch = Scratch::new();
        let ended = kvern(&scratch, ["plugins", "new", kind, name, "--output", "crate"]);
        assert_eq!(ended.code, Some(0), "{ended:?}");
        let library = format!("libkvern_{kind}_{}.so", name.replace('-', "_"));
        Outside { scratch, library }
    }

    /// The sources of a frozen epoch, unpacked; of its plugins the one of this kind.
    pub fn frozen(archive: &Path, kind: &str) -> Outside {
        let scratch = Scratch::new();
        std::fs::create_dir(scratch.path().join("crate")).expect("a directory");
        let mut command = Command::new("tar");
        command.arg("-xzf").arg(archive).args(["--strip-components", "1", "-C"]);
        let ended = ended(command.arg(scratch.path().join("crate")));
        assert_eq!(ended.code, Some(0), "{ended:?}");
        Outside { scratch, library: format!("libkvern_{kind}_frozen.so") }
    }

    /// The crate's directory.
    pub fn root(&self) -> PathBuf {
        self.scratch.path().join("crate")
    }

    /// Runs cargo there. What is built lies beside the workspace's own, so that the second crate
    /// finds the dependencies of the first.
    pub fn cargo<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Ended {
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("CARGO_") {
                command.env_remove(name);
            }
        }
        if let Some(home) = std::env::var_os("CARGO_HOME") {
            command.env("CARGO_HOME", home);
        }
        command.env("CARGO_TARGET_DIR", target()).current_dir(self.root());
        ended(command.args(arguments))
    }

    /// Builds it; answers a copy of the library in the scratch directory.
    pub fn build(&self) -> PathBuf {
        let ended = self.cargo(["build", "--release", "--quiet", "--lib", "--workspace"]);
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        self.library()
    }

    /// A copy of what was built, in the scratch directory.
    pub fn library(&self) -> PathBuf {
        let copy = self.scratch.path().join(&self.library);
        std::fs::copy(target().join("release").join(&self.library), &copy).expect("it is built");
        copy
    }
}

fn target() -> PathBuf {
    let release = binary().parent().unwrap_or(Path::new("."));
    release.parent().unwrap_or(release).join("outside")
}
