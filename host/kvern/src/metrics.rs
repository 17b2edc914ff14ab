//! From what the engine says of a request to what the report says of it.

use crate::reads::{self, Reads};
use crate::selector::{Selection, recommend};
use crate::speculate::{self, Speculation};
use kvern_contract::{Granularity, KvEncoding};
use kvern_engine::{CacheFacts, Event, Facts, Finish, Outcome};
use kvern_report::{
    Adaptation, CacheState, ChunkedPrefill, NativeProfile, NullReasons, Request, Resources, excerpt,
};
use std::collections::BTreeMap;
use std::time::Duration;

const MIB: f64 = (1 << 20) as f64;

/// One request, from the outside: the facts before it and after it, and everything in between.
pub struct Seen<'a> {
    /// Time of rendering and tokenising, before the engine was asked.
    pub prepared: Duration,
    /// What the engine gave.
    pub outcome: &'a Outcome,
    /// What it knew before.
    pub before: &'a Facts,
    /// What it knows after.
    pub after: &'a Facts,
    /// What happened in between.
    pub events: &'a [Event],
    /// Calls between host and plugins in between.
    pub crossings: u64,
    /// Memory and processor.
    pub resources: Resources,
    /// How the KV strategy was chosen.
    pub selection: &'a Selection,
    /// How bytes come from the drive.
    pub reads: &'a Reads,
    /// Who guessed, and the draft's name.
    pub guessed: (&'a Speculation, Option<&'a str>),
}

/// Milliseconds.
pub fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn rate(count: u64, time: Duration) -> Option<f64> {
    (count > 0 && time > Duration::ZERO).then(|| count as f64 / time.as_secs_f64())
}

/// Why a request ended, as the report spells it.
pub fn finish_word(finish: Finish) -> &'static str {
    match finish {
        Finish::EndOfSequence => "end-of-sequence",
        Finish::Length => "length",
        Finish::StopString => "stop-string",
        Finish::Interrupted => "interrupted",
        Finish::ContextFull => "context-full",
    }
}

/// The request's metrics, every key filled in or explained.
pub fn request(seen: Seen<'_>) -> Request {
    let Seen { outcome, after, selection, .. } = seen;
    let first = outcome.first_token.map(|t| t + seen.prepared);
    let output = outcome.token_ids.len() as u64;
    let since_first: Duration = outcome.inter_token.iter().sum();
    let resident = after.cache_root.is_none();
    let state = cache_state(&seen);
    let storage = reads::storage(seen.reads, seen.before, after);
    let mut resources = seen.resources;
    accelerator(&mut resources, after);
    let reserved = after.device_usage.reserved_peak_bytes;
    let gap = reserved.map(|r| r.saturating_sub(after.device_usage.device_peak_bytes));
    let placed = after.placement.applied > 0;
    let mut events: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for event in seen.events {
        events.entry(event.name.clone()).or_default().push(ms(event.took));
    }
    let mut out = Request {
        total_ms: ms(outcome.total + seen.prepared),
        generation_ms: ms(outcome.total),
        time_to_first_token_ms: first.map(ms),
        inter_token_latencies_ms: outcome.inter_token.iter().copied().map(ms).collect(),
        prompt_tokens: outcome.prompt_tokens,
        reused_prompt_tokens: outcome.reused_tokens,
        output_tokens: output,
        prompt_tokens_per_second: first.and_then(|t| rate(outcome.prompt_tokens, t)),
        output_tokens_per_second: rate(output, outcome.total),
        decode_tokens_per_second: rate(outcome.inter_token.len() as u64, since_first),
        cache_mode: if resident { "resident-kv" } else { "disk-kv" }.into(),
        kv_cache_strategy: Some(after.description.name.clone()),
        kv_cache_adaptation: adaptation(&state),
        cache_dir_size_mb: after
            .cache_root
            .as_deref()
            .map(|r| kvern_storage::tree_bytes(r) as f64 / MIB),
        chunked_prefill: chunked_prefill(outcome),
        allocator_gap_mb: gap.map(|g| g as f64 / MIB),
        allocator_gap_ratio: gap.zip(reserved.filter(|r| *r > 0)).map(|(g, r)| g as f64 / r as f64),
        native_runtime_profile: NativeProfile::of(&events),
        streamed_bytes_per_token: (output > 0)
            .then(|| storage.streamed_bytes as f64 / output as f64),
        storage,
        speculation: speculate::told(seen.guessed.0, seen.guessed.1, outcome),
        resources,
        border_crossings: seen.crossings,
        text_excerpt: excerpt(&outcome.text),
        finish_reason: finish_word(outcome.finish).into(),
        strategy_selector_profile: selection.profile.clone(),
        strategy_selector_rule_id: selection.rule_id.clone(),
        strategy_selector_requested_override: selection.requested_override.clone(),
        strategy_selector_selected_kv_cache_strategy: selection.selected.clone(),
        strategy_selector_applied_kv_cache_strategy: selection.applied.clone(),
        strategy_selector_fallback_chain: selection.chain.clone(),
        offload_cpu_policy: placed.then(|| after.placement.policy.clone()),
        offload_cpu_requested_layers: after.placement.requested.map(u64::from),
        offload_cpu_applied_layers: Some(u64::from(after.placement.applied)),
        offload_cpu_applied_indices: after.placement.indices.clone(),
        cache_state: state,
        null_reasons: NullReasons::new(),
    };
    explain(&mut out, resident);
    out
}

