//! What is durable: the sum of the manifest's records, kept the same way when they are read and
//! when they are written.

use crate::history::History;
use crate::record::{Record, damaged};
use kvern_contract::*;
use std::collections::BTreeMap;

/// Largest session number and end of a piece: as far as a file goes, with room to count on.
const NUMBER_MAX: u64 = i64::MAX as u64;

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
    /// Counts what a record names as named, whether or not it is added then. *Errors* Damaged: it
    /// names a session or bytes that nobody could have written.
    pub(crate) fn name(&mut self, record: &Record) -> Result<()> {
        let (number, pieces) = match record {
            Record::Dropped { number } => (*number, &[][..]),
            Record::Session { number, pieces, .. } => (*number, &pieces[..]),
        };
        let end = pieces.iter().map(|(_, piece)| piece.end()).max().unwrap_or(0);
        if number > NUMBER_MAX || end > NUMBER_MAX {
            return Err(damaged(format!(
                "the manifest names session {number} with bytes up to {end}, and neither passes \
                 {NUMBER_MAX}"
            )));
        }
        self.last_number = self.last_number.max(number);
        self.named_end = self.named_end.max(end);
        Ok(())
    }

    /// Adds a record. *Errors* Damaged: as [`Index::name`], or it goes on where its session has not
    /// been.
    pub(crate) fn apply(&mut self, record: Record) -> Result<()> {
        self.name(&record)?;
        match record {
            Record::Dropped { number } => {
                self.sessions.remove(&number);
            }
            Record::Session { number, base, keys, pieces, note } => {
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
                session.pieces.extend(pieces);
                session.note = note;
            }
        }
        Ok(())
    }
}
