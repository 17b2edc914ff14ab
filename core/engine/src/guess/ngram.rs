//! Prompt lookup (Saxena 2023): what followed the last time that the text ended as it does now.
//! Costs no memory to speak of and no second model; right where a text quotes, repeats or edits.

use super::{Guess, GuessAsk};
use kvern_contract::Result;
use std::collections::{BTreeMap, HashMap};

/// A match of so many tokens is as long as any.
const MATCH_MOST: usize = 16;
/// Earlier places that are compared, the latest first.
const PLACES_MOST: usize = 64;
/// No earlier place.
const NONE: u32 = u32::MAX;

/// Guesses by lookup.
#[derive(Default)]
pub struct Ngram {
    indices: BTreeMap<usize, Index>,
}

/// Where each pair of tokens occurred: a chain of places for each pair, the latest first.
#[derive(Default)]
struct Index {
    /// By the pair that ends there, the latest place: how many tokens come before what follows.
    heads: HashMap<(u32, u32), u32>,
    /// For each place the one before it with the same pair.
    before: Vec<u32>,
}

impl Ngram {
    /// One that has seen nothing.
    pub fn new() -> Ngram {
        Ngram::default()
    }
}

impl Guess for Ngram {
    fn guess(&mut self, asks: &[GuessAsk<'_>]) -> Result<Vec<Vec<u32>>> {
        let one = |ask: &GuessAsk<'_>| {
            let index = self.indices.entry(ask.id).or_default();
            index.learn(ask.tokens);
            index.guess(ask.tokens, ask.most)
        };
        Ok(asks.iter().map(one).collect())
    }

    fn ended(&mut self, id: usize) {
        self.indices.remove(&id);
    }
}

impl Index {
    /// Adds the places that something follows by now: all before the end.
    fn learn(&mut self, tokens: &[u32]) {
        for place in self.before.len()..tokens.len() {
            let pair = place.checked_sub(2).map(|at| (tokens[at], tokens[at + 1]));
            let earlier = pair.and_then(|pair| self.heads.insert(pair, place as u32));
            self.before.push(earlier.unwrap_or(NONE));
        }
    }

    /// What followed the longest match with the end, the latest of equals; what would be read past
    /// the end is what was guessed for there, so that a text that turns in a circle goes on.
    fn guess(&self, tokens: &[u32], most: usize) -> Vec<u32> {
        let [.., a, b] = tokens else { return Vec::new() };
        let (mut place, mut best) = (self.heads.get(&(*a, *b)).copied(), None);
        for _ in 0..PLACES_MOST {
            let Some(at) = place.filter(|place| *place != NONE) else { break };
            let same = tokens[..at as usize].iter().rev().zip(tokens.iter().rev());
            let length = same.take(MATCH_MOST).take_while(|(a, b)| a == b).count();
            if best.is_none_or(|(longest, _)| length > longest) {
                best = Some((length, at as usize));
            }
            if length == MATCH_MOST {
                break;
            }
            place = self.before.get(at as usize).copied();
        }
        let Some((_, at)) = best else { return Vec::new() };
        let mut guessed: Vec<u32> = tokens[at..].iter().copied().take(most).collect();
        for turn in 0..most - guessed.len() {
            guessed.push(guessed[turn]);
        }
        guessed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guess(tokens: &[u32], most: usize) -> Vec<u32> {
        let mut index = Index::default();
        // Learned a token at a time or at once, it is the same.
        (0..tokens.len()).for_each(|n| index.learn(&tokens[..n]));
        let mut once = Index::default();
        once.learn(tokens);
        index.learn(tokens);
        assert_eq!(index.guess(tokens, most), once.guess(tokens, most));
        once.guess(tokens, most)
    }

    #[test]
    fn what_followed_the_longest_match_is_guessed_and_the_latest_of_equals() {
        assert_eq!(guess(&[1, 2, 3, 4, 5, 6, 7, 1, 2], 3), [3, 4, 5]);
        // 9 1 2 is longer than the later 1 2.
        assert_eq!(guess(&[9, 1, 2, 3, 8, 1, 2, 4, 9, 1, 2], 2), [3, 8]);
        assert_eq!(guess(&[1, 2, 3, 8, 1, 2, 4, 9, 1, 2], 2), [4, 9]);
    }

    #[test]
    fn a_text_that_turns_in_a_circle_goes_on_turning() {
        assert_eq!(guess(&[7, 1, 2, 3, 1, 2, 3, 1, 2], 7), [3, 1, 2, 3, 1, 2, 3]);
        assert_eq!(guess(&[5, 5, 5], 4), [5, 5, 5, 5]);
    }

    #[test]
    fn what_never_occurred_is_not_guessed() {
        for tokens in [&[][..], &[1], &[1, 2], &[1, 2, 3, 2], &[1, 2, 1]] {
            assert!(guess(tokens, 4).is_empty(), "{tokens:?}");
        }
    }

    #[test]
    fn each_request_is_looked_up_in_its_own_tokens_and_forgotten_with_its_end() {
        let sampler = kvern_model::Sampler::new(kvern_model::Sampling::greedy()).expect("greedy");
        let mut ngram = Ngram::new();
        let mut ask = |id, tokens: &[u32]| {
            let sampler = &sampler;
            let asks = [GuessAsk { id, tokens, sampler, most: 2 }];
            ngram.guess(&asks).expect("it guesses").remove(0)
        };
        assert_eq!(ask(0, &[1, 2, 3, 1, 2]), [3, 1]);
        assert!(ask(1, &[1, 2]).is_empty());
        assert_eq!(ask(0, &[1, 2, 3, 1, 2, 3, 4, 2, 3]), [4, 2]);
        ngram.ended(0);
        let asks = [GuessAsk { id: 0, tokens: &[7, 8], sampler: &sampler, most: 2 }];
        assert!(ngram.guess(&asks).expect("it guesses")[0].is_empty());
    }
}
