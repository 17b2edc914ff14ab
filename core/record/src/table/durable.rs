//! What is durable: the sum of the journal's records, kept the same way when they are read and when
//! they are written.

use super::Place;
use super::history::History;
use super::record::{Record, damaged};
use kvern_contract::*;
use std::collections::BTreeMap;

/// Largest number of a session: there is room to count on.
const NUMBER_MAX: u64 = i64::MAX as u64;

/// Durable sessions by the table's own number: the engine's ids mean nothing to the next process.
pub(crate) struct Durable<P> {
    pub(crate) sessions: BTreeMap<u64, History<P>>,
    /// The largest number that any record names.
    pub(crate) last_number: u64,
}
impl<P> Default for Durable<P> {
    fn default() -> Self {
        Durable { sessions: BTreeMap::new(), last_number: 0 }
    }
}
impl<P: Place> Durable<P> {
    /// Counts a record's number as named, whether or not the record is added then. *Errors*
    /// Damaged: nobody could have counted so far.
    pub(crate) fn name(&mut self, record: &Record<P>) -> Result<()> {
        let (Record::Dropped { number } | Record::Session { number, .. }) = *record;
        if number > NUMBER_MAX {
            let text = format!("the journal names session {number}, which passes {NUMBER_MAX}");
            return Err(damaged(text));
        }
        self.last_number = self.last_number.max(number);
        Ok(())
    }

    /// Adds a record. *Errors* Damaged: as [`Durable::name`], or it goes on where its session has
    /// not been.
    pub(crate) fn apply(&mut self, record: Record<P>) -> Result<()> {
        self.name(&record)?;
        match record {
            Record::Dropped { number } => {
                self.sessions.remove(&number);
            }
            Record::Session { number, base, keys, entries, note } => {
                let session = self.sessions.entry(number).or_default();
                let tokens = session.tokens();
                if base > tokens {
                    return Err(damaged(format!(
                        "the journal goes on at token {base} of session {number}, which has \
                         {tokens}"
                    )));
                }
                if base < tokens {
                    session.cut(base);
                }
                session.keys.extend(keys);
                session.entries.extend(entries);
                session.note = note;
            }
        }
        Ok(())
    }
}
