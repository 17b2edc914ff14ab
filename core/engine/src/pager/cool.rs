//! When pages go cold: what ends so far before a step's first row is encoded where it lies.

use super::page::Kept;
use super::{Pager, Place, cold};
use crate::events::{Track, What};
use kvern_contract::{PAGE_TOKENS, Result, SessionId, encoding_word};
use std::time::Instant;

const PAGE: u64 = PAGE_TOKENS as u64;

impl Pager {
    /// Encodes what has gone cold: pages that end `cold_after` before a step's first row. The mark
    /// moves with the session's steps alone.
    pub(crate) fn cool(&mut self, session: SessionId, position: u64) -> Result<()> {
        if self.policy.cold == self.hot {
            return Ok(());
        }
        let mark = position.saturating_sub(self.policy.cold_after) / PAGE * PAGE;
        let from = self.session(session)?.cold;
        if from >= mark {
            return Ok(());
        }
        let began = self.events.clock();
        for number in (from / PAGE) as usize..(mark / PAGE) as usize {
            for layer in 0..self.layers.len() {
                self.cool_page((session, layer, number))?;
            }
        }
        self.events.span("cool", began, || {
            let pages = (mark - from) / PAGE * self.layers.len() as u64;
            let what = What::new(Track::Waiting, "cold pages").arg("session", session.0);
            what.arg("pages", pages)
        });
        self.session_mut(session)?.cold = mark;
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
}
