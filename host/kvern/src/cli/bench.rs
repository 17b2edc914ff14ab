//! `bench` and `bench probe`.

use super::groups::{EngineArgs, PluginArgs};
use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Subcommand, ValueEnum};
use std::path::PathBuf;

/// `bench`.
#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub struct BenchArgs {
    /// One lane instead of the report.
    #[command(subcommand)]
    pub command: Option<BenchCommand>,
    /// How much is measured: quick.
    #[arg(long, value_name = "NAME", default_value = "quick")]
    pub profile: String,
    /// A directory, a name in the models directory, or `tiny-austen`, the embedded model (default).
    #[arg(long, value_name = "MODEL", env = "KVERN_MODEL", hide_env_values = true)]
    pub model_reference: Option<String>,
    /// Where names are looked up [default: models].
    #[arg(long, value_name = "DIR", env = "KVERN_MODELS_DIR", hide_env_values = true)]
    pub models_dir: Option<PathBuf>,
    /// Measured iterations of a lane [default: 1].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub iterations: Option<u32>,
    /// Iterations thrown away before them [default: 0].
    #[arg(long, value_name = "N")]
    pub warmup_iterations: Option<u32>,
    /// Which plugins.
    #[command(flatten)]
    pub plugins: PluginArgs,
    /// How the engine runs.
    #[command(flatten)]
    pub engine: EngineArgs,
    /// Where the report and the record go.
    #[command(flatten)]
    pub compare: CompareFlags,
}

/// Where a report and its record go.
#[derive(Args, Debug, Default, Clone)]
#[command(next_help_heading = "Report")]
pub struct CompareFlags {
    /// Writes the same bytes as stdout to a file too; parents are created.
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Directory of the ledger [default: .kvern/benchmark-history].
    #[arg(long, value_name = "DIR", env = "KVERN_BENCHMARK__HISTORY_DIR", hide_env_values = true)]
    pub history_dir: Option<PathBuf>,
    /// Label of the codebase in the ledger, instead of the origin remote's.
    #[arg(long, value_name = "LABEL", value_parser = NonEmptyStringValueParser::new())]
    pub history_codebase_label: Option<String>,
    /// Leaves the ledger alone.
    #[arg(long)]
    pub no_record_history: bool,
}

/// Commands under `bench`.
#[derive(Subcommand, Debug)]
pub enum BenchCommand {
    /// Runs one lane in this process, and writes its JSON to stdout.
    Probe(Box<ProbeArgs>),
}

/// What a probe measures.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum ProbeMode {
    /// One load and one request.
    Cold,
    /// One load, then requests.
    Warm,
    /// Requests of growing prompts.
    PromptScaling,
    /// Requests of growing answers.
    OutputScaling,
    /// Turns of one session.
    SessionGrowth,
    /// Turns of one session, the runtime loaded anew for each.
    ReopenSessionGrowth,
}

/// `bench probe`.
#[derive(Args, Debug)]
pub struct ProbeArgs {
    /// What is measured.
    #[arg(long, value_enum, value_name = "MODE", default_value = "cold")]
    pub mode: ProbeMode,
    /// A directory, a name in the models directory, or `tiny-austen`, the embedded model.
    #[arg(long, value_name = "MODEL", env = "KVERN_MODEL", hide_env_values = true)]
    pub model: Option<String>,
    /// Where names are looked up [default: models].
    #[arg(long, value_name = "DIR", env = "KVERN_MODELS_DIR", hide_env_values = true)]
    pub models_dir: Option<PathBuf>,
    /// What runs the model: optimized-native.
    #[arg(long, value_name = "NAME", default_value = "optimized-native")]
    pub backend: String,
    /// The prompt [default: Say hi.].
    #[arg(long, value_name = "TEXT")]
    pub prompt: Option<String>,
    /// A file that holds the prompt; `-` is stdin.
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    pub prompt_file: Option<PathBuf>,
    /// A prompt of exactly this many tokens.
    #[arg(long, value_name = "N", conflicts_with_all = ["prompt", "prompt_file"],
          value_parser = clap::value_parser!(u32).range(1..))]
    pub prompt_tokens: Option<u32>,
    /// New tokens of a request [default: 4].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_new_tokens: Option<u32>,
    /// Goes on past an end-of-sequence token.
    #[arg(long)]
    pub ignore_eos: bool,
    /// Measured requests of the warm lane [default: 1].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub iterations: Option<u32>,
    /// Requests thrown away before them [default: 0].
    #[arg(long, value_name = "N")]
    pub warmup_iterations: Option<u32>,
    /// Which plugins.
    #[command(flatten)]
    pub plugins: PluginArgs,
    /// How the engine runs.
    #[command(flatten)]
    pub engine: EngineArgs,
    /// Where the report and the record go.
    #[command(flatten)]
    pub compare: CompareFlags,
}
