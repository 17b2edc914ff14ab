//! What the KV cache is and holds, after one request.

use crate::request::NullReasons;
use serde::{Deserialize, Serialize};

/// `cache_state`. Tokens, bytes, artifacts, compactions, spills and evictions are sums over layers:
/// 100 tokens in 30 layers are 3000 tokens.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct CacheState {
    /// The strategy that ran.
    pub strategy_id: String,
    /// Device and flush policy, as `cpu-balanced`.
    pub policy_id: String,
    /// Form of what is on disk.
    pub persistence_format: String,
    /// Where history lives.
    pub residency_mode: String,
    /// `full-history`, or how the past is bounded.
    pub window_policy: String,
    /// `full-precision` or `quantized`.
    pub cold_tier_encoding: String,
    /// How cold KV is quantised; null unless it is.
    pub cold_tier_representation: Option<String>,
    /// Name of the format on disk; null where the origin has none.
    pub cold_store_format: Option<String>,
    /// Layers with something on disk.
    pub persisted_layer_count: u64,
    /// Tokens on disk, over layers.
    pub persisted_tokens: u64,
    /// Chunks, pages, extents or entries, by format.
    pub persisted_artifact_count: u64,
    /// Layers with something in memory.
    pub resident_layer_count: u64,
    /// Tokens in memory, over layers.
    pub resident_tokens: u64,
    /// Bytes of KV in memory.
    pub resident_bytes: u64,
    /// Layers with a tail that is not on disk yet.
    pub hot_layer_count: u64,
    /// Tokens of those tails, over layers.
    pub hot_tokens: u64,
    /// Bytes of those tails.
    pub hot_bytes: u64,
    /// Compactions during the request.
    pub compaction_count: u64,
    /// Spills during the request, once per layer.
    pub spill_count: u64,
    /// Tokens spilled during the request, over layers.
    pub spilled_tokens: u64,
    /// Tokens that a query can see; null unless windowed.
    pub window_max_tokens: Option<u64>,
    /// What leaves a full window; null unless windowed.
    pub eviction_policy: Option<String>,
    /// Evictions during the request.
    pub eviction_count: u64,
    /// Tokens evicted during the request, over layers.
    pub evicted_tokens: u64,
    /// Pages that came back from the store during the request.
    pub pages_read: u64,
    /// Bytes that came back from the store during the request.
    pub bytes_read: u64,
    /// Bytes given to the store during the request.
    pub bytes_written: u64,
    /// Those bytes over the request's new tokens; null where nothing was new.
    pub bytes_written_per_token: Option<f64>,
    /// Pages that came back wrong during the request.
    pub checksum_failures: u64,
    /// Tokens computed again during the request because their pages were lost.
    pub recomputed_tokens: u64,
    /// Why what is null is null.
    pub null_reasons: NullReasons,
}
