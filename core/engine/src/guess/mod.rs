//! Guesses of what a request says next, so that one sweep over the weights verifies several
//! tokens. Whoever guesses, and however badly, the text is the model's own.
//!
//! A row that was guessed right gives the logits that decoding would have come to, so the request's
//! own sampler chooses from them with the draw, the penalties and the history that it would have
//! had, and a guess counts where it is what was chosen. Speculative sampling (Leviathan et al.
//! 2023) accepts by a coin of its own and keeps the distribution; this keeps the very tokens, drawn
//! ones too: a seed says the same with and without.

mod draft;
mod ngram;

pub use draft::Draft;
pub use ngram::Ngram;

use crate::engine::Engine;
use crate::events::Recorder;
use kvern_contract::{Error, ErrorKind, PAGE_TOKENS, Result};
use kvern_model::Sampler;
use kvern_storage::HostSink;
use std::sync::Arc;

/// Guesses what requests say next.
pub trait Guess {
    /// For each ask, in order, the ids that are thought to follow its tokens, most likely as they
    /// stand: at most `most`, none where there is no idea. *Errors* end guessing and no request.
    fn guess(&mut self, asks: &[GuessAsk<'_>]) -> Result<Vec<Vec<u32>>>;

    /// Nothing more is asked of a request: its id may be another's from now on.
    fn ended(&mut self, id: usize);
}

/// What is to be guessed.
pub struct GuessAsk<'a> {
    /// Whose tokens: the same from call to call, until it ends.
    pub id: usize,
    /// Every token that is known, the prompt's included; only added to while the request lives.
    pub tokens: &'a [u32],
    /// What will choose the next token, as it is now.
    pub sampler: &'a Sampler,
    /// Most ids, at least 1.
    pub most: usize,
}

/// Who guesses for an engine, held to the trait.
pub(crate) struct Guesses {
    by: Box<dyn Guess>,
    /// Most ids a step for each request.
    pub most: usize,
    vocabulary: u32,
}

impl Engine {
    /// Has every request from now on guessed ahead, at most `most` tokens a step each, and fewer
    /// than a page has. A guesser that fails or breaks its word is logged once and not asked again.
    pub fn speculate(&mut self, by: Box<dyn Guess>, most: u32) {
        let (most, vocabulary) =
            (most.min(PAGE_TOKENS - 1) as usize, self.family.plan().vocabulary);
        self.guesses = Some(Guesses { by, most, vocabulary });
    }
}

impl Guesses {
    /// The guesses, or why they are not believed.
    fn checked(&mut self, asks: &[GuessAsk<'_>]) -> Result<Vec<Vec<u32>>> {
        let broken = |text: String| Err(Error::new(ErrorKind::Invalid, "engine/guess", text));
        let guessed = self.by.guess(asks)?;
        if guessed.len() != asks.len() {
            let (found, expected) = (guessed.len(), asks.len());
            return broken(format!("{found} guesses came for {expected} requests"));
        }
        for (ask, ids) in asks.iter().zip(&guessed) {
            if ids.len() > ask.most {
                let (found, most) = (ids.len(), ask.most);
                return broken(format!("{found} tokens were guessed where {most} were asked for"));
            }
            if let Some(id) = ids.iter().find(|id| **id >= self.vocabulary) {
                let size = self.vocabulary;
                return broken(format!("token id {id} was guessed in a vocabulary of {size}"));
            }
        }
        Ok(guessed)
    }

    pub(crate) fn ended(&mut self, id: usize) {
        self.by.ended(id);
    }
}

/// Asks for guesses; nothing of a guesser that fails, which is not asked again.
pub(crate) fn ask(
    guesses: &mut Option<Guesses>,
    asks: &[GuessAsk<'_>],
    events: &Arc<Recorder>,
) -> Vec<Vec<u32>> {
    let Some(by) = guesses.as_mut().filter(|_| !asks.is_empty()) else { return Vec::new() };
    by.checked(asks).unwrap_or_else(|error| {
        let line = format!("speculation ends, requests go on without: {error}");
        events.log(2, &line);
        *guesses = None;
        Vec::new()
    })
}
