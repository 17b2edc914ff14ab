//! Stop strings across token borders: no part of one is ever shown, and no more is held back than
//! must be.

use crate::error::invalid;
use kvern_contract::Result;

/// What a piece of text came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Matched {
    /// Text to show.
    pub text: String,
    /// Index of the stop string that ended the text, if one did.
    pub stop: Option<usize>,
}

/// Looks for stop strings in a text that comes in pieces. Of several, the one that is complete
/// first ends the text, the longest if two end together, so that the result does not depend on
/// where the pieces were cut.
#[derive(Clone, Debug, Default)]
pub struct StopMatcher {
    stops: Vec<String>,
    held: String,
    ended: bool,
}

impl StopMatcher {
    /// A matcher of these strings; of none, everything passes.
    ///
    /// # Errors
    /// `Invalid` for an empty stop string: it would end every text at once.
    pub fn new<S: Into<String>>(stops: impl IntoIterator<Item = S>) -> Result<StopMatcher> {
        let stops: Vec<String> = stops.into_iter().map(Into::into).collect();
        if stops.iter().any(String::is_empty) {
            return Err(invalid(
                "model/stop",
                "a stop string is empty, expected at least one character",
            ));
        }
        Ok(StopMatcher { stops, held: String::new(), ended: false })
    }

    /// Takes a piece; after a stop, everything is dropped.
    pub fn push(&mut self, piece: &str) -> Matched {
        if self.ended {
            return Matched { text: String::new(), stop: None };
        }
        self.held.push_str(piece);
        let found = self.stops.iter().enumerate().filter_map(|(number, stop)| {
            let start = self.held.find(stop.as_str())?;
            Some((start + stop.len(), start, number))
        });
        if let Some((_, start, number)) = found.min() {
            self.held.truncate(start);
            self.ended = true;
            return Matched { text: std::mem::take(&mut self.held), stop: Some(number) };
        }
        let keep = self.stops.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        Matched { text: std::mem::replace(&mut self.held, rest), stop: None }
    }

    /// Ends the text; gives what was held back in vain.
    pub fn finish(&mut self) -> String {
        self.ended = true;
        std::mem::take(&mut self.held)
    }
}

/// Bytes of the longest end of `text` that begins `stop` without being all of it.
fn overlap(text: &str, stop: &str) -> usize {
    let (text, stop) = (text.as_bytes(), stop.as_bytes());
    let most = text.len().min(stop.len() - 1);
    // A stop begins with a character's first byte, so a match starts at a character's border.
    (1..=most).rev().find(|n| text.ends_with(&stop[..*n])).unwrap_or(0)
}
