//! Random traces of an engine over a store, beside a model that keeps everything.

use super::model::*;
use super::steps::{Step, When};
use super::trial::*;
use kvern_contract::*;
use std::collections::BTreeMap;
use std::time::Duration;

/// A living session.
struct Live {
    id: SessionId,
    text: u64,
    now: Known,
    /// As its last flush left it.
    durable: Option<Known>,
    /// Tokens before this are in `durable` as they are now.
    base: u64,
}

/// What may or may not have happened when a call failed.
#[derive(Debug)]
pub(super) enum Doubt {
    None,
    Flush { old: Option<Known>, new: Known },
    Drop(Known),
}

/// A trace on its way.
pub(super) struct Run<'a> {
    pub(super) trial: Option<Trial>,
    open: &'a dyn Fn() -> Went<Trial>,
    live: Vec<Live>,
    /// Flushed, ended and to be found.
    pub(super) kept: Vec<Known>,
    /// What this process forgot, and a later one may find.
    forgotten: Vec<Known>,
    /// What an earlier process had: whole, or gone.
    pub(super) ghosts: Vec<Known>,
    next: u64,
    pub(super) doubt: Doubt,
    /// Every prompt that was used.
    pub(super) prompts: Vec<Vec<TokenKey>>,
}

/// What a step makes of a session: all of it, if the power goes in the middle.
fn tried(rules: &Rules, now: &Known, keys: &[TokenKey], places: &[(u32, u32)]) -> Known {
    let mut tried = Known { keys: keys.to_vec(), ..now.clone() };
    let tag = |&(layer, page): &(u32, u32)| ((layer, page), rules.tag(keys, layer, page));
    tried.pages.extend(places.iter().map(tag));
    tried
}

/// Longest session, in tokens.
const MOST: u64 = 600;

