//! What a load would do, said without reading weights: `kvern plan`.

use crate::budget::table_bytes;
use crate::engine::Engine;
use crate::load::Outline;
use crate::placement;
use crate::predict::{self, Timed};
use crate::scratch::{self, Size};
use crate::spec::{EngineSpec, PlacementFacts, Rates};
use kvern_contract::{Access, Result};

/// What a load decides.
#[derive(Clone, PartialEq, Debug, Default)]
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
    /// How long a token takes; `None` where a rate that it depends on was not measured.
    pub prediction: Option<Prediction>,
}

/// A unit of weights, and where it goes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct UnitFacts {
    /// `layer 3 mlp`, `head`.
    pub name: String,
    /// Bytes of its weights.
    pub bytes: u64,
    /// Where it lives.
    pub tier: UnitTier,
    /// The policy's reason.
    pub reason: String,
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

/// One row in one sweep, in seconds.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Prediction {
    /// A token.
    pub seconds_per_token: f64,
    /// Reading what is streamed, by itself.
    pub read: f64,
    /// Computing on all weights, by itself.
    pub compute: f64,
    /// What a token takes beyond the longer of the two: where staging is full while the device
    /// computes, or empty while it waits.
    pub apart: f64,
}

impl Engine {
    /// Decides as [`Engine::load`] does, and reads no weights. *Errors* as `load`, but for those of
    /// reading.
    pub fn plan(mut spec: EngineSpec) -> Result<PlanFacts> {
        let outline = Outline::of(&mut spec)?;
        let units = outline.units();
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
            direct: outline.files.direct,
            refused: outline.files.refused.clone(),
            path: spec.storage.path_kind(),
            prediction: outline.predict(&units, spec.rates),
            placement: outline.placed.facts,
            units,
        })
    }
}

impl UnitFacts {
    fn is_streamed(&self) -> bool {
        self.tier == UnitTier::Streamed
    }
}

impl Outline {
    fn units(&self) -> Vec<UnitFacts> {
        let units = placement::units(self.family.plan(), &self.files);
        let of = units.iter().zip(&self.files.layouts);
        let of = of.zip(self.placed.resident.iter().zip(&self.placed.reasons));
        let unit = of.map(|((unit, layout), (resident, reason))| UnitFacts {
            name: placement::describe(unit),
            bytes: layout.matrix_bytes,
            tier: match (resident, unit.access) {
                (true, _) => UnitTier::Resident,
                (false, Access::Sweep) => UnitTier::Streamed,
                (false, _) => UnitTier::Rows,
            },
            reason: reason.clone(),
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

    fn predict(&self, units: &[UnitFacts], rates: Rates) -> Option<Prediction> {
        let rate = |rate: Option<f64>| rate.filter(|r| r.is_finite() && *r > 0.0);
        let memory = rate(rates.memory)?;
        let swept = units.iter().zip(&self.files.layouts);
        let swept = swept.zip(&self.family.plan().units);
        let swept = swept.filter(|(_, unit)| unit.access == Access::Sweep);
        let timed = swept.map(|((facts, layout), _)| Timed {
            compute: facts.bytes as f64 / memory,
            extents: match facts.is_streamed() {
                true => layout.extents.iter().map(|e| e.memory).collect(),
                false => Vec::new(),
            },
        });
        let timed: Vec<Timed> = timed.collect();
        let bytes: u64 = timed.iter().flat_map(|t| &t.extents).sum();
        let drive = match bytes {
            0 => 1.0,
            _ => rate(rates.drive)?,
        };
        let (read, compute) = (bytes as f64 / drive, timed.iter().map(|t| t.compute).sum::<f64>());
        let staging = self.staging;
        let seconds_per_token = predict::seconds(&timed, staging.bytes, staging.ahead, drive);
        let apart = (seconds_per_token - read.max(compute)).max(0.0);
        Some(Prediction { seconds_per_token, read, compute, apart })
    }
}
