//! How pages leave memory: spilled by the policy, evicted for their frames, dropped out of the
//! window, cut by a rewind; and what happens when the store is lost.

use super::cold;
use super::frames::Frame;
use super::layer::{Lost, key};
use super::page::{Kept, first_of};
use super::store::{Ask, Out, Silence};
use super::tag::checksum;
use super::{Pager, Place};
use kvern_contract::{Error, ErrorKind, PAGE_TOKENS, PageTag, Result, SessionId, encoding_word};
use std::time::{Duration, Instant};

const PAGE: u64 = PAGE_TOKENS as u64;
/// Most pages of one call to a store.
const SPILL_PAGES: usize = 64;

impl Pager {
    /// A frame for a new page: a free one, else a stored page's. *Caller*: no work that reads or
    /// writes frames is left, unless a free one is known to be there.
    pub(super) fn free_frame(&mut self) -> Result<Frame> {
        loop {
            if let Some(frame) = self.frames.take()? {
                return Ok(frame);
            }
            if self.evict() {
                continue;
            }
            if self.store.is_none() || !self.make_evictable()? {
                let why = self.refused.as_ref().map(|e| format!("the store refused: {e}"));
                let need = why.unwrap_or_else(|| "a step needs one more".into());
                return Err(self.frames.exhausted(&need));
            }
        }
    }

    /// Takes the frame of the page that was stored last.
    fn evict(&mut self) -> bool {
        while let Some(place) = self.evictable.pop() {
            let Some(page) = self.page_mut(place) else { continue };
            if page.kept == Kept::Stored
                && let Some(frame) = page.frame.take()
            {
                self.frames.give(frame);
                return true;
            }
        }
        false
    }

    /// Gives every sealed page to the store and waits until a frame can be had. Whether one can.
    fn make_evictable(&mut self) -> Result<bool> {
        let all: Vec<Place> = self.sessions.keys().copied().flat_map(|s| self.sealed(s)).collect();
        self.spill(&all)?;
        let mut until = Instant::now() + self.deadline;
        loop {
            self.settle_lent();
            if !self.evictable.is_empty() || self.frames.available() > 0 {
                return Ok(true);
            }
            if self.going.is_empty() {
                return Ok(false);
            }
            match self.listen(until.saturating_duration_since(Instant::now())) {
                Ok(()) => until = Instant::now() + self.deadline,
                // What it had been given is here again, in its frames.
                Err(silence) => drop(self.replace_store(silence)?),
            }
        }
    }

    /// A session's sealed pages that only their frames hold, by layer and ascending.
    fn sealed(&self, session: SessionId) -> Vec<Place> {
        let Some(s) = self.sessions.get(&session) else { return Vec::new() };
        let mut places = Vec::new();
        for (layer, pages) in s.layers.iter().enumerate() {
            for (number, page) in pages.iter().enumerate() {
                if page.is_sealed() && page.kept == Kept::Here && !page.gone {
                    places.push((session, layer, number));
                }
            }
        }
        places
    }

    /// Spills what the policy says: whole pages of every layer whose tail has reached the
    /// threshold, oldest first, until the rest is what it keeps.
    pub(super) fn spill_due(&mut self, session: SessionId) -> Result<()> {
        let (Some(flush), true) = (self.policy.flush, self.store.is_some()) else { return Ok(()) };
        if self.patience > 0 {
            self.patience -= 1;
            return Ok(());
        }
        let retain = self.policy.retain;
        let mut due = Vec::new();
        let s = self.session(session)?;
        for (layer, pages) in s.layers.iter().enumerate() {
            let hot = |p: &&super::page::Page| p.kept == Kept::Here && !p.gone;
            let mut tokens: u64 = pages.iter().filter(hot).map(|p| u64::from(p.rows)).sum();
            let per_token = u64::from(self.page_bytes(layer, self.hot)) / PAGE;
            let reached = flush.tokens.is_some_and(|t| tokens >= t)
                || flush.bytes.is_some_and(|b| tokens * per_token >= b);
            if !reached {
                continue;
            }
            let keep = retain.tokens.unwrap_or(u64::MAX);
            let keep = keep.min(retain.bytes.map_or(u64::MAX, |b| b / per_token.max(1)));
            let keep = if keep == u64::MAX { 0 } else { keep };
            for (number, page) in pages.iter().enumerate() {
                if !hot(&page) || !page.is_sealed() || tokens < keep.saturating_add(PAGE) {
                    continue;
                }
                tokens -= PAGE;
                due.push((session, layer, number));
            }
        }
        self.spill(&due)
    }

