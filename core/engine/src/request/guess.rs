//! Who of a batch is guessed for before a step, and how far: guesses take rows that are left, and
//! never those of a token that is known.

use super::sequence::Sequence;
use crate::engine::Engine;
use crate::guess::{self, GuessAsk};
use kvern_contract::{PAGE_TOKENS, Result};

const PAGE: usize = PAGE_TOKENS as usize;

impl Engine {
    /// Has the next step's guesses made: for those whose next token this step may choose.
    pub(super) fn guess(&mut self, running: &mut [Sequence<'_>]) -> Result<()> {
        running.iter_mut().for_each(|s| s.drafts.clear());
        let Some(most) = self.guesses.as_ref().map(|g| g.most) else { return Ok(()) };
        // Steps that are taken again are taken as they were.
        if running.iter().any(|s| s.feed.must_end().is_some()) {
            return Ok(());
        }
        let rows = self.rows_most as usize;
        let decoding = running.iter().filter(|s| s.decodes()).count();
        let reaches = |s: &Sequence<'_>| s.end.is_none() && s.feed.pending() <= rows;
        let whose: Vec<usize> = (0..running.len()).filter(|i| reaches(&running[*i])).collect();
        // Prompts have half of what is left.
        let left = rows.saturating_sub(decoding);
        let left = if decoding < running.len() { left / 2 } else { left };
        let share = left / whose.len().max(1);
        let mut asked = Vec::new();
        for which in whose {
            let s = &running[which];
            let lossless = match s.session {
                Some(session) => self.pager.guess_room(session, s.feed.all.len() as u64)?,
                None => 0,
            };
            let wanted = s.pace.count(most).min(s.left().saturating_sub(1));
            let most = wanted.min(share).min(lossless);
            asked.extend((most > 0).then_some((which, most)));
        }
        let ask = |&(which, most): &(usize, usize)| {
            let s = &running[which];
            GuessAsk { id: s.id, tokens: &s.feed.all, sampler: &s.request.sampler, most }
        };
        let asks: Vec<GuessAsk<'_>> = asked.iter().map(ask).collect();
        let guessed = guess::ask(&mut self.guesses, &asks, &self.events);
        for ((which, _), ids) in asked.into_iter().zip(guessed) {
            running[which].drafts = ids;
        }
        Ok(())
    }
}

/// Guessed rows that fit behind a sequence's `known` tokens: within these rows, and in its last
/// page unless a layer may take another page and have one left.
pub(super) fn fitting(known: usize, guessed: usize, rows: usize, pages: usize) -> usize {
    let in_page = (PAGE - known % PAGE) % PAGE;
    let fit = if pages > 1 { guessed } else { guessed.min(in_page) };
    fit.min(rows)
}
