//! Where in a file something is wrong.

use crate::fail::Failure;
use std::fmt::Display;
use std::path::{Path, PathBuf};

/// The line, counted from 1, that holds a byte offset of a text.
pub fn line_of(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|b| *b == b'\n').count()
}

/// A key in a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    /// The file.
    pub path: PathBuf,
    /// Counted from 1.
    pub line: usize,
    /// As `plugin.name`.
    pub key: String,
}

impl Place {
    /// A key in a file.
    pub fn new(path: &Path, line: usize, key: impl Into<String>) -> Place {
        Place { path: path.to_path_buf(), line, key: key.into() }
    }

    /// One line: file, line, key, what is wrong, what to do.
    pub fn fault(&self, wrong: impl Display, cure: impl Display) -> Failure {
        let Place { path, line, key } = self;
        Failure::new(format!("{}:{line}: `{key}`: {wrong}; {cure}", path.display()))
    }
}

/// A parser's error as one line with file and line; an unknown key names the nearest known one.
pub fn toml_fault(path: &Path, text: &str, error: &toml::de::Error) -> Failure {
    let line = error.span().map_or(1, |span| line_of(text, span.start));
    let message = error.message().lines().next().unwrap_or("not TOML").to_string();
    let near = unknown_key(&message)
        .map(|(key, known)| crate::near::hint(&key, known.iter().map(String::as_str)))
        .unwrap_or_default();
    Failure::new(format!("{}:{line}: {message}{near}", path.display()))
}

/// The key and the known ones of "unknown field `a`, expected one of `b`, `c`".
fn unknown_key(message: &str) -> Option<(String, Vec<String>)> {
    let mut quoted = message.strip_prefix("unknown field ")?.split('`').skip(1).step_by(2);
    let key = quoted.next()?.to_string();
    Some((key, quoted.map(String::from).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_counted_from_one() {
        assert_eq!(line_of("a\nb\nc", 0), 1);
        assert_eq!(line_of("a\nb\nc", 2), 2);
        assert_eq!(line_of("a", 99), 1);
    }

    #[test]
    fn the_known_keys_are_read_from_the_parsers_words() {
        let (key, known) = unknown_key("unknown field `nam`, expected `name` or `kind`").unwrap();
        assert_eq!((key.as_str(), known), ("nam", vec!["name".to_string(), "kind".to_string()]));
    }
}
