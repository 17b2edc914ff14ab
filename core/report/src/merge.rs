//! Several requests as one `metrics` object: a summary or null for each number, a string where all
//! agree.

use crate::request::{Request, Resources};
use crate::stats::Sum;
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};

fn sum(samples: &[f64]) -> Value {
    Sum::of(samples).map_or(Value::Null, |s| json!(s))
}

fn sum_of<T>(items: &[T], get: impl Fn(&T) -> Option<f64>) -> Value {
    sum(&items.iter().filter_map(get).collect::<Vec<_>>())
}

/// Merges values of one shape: numbers to a summary, objects key by key, anything else only where
/// all agree. Nulls among numbers are left out; nothing but nulls is null.
pub fn merge_values(values: &[Value]) -> Value {
    let present: Vec<&Value> = values.iter().filter(|v| !v.is_null()).collect();
    let Some(first) = present.first() else { return Value::Null };
    if present.iter().all(|v| v.is_number()) {
        return sum(&present.iter().filter_map(|v| v.as_f64()).collect::<Vec<_>>());
    }
    if present.iter().all(|v| v.is_object()) {
        let keys: BTreeSet<&String> =
            present.iter().filter_map(|v| v.as_object()).flat_map(Map::keys).collect();
        let merged = keys.into_iter().map(|key| {
            let column: Vec<Value> = present.iter().map(|v| v[key.as_str()].clone()).collect();
            (key.clone(), merge_values(&column))
        });
        return Value::Object(merged.collect());
    }
    if present.iter().all(|v| v == first) { (*first).clone() } else { Value::Null }
}

fn merged<T: Serialize>(items: impl Iterator<Item = T>) -> Value {
    merge_values(&items.filter_map(|x| serde_json::to_value(x).ok()).collect::<Vec<_>>())
}

/// Resources of several loads: a summary for each number, and the reasons on which all agree.
pub fn merge_loads(loads: &[Resources]) -> Value {
    merged(loads.iter())
}

fn memory(requests: &[Request]) -> Value {
    let mut value = merge_loads(&requests.iter().map(|r| r.resources.clone()).collect::<Vec<_>>());
    let Some(map) = value.as_object_mut() else { return value };
    map.shift_remove("accelerator_utilization");
    let busy = |get: fn(&crate::Utilization) -> Option<Sum>| {
        sum_of(requests, |r| {
            r.resources.accelerator_utilization.as_ref().and_then(get).map(|s| s.mean)
        })
    };
    map.insert("accelerator_utilization_percent".into(), busy(|u| u.gpu_utilization_percent));
    map.insert(
        "accelerator_memory_utilization_percent".into(),
        busy(|u| u.memory_utilization_percent),
    );
    value
}

fn profile(requests: &[Request]) -> Value {
    let profiles: Vec<_> =
        requests.iter().filter_map(|r| r.native_runtime_profile.as_ref()).collect();
    if profiles.is_empty() {
        return Value::Null;
    }
    let paths: BTreeSet<&String> = profiles.iter().flat_map(|p| &p.storage_paths).collect();
    let mut events: BTreeMap<&String, (u64, u64, f64, f64)> = BTreeMap::new();
    for (name, stats) in profiles.iter().flat_map(|p| &p.events) {
        let entry = events.entry(name).or_default();
        entry.0 += 1;
        entry.1 += stats.count;
        entry.2 += stats.total_ms;
        entry.3 = entry.3.max(stats.max_ms);
    }
    let events: Map<String, Value> = events
        .into_iter()
        .map(|(name, (samples, count, total, max))| {
            let mean = if count == 0 { Value::Null } else { json!(total / count as f64) };
            let value = json!({"sample_count": samples, "event_count": count, "total_ms": total,
                               "mean_ms": mean, "max_ms": max});
            (name.clone(), value)
        })
        .collect();
    json!({"storage_paths": paths, "events": events})
}

fn selector(requests: &[Request]) -> Value {
    merged(requests.iter().map(|r| {
        json!({
            "strategy_selector_profile": r.strategy_selector_profile,
            "strategy_selector_rule_id": r.strategy_selector_rule_id,
            "strategy_selector_requested_override": r.strategy_selector_requested_override,
            "strategy_selector_selected_kv_cache_strategy":
                r.strategy_selector_selected_kv_cache_strategy,
            "strategy_selector_applied_kv_cache_strategy":
                r.strategy_selector_applied_kv_cache_strategy,
            "strategy_selector_fallback_chain": r.strategy_selector_fallback_chain,
        })
    }))
}

fn indices(request: &Request) -> String {
    let list = request.offload_cpu_applied_indices.iter().map(u32::to_string);
    list.collect::<Vec<_>>().join(",")
}

