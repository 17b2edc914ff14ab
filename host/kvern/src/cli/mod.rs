//! The command line: what can be asked, in the words of the help text.

mod bench;
mod groups;
mod size;
mod speculate;
mod watch;

pub use bench::{BenchArgs, BenchCommand, CompareFlags, ProbeArgs, ProbeMode};
pub use groups::{
    Compute, EngineArgs, IoPath, KvDtype, ModelArgs, PluginArgs, PromptArgs, ReadPath, RunArgs,
    SamplingArgs,
};
pub use size::parse_size;
pub use speculate::{Guesser, SpeculateArgs, parse_guesser};
pub use watch::WatchArgs;

use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

/// Runs language models that do not fit in memory, exactly, and measures how.
#[derive(Parser, Debug)]
#[command(name = "kvern", version, propagate_version = true, disable_help_subcommand = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Says more on stderr: -v what was chosen, -vv everything.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

/// The commands.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Continues a prompt; the text streams to stdout.
    Generate(Box<GenerateArgs>),
    /// Talks: a line of stdin is a turn, the answer streams to stdout.
    Chat(Box<ChatArgs>),
    /// Scores a text: perplexity, log-probabilities, logits.
    Perplexity(Box<PerplexityArgs>),
    /// Measures: cold start and warm runtime, a process each; JSON on stdout.
    Bench(Box<BenchArgs>),
    /// Lists, inspects, imports, downloads and makes models.
    #[command(subcommand)]
    Models(ModelsCommand),
    /// Lists and inspects plugins, and writes their manifests.
    #[command(subcommand)]
    Plugins(PluginsCommand),
    /// Says what a run would keep, stream and read, and how long it would take; reads no weights.
    Plan(Box<PlanArgs>),
    /// Says what this machine can do, and what would be used and why.
    Doctor(Box<DoctorArgs>),
    /// Writes a completion script to stdout.
    Completions {
        /// For which shell.
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Writes the manual pages.
    #[command(hide = true)]
    Man {
        /// Directory for the pages; created.
        #[arg(long, value_name = "DIR")]
        output: PathBuf,
    },
}

/// `generate`.
#[derive(Args, Debug)]
pub struct GenerateArgs {
    /// What to continue.
    #[command(flatten)]
    pub prompt: PromptArgs,
    /// Puts the prompt through the model's chat template.
    #[arg(long)]
    pub chat: bool,
    /// How tokens are chosen.
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// Who guesses ahead.
    #[command(flatten)]
    pub speculate: SpeculateArgs,
    /// What runs it.
    #[command(flatten)]
    pub run: RunArgs,
    /// What is told of it meanwhile.
    #[command(flatten)]
    pub watch: WatchArgs,
    /// Writes one JSON document with text, token ids and metrics instead of the text.
    #[arg(long)]
    pub json: bool,
}

/// `chat`.
#[derive(Args, Debug)]
pub struct ChatArgs {
    /// First message of the conversation, instead of the template's own.
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// How tokens are chosen.
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// Who guesses ahead.
    #[command(flatten)]
    pub speculate: SpeculateArgs,
    /// What runs it.
    #[command(flatten)]
    pub run: RunArgs,
    /// What is told of it meanwhile.
    #[command(flatten)]
    pub watch: WatchArgs,
}

/// `perplexity`.
#[derive(Args, Debug)]
pub struct PerplexityArgs {
    /// Text to score.
    #[arg(long, value_name = "FILE", required_unless_present = "token_ids")]
    pub text: Option<PathBuf>,
    /// A JSON list of token ids to score instead of a text.
    #[arg(long, value_name = "FILE", conflicts_with = "text")]
    pub token_ids: Option<PathBuf>,
    /// Scores at most this many tokens; the one before them is read besides.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_tokens: Option<u32>,
    /// Writes every row of logits, f32 [ids, vocabulary], as `logits` of a safetensors file.
    #[arg(long, value_name = "FILE")]
    pub logits: Option<PathBuf>,
    /// What runs it.
    #[command(flatten)]
    pub run: RunArgs,
    /// What is told of it meanwhile.
    #[command(flatten)]
    pub watch: WatchArgs,
    /// Writes one JSON document with every token's log-probability.
    #[arg(long)]
    pub json: bool,
}

