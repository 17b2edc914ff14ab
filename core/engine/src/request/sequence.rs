//! One request of a batch: its tokens, its sampler, its text, and how it ends.

use super::feed::Feed;
use super::pace::Pace;
use crate::spec::{Finish, Flow, Outcome, Request, Said, Speculation};
use crate::step::Next;
use kvern_contract::{Result, SessionId};
use kvern_model::{Model, StopMatcher, TextStream};
use std::time::{Duration, Instant};

/// Hears what is said of a request, and says whether to go on.
pub(super) type On<'a> = dyn FnMut(usize, Said<'_>) -> Flow + 'a;

/// A request and what has come of it.
pub(super) struct Sequence<'a> {
    /// Its place among the requests.
    pub id: usize,
    /// None while it waits for its turn.
    pub session: Option<SessionId>,
    /// Whether the session is the caller's, who ends it.
    pub is_callers: bool,
    pub feed: Feed,
    /// Frames that it was let in for.
    pub need: u64,
    /// The last step that had rows of it.
    pub served: u64,
    /// Tokens that may follow, in the step that runs.
    pub drafts: Vec<u32>,
    /// How many are worth guessing.
    pub pace: Pace,
    /// How it ended.
    pub end: Option<Result<Finish>>,
    pub request: Request<'a>,
    model: &'a Model,
    context_tokens: u64,
    stream: Option<TextStream<'a>>,
    stops: StopMatcher,
    outcome: Outcome,
    start: Instant,
    /// When its last token came, and when the one before this step's.
    now: Instant,
    last: Instant,
    /// Tokens of the step that runs, and how many of them had been guessed.
    fresh: usize,
    right: usize,
}

impl<'a> Sequence<'a> {
    /// *Errors* Invalid: a stop string is empty.
    pub(super) fn new(
        id: usize,
        session: Option<SessionId>,
        request: Request<'a>,
        model: &'a Model,
        context_tokens: u64,
    ) -> Result<Self> {
        let start = Instant::now();
        let stops = StopMatcher::new(request.stop.iter().cloned())?;
        Ok(Sequence {
            id,
            session,
            is_callers: session.is_some(),
            feed: Feed::new(Vec::new(), 0),
            need: 0,
            served: 0,
            drafts: Vec::new(),
            pace: Pace::default(),
            end: None,
            stream: model.text().ok().map(|text| text.stream(true)),
            stops,
            request,
            model,
            context_tokens,
            outcome: Outcome {
                token_ids: Vec::new(),
                text: String::new(),
                finish: Finish::Length,
                prompt_tokens: 0,
                reused_tokens: 0,
                prefill: Duration::ZERO,
                total: Duration::ZERO,
                first_token: None,
                inter_token: Vec::new(),
                chunk_tokens: 0,
                chunk_count: 0,
                speculation: Speculation::default(),
            },
            start,
            now: start,
            last: start,
            fresh: 0,
            right: 0,
        })
    }

    /// Its turn has come: on a session that holds these tokens, unless it was given up meanwhile.
    pub(super) fn begin(&mut self, session: SessionId, held: Vec<u32>) {
        self.session = Some(session);
        if !self.feed.all.is_empty() {
            return;
        }
        self.outcome.reused_tokens = held.len() as u64;
        let (at, mut all) = (held.len(), held);
        all.extend(self.request.prompt);
        self.outcome.prompt_tokens = all.len() as u64;
        self.feed = Feed::new(all, at);
    }

    /// Whether one token is to be fed, and the next one wanted.
    pub(super) fn decodes(&self) -> bool {
        self.feed.pending() == 1 && !self.outcome.token_ids.is_empty()
    }

    /// New tokens that may still come, or none where the next one is not wanted.
    pub(super) fn left(&self) -> usize {
        let held = self.feed.all.len() as u64;
        let room = self.context_tokens.saturating_sub(held) as usize;
        (self.request.max_new_tokens as usize).saturating_sub(self.tokens()).min(room)
    }

    /// Tokens of its prompt that were computed for it, and all that have to be.
    pub(super) fn prompt(&self) -> (u64, u64) {
        let Outcome { prompt_tokens, reused_tokens, .. } = self.outcome;
        let at = (self.feed.at as u64).clamp(reused_tokens, prompt_tokens.max(reused_tokens));
        (at - reused_tokens, prompt_tokens.saturating_sub(reused_tokens))
    }

    /// New tokens so far.
    pub(super) fn tokens(&self) -> usize {
        self.outcome.token_ids.len()
    }

