//! From a run to its record: what makes it comparable, and the few numbers that stand for it.

use super::Session;
use crate::cli::{CompareFlags, ProbeArgs, ProbeMode};
use crate::fail::{Failure, Outcome};
use crate::machine::Machine;
use crate::out;
use crate::planner::Plan;
use crate::plugin::hex_digest;
use crate::runtime::Runtime;
use crate::selector::Selection;
use crate::settings::Settings;
use kvern_report::{
    Details, Report, Run, codebase_label, merge_requests, record, rounded, without_credentials,
};
use serde::Serialize;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Records a report, unless it was asked not to.
pub fn record_report(session: &Session<'_>, report: &Report) -> Outcome<()> {
    let flags = &session.args.compare;
    if flags.no_record_history {
        return Ok(());
    }
    let cold = &report.runtime_comparison.primary_target.cold_start.optimized_native;
    let load_ms = cold.details.get("load").and_then(|l| l.pointer("/latency_ms/mean")).cloned();
    let metrics = cold.details.get("metrics").cloned().unwrap_or(Value::Null);
    let mut summary = summary(load_ms.unwrap_or(Value::Null), &metrics);
    let warm = &report.runtime_comparison.primary_target.warm_runtime.optimized_native;
    summary.insert("warm_request_total_ms".into(), json!(warm.mean_ms()));
    let own = json!({
        "profile_id": session.args.profile,
        "iterations": session.iterations,
        "warmup_iterations": session.warmup,
    });
    let facts = Facts {
        kind: "report",
        reference: ("benchmark_model_reference", session.reference()),
        device: &session.device,
        settings: &session.settings,
        selection: &selection_of(&session.plan),
        machine: &session.machine,
        plugins: json!(session.plugins),
    };
    write(flags, &facts, own, summary, report)
}

fn selection_of(plan: &Plan) -> Selection {
    plan.selection.clone()
}

/// Records a probe, unless it was asked not to.
pub fn record_probe(
    args: &ProbeArgs,
    settings: &Settings,
    runtime: &Runtime,
    load_ms: f64,
    requests: &[kvern_report::Request],
    document: &impl Serialize,
) -> Outcome<()> {
    if args.compare.no_record_history {
        return Ok(());
    }
    let kind = if args.mode == ProbeMode::Cold { "probe-cold" } else { "probe-warm" };
    let prompt = json!([args.prompt, args.prompt_file, args.prompt_tokens]).to_string();
    let own = json!({
        "backend": args.backend,
        "prompt_sha256": hex_digest(prompt.as_bytes()),
        "max_new_tokens": args.max_new_tokens,
        "iterations": args.iterations,
        "warmup_iterations": args.warmup_iterations,
        "ignore_eos": args.ignore_eos,
    });
    let versions: Vec<_> = runtime
        .origins
        .iter()
        .map(|o| json!({"name": o.described.name, "version": o.described.version}))
        .collect();
    let facts = Facts {
        kind,
        reference: ("model_reference", settings.model.as_deref().unwrap_or(crate::model::EMBEDDED)),
        device: &runtime.origins[2].described.name,
        settings,
        selection: &runtime.selection,
        machine: &Machine::read(),
        plugins: json!(versions),
    };
    write(&args.compare, &facts, own, summary(json!(load_ms), &merge_requests(requests)), document)
}

/// What runs of every kind have.
struct Facts<'a> {
    kind: &'a str,
    reference: (&'a str, &'a str),
    device: &'a str,
    settings: &'a Settings,
    selection: &'a Selection,
    machine: &'a Machine,
    plugins: Value,
}

fn object(value: Value) -> Details {
    value.as_object().cloned().unwrap_or_default()
}

fn key(facts: &Facts<'_>, label: &str, own: Value) -> Details {
    let Facts { settings, selection, .. } = facts;
    let asked = if selection.requested_override.is_empty() {
        "auto"
    } else {
        &selection.requested_override
    };
    let mut out = object(json!({
        "run_kind": facts.kind,
        "codebase_label": label,
        facts.reference.0: facts.reference.1,
        "device": facts.device,
        "kv_cache_strategy": asked,
        "strategy_selector_profile": selection.profile,
        "strategy_selector_rule_id": selection.rule_id,
        "strategy_selector_applied_kv_cache_strategy": selection.applied,
        "kv_cache_window_tokens": settings.window_tokens,
        "offload_cpu_layers": settings.offload_cpu_layers,
        "offload_cpu_policy": settings.offload.name.as_deref().unwrap_or("auto"),
        "offload_gpu_layers": 0,
        "use_specialization": true,
        "memory_budget": settings.memory.bytes,
        "kv_budget": settings.kv_budget,
        "threads": settings.threads,
        "prefill_chunk": settings.prefill_chunk,
        "dense_projection_chunk_rows": settings.dense_chunk_rows,
        "dtypes": format!("{:?} {:?}", settings.kv_dtype, settings.compute).to_lowercase(),
        "host": [&facts.machine.hostname, &facts.machine.cpu],
        "plugins": versions(&facts.plugins),
    }));
    out.extend(object(own));
    out
}

