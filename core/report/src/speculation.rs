//! What was guessed during a request, and how much of it counted.

use crate::request::NullReasons;
use serde::{Deserialize, Serialize};

/// Tokens that were guessed and verified, several in one step. Every key is always written.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Speculation {
    /// Who guessed: `off`, `ngram` or `draft`.
    pub mode: String,
    /// The model that guessed; null where none did.
    pub draft_model: Option<String>,
    /// Most tokens that were guessed in a step; null where nobody guessed.
    pub tokens_most: Option<u64>,
    /// Tokens that were guessed.
    pub proposed: u64,
    /// Of these, tokens that the model chose too.
    pub accepted: u64,
    /// The second over the first; null where nothing was guessed.
    pub acceptance_rate: Option<f64>,
    /// Steps with guesses.
    pub steps: u64,
    /// New tokens over the steps that gave them, 1 without guesses; null where none came.
    pub tokens_per_step: Option<f64>,
    /// Why what is null is null.
    pub null_reasons: NullReasons,
}

impl Speculation {
    /// Fills in a reason beside every null.
    pub fn explained(mut self) -> Speculation {
        let nobody = "nobody guesses: `--speculate` says who";
        let no_model = if self.mode == "off" { nobody } else { "no model guesses" };
        let reasons = [
            ("draft_model", self.draft_model.is_none(), no_model),
            ("tokens_most", self.tokens_most.is_none(), nobody),
            ("acceptance_rate", self.acceptance_rate.is_none(), "nothing was guessed"),
            ("tokens_per_step", self.tokens_per_step.is_none(), "no token came"),
        ];
        let missing = reasons.into_iter().filter(|(_, missing, _)| *missing);
        self.null_reasons = missing.map(|(key, _, why)| (key.into(), why.into())).collect();
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_null_has_its_reason_and_what_is_known_has_none() {
        let off = Speculation { mode: "off".into(), ..Speculation::default() }.explained();
        let value = serde_json::to_value(&off).unwrap();
        for (key, value) in value.as_object().unwrap() {
            assert_eq!(value.is_null(), off.null_reasons.contains_key(key), "{key}");
        }
        assert_eq!(off.null_reasons.len(), 4);
        let known = Speculation {
            mode: "draft".into(),
            draft_model: Some("x".into()),
            tokens_most: Some(8),
            acceptance_rate: Some(0.5),
            tokens_per_step: Some(2.0),
            ..Speculation::default()
        };
        assert!(known.explained().null_reasons.is_empty());
    }
}
