//! Which weights stay in which memory: a pure function from facts to a placement.

use crate::device::WeightEncoding;
use crate::types::*;
use serde::{Deserialize, Serialize};

/// A memory, nearest first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum Tier {
    Device, // the accelerator's own; absent on a CPU
    Host,   // host memory
    Disk,   // read again every sweep
}
/// When a unit is needed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Access {
    Sweep,  // once a sweep, whole
    Rows,   // a few rows a step (embedding)
    Routed, // when the router chooses it
}
/// What a unit is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Role {
    Embed,
    Norm,
    Attention,
    Mlp,
    Router,
    Expert,
    SharedExpert,
    Recurrent,
    Head,
    Encoder,
}

/// A piece of weights that moves as one.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Unit {
    pub id: UnitId,
    pub layer: Option<LayerIndex>,
    pub role: Role,
    pub expert: Option<u32>,
    pub bytes: u64,
    pub encoding: WeightEncoding,
    pub access: Access,
    pub flops_per_row: u64,
}
/// A memory's room for weights, KV and activations already taken off, and its measured rates.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct TierFacts {
    pub tier: Tier,
    pub budget_bytes: u64,
    pub read_bytes_per_second: Option<f64>, // towards where compute happens; null when not measured
}
/// What an earlier sweep showed of a unit.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Observed {
    pub unit: UnitId,
    pub uses: u64,
    pub cache_hits: u64,
    pub stall_ms: f64,
}
/// The question. All units in the order of a sweep.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct PlanAsk {
    pub units: Vec<Unit>,
    pub layers: u32,
    pub tiers: Vec<TierFacts>,
    pub flops_per_second: Option<f64>,
    pub rows_per_sweep: u32,
    pub experts_per_row: u32,
    /// Placed layers that the operator asked for on host and device; 0: the policy decides.
    pub host_layers: u32,
    pub device_layers: u32,
    pub options: Options,
    pub observed: Vec<Observed>,
}
/// Where one unit goes, and why, in a few words for the plan's table.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Placed {
    pub unit: UnitId,
    pub tier: Tier,
    pub reason: String,
}
/// The answer: every unit exactly once. The host checks budgets and refuses by the unit's name.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Placement {
    pub units: Vec<Placed>,
    pub expert_cache_bytes: u64, // room for experts that come and go, in the memory that computes them
    pub read_ahead_units: u32,
}
/// What the manifest must equal.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct OffloadDescription {
    pub name: String,
    pub version: String,
    pub options: Options,
    pub observes: bool,
}

/// A placement policy.
pub trait OffloadPolicy: Send {
    /// Who it is. *Cost* once a load.
    fn describe(&self) -> OffloadDescription;
    /// Places every unit. *Caller*: ids unique, tiers nearest first. *Plugin*: the same ask gives the same
    /// answer, no I/O, no clock. *Errors* Invalid (an option), OverBudget (says what is needed). *Cost* once a
    /// run, and once a session where `observes`.
    fn plan(&self, ask: &PlanAsk) -> Result<Placement>;
}
