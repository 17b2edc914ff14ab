//! Random traces against a naive model, and the power cut at every event of them.

use super::drive::*;
use kvern_contract::*;
use kvern_storage::Storage;
use kvern_storage::double::{MemoryStorage, Random};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A history, and how many rows of each page are stored.
#[derive(Clone, Default)]
struct Known {
    keys: Vec<TokenKey>,
    rows: BTreeMap<(u32, usize), usize>,
}
impl Known {
    fn cut(&mut self, to: usize) {
        self.keys.truncate(to);
        self.rows.retain(|(_, page), rows| *page * PAGE + *rows <= to);
    }
    /// Tokens of a prompt that this history could give, by trying every length.
    fn gives(&self, prompt: &[TokenKey]) -> usize {
        let common = self.keys.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        let can = |&tokens: &usize| {
            let whole = tokens % PAGE == 0 || tokens == self.keys.len();
            whole
                && (0..tokens.div_ceil(PAGE)).all(|page| {
                    let rows = PAGE.min(tokens - page * PAGE);
                    PAGED.iter().all(|layer| self.rows.get(&(*layer, page)) == Some(&rows))
                })
        };
        (0..=common).rev().find(can).unwrap_or(0)
    }
}

#[derive(Clone, Default)]
struct Session {
    now: Known,
    durable: Option<Known>,
    /// Tokens before this are in `durable` as they are now.
    base: usize,
}

/// What may or may not have happened when the power went.
enum Doubt {
    None,
    Flush { old: Option<Known>, new: Known },
    Drop,
}

/// The engine's side of a trace, with the model beside the store.
struct Trace {
    storage: Arc<MemoryStorage>,
    store: Box<dyn KvStore>,
    random: Random,
    live: BTreeMap<SessionId, Session>,
    kept: Vec<Known>,
    prompts: Vec<Vec<TokenKey>>,
    next: u64,
    doubt: Doubt,
}
impl Trace {
    fn start(storage: Arc<MemoryStorage>, seed: u64) -> Result<Self> {
        let store = open(storage.clone())?;
        let random = Random::new(seed);
        let (live, kept, prompts) = (BTreeMap::new(), Vec::new(), vec![tokens(seed, 150)]);
        Ok(Trace { storage, store, random, live, kept, prompts, next: 1, doubt: Doubt::None })
    }
    fn pick(&mut self) -> Option<SessionId> {
        let ids: Vec<_> = self.live.keys().copied().collect();
        ids.get(self.random.below(ids.len() as u64) as usize).copied()
    }
    fn prompt(&mut self) -> Vec<TokenKey> {
        let at = self.random.below(self.prompts.len() as u64) as usize;
        let mut prompt = self.prompts[at].clone();
        prompt.truncate(1 + self.random.below(prompt.len() as u64 + 40) as usize);
        if self.random.one_in(3) {
            prompt.extend(tokens(self.random.bits(), 30));
        }
        prompt
    }
    fn fresh_id(&mut self) -> SessionId {
        self.next += 1;
        SessionId(self.next)
    }

