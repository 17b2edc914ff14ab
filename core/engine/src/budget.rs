//! Divides a memory budget before anything is read: what is needed anyway, then KV, then weights. A
//! budget that cannot work is refused here, with what is needed at least.

use crate::family::{Family, UnitPlan};
use crate::io;
use crate::pager::Frugality;
use crate::scratch;
use crate::spec::{DENSE_CHUNK_ROWS, EngineSpec, MlpChunks};
use crate::weights::{Files, unit_bytes};
use kvern_contract::{Error, ErrorKind, PAGE_TOKENS, Result};

/// How a load divides memory.
pub(crate) struct Division {
    /// Frames for pages that stay.
    pub kept: u64,
    /// Frames for pages that pass through.
    pub ring: u64,
    /// Most rows of a step.
    pub chunk: u32,
    /// How its feed-forward blocks are cut.
    pub mlp: MlpChunks,
    /// Bytes for weights, those that stay and staging for the others; `None`: no limit.
    pub weights: Option<u64>,
}

/// Bytes that do not depend on a choice.
pub(crate) struct Fixed {
    /// Those of a feed-forward chunk apart: they are `dense_row` for each of its rows.
    activations: u64,
    dense_row: u64,
    tables: u64,
    vectors: u64,
    /// Rows of an embedding that is not in memory.
    embedding_rows: u64,
    /// What the device's ops take beside their operands.
    workspace: u64,
    weights: u64,
    largest_unit: u64,
    largest_layer_unit: u64,
}

/// Bytes of the tables of any step.
pub(crate) fn table_bytes(
    family: &dyn Family,
    rows: u32,
    sessions: u32,
    context_tokens: u64,
) -> u64 {
    let plan = family.plan();
    io::bytes_of(io::Size {
        rows: u64::from(rows),
        layers: plan.layers.len() as u64,
        sessions: u64::from(sessions),
        pages: context_tokens.div_ceil(u64::from(PAGE_TOKENS)),
        rotary_half: plan.inverse_frequencies.len() as u64,
    })
}

/// What a model takes whatever is chosen.
pub(crate) fn fixed(
    family: &dyn Family,
    files: &Files,
    rows: u32,
    sessions: u32,
    context_tokens: u64,
    workspace: u64,
) -> Fixed {
    let plan = family.plan();
    let table = files.stored[plan.embedding.0.0];
    let row_bytes = table.bytes / u64::from(table.outputs.max(1));
    let bytes = |u: &UnitPlan| unit_bytes(&u.matrices, &files.stored);
    let layers = plan.units.iter().filter(|u| u.layer.is_some());
    Fixed {
        activations: scratch::bytes_of(plan, scratch::Size { rows, dense: 0, sessions }),
        dense_row: scratch::dense_row_bytes(plan),
        tables: table_bytes(family, rows, sessions, context_tokens),
        vectors: files.vector_bytes(),
        embedding_rows: row_bytes * u64::from(rows),
        workspace,
        weights: plan.units.iter().map(bytes).sum(),
        largest_unit: plan.units.iter().map(bytes).max().unwrap_or(0),
        largest_layer_unit: layers.map(bytes).max().unwrap_or(0),
    }
}

