//! What every call over the border is made of: results, errors, documents, times, strings of words.

use abi_stable::StableAbi;
use abi_stable::std_types::{RResult, RVec};
use kvern_contract::{Error, ErrorKind, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// An error on its way: the kind as a number, so that one which this side does not know is
/// `Internal`, and a JSON document with the rest. An `Ok` never touches either.
#[repr(C)]
#[derive(StableAbi)]
pub struct AbiError {
    pub kind: u32,
    pub doc: RVec<u8>,
}

/// What every slot of every table returns.
pub type AbiResult<T> = RResult<T, AbiError>;

#[derive(Serialize)]
struct ErrorOut<'a> {
    message: &'a str,
    operation: &'a str,
    context: &'a [(String, String)],
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct ErrorIn {
    message: String,
    operation: String,
    context: Vec<(String, String)>,
}

fn kind_of(number: u32) -> ErrorKind {
    use ErrorKind::*;
    let known = [
        Invalid,
        Unsupported,
        NotFound,
        Damaged,
        Mismatch,
        Busy,
        OutOfSpace,
        OverBudget,
        Io,
        Timeout,
        Panicked,
    ];
    known.into_iter().find(|kind| *kind as u32 == number).unwrap_or(Internal)
}

/// The number of a kind, 0 for none.
pub fn kind_word(kind: Option<ErrorKind>) -> u32 {
    kind.map_or(0, |kind| kind as u32)
}

/// The reverse of `kind_word` for a number that must name a kind.
pub fn word_kind(number: u32) -> ErrorKind {
    kind_of(number)
}

/// An error as it travels.
#[cold]
pub fn pack(error: &Error) -> AbiError {
    let out =
        ErrorOut { message: &error.message, operation: &error.operation, context: &error.context };
    let doc = serde_json::to_vec(&out).unwrap_or_default();
    AbiError { kind: error.kind as u32, doc: doc.into() }
}

/// An error as it arrived. A document that cannot be read leaves the kind.
#[cold]
pub fn unpack(error: &AbiError) -> Error {
    let kind = kind_of(error.kind);
    match serde_json::from_slice::<ErrorIn>(&error.doc) {
        Ok(e) => Error { kind, message: e.message, operation: e.operation, context: e.context },
        Err(e) => Error::new(kind, "abi/error", format!("the error's document is unreadable: {e}")),
    }
}

/// A result as it travels.
#[inline]
pub fn send<T>(result: Result<T>) -> AbiResult<T> {
    match result {
        Ok(value) => RResult::ROk(value),
        Err(error) => RResult::RErr(pack(&error)),
    }
}

/// A result as it arrived.
#[inline]
pub fn receive<T>(result: AbiResult<T>) -> Result<T> {
    match result {
        RResult::ROk(value) => Ok(value),
        RResult::RErr(error) => Err(unpack(&error)),
    }
}

/// A cold call's document. *Errors* Internal: only a map with keys that are not text does not
/// serialise.
pub fn write_doc<T: Serialize>(operation: &str, value: &T) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|e| {
        Error::new(ErrorKind::Internal, operation, format!("the document cannot be written: {e}"))
    })
}

/// The reverse; fields that this side does not know are ignored. *Errors* Invalid with the place in
/// the document.
pub fn read_doc<T: DeserializeOwned>(operation: &str, doc: &[u8]) -> Result<T> {
    serde_json::from_slice(doc).map_err(|e| {
        Error::new(
            ErrorKind::Invalid,
            operation,
            format!("the other side's document was not understood: {e}"),
        )
    })
}

/// Nanoseconds, at most `u64::MAX` (584 years).
pub fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// The reverse.
pub fn duration(nanos: u64) -> Duration {
    Duration::from_nanos(nanos)
}

/// An Invalid error for a number that means nothing here.
#[cold]
pub fn unknown(operation: &str, what: &str, number: u32) -> Error {
    Error::new(
        ErrorKind::Invalid,
        operation,
        format!("{what} {number} is unknown to this side: build both for the same epoch"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_keeps_all_that_it_says() {
        let error = Error {
            context: vec![("file".into(), "a\n\"b\"".into())],
            ..Error::new(ErrorKind::OutOfSpace, "kv/store", "the drive is full")
        };
        assert_eq!(unpack(&pack(&error)), error);
    }

    #[test]
    fn an_unknown_kind_is_internal_and_an_unreadable_document_is_no_panic() {
        let error = AbiError { kind: 77, doc: vec![b'{'].into() };
        assert_eq!(unpack(&error).kind, ErrorKind::Internal);
        for kind in 1..=12 {
            assert_eq!(kind_of(kind) as u32, kind);
        }
    }

    #[test]
    fn unknown_fields_of_a_document_are_ignored() {
        #[derive(Deserialize)]
        struct Small {
            a: u32,
        }
        let small: Small = read_doc("x", br#"{"a":1,"later":[2]}"#).unwrap();
        assert_eq!(small.a, 1);
        let refusal = read_doc::<Small>("kv/open", b"{}").err().unwrap();
        assert_eq!((refusal.kind, refusal.operation.as_str()), (ErrorKind::Invalid, "kv/open"));
    }

    #[test]
    fn a_time_beyond_the_word_saturates() {
        assert_eq!(nanos(Duration::MAX), u64::MAX);
        assert_eq!(duration(nanos(Duration::from_micros(3))), Duration::from_micros(3));
    }
}
