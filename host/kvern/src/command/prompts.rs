//! `kvern generate --prompts`: many prompts in one batch. A JSON line of the file is a prompt, and
//! a JSON line on stdout is its answer or its error, as soon as it is there, in any order.

use super::prompt;
use crate::cli::{GenerateArgs, SamplingArgs};
use crate::fail::{Failure, Outcome, While, one_line};
use crate::metrics::{finish_word, ms};
use crate::runtime::{Prepared, Room};
use crate::settings::Settings;
use crate::watching::Watching;
use crate::{interrupt, log, out};
use kvern_engine::Request;
use kvern_model::{GenerationConfig, Message};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::Path;
use std::time::Instant;

/// Prompts that run at once where no other number was asked for: more than this a small machine
/// computes no faster.
const BATCH: u32 = 32;

/// A line of the file. What it does not say, the flags say.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    /// A string or a number; none: the line's number.
    id: Option<Value>,
    prompt: String,
    max_new_tokens: Option<u32>,
    seed: Option<u64>,
    stop: Option<Vec<String>>,
}

/// A prompt that can be run, as tokens.
struct Asked {
    id: Value,
    ids: Vec<u32>,
    max_new_tokens: u32,
    sampling: SamplingArgs,
}

/// An answer, as it is written.
#[derive(Serialize)]
struct Answer<'a> {
    id: &'a Value,
    text: &'a str,
    token_ids: &'a [u32],
    finish_reason: &'static str,
    prompt_tokens: u64,
    output_tokens: usize,
    /// From the start of the batch, waiting for a place in it included; null if no token came.
    time_to_first_token_ms: Option<f64>,
    total_ms: f64,
}

/// Runs the command.
pub fn run(args: &GenerateArgs, file: &Path) -> Outcome<()> {
    let bytes = prompt::read_bytes(file)?;
    interrupt::catch()?;
    let watching = Watching::begin(&args.watch)?;
    let settings = Settings::of(&args.run)?.speculating(&args.speculate, &args.run.plugins)?;
    let prepared = Prepared::new(settings)?.watched(watching);
    let generation = prepared.model.generation().clone();
    let mut failed = 0;
    let mut asked = Vec::new();
    for (id, parsed) in lines(&bytes) {
        let one = parsed.and_then(|line| encode(&prepared, args, &generation, id.clone(), line));
        match one {
            Ok(one) => asked.push(one),
            Err(failure) => {
                failed += 1;
                write(&json!({"id": id, "error": failure.message}))?;
            }
        }
    }
    let all = asked.len() + failed;
    if all == 0 {
        return Err(Failure::new(format!(
            "{} holds no prompt; give a line as {{\"id\": 1, \"prompt\": \"...\"}} for each",
            file.display()
        )));
    }
    if !asked.is_empty() {
        failed += answer(prepared, args, &generation, &asked)?;
    }
    match failed {
        _ if interrupt::asked() => Err(Failure::interrupted()),
        0 => Ok(()),
        _ => Err(Failure::new(format!(
            "{failed} of {all} prompts have no answer: the `error` of their lines says why"
        ))),
    }
}

/// Every line that is not blank: its id, and its prompt or what is wrong with it.
fn lines(bytes: &[u8]) -> Vec<(Value, Outcome<Line>)> {
    let mut seen: HashMap<String, usize> = HashMap::new();
    let mut lines = Vec::new();
    for (index, bytes) in bytes.split(|byte| *byte == b'\n').enumerate() {
        if bytes.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let number = index + 1;
        let bad = |text: String| Failure::new(format!("line {number}: {text}"));
        // An id is worth knowing even where the rest is wrong.
        let id = serde_json::from_slice::<Value>(bytes).ok().and_then(|mut v| {
            v.get_mut("id").map(Value::take).filter(|id| id.is_string() || id.is_number())
        });
        let parsed = match serde_json::from_slice::<Line>(bytes) {
            Err(error) => Err(bad(format!(
                "{}; a line as {{\"id\": 1, \"prompt\": \"...\"}} is expected",
                one_line(&error.to_string())
            ))),
            Ok(line) if line.id.is_some() && id.is_none() => {
                Err(bad("an id is a string or a number".into()))
            }
            Ok(line) => Ok(line),
        };
        let id = match (id, &parsed) {
            (Some(id), _) => id,
            (None, Ok(_)) => json!(number),
            (None, Err(_)) => Value::Null,
        };
        let parsed = parsed.and_then(|line| match seen.insert(id.to_string(), number) {
            Some(first) => Err(bad(format!("id {id} stands in line {first} too; give it another"))),
            None => Ok(line),
        });
        lines.push((id, parsed));
    }
    lines
}

