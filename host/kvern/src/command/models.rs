//! `kvern models`: what is at hand and what it is, and the ways a model gets here.

use crate::cli::ModelsCommand;
use crate::fail::Outcome;
use crate::model::{Reference, names};
use crate::out;
use crate::planner::parameters;
use kvern_model::{Model, PullEvent, PullOptions, SynthDims, SynthSpec, import_gguf, pull, synth};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Runs the command.
pub fn run(command: &ModelsCommand) -> Outcome<()> {
    match command {
        ModelsCommand::List { models_dir, json } => list(&directory(models_dir), *json),
        ModelsCommand::Inspect { model, models_dir, json } => {
            inspect(model.as_deref(), &directory(models_dir), *json)
        }
        ModelsCommand::Import { file, output } => import(file, output),
        ModelsCommand::Pull { repository } => fetch(repository),
        ModelsCommand::Synth { size, output, seed, shard_size, tokenizer_from } => {
            let dims = SynthDims::parse(size)?;
            let spec = SynthSpec { dims, seed: *seed, shard_bytes: *shard_size };
            let made = synth(&spec, output, tokenizer_from.as_deref())?;
            let size = out::size(made.bytes);
            out::note(&format!("{size} of weights in {} files", made.shards));
            out::say(&format!("{}\n", made.directory.display()))
        }
    }
}

/// Reads a GGUF file into a directory; its path goes to stdout.
fn import(file: &Path, output: &Path) -> Outcome<()> {
    let made = import_gguf(file, output)?;
    out::note(&format!("{} tensors, {} of bf16 weights", made.tensors, out::size(made.bytes)));
    out::say(&format!("{}\n", made.directory.display()))
}

/// Downloads a model; its path goes to stdout, a line a file to stderr.
fn fetch(repository: &str) -> Outcome<()> {
    let mut told = |event: PullEvent<'_>| match event {
        PullEvent::Found { revision, files, bytes } => {
            out::note(&format!("{repository} at {revision}: {files} files, {}", out::size(bytes)));
        }
        PullEvent::Advanced { file, done, bytes } if done == bytes => {
            out::note(&format!("{file}: {}", out::size(bytes)));
        }
        PullEvent::Advanced { .. } => {}
        PullEvent::Resuming { file, done } => {
            out::note(&format!("{file}: the connection broke; going on from {}", out::size(done)));
        }
    };
    let directory = pull(repository, &PullOptions::from_env()?, &mut told)?;
    out::say(&format!("{}\n", directory.display()))
}

fn directory(given: &Option<PathBuf>) -> PathBuf {
    given.clone().unwrap_or_else(|| "models".into())
}

fn list(models_dir: &Path, json: bool) -> Outcome<()> {
    let mut rows = Vec::new();
    let mut text = String::new();
    for name in names(models_dir) {
        let opened = Reference::resolve(Some(&name), models_dir).and_then(|r| r.open());
        match &opened {
            Ok(model) => {
                let config = model.config();
                let size = out::size(weight_bytes(model));
                text += &format!("{name:32} {:24} {size}\n", config.architecture);
            }
            Err(fault) => text += &format!("{name:32} cannot be used: {}\n", fault.message),
        }
        rows.push(json!({
            "name": name,
            "architecture": opened.as_ref().ok().map(|m| &m.config().architecture),
            "weight_bytes": opened.as_ref().ok().map(weight_bytes),
            "path": opened.as_ref().ok().and_then(Model::directory),
            "fault": opened.as_ref().err().map(|f| &f.message),
        }));
    }
    if json { out::document(&json!({"models": rows})) } else { out::say(&text) }
}

fn weight_bytes(model: &Model) -> u64 {
    model.tensors().iter().map(|(_, tensor)| tensor.bytes).sum()
}

fn inspect(reference: Option<&str>, models_dir: &Path, json: bool) -> Outcome<()> {
    let model = Reference::resolve(reference, models_dir)?.open()?;
    let config = model.config();
    let text = model.text();
    let facts: Vec<(&str, Value)> = vec![
        ("name", json!(model.name())),
        ("path", json!(model.directory())),
        ("architecture", json!(config.architecture)),
        ("parameters", json!(parameters(&config.raw))),
        ("weight_bytes", json!(weight_bytes(&model))),
        ("tensors", json!(model.tensors().len())),
        ("layers", json!(config.layers)),
        ("hidden_size", json!(config.hidden_size)),
        ("intermediate_size", json!(config.intermediate_size)),
        ("heads", json!(config.heads)),
        ("kv_heads", json!(config.kv_heads)),
        ("head_dim", json!(config.head_dim)),
        ("vocabulary", json!(config.vocab_size)),
        ("context_tokens", json!(config.max_position_embeddings)),
        ("tied_embeddings", json!(config.tie_word_embeddings)),
        ("tokenizer", json!(text.as_ref().map_or_else(ToString::to_string, |_| "ready".into()))),
        ("chat_template", json!(text.as_ref().is_ok_and(|t| t.has_template()))),
        ("end_of_sequence", json!(model.generation().eos)),
        ("digest", json!(model.digest().to_string())),
    ];
    if json {
        let map: serde_json::Map<String, Value> =
            facts.into_iter().map(|(key, value)| (key.into(), value)).collect();
        return out::document(&map);
    }
    let show = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".into(),
        other => other.to_string(),
    };
    out::say(&facts.iter().map(|(k, v)| format!("{k:18} {}\n", show(v))).collect::<String>())
}