/// Divides the memory budget: what is needed anyway, then KV, then weights.
pub(crate) fn divide(
    spec: &EngineSpec,
    fixed: &Fixed,
    need: &Frugality,
    chunk: u32,
) -> Result<Division> {
    let narrow =
        fixed.activations + fixed.tables + fixed.vectors + fixed.embedding_rows + fixed.workspace;
    // No fewer rows than asked for, or one: that much is needed anyway.
    let mlp_bytes = |rows: u32| fixed.dense_row.saturating_mul(u64::from(rows.min(chunk)));
    let base = narrow.saturating_add(mlp_bytes(spec.dense_chunk_rows.unwrap_or(1)));
    let least_kv = need.bytes(need.least);
    if let Some(kv) = spec.kv_budget.filter(|kv| *kv < least_kv) {
        let text = format!(
            "a kv budget of {kv} bytes is too small for this model and strategy: at least \
             {least_kv} bytes ({} frames of {}) are needed; raise --kv-budget, or lower the context",
            need.least, need.frame_bytes
        );
        return Err(Error::new(ErrorKind::OverBudget, "engine/load", text));
    }
    let staging = fixed.largest_unit.min(fixed.weights);
    let least = base.saturating_add(spec.kv_budget.unwrap_or(least_kv)).saturating_add(staging);
    if let Some(memory) = spec.memory_budget.filter(|m| *m < least) {
        let text = format!(
            "a memory budget of {memory} bytes is too small: at least {least} are needed \
             (activations and workspace {}, step tables {}, norms and embedding rows {}, kv {}, \
             weight staging {staging}); raise --memory-budget, or lower --prefill-chunk",
            base - fixed.tables - fixed.vectors - fixed.embedding_rows,
            fixed.tables,
            fixed.vectors + fixed.embedding_rows,
            least - base - staging
        );
        return Err(Error::new(ErrorKind::OverBudget, "engine/load", text));
    }
    let mlp = mlp_chunks(spec, fixed.dense_row, spec.memory_budget.map(|m| m - least));
    let base = narrow.saturating_add(mlp_bytes(mlp.rows));
    let rest = spec.memory_budget.map(|m| m.saturating_sub(base));
    let full_kv = need.bytes(need.full);
    let kv = match (spec.kv_budget, rest) {
        (Some(kv), _) => kv,
        (None, None) => need.bytes(need.unlimited()),
        (None, Some(rest)) if full_kv.saturating_add(fixed.weights) <= rest => full_kv,
        (None, Some(rest)) => least_kv.max(full_kv.min(rest / 4)),
    };
    let frames = (kv / need.frame_bytes).min(need.unlimited());
    let (kept, ring) = need.split(frames);
    let weights = rest.map(|rest| rest.saturating_sub(need.bytes(kept + ring)));
    Ok(Division { kept, ring, chunk: need.chunk(chunk, kept), mlp, weights })
}

/// Feed-forward activations take at most this part of what a budget leaves beyond the least: what
/// they take, streamed weights lack.
const MLP_PART: u64 = 32;

/// As many rows at once as were asked for, else as there is headroom for, at least one.
fn mlp_chunks(spec: &EngineSpec, row_bytes: u64, headroom: Option<u64>) -> MlpChunks {
    if let Some(rows) = spec.dense_chunk_rows {
        return MlpChunks { explicit: true, rows: rows.max(1) };
    }
    let fit = headroom.and_then(|bytes| (bytes / MLP_PART).checked_div(row_bytes));
    let most = u64::from(DENSE_CHUNK_ROWS);
    let rows = fit.map_or(most, |rows| rows.clamp(1, most));
    MlpChunks { explicit: false, rows: rows as u32 }
}

/// Streamed units that memory holds at once where there is room.
const SLOTS: u64 = 2;

impl Division {
    /// What a policy is offered for what stays, the most hopeful first: room for everything, else
    /// what staging for two units of a layer leaves, else what staging for the largest unit leaves.
    pub(crate) fn offers(&self, fixed: &Fixed) -> Vec<Option<u64>> {
        let Some(room) = self.weights else { return vec![None] };
        if room >= fixed.weights {
            return vec![Some(room)];
        }
        let less = |staging: u64| Some(room.saturating_sub(staging));
        vec![less(SLOTS * fixed.largest_layer_unit), less(fixed.largest_unit)]
    }

    /// Slots for streamed units of at most `largest` bytes beside so many that stay; `None` where
    /// there is no room for one.
    pub(crate) fn slots(&self, resident_bytes: u64, largest: u64) -> Option<usize> {
        let Some(room) = self.weights else { return Some(SLOTS as usize) };
        match room.checked_sub(resident_bytes)?.checked_div(largest) {
            Some(0) => None,
            slots => Some(slots.unwrap_or(1).min(SLOTS) as usize),
        }
    }
}
