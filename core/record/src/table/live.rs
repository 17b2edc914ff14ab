//! A session that the engine has open, and what of it no record says yet.

use super::Place;
use super::history::{Entry, History, Layers, PAGE, Spot, end_of};
use super::record::Record;
use kvern_contract::{Commit, TokenIndex};
use std::collections::BTreeSet;

/// A living session.
pub(crate) struct Live<P> {
    /// The table's own name for it.
    pub(crate) number: u64,
    pub(crate) history: History<P>,
    /// Tokens before this are in the last record as they are here.
    pub(crate) base: u64,
    /// Stored since the last record, or listed in none yet.
    unlisted: BTreeSet<Spot>,
    /// Whether the last record says all there is.
    pub(crate) clean: bool,
    /// The stored session that this one took whole when it began.
    pub(crate) took: Option<u64>,
}
impl<P: Place> Live<P> {
    /// A session that starts with `history`, which no record of its own says.
    pub(crate) fn new(number: u64, history: History<P>, took: Option<u64>) -> Self {
        let unlisted = history.entries.keys().copied().collect();
        Live { number, history, base: 0, unlisted, clean: false, took }
    }

    pub(crate) fn insert(&mut self, spot: Spot, entry: Entry<P>) {
        self.history.entries.insert(spot, entry);
        self.unlisted.insert(spot);
        self.clean = false;
    }

    /// Adds tokens. Entries that were stored ahead of them and are of others go: nobody could load
    /// them, and they would be counted as these tokens' pages.
    pub(crate) fn commit(&mut self, commit: &Commit<'_>) {
        let before = self.history.tokens();
        let chain_at = |end: u64| match usize::try_from(end / PAGE - before / PAGE) {
            _ if end == commit.tokens => Some(commit.chain),
            Ok(filled) if end.is_multiple_of(PAGE) => {
                commit.chains.get(filled.checked_sub(1)?).copied()
            }
            _ => None,
        };
        self.history.entries.retain(|&(_, part), entry| {
            let end = end_of(part, &entry.tag);
            let reached = end > before && end <= commit.tokens;
            !reached || chain_at(end) == Some(entry.tag.chain)
        });
        self.unlisted.retain(|spot| self.history.entries.contains_key(spot));
        self.history.keys.extend_from_slice(commit.keys);
        self.history.note.clear();
        self.history.note.extend_from_slice(commit.note);
        self.clean = false;
    }

    /// Goes back to `to` or, with recurrent layers, to the last state before it. Answers where it
    /// landed and how many entries went.
    pub(crate) fn rewind(&mut self, layers: &Layers, to: TokenIndex) -> (TokenIndex, usize) {
        let (tokens, entries) = (self.history.tokens(), self.history.entries.len());
        let mut landed = to.min(tokens);
        if !layers.recurrent.is_empty() && landed < tokens {
            landed = self.history.last_state(layers, |at| at <= landed);
        }
        self.history.cut(landed);
        self.base = self.base.min(landed);
        self.unlisted.retain(|spot| self.history.entries.contains_key(spot));
        self.clean = false;
        (landed, entries - self.history.entries.len())
    }

    /// The record that makes the session durable as it is, and which entries it lists, where.
    pub(crate) fn record(&self) -> (Record<P>, Vec<Spot>, Vec<Entry<P>>) {
        let History { keys, entries, note } = &self.history;
        let tokens = self.history.tokens();
        let inside = |&spot: &Spot| {
            let entry = *entries.get(&spot)?;
            (end_of(spot.1, &entry.tag) <= tokens).then_some((spot, entry))
        };
        let listed: Vec<_> = self.unlisted.iter().filter_map(inside).collect();
        let (spots, named) = listed.iter().copied().unzip();
        let base = usize::try_from(self.base).unwrap_or(usize::MAX).min(keys.len());
        let record = Record::Session {
            number: self.number,
            base: self.base,
            keys: keys[base..].to_vec(),
            entries: listed,
            note: note.clone(),
        };
        (record, spots, named)
    }

    /// The record is durable that listed these.
    pub(crate) fn flushed(&mut self, listed: &[Spot]) {
        self.base = self.history.tokens();
        for spot in listed {
            self.unlisted.remove(spot);
        }
        self.clean = true;
    }
}
