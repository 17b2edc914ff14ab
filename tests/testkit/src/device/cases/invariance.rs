//! What bits may not depend on: neighbours, how often something ran, in what parts a history, a
//! step or a set of experts came.

use super::super::bench::{Bench, Device, FORMS, Make, each, shown};
use super::super::desk::Desk;
use super::super::samples::{self, ALL};
use super::{always, declined};
use crate::case::need;
use crate::{Case, Check, Promise, Subject};
use kvern_contract::*;

const INVARIANT: Promise = Promise::new(
    "DeviceDescription::row_invariant",
    "A row's bits do not depend on the rows beside it, nor on how many there are.",
);
const EXACT: Promise = Promise::new(
    "ComputeDtype::F32",
    "The exact mode: f32 activations, f32 sums, and `row_invariant` where it is declared.",
);
const NO_HISTORY: Promise = Promise::new(
    "DeviceBackend",
    "It owns its worker threads and its buffers, and nothing else: no files, no model, no history.",
);
const PARTS: Promise = Promise::new("Op::Attention", "State (m, l, a) is set by `first`");
const WAVES: Promise = Promise::new(
    "Op::Experts",
    "A row's experts add in ascending id: waves of a few, ascending, give the bits of all at once.",
);
const REPLAY: Promise = Promise::new(
    "Op::Delta",
    "a log from which a rewind replays, with no q and no `out`, to the same bits",
);

pub fn cases() -> Vec<Case<Device>> {
    let uneven = |device: &Device| {
        (!device.describe().row_invariant).then_some("rows that depend on others are declared")
    };
    let case = |name, promises, skip, check| Case { name, promises, skip, check };
    vec![
        always("a_list_has_the_same_bits_however_often_it_runs", &[NO_HISTORY], again),
        case(
            "a_row_alone_has_the_bits_that_it_has_among_others",
            &[INVARIANT, EXACT],
            uneven,
            alone,
        ),
        case(
            "a_history_in_any_parts_has_the_bits_of_the_history_at_once",
            &[PARTS],
            |device| declined(device, samples::attention, 8, "Attention does not run here"),
            in_parts,
        ),
        case(
            "experts_in_waves_have_the_bits_of_all_at_once",
            &[WAVES],
            |device| declined(device, samples::experts, 20, "Experts does not run here"),
            in_waves,
        ),
        case(
            "a_replay_without_queries_leaves_the_same_state",
            &[REPLAY],
            |device| declined(device, samples::delta, 15, "Delta does not run here"),
            replayed,
        ),
    ]
}

/// Samples of every op that the device runs, laid out one after another.
fn every(
    bench: &mut Bench,
    seed: u64,
    mut check: impl FnMut(&mut Bench, Vec<Op>) -> Check,
) -> Check {
    for (_, make, count) in ALL {
        for n in 0..u64::from(count / 4).max(4) {
            // Steps that are no divisor of a number of modes, so that all take part.
            if let Some(ops) = bench.sample(make, 5 * n + 1, seed + n) {
                check(bench, ops)?;
            }
        }
    }
    Ok(())
}

fn again(subject: &Subject<'_, Device>) -> Check {
    each(subject, |bench| {
        let mut seeds = subject.seeds(1);
        every(bench, seeds.next().unwrap_or(1), |bench, ops| {
            let first = bench.left_by(&ops)?;
            same(&first, &bench.left_by(&ops)?, || format!("a second run of {}", shown(&ops[0])))
        })
    })
}

/// Whether two arenas are the same.
fn same(one: &[u8], other: &[u8], what: impl Fn() -> String) -> Check {
    match one.iter().zip(other).position(|(a, b)| a != b) {
        None => Ok(()),
        Some(at) => Err(format!("{} has other bits, first at byte {at}", what())),
    }
}

/// The place `bytes` further on, if there is such an operand.
fn on(at: Slice, bytes: u32) -> Slice {
    match at.buffer {
        Buffer(0) => at,
        _ => Slice { offset: at.offset + u64::from(bytes), ..at },
    }
}

fn row_of(view: View, row: u32) -> View {
    View { at: on(view.at, 4 * row * view.row), ..view }
}

