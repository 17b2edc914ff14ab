//! How things are refused.

use kvern_contract::{Error, ErrorKind};

/// The caller broke a guarantee.
pub fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Invalid, "device/submit", message)
}

/// Valid, but not done here.
pub fn unsupported(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Unsupported, "device/submit", message)
}

/// An error of candle's: shapes were checked before, so a bug.
pub fn candle(error: candle_core::Error) -> Error {
    let text = error.to_string();
    let line = text.lines().next().unwrap_or("no message").to_lowercase();
    Error::new(ErrorKind::Internal, "device/candle", line)
}