/// The `metrics` object of a lane that ran these requests.
pub fn merge_requests(requests: &[Request]) -> Value {
    let gaps: Vec<f64> =
        requests.iter().flat_map(|r| r.inter_token_latencies_ms.iter().copied()).collect();
    json!({
        "latency_ms": {
            "total": sum_of(requests, |r| Some(r.total_ms)),
            "generation": sum_of(requests, |r| Some(r.generation_ms)),
            "time_to_first_token": sum_of(requests, |r| r.time_to_first_token_ms),
            "inter_token_latency": sum(&gaps),
        },
        "throughput": {
            "prompt_tokens": sum_of(requests, |r| Some(r.prompt_tokens as f64)),
            "prompt_tokens_per_second": sum_of(requests, |r| r.prompt_tokens_per_second),
            "output_tokens": sum_of(requests, |r| Some(r.output_tokens as f64)),
            "output_tokens_per_second": sum_of(requests, |r| r.output_tokens_per_second),
            "decode_tokens_per_second": sum_of(requests, |r| r.decode_tokens_per_second),
        },
        "chunked_prefill": requests.last().map(|r| &r.chunked_prefill),
        "memory": memory(requests),
        "cache": {
            "cache_mode": merged(requests.iter().map(|r| &r.cache_mode)),
            "kv_cache_strategy": merged(requests.iter().map(|r| &r.kv_cache_strategy)),
            "kv_cache_adaptation": merged(requests.iter().map(|r| &r.kv_cache_adaptation)),
            "cache_dir_size_mb": sum_of(requests, |r| r.cache_dir_size_mb),
            "cache_state": merged(requests.iter().map(|r| &r.cache_state)),
        },
        "offload": {
            "cpu_policy": merged(requests.iter().map(|r| &r.offload_cpu_policy)),
            "cpu_requested_layers":
                merged(requests.iter().map(|r| r.offload_cpu_requested_layers)),
            "cpu_applied_layers": merged(requests.iter().map(|r| r.offload_cpu_applied_layers)),
            "cpu_applied_indices": merged(requests.iter().map(indices)),
        },
        "allocator": {
            "allocator_gap_mb": sum_of(requests, |r| r.allocator_gap_mb),
            "allocator_gap_ratio": sum_of(requests, |r| r.allocator_gap_ratio),
        },
        "native_runtime_profile": profile(requests),
        "storage": merged(requests.iter().map(|r| &r.storage)),
        "streamed_bytes_per_token": sum_of(requests, |r| r.streamed_bytes_per_token),
        "speculation": merged(requests.iter().map(|r| &r.speculation)),
        "border_crossings": sum_of(requests, |r| Some(r.border_crossings as f64)),
        "selector": selector(requests),
        // By the names that a request has for them.
        "null_reasons": merged(requests.iter().map(|r| &r.null_reasons)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(total_ms: f64, strategy: &str) -> Request {
        Request {
            total_ms,
            kv_cache_strategy: Some(strategy.into()),
            offload_cpu_applied_indices: vec![10, 11],
            ..Request::default()
        }
    }

    #[test]
    fn numbers_become_summaries_and_strings_must_agree() {
        let metrics = merge_requests(&[request(2.0, "a"), request(4.0, "a")]);
        assert_eq!(metrics["latency_ms"]["total"]["mean"], 3.0);
        assert_eq!(metrics["cache"]["kv_cache_strategy"], "a");
        assert_eq!(metrics["offload"]["cpu_applied_indices"], "10,11");
        let metrics = merge_requests(&[request(2.0, "a"), request(4.0, "b")]);
        assert_eq!(metrics["cache"]["kv_cache_strategy"], Value::Null);
    }

    #[test]
    fn what_no_request_measured_stays_null() {
        let metrics = merge_requests(&[request(2.0, "a")]);
        assert_eq!(metrics["cache"]["cache_dir_size_mb"], Value::Null);
        assert_eq!(metrics["latency_ms"]["time_to_first_token"], Value::Null);
        assert_eq!(metrics["native_runtime_profile"], Value::Null);
        assert_eq!(metrics["memory"]["accelerator_utilization_percent"], Value::Null);
        assert!(metrics["memory"].get("accelerator_utilization").is_none());
    }

    #[test]
    fn events_add_up_over_requests() {
        let one = BTreeMap::from([("kvload".to_string(), vec![1.0, 2.0])]);
        let mut a = request(1.0, "a");
        a.native_runtime_profile = crate::NativeProfile::of(&one);
        let metrics = merge_requests(&[a.clone(), request(1.0, "a"), a]);
        let event = &metrics["native_runtime_profile"]["events"]["kvload"];
        assert_eq!(
            (event["sample_count"].as_u64(), event["event_count"].as_u64()),
            (Some(2), Some(4))
        );
        assert_eq!((event["total_ms"].as_f64(), event["mean_ms"].as_f64()), (Some(6.0), Some(1.5)));
    }
}
