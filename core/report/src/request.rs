//! What one request did: times, throughput, memory, cache, storage.

use crate::speculation::Speculation;
use crate::state::CacheState;
use crate::stats::Sum;
use crate::storage::Storage;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Why a key beside it is null, one line a key.
pub type NullReasons = BTreeMap<String, String>;

/// The metrics of one request. Every key is always written.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Request {
    /// From before rendering and tokenising to the last token.
    pub total_ms: f64,
    /// From prefill to the last token.
    pub generation_ms: f64,
    /// From before rendering and tokenising to the first token; null if none came.
    pub time_to_first_token_ms: Option<f64>,
    /// Between one token and the next; empty below two tokens.
    pub inter_token_latencies_ms: Vec<f64>,
    /// Tokens of the prompt.
    pub prompt_tokens: u64,
    /// Of these, taken from the session's cache.
    pub reused_prompt_tokens: u64,
    /// New tokens.
    pub output_tokens: u64,
    /// Prompt tokens over the time to the first token.
    pub prompt_tokens_per_second: Option<f64>,
    /// New tokens over the whole generation, prefill included.
    pub output_tokens_per_second: Option<f64>,
    /// Tokens after the first over the time since the first.
    pub decode_tokens_per_second: Option<f64>,
    /// `resident-kv` or `disk-kv`.
    pub cache_mode: String,
    /// The strategy that ran.
    pub kv_cache_strategy: Option<String>,
    /// What another strategy would be better at.
    pub kv_cache_adaptation: Adaptation,
    /// Files under the strategy's root; null for resident.
    pub cache_dir_size_mb: Option<f64>,
    /// What the cache holds.
    pub cache_state: CacheState,
    /// How the prompt was split.
    pub chunked_prefill: ChunkedPrefill,
    /// Peak reserved minus peak allocated.
    pub allocator_gap_mb: Option<f64>,
    /// That over peak reserved.
    pub allocator_gap_ratio: Option<f64>,
    /// Storage events of the request; null without any.
    pub native_runtime_profile: Option<NativeProfile>,
    /// How bytes came from the drive.
    pub storage: Storage,
    /// Bytes of weights that arrived from the drive, over the new tokens; null if none came.
    pub streamed_bytes_per_token: Option<f64>,
    /// What was guessed ahead.
    pub speculation: Speculation,
    /// Memory and processor during the request.
    pub resources: Resources,
    /// Calls between host and plugins, either way, during the request.
    pub border_crossings: u64,
    /// At most 120 characters of the text.
    pub text_excerpt: String,
    /// Why the request ended.
    pub finish_reason: String,
    /// Profile that the selector ran under.
    pub strategy_selector_profile: String,
    /// Rule that matched.
    pub strategy_selector_rule_id: String,
    /// What the user pinned; empty when unset.
    pub strategy_selector_requested_override: String,
    /// What the rule chose.
    pub strategy_selector_selected_kv_cache_strategy: String,
    /// What ran.
    pub strategy_selector_applied_kv_cache_strategy: String,
    /// The choice and what follows it where it cannot be opened.
    pub strategy_selector_fallback_chain: Vec<String>,
    /// The policy that placed layers, resolved; null when none is placed.
    pub offload_cpu_policy: Option<String>,
    /// Layers asked for; null when the budget decided.
    pub offload_cpu_requested_layers: Option<u64>,
    /// Layers placed.
    pub offload_cpu_applied_layers: Option<u64>,
    /// Which ones.
    pub offload_cpu_applied_indices: Vec<u32>,
    /// Why what is null is null.
    pub null_reasons: NullReasons,
}

/// What the adaptation says, after the request.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Adaptation {
    /// `disabled`, `observe-only` or `automatic`.
    pub adaptation_mode: String,
    /// Whether another strategy is recommended.
    pub recommendation_available: bool,
    /// Which; the running one where none is better.
    pub recommended_strategy_id: Option<String>,
    /// Why.
    pub reason: String,
}

/// How a prompt went through the model.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct ChunkedPrefill {
    /// `optimized-native-text` for text through the engine.
    pub strategy_id: Option<String>,
    /// Whether this runtime can split a prompt.
    pub runtime_eligible: bool,
    /// Whether it did.
    pub applied: bool,
    /// Why it did or did not.
    pub activation_reason: String,
    /// What a chunk passes through before the next one.
    pub execution_boundary: String,
    /// How a query knows what it sees.
    pub attention_mask_mode: String,
    /// What the split does not cover.
    pub gap_inventory: Vec<String>,
    /// Most tokens of a chunk.
    pub chunk_tokens: u64,
    /// Chunks that ran.
    pub chunk_count: u64,
}

/// Storage events by name, and the paths that they belong to.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct NativeProfile {
    /// Paths that were used, sorted.
    pub storage_paths: Vec<String>,
    /// What happened, by name.
    pub events: BTreeMap<String, EventStats>,
}

