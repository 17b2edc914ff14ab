//! Flags that several commands share. A flag that is not given comes from the environment, then
//! from the profile manifest, then from `kvern.toml`, then from a default: so nothing here has a
//! default of its own.

use super::size::parse_size;
use clap::{Args, ValueEnum};
use kvern_contract::{ComputeDtype, KvEncoding};
use std::path::PathBuf;

/// What runs, where and with how much.
#[derive(Args, Debug, Default)]
pub struct RunArgs {
    /// Which model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Which plugins.
    #[command(flatten)]
    pub plugins: PluginArgs,
    /// How the engine runs.
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// Which model.
#[derive(Args, Debug, Default, Clone)]
pub struct ModelArgs {
    /// A directory, a name in the models directory, or `tiny-austen`, the embedded model (default).
    #[arg(long, value_name = "MODEL", env = "KVERN_MODEL", hide_env_values = true)]
    pub model: Option<String>,
    /// Where names are looked up [default: models].
    #[arg(long, value_name = "DIR", env = "KVERN_MODELS_DIR", hide_env_values = true)]
    pub models_dir: Option<PathBuf>,
}

/// Which plugins, with which options.
#[derive(Args, Debug, Default, Clone)]
#[command(next_help_heading = "Plugins")]
pub struct PluginArgs {
    /// Directory with manifests; searched first. KVERN_MANIFESTS lists more, with `:` between.
    #[arg(long, value_name = "DIR")]
    pub manifests: Vec<PathBuf>,
    /// A profile: plugins with options, budgets and directories. Flags override it.
    #[arg(long, value_name = "FILE", env = "KVERN_PROFILE_MANIFEST", hide_env_values = true)]
    pub profile_manifest: Option<PathBuf>,
    /// KV strategy by name; unset, the selector chooses.
    #[arg(long, value_name = "NAME", env = "KVERN_KV_CACHE_STRATEGY", hide_env_values = true)]
    pub kv_cache_strategy: Option<String>,
    /// KV strategy from a library without a manifest.
    #[arg(long, value_name = "LIBRARY", conflicts_with = "kv_cache_strategy")]
    pub kv: Option<PathBuf>,
    /// Option of the KV strategy.
    #[arg(long, value_name = "KEY=VALUE")]
    pub kv_option: Vec<String>,
    /// What the selector favours: balanced, latency, capacity, bounded-window.
    #[arg(
        long,
        value_name = "NAME",
        env = "KVERN_STRATEGY_SELECTOR_PROFILE",
        hide_env_values = true
    )]
    pub strategy_selector_profile: Option<String>,
    /// Tokens that a windowed strategy keeps.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub kv_cache_window_tokens: Option<u32>,
    /// Device plugin by name or library, with an ordinal where it has several.
    #[arg(long, value_name = "PLUGIN[:ORDINAL]", env = "KVERN_DEVICE", hide_env_values = true)]
    pub device: Option<String>,
    /// Option of the device.
    #[arg(long, value_name = "KEY=VALUE")]
    pub device_option: Vec<String>,
    /// Layers kept in host memory; unset, the budget decides.
    #[arg(long, value_name = "N", env = "KVERN_OFFLOAD_CPU_LAYERS", hide_env_values = true)]
    pub offload_cpu_layers: Option<u32>,
    /// Layers kept on an accelerator.
    #[arg(long, value_name = "N")]
    pub offload_gpu_layers: Option<u32>,
    /// Offload policy by name or library, or `auto`.
    #[arg(long, value_name = "NAME", env = "KVERN_OFFLOAD_CPU_POLICY", hide_env_values = true)]
    pub offload_cpu_policy: Option<String>,
    /// Option of the offload policy.
    #[arg(long, value_name = "KEY=VALUE")]
    pub offload_option: Vec<String>,
    /// Longest that a plugin may take to come back from a call [default: 30].
    #[arg(long, value_name = "SECONDS", env = "KVERN_PLUGIN_DEADLINE", hide_env_values = true,
          value_parser = clap::value_parser!(u32).range(1..))]
    pub plugin_deadline: Option<u32>,
}

