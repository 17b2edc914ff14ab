//! The report: every key there, every null explained, both lanes measured, the ledger kept.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use kvern_e2e::{Scratch, kvern};
use serde_json::Value;

/// Every null of a document must have its reason beside it; `allowed` are keys that are null by
/// their meaning.
fn explained(value: &Value, path: &str, allowed: &[&str], bad: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (key, inner) in map {
                let path = format!("{path}/{key}");
                let reason = map.get("null_reasons").and_then(|r| r.get(key));
                let fine = allowed.iter().any(|a| path.contains(a));
                if inner.is_null() && reason.is_none() && !fine {
                    bad.push(path.clone());
                }
                explained(inner, &path, allowed, bad);
            }
        }
        Value::Array(items) => {
            items.iter().for_each(|item| explained(item, &format!("{path}[]"), allowed, bad));
        }
        _ => {}
    }
}

#[test]
fn the_quick_report_measures_both_lanes_and_explains_every_null() {
    let scratch = Scratch::new();
    let out = scratch.at("reports/report.json");
    let ended = kvern(&scratch, ["bench", "--no-record-history", "--output", &out]);
    let report = ended.json();
    assert_eq!(std::fs::read_to_string(out).unwrap(), ended.stdout);
    assert!(!scratch.path().join(".kvern").exists(), "the ledger was to be left alone");
    assert!(ended.stdout.starts_with("{\n  \"benchmark_model_reference\""));
    let target = &report["runtime_comparison"]["primary_target"];
    for lane in ["cold_start", "warm_runtime"] {
        let pair = &target[lane];
        assert_eq!(pair["optimized_native"]["status"], "measured", "{pair}");
        assert!(pair["optimized_native"]["stats"]["mean_ms"].as_f64().unwrap() > 0.0);
        assert_eq!(pair["generic"]["status"], "unavailable");
        assert_eq!(pair["reason"], pair["generic"]["details"]["reason"]);
    }
    for section in
        ["specialization_planner_overhead", "fallback_cost_when_no_specialization_applies"]
    {
        assert!(report[section]["mean_delta_ms"].is_number(), "{section}");
    }
    let mut bad = Vec::new();
    // Merged metrics are null where no request had a number, and say so by their own meaning.
    explained(&report, "", &["/metrics/", "/details/load/resources/", "/plugins"], &mut bad);
    assert!(bad.is_empty(), "{bad:?}");
    assert!(ended.stderr.contains("requested-optimized-cold-start"));
}

#[test]
fn a_probe_measures_requests_of_the_asked_size_from_an_empty_history() {
    let scratch = Scratch::new();
    let arguments = ["bench", "probe", "--mode", "warm", "--prompt-tokens", "70"];
    let more = ["--max-new-tokens", "5", "--iterations", "2", "--warmup-iterations", "1"];
    let flags = ["--ignore-eos", "--no-record-history", "--kv-cache-strategy", "resident"];
    let probe = kvern(&scratch, arguments.iter().chain(&more).chain(&flags)).json();
    let requests = probe["measured_iterations"].as_array().unwrap();
    assert_eq!((requests.len(), probe["warmup_iterations"].as_u64()), (2, Some(1)));
    for request in requests {
        assert_eq!(
            (request["prompt_tokens"].as_u64(), request["output_tokens"].as_u64()),
            (Some(70), Some(5))
        );
        assert_eq!(request["reused_prompt_tokens"], 0);
        assert_eq!(request["inter_token_latencies_ms"].as_array().unwrap().len(), 4);
        let mut bad = Vec::new();
        explained(request, "", &[], &mut bad);
        assert!(bad.is_empty(), "{bad:?}");
    }
}

#[test]
fn a_lane_that_cannot_run_is_recorded_with_its_reason() {
    let scratch = Scratch::new();
    let ended = kvern(&scratch, ["bench", "--no-record-history", "--memory-budget", "1KiB"]);
    let report = ended.json();
    let target = &report["runtime_comparison"]["primary_target"];
    let lane = &target["cold_start"]["optimized_native"];
    assert_eq!(lane["status"], "unavailable");
    assert!(lane["details"]["reason"].as_str().unwrap().contains("at least"), "{lane}");
    assert_eq!(lane["details"]["returncode"], 1);
    assert_eq!(lane["stats"], Value::Null);
    let absent =
        kvern(&scratch, ["bench", "--no-record-history", "--model-reference", "nowhere"]).json();
    let target = &absent["runtime_comparison"]["primary_target"];
    assert_eq!(target["materialized"], false);
    assert_eq!(target["cold_start"]["optimized_native"]["status"], "unavailable");
    assert!(absent["specialization_planner_overhead"]["mean_delta_ms"].is_number());
}

#[test]
fn the_ledger_keeps_every_run_and_compares_runs_of_one_key() {
    let scratch = Scratch::new();
    let run = |strategy: &str| {
        let arguments = ["bench", "probe", "--mode", "cold", "--kv-cache-strategy", strategy];
        let more = ["--history-dir", "history", "--history-codebase-label", "mine"];
        let ended = kvern(&scratch, arguments.iter().chain(&more));
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        assert!(ended.stderr.contains("benchmark history recorded [mine]: "), "{}", ended.stderr);
    };
    ["resident", "chunked", "resident"].into_iter().for_each(run);
    let index = std::fs::read_to_string(scratch.path().join("history/index.jsonl")).unwrap();
    let lines: Vec<Value> = index.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let compared: Vec<bool> =
        lines.iter().map(|l| !l["comparison_to_previous"].is_null()).collect();
    assert_eq!(compared, [false, false, true]);
    assert_eq!(scratch.files("history/records").len(), 3);
    assert_eq!(scratch.files("history/latest").len(), 2);
}