/// Durations of one kind of event.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct EventStats {
    /// How often.
    pub count: u64,
    /// Sum; operations that overlap may sum past the wall clock.
    pub total_ms: f64,
    /// Shortest.
    pub min_ms: f64,
    /// Middle.
    pub median_ms: f64,
    /// See [`crate::p95`].
    pub p95_ms: f64,
    /// Longest.
    pub max_ms: f64,
    /// Mean.
    pub mean_ms: f64,
}

/// The storage path of an event; `None` for events that belong to none.
fn storage_path(event: &str) -> Option<&'static str> {
    match event {
        "gds_read" => Some("gds"),
        "safetensor_read" | "safetensor_pread" => Some("safetensor-io"),
        "offloaded_cpu_to_cuda" => Some("cpu-offloaded-artifacts"),
        "kvload" | "kvsave" | "kvcompact" => Some("disk-kv-cache"),
        _ => None,
    }
}

impl NativeProfile {
    /// A profile of events by name, each with its durations in milliseconds; `None` without events.
    pub fn of(events: &BTreeMap<String, Vec<f64>>) -> Option<NativeProfile> {
        let mut profile = NativeProfile::default();
        for (name, durations) in events {
            let Some(sum) = Sum::of(durations) else { continue };
            let stats = EventStats {
                count: durations.len() as u64,
                total_ms: durations.iter().sum(),
                min_ms: sum.min,
                median_ms: sum.median,
                p95_ms: sum.p95,
                max_ms: sum.max,
                mean_ms: sum.mean,
            };
            profile.events.insert(name.clone(), stats);
            profile.storage_paths.extend(storage_path(name).map(String::from));
        }
        profile.storage_paths.sort();
        profile.storage_paths.dedup();
        (!profile.events.is_empty()).then_some(profile)
    }
}

/// Memory and processor of this process during a stage.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Resources {
    /// At the stage's end.
    pub current_rss_mb: Option<f64>,
    /// Highest that was seen.
    pub peak_rss_mb: Option<f64>,
    /// `sampled`: seen during the stage; `native`: the process's maximum.
    pub peak_rss_source: Option<String>,
    /// `cuda`, `mps`; null on a processor.
    pub accelerator_kind: Option<String>,
    /// Allocated at the stage's end.
    pub accelerator_current_mb: Option<f64>,
    /// Most allocated.
    pub accelerator_peak_mb: Option<f64>,
    /// Reserved at the stage's end.
    pub accelerator_reserved_mb: Option<f64>,
    /// Most reserved.
    pub accelerator_peak_reserved_mb: Option<f64>,
    /// `native`, `sampled`, or null.
    pub accelerator_peak_source: Option<String>,
    /// Of one core: two busy cores are 200.
    pub process_cpu_utilization_percent: Option<f64>,
    /// Null for loads and where nothing measures it.
    pub accelerator_utilization: Option<Utilization>,
    /// Why what is null is null.
    pub null_reasons: NullReasons,
}

/// How busy an accelerator was.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Utilization {
    /// Its arithmetic.
    pub gpu_utilization_percent: Option<Sum>,
    /// Its memory.
    pub memory_utilization_percent: Option<Sum>,
}

/// At most 120 characters of a text, blanks collapsed, `...` at the end if it was cut.
pub fn excerpt(text: &str) -> String {
    let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if flat.chars().count() <= 120 {
        return flat;
    }
    flat.chars().take(117).chain("...".chars()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_excerpt_is_never_longer_than_120_characters() {
        assert_eq!(excerpt("  a\n\n b "), "a b");
        let cut = excerpt(&"é".repeat(200));
        assert_eq!(cut.chars().count(), 120);
        assert!(cut.ends_with("é..."));
        assert_eq!(excerpt(&"x".repeat(120)), "x".repeat(120));
    }

    #[test]
    fn a_profile_names_only_paths_that_ran() {
        let events = BTreeMap::from([
            ("kvsave".to_string(), vec![1.0, 3.0]),
            ("layer_load".to_string(), vec![2.0]),
        ]);
        let profile = NativeProfile::of(&events).unwrap();
        assert_eq!(profile.storage_paths, ["disk-kv-cache"]);
        assert_eq!(profile.events["kvsave"].count, 2);
        assert_eq!(profile.events["kvsave"].total_ms, 4.0);
        assert_eq!(NativeProfile::of(&BTreeMap::new()), None);
    }

    #[test]
    fn every_key_of_a_request_is_always_written() {
        let value = serde_json::to_value(Request::default()).unwrap();
        for key in ["cache_dir_size_mb", "allocator_gap_mb", "native_runtime_profile"] {
            assert!(value.get(key).is_some_and(serde_json::Value::is_null), "{key}");
        }
        assert_eq!(value["resources"]["accelerator_kind"], serde_json::Value::Null);
    }
}
