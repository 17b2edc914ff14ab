//! Short ways to say what was wrong, in the one shape of error.

use kvern_contract::{Error, ErrorKind};

/// The caller's or the file author's words are outside what is allowed.
pub(crate) fn invalid(operation: &str, message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Invalid, operation, one_line(message.into()))
}

/// The bytes are there and wrong.
pub(crate) fn damaged(operation: &str, message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Damaged, operation, one_line(message.into()))
}

/// Valid, but not done here.
pub(crate) fn unsupported(operation: &str, message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Unsupported, operation, one_line(message.into()))
}

/// Nothing of that name.
pub(crate) fn missing(operation: &str, message: impl Into<String>) -> Error {
    Error::new(ErrorKind::NotFound, operation, one_line(message.into()))
}

/// What the operating system said about a path.
pub(crate) fn io(operation: &str, path: &std::path::Path, error: &std::io::Error) -> Error {
    let kind = match error.kind() {
        std::io::ErrorKind::NotFound => ErrorKind::NotFound,
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
            ErrorKind::OutOfSpace
        }
        _ => ErrorKind::Io,
    };
    Error::new(kind, operation, one_line(format!("{}: {error}", path.display())))
}

/// Texts from files may hold anything; a message is one line of bounded length.
fn one_line(message: String) -> String {
    const MOST_CHARS: usize = 600;
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    let mut out: String = message.chars().take(MOST_CHARS).map(clean).collect();
    if message.chars().nth(MOST_CHARS).is_some() {
        out.push('…');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_line_of_bounded_length() {
        let error = invalid("model/open", "a\nb\u{1b}[1m".to_string() + &"x".repeat(5000));
        assert!(error.message.starts_with("a b [1m"), "{}", error.message);
        assert!(error.message.chars().count() <= 601);
    }
}
