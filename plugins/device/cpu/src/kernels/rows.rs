//! Rows by index, the largest of a row, and plain copies.
#![allow(unsafe_code)]
// Kernels: every body is pointer arithmetic under the promise that its function states.
#![allow(unsafe_op_in_unsafe_fn)]

use super::lanes::{LANES, Lanes};
use super::overlap::{Range, apart};
use super::product;
use crate::exec::Worker;
use crate::task::{Embed, Move, Plan, Rows, Top};
use kvern_contract::{ErrorKind, RowsKind};
use std::cmp::Ordering;

/// Bytes of a copy that are one worker's.
const COPY_CHUNK: usize = 256 * 1024;
/// Columns of a scatter that are one worker's: a cache line.
const COLUMNS: usize = LANES;

fn within(table: *const u32, rows: usize, bound: u64) -> Result<Plan, ErrorKind> {
    for row in 0..rows {
        // SAFETY: `check` made sure of an index for each row.
        let index = unsafe { table.add(row).read_unaligned() };
        if u64::from(index) >= bound {
            return Err(ErrorKind::Invalid);
        }
    }
    Ok(Plan { phases: 1, ..Plan::default() })
}

/// Checks ids against the vocabulary. *Errors* Invalid.
pub(crate) fn plan_embed(task: &Embed) -> Result<Plan, ErrorKind> {
    let out = Range::of(task.out, task.rows * task.width * 4);
    apart(out, &[Range::of(task.ids, task.rows * 4)])?;
    within(task.ids, task.rows, task.vocabulary as u64)
}

/// Checks indices against the rows there are. *Errors* Invalid.
pub(crate) fn plan_rows(task: &Rows) -> Result<Plan, ErrorKind> {
    let plan = within(task.indices, task.rows, task.bound)?;
    for row in 0..task.rows {
        let to = match task.kind {
            RowsKind::Gather => row,
            // SAFETY: `check` made sure of an index for each row.
            _ => unsafe { task.indices.add(row).read_unaligned() as usize },
        };
        let out = Range::of(task.out.wrapping_add(to * task.width), task.width * 4);
        apart(out, &[Range::of(task.indices, task.rows * 4)])?;
    }
    Ok(plan)
}

/// A worker's part. The caller has a checked and planned task.
#[inline(always)]
pub(crate) unsafe fn embed<V: Lanes>(task: &Embed, worker: &Worker<'_>) {
    while let Some(range) = worker.next(task.rows, worker.share(task.rows, 2)) {
        for row in range {
            let id = task.ids.add(row).read_unaligned() as usize;
            let from = task.table.add(id * task.width * product::width(task.dtype));
            let out = task.out.add(row * task.width);
            product::widen::<V>(task.dtype, from, out, task.width);
            for at in 0..task.width {
                let value = out.add(at).read_unaligned() * task.scale;
                out.add(at).write_unaligned(value);
            }
        }
    }
}

/// A worker's part. The caller has a checked and planned task.
#[inline(always)]
pub(crate) unsafe fn rows<V: Lanes>(task: &Rows, worker: &Worker<'_>) {
    let width = task.width;
    if task.kind == RowsKind::Gather {
        while let Some(range) = worker.next(task.rows, worker.share(task.rows, 2)) {
            for row in range {
                let index = task.indices.add(row).read_unaligned() as usize;
                let (from, to) = (task.x.add(index * width), task.out.add(row * width));
                std::ptr::copy_nonoverlapping(from.cast::<u8>(), to.cast(), width * 4);
            }
        }
        return;
    }
    // By columns: rows that meet in one place are then one worker's, in order.
    let columns = width.div_ceil(COLUMNS);
    while let Some(range) = worker.next(columns, worker.share(columns, 2)) {
        let (from, to) = (range.start * COLUMNS, width.min(range.end * COLUMNS));
        for row in 0..task.rows {
            let index = task.indices.add(row).read_unaligned() as usize;
            let (x, out) = (task.x.add(row * width), task.out.add(index * width));
            let mut at = from;
            while at < to {
                let n = LANES.min(to - at);
                let mut v = super::norm::read::<V>(x, 1, at, n);
                if task.kind == RowsKind::ScatterAdd {
                    v = super::norm::read::<V>(out, 1, at, n).add(v);
                }
                super::norm::write(v, out, 1, at, n);
                at += n;
            }
        }
    }
}

/// NaN before all numbers, so that it is seen; then the larger; then the lower id.
fn rank(a: (f32, u32), b: (f32, u32)) -> Ordering {
    let by_value = match (a.0.is_nan(), b.0.is_nan()) {
        (true, true) => Ordering::Equal,
        (true, false) => Ordering::Less,
        (false, true) => Ordering::Greater,
        (false, false) => b.0.partial_cmp(&a.0).unwrap_or(Ordering::Equal),
    };
    by_value.then(a.1.cmp(&b.1))
}

/// A worker's part. The caller has a checked task.
#[inline(always)]
pub(crate) unsafe fn top(task: &Top, worker: &Worker<'_>) {
    let mut best: Vec<(f32, u32)> = Vec::new();
    while let Some(range) = worker.next(task.rows, 1) {
        let row = range.start;
        let logits = task.logits.add(row * task.width);
        best.clear();
        for id in 0..task.width {
            let item = (logits.add(id).read_unaligned(), id as u32);
            // Ids ascend, so an equal value comes later: it needs a larger one to get in.
            let full = best.len() == task.top;
            let enters = match best.last() {
                Some(last) if full => !(item.0 <= last.0 || last.0.is_nan()),
                _ => true,
            };
            if enters {
                if full {
                    best.pop();
                }
                let at = best.partition_point(|other| rank(*other, item) == Ordering::Less);
                best.insert(at, item);
            }
        }
        for (at, (value, id)) in best.iter().enumerate() {
            task.ids.add(row * task.top + at).write_unaligned(*id);
            task.values.add(row * task.top + at).write_unaligned(*value);
        }
    }
}

/// A worker's part. The caller has a checked task.
pub(crate) unsafe fn copy(task: &Move, worker: &Worker<'_>) {
    let (from, to) = (task.from as usize, task.to as usize);
    // Parts of overlapping ranges may not go at once.
    let apart = from.abs_diff(to) >= task.bytes;
    let chunk = if apart { COPY_CHUNK } else { task.bytes.max(1) };
    while let Some(range) = worker.next(task.bytes, chunk) {
        std::ptr::copy(task.from.add(range.start), task.to.add(range.start), range.len());
    }
}
