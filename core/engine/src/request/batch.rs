//! The loop over a batch: at every step's border sequences join and leave; a step takes a row of
//! each that decodes, and fills the rest with prompts.

use super::guess::fitting;
use super::sequence::{On, Sequence};
use crate::engine::Engine;
use crate::spec::Finish;
use crate::step::{StepAsk, Want};
use kvern_contract::{ErrorKind, PAGE_TOKENS, Result, SessionId};
use std::cell::Cell;
use std::collections::VecDeque;

const PAGE: usize = PAGE_TOKENS as usize;
/// Steps without guesses after one that had no room for them.
const BARE_STEPS: u32 = 64;

/// Sequences that run and that wait.
pub(super) struct Batch<'a> {
    /// In the order in which their turn comes.
    pub waiting: VecDeque<Sequence<'a>>,
    /// In the order in which they were let in.
    pub running: Vec<Sequence<'a>>,
    /// Most that run at once.
    pub most: usize,
    steps: u64,
    /// One had to leave for want of memory: nobody joins before another one has left.
    is_full: bool,
    /// Steps that go without guesses.
    bare: u32,
    /// Whether the caller wants all to end.
    stopped: &'a Cell<bool>,
}

/// Rows of a step that one sequence adds: up to `end` of its tokens, and what is guessed.
struct Part {
    which: usize,
    end: usize,
}

impl<'a> Batch<'a> {
    pub(super) fn new(
        waiting: VecDeque<Sequence<'a>>,
        most: usize,
        stopped: &'a Cell<bool>,
    ) -> Self {
        let running = Vec::new();
        Batch { waiting, running, most: most.max(1), steps: 0, is_full: false, bare: 0, stopped }
    }

    fn sessions(&self) -> Vec<SessionId> {
        self.running.iter().filter_map(|s| s.session).collect()
    }
}

impl Engine {
    /// Runs a batch to its end. What goes wrong with one sequence ends that one. *Errors* what ends
    /// all; each that is left is told first.
    pub(super) fn serve(&mut self, mut batch: Batch<'_>, on: &mut On<'_>) -> Result<()> {
        loop {
            let mut done = self.join(&mut batch, on);
            if done.is_ok() && batch.running.is_empty() {
                return Ok(());
            }
            if done.is_ok() {
                done = self.advance(&mut batch, on);
            }
            if let Err(error) = done {
                for mut sequence in batch.running.into_iter().chain(batch.waiting) {
                    sequence.end = Some(Err(error.clone()));
                    let _first_error_counts = self.part_with(sequence, on);
                }
                return Err(error);
            }
            self.leave(&mut batch, on)?;
        }
    }

    /// Lets in those whose turn it is, as long as there is memory for their prompt and their
    /// answer. One runs in any case: it may end sooner, and else its error says what it lacks.
    fn join(&mut self, batch: &mut Batch<'_>, on: &mut On<'_>) -> Result<()> {
        let most = batch.most.min(self.sessions.max(1) as usize);
        while batch.stopped.get() || (batch.running.len() < most && !batch.is_full) {
            let Some(mut next) = batch.waiting.pop_front() else { return Ok(()) };
            if batch.stopped.get() {
                next.end = Some(Ok(Finish::Interrupted));
                self.part_with(next, on)?;
                continue;
            }
            let held = match next.session {
                Some(session) => self.pager.tokens(session)?,
                None => Vec::new(),
            };
            if let Err(error) = self.check(held.len() as u64, next.request.prompt) {
                next.end = Some(Err(error));
                self.part_with(next, on)?;
                continue;
            }
            let tokens = held.len() + next.request.prompt.len();
            let tokens = tokens as u64 + u64::from(next.request.max_new_tokens);
            next.need = self.pager.need(tokens.min(self.context_tokens));
            let (used, mut among) = (batch.running.iter().map(|s| s.need).sum::<u64>(), vec![]);
            among.extend(batch.sessions().into_iter().chain(next.session));
            let fits = used + next.need <= self.pager.frames_for(&among);
            if !fits && !batch.running.is_empty() {
                batch.waiting.push_front(next);
                return Ok(());
            }
            let session = next.session.unwrap_or_else(|| self.pager.begin());
            next.begin(session, held);
            batch.running.push(next);
        }
        Ok(())
    }

