//! Flags of speculation.

use clap::Args;

/// Who guesses tokens ahead, so that one sweep over the weights verifies several.
#[derive(Args, Debug, Default, Clone)]
#[command(next_help_heading = "Speculation")]
pub struct SpeculateArgs {
    /// Guesses tokens and verifies several in one sweep: ngram, draft=MODEL, or off [default: off].
    #[arg(long, value_name = "HOW", env = "KVERN_SPECULATE", hide_env_values = true,
          value_parser = parse_guesser)]
    pub speculate: Option<Guesser>,
    /// Most tokens that are guessed at once for each prompt [default: 8].
    #[arg(long, value_name = "N", env = "KVERN_SPECULATE_TOKENS", hide_env_values = true,
          value_parser = clap::value_parser!(u32).range(1..=32))]
    pub speculate_tokens: Option<u32>,
}

/// Who guesses.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Guesser {
    /// Nobody.
    Off,
    /// What followed the same tokens before.
    Ngram,
    /// A model, as it was asked for.
    Draft(String),
}

/// As flags, variables and files spell it.
pub fn parse_guesser(text: &str) -> Result<Guesser, String> {
    match text.split_once('=') {
        None if text == "off" => Ok(Guesser::Off),
        None if text == "ngram" => Ok(Guesser::Ngram),
        Some(("draft", model)) if !model.is_empty() => Ok(Guesser::Draft(model.into())),
        _ => Err("ngram, draft=MODEL or off is expected".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_draft_names_its_model_and_nothing_else_is_known() {
        assert_eq!(parse_guesser("ngram"), Ok(Guesser::Ngram));
        assert_eq!(parse_guesser("draft=a=b/c"), Ok(Guesser::Draft("a=b/c".into())));
        for wrong in ["", "draft", "draft=", "ngram=3", "Ngram", "model=x"] {
            assert!(parse_guesser(wrong).is_err(), "{wrong}");
        }
    }
}