/// Names and versions alone: paths and digests may differ between runs that are the same.
fn versions(plugins: &Value) -> Vec<String> {
    let text = |p: &Value, key: &str| p[key].as_str().unwrap_or_default().to_string();
    let rows = plugins.as_array().into_iter().flatten();
    rows.map(|p| format!("{} {}", text(p, "name"), text(p, "version"))).collect()
}

/// The numbers that stand for a run, from its merged metrics.
fn summary(load_ms: Value, metrics: &Value) -> Details {
    let at = |path: &str| metrics.pointer(path).cloned().unwrap_or(Value::Null);
    let event = |name: &str| at(&format!("/native_runtime_profile/events/{name}/total_ms"));
    let state = |name: &str| at(&format!("/cache/cache_state/{name}/mean"));
    let mut out = object(json!({
        "load_ms": load_ms,
        "request_total_ms": at("/latency_ms/total/mean"),
        "ttft_ms": at("/latency_ms/time_to_first_token/mean"),
        "prompt_tokens_per_second": at("/throughput/prompt_tokens_per_second/mean"),
        "output_tokens_per_second": at("/throughput/output_tokens_per_second/mean"),
        "cache_dir_size_mb": at("/cache/cache_dir_size_mb/mean"),
        "allocator_gap_mb": at("/allocator/allocator_gap_mb/mean"),
        "peak_rss_mb": at("/memory/peak_rss_mb/mean"),
        "accelerator_peak_mb": at("/memory/accelerator_peak_mb/mean"),
        "accelerator_peak_reserved_mb": at("/memory/accelerator_peak_reserved_mb/mean"),
        "kvload_ms": event("kvload"),
        "kvsave_ms": event("kvsave"),
        "kvcompact_ms": event("kvcompact"),
        "cold_store_format": at("/cache/cache_state/cold_store_format"),
        "cold_tier_representation": at("/cache/cache_state/cold_tier_representation"),
    }));
    for name in [
        "persisted_tokens",
        "persisted_artifact_count",
        "hot_tokens",
        "compaction_count",
        "spill_count",
        "spilled_tokens",
        "eviction_count",
        "evicted_tokens",
    ] {
        out.insert(name.into(), state(name));
    }
    out
}

fn write(
    flags: &CompareFlags,
    facts: &Facts<'_>,
    own: Value,
    summary: Details,
    payload: &impl Serialize,
) -> Outcome<()> {
    let checkout = Checkout::read();
    let label = flags.history_codebase_label.clone().unwrap_or_else(|| checkout.label.clone());
    let root = flags
        .history_dir
        .clone()
        .or_else(|| facts.settings.history_dir.clone())
        .unwrap_or_else(|| PathBuf::from(".kvern/benchmark-history"));
    let now = jiff::Timestamp::now();
    let run = Run {
        generated_at: now.to_string(),
        run_kind: facts.kind.into(),
        comparison_key: key(facts, &label, own),
        codebase: object(json!({"label": label, "origin_url": checkout.origin})),
        host: object(
            json!({"hostname": facts.machine.hostname, "platform": facts.machine.platform,
                            "kernel": facts.machine.kernel, "cpu": facts.machine.cpu}),
        ),
        git: object(json!({"branch": checkout.branch, "commit": checkout.commit})),
        summary,
        comparison_to_previous: None,
        payload: rounded(payload).map_err(Failure::new)?,
    };
    let stamp = now.strftime("%Y%m%dT%H%M%S%.6fZ").to_string();
    let recorded = record(&root, run, &stamp)
        .map_err(|e| Failure::new(format!("the report is whole, but the ledger failed: {e}")))?;
    out::note(&format!("benchmark history recorded [{label}]: {}", recorded.path.display()));
    let worse = recorded.comparison.map(|c| c.potential_regressions).unwrap_or_default();
    if !worse.is_empty() {
        out::note(&format!("potential benchmark regressions: {}", worse.join(", ")));
    }
    Ok(())
}

/// The checkout that holds the harness, where it still is.
struct Checkout {
    label: String,
    origin: Option<String>,
    branch: Option<String>,
    commit: Option<String>,
}

impl Checkout {
    fn read() -> Checkout {
        let source = Path::new(env!("CARGO_MANIFEST_DIR"));
        let git = |arguments: &[&str]| {
            let output = Command::new("git").arg("-C").arg(source).args(arguments).output().ok()?;
            let text = String::from_utf8(output.stdout).ok()?.trim().to_string();
            (output.status.success() && !text.is_empty()).then_some(text)
        };
        let origin = git(&["remote", "get-url", "origin"]);
        let top = git(&["rev-parse", "--show-toplevel"]);
        let directory = top.as_deref().and_then(|t| Path::new(t).file_name());
        let directory = directory.map(|d| d.to_string_lossy().into_owned());
        let label = origin.as_deref().and_then(codebase_label).or(directory);
        Checkout {
            label: label.unwrap_or_else(|| "kvern".into()),
            origin: origin.as_deref().map(without_credentials),
            branch: git(&["rev-parse", "--abbrev-ref", "HEAD"]),
            commit: git(&["rev-parse", "HEAD"]),
        }
    }
}
