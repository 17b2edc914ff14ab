//! What an engine is loaded with, asked for, and answers.

use crate::events::Watch;
use kvern_contract::{
    ComputeDtype, DeviceBackend, DeviceDescription, DeviceUsage, KvDescription, KvEncoding,
    KvPolicy, KvStrategy, OffloadPolicy, Options,
};
use kvern_model::{Model, Sampler};
use kvern_storage::{Counters, Storage};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Where log lines go: a level (1 error to 5 trace) and a line.
pub type LogLine = Arc<dyn Fn(u32, &str) + Send + Sync>;

/// Which way weights take from the drive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WeightPath {
    /// Through the page cache, which can hold them.
    Cached,
    /// Through it, though it cannot: a part of a memory budget is left to what is on its way.
    Passing,
    /// Round it, where the file system does that; else as `Passing`.
    Direct,
}

/// Everything that a load depends on.
pub struct EngineSpec {
    /// The model's files, opened and checked.
    pub model: Arc<Model>,
    /// How bytes move, for weights and for plugins.
    pub storage: Arc<dyn Storage>,
    /// Who does the arithmetic; not opened yet.
    pub device: Box<dyn DeviceBackend>,
    /// Its options, defaults filled in.
    pub device_options: Options,
    /// Where history goes.
    pub kv: Box<dyn KvStrategy>,
    /// Its options, defaults filled in.
    pub kv_options: Options,
    /// Which weights stay in which memory.
    pub offload: Box<dyn OffloadPolicy>,
    /// Its options, defaults filled in.
    pub offload_options: Options,
    /// What activations and sums are computed in.
    pub compute: ComputeDtype,
    /// Encoding of hot KV pages: `F32`, `F16` or `Bf16`.
    pub kv_dtype: KvEncoding,
    /// Most threads that compute, at least 1.
    pub threads: u32,
    /// Bytes for weights, staging, frames, activations and tables together; `None`: no limit.
    pub memory_budget: Option<u64>,
    /// Bytes for KV frames; `None`: what the context needs, within the memory budget.
    pub kv_budget: Option<u64>,
    /// Directory under which strategies keep their roots.
    pub cache_dir: PathBuf,
    /// Most rows of one step of a prefill, at least 1.
    pub prefill_chunk: u32,
    /// Tokens that a session may hold; `None`: as many as the model was made for.
    pub context_tokens: Option<u64>,
    /// Layers kept in host memory; `None`: the policy decides by the budget.
    pub offload_cpu_layers: Option<u32>,
    /// Sessions that are in memory at once, at least 1: KV and step tables are made for as many.
    pub sessions: u32,
    /// How weights are read.
    pub reading: WeightPath,
    /// What was measured of this machine, for the plan; nothing is guessed.
    pub rates: Rates,
    /// Most rows of a feed-forward block at once, at least 1; `None`: [`DENSE_CHUNK_ROWS`], and
    /// fewer where a memory budget leaves no headroom for their activations.
    pub dense_chunk_rows: Option<u32>,
    /// How long a step waits for pages before it computes them again, and how long one read of
    /// weights may be with the system.
    pub load_deadline: Duration,
    /// Where log lines go.
    pub log: LogLine,
    /// Who hears what is done and how far it is.
    pub watch: Watch,
}

/// Most rows of a feed-forward block at once where nothing else was asked for.
pub const DENSE_CHUNK_ROWS: u32 = 16384;

/// In what chunks of rows feed-forward blocks run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MlpChunks {
    /// Whether [`EngineSpec::dense_chunk_rows`] said so.
    pub explicit: bool,
    /// Most rows of a chunk.
    pub rows: u32,
}

impl MlpChunks {
    /// For the plan and the report.
    pub fn mode(&self) -> &'static str {
        if self.explicit { "explicit-rows" } else { "adaptive-headroom" }
    }
}

/// Measured rates of a machine; `None`: not measured.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Rates {
    /// Bytes a second that the drive gives, read as weights are read.
    pub drive: Option<f64>,
    /// Bytes of weights a second that the device computes on, for one row.
    pub memory: Option<f64>,
    /// Floating-point operations a second of the device, for many rows.
    pub flops: Option<f64>,
}

/// Whether to go on after a piece of text.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flow {
    /// Go on.
    Go,
    /// End after this token.
    Stop,
    /// End every request of the batch after this step.
    StopAll,
}

/// One request on a session.
#[derive(Clone)]
pub struct Request<'a> {
    /// Ids that follow what the session holds.
    pub prompt: &'a [u32],
    /// Most new tokens.
    pub max_new_tokens: u32,
    /// How the next token is chosen.
    pub sampler: Sampler,
    /// Whether to go on past an end-of-sequence token.
    pub ignore_eos: bool,
    /// Texts that end the answer; they are not part of it.
    pub stop: &'a [String],
}

/// What a batch says of one of its requests.
#[derive(Debug)]
pub enum Said<'a> {
    /// Text that is certain; empty between the steps of its prefill.
    Text(&'a str),
    /// How it ended; nothing is said of it any more.
    Ended(kvern_contract::Result<Outcome>),
}

/// Why an answer ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Finish {
    /// An end-of-sequence token.
    EndOfSequence,
    /// `max_new_tokens`.
    Length,
    /// A stop string.
    StopString,
    /// The caller said stop.
    Interrupted,
    /// The session holds as many tokens as the context allows.
    ContextFull,
}

