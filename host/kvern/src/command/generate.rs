//! `kvern generate`: a prompt, continued; or many, by [`prompts`].

use super::{prompt, prompts};
use crate::cli::GenerateArgs;
use crate::fail::{Failure, Outcome};
use crate::runtime::{Answer, Ask, Prepared, Room};
use crate::settings::Settings;
use crate::watching::Watching;
use crate::{interrupt, out};
use kvern_engine::Finish;
use kvern_model::{Message, Text};
use serde::Serialize;
use std::time::{Duration, Instant};

#[derive(Serialize)]
struct Document<'a> {
    token_ids: &'a [u32],
    text: &'a str,
    metrics: &'a kvern_report::Request,
}

/// Runs the command.
pub fn run(args: &GenerateArgs) -> Outcome<()> {
    if let Some(file) = &args.prompt.prompts {
        return prompts::run(args, file);
    }
    let prompt = prompt::read(&args.prompt)?;
    interrupt::catch()?;
    let watching = Watching::begin(&args.watch)?;
    let settings = Settings::of(&args.run)?.speculating(&args.speculate, &args.run.plugins)?;
    let prepared = Prepared::new(settings)?.watched(watching);
    let (ids, took) = encode(prepared.text()?, &prompt, args.chat)?;
    prepared.check_fits(ids.len() as u64 + 1, "the prompt, with room for an answer,")?;
    let generation = prepared.model.generation().clone();
    let sampler = prompt::sampler(&args.sampling, &generation)?;
    let max_new_tokens = prompt::max_new_tokens(&args.sampling, &generation);
    // One more than the answer needs, so that a full answer does not end for want of context.
    let tokens = ids.len() as u64 + u64::from(max_new_tokens) + 1;
    let mut runtime = prepared.load(Room::of(tokens))?;
    let session = runtime.engine.begin()?;
    let ask = Ask {
        ids: &ids,
        prepared: took,
        max_new_tokens,
        sampler,
        ignore_eos: args.sampling.ignore_eos,
        stop: &args.sampling.stop,
    };
    let mut stream = |piece: &str| if args.json { Ok(()) } else { out::say(piece) };
    let answer = runtime.ask(session, ask, &mut stream)?;
    runtime.engine.end(session)?;
    finish(args.json, &answer)
}

/// Ids of a prompt, through the chat template where asked; and how long that took.
fn encode(text: &Text, prompt: &str, chat: bool) -> Outcome<(Vec<u32>, Duration)> {
    let began = Instant::now();
    let ids =
        if chat { text.chat(&[Message::new("user", prompt)], true)? } else { text.encode(prompt)? };
    if ids.is_empty() {
        return Err(Failure::new("the prompt holds no token; give at least a word"));
    }
    Ok((ids, began.elapsed()))
}

fn finish(json: bool, answer: &Answer) -> Outcome<()> {
    let outcome = &answer.outcome;
    if json {
        out::document(&Document {
            token_ids: &outcome.token_ids,
            text: &outcome.text,
            metrics: &answer.metrics,
        })?;
    } else if !outcome.text.ends_with('\n') {
        out::say("\n")?;
    }
    if outcome.finish == Finish::Interrupted || interrupt::asked() {
        return Err(Failure::interrupted());
    }
    Ok(())
}
