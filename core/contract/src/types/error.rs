//! One shape of error, the same on both sides of the border.

use serde::{Deserialize, Serialize};

/// What every fallible call returns.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a call failed. Closed inside an epoch; an unknown number from the border is `Internal`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[repr(u32)]
pub enum ErrorKind {
    /// The caller broke a guarantee, or an option is out of range.
    Invalid = 1,
    /// Valid, but this plugin does not do it.
    Unsupported = 2,
    /// No such session, file or answer.
    NotFound = 3,
    /// Bytes are there and wrong.
    Damaged = 4,
    /// The root belongs to another model, dtype, version or program.
    Mismatch = 5,
    /// Another writer has the root.
    Busy = 6,
    /// The drive or the quota is full. A state, not a crash.
    OutOfSpace = 7,
    /// A reservation did not fit.
    OverBudget = 8,
    /// The drive or the network said no.
    Io = 9,
    /// Not done in the time given.
    Timeout = 10,
    /// The plugin panicked and is poisoned; a host panic under its frame is `Internal`.
    Panicked = 11,
    /// A bug.
    Internal = 12,
}

/// A failure, as a caller handles it and as a person reads it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Error {
    /// What a caller decides by.
    pub kind: ErrorKind,
    /// One line, lower case, with values and units, no trailing stop.
    pub message: String,
    /// The call that failed, as `kv/load`.
    pub operation: String,
    /// Facts beside the message, name and value each.
    pub context: Vec<(String, String)>,
}

impl Error {
    /// An error without context.
    pub fn new(kind: ErrorKind, operation: &str, message: impl Into<String>) -> Self {
        Error { kind, message: message.into(), operation: operation.into(), context: Vec::new() }
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.operation, self.message)
    }
}

impl std::error::Error for Error {}
