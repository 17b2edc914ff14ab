//! What a run would do, decided as the run decides it, without reading weights.

use crate::blueprint::Blueprint;
use crate::budget::ALLOWANCE;
use crate::ceilings::Known;
use crate::chosen::Origin;
use crate::fail::Outcome;
use crate::read_path::Reading;
use crate::runtime::{Prepared, Room};
use crate::settings::Settings;
use kvern_engine::{Engine, PlanFacts, Prediction, UnitFacts, UnitTier};
use kvern_storage::ServiceSpec;
use serde_json::{Map, Value, json};

/// Tokens of a session where nobody says how many: a prompt of 256, and as many new ones as
/// `generate` makes unless it is told otherwise.
const TOKENS: u64 = 512;

/// What was decided, and how long it would take.
pub struct Planned {
    /// What was asked for.
    pub settings: Settings,
    /// The model's name.
    pub model: String,
    /// The plugins: kv, offload, device.
    pub origins: [Origin; 3],
    /// Why this offload policy.
    pub offload_why: String,
    /// How weights are read.
    pub reading: Reading,
    /// What reads them.
    pub service: ServiceSpec,
    /// Why no ring does.
    pub no_ring: Option<String>,
    /// What was measured.
    pub known: Known,
    /// What the engine decided.
    pub facts: PlanFacts,
    /// Rows of the sweep that is foreseen.
    pub rows: u32,
}

impl Planned {
    /// Plans for so many sequences at once. *Errors* as a run, but for those of reading.
    pub fn of(prepared: Prepared, sequences: u32) -> Outcome<Planned> {
        let most = prepared.context_limit();
        let Prepared { settings, model, plugins, .. } = prepared;
        let tokens = settings.context_tokens.unwrap_or(TOKENS).min(most);
        let offload_why = plugins.offload_why.clone();
        let room = Room { tokens: Some(tokens), sessions: sequences };
        let blueprint = Blueprint::new(&settings, &model, plugins, room)?;
        blueprint.tell(&settings);
        let Blueprint { spec, reading, service, no_ring, known, origins } = blueprint;
        let (facts, model) = (Engine::plan(spec)?, model.name().to_string());
        let rows = sequences;
        Ok(Planned {
            settings,
            model,
            origins,
            offload_why,
            reading,
            service,
            no_ring,
            known,
            facts,
            rows,
        })
    }

    /// How long a sweep takes; `None` where a rate was not measured.
    pub fn foreseen(&self) -> Option<Prediction> {
        self.facts.predict(self.known.rates(self.rows), self.rows)
    }

    /// The same with the drive as it was in its best moment.
    pub fn at_best(&self) -> Option<Prediction> {
        self.facts.predict(self.known.best_rates(self.rows), self.rows)
    }

    /// Why there is no prediction.
    pub fn unforeseen(&self) -> String {
        let drive = self.known.drive.as_ref().err().filter(|_| self.facts.read_bytes > 0);
        let why = self.known.device.as_ref().err().or(drive);
        why.cloned().unwrap_or_else(|| "a rate was not measured".into())
    }

    /// Everything, for a document.
    pub fn document(&self) -> Value {
        let facts = &self.facts;
        let [kv, offload, device] = self.origins.each_ref().map(|o| o.described.name.as_str());
        let holders =
            facts.holders.iter().map(|(holder, bytes)| json!({"holder": holder, "bytes": bytes}));
        let prediction = self.foreseen().map(|p| told(&p, self.at_best().as_ref()));
        let mut reasons = Map::new();
        if prediction.is_none() {
            reasons.insert("prediction".into(), self.unforeseen().into());
        }
        json!({
            "model": self.model,
            "plugins": {"kv": kv, "offload": offload, "offload_reason": self.offload_why,
                        "device": device, "threads": self.settings.threads},
            "context_tokens": facts.context_tokens, "sequences": facts.sessions,
            "rows_per_step": facts.rows,
            "mlp_chunking_mode": facts.mlp_chunks.mode(),
            "mlp_chunking_max_rows": facts.mlp_chunks.rows,
            "memory_budget": {
                "bytes": facts.budget, "from": self.settings.memory.from.word(),
                "limit_bytes": self.settings.memory.limit, "allowance_bytes": ALLOWANCE,
                "least_bytes": facts.least_budget, "holders": holders.collect::<Vec<_>>(),
            },
            "placement": {
                "policy": facts.placement.policy, "requested_layers": facts.placement.requested,
                "applied_layers": facts.placement.applied,
                "applied_indices": facts.placement.indices,
                "resident_bytes": facts.placement.resident_bytes,
                "streamed_bytes": facts.streamed_bytes,
            },
            "units": facts.units.iter().map(unit).collect::<Vec<_>>(),
            "sweep": {
                "streamed_bytes": facts.streamed_bytes, "read_bytes": facts.read_bytes,
                "staging_bytes": facts.staging_bytes, "read_ahead_units": facts.read_ahead_units,
                "copied_tensors": facts.copied.0, "copied_bytes": facts.copied.1,
            },
            "reading": {
                "path": self.reading.word(), "reason": self.reading.reason,
                "direct": facts.direct, "direct_refused": facts.refused,
                "io": facts.path, "io_reason": self.no_ring,
                "block_bytes": self.service.piece_bytes, "depth": self.service.depth,
                "bytes_per_second_limit": self.service.bytes_per_second,
            },
            "ceilings": self.known.document(self.rows),
            "prediction": prediction,
            "null_reasons": reasons,
        })
    }
}

fn unit(unit: &UnitFacts) -> Value {
    json!({
        "name": unit.name, "layer": unit.layer, "role": unit.role, "bytes": unit.bytes,
        "tier": tier(unit.tier), "reason": unit.reason, "flops_per_row": unit.flops_per_row,
    })
}

/// As documents and tables spell it.
pub fn tier(tier: UnitTier) -> &'static str {
    match tier {
        UnitTier::Resident => "kept",
        UnitTier::Streamed => "streamed",
        UnitTier::Rows => "by row",
    }
}

fn told(usual: &Prediction, best: Option<&Prediction>) -> Value {
    let rows = f64::from(usual.rows);
    json!({
        "rows": usual.rows,
        "seconds_per_sweep": usual.seconds,
        "seconds_per_token": usual.seconds / rows,
        "tokens_per_second": rows / usual.seconds,
        "read_seconds": usual.read,
        "compute_seconds": usual.compute,
        "apart_seconds": usual.apart,
        "seconds_per_sweep_at_best_drive": best.map(|p| p.seconds),
    })
}