    /// Looks a prompt up, checks the answer against the model and begins from it.
    fn begin(&mut self) -> Result<()> {
        let prompt = self.prompt();
        let found = find(&mut *self.store, &prompt)?;
        let durable = self.live.values().filter_map(|session| session.durable.as_ref());
        let all = self.live.values().map(|session| &session.now).chain(durable).chain(&self.kept);
        let expected = all.map(|known| known.gives(&prompt)).max().unwrap_or(0);
        assert_eq!(found.tokens as usize, expected, "of {} tokens", prompt.len());
        let id = self.fresh_id();
        let mut now = Known::default();
        if found.tokens == 0 {
            self.store.begin(id, Origin::Fresh)?;
        } else {
            let mut at = found.tokens;
            if self.random.one_in(3) {
                at = at / PAGE as u64 * PAGE as u64;
            }
            self.store.begin(id, Origin::Stored { found: found.id, at })?;
            now.keys = prompt[..at as usize].to_vec();
            for page in sealed(id, &now.keys, 0..now.keys.len().div_ceil(PAGE)) {
                now.rows.insert(spot(&page), page.tag.tokens as usize);
            }
            self.check(id, &now.keys);
        }
        self.live.insert(id, Session { now, ..Session::default() });
        Ok(())
    }
    fn check(&mut self, id: SessionId, keys: &[TokenKey]) {
        assert!(
            all_right(&mut *self.store, &*self.storage, id, keys),
            "a page is not what its tokens say"
        );
    }
    fn fork(&mut self) -> Result<()> {
        let Some(of) = self.pick() else { return Ok(()) };
        let at = self.random.below(self.live[&of].now.keys.len() as u64 + 1) as usize;
        let id = self.fresh_id();
        self.store.begin(id, Origin::Fork { of, at: at as u64 })?;
        let mut now = self.live[&of].now.clone();
        now.cut(at);
        now.rows.retain(|_, rows| *rows == PAGE);
        self.live.insert(id, Session { now, ..Session::default() });
        Ok(())
    }
    /// A step: tokens come, some pages are stored before they are committed, some after, some
    /// never.
    fn step(&mut self) -> Result<()> {
        let Some(id) = self.pick() else { return Ok(()) };
        let before = self.live[&id].now.keys.len();
        if before > 600 {
            return self.rewind();
        }
        let more = 1 + self.random.below(150) as usize;
        let mut keys = self.live[&id].now.keys.clone();
        keys.extend(tokens(self.random.bits(), more));
        let first_open = (0..keys.len() / PAGE).find(|page| {
            PAGED.iter().any(|l| self.live[&id].now.rows.get(&(*l, *page)) != Some(&PAGE))
        });
        let ahead = self.random.one_in(3);
        if !ahead {
            commit(&mut *self.store, id, &keys, before)?;
        }
        if let (Some(first), false) = (first_open, self.random.one_in(4)) {
            let pages = sealed(id, &keys, first..keys.len() / PAGE);
            store(&mut *self.store, &pages)?;
            let session = self.live.entry(id).or_default();
            session
                .now
                .rows
                .extend(pages.iter().map(|page| (spot(page), page.tag.tokens as usize)));
        }
        if ahead {
            commit(&mut *self.store, id, &keys, before)?;
        }
        self.prompts.push(keys.clone());
        self.live.entry(id).or_default().now.keys = keys;
        Ok(())
    }
    /// A step that is given up: its pages are stored, a flush comes, and then its tokens are
    /// dropped.
    fn given_up(&mut self) -> Result<()> {
        let Some(id) = self.pick() else { return Ok(()) };
        let mut keys = self.live[&id].now.keys.clone();
        let (first, tokens_now) = (keys.len() / PAGE, keys.len());
        keys.extend(tokens(self.random.bits(), 130));
        let pages = sealed(id, &keys, first..keys.len() / PAGE);
        store(&mut *self.store, &pages)?;
        let session = self.live.entry(id).or_default();
        session.now.rows.extend(pages.iter().map(|page| (spot(page), page.tag.tokens as usize)));
        self.prompts.push(keys);
        if self.random.one_in(2) {
            self.flush_as_is(id)?;
        }
        self.store.rewind(id, tokens_now as u64)?;
        self.cut(id, tokens_now);
        Ok(())
    }
    fn rewind(&mut self) -> Result<()> {
        let Some(id) = self.pick() else { return Ok(()) };
        let to = self.random.below(self.live[&id].now.keys.len() as u64 + 1);
        assert_eq!(self.store.rewind(id, to)?, to);
        self.cut(id, to as usize);
        Ok(())
    }
    fn cut(&mut self, id: SessionId, to: usize) {
        let session = self.live.entry(id).or_default();
        session.now.cut(to);
        session.base = session.base.min(to);
    }
    /// Stores the page that is not full, most of the time, and flushes.
    fn flush(&mut self) -> Result<()> {
        let Some(id) = self.pick() else { return Ok(()) };
        let keys = self.live[&id].now.keys.clone();
        let rest = keys.len() % PAGE;
        if rest > 0 && !self.random.one_in(4) {
            let pages = sealed(id, &keys, keys.len() / PAGE..keys.len() / PAGE + 1);
            store(&mut *self.store, &pages)?;
            let session = self.live.entry(id).or_default();
            session.now.rows.extend(pages.iter().map(|page| (spot(page), rest)));
        }
        self.flush_as_is(id)
    }
    fn flush_as_is(&mut self, id: SessionId) -> Result<()> {
        let session = self.live.entry(id).or_default();
        // A page that was stored again ahead of its tokens leaves its durable form as it was.
        let mut new = session.durable.clone().unwrap_or_default();
        new.cut(session.base);
        new.keys.clone_from(&session.now.keys);
        let inside =
            |((_, page), rows): &(&(u32, usize), &usize)| page * PAGE + *rows <= new.keys.len();
        new.rows.extend(session.now.rows.iter().filter(inside));
        self.doubt = Doubt::Flush { old: session.durable.clone(), new: new.clone() };
        self.store.flush(id)?;
        self.doubt = Doubt::None;
        session.base = new.keys.len();
        session.durable = Some(new);
        Ok(())
    }
    fn end(&mut self) -> Result<()> {
        let Some(id) = self.pick() else { return Ok(()) };
        let keep = !self.random.one_in(4);
        let session = self.live.remove(&id).unwrap_or_default();
        match keep {
            true => self.kept.extend(session.durable),
            false => self.doubt = Doubt::Drop,
        }
        self.store.end(id, keep)?;
        self.doubt = Doubt::None;
        Ok(())
    }
    /// A process ends without a word, and the next one opens the root.
    fn reopen(&mut self) -> Result<()> {
        let live = std::mem::take(&mut self.live);
        self.kept.extend(live.into_values().filter_map(|session| session.durable));
        self.next = 1;
        self.store = open(self.storage.clone())?;
        Ok(())
    }
    fn run(&mut self, operations: usize) -> Result<()> {
        for _ in 0..operations {
            match self.random.below(20) {
                0..=2 => self.begin()?,
                3 => self.fork()?,
                4..=10 => self.step()?,
                11 => self.rewind()?,
                12 => self.given_up()?,
                13..=16 => self.flush()?,
                17 => self.end()?,
                18 => self.reopen()?,
                _ => {
                    let Some(id) = self.pick() else { continue };
                    let known = self.live[&id].now.clone();
                    let given = known.gives(&known.keys);
                    self.check(id, &known.keys[..given / PAGE * PAGE]);
                }
            }
        }
        Ok(())
    }
}
fn spot(page: &Sealed) -> (u32, usize) {
    (page.tag.layer, page.tag.first as usize / PAGE)
}

