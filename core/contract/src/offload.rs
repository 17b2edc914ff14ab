//! Which weights stay in which memory: a pure function from facts to a placement.

use crate::device::WeightEncoding;
use crate::types::*;
use serde::{Deserialize, Serialize};

/// A memory, nearest first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum Tier {
    /// The accelerator's own; absent on a CPU.
    Device,
    /// Host memory.
    Host,
    /// Read again every sweep.
    Disk,
}

/// When a unit is needed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Access {
    /// Once a sweep, whole.
    Sweep,
    /// A few rows a step (embedding).
    Rows,
    /// When the router chooses it.
    Routed,
}

/// What a unit is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Role {
    /// The table of token embeddings.
    Embed,
    /// Norm weights.
    Norm,
    /// Projections of an attention layer.
    Attention,
    /// A dense feed-forward block.
    Mlp,
    /// The projection that chooses experts.
    Router,
    /// One routed expert.
    Expert,
    /// An expert that every row uses.
    SharedExpert,
    /// Projections and convolution of a recurrent layer.
    Recurrent,
    /// The projection to logits.
    Head,
    /// An audio or image encoder.
    Encoder,
}

/// A piece of weights that moves as one.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Unit {
    /// Its name in the answer.
    pub id: UnitId,
    /// The decoder layer it belongs to; `None` for what stands outside the layers.
    pub layer: Option<LayerIndex>,
    /// What it is for.
    pub role: Role,
    /// Which expert of its layer, for routed ones.
    pub expert: Option<u32>,
    /// Bytes as stored.
    pub bytes: u64,
    /// Form as stored.
    pub encoding: WeightEncoding,
    /// When it is needed.
    pub access: Access,
    /// Floating-point operations for one row.
    pub flops_per_row: u64,
}

/// A memory's room for weights, KV and activations already taken off, and its measured rates.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct TierFacts {
    /// Which memory.
    pub tier: Tier,
    /// Room for weights, in bytes.
    pub budget_bytes: u64,
    /// Towards where compute happens, in bytes per second; null when not measured.
    pub read_bytes_per_second: Option<f64>,
}

/// What an earlier sweep showed of a unit.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Observed {
    /// Which unit.
    pub unit: UnitId,
    /// How often it was needed.
    pub uses: u64,
    /// How often it was there already.
    pub cache_hits: u64,
    /// Time that compute waited for it, in milliseconds.
    pub stall_ms: f64,
}

/// The question. All units in the order of a sweep.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct PlanAsk {
    /// All units, in the order of a sweep.
    pub units: Vec<Unit>,
    /// Decoder layers of the model.
    pub layers: u32,
    /// The memories there are, nearest first.
    pub tiers: Vec<TierFacts>,
    /// Measured rate of the compute device; null when not measured.
    pub flops_per_second: Option<f64>,
    /// Rows expected in one sweep.
    pub rows_per_sweep: u32,
    /// Routed experts that a row uses in a layer; 0 for dense models.
    pub experts_per_row: u32,
    /// Placed layers that the operator asked for on the host; 0: the policy decides.
    pub host_layers: u32,
    /// Placed layers that the operator asked for on the device; 0: the policy decides.
    pub device_layers: u32,
    /// The manifest's options with the operator's changes.
    pub options: Options,
    /// What earlier sweeps showed; empty at first, and where the policy does not observe.
    pub observed: Vec<Observed>,
}

/// Where one unit goes, and why.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Placed {
    /// Which unit.
    pub unit: UnitId,
    /// Its memory.
    pub tier: Tier,
    /// Why, in a few words for the plan's table.
    pub reason: String,
}

/// The answer: every unit exactly once. The host checks budgets and refuses by the unit's name.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Placement {
    /// Every unit exactly once.
    pub units: Vec<Placed>,
    /// Room for experts that come and go, in the memory that computes them, in bytes.
    pub expert_cache_bytes: u64,
    /// How many units to read ahead of the one that runs.
    pub read_ahead_units: u32,
}

/// What the manifest must equal.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct OffloadDescription {
    /// The plugin's name.
    pub name: String,
    /// The plugin's version.
    pub version: String,
    /// Defaults, every known name.
    pub options: Options,
    /// Whether it wants [`PlanAsk::observed`], and so to be asked again at every session.
    pub observes: bool,
}

/// A placement policy.
pub trait OffloadPolicy: Send {
    /// Says who it is.
    ///
    /// # Plugin must
    /// Answer the same every time.
    ///
    /// # Cost
    /// Once a load.
    fn describe(&self) -> OffloadDescription;

    /// Places every unit.
    ///
    /// # Caller guarantees
    /// Ids are unique, tiers come nearest first.
    ///
    /// # Plugin must
    /// Be pure: the same ask gives the same answer, no I/O, no clock.
    ///
    /// # Errors
    /// Invalid (an option), OverBudget (says what is needed).
    ///
    /// # Cost
    /// Once a run, and once a session where `observes`.
    fn plan(&self, ask: &PlanAsk) -> Result<Placement>;
}
