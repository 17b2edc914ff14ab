//! Divides a memory budget before anything is read: what is needed anyway, then KV, then weights. A
//! budget that cannot work is refused here, with what is needed at least.

use crate::family::{Family, UnitPlan};
use crate::io;
use crate::pager::Frugality;
use crate::scratch;
use crate::spec::EngineSpec;
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
    /// Bytes for weights, those that stay and staging for the others; `None`: no limit.
    pub weights: Option<u64>,
}

/// Bytes that do not depend on a choice.
pub(crate) struct Fixed {
    activations: u64,
    tables: u64,
    vectors: u64,
    /// Rows of an embedding that is not in memory.
    embedding_rows: u64,
    /// What the device's ops take beside their operands.
    pub workspace: u64,
    weights: u64,
    largest_unit: u64,
}

/// Bytes of the tables of any step.
pub(crate) fn table_bytes(family: &dyn Family, rows: u32, context_tokens: u64) -> u64 {
    let plan = family.plan();
    let pages = context_tokens.div_ceil(u64::from(PAGE_TOKENS));
    let half = plan.inverse_frequencies.len() as u64;
    io::bytes_of(u64::from(rows), plan.layers.len() as u64, pages, half)
}

/// What a model takes whatever is chosen.
pub(crate) fn fixed(family: &dyn Family, files: &Files, rows: u32, context_tokens: u64) -> Fixed {
    let plan = family.plan();
    let table = files.stored[plan.embedding.0.0];
    let row_bytes = table.bytes / u64::from(table.outputs.max(1));
    let bytes = |u: &UnitPlan| unit_bytes(&u.matrices, &files.stored);
    Fixed {
        activations: scratch::bytes_of(plan, u64::from(rows)),
        tables: table_bytes(family, rows, context_tokens),
        vectors: files.vector_bytes(),
        embedding_rows: row_bytes * u64::from(rows),
        workspace: 0,
        weights: plan.units.iter().map(bytes).sum(),
        largest_unit: plan.units.iter().map(bytes).max().unwrap_or(0),
    }
}

/// Divides the memory budget: what is needed anyway, then KV, then weights.
pub(crate) fn divide(
    spec: &EngineSpec,
    fixed: &Fixed,
    need: &Frugality,
    chunk: u32,
) -> Result<Division> {
    let base =
        fixed.activations + fixed.tables + fixed.vectors + fixed.embedding_rows + fixed.workspace;
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
             (activations and workspace {}, step tables {}, norms and embedding rows {}, kv {}, weight staging \
             {staging}); raise \
             --memory-budget, or lower --prefill-chunk",
            fixed.activations + fixed.workspace,
            fixed.tables,
            fixed.vectors + fixed.embedding_rows,
            least - base - staging
        );
        return Err(Error::new(ErrorKind::OverBudget, "engine/load", text));
    }
    let rest = spec.memory_budget.map(|m| m - base);
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
    Ok(Division { kept, ring, chunk: need.chunk(chunk, kept), weights })
}

/// Streamed units that memory holds at once where there is room.
const SLOTS: u64 = 2;

impl Division {
    /// What a policy is offered: all of it where everything fits, else what staging leaves.
    pub(crate) fn offer(&self, fixed: &Fixed) -> Option<u64> {
        let room = self.weights?;
        if room >= fixed.weights {
            return Some(room);
        }
        let two = room.checked_sub(SLOTS * fixed.largest_unit);
        Some(two.unwrap_or_else(|| room.saturating_sub(fixed.largest_unit)))
    }

    /// Slots for streamed units, beside so many bytes that stay.
    pub(crate) fn slots(&self, fixed: &Fixed, resident_bytes: u64) -> usize {
        let Some(room) = self.weights else { return SLOTS as usize };
        let left = room.saturating_sub(resident_bytes) / fixed.largest_unit.max(1);
        left.clamp(1, SLOTS) as usize
    }
}