/// `models`.
#[derive(Subcommand, Debug)]
pub enum ModelsCommand {
    /// Lists the models at hand.
    List {
        /// Directory with models.
        #[arg(long, value_name = "DIR", env = "KVERN_MODELS_DIR", hide_env_values = true)]
        models_dir: Option<PathBuf>,
        /// Writes a JSON document.
        #[arg(long)]
        json: bool,
    },
    /// Says what a model is.
    Inspect {
        /// A directory, a name in the models directory, or nothing for the embedded model.
        model: Option<String>,
        /// Directory with models.
        #[arg(long, value_name = "DIR", env = "KVERN_MODELS_DIR", hide_env_values = true)]
        models_dir: Option<PathBuf>,
        /// Writes a JSON document.
        #[arg(long)]
        json: bool,
    },
    /// Reads a GGUF file into a model directory, dequantised to bf16.
    Import {
        /// The GGUF file.
        file: PathBuf,
        /// Directory for the model; must not exist, or be empty.
        #[arg(long, value_name = "DIR")]
        output: PathBuf,
    },
    /// Downloads a model from the hub into its cache; goes on where it stopped.
    Pull {
        /// As `owner/name`, or `owner/name@revision`.
        repository: String,
    },
    /// Makes a model of true shape and random weights.
    Synth {
        /// Named shape, or seven sizes; an unknown one lists what is known.
        size: String,
        /// Directory for the model; must not exist, or be empty.
        #[arg(long, value_name = "DIR")]
        output: PathBuf,
        /// Seed of the weights.
        #[arg(long, value_name = "N", default_value_t = 0)]
        seed: u64,
        /// Most bytes of tensors in a file.
        #[arg(long, value_name = "SIZE", default_value = "2GiB", value_parser = parse_size)]
        shard_size: u64,
        /// A model's directory whose tokenizer and vocabulary are taken.
        #[arg(long, value_name = "DIR")]
        tokenizer_from: Option<PathBuf>,
    },
}

/// `plugins`.
#[derive(Subcommand, Debug)]
pub enum PluginsCommand {
    /// Lists the plugins that are found, with what is wrong with them.
    List {
        /// Directory with manifests; searched first.
        #[arg(long, value_name = "DIR")]
        manifests: Vec<PathBuf>,
        /// Writes a JSON document.
        #[arg(long)]
        json: bool,
    },
    /// Opens a plugin and says what it is.
    Inspect {
        /// A name, `kind/name`, or the path of a library.
        plugin: String,
        /// Directory with manifests; searched first.
        #[arg(long, value_name = "DIR")]
        manifests: Vec<PathBuf>,
        /// Writes a JSON document.
        #[arg(long)]
        json: bool,
    },
    /// Writes a crate with a plugin to start from; it builds, passes and can be verified as it is.
    New {
        /// What it decides.
        #[arg(value_parser = ["kv", "offload", "device"])]
        kind: String,
        /// Its name, as `my-idea`.
        name: String,
        /// The crate's directory; made.
        #[arg(long, value_name = "DIR")]
        output: PathBuf,
        /// Kvern's sources, which the crate is built with [default: those of this installation].
        #[arg(long, value_name = "DIR")]
        source: Option<PathBuf>,
    },
    /// Tries every promise of the contract on a plugin, and writes the verdict beside its library.
    Verify(VerifyArgs),
    /// Writes a library's manifest to stdout, or into a directory.
    Manifest {
        /// The library.
        library: PathBuf,
        /// Directory with `kv`, `offload` and `device`; the manifest is written into the right one.
        #[arg(long, value_name = "DIR")]
        output: Option<PathBuf>,
        /// Pins the library by its SHA-256.
        #[arg(long)]
        pin: bool,
    },
}

/// `plugins verify`.
#[derive(Args, Debug)]
pub struct VerifyArgs {
    /// A name, `kind/name`, or the path of a library.
    pub plugin: std::ffi::OsString,
    /// Directory with manifests; searched first.
    #[arg(long, value_name = "DIR")]
    pub manifests: Vec<PathBuf>,
    /// Runs this case alone; may be given again. No verdict is kept.
    #[arg(long, value_name = "NAME")]
    pub case: Vec<String>,
    /// Chooses the random traces: the same number, the same traces.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Random traces are this many times as many.
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub effort: u32,
    /// A case that has not ended by then is broken, and its call is named [default: 60 times N of
    /// --effort].
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub case_deadline: Option<u64>,
    /// Where the verdict is kept [default: LIBRARY.verdict.json, where `require_verdict` looks].
    #[arg(long, value_name = "FILE")]
    pub card: Option<PathBuf>,
    /// Writes the verdict as a JSON document.
    #[arg(long)]
    pub json: bool,
    /// Runs cases in this process, for the process that judges.
    #[arg(long, hide = true, value_name = "FIRST", requires = "word")]
    pub lane: Option<usize>,
    /// Begins each of that process's lines.
    #[arg(long, hide = true, value_name = "WORD")]
    pub word: Option<String>,
}

/// `plan`.
#[derive(Args, Debug)]
pub struct PlanArgs {
    /// What would run.
    #[command(flatten)]
    pub run: RunArgs,
    /// Sequences that run at once, a row each in a sweep [default: 1].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub rows: Option<u32>,
    /// Writes a JSON document.
    #[arg(long)]
    pub json: bool,
}

/// `doctor`.
#[derive(Args, Debug)]
pub struct DoctorArgs {
    /// What would run.
    #[command(flatten)]
    pub run: RunArgs,
    /// Measures drive, memory and device, for less than a minute, and keeps the figures for runs.
    #[arg(long)]
    pub probe: bool,
    /// Writes a JSON document.
    #[arg(long)]
    pub json: bool,
}
