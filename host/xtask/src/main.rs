//! `cargo kvern ARGS…`: builds the host and every plugin in release mode, lays the manifests beside
//! them, and becomes `kvern ARGS…`.
//!
//! Three words are its own, the rest are the binary's:
//!
//! - `test [ARGS…]` checks the format, builds every library and runs every test;
//! - `lint` runs clippy over all targets, warnings denied;
//! - `install --prefix P` puts binary, plugins, manifests, completions and man pages under P.
//!
//! A build that has nothing to do prints nothing. Exit codes are those of what it ran.

mod build;
mod install;
mod layout;
mod mirror;

use layout::Layout;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

/// Why it stopped: one line, and the exit code that says so.
struct Stop {
    /// What a person reads; `None` where the command that failed has said it.
    line: Option<String>,
    code: u8,
}

impl From<String> for Stop {
    fn from(line: String) -> Self {
        Stop { line: Some(line), code: 1 }
    }
}

type Result<T> = std::result::Result<T, Stop>;

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(stop) => {
            if let Some(line) = stop.line {
                eprintln!("cargo kvern: {line}");
            }
            ExitCode::from(stop.code)
        }
    }
}

fn run(args: &[OsString]) -> Result<()> {
    let layout = Layout::find()?;
    match args.first().and_then(|word| word.to_str()) {
        Some("test") => build::test(&layout, &args[1..]),
        Some("lint") => build::lint(&layout),
        Some("install") => {
            let prefix = install::prefix(&args[1..])?;
            build::everything(&layout)?;
            install::install(&layout, &prefix)
        }
        _ => {
            build::everything(&layout)?;
            let binary = layout.release.join("kvern");
            let error = build::clean(Command::new(&binary).args(args)).exec();
            Err(format!("{}: {error}", binary.display()).into())
        }
    }
}