impl<'a> Run<'a> {
    /// Starts with what `open` opens; `open` is called again where the process ends.
    pub(super) fn start(open: &'a dyn Fn() -> Went<Trial>) -> Went<Run<'a>> {
        let (live, kept) = (Vec::new(), Vec::new());
        let (forgotten, ghosts, prompts) = (Vec::new(), Vec::new(), Vec::new());
        let (next, doubt) = (1, Doubt::None);
        let trial = Some(open()?);
        Ok(Run { trial, open, live, kept, forgotten, ghosts, next, doubt, prompts })
    }

    /// Runs steps, then checks every living session.
    pub(super) fn run(&mut self, steps: &[Step]) -> Went {
        for step in steps {
            self.step(*step)?;
        }
        (0..self.live.len()).try_for_each(|at| self.check(at))
    }

    fn trial(&mut self) -> Went<&mut Trial> {
        self.trial.as_mut().ok_or_else(|| Stop::Wrong("no root is open".into()))
    }

    fn pick(&self, of: usize) -> Option<usize> {
        if self.live.is_empty() { None } else { Some(of % self.live.len()) }
    }

    fn id(&mut self) -> SessionId {
        self.next += 1;
        SessionId(self.next - 1)
    }

    fn step(&mut self, step: Step) -> Went {
        match step {
            Step::Fresh { text } => {
                let id = self.id();
                self.trial()?.begin(id, Origin::Fresh)?;
                let (now, durable) = (Known::default(), None);
                self.live.push(Live { id, text, now, durable, base: 0 });
                Ok(())
            }
            Step::Prompt { text: of, tokens, pages } => self.prompt(of, tokens, pages),
            Step::Prompts { text: of } => self.prompts(of),
            Step::Maintain => {
                let maintained = self.trial()?.store.maintain(Duration::from_millis(1));
                went("maintain", maintained)
            }
            Step::Batch { tokens } => self.batch(tokens),
            Step::Reopen => {
                if let Some(trial) = self.trial.take() {
                    trial.close();
                }
                self.crashed();
                self.trial = Some((self.open)()?);
                Ok(())
            }
            Step::Fork { of, .. }
            | Step::Grow { of, .. }
            | Step::GiveUp { of, .. }
            | Step::Rewind { of, .. }
            | Step::Flush { of }
            | Step::End { of, .. }
            | Step::Check { of } => match self.pick(of) {
                Some(at) => self.one(at, step),
                None => Ok(()),
            },
        }
    }

    fn one(&mut self, at: usize, step: Step) -> Went {
        match step {
            Step::Fork { at: share, .. } => self.fork(at, share),
            Step::Grow { tokens, stores, .. } => self.grow(at, tokens, stores),
            Step::GiveUp { flush, .. } => self.give_up(at, flush),
            Step::Rewind { to, .. } => {
                let to = self.live[at].now.tokens() * to / 1000;
                self.rewind(at, to)
            }
            Step::Flush { .. } => self.flush(at),
            Step::End { keep, .. } => self.end(at, keep),
            _ => self.check(at),
        }
    }

    /// What the process was in the middle of is gone: what was flushed stays.
    pub(super) fn crashed(&mut self) {
        for live in std::mem::take(&mut self.live) {
            self.ghosts.push(live.now);
            self.kept.extend(live.durable);
        }
        match &self.doubt {
            Doubt::Flush { old, new } => {
                self.ghosts.extend(old.iter().cloned());
                self.ghosts.push(new.clone());
            }
            Doubt::Drop(dropped) => self.ghosts.push(dropped.clone()),
            Doubt::None => {}
        }
        self.ghosts.append(&mut self.forgotten);
        self.next = 1;
    }

    /// What must be found of a prompt at least, and may at most.
    fn bounds(&self, rules: &Rules, persistent: bool, prompt: &[TokenKey]) -> (u64, u64) {
        let kept = self.kept.iter().filter(|_| persistent);
        let must = self.live.iter().map(|live| &live.now).chain(kept);
        let least = must.map(|known| known.gives(rules, prompt)).max().unwrap_or(0);
        let durable = self.live.iter().filter_map(|live| live.durable.as_ref());
        let all = self.live.iter().map(|live| &live.now).chain(durable);
        let all = all.chain(&self.kept).chain(&self.ghosts);
        (least, most(rules, all, prompt))
    }

    fn judged(&mut self, prompt: &[TokenKey], found: &Found) -> Went {
        let (rules, persistent) = (self.trial()?.rules, self.trial()?.persistent);
        let (least, most) = self.bounds(&rules, persistent, prompt);
        need((least..=most).contains(&found.tokens), || {
            let (found, of) = (found.tokens, prompt.len());
            format!("find answers {found} of {of} tokens; stored are {least} to {most}")
        })?;
        need(found.tokens == 0 || found.bytes > 0, || "what was found has no bytes".into())
    }

    fn prompt(&mut self, of: u64, tokens: u64, pages: bool) -> Went {
        let prompt = text(of, 0, tokens);
        self.prompts.push(prompt.clone());
        let found = self.trial()?.find(&prompt)?;
        self.judged(&prompt, &found)?;
        if found.tokens == 0 || self.live.len() > 6 {
            return Ok(());
        }
        let id = self.id();
        let trial = self.trial()?;
        // A part of what was found, where no window may have let go of what it needs.
        let part = pages && trial.rules.window.is_none();
        let at = if part { found.tokens / 2 / PAGE * PAGE } else { found.tokens };
        trial.begin(id, Origin::Stored { found: found.id, at })?;
        let now = trial.known(&prompt, at);
        trial.check(id, &now)?;
        self.live.push(Live { id, text: of, now, durable: None, base: 0 });
        Ok(())
    }

    fn prompts(&mut self, of: u64) -> Went {
        let all: Vec<Vec<TokenKey>> =
            [(of, 300), (of + 1, 64), (of, 129), (of + 5, 500)].map(|(t, n)| text(t, 0, n)).into();
        let each: Vec<Vec<ChainHash>> = all.iter().map(|keys| chains(keys)).collect();
        let asked: Vec<Prefix<'_>> =
            all.iter().zip(&each).map(|(keys, chains)| Prefix { keys, chains }).collect();
        let found = self.trial()?.store.find(&asked);
        let found = went("find", found)?;
        need(found.len() == all.len(), || {
            format!("find gives {} answers for {} prompts", found.len(), all.len())
        })?;
        all.iter().zip(&found).try_for_each(|(prompt, found)| self.judged(prompt, found))
    }

    fn fork(&mut self, at: usize, share: u64) -> Went {
        if self.live.len() > 6 {
            return Ok(());
        }
        let id = self.id();
        let (of, text) = (self.live[at].id, self.live[at].text);
        let to = self.live[at].now.tokens() * share / 1000;
        self.trial()?.begin(id, Origin::Fork { of, at: to })?;
        let mut now = self.live[at].now.clone();
        now.cut(to);
        now.pages.retain(|_, tag| tag.tokens == PAGE_TOKENS);
        self.live.push(Live { id, text: text + 1, now, durable: None, base: 0 });
        Ok(())
    }

    /// The tokens of a session after `more` more of its text.
    fn longer(&self, at: usize, more: u64) -> Vec<TokenKey> {
        let Live { now, text: of, .. } = &self.live[at];
        let mut keys = now.keys.clone();
        keys.extend(text(*of, now.tokens(), (now.tokens() + more).min(MOST)));
        keys
    }

    fn grow(&mut self, at: usize, tokens: u64, stores: When) -> Went {
        let before = self.live[at].now.tokens();
        let keys = self.longer(at, tokens);
        if keys.len() as u64 == before {
            return self.rewind(at, before / 3);
        }
        let Some(trial) = self.trial.as_mut() else { return Ok(()) };
        let live = &mut self.live[at];
        let places = Known { keys: keys.clone(), ..live.now.clone() };
        let places = places.unstored(&trial.rules);
        self.forgotten.push(tried(&trial.rules, &live.now, &keys, &places));
        if stores == When::Before && !places.is_empty() {
            trial.put(live.id, &mut live.now, &keys, &places)?;
        }
        went("commit", trial.commit(live.id, &keys, before))?;
        live.now.keys = keys.clone();
        live.now.slide(&trial.rules);
        if stores == When::After && !places.is_empty() {
            trial.put(live.id, &mut live.now, &keys, &places)?;
        }
        self.prompts.push(keys);
        Ok(())
    }

    fn batch(&mut self, tokens: u64) -> Went {
        let longer: Vec<_> = (0..self.live.len()).map(|at| self.longer(at, tokens)).collect();
        let Some(trial) = self.trial.as_mut() else { return Ok(()) };
        let mut pages = Vec::new();
        for (live, keys) in self.live.iter().zip(&longer) {
            let known = Known { keys: keys.clone(), ..live.now.clone() };
            let places = known.unstored(&trial.rules);
            self.forgotten.push(tried(&trial.rules, &live.now, keys, &places));
            pages.extend(places.iter().map(|&(layer, page)| {
                (key(live.id, layer, page), trial.rules.tag(keys, layer, page))
            }));
        }
        // In no order.
        pages.sort_by_key(|(_, tag)| tag.chain);
        went("store", trial.store(&pages))?;
        let each: Vec<_> = longer.iter().map(|keys| (chains(keys), note(keys))).collect();
        let commits: Vec<Commit<'_>> = (self.live.iter().zip(&longer).zip(&each))
            .map(|((live, keys), (chains, note))| Commit {
                session: live.id,
                tokens: keys.len() as u64,
                keys: &keys[live.now.keys.len()..],
                chains: &chains[live.now.keys.len() / PAGE as usize..],
                chain: chain(keys),
                note,
            })
            .collect();
        went("commit", trial.store.commit(&commits))?;
        for (live, keys) in self.live.iter_mut().zip(longer) {
            let own = pages.iter().filter(|(key, _)| key.session == live.id);
            let tags = own.map(|(_, tag)| ((tag.layer, (tag.first / PAGE) as u32), *tag));
            live.now.pages.extend(tags);
            live.now.keys = keys;
            live.now.slide(&trial.rules);
        }
        Ok(())
    }

    /// Pages run ahead of tokens that never come.
    fn give_up(&mut self, at: usize, flush: bool) -> Went {
        let before = self.live[at].now.tokens();
        let keys = self.longer(at, 130);
        let Some(trial) = self.trial.as_mut() else { return Ok(()) };
        let live = &mut self.live[at];
        let known = Known { keys: keys.clone(), ..live.now.clone() };
        let places = known.unstored(&trial.rules);
        // Their pages may outlive the process, their tokens not.
        let ahead = tried(&trial.rules, &live.now, &keys, &places);
        self.forgotten.push(Known { keys: live.now.keys.clone(), ..ahead });
        if !places.is_empty() {
            trial.put(live.id, &mut live.now, &keys, &places)?;
        }
        self.prompts.push(keys);
        if flush {
            self.durable(at)?;
        }
        self.rewind(at, before)
    }

    fn rewind(&mut self, at: usize, to: u64) -> Went {
        self.forgotten.push(self.live[at].now.clone());
        let id = self.live[at].id;
        let landed = went("rewind", self.trial()?.store.rewind(id, to))?;
        need(landed == to, || {
            format!("a rewind to {to} lands at {landed}, and no layer is recurrent")
        })?;
        let live = &mut self.live[at];
        live.now.cut(to);
        live.base = live.base.min(to);
        Ok(())
    }

    /// Stores what the engine guarantees to have stored, and flushes.
    fn flush(&mut self, at: usize) -> Went {
        let Some(trial) = self.trial.as_mut() else { return Ok(()) };
        let (live, partial) = (&mut self.live[at], trial.rules.partial);
        let all = live.now.expected(&trial.rules, live.now.tokens());
        self.forgotten.push(Known { pages: all, ..live.now.clone() });
        trial.put_all(live.id, &mut live.now, partial)?;
        self.durable(at)
    }

    fn durable(&mut self, at: usize) -> Went {
        let live = &mut self.live[at];
        let mut new = live.durable.clone().unwrap_or_default();
        new.cut(live.base);
        new.keys.clone_from(&live.now.keys);
        let inside = |(_, tag): &(&(u32, u32), &PageTag)| tag.end() <= new.keys.len() as u64;
        new.pages.extend(live.now.pages.iter().filter(inside));
        new.out.extend(&live.now.out);
        self.doubt = Doubt::Flush { old: live.durable.clone(), new: new.clone() };
        let id = live.id;
        let flushed = self.trial()?.store.flush(id);
        went("flush", flushed)?;
        self.doubt = Doubt::None;
        let live = &mut self.live[at];
        live.base = new.tokens();
        self.forgotten.extend(live.durable.replace(new));
        Ok(())
    }

    fn end(&mut self, at: usize, keep: bool) -> Went {
        let live = self.live.remove(at);
        if let (false, Some(durable)) = (keep, &live.durable) {
            self.doubt = Doubt::Drop(durable.clone());
        }
        let answer = self.trial()?.store.end(live.id, keep);
        if answer.is_err() {
            self.forgotten.push(live.now.clone());
        }
        if answer.is_err() && keep {
            self.kept.extend(live.durable.clone());
        }
        went("end", answer)?;
        self.doubt = Doubt::None;
        match keep {
            true => self.kept.extend(live.durable),
            false => self.forgotten.extend(live.durable),
        }
        // It may be found as long as nothing says that it is not.
        match keep {
            true => self.ghosts.push(live.now),
            false => self.forgotten.push(live.now),
        }
        Ok(())
    }

    fn check(&mut self, at: usize) -> Went {
        let Some(trial) = self.trial.as_mut() else { return Ok(()) };
        trial.check(self.live[at].id, &self.live[at].now)?;
        // Pages of living sessions are stored; a store may count what two share once.
        let (rules, report) = (trial.rules, trial.store.report());
        let seen = self.live.iter().flat_map(|live| {
            let tokens = live.now.tokens();
            live.now.pages.iter().filter(move |((_, page), _)| rules.sees(*page, tokens))
        });
        let pages: BTreeMap<_, _> =
            seen.map(|(_, tag)| ((tag.layer, tag.chain), u64::from(tag.tokens))).collect();
        let tokens: u64 = pages.values().sum();
        need(report.persisted_tokens >= tokens, || {
            format!("{tokens} tokens are stored, summed over layers: {report:?}")
        })
    }

    /// After a power cut, on the root as it was opened again: what was flushed is there, and
    /// everything that is found is right.
    pub(super) fn survived(&mut self) -> Went {
        let mut id = 1 << 20;
        let mut found = |run: &mut Self, prompt: &[TokenKey]| {
            id += 1;
            let (rules, found) = (run.trial()?.rules, run.trial()?.find(prompt)?.tokens);
            let had = || run.kept.iter().chain(&run.ghosts);
            if had().all(|known| known.gives(&rules, prompt) < found) {
                let most = most(&rules, had(), prompt);
                need(found <= most, || {
                    let of = prompt.len();
                    format!(
                        "{found} of {of} tokens are found after a power cut, and no more than \
                             {most} were ever committed and stored"
                    )
                })?;
            }
            run.trial()?.verified(SessionId(id), prompt)
        };
        for prompt in std::mem::take(&mut self.prompts) {
            found(self, &prompt)?;
        }
        let rules = self.trial()?.rules;
        match std::mem::replace(&mut self.doubt, Doubt::None) {
            Doubt::Flush { old: Some(old), new } => {
                let went = found(self, &new.keys)? >= new.gives(&rules, &new.keys);
                let whole = went || found(self, &old.keys)? >= old.gives(&rules, &old.keys);
                need(whole, || {
                    let (old, new) = (old.tokens(), new.tokens());
                    format!(
                        "the power went in a flush: neither the old state of {old} tokens nor the \
                         new one of {new} is whole"
                    )
                })?;
                // From now on it is the one that it is.
                self.kept.retain(|known| known.keys != old.keys);
                self.kept.push(if went { new } else { old });
            }
            Doubt::Drop(dropped) => self.kept.retain(|known| known.keys != dropped.keys),
            Doubt::Flush { old: None, .. } | Doubt::None => {}
        }
        for known in self.kept.clone() {
            let (found, flushed) = (found(self, &known.keys)?, known.gives(&rules, &known.keys));
            need(found >= flushed, || {
                format!("{flushed} tokens were flushed, and {found} are found after a power cut")
            })?;
        }
        Ok(())
    }
}
