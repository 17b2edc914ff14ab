//! Runs the built binary as a user would: a process, its streams, its exit code. Nothing of the
//! host is linked.
//!
//! The binary is the one that `KVERN_BIN` names, else what cargo says it has built.

mod layout;
mod outside;
mod scratch;
mod terminal;

pub use layout::Layout;
pub use outside::Outside;
pub use scratch::Scratch;
pub use terminal::on_terminal;

use serde_json::Value;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// The repository.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The embedded model's files, goldens among them.
pub fn tiny_austen() -> PathBuf {
    repository().join("host/kvern/embedded/tiny-austen")
}

/// The built binary.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| std::env::var_os("KVERN_BIN").map_or_else(build, PathBuf::from))
}

/// Builds as `cargo kvern` does, so that nothing is built twice, and reads from cargo where the
/// binary is.
fn build() -> PathBuf {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["build", "--release", "--workspace", "--lib", "--bins", "--example", "features"])
        .args(["--quiet", "--message-format=json"])
        .current_dir(repository())
        .stderr(Stdio::inherit())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "the workspace does not build");
    let text = String::from_utf8_lossy(&output.stdout);
    let messages = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let found = messages
        .filter(|m| m["target"]["name"] == "kvern")
        .find_map(|m| m["executable"].as_str().map(PathBuf::from));
    found.expect("cargo names the binary")
}

/// How a run ended.
#[derive(Debug)]
pub struct Ended {
    /// The exit code; `None` after a signal.
    pub code: Option<i32>,
    /// Everything on stdout.
    pub stdout: String,
    /// Everything on stderr.
    pub stderr: String,
}

impl Ended {
    /// Stdout as one JSON document, of a run that went well.
    pub fn json(&self) -> Value {
        assert_eq!(self.code, Some(0), "{}", self.stderr);
        serde_json::from_str(&self.stdout).expect("stdout is one JSON document")
    }

    /// Asserts a refusal: this code, nothing on stdout, one line on stderr that begins with the
    /// program's name, no panic and no usage text. Answers the line.
    pub fn refused(&self, code: i32) -> &str {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert_eq!(self.stdout, "", "{self:?}");
        let lines: Vec<&str> = self.stderr.lines().collect();
        assert_eq!(lines.len(), 1, "{self:?}");
        assert!(lines[0].starts_with("kvern: "), "{self:?}");
        for word in ["panicked", "Usage:", "thread '"] {
            assert!(!lines[0].contains(word), "{self:?}");
        }
        lines[0]
    }
}

/// A command of a binary, in a directory of its own, with nothing of the tester's settings.
pub fn command(binary: &Path, scratch: &Scratch) -> Command {
    let mut command = Command::new(binary);
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if name.starts_with("KVERN_") || name.starts_with("XDG_") || name.starts_with("HF_") {
            command.env_remove(name);
        }
    }
    command.env("HOME", scratch.path()).current_dir(scratch.path()).stdin(Stdio::null());
    let beside = binary.parent().unwrap_or(Path::new("/"));
    let installed = beside.join("../share/kvern/manifests");
    if !beside.join("manifests").exists() && !installed.exists() {
        command.env("KVERN_MANIFESTS", repository().join("manifests"));
    }
    command
}

/// Runs the built binary to its end.
pub fn kvern<S: AsRef<OsStr>>(scratch: &Scratch, arguments: impl IntoIterator<Item = S>) -> Ended {
    ended(command(binary(), scratch).args(arguments))
}

/// Runs a command to its end.
pub fn ended(command: &mut Command) -> Ended {
    let output = command.output().expect("the binary starts");
    Ended {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}
