//! Runs cargo, always on the whole workspace and always with the same targets, so that features do
//! not flip between a build and a test and nothing heavy is compiled twice.

use crate::layout::Layout;
use crate::mirror::mirror;
use crate::{Result, Stop};
use std::ffi::OsString;
use std::io::{BufRead, BufReader, IsTerminal};
use std::process::{Command, ExitStatus, Stdio};

/// Libraries and binaries, and the one example whose document says why.
const BUILD: [&str; 7] =
    ["build", "--release", "--workspace", "--lib", "--bins", "--example", "features"];

/// Builds all, and lays the manifests beside it.
pub(crate) fn everything(layout: &Layout) -> Result<()> {
    let mut command = cargo(layout, &BUILD);
    if std::io::stderr().is_terminal() {
        passed(progress(&mut command))?;
    } else {
        passed(command.arg("--quiet").status())?;
    }
    mirror(&layout.root.join("manifests"), &layout.release.join("manifests"))?;
    Ok(())
}

/// The format, every library, every test. `args` go to `cargo test`.
pub(crate) fn test(layout: &Layout, args: &[OsString]) -> Result<()> {
    if installed(layout, "fmt") {
        passed(cargo(layout, &["fmt", "--all", "--check"]).status())?;
    }
    if std::env::var_os("KVERN_CLIPPY").is_some_and(|value| value == "1") {
        lint(layout)?;
    }
    everything(layout)?;
    let mut command = cargo(layout, &["test", "--release"]);
    if !args.iter().any(|arg| arg == "-p" || arg == "--package") {
        command.arg("--workspace");
    }
    passed(command.args(args).status())
}

/// Clippy over all targets, warnings denied.
pub(crate) fn lint(layout: &Layout) -> Result<()> {
    if !installed(layout, "clippy") {
        return Err("clippy is not installed: `rustup component add clippy`".to_owned().into());
    }
    let words = ["clippy", "--release", "--workspace", "--all-targets", "--", "-D", "warnings"];
    passed(cargo(layout, &words).status())
}

fn installed(layout: &Layout, tool: &str) -> bool {
    let mut command = Command::new(&layout.cargo);
    let silent = command.args([tool, "--version"]).stdout(Stdio::null()).stderr(Stdio::null());
    silent.status().is_ok_and(|status| status.success())
}

/// A cargo command on this workspace, in the directory where the user is, so that a relative
/// CARGO_TARGET_DIR means what it meant to the cargo that started this.
fn cargo(layout: &Layout, words: &[&str]) -> Command {
    let (subcommand, rest) = words.split_at(1);
    let mut command = Command::new(&layout.cargo);
    command.args(subcommand).arg("--manifest-path").arg(layout.root.join("Cargo.toml")).args(rest);
    clean(&mut command);
    command
}

/// Takes away what `cargo run` told this program about itself: build scripts that watch those
/// variables (ring's does) would run again at every change between `cargo kvern` and plain cargo.
pub(crate) fn clean(command: &mut Command) -> &mut Command {
    for (name, _) in std::env::vars_os() {
        let own = name.to_str().is_some_and(|name| {
            name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")
        });
        if own {
            command.env_remove(&name);
        }
    }
    command
}

/// Runs cargo with its progress lines and without its closing one, so that nothing to do is
/// silence.
fn progress(command: &mut Command) -> std::io::Result<ExitStatus> {
    let mut child = command.stderr(Stdio::piped()).spawn()?;
    if let Some(stderr) = child.stderr.take() {
        for line in BufReader::new(stderr).split(b'\n') {
            let line = line?;
            let line = String::from_utf8_lossy(&line);
            if !is_closing(&line) {
                eprintln!("{line}");
            }
        }
    }
    child.wait()
}

fn is_closing(line: &str) -> bool {
    line.trim_start().starts_with("Finished `")
}

/// Cargo's failure is said by cargo: only its code goes on.
fn passed(status: std::io::Result<ExitStatus>) -> Result<()> {
    let status = status.map_err(|error| format!("cargo does not start: {error}"))?;
    if status.success() {
        return Ok(());
    }
    let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
    Err(Stop { line: None, code })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_closing_line_is_dropped() {
        assert!(is_closing("    Finished `release` profile [optimized] target(s) in 0.09s"));
        assert!(!is_closing("   Compiling kvern-contract v0.1.0"));
        assert!(!is_closing("warning: Finished `is` no reason"));
    }

    #[test]
    fn a_failure_keeps_its_code_and_a_missing_cargo_is_named() {
        let run = |script: &str| passed(Command::new("sh").args(["-c", script]).status());
        assert!(run("exit 0").is_ok());
        let stop = run("exit 101").expect_err("it failed");
        assert_eq!((stop.line, stop.code), (None, 101));
        let stop = run("kill -9 $$").expect_err("it was killed");
        assert_eq!((stop.line, stop.code), (None, 1));
        let stop = passed(Command::new("/nowhere/cargo").status()).expect_err("no such file");
        assert!(stop.line.is_some_and(|line| line.starts_with("cargo does not start: ")));
    }
}
