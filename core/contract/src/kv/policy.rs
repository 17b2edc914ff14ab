//! The policy: numbers that the pager enforces, so that a strategy never sees memory pressure.

use crate::types::*;
use serde::{Deserialize, Serialize};

/// Whether a root outlives the process.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Lifecycle {
    /// Removed at exit, or by the next start after a crash.
    RuntimeScoped,
    /// Found again by a new process.
    Persistent,
}

/// Reached by tokens or by bytes of K and V of one layer, whichever comes first.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Threshold {
    /// Tokens of one layer; `None`: tokens do not count.
    pub tokens: Option<u64>,
    /// Bytes of K and V of one layer; `None`: bytes do not count.
    pub bytes: Option<u64>,
}

/// A query at position p sees positions below `first` and those above p - `recent`; in prefill too.
///
/// Sinks with a recent window are StreamingLLM's (Xiao and others, 2023); a plain sliding window
/// has `first` 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct KvWindow {
    /// Tokens at the start of the session that stay seen.
    pub first: u32,
    /// Tokens before and including the query's own that are seen.
    pub recent: u32,
}

/// Facts that a policy depends on.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct PolicyAsk {
    /// The manifest's options with the operator's changes.
    pub options: Options,
    /// What the model keeps.
    pub shape: KvShape,
    /// Whether an accelerator computes.
    pub accelerator: bool,
    /// Memory for KV frames, in bytes.
    pub budget_bytes: u64,
    /// Longest session that the model takes, in tokens.
    pub context_tokens: TokenIndex,
    /// Whether the root is to outlive the process.
    pub lifecycle: Lifecycle,
}

/// What the pager enforces. It depends on options, so it is asked for, not described.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct KvPolicy {
    /// For the report, as `cpu-journal`.
    pub policy_id: String,
    /// A layer's hot tail that starts a spill of whole pages; `None`: never.
    pub flush: Option<Threshold>,
    /// What a spill leaves hot. A spilled page keeps its frame while the budget has room.
    /// At least `cold_after`, or pages are stored hot and encoded again after every load.
    pub retain: Threshold,
    /// What queries see; the pager frees pages that no later query can see.
    pub window: Option<KvWindow>,
    /// Rows that an attentive strategy promises to stay under, a layer and head, between steps.
    pub keep_rows: Option<u32>,
    /// Encoding of cold pages.
    ///
    /// Whole pages that end at least `cold_after` before the first row of any step are cold: a
    /// watermark of the session. Only a rewind lowers it, to where it lands; a fork inherits it,
    /// `Commit::note` keeps it. What is cold is read through this encoding, in memory or not, even
    /// where the store still has the hot bytes: so bits depend on the steps and never on the
    /// budget. A lost page of a lossy history is therefore recomputed from 0, by the recorded
    /// steps; of an exact one, from that page, by any.
    pub cold: KvEncoding,
    /// Distance in tokens, a multiple of 64. 0 for lossless encodings.
    pub cold_after: u64,
    /// Whether `flush` and `end` store the page that is not full.
    pub store_partial: bool,
}

impl KvPolicy {
    /// The policy of an exact strategy with a store: `hot_tokens` of each layer stay, and when
    /// twice as many are there, whole pages go out, as they are.
    pub fn exact(policy_id: &str, ask: &PolicyAsk, hot_tokens: u64) -> KvPolicy {
        KvPolicy {
            policy_id: policy_id.into(),
            flush: Some(Threshold { tokens: Some(hot_tokens.saturating_mul(2)), bytes: None }),
            retain: Threshold { tokens: Some(hot_tokens), bytes: None },
            window: None,
            keep_rows: None,
            cold: ask.shape.hot,
            cold_after: 0,
            store_partial: false,
        }
    }
}
