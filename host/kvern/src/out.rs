//! Stdout carries what was asked for, as it is made; everything else goes to stderr.

use crate::fail::{Failure, Outcome};
use crate::progress;
use std::io::{ErrorKind, Write};

/// Writes to stdout and flushes. A closed pipe ends the run quietly.
pub fn say(text: &str) -> Outcome<()> {
    let written = progress::alone(|| {
        progress::follows(text);
        let mut out = std::io::stdout().lock();
        out.write_all(text.as_bytes()).and_then(|()| out.flush())
    });
    written.map_err(|e| match e.kind() {
        ErrorKind::BrokenPipe => Failure::closed_pipe(),
        _ => Failure::new(format!("stdout: {e}")),
    })
}

/// Writes a JSON document and a line end to stdout.
pub fn document(value: &impl serde::Serialize) -> Outcome<()> {
    let text = kvern_report::pretty(value).map_err(Failure::new)?;
    say(&(text + "\n"))
}

/// Writes a line to stderr; when that is gone too there is nobody left to tell.
pub fn note(line: &str) {
    let _ = progress::alone(|| writeln!(std::io::stderr().lock(), "{line}"));
}

/// A number of bytes for people.
pub fn size(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = "bytes";
    for next in units {
        if value < 1024.0 {
            break;
        }
        (value, unit) = (value / 1024.0, next);
    }
    if unit == "bytes" { format!("{bytes} bytes") } else { format!("{value:.1} {unit}") }
}

/// Replaces a file whole or not at all; parents are created.
pub fn publish(path: &std::path::Path, bytes: &[u8]) -> Outcome<()> {
    let told = |e: std::io::Error| Failure::new(format!("{}: {e}", path.display()));
    if std::fs::metadata(path).is_ok_and(|there| !there.is_file()) {
        let place = path.display();
        return Err(Failure::new(format!("{place} is no regular file; name one to write")));
    }
    if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
        std::fs::create_dir_all(parent).map_err(told)?;
    }
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".part{}", std::process::id()));
    let partial = path.with_file_name(name);
    let written = std::fs::write(&partial, bytes).and_then(|()| std::fs::rename(&partial, path));
    if written.is_err() {
        // The first error is the one to tell; a leftover is only untidy.
        let _ = std::fs::remove_file(&partial);
    }
    written.map_err(told)
}

#[cfg(test)]
mod tests {
    #[test]
    fn sizes_are_told_in_binary_units() {
        assert_eq!(super::size(1000), "1000 bytes");
        assert_eq!(super::size(5_516_032), "5.3 MiB");
        assert_eq!(super::size(2 << 30), "2.0 GiB");
    }
}