/// How the engine runs.
#[derive(Args, Debug, Default, Clone)]
#[command(next_help_heading = "Engine")]
pub struct EngineArgs {
    /// Encoding of KV in memory: bf16, f16, f32 [default: bf16].
    #[arg(long, value_name = "DTYPE", env = "KVERN_KV_DTYPE", hide_env_values = true)]
    pub kv_dtype: Option<KvDtype>,
    /// auto, or f32: exact, row by row [default: auto].
    #[arg(long, value_name = "DTYPE", env = "KVERN_COMPUTE_DTYPE", hide_env_values = true)]
    pub compute_dtype: Option<Compute>,
    /// Most prompt tokens of a step [default: 512].
    #[arg(long, value_name = "N", env = "KVERN_PREFILL_CHUNK", hide_env_values = true,
          value_parser = clap::value_parser!(u32).range(1..))]
    pub prefill_chunk: Option<u32>,
    /// Most rows of a feed-forward block at once [default: 16384, fewer where the budget is tight].
    #[arg(long, value_name = "N", env = "KVERN_DENSE_PROJECTION_CHUNK_ROWS",
          hide_env_values = true, value_parser = clap::value_parser!(u32).range(1..))]
    pub dense_projection_chunk_rows: Option<u32>,
    /// Memory for KV, as 16MiB.
    #[arg(long, value_name = "SIZE", env = "KVERN_KV_BUDGET", hide_env_values = true,
          value_parser = parse_size)]
    pub kv_budget: Option<u64>,
    /// Memory for everything, as 2GiB [default: what a cgroup's limit leaves, if there is one].
    #[arg(long, value_name = "SIZE", env = "KVERN_MEMORY_BUDGET", hide_env_values = true,
          value_parser = parse_size)]
    pub memory_budget: Option<u64>,
    /// Where KV on disk goes.
    #[arg(long, value_name = "DIR", env = "KVERN_CACHE_DIR", hide_env_values = true)]
    pub cache_dir: Option<PathBuf>,
    /// Threads that compute [default: one a core].
    #[arg(long, value_name = "N", env = "KVERN_THREADS", hide_env_values = true,
          value_parser = clap::value_parser!(u32).range(1..))]
    pub threads: Option<u32>,
    /// Tokens that a session may hold [default: what the request needs].
    #[arg(long, value_name = "N", env = "KVERN_CONTEXT_TOKENS", hide_env_values = true,
          value_parser = clap::value_parser!(u64).range(1..))]
    pub context_tokens: Option<u64>,
    /// How weights are read: auto, direct (round the page cache), buffered [default: auto].
    #[arg(long, value_name = "PATH", env = "KVERN_READ_PATH", hide_env_values = true)]
    pub read_path: Option<ReadPath>,
    /// What reads files: auto, io_uring, pread (a pool of threads) [default: auto].
    #[arg(long, value_name = "NAME", env = "KVERN_IO", hide_env_values = true)]
    pub io: Option<IoPath>,
    /// Most bytes that are read from files in a second, as 500MB [default: no limit].
    #[arg(long, value_name = "SIZE", env = "KVERN_DRIVE_RATE", hide_env_values = true,
          value_parser = at_least_a_byte)]
    pub drive_rate: Option<u64>,
}

fn at_least_a_byte(text: &str) -> Result<u64, String> {
    parse_size(text).and_then(|bytes| match bytes {
        0 => Err("a rate of at least 1 byte a second is expected".into()),
        bytes => Ok(bytes),
    })
}

/// A prompt.
#[derive(Args, Debug, Default, Clone)]
pub struct PromptArgs {
    /// The prompt.
    #[arg(long, value_name = "TEXT", required_unless_present_any = ["prompt_file", "prompts"])]
    pub prompt: Option<String>,
    /// A file that holds the prompt; `-` is stdin.
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    pub prompt_file: Option<PathBuf>,
    /// Many prompts in one batch, a JSON line each: {"id": 1, "prompt": "..."}; `-` is stdin.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["prompt", "prompt_file", "json"])]
    pub prompts: Option<PathBuf>,
    /// Most prompts that run at once [default: all, at most 32].
    #[arg(long, value_name = "N", conflicts_with_all = ["prompt", "prompt_file"],
          value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub batch: Option<u32>,
}