    /// Gives pages to the store, a few in each call: a load that is asked for next waits for no
    /// more than these. It answers later.
    fn spill(&mut self, places: &[Place]) -> Result<()> {
        let mut layers = std::collections::BTreeSet::new();
        for some in places.chunks(SPILL_PAGES) {
            let (mut pages, mut sent) = (Vec::new(), Vec::new());
            for &place in some {
                let Some(out) = self.out(place)? else { continue };
                pages.push(out);
                sent.push(place);
                layers.insert((place.0, place.1));
                if let Some(page) = self.page_mut(place) {
                    page.kept = Kept::Going;
                }
            }
            if pages.is_empty() {
                continue;
            }
            self.counts.spilled_tokens += PAGE * pages.len() as u64;
            let ticket = self.ticket();
            self.going.insert(ticket, sent);
            self.tell(Ask::Store { ticket, pages });
        }
        self.counts.spill_count += layers.len() as u64;
        Ok(())
    }

    /// A page with its tag, and its frame lent. `None` while a lost call still has the frame.
    fn out(&mut self, place: Place) -> Result<Option<Out>> {
        let (session, layer, number) = place;
        let s = self.session(session)?;
        let page = &s.layers[layer][number];
        let Some(frame) = page.frame else { return Ok(None) };
        let Ok(lease) = self.frames.lend(frame) else { return Ok(None) };
        let bytes = self.page_bytes(layer, page.encoding);
        let tag = PageTag {
            chain: s.chain.at(&s.keys, (first_of(number) + PAGE) as usize),
            crc: checksum(&lease[..bytes as usize]),
            first: first_of(number),
            layer: layer as u32,
            tokens: page.rows,
            bytes,
            encoding: encoding_word(page.encoding),
        };
        if let Some(page) = self.page_mut(place) {
            page.tag = Some(tag);
        }
        Ok(Some(Out { key: key(session, layer, number), tag, frame: lease }))
    }

    /// Takes the answers that are there.
    pub(super) fn hear(&mut self) -> Result<()> {
        self.settle_lent();
        while self.store.is_some() {
            match self.listen(Duration::ZERO) {
                Ok(()) => continue,
                Err(Silence::Pending) => break,
                Err(Silence::Gone) => {
                    let _lost = self.replace_store(Silence::Gone)?;
                }
            }
        }
        Ok(())
    }

    /// Encodes what has gone cold: pages that end `cold_after` before a step's first row. The mark
    /// moves with the session's steps alone.
    pub(crate) fn cool(&mut self, session: SessionId, position: u64) -> Result<()> {
        if self.policy.cold == self.hot {
            return Ok(());
        }
        let mark = position.saturating_sub(self.policy.cold_after) / PAGE * PAGE;
        let from = self.session(session)?.cold;
        for number in (from / PAGE) as usize..(mark / PAGE) as usize {
            for layer in 0..self.layers.len() {
                self.cool_page((session, layer, number))?;
            }
        }
        let s = self.session_mut(session)?;
        s.cold = s.cold.max(mark);
        Ok(())
    }

    fn cool_page(&mut self, place: Place) -> Result<()> {
        let (to, shape) = (self.policy.cold, self.layers[place.1]);
        let until = Instant::now() + self.deadline;
        // A store that has the page on its way must not see it change.
        while self.page(place).is_some_and(|p| p.kept == Kept::Going) {
            if let Err(silence) = self.listen(until.saturating_duration_since(Instant::now())) {
                drop(self.replace_store(silence)?);
            }
        }
        let Some(page) = self.page(place).filter(|p| p.encoding != to) else { return Ok(()) };
        let (from, frame) = (encoding_word(page.encoding), page.frame);
        match frame.map(|frame| (frame, self.frames.lend(frame))) {
            None => (),
            Some((_, Ok(mut lease))) => cold::encode_in_place(&mut lease, &shape, from, to),
            // A lost call still reads it: the page is lost with it, and computed again.
            Some((frame, Err(_lent))) => {
                self.lent.push(frame);
                if let Some(page) = self.page_mut(place) {
                    page.frame = None;
                }
            }
        }
        if let Some(page) = self.page_mut(place) {
            page.encoding = to;
        }
        Ok(())
    }

