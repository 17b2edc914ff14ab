//! The report of a whole benchmark run, section by section.

use crate::request::NullReasons;
use crate::stats::Stats;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A lane's facts, keyed as its kind demands.
pub type Details = Map<String, Value>;

/// Whether a lane has figures.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LaneStatus {
    /// It ran to its end.
    Measured,
    /// It did not; `details.reason` says why.
    Unavailable,
}

/// One lane: what was measured, or why it was not.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Lane {
    /// As `requested-optimized-cold-start`.
    pub name: String,
    /// Whether it has figures.
    pub status: LaneStatus,
    /// Timings; null unless measured.
    pub stats: Option<Stats>,
    /// Everything else.
    pub details: Details,
    /// Why what is null is null.
    pub null_reasons: NullReasons,
}

impl Lane {
    /// A lane that ran.
    pub fn measured(name: &str, stats: Option<Stats>, details: Details) -> Lane {
        let mut null_reasons = NullReasons::new();
        if stats.is_none() {
            null_reasons.insert("stats".into(), "the lane kept no sample".into());
        }
        Lane { name: name.into(), status: LaneStatus::Measured, stats, details, null_reasons }
    }

    /// A lane that did not run to its end; the reason goes into the details too.
    pub fn unavailable(name: &str, reason: &str, mut details: Details) -> Lane {
        details.insert("reason".into(), reason.into());
        let null_reasons = NullReasons::from([("stats".to_string(), reason.to_string())]);
        Lane {
            name: name.into(),
            status: LaneStatus::Unavailable,
            stats: None,
            details,
            null_reasons,
        }
    }

    /// Mean of the samples, milliseconds, of a measured lane.
    pub fn mean_ms(&self) -> Option<f64> {
        self.stats.as_ref().map(|s| s.mean_ms)
    }

    fn reason(&self) -> Option<String> {
        self.details.get("reason").and_then(Value::as_str).map(String::from)
    }
}

/// The same lane by the generic and by the native backend.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Pair {
    /// The generic backend's.
    pub generic: Lane,
    /// The engine's.
    pub optimized_native: Lane,
    /// Whether both were measured.
    pub comparison_available: bool,
    /// Generic mean over native mean; null unless both were measured.
    pub speedup_ratio: Option<f64>,
    /// Why there is no ratio.
    pub reason: Option<String>,
    /// Why what is null is null.
    pub null_reasons: NullReasons,
}

impl Pair {
    /// Puts two lanes side by side.
    pub fn new(generic: Lane, optimized_native: Lane) -> Pair {
        let speedup_ratio = match (generic.mean_ms(), optimized_native.mean_ms()) {
            (Some(slow), Some(fast)) if fast > 0.0 => Some(slow / fast),
            _ => None,
        };
        let mut null_reasons = NullReasons::new();
        let reason = speedup_ratio.is_none().then(|| {
            let found = generic.reason().or_else(|| optimized_native.reason());
            found.unwrap_or_else(|| "a lane has no samples".into())
        });
        if let Some(reason) = &reason {
            null_reasons.insert("speedup_ratio".into(), reason.clone());
        }
        Pair {
            comparison_available: speedup_ratio.is_some(),
            generic,
            optimized_native,
            speedup_ratio,
            reason,
            null_reasons,
        }
    }
}

/// Cost of planning, with and without specialization.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct PlannerSection {
    /// Planned as a run would be.
    pub specialization_enabled: Lane,
    /// Planned for the generic backend.
    pub specialization_disabled: Lane,
    /// Enabled mean minus disabled mean; null unless both were measured.
    pub mean_delta_ms: Option<f64>,
    /// Why what is null is null.
    pub null_reasons: NullReasons,
}

impl PlannerSection {
    /// Puts two planner lanes side by side.
    pub fn new(specialization_enabled: Lane, specialization_disabled: Lane) -> PlannerSection {
        let means = (specialization_enabled.mean_ms(), specialization_disabled.mean_ms());
        let mean_delta_ms = if let (Some(a), Some(b)) = means { Some(a - b) } else { None };
        let mut null_reasons = NullReasons::new();
        if mean_delta_ms.is_none() {
            null_reasons.insert("mean_delta_ms".into(), "a planner lane was not measured".into());
        }
        PlannerSection {
            specialization_enabled,
            specialization_disabled,
            mean_delta_ms,
            null_reasons,
        }
    }
}

/// One model's lanes.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Target {
    /// `requested`, or a family's name.
    pub family: String,
    /// As it was asked for.
    pub model_reference: String,
    /// Whether the model is there.
    pub materialized: bool,
    /// Its directory; null for the embedded model.
    pub model_path: Option<String>,
    /// Load and one request, a process an iteration.
    pub cold_start: Pair,
    /// Requests of a loaded runtime.
    pub warm_runtime: Pair,
    /// Why what is null is null.
    pub null_reasons: NullReasons,
}

/// Backends against each other.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct RuntimeComparison {
    /// The model that was asked for.
    pub primary_target: Target,
    /// A row a family; empty under the quick profile.
    pub family_results: Vec<Target>,
    /// Null when no family ran.
    pub all_family_cold_start_comparisons_available: Option<bool>,
    /// Null when no family ran.
    pub all_family_warm_runtime_comparisons_available: Option<bool>,
    /// Why what is null is null.
    pub null_reasons: NullReasons,
}

/// Everything that one `bench` measured.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Report {
    /// UTC, RFC 3339.
    pub generated_at: String,
    /// As it was asked for.
    pub benchmark_model_reference: String,
    /// The device plugin, with its ordinal where it has several.
    pub device: String,
    /// The machine.
    pub host: Details,
    /// The plugins that ran, with digests of manifest and library.
    pub plugins: Vec<Details>,
    /// Rates that the machine was probed for; null where none was.
    pub ceilings: Option<Details>,
    /// Planning this model.
    pub specialization_planner_overhead: PlannerSection,
    /// Planning a model that nothing specialises.
    pub fallback_cost_when_no_specialization_applies: PlannerSection,
    /// Backends against each other.
    pub runtime_comparison: RuntimeComparison,
    /// Why what is null is null.
    pub null_reasons: NullReasons,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lane(ms: f64) -> Lane {
        Lane::measured("x", Stats::of(&[ms], 0), Details::new())
    }

    #[test]
    fn a_ratio_needs_both_lanes() {
        let pair = Pair::new(lane(8.0), lane(2.0));
        assert_eq!((pair.speedup_ratio, pair.reason), (Some(4.0), None));
        let missing = Lane::unavailable("x", "not built here", Details::new());
        let pair = Pair::new(missing, lane(2.0));
        assert_eq!(pair.speedup_ratio, None);
        assert_eq!(pair.reason.as_deref(), Some("not built here"));
        assert_eq!(pair.null_reasons["speedup_ratio"], "not built here");
        assert!(!pair.comparison_available);
    }

    #[test]
    fn the_planner_delta_may_be_negative() {
        assert_eq!(PlannerSection::new(lane(1.0), lane(3.0)).mean_delta_ms, Some(-2.0));
    }

    #[test]
    fn a_status_is_spelled_as_the_report_spells_it() {
        let value = serde_json::to_value(lane(1.0)).unwrap();
        assert_eq!(value["status"], "measured");
        let value = serde_json::to_value(Lane::unavailable("x", "y", Details::new())).unwrap();
        assert_eq!(
            (&value["status"], &value["details"]["reason"]),
            (&"unavailable".into(), &"y".into())
        );
    }
}
