//! What is durable: the sum of the manifest's records, kept the same way when they are read and
//! when they are written.

use crate::history::History;
use crate::record::{Record, damaged};
use kvern_contract::*;
use std::collections::BTreeMap;

/// Durable sessions by the store's own number: the engine's ids mean nothing to the next process.
#[derive(Default)]
pub(crate) struct Index {
    pub(crate) sessions: BTreeMap<u64, History>,
    /// The largest number that any record names.
    pub(crate) last_number: u64,
    /// Where the bytes end that any record names, of sessions that are gone too: none of them is
    /// reused.
    pub(crate) named_end: u64,
}
impl Index {
    /// Adds a record. *Errors* Damaged: it goes on where its session has not been.
    pub(crate) fn apply(&mut self, record: Record) -> Result<()> {
        match record {
            Record::Dropped { number } => {
                self.last_number = self.last_number.max(number);
                self.sessions.remove(&number);
            }
            Record::Session { number, base, keys, pieces, note } => {
                self.last_number = self.last_number.max(number);
                let session = self.sessions.entry(number).or_default();
                let tokens = session.tokens();
                if base > tokens {
                    return Err(damaged(format!(
                        "the manifest goes on at token {base} of session {number}, which has \
                         {tokens}"
                    )));
                }
                if base < tokens {
                    session.cut(base);
                }
                session.keys.extend(keys);
                for (_, piece) in &pieces {
                    let end = piece.offset.saturating_add(u64::from(piece.tag.bytes));
                    self.named_end = self.named_end.max(end);
                }
                session.pieces.extend(pieces);
                session.note = note;
            }
        }
        Ok(())
    }
}
