//! Requests on a session: feed tokens in chunks, choose the next one, stream its text. A session
//! that lost pages goes back to them and computes them again.

use crate::engine::Engine;
use crate::spec::{Finish, Flow, Outcome, Request};
use crate::step::{StepAsk, Want};
use kvern_contract::{Error, ErrorKind, Result, SessionId};
use kvern_model::StopMatcher;
use std::time::Instant;

/// How often one request may lose pages before the store is not believed any more.
const LOSSES_MOST: u32 = 32;

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
        let start = Instant::now();
        let reused_tokens = self.pager.length(session)?;
        self.admit(reused_tokens, request.prompt)?;
        let model = std::sync::Arc::clone(&self.model);
        let mut stream = model.text().ok().map(|text| text.stream(true));
        let mut stops = StopMatcher::new(request.stop.iter().cloned())?;
        let mut sampler = request.sampler.clone();
        let mut history = self.pager.tokens(session)?;
        history.extend(request.prompt);
        let mut outcome = Outcome {
            token_ids: Vec::new(),
            text: String::new(),
            finish: Finish::Length,
            prompt_tokens: history.len() as u64,
            reused_tokens,
            prefill: start.elapsed(),
            total: start.elapsed(),
            first_token: None,
            inter_token: Vec::new(),
            chunk_tokens: self.rows_most.min(request.prompt.len() as u32),
            chunk_count: request.prompt.len().div_ceil(self.rows_most as usize) as u32,
        };
        let (first, rest) = self.last_chunk(request.prompt);
        for chunk in first.chunks(self.rows_most as usize) {
            self.feed(session, chunk, Want::Nothing, &mut |_, _| Ok(()))?;
            if on_text("") == Flow::Stop {
                outcome.finish = Finish::Interrupted;
                (outcome.prefill, outcome.total) = (start.elapsed(), start.elapsed());
                return Ok(outcome);
            }
        }
        let mut logits = self.feed_last(session, rest)?;
        outcome.prefill = start.elapsed();
        let mut last = start;
        while (outcome.token_ids.len() as u32) < request.max_new_tokens {
            let token = sampler.sample(&logits, &history);
            outcome.token_ids.push(token);
            history.push(token);
            let now = Instant::now();
            match outcome.first_token {
                None => outcome.first_token = Some(now - start),
                Some(_) => outcome.inter_token.push(now - last),
            }
            last = now;
            if !request.ignore_eos && self.model.generation().eos.contains(&token) {
                outcome.finish = Finish::EndOfSequence;
                break;
            }
            let piece = stream.as_mut().map_or(Ok(String::new()), |s| s.push(token))?;
            let matched = stops.push(&piece);
            outcome.text.push_str(&matched.text);
            let flow = on_text(&matched.text);
            if matched.stop.is_some() {
                outcome.finish = Finish::StopString;
                break;
            }
            if flow == Flow::Stop {
                outcome.finish = Finish::Interrupted;
                break;
            }
            if history.len() as u64 >= self.context_tokens {
                outcome.finish = Finish::ContextFull;
                break;
            }
            if outcome.token_ids.len() as u32 == request.max_new_tokens {
                break;
            }
            logits = self.feed_last(session, &[token])?;
        }
        if outcome.finish != Finish::StopString {
            let piece = stream.as_mut().map_or(Ok(String::new()), |s| s.finish())?;
            let mut rest = stops.push(&piece).text;
            rest.push_str(&stops.finish());
            if !rest.is_empty() {
                outcome.text.push_str(&rest);
                let _ended = on_text(&rest);
            }
        }
        outcome.total = start.elapsed();
        Ok(outcome)
    }

    /// Appends ids and gives the logits of each, in order: its place among `ids`, f32
    /// `[vocabulary]`. *Errors* as `generate`, and the caller's.
    pub fn score(
        &mut self,
        session: SessionId,
        ids: &[u32],
        on_row: &mut dyn FnMut(usize, &[f32]) -> Result<()>,
    ) -> Result<()> {
        self.admit(self.pager.length(session)?, ids)?;
        self.feed(session, ids, Want::All, on_row)
    }

    fn admit(&self, held: u64, ids: &[u32]) -> Result<()> {
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

    /// A prompt in two: whole steps, and the last one, which gives logits.
    fn last_chunk<'a>(&self, prompt: &'a [u32]) -> (&'a [u32], &'a [u32]) {
        let rows = self.rows_most as usize;
        prompt.split_at(prompt.len().saturating_sub(1) / rows * rows)
    }

    fn feed_last(&mut self, session: SessionId, ids: &[u32]) -> Result<Vec<f32>> {
        let mut logits = Vec::new();
        self.feed(session, ids, Want::Last, &mut |_, row| {
            logits = row.to_vec();
            Ok(())
        })?;
        Ok(logits)
    }

    /// Feeds ids in chunks. Rows are handed out once each, however often they are computed.
    fn feed(
        &mut self,
        session: SessionId,
        ids: &[u32],
        want: Want,
        on_row: &mut dyn FnMut(usize, &[f32]) -> Result<()>,
    ) -> Result<()> {
        let mut all = self.pager.tokens(session)?;
        let held = all.len();
        all.extend(ids);
        let (mut at, mut handed, mut losses) = (held, held, 0);
        // Where steps must end that are computed again; elsewhere they are as long as may be.
        let mut ends: Vec<u64> = Vec::new();
        while at < all.len() {
            let recorded = ends.iter().find(|end| **end > at as u64).map(|end| *end as usize);
            let end = recorded.unwrap_or(at + self.rows_most as usize).min(all.len());
            let wanted = match want {
                Want::All if end > handed => Want::All,
                Want::Last if end == all.len() => Want::Last,
                _ => Want::Nothing,
            };
            let ask = StepAsk { session, ids: &all[at..end], want: wanted };
            let lost = self.step(&[ask], &mut |_, row, logits| {
                let position = at + row;
                if position >= handed {
                    handed = position + 1;
                    on_row(position - held, logits)?;
                }
                Ok(())
            })?;
            let Some(lost) = lost.first() else {
                at = end;
                continue;
            };
            losses += 1;
            if losses > LOSSES_MOST {
                let text = format!(
                    "kv pages were lost {losses} times in one request, last at token {}: check the \
                     drive and the strategy's log lines",
                    lost.position
                );
                return Err(Error::new(ErrorKind::Damaged, "kv/load", text));
            }
            let (back, recorded) = self.pager.retreat(lost)?;
            if recorded.len() > ends.len() {
                ends = recorded;
            }
            let landed = self.pager.rewind(session, back)?;
            self.pager.count_recomputed(at as u64 - landed);
            at = landed as usize;
        }
        Ok(())
    }
}