fn encode(
    prepared: &Prepared,
    args: &GenerateArgs,
    generation: &GenerationConfig,
    id: Value,
    line: Line,
) -> Outcome<Asked> {
    let text = prepared.text()?;
    let ids = match args.chat {
        true => text.chat(&[Message::new("user", &line.prompt)], true)?,
        false => text.encode(&line.prompt)?,
    };
    if ids.is_empty() {
        return Err(Failure::new("the prompt holds no token; give at least a word"));
    }
    prepared.check_fits(ids.len() as u64 + 1, "the prompt, with room for an answer,")?;
    let mut sampling = args.sampling.clone();
    sampling.max_new_tokens = line.max_new_tokens.or(sampling.max_new_tokens);
    sampling.seed = line.seed.or(sampling.seed);
    sampling.stop = line.stop.unwrap_or(sampling.stop);
    if sampling.max_new_tokens == Some(0) {
        return Err(Failure::new("max_new_tokens is 0; at least 1 is expected"));
    }
    let max_new_tokens = prompt::max_new_tokens(&sampling, generation);
    Ok(Asked { id, ids, max_new_tokens, sampling })
}

/// Runs them, and writes each as it ends; answers how many have failed.
fn answer(
    prepared: Prepared,
    args: &GenerateArgs,
    generation: &GenerationConfig,
    asked: &[Asked],
) -> Outcome<usize> {
    let most = args.prompt.batch.unwrap_or(BATCH).min(asked.len() as u32);
    // One more than an answer needs, so that a full answer does not end for want of context.
    let tokens = |one: &Asked| one.ids.len() as u64 + u64::from(one.max_new_tokens) + 1;
    let requests = asked.iter().map(|one| {
        Ok(Request {
            prompt: &one.ids,
            max_new_tokens: one.max_new_tokens,
            sampler: prompt::sampler(&one.sampling, generation)?,
            ignore_eos: one.sampling.ignore_eos,
            stop: &one.sampling.stop,
        })
    });
    let requests: Vec<Request<'_>> = requests.collect::<Outcome<_>>()?;
    let room = Room { tokens: asked.iter().map(tokens).max(), sessions: most };
    let mut runtime = prepared.load(room)?;
    let (began, sweeps) = (Instant::now(), runtime.engine.facts().stream.sweeps);
    let (mut tokens, mut failed) = (0, 0);
    runtime.ask_all(requests, most as usize, &mut |which, ended| {
        let id = &asked[which].id;
        match ended {
            Err(error) => {
                failed += 1;
                write(&json!({"id": id, "error": Failure::from(error).message}))
            }
            Ok(outcome) => {
                tokens += outcome.token_ids.len();
                write(&Answer {
                    id,
                    text: &outcome.text,
                    token_ids: &outcome.token_ids,
                    finish_reason: finish_word(outcome.finish),
                    prompt_tokens: outcome.prompt_tokens,
                    output_tokens: outcome.token_ids.len(),
                    time_to_first_token_ms: outcome.first_token.map(ms),
                    total_ms: ms(outcome.total),
                })
            }
        }
    })?;
    let (took, sweeps) = (began.elapsed(), runtime.engine.facts().stream.sweeps - sweeps);
    log::line(
        3,
        &format!(
            "{} prompts, {tokens} new tokens in {:.3} s and {sweeps} sweeps, at most {most} \
             prompts at once",
            asked.len(),
            took.as_secs_f64()
        ),
    );
    Ok(failed)
}

/// Writes a line of JSON.
fn write(value: &impl Serialize) -> Outcome<()> {
    let line = serde_json::to_string(value).during("a line of JSON")?;
    out::say(&(line + "\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(text: &str) -> Vec<(Value, Result<String, String>)> {
        let one = |(id, line): (Value, Outcome<Line>)| {
            (id, line.map(|l| l.prompt).map_err(|f| f.message))
        };
        lines(text.as_bytes()).into_iter().map(one).collect()
    }

    #[test]
    fn a_line_is_a_prompt_and_blank_lines_are_none() {
        let lines = told("{\"id\": \"a\", \"prompt\": \"x\"}\n\n  \r\n{\"prompt\": \"y\"}");
        assert_eq!(lines, [(json!("a"), Ok("x".into())), (json!(4), Ok("y".into()))]);
        assert_eq!(told(""), []);
    }

    #[test]
    fn a_broken_line_says_which_it_is_and_keeps_its_id() {
        let lines = told(
            "{\"id\": 1, \"prompt\": \"x\"}\n{\"id\": 2, \"promt\": \"x\"}\nnonsense\n\
             {\"id\": [3], \"prompt\": \"x\"}\n{\"id\": 1, \"prompt\": \"z\"}",
        );
        let error = |i: usize| lines[i].1.clone().unwrap_err();
        assert!(lines[0].1.is_ok());
        assert!(lines[1].0 == json!(2) && error(1).contains("line 2: unknown field `promt`"));
        assert!(lines[2].0 == Value::Null && error(2).starts_with("line 3: "), "{}", error(2));
        assert!(lines[3].0 == Value::Null && error(3).contains("a string or a number"));
        assert!(lines[4].0 == json!(1) && error(4).contains("stands in line 1 too"));
    }

    #[test]
    fn bytes_that_are_no_text_are_the_lines_own_fault() {
        let lines = lines(b"{\"prompt\": \"\xff\"}\n{\"prompt\": \"x\"}");
        assert!(lines[0].1.is_err() && lines[1].1.is_ok());
    }
}
