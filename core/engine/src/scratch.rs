//! Buffers of activations, carried softmax state and logits, for the largest step.

use crate::family::Plan;
use crate::weights::import;
use kvern_contract::{Buffer, DeviceBackend, Error, ErrorKind, Result, Slice, Space};
use kvern_storage::{Budget, Region};
use std::sync::Arc;

/// Most bytes of logits at once: rows come in waves of as many as fit.
const LOGITS_BYTES: u64 = 4 << 20;
/// At least so many rows in a wave; with many sessions one for each, so that the head's weights
/// are gone through once.
const LOGITS_ROWS_LEAST: u64 = 4;
/// At most.
const LOGITS_ROWS_MOST: u64 = 64;

/// How large a step can be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    /// Rows of a step.
    pub rows: u32,
    /// Of these, rows that a feed-forward block runs at once.
    pub dense: u32,
    /// Sequences of a batch.
    pub sessions: u32,
}

/// Buffers of the largest step.
pub(crate) struct Activations {
    /// By `Scratch`, f32 `[row][width]`.
    pub slices: Vec<Slice>,
    /// f32 `[row][head][2 + value_dim]`.
    pub state: Slice,
    logits: Arc<Region>,
    /// f32 `[row][vocabulary]`.
    pub logits_at: Slice,
    /// Rows of a wave.
    pub logits_rows: u32,
    vocabulary: u32,
}

fn state_bytes(plan: &Plan, rows: u64) -> u64 {
    let heads = plan.attention.iter().zip(&plan.layers);
    let widest = heads.map(|(a, l)| u64::from(a.heads) * u64::from(2 + l.value_dim)).max();
    4 * rows * widest.unwrap_or(0)
}

fn logits_rows(plan: &Plan, sessions: u32) -> u64 {
    let fit = LOGITS_BYTES / (4 * u64::from(plan.vocabulary));
    let least = u64::from(sessions).clamp(LOGITS_ROWS_LEAST, LOGITS_ROWS_MOST / 2);
    fit.clamp(least, LOGITS_ROWS_MOST)
}

/// Rows of each buffer: those of a step, or those of a chunk of a feed-forward block.
fn rows_of(plan: &Plan, size: Size) -> impl Iterator<Item = (u64, u32)> {
    let (rows, dense) = (u64::from(size.rows), u64::from(size.dense.min(size.rows)));
    let only_dense = |index| plan.dense.iter().any(|d| d.0 == index);
    let sized = move |(index, width)| (if only_dense(index) { dense } else { rows }, width);
    plan.scratch.iter().copied().enumerate().map(sized)
}

/// Bytes that all of this takes.
pub(crate) fn bytes_of(plan: &Plan, size: Size) -> u64 {
    let activations: u64 = rows_of(plan, size).map(|(rows, w)| 4 * rows * u64::from(w)).sum();
    let logits = logits_rows(plan, size.sessions) * 4 * u64::from(plan.vocabulary);
    activations + state_bytes(plan, u64::from(size.rows)) + logits
}

/// Bytes that each row of a feed-forward chunk takes.
pub(crate) fn dense_row_bytes(plan: &Plan) -> u64 {
    plan.dense.iter().map(|d| 4 * u64::from(plan.scratch[d.0])).sum()
}

impl Activations {
    pub(crate) fn new(
        plan: &Plan,
        size: Size,
        device: &mut dyn DeviceBackend,
        budget: &Budget,
    ) -> Result<Self> {
        budget.reserve("activations", bytes_of(plan, size))?;
        let mut alloc = |bytes: u64| -> Result<Slice> {
            let buffer = device.alloc(bytes.max(64), Space::Device)?;
            if buffer == Buffer(0) {
                let name = device.describe().name;
                let text = format!("device `{name}` gave no memory where {bytes} bytes were asked");
                return Err(Error::new(ErrorKind::Invalid, "device/alloc", text));
            }
            Ok(Slice { buffer, offset: 0 })
        };
        let sized = rows_of(plan, size);
        let slices =
            sized.map(|(rows, w)| alloc(4 * rows * u64::from(w))).collect::<Result<_>>()?;
        let state = alloc(state_bytes(plan, u64::from(size.rows)))?;
        let logits_rows = logits_rows(plan, size.sessions) as u32;
        let bytes = logits_rows as usize * plan.vocabulary as usize * 4;
        let logits = Region::new(bytes)?;
        let logits_at = Slice { buffer: import(device, &logits)?, offset: 0 };
        let vocabulary = plan.vocabulary;
        Ok(Activations { slices, state, logits, logits_at, logits_rows, vocabulary })
    }

    /// Logits of the first `rows` rows of a wave. *Caller*: has waited for them.
    pub(crate) fn read_logits(&self, rows: u32, into: &mut Vec<f32>) -> Result<()> {
        let bytes = rows as usize * self.vocabulary as usize * 4;
        let lease = self.logits.lend(0, bytes)?;
        into.clear();
        let values = lease.chunks_exact(4);
        into.extend(values.map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])));
        Ok(())
    }
}
