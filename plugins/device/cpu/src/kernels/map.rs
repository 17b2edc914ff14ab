//! Element by element, over views.
#![allow(unsafe_code)]
// Kernels: every body is pointer arithmetic under the promise that its function states.
#![allow(unsafe_op_in_unsafe_fn)]

use super::lanes::{LANES, Lanes};
use super::math;
use super::norm::{read, write};
use crate::exec::Worker;
use crate::task::Map;
use kvern_contract::MapKind;

/// Elements of a group that are one worker's.
const CHUNK: usize = 4096;

/// A worker's part. The caller has a checked task.
#[inline(always)]
pub(crate) unsafe fn map<V: Lanes>(task: &Map, worker: &Worker<'_>) {
    // Several values into one place: the last one stays, so one worker writes them.
    let chunk = if task.out.step == 0 { task.width } else { CHUNK };
    let chunks = task.width.div_ceil(chunk);
    let units = task.rows * task.groups * chunks;
    while let Some(range) = worker.next(units, worker.share(units, 4)) {
        for unit in range {
            let (group, from) = (unit / chunks, unit % chunks * chunk);
            let (row, group) = (group / task.groups, group % task.groups);
            let to = task.width.min(from + chunk);
            let mut at = from;
            while at < to {
                let n = LANES.min(to - at);
                let a = read::<V>(task.a.start(row, group), task.a.step, at, n);
                let b = read::<V>(task.b.start(row, group), task.b.step, at, n);
                let v = value(task.kind, V::splat(task.scalar), a, b);
                write(v, task.out.start(row, group), task.out.step, at, n);
                at += n;
            }
        }
    }
}

#[inline(always)]
unsafe fn value<V: Lanes>(kind: MapKind, scalar: V, a: V, b: V) -> V {
    match kind {
        MapKind::Add => a.add(scalar.mul(b)),
        MapKind::Mul => a.mul(b),
        MapKind::Scale => scalar.mul(a),
        MapKind::SigmoidMul => a.mul(math::sigmoid(b)),
        MapKind::SiluMul => a.mul(math::silu(b)),
        MapKind::Softcap => scalar.mul(math::tanh(a.div(scalar))),
        MapKind::Copy => a,
    }
}
