//! What a load would do, and how long a sweep would take, said without reading weights.

use crate::budget::table_bytes;
use crate::engine::Engine;
use crate::load::Outline;
use crate::placement;
use crate::predict::{self, Timed};
use crate::scratch::{self, Size};
use crate::spec::{EngineSpec, MlpChunks, PlacementFacts, Rates};
use kvern_contract::{Access, KvEncoding, PAGE_TOKENS, Result, Role, Unit};

/// What a load decides.
#[derive(Clone, PartialEq, Debug)]
pub struct PlanFacts {
    /// Where the weights go.
    pub placement: PlacementFacts,
    /// Every unit, in the order of a sweep.
    pub units: Vec<UnitFacts>,
    /// Bytes of weights that a sweep streams.
    pub streamed_bytes: u64,
    /// Bytes that are read for that: ranges are rounded to what the files want.
    pub read_bytes: u64,
    /// Memory in which streamed units take turns, in bytes.
    pub staging_bytes: u64,
    /// Units that are under way while one is computed, wherever in the sweep; parts of more may be.
    pub read_ahead_units: u32,
    /// Tensors that are copied in memory every sweep, and their bytes.
    pub copied: (u64, u64),
    /// The memory budget; `None`: no limit.
    pub budget: Option<u64>,
    /// Who would hold how many bytes of it, largest first; of KV frames the most there can be.
    pub holders: Vec<(String, u64)>,
    /// The least memory budget with which this loads, in bytes.
    pub least_budget: u64,
    /// Tokens that a session may hold.
    pub context_tokens: u64,
    /// Most rows of a step.
    pub rows: u32,
    /// Every file is read round the page cache.
    pub direct: bool,
    /// Why one is not, where that was asked for.
    pub refused: Option<String>,
    /// What moves the bytes, as the storage names itself.
    pub path: &'static str,
    /// How feed-forward blocks are cut.
    pub mlp_chunks: MlpChunks,
    /// Sequences that may run at once.
    pub sessions: u32,
    /// Most units under way beyond the one that is computed.
    ahead: usize,
}

/// A unit of weights, and where it goes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct UnitFacts {
    /// `layer 3 mlp`, `head`.
    pub name: String,
    /// Its layer; `None` outside of the layers.
    pub layer: Option<u32>,
    /// `attention`, `mlp`, `head`, `embed`.
    pub role: String,
    /// Bytes of its weights.
    pub bytes: u64,
    /// Where it lives.
    pub tier: UnitTier,
    /// The policy's reason.
    pub reason: String,
    /// Operations of one row on it.
    pub flops_per_row: u64,
    /// Bytes of K and V that its attention goes through for each token of a row's history.
    pub history_bytes: u64,
    /// Bytes of each of its reads, rounded to what the memory wants; none unless it is streamed.
    pub reads: Vec<u64>,
}

/// Where a unit lives.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum UnitTier {
    /// In memory, for as long as the engine lives.
    #[default]
    Resident,
    /// On disk, read every sweep.
    Streamed,
    /// On disk, of which a step reads the rows that it needs.
    Rows,
}

/// One sweep with a row of each of some sequences, in seconds. Each row's history is half of the
/// context.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Prediction {
    /// Rows: tokens that the sweep advances.
    pub rows: u32,
    /// The sweep.
    pub seconds: f64,
    /// Reading what is streamed, by itself.
    pub read: f64,
    /// Computing on all weights and histories, by itself.
    pub compute: f64,
    /// What a sweep takes beyond the longer of the two: where staging is full while the device
    /// computes, or empty while it waits.
    pub apart: f64,
}

impl Engine {
    /// Decides as [`Engine::load`] does, and reads no weights. *Errors* as `load`, but for those of
    /// reading.
    pub fn plan(mut spec: EngineSpec) -> Result<PlanFacts> {
        let outline = Outline::of(&mut spec)?;
        let units = outline.units(spec.kv_dtype);
        let streamed = || units.iter().zip(&outline.files.layouts).filter(|(u, _)| u.is_streamed());
        let copied = streamed().map(|(_, layout)| layout.copied());
        Ok(PlanFacts {
            streamed_bytes: streamed().map(|(u, _)| u.bytes).sum(),
            read_bytes: streamed().map(|(_, layout)| layout.read_bytes()).sum(),
            staging_bytes: outline.staging.bytes,
            read_ahead_units: outline.staging.whole as u32,
            copied: copied.fold((0, 0), |a, c| (a.0 + c.0, a.1 + c.1)),
            budget: spec.memory_budget,
            holders: outline.holders(&units),
            least_budget: outline.fixed.least(&spec, &outline.need),
            context_tokens: outline.context_tokens,
            rows: outline.division.chunk,
            mlp_chunks: outline.division.mlp,
            sessions: outline.opening.sessions,
            ahead: outline.staging.ahead,
            direct: outline.files.direct,
            refused: outline.files.refused.clone(),
            path: spec.storage.path_kind(),
            placement: outline.placed.facts,
            units,
        })
    }
}