/// A reason beside every null.
fn explain(out: &mut Request, resident: bool) {
    let one_token = "fewer than two tokens came";
    let reasons = [
        ("time_to_first_token_ms", out.time_to_first_token_ms.is_none(), "no token came"),
        ("prompt_tokens_per_second", out.prompt_tokens_per_second.is_none(), "no token came"),
        ("streamed_bytes_per_token", out.streamed_bytes_per_token.is_none(), "no token came"),
        ("output_tokens_per_second", out.output_tokens_per_second.is_none(), "no token came"),
        ("decode_tokens_per_second", out.decode_tokens_per_second.is_none(), one_token),
        (
            "cache_dir_size_mb",
            out.cache_dir_size_mb.is_none(),
            if resident {
                "the strategy keeps nothing on disk"
            } else {
                "the root could not be read"
            },
        ),
        ("allocator_gap_mb", out.allocator_gap_mb.is_none(), "the device reserves nothing"),
        ("allocator_gap_ratio", out.allocator_gap_ratio.is_none(), "the device reserves nothing"),
        (
            "native_runtime_profile",
            out.native_runtime_profile.is_none(),
            "no storage event happened in this request",
        ),
        ("offload_cpu_policy", out.offload_cpu_policy.is_none(), "no layer is placed"),
        (
            "offload_cpu_requested_layers",
            out.offload_cpu_requested_layers.is_none(),
            "no count was asked for: the budget decided",
        ),
    ];
    let missing = reasons.into_iter().filter(|(_, missing, _)| *missing);
    out.null_reasons = missing.map(|(key, _, why)| (key.into(), why.into())).collect();
}

fn adaptation(state: &CacheState) -> Adaptation {
    let better = recommend(&state.strategy_id, state.persisted_artifact_count, state.spill_count);
    let available = better.is_some();
    let (recommended, reason) = better.map_or_else(
        || (state.strategy_id.clone(), "the running strategy suits what was seen".to_string()),
        |(name, why)| (name.to_string(), why),
    );
    Adaptation {
        adaptation_mode: "observe-only".into(),
        recommendation_available: available,
        recommended_strategy_id: Some(recommended),
        reason,
    }
}

fn chunked_prefill(outcome: &Outcome) -> ChunkedPrefill {
    let applied = outcome.chunk_count > 1;
    let new = outcome.prompt_tokens.saturating_sub(outcome.reused_tokens);
    let size = outcome.chunk_tokens;
    ChunkedPrefill {
        strategy_id: Some("optimized-native-text".into()),
        runtime_eligible: true,
        applied,
        activation_reason: if applied {
            format!("{new} new prompt tokens are more than a chunk of {size}")
        } else {
            format!("{new} new prompt tokens fit one chunk")
        },
        execution_boundary: "all layers of a chunk run before the next chunk".into(),
        attention_mask_mode: "causal by absolute position".into(),
        gap_inventory: Vec::new(),
        chunk_tokens: u64::from(size),
        chunk_count: u64::from(outcome.chunk_count),
    }
}

