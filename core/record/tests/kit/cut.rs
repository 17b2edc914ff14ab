//! A trace until the power goes, what is left then, and the same of the root that was recovered.

use super::drive::*;
use super::trace::{Step, Trace};
use kvern_contract::*;
use kvern_storage::double::MemoryStorage;
use std::sync::Arc;

/// What cuts left, counted.
#[derive(Default, Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tally {
    /// Times that the power went, or was cut while nothing ran.
    pub cuts: usize,
    /// Of these, in the middle of a call.
    pub in_calls: usize,
    /// Roots that could not be opened after a cut.
    pub unreadable_roots: usize,
    /// Tokens that were found and have a page that is missing, or not what the tokens say.
    pub wrong_tokens: usize,
    /// Tokens that were flushed and are not found.
    pub lost_tokens: usize,
    /// Tokens that were found and are right.
    pub right_tokens: usize,
}
impl Tally {
    /// Fails unless every root opened and every token was there and right.
    pub fn assert_nothing_wrong(&self) {
        let wrong = (self.wrong_tokens, self.lost_tokens, self.unreadable_roots);
        assert_eq!(
            wrong,
            (0, 0, 0),
            "{} cuts ({} in a call): {} wrong tokens, {} lost tokens, {} unreadable roots",
            self.cuts,
            self.in_calls,
            self.wrong_tokens,
            self.lost_tokens,
            self.unreadable_roots
        );
    }
}

/// A root after a cut, opened anew, and what is found in it.
pub struct After<'a> {
    store: Box<dyn KvStore>,
    storage: &'a MemoryStorage,
    next: u64,
    pub tally: &'a mut Tally,
}
impl After<'_> {
    /// Looks a prompt up and loads every page of what is found; how many tokens were.
    pub fn find(&mut self, prompt: &[TokenKey]) -> usize {
        let found = find(&mut *self.store, prompt).unwrap();
        let tokens = found.tokens as usize;
        if tokens == 0 {
            return 0;
        }
        self.next += 1;
        let id = SessionId(self.next);
        // The note says how long its session was: a start of it cannot be longer.
        let note = found.note.first_chunk().map_or(0, |note| u64::from_le_bytes(*note));
        let begun = self.store.begin(id, Origin::Stored { found: found.id, at: found.tokens });
        let wrong = match begun {
            Ok(()) if tokens <= prompt.len() && note >= found.tokens => {
                let wrong = wrong_tokens(&mut *self.store, self.storage, id, &prompt[..tokens]);
                self.store.end(id, false).unwrap();
                wrong
            }
            _ => tokens,
        };
        self.tally.wrong_tokens += wrong;
        self.tally.right_tokens += tokens - wrong.min(tokens);
        tokens
    }
    /// Looks up what was flushed: at least `tokens` of it are there.
    pub fn flushed(&mut self, keys: &[TokenKey], tokens: usize) {
        let found = self.find(keys);
        self.tally.lost_tokens += tokens.saturating_sub(found);
    }
}

/// One case: a trace that loses its power, and a second life that loses it too.
pub struct Case<'a> {
    pub open: Opener,
    pub steps: &'a [Step],
    /// The change to the drive at which the power goes; past the trace's last, it goes at its end.
    pub event: u64,
    /// The same, counted from the second process on.
    pub second: u64,
    /// Chooses what of the unsynced is left.
    pub seed: u64,
}
impl Case<'_> {
    /// Runs the case; whether the power went before the trace ended, and in its second life.
    pub fn run(&self, tally: &mut Tally) -> (bool, bool) {
        let storage = MemoryStorage::new();
        storage.fail_at(self.event);
        let mut trace = None;
        let ended = Trace::start(self.open, storage.clone())
            .and_then(|started| trace.insert(started).run(self.steps));
        let first = storage.is_off();
        if !first {
            ended.unwrap();
        }
        self.cut(&storage, self.seed, first, trace.as_ref(), None, tally);

        let extra = tokens(!self.seed, 100 + (self.event % 80) as usize);
        storage.fail_at(storage.events() + self.second);
        let flushed = self.second_life(&storage, &extra);
        let second = storage.is_off();
        if !second {
            flushed.clone().unwrap();
        }
        let extra = flushed.is_ok().then_some(extra.as_slice());
        self.cut(&storage, !self.seed, second, trace.as_ref(), extra, tally);
        (first, second)
    }

    /// Takes what is unsynced away, and looks at what is left.
    fn cut(
        &self,
        storage: &Arc<MemoryStorage>,
        seed: u64,
        in_call: bool,
        trace: Option<&Trace>,
        extra: Option<&[TokenKey]>,
        tally: &mut Tally,
    ) {
        storage.cut(seed);
        tally.cuts += 1;
        tally.in_calls += usize::from(in_call);
        let Ok(store) = (self.open)(storage.clone()) else {
            tally.unreadable_roots += 1;
            return;
        };
        let mut after = After { store, storage, next: 1 << 20, tally };
        if let Some(trace) = trace {
            trace.survivors(&mut after);
        }
        if let Some(extra) = extra {
            after.flushed(extra, extra.len());
        }
    }

    /// The recovered root goes on: a session stores pages and is flushed, another's pages are there
    /// before and after, and never durable.
    fn second_life(&self, storage: &Arc<MemoryStorage>, extra: &[TokenKey]) -> Result<()> {
        let mut store = (self.open)(storage.clone())?;
        let other = tokens(!self.event, 130);
        for (id, keys) in [(1, &other[..]), (2, extra)] {
            let id = SessionId(id);
            store.begin(id, Origin::Fresh)?;
            self::store(&mut *store, &sealed(id, keys, 0..keys.len().div_ceil(PAGE)))?;
            commit(&mut *store, id, keys, 0)?;
        }
        store.flush(SessionId(2))?;
        // What follows may be lost, and may take nothing with it.
        let mut more = || -> Result<()> {
            store.rewind(SessionId(2), 64)?;
            self::store(&mut *store, &sealed(SessionId(1), &other, 0..1))?;
            store.end(SessionId(1), true)
        };
        more().or_else(|error| if storage.is_off() { Ok(()) } else { Err(error) })
    }
}
