//! For authors of kv strategies: checked records, a journal that survives a power cut, the page
//! table of a root, and the identity of a root. Pure over the contract's `Host`: no file is
//! touched but through it.
//!
//! The order that survives: write page bytes, sync them, then make one record durable that names
//! them: [`Journal::append`] where records follow each other, [`publish`] where one replaces the
//! last. What a whole record names is on the drive; a record cut short is nothing.
//!
//! A store that keeps sessions needs [`claim_identity`], a [`PageTable`], a [`Place`] for its
//! pages, and its own way to lay bytes out in files.

mod fields;
mod frame;
mod identity;
mod journal;
mod publish;
mod table;

pub use fields::{Fields, put_bytes, put_u32, put_u64};
pub use frame::{HEADER_BYTES, MAGIC, RECORD_BYTES_MAX, checksum, read_record, write_record};
pub use identity::claim_identity;
pub use journal::Journal;
pub use publish::{publish, published};
pub use table::{ANSWERS_MAX, Draft, Entry, PageTable, Place};
