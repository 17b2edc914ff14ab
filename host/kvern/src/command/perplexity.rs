//! `kvern perplexity`: how likely the model finds a text, token by token.

use super::logits::LogitsFile;
use super::prompt;
use crate::cli::PerplexityArgs;
use crate::fail::{Failure, Outcome, While};
use crate::runtime::{Prepared, Room};
use crate::settings::Settings;
use crate::watching::Watching;
use crate::{interrupt, out};
use kvern_contract::{Error, ErrorKind};
use kvern_report::NullReasons;
use serde::Serialize;

#[derive(Serialize)]
struct Document {
    perplexity: Option<f64>,
    tokens: u64,
    token_ids: Vec<u32>,
    token_logprobs: Vec<Exact>,
    null_reasons: NullReasons,
}

/// A float that keeps its digits: the report's rounding is for timings.
#[derive(Serialize)]
#[serde(transparent)]
struct Exact(serde_json::Number);

/// Natural log-probability of `id` after a row of logits; in f64, shifted by the largest.
pub fn log_probability(logits: &[f32], id: u32) -> Option<f64> {
    let wanted = f64::from(*logits.get(id as usize)?);
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let most = f64::from(most);
    let total: f64 = logits.iter().map(|x| (f64::from(*x) - most).exp()).sum();
    Some(wanted - most - total.ln())
}

/// Runs the command.
pub fn run(args: &PerplexityArgs) -> Outcome<()> {
    interrupt::catch()?;
    let watching = Watching::begin(&args.watch)?;
    let prepared = Prepared::new(Settings::of(&args.run)?)?.watched(watching);
    let ids = read_ids(args, &prepared)?;
    prepared.check_fits(ids.len() as u64, "the text")?;
    let vocabulary = prepared.model.config().vocab_size;
    if let Some(id) = ids.iter().find(|id| **id >= vocabulary) {
        return Err(Failure::new(format!(
            "token id {id} is not in the vocabulary of {vocabulary}; ids start at 0"
        )));
    }
    let mut file = match &args.logits {
        Some(path) => Some(LogitsFile::create(path, ids.len() as u64, u64::from(vocabulary))?),
        None => None,
    };
    let mut runtime = prepared.load(Room::of(ids.len() as u64))?;
    let session = runtime.engine.begin()?;
    let mut scores = Vec::with_capacity(ids.len());
    let mut failed = None;
    // Without a file the last row has no token to score.
    let scored = if file.is_some() { &ids[..] } else { &ids[..ids.len() - 1] };
    let done = runtime.engine.score(session, scored, &mut |row, logits| {
        let kept =
            file.as_mut().map_or(Ok(()), |f| f.row(logits)).and_then(|()| interrupt::check());
        if let Err(failure) = kept {
            let message = failure.message.clone();
            failed = Some(failure);
            return Err(Error::new(ErrorKind::Io, "perplexity", message));
        }
        if let Some(next) = ids.get(row + 1) {
            scores.push(log_probability(logits, *next).unwrap_or(f64::NEG_INFINITY));
        }
        Ok(())
    });
    if let Some(failure) = failed {
        return Err(failure);
    }
    done?;
    runtime.engine.end(session)?;
    if let Some(file) = file {
        file.publish()?;
    }
    tell(args.json, ids, &scores)
}

/// The ids to score: one before the first scored token, then those.
fn read_ids(args: &PerplexityArgs, prepared: &Prepared) -> Outcome<Vec<u32>> {
    let mut ids: Vec<u32> = match (&args.token_ids, &args.text) {
        (Some(path), _) => {
            let text = std::fs::read_to_string(path).during(path.display())?;
            serde_json::from_str(&text)
                .during(format!("{}: a JSON list of token ids is expected", path.display()))?
        }
        (None, Some(path)) => prepared.text()?.encode(&prompt::read_text(path)?)?,
        (None, None) => return Err(Failure::usage("--text FILE or --token-ids FILE is expected")),
    };
    if let Some(most) = args.max_tokens {
        ids.truncate(most as usize + 1);
    }
    let least = if args.logits.is_some() { 1 } else { 2 };
    if ids.len() < least {
        return Err(Failure::new(format!(
            "{} tokens are too few to score: at least {least} are needed",
            ids.len()
        )));
    }
    Ok(ids)
}

fn tell(json: bool, token_ids: Vec<u32>, scores: &[f64]) -> Outcome<()> {
    let tokens = scores.len() as u64;
    let mean = (tokens > 0).then(|| scores.iter().sum::<f64>() / tokens as f64);
    let perplexity = mean.map(|m| (-m).exp()).filter(|p| p.is_finite());
    if !json {
        return match perplexity {
            Some(p) => out::say(&format!("perplexity {p:.6} over {tokens} tokens\n")),
            None => out::say(&format!("no finite perplexity over {tokens} tokens\n")),
        };
    }
    let mut null_reasons = NullReasons::new();
    if perplexity.is_none() {
        let why = if tokens == 0 { "no token follows another" } else { "it is not finite" };
        null_reasons.insert("perplexity".into(), why.into());
    }
    let token_logprobs = scores.iter().map(|x| exact(*x)).collect::<Outcome<Vec<_>>>()?;
    let document = Document { perplexity, tokens, token_ids, token_logprobs, null_reasons };
    let text = serde_json::to_string_pretty(&document).map_err(Failure::new)?;
    out::say(&(text + "\n"))
}

fn exact(score: f64) -> Outcome<Exact> {
    serde_json::Number::from_f64(score).map(Exact).ok_or_else(|| {
        Failure::new("a token has no finite log-probability: the model's logits are not finite")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_probabilities_sum_to_one_and_survive_large_logits() {
        let logits = [1000.0f32, 999.0, -1000.0];
        let total: f64 = (0..3).map(|i| log_probability(&logits, i).unwrap().exp()).sum();
        assert!((total - 1.0).abs() < 1e-12, "{total}");
        let gap = log_probability(&logits, 0).unwrap() - log_probability(&logits, 1).unwrap();
        assert!((gap - 1.0).abs() < 1e-12);
        assert_eq!(log_probability(&logits, 3), None);
    }
}
