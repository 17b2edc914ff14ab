//! Requests: tokens are fed in chunks, the next one is chosen, its text streams. Many requests run
//! in one batch, and one is a batch of its own. A session that lost pages goes back to them and
//! computes them again; the others go on.

mod batch;
mod feed;
mod guess;
mod pace;
mod progress;
mod sequence;

use crate::engine::Engine;
use crate::events::Progress;
use crate::spec::{Flow, Outcome, Request, Said};
use crate::step::{Next, StepAsk, Want};
use batch::Batch;
use feed::Feed;
use kvern_contract::{Error, ErrorKind, Result, SessionId};
use sequence::{On, Sequence};
use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::Arc;

impl Engine {
    /// Appends a prompt and decodes. `on_text` gets text as soon as it is certain (whole
    /// characters, no beginning of a stop string), and can end the answer. *Errors* Invalid (an
    /// empty or too long prompt, an unknown id), Damaged (pages lost again and again), the
    /// device's, the store's.
    pub fn generate(
        &mut self,
        session: SessionId,
        request: &Request<'_>,
        on_text: &mut dyn FnMut(&str) -> Flow,
    ) -> Result<Outcome> {
        let mut ended = None;
        let asked = [(Some(session), request.clone())];
        self.batch(asked, 1, &mut |_, said| match said {
            Said::Text(text) => on_text(text),
            Said::Ended(outcome) => {
                ended = Some(outcome);
                Flow::Go
            }
        })?;
        let lost = || Error::new(ErrorKind::Internal, "engine/request", "a request has no end");
        ended.unwrap_or_else(|| Err(lost()))
    }

    /// Runs requests in one batch, each on a session of its own, at most `most` at once and as many
    /// as memory holds; the others wait, and join when one has left. `on_said` hears what comes of
    /// each, by its place among the requests, and can end it or all of them. With an exact history
    /// and a row-invariant device, the tokens of each are those that it has alone. *Errors* what
    /// ends the whole batch; each request that had not ended is told the same.
    pub fn run<'r>(
        &mut self,
        requests: impl IntoIterator<Item = Request<'r>>,
        most: usize,
        on_said: &mut dyn FnMut(usize, Said<'_>) -> Flow,
    ) -> Result<()> {
        self.batch(requests.into_iter().map(|request| (None, request)), most, on_said)
    }

    pub(crate) fn batch<'r>(
        &mut self,
        asked: impl IntoIterator<Item = (Option<SessionId>, Request<'r>)>,
        most: usize,
        on: &mut On<'_>,
    ) -> Result<()> {
        let (model, stopped) = (Arc::clone(&self.model), Cell::new(false));
        let on = &mut |id: usize, said: Said<'_>| {
            let flow = on(id, said);
            stopped.set(stopped.get() || flow == Flow::StopAll);
            flow
        };
        let mut waiting = VecDeque::new();
        for (id, (session, request)) in asked.into_iter().enumerate() {
            match Sequence::new(id, session, request, &model, self.context_tokens) {
                Ok(sequence) => waiting.push_back(sequence),
                Err(error) => drop(on(id, Said::Ended(Err(error)))),
            }
        }
        self.serve(Batch::new(waiting, most, &stopped), on)
    }

    /// Appends ids and gives the logits of each, in order: its place among `ids`, f32
    /// `[vocabulary]`. *Errors* as `generate`, and the caller's.
    pub fn score(
        &mut self,
        session: SessionId,
        ids: &[u32],
        on_row: &mut dyn FnMut(usize, &[f32]) -> Result<()>,
    ) -> Result<()> {
        let mut all = self.pager.tokens(session)?;
        let held = all.len();
        self.check(held as u64, ids)?;
        all.extend(ids);
        let (mut feed, mut handed) = (Feed::new(all, held), held);
        let of = ids.len() as u64;
        self.events.progress(|| Progress::Prompt { tokens: 0, of });
        while feed.pending() > 0 {
            let (at, most) = (feed.at, feed.at + self.rows_most as usize);
            let end = feed.must_end().unwrap_or(most).min(feed.all.len());
            // Rows are handed out once each, however often they are computed.
            let want = if end > handed { Want::All } else { Want::Nothing };
            let ask = StepAsk { session, ids: &feed.all[at..end], want };
            let lost = self.step(&[ask], &mut |_, row, logits| {
                let position = at + row;
                if position >= handed {
                    handed = position + 1;
                    on_row(position - held, logits)?;
                }
                Ok(Next::Go)
            })?;
            match lost.first() {
                None => feed.at = end,
                Some(lost) => feed.go_back(&mut self.pager, lost)?,
            }
            let tokens = feed.at.saturating_sub(held) as u64;
            self.events.progress(|| Progress::Prompt { tokens, of });
        }
        Ok(())
    }

    /// Whether a session with so many tokens can take these.
    fn check(&self, held: u64, ids: &[u32]) -> Result<()> {
        let bad = |text| Err(Error::new(ErrorKind::Invalid, "engine/request", text));
        let (new, most) = (ids.len() as u64, self.context_tokens);
        if ids.is_empty() {
            return bad("the prompt has no tokens: give some text".to_string());
        }
        if held + new > most {
            let text = format!(
                "a prompt of {new} tokens after {held} is longer than the context of {most} \
                 tokens: shorten it"
            );
            return bad(text);
        }
        let vocabulary = self.family.plan().vocabulary;
        match ids.iter().find(|id| **id >= vocabulary) {
            Some(id) => bad(format!("token id {id} is not in a vocabulary of {vocabulary}")),
            None => Ok(()),
        }
    }
}