    /// Takes the logits of its last known token, or of a draft that turned out to be right, and
    /// chooses the next one. Whether the row after is of that token.
    pub(super) fn take(&mut self, logits: &[f32], on: &mut On<'_>) -> Next {
        if self.tokens() == 0 {
            self.outcome.prefill = self.start.elapsed();
        }
        if self.request.max_new_tokens == 0 {
            self.end = Some(Ok(Finish::Length));
            return Next::Cut;
        }
        let token = self.request.sampler.sample(logits, &self.feed.all);
        self.now = Instant::now();
        self.fresh += 1;
        self.feed.all.push(token);
        self.outcome.token_ids.push(token);
        self.end = self.tell(token, on).transpose();
        let drafted = self.drafts.get(self.fresh - 1) == Some(&token);
        self.right += usize::from(drafted);
        if drafted && self.end.is_none() { Next::Go } else { Next::Cut }
    }

    /// A token's text to the caller; whether it is the last one.
    fn tell(&mut self, token: u32, on: &mut On<'_>) -> Result<Option<Finish>> {
        if !self.request.ignore_eos && self.model.generation().eos.contains(&token) {
            return Ok(Some(Finish::EndOfSequence));
        }
        let piece = self.stream.as_mut().map_or(Ok(String::new()), |s| s.push(token))?;
        let matched = self.stops.push(&piece);
        self.outcome.text.push_str(&matched.text);
        let goes_on = self.say(&matched.text, on);
        Ok(match () {
            () if matched.stop.is_some() => Some(Finish::StopString),
            () if !goes_on => Some(Finish::Interrupted),
            () if self.feed.all.len() as u64 >= self.context_tokens => Some(Finish::ContextFull),
            () if self.tokens() >= self.request.max_new_tokens as usize => Some(Finish::Length),
            () => None,
        })
    }

    fn say(&self, text: &str, on: &mut On<'_>) -> bool {
        on(self.id, Said::Text(text)) == Flow::Go
    }

    /// After a step that had so many rows of it, guessed ones too, and lost none.
    pub(super) fn settle(&mut self, rows: usize, on: &mut On<'_>) {
        if self.tokens() == self.fresh {
            let fed = rows.saturating_sub(self.drafts.len());
            self.outcome.chunk_count += 1;
            self.outcome.chunk_tokens = self.outcome.chunk_tokens.max(fed as u32);
            if self.fresh == 0 && self.end.is_none() && !self.say("", on) {
                self.outcome.prefill = self.start.elapsed();
                self.end = Some(Ok(Finish::Interrupted));
            }
        }
        self.settle_drafts();
        self.settle_times();
    }

    /// Counts what was guessed.
    fn settle_drafts(&mut self) {
        let proposed = std::mem::take(&mut self.drafts).len();
        let right = std::mem::take(&mut self.right);
        self.outcome.speculation.sweeps += u64::from(self.fresh > 0);
        if proposed == 0 {
            return;
        }
        // An end says nothing of the guesses behind it.
        self.pace.learn(right, right < proposed && self.end.is_none());
        self.outcome.speculation.proposed += proposed as u64;
        self.outcome.speculation.accepted += right as u64;
        self.outcome.speculation.steps += 1;
    }

    /// Tokens of one step share its time equally.
    fn settle_times(&mut self) {
        let mut count = std::mem::take(&mut self.fresh) as u32;
        if count == 0 {
            return;
        }
        if self.outcome.first_token.is_none() {
            self.outcome.first_token = Some(self.now - self.start);
            self.last = self.now;
            count -= 1;
        }
        for _ in 0..count {
            self.outcome.inter_token.push((self.now - self.last) / count);
        }
        self.last = self.now;
    }

    /// Tells how it ended.
    pub(super) fn finish(mut self, on: &mut On<'_>) {
        let (id, end) = (self.id, self.end.take().unwrap_or(Ok(Finish::Interrupted)));
        let ended = end.and_then(|finish| self.wind_up(finish, on));
        on(id, Said::Ended(ended));
    }

    /// The rest of its text, and its outcome.
    fn wind_up(mut self, finish: Finish, on: &mut On<'_>) -> Result<Outcome> {
        if finish != Finish::StopString {
            let piece = self.stream.as_mut().map_or(Ok(String::new()), |s| s.finish())?;
            let mut rest = self.stops.push(&piece).text;
            rest.push_str(&self.stops.finish());
            if !rest.is_empty() {
                self.outcome.text.push_str(&rest);
                self.say(&rest, on);
            }
        }
        self.outcome.finish = finish;
        self.outcome.total = self.start.elapsed();
        Ok(self.outcome)
    }
}
