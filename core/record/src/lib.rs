//! For authors of kv strategies: checked records, a journal that survives a power cut, and the
//! identity of a root. Pure over the contract's `Host`: no file is touched but through it.
//!
//! The order that survives: write page bytes, sync them, then [`Journal::append`] one record that
//! names them. What a whole record names is on the drive; a record cut short is nothing.

mod fields;
mod frame;
mod identity;
mod journal;

pub use fields::{Fields, put_bytes, put_u32, put_u64};
pub use frame::{HEADER_BYTES, MAGIC, RECORD_BYTES_MAX, checksum, read_record, write_record};
pub use identity::claim_identity;
pub use journal::Journal;