impl PlanFacts {
    /// How long a sweep takes that advances `rows` sequences by a token each; `None` where a rate
    /// that it depends on was not measured. `rates.flops` is that of so many rows.
    pub fn predict(&self, rates: Rates, rows: u32) -> Option<Prediction> {
        let rate = |rate: Option<f64>| rate.filter(|r| r.is_finite() && *r > 0.0);
        let (memory, many) = (rate(rates.memory)?, f64::from(rows.max(1)));
        let flops = if rows > 1 { Some(rate(rates.flops)?) } else { None };
        let history = self.context_tokens as f64 / 2.0;
        let compute = |unit: &UnitFacts| {
            let weights = unit.bytes as f64 / memory;
            let sums = flops.map_or(0.0, |rate| unit.flops_per_row as f64 * many / rate);
            weights.max(sums) + unit.history_bytes as f64 * history * many / memory
        };
        let swept = self.units.iter().filter(|unit| unit.flops_per_row > 0);
        let timed = swept.map(|u| Timed { compute: compute(u), extents: u.reads.clone() });
        let timed: Vec<Timed> = timed.collect();
        let bytes: u64 = timed.iter().flat_map(|t| &t.extents).sum();
        let drive = match bytes {
            0 => 1.0,
            _ => rate(rates.drive)?,
        };
        let (read, compute) = (bytes as f64 / drive, timed.iter().map(|t| t.compute).sum::<f64>());
        let seconds = predict::seconds(&timed, self.staging_bytes, self.ahead, drive);
        let apart = (seconds - read.max(compute)).max(0.0);
        Some(Prediction { rows: rows.max(1), seconds, read, compute, apart })
    }
}

impl UnitFacts {
    fn is_streamed(&self) -> bool {
        self.tier == UnitTier::Streamed
    }
}

impl Outline {
    fn units(&self, encoding: KvEncoding) -> Vec<UnitFacts> {
        let plan = self.family.plan();
        let units = placement::units(plan, &self.files);
        let history = |unit: &Unit| {
            let layer = unit.layer.filter(|_| unit.role == Role::Attention);
            let layer = layer.and_then(|layer| plan.layers.get(layer.0 as usize));
            layer.map_or(0, |layer| layer.page_bytes(encoding) / u64::from(PAGE_TOKENS))
        };
        let of = units.iter().zip(&self.files.layouts);
        let of = of.zip(self.placed.resident.iter().zip(&self.placed.reasons));
        let unit = of.map(|((unit, layout), (resident, reason))| UnitFacts {
            name: placement::describe(unit),
            layer: unit.layer.map(|layer| layer.0),
            role: format!("{:?}", unit.role).to_lowercase(),
            bytes: layout.matrix_bytes,
            tier: match (resident, unit.access) {
                (true, _) => UnitTier::Resident,
                (false, Access::Sweep) => UnitTier::Streamed,
                (false, _) => UnitTier::Rows,
            },
            reason: reason.clone(),
            flops_per_row: unit.flops_per_row,
            history_bytes: history(unit),
            reads: match (resident, unit.access) {
                (false, Access::Sweep) => layout.extents.iter().map(|e| e.memory).collect(),
                _ => Vec::new(),
            },
        });
        unit.collect()
    }

    /// What a load would reserve.
    fn holders(&self, units: &[UnitFacts]) -> Vec<(String, u64)> {
        let (plan, division) = (self.family.plan(), &self.division);
        let rows = division.chunk;
        let stays = units.iter().zip(&plan.units).any(|(facts, unit)| {
            facts.tier == UnitTier::Resident && unit.matrices.contains(&plan.embedding.0)
        });
        let weights = self.placed.resident_memory + self.files.vector_bytes();
        let embedding = if stays { 0 } else { self.fixed.row_bytes * u64::from(rows) };
        let sessions = self.opening.sessions;
        let tables = table_bytes(self.family.as_ref(), rows, sessions, self.context_tokens);
        let size = Size { rows, dense: division.mlp.rows, sessions };
        let mut holders = vec![
            ("weights", weights),
            ("weight staging", self.staging.bytes),
            ("kv frames", self.need.bytes(division.kept + division.ring)),
            ("activations", scratch::bytes_of(plan, size)),
            ("step tables", tables),
            ("device workspace", self.workspace),
            ("embedding rows", embedding),
        ];
        holders.retain(|(_, bytes)| *bytes > 0);
        holders.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(b.0)));
        holders.into_iter().map(|(name, bytes)| (name.to_string(), bytes)).collect()
    }
}