/// One row of an op whose rows are told by their number alone; `None` for others.
fn one_row(op: &Op, n: u32) -> Option<Op> {
    let mut op = *op;
    let values = if let Op::RopeWrite { value_dim, .. } = op { value_dim } else { 0 };
    match &mut op {
        Op::Embed { ids, table, out, rows, .. } => {
            (*ids, *out, *rows) = (on(*ids, 4 * n), on(*out, 4 * n * table.inputs), 1);
        }
        Op::Norm { x, gate, out, rows, .. } => {
            (*x, *gate, *out, *rows) = (row_of(*x, n), row_of(*gate, n), row_of(*out, n), 1);
        }
        Op::Linear { x, weights, outs, rows, epilogue, .. } => {
            let weights = weights.as_slice();
            *x = on(*x, 4 * n * weights[0].inputs);
            let part = if *epilogue == Epilogue::Clamped { 2 } else { 1 };
            let moved = outs.as_slice().iter().zip(weights);
            let moved: Vec<Slice> =
                moved.map(|(out, w)| on(*out, 4 * n * w.outputs / part)).collect();
            (*outs, *rows) = (Few::of(&moved), 1);
        }
        Op::RopeWrite { q, k, v, positions, writes, rows, heads, kv_heads, key_dim, .. } => {
            (*q, *k) = (on(*q, 4 * n * *heads * *key_dim), on(*k, 4 * n * *kv_heads * *key_dim));
            *v = on(*v, 4 * n * *kv_heads * values);
            (*positions, *writes, *rows) = (on(*positions, 4 * n), on(*writes, 16 * n), 1);
        }
        Op::Route { logits, ids, weights, rows, experts, top, .. } => {
            *logits = on(*logits, 4 * n * *experts);
            (*ids, *weights, *rows) = (on(*ids, 4 * n * *top), on(*weights, 4 * n * *top), 1);
        }
        Op::Experts { x, ids, weights, gate, out, rows, top, .. } => {
            (*x, *out) = (on(*x, 4 * n * gate.inputs), on(*out, 4 * n * gate.inputs));
            (*ids, *weights, *rows) = (on(*ids, 4 * n * *top), on(*weights, 4 * n * *top), 1);
        }
        Op::Map { a, b, out, rows, .. } => {
            (*a, *b, *out, *rows) = (row_of(*a, n), row_of(*b, n), row_of(*out, n), 1);
        }
        Op::Rows { x, indices, out, kind, rows, width } => {
            let far = 4 * n * *width;
            match kind {
                RowsKind::Gather => *out = on(*out, far),
                _ => *x = on(*x, far),
            }
            (*indices, *rows) = (on(*indices, 4 * n), 1);
        }
        Op::Top { logits, ids, values, rows, width, top } => {
            *logits = on(*logits, 4 * n * *width);
            (*ids, *values, *rows) = (on(*ids, 4 * n * *top), on(*values, 4 * n * *top), 1);
        }
        Op::DeltaGates { a, b, decay, beta, rows, groups, width, .. } => {
            let far = 4 * n * *groups * *width;
            (*a, *b) = (row_of(*a, n), row_of(*b, n));
            (*decay, *beta, *rows) = (on(*decay, far), on(*beta, far), 1);
        }
        _ => return None,
    }
    Some(op)
}

fn rows(op: &Op) -> u32 {
    match *op {
        Op::Embed { rows, .. }
        | Op::Norm { rows, .. }
        | Op::Linear { rows, .. }
        | Op::RopeWrite { rows, .. }
        | Op::Route { rows, .. }
        | Op::Experts { rows, .. }
        | Op::Map { rows, .. }
        | Op::Rows { rows, .. }
        | Op::Top { rows, .. }
        | Op::DeltaGates { rows, .. } => rows,
        _ => 0,
    }
}

/// An op for every row, one after another.
fn by_rows(desk: &mut Desk, op: &Op) -> Vec<Op> {
    match op {
        Op::Attention { .. } => samples::rows_of(desk, op),
        Op::Conv { .. } | Op::Delta { .. } => samples::steps(desk, op),
        _ => (0..rows(op)).filter_map(|row| one_row(op, row)).collect(),
    }
}

/// Ops of one arena that must leave the same bytes.
fn alike(bench: &mut Bench, whole: &[Op], parts: &[Op], what: &str) -> Check {
    let (one, other) = (bench.left_by(whole)?, bench.left_by(parts)?);
    same(&one, &other, || format!("{what} of {}", shown(&whole[0])))
}

fn alone(subject: &Subject<'_, Device>) -> Check {
    for compute in FORMS {
        let Some(mut bench) = Bench::open(subject, compute)? else { continue };
        for seed in subject.seeds(1) {
            every(&mut bench, seed, |bench, ops| {
                let [op] = ops[..] else { return Ok(()) };
                let parts = by_rows(&mut bench.desk, &op);
                alike(bench, &ops, &parts, "every row alone")
            })?;
        }
    }
    Ok(())
}

/// Samples of one op, each beside what must leave the same.
fn split(
    subject: &Subject<'_, Device>,
    make: Make,
    count: u32,
    what: &str,
    parts: impl Fn(&mut Desk, &Op, u64) -> Vec<Op>,
) -> Check {
    each(subject, |bench| {
        for (n, seed) in subject.seeds(count).enumerate() {
            let n = n as u64;
            let Some(ops) = bench.sample(make, n, seed) else { continue };
            let parts = parts(&mut bench.desk, &ops[0], n);
            need(!parts.is_empty(), || format!("no parts of {}", shown(&ops[0])))?;
            alike(bench, &ops, &parts, what)?;
        }
        Ok(())
    })
}

fn in_parts(subject: &Subject<'_, Device>) -> Check {
    const CUTS: [&[u32]; 5] = [&[4], &[1, 2, 3, 4, 5, 6, 7], &[2, 2, 6], &[0, 8], &[7]];
    // Samples with a state.
    let make: Make = |desk, n| samples::attention(desk, 2 * n);
    split(subject, make, 30, "a history in parts", |desk, op, n| {
        samples::parts(desk, op, CUTS[(n % 5) as usize])
    })
}

fn in_waves(subject: &Subject<'_, Device>) -> Check {
    split(subject, samples::experts, 20, "experts in waves", |desk, op, n| {
        samples::waves(desk, op, 1 + n as u32 % 5)
    })
}

fn replayed(subject: &Subject<'_, Device>) -> Check {
    each(subject, |bench| {
        for (n, seed) in subject.seeds(15).enumerate() {
            let Some(ops) = bench.sample(samples::delta, n as u64, seed) else { continue };
            let mut replay = ops[0];
            let Op::Delta { q, out, state, .. } = &mut replay else { continue };
            (*q, *out) = (View::default(), Slice::default());
            // The state is the last of the operands.
            let from = state.offset as usize;
            let (one, other) = (bench.left_by(&ops)?, bench.left_by(&[replay])?);
            same(&one[from..], &other[from..], || format!("a replay of {}", shown(&replay)))?;
        }
        Ok(())
    })
}
