//! Guessers of these tests: they know the answers, and use that for good or for ill.

use crate::{Guess, GuessAsk};
use kvern_contract::{Error, ErrorKind, Result};
use std::sync::{Arc, Mutex};

/// What a guesser makes of the answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum How {
    /// Every guess is right.
    Right,
    /// None is.
    Wrong,
    /// The first so many are.
    First(usize),
    /// Each is right or not, and there are many or few, as it comes.
    Mixed,
    /// An end-of-sequence token comes first.
    End,
    /// Right, and one more than was asked for.
    TooLong,
    /// Right, but for one id that no vocabulary has.
    Unknown,
    /// Right, and a guess for nobody.
    TooMany,
    /// It fails.
    Fail,
}

/// A guesser that knows every request's prompt and answer.
pub(super) struct Oracle {
    /// By the request's id.
    pub texts: Vec<Vec<u32>>,
    pub how: How,
    /// Calls so far.
    pub calls: Arc<Mutex<u32>>,
    /// From this call on it does as it is told, and before it is right.
    pub from: u32,
    random: u64,
}

impl Oracle {
    pub(super) fn new(texts: Vec<Vec<u32>>, how: How) -> Oracle {
        Oracle { texts, how, calls: Arc::default(), from: 0, random: 1 }
    }

    /// One of `below` numbers; a linear congruential sequence (Knuth's).
    fn pick(&mut self, below: u64) -> u64 {
        self.random =
            self.random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.random >> 33) % below
    }

    fn one(&mut self, ask: &GuessAsk<'_>, how: How) -> Vec<u32> {
        assert!(ask.most > 0, "nothing is asked for nothing");
        let text = &self.texts[ask.id];
        assert!(
            text.len() < ask.tokens.len() || text.starts_with(ask.tokens),
            "it is another text"
        );
        let right = |at: usize| text.get(ask.tokens.len() + at).copied().unwrap_or(5);
        let mut ids: Vec<u32> = (0..ask.most).map(right).collect();
        let wrong = |id: u32| (id + 1) % 2048;
        match how {
            How::Right | How::TooMany | How::Fail => (),
            How::Wrong => ids.iter_mut().for_each(|id| *id = wrong(*id)),
            How::First(count) => ids.iter_mut().skip(count).for_each(|id| *id = wrong(*id)),
            How::Mixed => {
                ids.truncate(self.pick(ask.most as u64 + 1) as usize);
                for id in &mut ids {
                    *id = if self.pick(3) == 0 { wrong(*id) } else { *id };
                }
            }
            How::End => ids[0] = 0,
            How::TooLong => ids.push(1),
            How::Unknown => ids[ask.most / 2] = 2048,
        }
        ids
    }
}

impl Guess for Oracle {
    fn guess(&mut self, asks: &[GuessAsk<'_>]) -> Result<Vec<Vec<u32>>> {
        let call = {
            let mut calls = self.calls.lock().expect("calls");
            *calls += 1;
            *calls
        };
        let how = if call > self.from { self.how } else { How::Right };
        let mut guessed: Vec<Vec<u32>> = asks.iter().map(|ask| self.one(ask, how)).collect();
        match how {
            How::Fail => Err(Error::new(ErrorKind::Io, "test/guess", "the double does not guess")),
            How::TooMany => {
                guessed.push(Vec::new());
                Ok(guessed)
            }
            _ => Ok(guessed),
        }
    }

    fn ended(&mut self, _: usize) {}
}
