//! Divides a memory budget before anything is read: what is needed anyway, then KV, then weights:
//! those that stay, and staging for the others. A budget that cannot work is refused here, with
//! what is needed at least.

use crate::family::Family;
use crate::io;
use crate::pager::Frugality;
use crate::scratch;
use crate::spec::{DENSE_CHUNK_ROWS, EngineSpec, MlpChunks};
use crate::weights::{Files, Staging};
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
    /// Most rows of a step.
    rows: u32,
    /// Bytes of a memory budget that the kernel has for files on their way, where they pass through
    /// its page cache.
    passing: u64,
    /// Those of a feed-forward chunk apart: they are `dense_row` for each of its rows.
    activations: u64,
    dense_row: u64,
    tables: u64,
    vectors: u64,
    /// A row of the embedding.
    pub row_bytes: u64,
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

/// Huge pages of files that are under way, and more than as much again for other files and code:
/// with less a group of processes that is at its limit looks for a page to drop before every page
/// that it reads.
const PASSING: u64 = 32 << 20;

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
    let bytes = || files.layouts.iter().map(|layout| layout.memory());
    let layers = plan.units.iter().zip(bytes()).filter(|(u, _)| u.layer.is_some());
    Fixed {
        rows,
        passing: if files.passing { PASSING } else { 0 },
        activations: scratch::bytes_of(plan, scratch::Size { rows, dense: 0, sessions }),
        dense_row: scratch::dense_row_bytes(plan),
        tables: table_bytes(family, rows, sessions, context_tokens),
        vectors: files.vector_bytes(),
        row_bytes,
        embedding_rows: row_bytes * u64::from(rows),
        workspace,
        weights: bytes().sum(),
        largest_unit: bytes().max().unwrap_or(0),
        largest_layer_unit: layers.map(|(_, bytes)| bytes).max().unwrap_or(0),
    }
}

impl Fixed {
    /// What is needed beside KV and weights, with so many rows of a feed-forward block at once.
    fn base(&self, mlp_rows: u32) -> u64 {
        let narrow =
            self.activations + self.tables + self.vectors + self.embedding_rows + self.workspace;
        let mlp = self.dense_row.saturating_mul(u64::from(mlp_rows.min(self.rows)));
        narrow.saturating_add(mlp)
    }

    /// The same at least: no fewer rows than were asked for, or one.
    fn least_base(&self, spec: &EngineSpec) -> u64 {
        self.base(spec.dense_chunk_rows.unwrap_or(1))
    }

    /// The least memory budget that works: with everything streamed, one unit after another.
    pub(crate) fn least(&self, spec: &EngineSpec, need: &Frugality) -> u64 {
        let kv = spec.kv_budget.unwrap_or(need.bytes(need.least));
        self.least_base(spec).saturating_add(kv).saturating_add(self.largest_unit)
    }
}

/// Divides the memory budget: what is needed anyway, then KV, then weights.
pub(crate) fn divide(
    spec: &EngineSpec,
    fixed: &Fixed,
    need: &Frugality,
    chunk: u32,
) -> Result<Division> {
    let base = fixed.least_base(spec);
    let least_kv = need.bytes(need.least);
    if let Some(kv) = spec.kv_budget.filter(|kv| *kv < least_kv) {
        let text = format!(
            "a kv budget of {kv} bytes is too small for this model and strategy: at least \
             {least_kv} bytes ({} frames of {}) are needed; raise --kv-budget, or lower the \
             context",
            need.least, need.frame_bytes
        );
        return Err(Error::new(ErrorKind::OverBudget, "engine/load", text));
    }
    let (staging, least) = (fixed.largest_unit, fixed.least(spec, need));
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
    let base = fixed.base(mlp.rows);
    let rest = spec.memory_budget.map(|m| m.saturating_sub(base));
    let full_kv = need.bytes(need.full);
    let kv = match (spec.kv_budget, rest) {
        (Some(kv), _) => kv,
        (None, None) => need.bytes(need.unlimited()),
        (None, Some(rest)) if full_kv.saturating_add(fixed.weights) <= rest => full_kv,
        // Never what the largest unit needs to be read into.
        (None, Some(rest)) => {
            least_kv.max(full_kv.min(rest / 4).min(rest.saturating_sub(fixed.largest_unit)))
        }
    };
    let frames = (kv / need.frame_bytes).min(need.unlimited());
    let (kept, ring) = need.split(frames);
    let weights = rest.map(|rest| {
        let room = rest.saturating_sub(need.bytes(kept + ring));
        // Never what the largest unit needs to be read into.
        room - fixed.passing.min(room.saturating_sub(fixed.largest_unit) / 4)
    });
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

/// Staging is asked for in such parts of the largest unit, beside room for the whole of it: the
/// drive is busy while one unit is computed when the parts that follow have a place already.
const PARTS: u64 = 3;
/// The most of these parts: what streams beside them streams again every sweep, so staging is no
/// larger than a busy drive needs.
const PARTS_MOST: u64 = 2;
/// And at most this share of the room for weights.
const STAGING_SHARE: u64 = 4;

impl Division {
    /// What a policy is offered for what stays, the most hopeful first: room for everything, else
    /// what staging leaves: first for units of layers, then for the largest unit; each with less
    /// and less read ahead.
    pub(crate) fn offers(&self, fixed: &Fixed) -> Vec<Option<u64>> {
        let Some(room) = self.weights else { return vec![None] };
        if room >= fixed.weights {
            return vec![Some(room)];
        }
        let mut offers = Vec::new();
        for largest in [fixed.largest_layer_unit, fixed.largest_unit] {
            for parts in (0..=PARTS_MOST).rev() {
                let staging = largest + fixed.largest_layer_unit * parts / PARTS;
                if parts == 0 || staging <= room / STAGING_SHARE {
                    offers.push(Some(room.saturating_sub(staging)));
                }
            }
        }
        offers
    }

    /// Staging for units of these sizes, in the order of a sweep, beside so many bytes that stay;
    /// `None` where there is no room for the largest. What no unit needs to stay goes to staging,
    /// up to `ahead` units beyond the one that is computed.
    pub(crate) fn staging(&self, resident: u64, streamed: &[u64], ahead: u32) -> Option<Staging> {
        let Some(largest) = streamed.iter().copied().max() else { return Some(Staging::default()) };
        let ahead = (ahead as usize).min(streamed.len() - 1);
        let window = |units: usize| {
            let start = |at: usize| streamed.iter().cycle().skip(at).take(units).sum::<u64>();
            (0..streamed.len()).map(start).max().unwrap_or(0)
        };
        let room = self.weights.map_or(Some(u64::MAX), |room| room.checked_sub(resident))?;
        let bytes = window(1 + ahead).min(room);
        let whole = (0..=ahead).rev().find(|units| window(1 + units) <= bytes);
        (bytes >= largest).then(|| Staging { bytes, ahead, whole: whole.unwrap_or(0) })
    }
}
