//! One run against an earlier one of the same key.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// A metric, now and then.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct MetricDelta {
    /// This run's value.
    pub current: f64,
    /// The earlier run's.
    pub previous: f64,
    /// Current minus previous.
    pub absolute_delta: f64,
    /// That over previous, in percent; null for previous 0.
    pub percent_delta: Option<f64>,
}

/// All metrics that both runs have.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Comparison {
    /// By name.
    pub metrics: BTreeMap<String, MetricDelta>,
    /// Names that got worse by more than 5 percent, sorted. One run against one run: noise is in
    /// it.
    pub potential_regressions: Vec<String>,
}

/// Whether more is worse, for metrics that are judged; `None` for counters, which are only shown.
fn more_is_worse(name: &str) -> Option<bool> {
    if name.ends_with("_per_second") {
        return Some(false);
    }
    (name.ends_with("_ms") || name.ends_with("_mb")).then_some(true)
}

/// Compares two summaries; what is null or absent on either side is left out.
pub fn compare(current: &Map<String, Value>, previous: &Map<String, Value>) -> Comparison {
    let mut out = Comparison::default();
    for (name, value) in current {
        let before = previous.get(name).and_then(Value::as_f64);
        let (Some(now), Some(before)) = (value.as_f64(), before) else { continue };
        let delta = now - before;
        let percent = (before != 0.0).then(|| 100.0 * delta / before);
        let worse = match (more_is_worse(name), percent) {
            (Some(true), Some(p)) => p > 5.0,
            (Some(false), Some(p)) => p < -5.0,
            (Some(true), None) => delta > 0.0,
            _ => false,
        };
        if worse {
            out.potential_regressions.push(name.clone());
        }
        let delta = MetricDelta {
            current: now,
            previous: before,
            absolute_delta: delta,
            percent_delta: percent,
        };
        out.metrics.insert(name.clone(), delta);
    }
    out.potential_regressions.sort();
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn summary(value: Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn times_may_not_rise_and_throughput_may_not_fall() {
        let was =
            summary(json!({"load_ms": 100.0, "output_tokens_per_second": 10.0, "spill_count": 1}));
        let now =
            summary(json!({"load_ms": 106.0, "output_tokens_per_second": 9.0, "spill_count": 9}));
        let worse = compare(&now, &was);
        assert_eq!(worse.potential_regressions, ["load_ms", "output_tokens_per_second"]);
        assert_eq!(worse.metrics["spill_count"].percent_delta, Some(800.0));
        assert!(compare(&was, &now).potential_regressions.is_empty());
    }

    #[test]
    fn nothing_is_divided_by_zero() {
        let was = summary(json!({"load_ms": 0.0, "kvload_ms": null}));
        let now = summary(json!({"load_ms": 1.0, "kvload_ms": 2.0}));
        let delta = compare(&now, &was);
        assert_eq!(delta.metrics["load_ms"].percent_delta, None);
        assert_eq!(delta.potential_regressions, ["load_ms"]);
        assert!(!delta.metrics.contains_key("kvload_ms"));
    }
}
