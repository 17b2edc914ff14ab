//! The benchmark report: its wire format, its statistics and its ledger. The only crate that knows
//! how a report is spelled. It measures nothing: what it is not given is `null`, with a reason
//! beside it.
//!
//! Units are in the names: `_ms` milliseconds, `_mb` MiB (2^20 bytes), percent of one core or one
//! device.
#![forbid(unsafe_code)]

mod compare;
mod document;
mod label;
mod ledger;
mod merge;
mod probe;
mod report;
mod request;
mod speculation;
mod state;
mod stats;
mod storage;

pub use compare::{Comparison, MetricDelta, compare};
pub use document::{compact, parse, pretty, rounded};
pub use label::{codebase_label, without_credentials};
pub use ledger::{Recorded, Run, record};
pub use merge::{merge_loads, merge_requests, merge_values};
pub use probe::{ColdProbe, WarmProbe};
pub use report::{
    Details, Lane, LaneStatus, Pair, PlannerSection, Report, RuntimeComparison, Target,
};
pub use request::{
    Adaptation, ChunkedPrefill, EventStats, NativeProfile, NullReasons, Request, Resources,
    Utilization, excerpt,
};
pub use speculation::Speculation;
pub use state::CacheState;
pub use stats::{Stats, Sum, median, p95};
pub use storage::Storage;
