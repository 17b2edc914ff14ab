//! How pages leave memory: spilled to the store by the policy, then evicted for their frames.

use super::frames::Frame;
use super::layer::key;
use super::page::{Kept, first_of};
use super::store::{Ask, Out, Silence};
use super::tag::checksum;
use super::{Pager, Place};
use crate::events::{Track, What};
use kvern_contract::{PAGE_TOKENS, PageTag, Result, SessionId, encoding_word};
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
                let need = why.unwrap_or_else(|| self.want());
                return Err(self.frames.exhausted(&need));
            }
        }
    }

    /// What is wanted when all frames are in use, and whom to ask.
    fn want(&self) -> String {
        match self.home.as_ref().filter(|_| self.void > 0) {
            None => "a step needs one more".into(),
            Some(home) => format!(
                "a step needs one more, while calls of kv strategy `{}` that did not come back \
                 hold some",
                home.name()
            ),
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
        let began = self.events.clock();
        let can = self.wait_evictable();
        let what = || What::new(Track::Waiting, "memory of a page");
        self.events.span("frame_wait", began, what);
        can
    }

    fn wait_evictable(&mut self) -> Result<bool> {
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

    /// Makes a frame free that no page has any more, once nobody else has it either.
    pub(super) fn free(&mut self, frame: Frame) {
        match self.frames.lend(frame) {
            Ok(_home) => self.frames.give(frame),
            Err(_lent) => self.lent.push(frame),
        }
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
