//! Traces of a store beside a naive model, which says what a power cut may take.

use super::cut::After;
use super::drive::*;
use kvern_contract::*;
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

/// What a trace does next: which operation, and the seed of its choices. Any part of a trace is a
/// trace: an operation that finds no session does nothing.
pub type Step = (u8, u64);

/// The steps of a seed.
pub fn steps(seed: u64, count: usize) -> Vec<Step> {
    let mut random = Random::new(seed);
    (0..count).map(|_| (random.below(KINDS) as u8, random.bits())).collect()
}
/// Operations, each as often as it has numbers.
pub const KINDS: u64 = 20;

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
pub struct Trace {
    open: Opener,
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
    /// Opens the store on a drive that nobody wrote to.
    pub fn start(open: Opener, storage: Arc<MemoryStorage>) -> Result<Self> {
        let (store, random) = (open(storage.clone())?, Random::new(0));
        let (live, kept, prompts) = (BTreeMap::new(), Vec::new(), vec![tokens(0, 150)]);
        Ok(Trace { open, storage, store, random, live, kept, prompts, next: 1, doubt: Doubt::None })
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
    /// dropped, or others come in their place without a word.
    fn given_up(&mut self) -> Result<()> {
        let Some(id) = self.pick() else { return Ok(()) };
        let mut keys = self.live[&id].now.keys.clone();
        let (first, tokens_now) = (keys.len() / PAGE, keys.len());
        if tokens_now > 600 {
            return self.rewind();
        }
        keys.extend(tokens(self.random.bits(), 130));
        let pages = sealed(id, &keys, first..keys.len() / PAGE);
        store(&mut *self.store, &pages)?;
        let session = self.live.entry(id).or_default();
        session.now.rows.extend(pages.iter().map(|page| (spot(page), page.tag.tokens as usize)));
        self.prompts.push(keys.clone());
        if self.random.one_in(2) {
            self.flush_as_is(id)?;
        }
        if self.random.one_in(2) {
            return self.others_instead(id, &keys);
        }
        self.store.rewind(id, tokens_now as u64)?;
        self.cut(id, tokens_now);
        Ok(())
    }
    /// Commits other tokens than those whose pages lie ahead; a page of which they are the tokens
    /// all the same stays.
    fn others_instead(&mut self, id: SessionId, ahead: &[TokenKey]) -> Result<()> {
        let mut keys = self.live[&id].now.keys.clone();
        let before = keys.len();
        keys.extend(tokens(self.random.bits(), 130 + self.random.below(80) as usize));
        commit(&mut *self.store, id, &keys, before)?;
        self.prompts.push(keys.clone());
        let now = &mut self.live.entry(id).or_default().now;
        now.rows.retain(|(_, page), rows| {
            let end = *page * PAGE + *rows;
            end <= before || ahead.get(..end) == keys.get(..end)
        });
        now.keys = keys;
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
        self.store = (self.open)(self.storage.clone())?;
        Ok(())
    }
    /// Takes the steps, each checked against the model. *Errors* the first that the store gives:
    /// the power went, or it is the store's own.
    pub fn run(&mut self, steps: &[Step]) -> Result<()> {
        for &(kind, seed) in steps {
            self.random = Random::new(seed);
            match kind {
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

    /// What was flushed: starts of prompts that must be found, and how many tokens of each.
    pub fn survivors(&self, after: &mut After) {
        for prompt in &self.prompts {
            after.find(prompt);
        }
        let mut doubted: &[TokenKey] = &[];
        if let Doubt::Flush { old: Some(old), new } = &self.doubt {
            let old_gives = old.gives(&old.keys);
            let whole = after.find(&new.keys) >= new.gives(&new.keys);
            let lost = old_gives.saturating_sub(after.find(&old.keys));
            after.tally.lost_tokens += if whole { 0 } else { lost };
            doubted = &old.keys;
        }
        let live = self.live.values().filter_map(|session| session.durable.as_ref());
        for known in live.chain(&self.kept).filter(|known| known.keys != doubted) {
            after.flushed(&known.keys, known.gives(&known.keys));
        }
    }
}
fn spot(page: &Sealed) -> (u32, usize) {
    (page.tag.layer, page.tag.first as usize / PAGE)
}