#[test]
fn random_traces_answer_as_the_naive_model() {
    for seed in 0..300 {
        let mut trace = Trace::start(MemoryStorage::new(), seed).unwrap();
        trace.run(60).unwrap();
    }
}

/// Looks up a prompt, and checks every page of what is found; how many tokens were.
fn verified(
    store: &mut dyn KvStore,
    storage: &dyn Storage,
    id: SessionId,
    prompt: &[TokenKey],
) -> usize {
    let found = find(store, prompt).unwrap();
    if found.tokens > 0 {
        store.begin(id, Origin::Stored { found: found.id, at: found.tokens }).unwrap();
        let right = all_right(store, storage, id, &prompt[..found.tokens as usize]);
        assert!(right, "a promised page is missing or wrong");
        store.end(id, false).unwrap();
    }
    found.tokens as usize
}

/// Everything flushed is there, and all that is found is right.
fn survivors(trace: &Trace, store: &mut dyn KvStore, extra: Option<&[TokenKey]>) {
    let mut id = 1000;
    let mut found = |prompt: &[TokenKey]| {
        id += 1;
        verified(store, &*trace.storage, SessionId(id), prompt)
    };
    for prompt in &trace.prompts {
        found(prompt);
    }
    let doubted: Vec<&TokenKey> = match &trace.doubt {
        Doubt::Flush { old: Some(old), new } => {
            let there = found(&old.keys) >= old.gives(&old.keys)
                || found(&new.keys) >= new.gives(&new.keys);
            assert!(there, "neither the old state nor the new one is whole");
            old.keys.iter().collect()
        }
        _ => Vec::new(),
    };
    let live = trace.live.values().filter_map(|session| session.durable.as_ref());
    for known in live.chain(&trace.kept) {
        if doubted.iter().copied().eq(known.keys.iter()) {
            continue;
        }
        assert!(found(&known.keys) >= known.gives(&known.keys), "a flushed state is lost");
    }
    if let Some(extra) = extra {
        assert_eq!(found(extra), extra.len(), "what was flushed after the recovery is lost");
    }
}

/// Runs a trace until the power goes at an event, recovers, goes on, and cuts again. Whether it
/// went.
fn cut_at(seed: u64, event: u64) -> bool {
    let storage = MemoryStorage::new();
    storage.fail_at(event);
    let mut trace = match Trace::start(storage.clone(), seed) {
        Ok(mut trace) => {
            let ended = trace.run(50);
            if !storage.is_off() {
                ended.unwrap();
                return false;
            }
            Some(trace)
        }
        Err(_) => None,
    };
    storage.cut(seed << 20 | event);
    let mut store = open(storage.clone()).unwrap();
    let Some(trace) = &mut trace else { return true };
    survivors(trace, &mut *store, None);

    // The recovered root goes on: a session is flushed, another stores and is not.
    let extra = tokens(!seed, 100 + (event % 80) as usize);
    for (id, keys) in [(1, extra.clone()), (2, tokens(!event, 130))] {
        let id = SessionId(id);
        store.begin(id, Origin::Fresh).unwrap();
        let pages = sealed(id, &keys, 0..keys.len().div_ceil(PAGE));
        super::drive::store(&mut *store, &pages).unwrap();
        commit(&mut *store, id, &keys, 0).unwrap();
        if id.0 == 1 {
            store.flush(id).unwrap();
        }
    }
    drop(store);
    storage.cut(event << 20 | seed);
    survivors(trace, &mut *open(storage).unwrap(), Some(&extra));
    true
}

#[test]
fn a_power_cut_at_every_event_loses_nothing_flushed_and_finds_nothing_wrong() {
    let mut cuts = 0;
    for seed in 0..30 {
        for event in 0.. {
            if !cut_at(seed, event) {
                break;
            }
            cuts += 1;
        }
    }
    assert!(cuts >= 500, "{cuts} cuts");
}
