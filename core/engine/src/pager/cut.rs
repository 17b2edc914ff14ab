//! How pages are forgotten: dropped out of the window, or cut by a rewind.

use super::frames::Frame;
use super::page::{Kept, Page, Rows, first_of};
use super::store::Ask;
use super::{Pager, Place};
use kvern_contract::{PAGE_TOKENS, Result, SessionId};
use std::collections::BTreeSet;

const PAGE: u64 = PAGE_TOKENS as u64;

impl Pager {
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
        let layers: BTreeSet<_> = freed.iter().map(|p| p.1).collect();
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

    /// Makes the first `kept` rows of a step the session's and cuts the others. Where the page that
    /// they end in cannot be written again, the session goes back to its start: `length` says what
    /// it holds. *Caller*: no work is left; fewer rows are cut than a page has.
    pub(crate) fn commit_some(&mut self, rows: &Rows, kept: u32) -> Result<()> {
        let wanted = rows.position + u64::from(kept);
        let landed = self.landing(rows.session, wanted)?;
        if landed <= rows.position {
            return self.rewind(rows.session, landed).map(|_| ());
        }
        self.cut(rows.session, landed)?;
        self.commit(rows)?;
        if landed < wanted {
            // The store was given the page, with rows that were guessed.
            self.tell(Ask::Rewind { session: rows.session, to: landed });
        }
        Ok(())
    }

    /// How many guessed rows may follow the `known` tokens of a session in one step so that every
    /// row sees what it would see in a step of its own. An exact history has no limit. In a lossy
    /// one no row goes past where pages turn cold, and none fills a page: a page that a store has
    /// been given cannot be cut, and its rows would be computed again by other steps.
    pub(crate) fn guess_room(&self, session: SessionId, known: u64) -> Result<usize> {
        if !self.is_lossy() {
            return Ok(usize::MAX);
        }
        let first = self.session(session)?.committed as u64;
        let cold_after = self.policy.cold_after;
        let mark = first.saturating_sub(cold_after) / PAGE;
        let turns = ((mark + 1) * PAGE).saturating_add(cold_after);
        let last_of_page = known / PAGE * PAGE + PAGE - 1;
        Ok(turns.min(last_of_page).saturating_sub(known) as usize)
    }

    /// Where a rewind lands: at `to` where the page that holds it can be written again, else at the
    /// start of that page, and at 0 where a window has dropped what the next query would see.
    pub(super) fn landing(&self, session: SessionId, to: u64) -> Result<u64> {
        let s = self.session(session)?;
        let to = to.min(s.keys.len() as u64);
        let number = (to / PAGE) as usize;
        let writable = |p: &Page| {
            let home = |frame: Frame| self.frames.lend(frame).is_ok();
            p.kept == Kept::Here && p.encoding == self.hot && p.frame.is_some_and(home)
        };
        let whole = to.is_multiple_of(PAGE)
            || s.layers.iter().all(|pages| pages.get(number).is_none_or(writable));
        let landed = if whole { to } else { to / PAGE * PAGE };
        let Some(window) = self.policy.window else { return Ok(landed) };
        let seen = (landed + 1).saturating_sub(u64::from(window.recent));
        let missed = |(number, page): (usize, &Page)| {
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
}