/// An accelerator's memory. A processor has none of its own: its fields stay null.
pub fn accelerator(resources: &mut Resources, facts: &Facts) {
    if facts.device.kind == "cpu" {
        let why = "the device is a processor";
        for key in [
            "accelerator_kind",
            "accelerator_current_mb",
            "accelerator_peak_mb",
            "accelerator_reserved_mb",
            "accelerator_peak_reserved_mb",
            "accelerator_peak_source",
            "accelerator_utilization",
        ] {
            resources.null_reasons.insert(key.into(), why.into());
        }
        return;
    }
    let (usage, mb) = (&facts.device_usage, |bytes: u64| bytes as f64 / MIB);
    resources.accelerator_kind = Some(facts.device.kind.clone());
    resources.accelerator_current_mb = Some(mb(usage.device_bytes));
    resources.accelerator_peak_mb = Some(mb(usage.device_peak_bytes));
    resources.accelerator_peak_source = Some("native".into());
    resources.accelerator_reserved_mb = usage.reserved_bytes.map(mb);
    resources.accelerator_peak_reserved_mb = usage.reserved_peak_bytes.map(mb);
    let missing = [
        ("accelerator_reserved_mb", usage.reserved_bytes.is_none(), "the device reserves nothing"),
        (
            "accelerator_peak_reserved_mb",
            usage.reserved_peak_bytes.is_none(),
            "the device reserves nothing",
        ),
        ("accelerator_utilization", true, "the device plugin does not report it"),
    ];
    for (key, _, why) in missing.into_iter().filter(|(_, missing, _)| *missing) {
        resources.null_reasons.insert(key.into(), why.into());
    }
}

fn representation(encoding: KvEncoding) -> Option<String> {
    let word = |g: Granularity| match g {
        Granularity::Page => "page",
        Granularity::Channel => "channel",
        Granularity::Token => "token",
    };
    match encoding {
        KvEncoding::Int8 { key, value } if key == value => {
            Some(format!("int8-symmetric-per-{}", word(key)))
        }
        KvEncoding::Int8 { key, value } => {
            Some(format!("int8-symmetric-key-per-{}-value-per-{}", word(key), word(value)))
        }
        KvEncoding::Codec => Some("codec".into()),
        _ => None,
    }
}

/// What the cache holds now, and what it did during the request: counters are differences.
fn cache_state(seen: &Seen<'_>) -> CacheState {
    let (was, is) = (&seen.before.kv, &seen.after.kv);
    let (about, policy) = (&seen.after.description, &seen.after.policy);
    let since = |get: fn(&CacheFacts) -> u64| get(is).saturating_sub(get(was));
    let bytes_written = since(|k| k.bytes_written);
    let prompt = seen.outcome.prompt_tokens.saturating_sub(seen.outcome.reused_tokens);
    let new_tokens = prompt + seen.outcome.token_ids.len() as u64;
    let mut state = CacheState {
        strategy_id: about.name.clone(),
        policy_id: policy.policy_id.clone(),
        persistence_format: about.persistence_format.clone(),
        residency_mode: about.residency_mode.clone(),
        window_policy: about.window_policy.clone(),
        cold_tier_encoding: about.cold_tier_encoding.clone(),
        cold_tier_representation: representation(policy.cold),
        cold_store_format: about.cold_store_format.clone(),
        persisted_layer_count: is.persisted_layer_count,
        persisted_tokens: is.persisted_tokens,
        persisted_artifact_count: is.persisted_artifact_count,
        resident_layer_count: is.resident_layer_count,
        resident_tokens: is.resident_tokens,
        resident_bytes: is.resident_bytes,
        hot_layer_count: is.hot_layer_count,
        hot_tokens: is.hot_tokens,
        hot_bytes: is.hot_bytes,
        compaction_count: since(|k| k.compaction_count),
        spill_count: since(|k| k.spill_count),
        spilled_tokens: since(|k| k.spilled_tokens),
        window_max_tokens: policy.window.map(|w| u64::from(w.first) + u64::from(w.recent)),
        eviction_policy: policy.window.and(about.eviction_policy.clone()),
        eviction_count: since(|k| k.eviction_count),
        evicted_tokens: since(|k| k.evicted_tokens),
        pages_read: since(|k| k.pages_read),
        bytes_read: since(|k| k.bytes_read),
        bytes_written,
        bytes_written_per_token: (new_tokens > 0).then(|| bytes_written as f64 / new_tokens as f64),
        checksum_failures: since(|k| k.checksum_failures),
        recomputed_tokens: since(|k| k.recomputed_tokens),
        null_reasons: NullReasons::new(),
    };
    let windowless = "the strategy has no window";
    let reasons = [
        (
            "cold_tier_representation",
            state.cold_tier_representation.is_none(),
            "cold KV is not quantised",
        ),
        ("cold_store_format", state.cold_store_format.is_none(), "the format on disk has no name"),
        ("window_max_tokens", state.window_max_tokens.is_none(), windowless),
        ("eviction_policy", state.eviction_policy.is_none(), windowless),
        ("bytes_written_per_token", state.bytes_written_per_token.is_none(), "no token was new"),
    ];
    let missing = reasons.into_iter().filter(|(_, missing, _)| *missing);
    state.null_reasons = missing.map(|(key, _, why)| (key.into(), why.into())).collect();
    state
}
