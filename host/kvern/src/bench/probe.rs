//! `kvern bench probe`: one lane in this process.

use super::{NO_GENERIC, history};
use crate::cli::{ModelArgs, ProbeArgs, ProbeMode};
use crate::command::read_text;
use crate::fail::{Failure, Outcome};
use crate::out;
use crate::runtime::{Ask, Prepared, Room, Runtime};
use crate::settings::Settings;
use clap::ValueEnum;
use kvern_engine::Finish;
use kvern_model::{Message, Sampler, Sampling, Text};
use kvern_report::{ColdProbe, Request, WarmProbe};
use serde::Serialize;
use std::time::{Duration, Instant};

/// The lanes' prompt, their system message, and their new tokens.
const PROMPT: &str = "Say hi.";
const SYSTEM: &str = "You are a helpful assistant.";
const NEW_TOKENS: u32 = 4;
/// What a prompt of so many tokens repeats.
const FILLER: &str =
    "The mill grinds what the river brings, and the river brings what the hills let go. ";

/// Runs the command.
pub fn run(args: &ProbeArgs) -> Outcome<()> {
    check(args)?;
    let model = ModelArgs { model: args.model.clone(), models_dir: args.models_dir.clone() };
    let settings = Settings::from_groups(&model, &args.plugins, &args.engine)?;
    let prepared = Prepared::new(settings.clone())?;
    let new_tokens = args.max_new_tokens.unwrap_or(NEW_TOKENS);
    let probe = Probe { text: source(args)?, new_tokens, ignore_eos: args.ignore_eos };
    let length = probe.ids(prepared.text()?)?.0.len() as u64;
    prepared.check_fits(length + 1, "the prompt, with room for an answer,")?;
    let mut runtime = prepared.load(Room::of(length + u64::from(new_tokens) + 1))?;
    let load_ms = runtime.load_time.as_secs_f64() * 1e3;
    let load_resources = runtime.load_resources.clone();
    match args.mode {
        ProbeMode::Cold => {
            let request = probe.once(&mut runtime)?;
            let document = ColdProbe { load_ms, load_resources, request };
            tell(args, &document)?;
            let requests = std::slice::from_ref(&document.request);
            history::record_probe(args, &settings, &runtime, load_ms, requests, &document)
        }
        _ => {
            let warmup_iterations = args.warmup_iterations.unwrap_or(0);
            for _ in 0..warmup_iterations {
                probe.once(&mut runtime)?;
            }
            let iterations = args.iterations.unwrap_or(1);
            let measured_iterations =
                (0..iterations).map(|_| probe.once(&mut runtime)).collect::<Outcome<Vec<_>>>()?;
            let document = WarmProbe {
                runtime_load_ms: load_ms,
                runtime_load_resources: load_resources,
                warmup_iterations,
                measured_iterations,
            };
            tell(args, &document)?;
            let requests = &document.measured_iterations;
            history::record_probe(args, &settings, &runtime, load_ms, requests, &document)
        }
    }
}

/// Refuses what cannot be measured, before anything runs.
fn check(args: &ProbeArgs) -> Outcome<()> {
    match args.backend.as_str() {
        "optimized-native" => {}
        "generic" | "transformers-generic" => {
            return Err(Failure::new(format!("--backend {}: {NO_GENERIC}", args.backend)));
        }
        other => {
            return Err(Failure::usage(format!(
                "--backend {other}: no such backend; known: optimized-native, generic"
            )));
        }
    }
    if !matches!(args.mode, ProbeMode::Cold | ProbeMode::Warm) {
        let name = args.mode.to_possible_value().map_or(String::new(), |v| v.get_name().into());
        return Err(Failure::usage(format!("--mode {name}: not here yet; known: cold, warm")));
    }
    if args.mode == ProbeMode::Cold {
        for (flag, given) in [
            ("--iterations", args.iterations.is_some()),
            ("--warmup-iterations", args.warmup_iterations.is_some()),
        ] {
            if given {
                out::note(&format!("kvern: warning: {flag} is not read by the cold mode"));
            }
        }
    }
    Ok(())
}

fn tell(args: &ProbeArgs, document: &impl Serialize) -> Outcome<()> {
    let text = kvern_report::pretty(document).map_err(Failure::new)? + "\n";
    let told = out::say(&text);
    if let Some(path) = &args.compare.output {
        out::publish(path, text.as_bytes())?;
    }
    told
}

/// What is asked again and again.
struct Probe {
    text: Source,
    new_tokens: u32,
    ignore_eos: bool,
}

enum Source {
    Prompt(String),
    Tokens(u32),
}

fn source(args: &ProbeArgs) -> Outcome<Source> {
    Ok(match (args.prompt_tokens, &args.prompt_file, &args.prompt) {
        (Some(tokens), _, _) => Source::Tokens(tokens),
        (None, Some(path), _) => Source::Prompt(read_text(path)?),
        (None, None, prompt) => Source::Prompt(prompt.as_deref().unwrap_or(PROMPT).into()),
    })
}

impl Probe {
    /// The prompt's ids, and the time that rendering and tokenising took.
    fn ids(&self, text: &Text) -> Outcome<(Vec<u32>, Duration)> {
        let began = Instant::now();
        let ids = match &self.text {
            Source::Tokens(tokens) => exactly(text, *tokens as usize)?,
            Source::Prompt(prompt) if text.has_template() => {
                let messages = [Message::new("system", SYSTEM), Message::new("user", prompt)];
                text.chat(&messages, true)?
            }
            Source::Prompt(prompt) => text.encode(prompt)?,
        };
        if ids.is_empty() {
            return Err(Failure::new("the prompt holds no token; give at least a word"));
        }
        Ok((ids, began.elapsed()))
    }

    /// One request from an empty history.
    fn once(&self, runtime: &mut Runtime) -> Outcome<Request> {
        let model = std::sync::Arc::clone(&runtime.model);
        let (ids, prepared) = self.ids(model.text()?)?;
        let session = runtime.engine.begin()?;
        let ask = Ask {
            ids: &ids,
            prepared,
            max_new_tokens: self.new_tokens,
            sampler: Sampler::new(Sampling::greedy())?,
            ignore_eos: self.ignore_eos,
            stop: &[],
        };
        let answer = runtime.ask(session, ask, &mut |_| Ok(()))?;
        runtime.engine.end(session)?;
        if answer.outcome.finish == Finish::Interrupted {
            return Err(Failure::interrupted());
        }
        Ok(answer.metrics)
    }
}

/// A prompt of exactly so many tokens: as much of a repeated sentence as it takes. Repeated, it may
/// take fewer tokens than as often alone.
fn exactly(text: &Text, tokens: usize) -> Outcome<Vec<u32>> {
    let mut times = tokens / text.encode(FILLER)?.len().max(1) + 2;
    let mut ids = text.encode(&FILLER.repeat(times))?;
    while ids.len() < tokens {
        times *= 2;
        let more = text.encode(&FILLER.repeat(times))?;
        if more.len() <= ids.len() {
            return Err(Failure::new(format!(
                "a prompt of {tokens} tokens cannot be made with this tokenizer"
            )));
        }
        ids = more;
    }
    ids.truncate(tokens);
    Ok(ids)
}