    /// Frees pages that no later query can see.
    pub(super) fn drop_unseen(&mut self, session: SessionId) -> Result<()> {
        let Some(window) = self.policy.window else { return Ok(()) };
        let s = self.session(session)?;
        let next = s.committed as u64;
        let first_seen = (next + 1).saturating_sub(u64::from(window.recent));
        let mut freed = Vec::new();
        for (layer, pages) in s.layers.iter().enumerate() {
            for (number, page) in pages.iter().enumerate() {
                let start = first_of(number);
                let seen = start < u64::from(window.first) || start + PAGE > first_seen;
                if !page.gone && page.is_sealed() && !seen && page.kept != Kept::Going {
                    freed.push((session, layer, number));
                }
            }
        }
        let layers: std::collections::BTreeSet<_> = freed.iter().map(|p| p.1).collect();
        self.counts.eviction_count += layers.len() as u64;
        self.counts.evicted_tokens += PAGE * freed.len() as u64;
        for place in freed {
            let Some(page) = self.page_mut(place) else { continue };
            page.gone = true;
            if let Some(frame) = page.frame.take() {
                self.free(frame);
            }
        }
        Ok(())
    }

    /// Where a rewind lands: at `to` where the page that holds it can be written again, else at the
    /// start of that page, and at 0 where a window has dropped what the next query would see.
    pub(super) fn landing(&self, session: SessionId, to: u64) -> Result<u64> {
        let s = self.session(session)?;
        let to = to.min(s.keys.len() as u64);
        let number = (to / PAGE) as usize;
        let writable = |p: &super::page::Page| {
            let home = |frame: Frame| self.frames.lend(frame).is_ok();
            p.kept == Kept::Here && p.encoding == self.hot && p.frame.is_some_and(home)
        };
        let whole = to.is_multiple_of(PAGE)
            || s.layers.iter().all(|pages| pages.get(number).is_none_or(writable));
        let landed = if whole { to } else { to / PAGE * PAGE };
        let Some(window) = self.policy.window else { return Ok(landed) };
        let seen = (landed + 1).saturating_sub(u64::from(window.recent));
        let missed = |(number, page): (usize, &super::page::Page)| {
            page.gone && first_of(number) < landed && first_of(number) + PAGE > seen
        };
        match s.layers.iter().any(|pages| pages.iter().enumerate().any(missed)) {
            true => Ok(0),
            false => Ok(landed),
        }
    }

    /// Forgets a session's tokens from `to` on and frees their pages. *Caller*: `to` is a landing.
    pub(super) fn cut(&mut self, session: SessionId, to: u64) -> Result<()> {
        let keep = to.div_ceil(PAGE) as usize;
        let s = self.session_mut(session)?;
        s.keys.truncate(to as usize);
        s.chain.rewind(to as usize);
        s.committed = s.committed.min(to as usize);
        s.cold = s.cold.min(to / PAGE * PAGE);
        if s.steps.last().is_some_and(|end| *end > to) {
            s.steps.retain(|end| *end < to);
            s.steps.extend((to > 0).then_some(to));
        }
        let (mut freed, mut cut) = (Vec::new(), Vec::new());
        for (layer, pages) in s.layers.iter_mut().enumerate() {
            freed.extend(pages.drain(keep.min(pages.len())..).filter_map(|p| p.frame));
            if let Some(page) = pages.last_mut().filter(|_| !to.is_multiple_of(PAGE)) {
                page.rows = page.rows.min((to % PAGE) as u32);
                page.tag = None;
                cut.push((session, layer, keep - 1));
            }
        }
        // Answers about forgotten pages count for nothing.
        let stays = |place: &Place| place.0 != session || place.2 < keep;
        self.going.values_mut().for_each(|places| places.retain(stays));
        self.evictable.retain(stays);
        freed.into_iter().for_each(|frame| self.free(frame));
        cut.into_iter().try_for_each(|place| self.zero_behind(place, (to % PAGE) as usize))
    }

