//! Guesses by a second, smaller model with the same vocabulary: an engine of its own, whose
//! sessions follow the requests' tokens and go back to what was accepted.

use super::{Guess, GuessAsk};
use crate::engine::Engine;
use crate::spec::{Flow, Request, Said};
use kvern_contract::{Result, SessionId};
use std::collections::BTreeMap;

/// Guesses by a model.
pub struct Draft {
    engine: Engine,
    sessions: BTreeMap<usize, SessionId>,
    /// Of requests that have ended: who goes on with their text finds most of it computed.
    idle: Vec<SessionId>,
}

impl Draft {
    /// Guesses by this engine, which holds at most as many sessions as it was loaded for.
    pub fn new(engine: Engine) -> Draft {
        Draft { engine, sessions: BTreeMap::new(), idle: Vec::new() }
    }

    /// The session of a request; of a new one that of an ended one with the longest common
    /// beginning, or one of its own.
    fn session(&mut self, ask: &GuessAsk<'_>) -> Result<SessionId> {
        if let Some(session) = self.sessions.get(&ask.id) {
            return Ok(*session);
        }
        let mut best = None;
        for (at, session) in self.idle.iter().enumerate() {
            let common = common(&self.engine.tokens(*session)?, ask.tokens);
            if best.is_none_or(|(most, _)| common > most) {
                best = Some((common, at));
            }
        }
        let is_full = self.sessions.len() + self.idle.len() >= self.engine.sessions as usize;
        let session = match best.filter(|(common, _)| *common > 0 || is_full) {
            Some((_, at)) => self.idle.swap_remove(at),
            None => self.engine.begin()?,
        };
        self.sessions.insert(ask.id, session);
        Ok(session)
    }

    /// Goes back to what a session has in common with the tokens, less the last one, whose logits
    /// are wanted; answers how many it holds then.
    fn follow(&mut self, session: SessionId, tokens: &[u32]) -> Result<usize> {
        let held = self.engine.tokens(session)?;
        let keep = common(&held, tokens).min(tokens.len().saturating_sub(1));
        match keep == held.len() {
            true => Ok(keep),
            false => Ok(self.engine.rewind(session, keep as u64)? as usize),
        }
    }
}

/// How many tokens two texts begin with alike.
fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

impl Guess for Draft {
    /// The draft draws with a copy of the request's sampler, so that it chooses alike where it
    /// thinks alike.
    fn guess(&mut self, asks: &[GuessAsk<'_>]) -> Result<Vec<Vec<u32>>> {
        let (mut requests, mut whose) = (Vec::new(), Vec::new());
        for (index, ask) in asks.iter().enumerate() {
            let room = self.engine.context_tokens().saturating_sub(ask.tokens.len() as u64);
            let most = room.min(ask.most as u64) as u32;
            if most == 0 || ask.tokens.is_empty() {
                continue;
            }
            let session = self.session(ask)?;
            let held = self.follow(session, ask.tokens)?;
            let request = Request {
                prompt: &ask.tokens[held..],
                max_new_tokens: most,
                sampler: ask.sampler.clone(),
                ignore_eos: true,
                stop: &[],
            };
            requests.push((Some(session), request));
            whose.push(index);
        }
        let mut guessed = vec![Vec::new(); asks.len()];
        let (count, mut failed) = (requests.len(), None);
        self.engine.batch(requests, count, &mut |id, said| {
            match said {
                Said::Text(_) => (),
                Said::Ended(Ok(outcome)) => guessed[whose[id]] = outcome.token_ids,
                Said::Ended(Err(error)) => failed = Some(error),
            }
            Flow::Go
        })?;
        failed.map_or(Ok(guessed), Err)
    }

    fn ended(&mut self, id: usize) {
        self.idle.extend(self.sessions.remove(&id));
    }
}
