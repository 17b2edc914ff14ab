//! Errors of the file system in the contract's shape: a kind, the path, and what to do.

use kvern_contract::{Error, ErrorKind, FileId};
use std::io;
use std::path::Path;

/// The kind of an I/O error.
pub(crate) fn kind_of(error: &io::Error) -> ErrorKind {
    match error.kind() {
        io::ErrorKind::NotFound => ErrorKind::NotFound,
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            ErrorKind::OutOfSpace
        }
        io::ErrorKind::WouldBlock
        | io::ErrorKind::ResourceBusy
        | io::ErrorKind::ExecutableFileBusy => ErrorKind::Busy,
        io::ErrorKind::TimedOut => ErrorKind::Timeout,
        _ => ErrorKind::Io,
    }
}

/// An I/O error at a path.
pub(crate) fn at_path(operation: &str, path: &Path, error: &io::Error) -> Error {
    let kind = kind_of(error);
    let cure = match kind {
        ErrorKind::OutOfSpace => "; free some space or choose another directory",
        _ => "",
    };
    let mut out =
        Error::new(kind, operation, format!("{}: {}{cure}", path.display(), plain(error)));
    out.context.push(("path".into(), path.display().to_string()));
    out
}

/// A read that the drive failed, and failed again.
pub(crate) fn failed_twice(path: &Path, offset: u64, error: &io::Error) -> Error {
    let mut out = at_path("storage/read", path, error);
    let path = path.display();
    out.message = format!("{path}: {} at offset {offset}, twice; check the drive", plain(error));
    out.context.push(("offset".into(), offset.to_string()));
    out
}

/// A directory that could not be made.
pub(crate) fn no_directory(operation: &str, dir: &Path, error: &io::Error) -> Error {
    let text = format!(
        "cannot create the directory {}: {}; choose another --cache-dir",
        dir.display(),
        plain(error)
    );
    let mut out = Error::new(kind_of(error), operation, text);
    out.context.push(("path".into(), dir.display().to_string()));
    out
}

/// A file that ends before the request does.
pub(crate) fn ends_early(name: &str, offset: u64, asked: u64, got: u64) -> Error {
    let text = format!(
        "{name} ends early: asked for {asked} bytes at offset {offset}, got {got}; the \
         file is cut short"
    );
    let mut out = Error::new(ErrorKind::Damaged, "storage/read", text);
    for (key, value) in [("offset", offset), ("asked", asked), ("got", got)] {
        out.context.push((key.into(), value.to_string()));
    }
    out
}

/// An id that this service does not know.
pub(crate) fn no_file(operation: &str, file: FileId) -> Error {
    Error::new(ErrorKind::NotFound, operation, format!("no open file has the id {}", file.0))
}

/// A deadline that passed.
pub(crate) fn late(operation: &str, within: std::time::Duration) -> Error {
    let text = format!("not done within {} ms", within.as_millis());
    Error::new(ErrorKind::Timeout, operation, text)
}

/// A write to a file that was opened to be read.
pub(crate) fn read_only(operation: &str, name: &str) -> Error {
    let text = format!("{name} was opened to read; open it to write");
    Error::new(ErrorKind::Invalid, operation, text)
}

/// The system's words without the number that std adds, lower case.
fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    text.to_lowercase()
}