    /// Makes a frame free that no page has any more, once nobody else has it either.
    fn free(&mut self, frame: Frame) {
        match self.frames.lend(frame) {
            Ok(_home) => self.frames.give(frame),
            Err(_lent) => self.lent.push(frame),
        }
    }

    /// Rows that are not filled are zero: what scales and sums are taken over.
    fn zero_behind(&mut self, place: Place, rows: usize) -> Result<()> {
        let Some(frame) = self.page(place).and_then(|p| p.frame) else { return Ok(()) };
        let (layer, tokens) = (self.layers[place.1], PAGE as usize);
        if layer.kv_heads == 0 {
            return Ok(());
        }
        let width = self.page_bytes(place.1, self.hot) as usize
            / (layer.kv_heads as usize * tokens * (layer.key_dim + layer.value_dim) as usize);
        let mut lease = self.frames.lend(frame)?;
        let mut at = 0;
        for dim in [layer.key_dim, layer.value_dim] {
            let row = dim as usize * width;
            for _ in 0..layer.kv_heads {
                lease[at + rows * row..at + tokens * row].fill(0);
                at += tokens * row;
            }
        }
        Ok(())
    }

    /// Gives a store up that does not answer, and opens the strategy anew on an empty root; where
    /// it cannot be opened, history goes on in memory alone. What only the lost instance held comes
    /// back as lost.
    pub(super) fn replace_store(&mut self, silence: Silence) -> Result<Vec<Lost>> {
        if let Some(lost) = self.store.take() {
            lost.give_up();
            self.ghosts.push(lost);
            let what = match silence {
                Silence::Pending => format!("did not answer in {:?}", self.deadline),
                Silence::Gone => "has ended".into(),
            };
            let text = format!("the store {what}: what it held is computed again");
            self.events_log(&Error::new(ErrorKind::Timeout, "kv/load", text));
        }
        self.void = self.next_ticket;
        self.going.clear();
        self.came.clear();
        self.evictable.clear();
        (self.reports, self.patience) = (0, 0);
        let lost = self.forget_stored();
        if let Some(home) = &mut self.home {
            match home.reopen() {
                Ok(store) => self.store = Some(store),
                Err(error) => {
                    self.events_log(&error);
                    self.refused = Some(error);
                }
            }
        }
        for id in self.sessions.keys().copied().collect::<Vec<_>>() {
            self.tell(Ask::Begin(id));
            self.tell_again(id)?;
        }
        Ok(lost)
    }

    /// No page is stored any more; sessions whose pages have no frame have lost them.
    fn forget_stored(&mut self) -> Vec<Lost> {
        let mut lost = Vec::new();
        for s in self.sessions.values_mut() {
            let mut first = None;
            for pages in &mut s.layers {
                for (number, page) in pages.iter_mut().enumerate().filter(|(_, p)| !p.gone) {
                    page.kept = Kept::Here;
                    if page.frame.is_none() {
                        first = Some(first.map_or(number, |f: usize| f.min(number)));
                    }
                }
            }
            let at = |number| Lost { session: s.id, position: first_of(number) };
            lost.extend(first.map(at));
        }
        lost
    }

    /// Commits to a new instance what the sessions hold already.
    fn tell_again(&self, session: SessionId) -> Result<()> {
        let s = self.session(session)?;
        self.tell(Ask::Commit {
            session,
            tokens: s.committed as u64,
            keys: s.keys[..s.committed].to_vec(),
            chains: s.chain.pages()[..s.committed / PAGE as usize].to_vec(),
            chain: s.chain.at(&s.keys, s.committed),
        });
        Ok(())
    }

    /// Frames that calls have brought home are free again.
    fn settle_lent(&mut self) {
        for frame in std::mem::take(&mut self.lent) {
            self.free(frame);
        }
    }

    /// Frames for the ring in place of those that lost calls have, as far as there are any.
    /// *Caller*: no work and no load is left.
    pub(super) fn mend_ring(&mut self) {
        self.settle_lent();
        while self.frames.ring_misses() > 0 {
            match self.free_frame() {
                Ok(frame) => self.frames.give_ring([frame]),
                Err(_none) => return,
            }
        }
    }
}
