//! Answers of `find` that a session may begin from: the latest ones.

use kvern_contract::*;
use std::collections::BTreeMap;

/// Answers kept from one `find` to the next, where a batch is not longer; one is some ten bytes.
/// An older one is gone, and its caller starts fresh.
pub const ANSWERS_MAX: usize = 1024;

/// What a `FoundId` stands for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// A session that the engine has open.
    Live(SessionId),
    /// A durable session, by the table's own number.
    Stored(u64),
}

/// Histories and how many of their tokens were found, by id; ids grow.
#[derive(Default)]
pub(crate) struct Answers {
    known: BTreeMap<FoundId, (Source, TokenIndex)>,
    last: u64,
}
impl Answers {
    /// A new id; one for nothing is not kept.
    pub(crate) fn add(&mut self, best: Option<(Source, TokenIndex)>) -> FoundId {
        self.last += 1;
        let id = FoundId(self.last);
        self.known.extend(best.map(|best| (id, best)));
        id
    }
    /// Forgets all but the latest [`ANSWERS_MAX`], or the latest `batch` where that is more.
    pub(crate) fn forget_oldest(&mut self, batch: usize) {
        while self.known.len() > ANSWERS_MAX.max(batch) {
            self.known.pop_first();
        }
    }
    /// An answer, which is used up.
    pub(crate) fn take(&mut self, id: FoundId) -> Option<(Source, TokenIndex)> {
        self.known.remove(&id)
    }
    /// Forgets answers that reach past `to` in a history that was cut there.
    pub(crate) fn cut(&mut self, source: Source, to: TokenIndex) {
        self.known.retain(|_, found| found.0 != source || found.1 <= to);
    }
    /// A session ended. Its answers go on in its durable form: number, and tokens that are there as
    /// they were in the session.
    pub(crate) fn end(&mut self, session: SessionId, durable: Option<(u64, TokenIndex)>) {
        self.known.retain(|_, found| match (found.0 == Source::Live(session), durable) {
            (false, _) => true,
            (true, Some((number, base))) if found.1 <= base => {
                found.0 = Source::Stored(number);
                true
            }
            (true, _) => false,
        });
    }
    /// Forgets all.
    pub(crate) fn clear(&mut self) {
        self.known.clear();
    }
}