/// What a request gave.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// New tokens, an end-of-sequence token included.
    pub token_ids: Vec<u32>,
    /// Their text, up to a stop string.
    pub text: String,
    /// Why it ended.
    pub finish: Finish,
    /// Tokens of the session when decoding began.
    pub prompt_tokens: u64,
    /// Of these, tokens whose KV was there before the request.
    pub reused_tokens: u64,
    /// Time from the request to the end of prefill, waiting for a place in a batch included.
    pub prefill: Duration,
    /// Time of the whole request.
    pub total: Duration,
    /// Time to the first token; `None` if none came.
    pub first_token: Option<Duration>,
    /// Time from each token to the next. Tokens that came in one step share its time equally.
    pub inter_token: Vec<Duration>,
    /// Most rows of a step of the prefill.
    pub chunk_tokens: u32,
    /// Steps of the prefill.
    pub chunk_count: u32,
    /// What was guessed, and how much of it was right.
    pub speculation: Speculation,
}

/// Tokens that were guessed and then verified, several in one step.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Speculation {
    /// Tokens that were guessed.
    pub proposed: u64,
    /// Of these, tokens that the model chose too.
    pub accepted: u64,
    /// Steps with guesses.
    pub steps: u64,
    /// Steps that gave tokens, with guesses or without.
    pub sweeps: u64,
}

/// Counts of `cache_state`; tokens, bytes and artifacts are sums over layers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CacheFacts {
    /// Layers with something stored.
    pub persisted_layer_count: u64,
    /// Tokens stored.
    pub persisted_tokens: u64,
    /// Pieces stored, as the strategy counts them.
    pub persisted_artifact_count: u64,
    /// Layers with something in memory.
    pub resident_layer_count: u64,
    /// Tokens in memory.
    pub resident_tokens: u64,
    /// Bytes of the frames that hold them.
    pub resident_bytes: u64,
    /// Layers with a tail that is not stored yet; 0 without a store.
    pub hot_layer_count: u64,
    /// Tokens of these tails.
    pub hot_tokens: u64,
    /// Bytes of their filled rows.
    pub hot_bytes: u64,
    /// Compactions so far.
    pub compaction_count: u64,
    /// Spills so far, a layer each.
    pub spill_count: u64,
    /// Tokens spilled so far.
    pub spilled_tokens: u64,
    /// Window evictions so far, a layer and step each.
    pub eviction_count: u64,
    /// Tokens that fell out of the window.
    pub evicted_tokens: u64,
    /// Pages that came back from the store.
    pub pages_read: u64,
    /// Bytes of these pages.
    pub bytes_read: u64,
    /// Bytes of pages given to the store.
    pub bytes_written: u64,
    /// Pages that came back wrong.
    pub checksum_failures: u64,
    /// Tokens computed again because their pages were lost.
    pub recomputed_tokens: u64,
}

/// Where the weights went.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct PlacementFacts {
    /// The policy that placed them.
    pub policy: String,
    /// Layers asked for; `None` when the policy decided.
    pub requested: Option<u32>,
    /// Layers kept in memory.
    pub applied: u32,
    /// Which.
    pub indices: Vec<u32>,
    /// Bytes kept in memory.
    pub resident_bytes: u64,
    /// Bytes read again every sweep.
    pub streamed_bytes: u64,
    /// A line for each unit: what, where, why.
    pub reasons: Vec<String>,
}

/// How weights that do not stay are read.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct StreamFacts {
    /// Sweeps so far.
    pub sweeps: u64,
    /// Units that are read again every sweep.
    pub units: u32,
    /// Bytes of their weights: what a whole sweep streams, without what reads are rounded to.
    pub sweep_bytes: u64,
    /// Memory in which they take turns, in bytes.
    pub staging_bytes: u64,
    /// Units that are under way while one is computed, wherever in the sweep; parts of more may be.
    pub read_ahead_units: u32,
    /// Bytes of streamed weights that arrived so far.
    pub streamed_bytes: u64,
    /// Time that computing waited for them.
    pub waited: Duration,
    /// Tensors that are copied in memory every sweep, because of where their files have them.
    pub copied_tensors: u64,
    /// Their bytes.
    pub copied_bytes: u64,
    /// Every file is read round the page cache.
    pub direct: bool,
    /// Why one is not, where that was asked for.
    pub refused: Option<String>,
    /// What moves the bytes, as the storage names itself.
    pub path: &'static str,
}

/// What an engine knows of itself, cumulative since the load.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The cache, in numbers.
    pub kv: CacheFacts,
    /// The strategy, as it describes itself.
    pub description: KvDescription,
    /// Its policy.
    pub policy: KvPolicy,
    /// The device, as it describes itself.
    pub device: DeviceDescription,
    /// Its counters.
    pub device_usage: DeviceUsage,
    /// The strategy's directory; `None` without a store.
    pub cache_root: Option<PathBuf>,
    /// Where the weights went.
    pub placement: PlacementFacts,
    /// How feed-forward blocks are cut.
    pub mlp_chunks: MlpChunks,
    /// How those that do not stay are read.
    pub stream: StreamFacts,
    /// Bytes that the storage service moved, for weights and KV together.
    pub storage: Counters,
    /// Who holds how much of the budget, in bytes.
    pub budget: Vec<(String, u64)>,
    /// Most that was held at once, in bytes.
    pub budget_peak: u64,
}
