//! Rotary positions, and new K and V into their frames.
//!
//! Plain IEEE operations without fusion, so one body serves all instruction sets.
#![allow(unsafe_code)]
// Kernels: every body is pointer arithmetic under the promise that its function states.
#![allow(unsafe_op_in_unsafe_fn)]

use super::lanes::{f32_to_bf16, f32_to_half};
use super::overlap::{Range, apart};
use crate::exec::Worker;
use crate::task::{Plan, Rope};
use kvern_contract::{ErrorKind, KvEncoding, PAGE_TOKENS, RowWrite};

/// Checks positions and places. *Errors* Invalid.
pub(crate) fn plan(task: &Rope) -> Result<Plan, ErrorKind> {
    let (turned, kept) = (task.rotary > 0, task.kv_heads > 0);
    let tables = [
        Range::of(task.positions, if turned { task.rows * 4 } else { 0 }),
        Range::of(task.writes, if kept { task.rows * size_of::<RowWrite>() } else { 0 }),
    ];
    if turned {
        apart(Range::of(task.q, task.rows * task.heads * task.key_dim * 4), &tables)?;
    }
    for row in 0..task.rows {
        // SAFETY: `check` made sure of a position for each row where there is a rotation.
        let position = || unsafe { task.positions.add(row).read_unaligned() } as usize;
        if turned && position() >= task.table_rows {
            return Err(ErrorKind::Invalid);
        }
        if kept {
            // SAFETY: `check` made sure of a place for each row where there is K or V.
            let write = unsafe { place(task, row) };
            let end = write.offset.checked_add(task.page_bytes);
            if write.row >= PAGE_TOKENS || end.is_none_or(|end| end > task.pool_bytes) {
                return Err(ErrorKind::Invalid);
            }
            let page = task.pool.wrapping_add(write.offset as usize);
            apart(Range::of(page, task.page_bytes as usize), &tables)?;
        }
    }
    Ok(Plan { phases: 1, ..Plan::default() })
}

unsafe fn place(task: &Rope, row: usize) -> RowWrite {
    task.writes.cast::<RowWrite>().add(row).read_unaligned()
}

/// A worker's part. The caller has a checked and planned task.
#[inline(always)]
pub(crate) unsafe fn rope(task: &Rope, worker: &Worker<'_>) {
    // By heads, not by rows: two rows of one place are then one worker's, and the later one stays.
    let heads = task.heads + task.kv_heads;
    let chunk = if task.rows == 1 { worker.share(heads, 1) } else { 1 };
    while let Some(range) = worker.next(heads, chunk) {
        for head in range {
            for row in 0..task.rows {
                // K and V first: they take longer, and the last to be taken is waited for.
                if head < task.kv_heads {
                    write(task, row, head);
                } else {
                    let head = head - task.kv_heads;
                    let q = task.q.add((row * task.heads + head) * task.key_dim);
                    rotate(task, row, q, |at, value| q.add(at).write_unaligned(value));
                }
            }
        }
    }
}

/// Turns the pairs of a head, and hands every rotated channel to `to`.
#[inline(always)]
unsafe fn rotate(task: &Rope, row: usize, x: *const f32, mut to: impl FnMut(usize, f32)) {
    let half = task.rotary / 2;
    if half == 0 {
        return;
    }
    let position = task.positions.add(row).read_unaligned() as usize;
    let (cos, sin) = (task.cos.add(position * half), task.sin.add(position * half));
    for pair in 0..half {
        let (i, j) = if task.interleaved { (2 * pair, 2 * pair + 1) } else { (pair, pair + half) };
        let (a, b) = (x.add(i).read_unaligned(), x.add(j).read_unaligned());
        let (c, s) = (cos.add(pair).read_unaligned(), sin.add(pair).read_unaligned());
        to(i, a * c - b * s);
        to(j, b * c + a * s);
    }
}

/// Writes a row's K and V of a head in the pool's encoding.
#[inline(always)]
unsafe fn write(task: &Rope, row: usize, head: usize) {
    let place = place(task, row);
    let (kd, vd, token) = (task.key_dim, task.value_dim, place.row as usize);
    let frame = task.pool.add(place.offset as usize);
    let tokens = PAGE_TOKENS as usize;
    let k_at = (head * tokens + token) * kd;
    let v_at = task.kv_heads * tokens * kd + (head * tokens + token) * vd;
    let k = task.k.add((row * task.kv_heads + head) * kd);
    let v = task.v.add((row * task.kv_heads + head) * vd);
    let encoding = task.encoding;
    rotate(task, row, k, |at, value| encode(encoding, frame, k_at + at, value));
    for at in task.rotary / 2 * 2..kd {
        encode(encoding, frame, k_at + at, k.add(at).read_unaligned());
    }
    for at in 0..vd {
        encode(encoding, frame, v_at + at, v.add(at).read_unaligned());
    }
}

/// One number into a frame, half to even.
#[inline(always)]
unsafe fn encode(encoding: KvEncoding, frame: *mut u8, at: usize, value: f32) {
    match encoding {
        KvEncoding::F32 => frame.cast::<f32>().add(at).write_unaligned(value),
        KvEncoding::F16 => frame.cast::<u16>().add(at).write_unaligned(f32_to_half(value)),
        KvEncoding::Bf16 => frame.cast::<u16>().add(at).write_unaligned(f32_to_bf16(value)),
        // `check` lets only plain encodings here.
        KvEncoding::Int8 { .. } | KvEncoding::Codec => {}
    }
}
