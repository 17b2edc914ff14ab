//! The report for people, on stderr: nothing that the report does not hold.

use comfy_table::{ContentArrangement, Table};
use kvern_report::{Lane, LaneStatus, Report};
use serde_json::Value;

/// A table of the lanes, and a line of what planning cost.
pub fn of(report: &Report) -> String {
    let mut table = Table::new();
    // As wide as its words, whatever the terminal is: the table is the same everywhere.
    table.set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(["lane", "mean ms", "median ms", "first token ms", "tokens/s", "peak MiB"]);
    let target = &report.runtime_comparison.primary_target;
    for pair in [&target.cold_start, &target.warm_runtime] {
        for lane in [&pair.optimized_native, &pair.generic] {
            table.add_row(row(lane));
        }
    }
    let planner = report.specialization_planner_overhead.specialization_enabled.mean_ms();
    let planning = planner.map_or("not measured".into(), |ms| format!("{ms:.3} ms"));
    format!("{} on {}; planning {planning}\n{table}", target.model_reference, report.device)
}

fn row(lane: &Lane) -> Vec<String> {
    let (LaneStatus::Measured, Some(stats)) = (lane.status, &lane.stats) else {
        return vec![lane.name.clone(), "unavailable".into()];
    };
    let mean = |path: &str| {
        let metrics = lane.details.get("metrics").and_then(|m| m.pointer(path));
        metrics.and_then(Value::as_f64).map_or("-".into(), |x| format!("{x:.2}"))
    };
    vec![
        lane.name.clone(),
        format!("{:.2}", stats.mean_ms),
        format!("{:.2}", stats.median_ms),
        mean("/latency_ms/time_to_first_token/mean"),
        mean("/throughput/output_tokens_per_second/mean"),
        mean("/memory/peak_rss_mb/max"),
    ]
}