/// How tokens are chosen. What is not given comes from the model's generation_config.
#[derive(Args, Debug, Default, Clone)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingArgs {
    /// Most new tokens [default: 256].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_new_tokens: Option<u32>,
    /// 0 takes the likeliest token.
    #[arg(long, value_name = "T", value_parser = at_least_zero)]
    pub temperature: Option<f32>,
    /// Only the K likeliest; 0 for all.
    #[arg(long, value_name = "K")]
    pub top_k: Option<u32>,
    /// Only the likeliest that together have this probability.
    #[arg(long, value_name = "P", value_parser = unit)]
    pub top_p: Option<f32>,
    /// Only those with this fraction of the likeliest one's probability.
    #[arg(long, value_name = "P", value_parser = unit)]
    pub min_p: Option<f32>,
    /// Divides what was said before; 1 leaves it.
    #[arg(long, value_name = "F", value_parser = positive)]
    pub repetition_penalty: Option<f32>,
    /// The same seed gives the same text [default: 0].
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// A text that ends the answer; may be repeated.
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,
    /// Goes on past an end-of-sequence token.
    #[arg(long)]
    pub ignore_eos: bool,
}

fn number(text: &str, good: impl Fn(f32) -> bool, expected: &str) -> Result<f32, String> {
    let value = text.parse::<f32>().ok().filter(|x| x.is_finite() && good(*x));
    value.ok_or_else(|| format!("{expected} is expected, not `{text}`"))
}

fn at_least_zero(text: &str) -> Result<f32, String> {
    number(text, |x| x >= 0.0, "a number of at least 0")
}

fn positive(text: &str) -> Result<f32, String> {
    number(text, |x| x > 0.0, "a number above 0")
}

fn unit(text: &str) -> Result<f32, String> {
    number(text, |x| (0.0..=1.0).contains(&x), "a number from 0 to 1")
}

/// Encodings of KV in memory.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KvDtype {
    /// Upper half of an f32.
    Bf16,
    /// Half precision.
    F16,
    /// Single precision.
    F32,
}

impl KvDtype {
    /// The contract's word.
    pub fn encoding(self) -> KvEncoding {
        match self {
            KvDtype::Bf16 => KvEncoding::Bf16,
            KvDtype::F16 => KvEncoding::F16,
            KvDtype::F32 => KvEncoding::F32,
        }
    }
}

/// What activations are computed in.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compute {
    /// What the device does fastest within its own error bounds.
    Auto,
    /// The exact mode.
    F32,
}

impl Compute {
    /// The contract's word.
    pub fn dtype(self) -> ComputeDtype {
        match self {
            Compute::Auto => ComputeDtype::Auto,
            Compute::F32 => ComputeDtype::F32,
        }
    }
}

/// How weights are read.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReadPath {
    /// Through the page cache where it can hold the weights, else round it.
    Auto,
    /// Round the page cache, where the file system does that.
    Direct,
    /// Through the page cache.
    Buffered,
}

/// What reads files.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IoPath {
    /// A ring where the kernel lets this process have one, else threads.
    Auto,
    /// A ring; refused where the kernel refuses it.
    #[value(name = "io_uring")]
    #[serde(rename = "io_uring")]
    IoUring,
    /// Threads that read.
    Pread,
}

impl ReadPath {
    /// As flags and files spell it.
    pub fn word(self) -> &'static str {
        match self {
            ReadPath::Auto => "auto",
            ReadPath::Direct => "direct",
            ReadPath::Buffered => "buffered",
        }
    }
}

impl IoPath {
    /// As flags and files spell it.
    pub fn word(self) -> &'static str {
        match self {
            IoPath::Auto => "auto",
            IoPath::IoUring => "io_uring",
            IoPath::Pread => "pread",
        }
    }
}