    /// One step. *Errors* what ends all.
    fn advance(&mut self, batch: &mut Batch<'_>, on: &mut On<'_>) -> Result<()> {
        batch.steps += 1;
        self.tell_prompts(&batch.running);
        let parts = self.parts(batch)?;
        let running = &mut batch.running;
        let guessed = running.iter().any(|s| !s.drafts.is_empty());
        let (mut ids, mut sessions) = (Vec::new(), Vec::new());
        for part in &parts {
            let sequence = &running[part.which];
            let mut rows = sequence.feed.all[sequence.feed.at..part.end].to_vec();
            rows.extend(&sequence.drafts);
            ids.push(rows);
            sessions.extend(sequence.session);
        }
        let asks: Vec<StepAsk<'_>> = (parts.iter().zip(&ids).zip(&sessions))
            .map(|((part, ids), session)| {
                let sequence = &running[part.which];
                let want = match part.end == sequence.feed.all.len() {
                    true => Want::Last(1 + sequence.drafts.len()),
                    false => Want::Nothing,
                };
                StepAsk { session: *session, ids, want }
            })
            .collect();
        let done =
            self.step(&asks, &mut |ask, _, logits| Ok(running[parts[ask].which].take(logits, on)));
        let lost = done.as_ref().map_or(&[][..], Vec::as_slice);
        for ((part, session), rows) in parts.iter().zip(&sessions).zip(&ids) {
            let sequence = &mut running[part.which];
            match lost.iter().find(|lost| lost.session == *session) {
                Some(lost) => {
                    sequence.drafts.clear();
                    let back = sequence.feed.go_back(&mut self.pager, lost);
                    sequence.end = sequence.end.take().or(back.err().map(Err));
                }
                None => {
                    sequence.feed.at = self.pager.length(*session)? as usize;
                    sequence.served = batch.steps;
                    sequence.settle(rows.len(), on);
                }
            }
        }
        self.tell_prompts(running);
        match done {
            // Guesses ask for memory sooner than what they guess, or in vain.
            Err(error) if error.kind == ErrorKind::OverBudget && guessed => {
                batch.bare = BARE_STEPS;
                Ok(())
            }
            Err(error) if error.kind == ErrorKind::OverBudget => {
                match running.iter().rposition(|s| !s.is_callers).filter(|_| running.len() > 1) {
                    // The one that came last waits until another has left.
                    Some(last) => {
                        let mut sequence = running.remove(last);
                        if let Some(session) = sequence.session.take() {
                            sequence.feed.start_again(&mut self.pager, session)?;
                        }
                        batch.waiting.push_front(sequence);
                        batch.is_full = true;
                    }
                    None => running.iter_mut().for_each(|s| s.end = Some(Err(error.clone()))),
                }
                Ok(())
            }
            done => done.map(|_| ()),
        }
    }

    /// Who adds which rows: first those that must take a step again as it was, then a row of each
    /// that decodes, who has waited longest first, then prompts in the order in which they came.
    /// Guesses follow where the step reaches the last token that is known.
    fn parts(&mut self, batch: &mut Batch<'_>) -> Result<Vec<Part>> {
        let running = &mut batch.running;
        match batch.bare {
            0 => self.guess(running)?,
            _ => batch.bare -= 1,
        }
        let mut order: Vec<usize> = (0..running.len()).collect();
        order.sort_by_key(|i| {
            let s = &running[*i];
            match (s.feed.must_end(), s.decodes()) {
                (Some(_), _) => (0, s.served, *i),
                (None, true) => (1, s.served, *i),
                (None, false) => (2, 0, *i),
            }
        });
        let mut rows = self.rows_most as usize;
        let mut pages = self.pager.pages_of_step().map_or(usize::MAX, |n| n as usize);
        let mut parts: Vec<Part> = Vec::new();
        for which in order {
            let Sequence { feed, drafts, .. } = &mut running[which];
            let wanted = feed.must_end().unwrap_or(feed.all.len()) - feed.at;
            let mut count = wanted.min(rows);
            if wanted > 1 {
                // What fills the last page needs no other.
                let most = (feed.at / PAGE + 1).saturating_add(pages).saturating_mul(PAGE);
                count = count.min(most - feed.at);
            }
            // A step that is taken again is taken whole, if need be alone.
            if feed.must_end().is_some() && count < wanted && !parts.is_empty() {
                count = 0;
            }
            let (end, known) = (feed.at + count, feed.all.len());
            if count == 0 || end < known {
                drafts.clear();
            }
            if count == 0 {
                continue;
            }
            rows -= count;
            let begun = end.div_ceil(PAGE) - feed.at / PAGE;
            pages = pages.saturating_sub(begun.max(1) - 1);
            drafts.truncate(fitting(known, drafts.len(), rows, pages));
            rows -= drafts.len();
            let opened = (known + drafts.len()).div_ceil(PAGE) - known.div_ceil(PAGE);
            pages = pages.saturating_sub(opened);
            parts.push(Part { which, end });
        }
        Ok(parts)
    }

    /// Those that have ended leave, and their frames are free.
    fn leave(&mut self, batch: &mut Batch<'_>, on: &mut On<'_>) -> Result<()> {
        let ends = |s: &Sequence<'_>| s.end.is_some() || batch.stopped.get();
        let (ended, running) = std::mem::take(&mut batch.running).into_iter().partition(ends);
        batch.running = running;
        let ended: Vec<Sequence<'_>> = ended;
        batch.is_full &= ended.is_empty() && !batch.running.is_empty();
        ended.into_iter().try_for_each(|sequence| self.part_with(sequence, on))
    }

    /// Ends a sequence's session, if it is its own, and tells how it ended.
    fn part_with(&mut self, sequence: Sequence<'_>, on: &mut On<'_>) -> Result<()> {
        let own = sequence.session.filter(|_| !sequence.is_callers);
        if let Some(guesses) = &mut self.guesses {
            guesses.ended(sequence.id);
        }
        sequence.finish(on);
        own.map_or(Ok(()), |session| self.pager.end(session))
    }
}
