//! Sequences that fold their past into a state, some from their beginning.

use super::super::desk::Desk;
use super::of;
use kvern_contract::*;

/// Spans as rows, position and slot.
const BATCHES: [&[(u32, u32, u32)]; 4] =
    [&[(1, 7, 0)], &[(5, 0, 2), (0, 3, 1), (3, 9, 0)], &[(33, 4, 1)], &[(2, 0, 0), (1, 1, 1)]];

/// Rows of the batch, and its spans as a table.
fn batch(desk: &mut Desk, n: u64) -> (u32, Slice, u32) {
    let batch = of(&BATCHES, n);
    let (mut words, mut row) = (Vec::new(), 0);
    for (rows, position, slot) in batch {
        // A row of nobody's between sequences.
        row += 1;
        words.extend([row, *rows, *position, 0, 0, *slot, 0, 0]);
        row += rows;
    }
    (row, desk.table(&words), batch.len() as u32)
}

pub fn conv(desk: &mut Desk, n: u64) -> Vec<Op> {
    let (rows, spans, sequences) = batch(desk, n);
    let (channels, kernel) = (of(&[10, 33, 64], n), of(&[4, 2, 3], n / 2));
    // Blocks of 32 inputs are longer than any kernel.
    let encoding = match desk.weight_encoding(n) {
        WeightEncoding::Mxfp4 => WeightEncoding::F32,
        other => other,
    };
    vec![Op::Conv {
        x: desk.floats(rows * channels),
        weight: desk.weight(encoding, (channels, kernel), (1, 0)),
        bias: desk.maybe(n % 3 == 1, channels),
        out: desk.out(rows * channels),
        spans,
        sequences,
        channels,
        kernel,
        silu: n.is_multiple_of(2),
        // Last, so that a slot past its end is past the arena's soon.
        state: desk.floats(3 * (kernel - 1) * channels),
    }]
}

pub fn delta(desk: &mut Desk, n: u64) -> Vec<Op> {
    let (rows, spans, sequences) = batch(desk, n);
    let (heads, key_heads) = of(&[(4, 2), (1, 1), (3, 3)], n);
    let (key_dim, value_dim) = of(&[(8, 16), (7, 5)], n);
    let replay = n % 5 == 4;
    let decays: Vec<f32> = desk.numbers(rows * heads).iter().map(|x| -x.abs()).collect();
    let betas: Vec<f32> = desk.numbers(rows * heads).iter().map(|x| x.abs()).collect();
    let keys = [rows, key_heads, key_dim];
    vec![Op::Delta {
        q: if replay { View::default() } else { desk.view(keys, 1) },
        k: desk.view(keys, (n % 2) as u32),
        v: desk.view([rows, heads, value_dim], 2),
        decay: desk.given(&decays),
        beta: desk.given(&betas),
        out: if replay { Slice::default() } else { desk.out(rows * heads * value_dim) },
        spans,
        sequences,
        heads,
        key_heads,
        key_dim,
        value_dim,
        scale: of(&[0.35, 1.0], n),
        state: desk.floats(3 * heads * key_dim * value_dim),
    }]
}

pub fn gates(desk: &mut Desk, n: u64) -> Vec<Op> {
    let (rows, groups, width) = (of(&[3, 1, 33], n), of(&[2, 1], n), of(&[2, 5], n / 2));
    let counts = [rows, groups, width];
    let heads = groups * width;
    vec![Op::DeltaGates {
        a: desk.view(counts, 1),
        b: desk.view(counts, 0),
        a_log: desk.floats(heads),
        dt_bias: desk.floats(heads),
        decay: desk.out(rows * heads),
        beta: desk.out(rows * heads),
        rows,
        groups,
        width,
    }]
}

/// The same op, an op for every row: each goes on from the state that the one before left.
pub fn steps(desk: &mut Desk, op: &Op) -> Vec<Op> {
    let (Op::Conv { spans, sequences, .. } | Op::Delta { spans, sequences, .. }) = *op else {
        return Vec::new();
    };
    let mut ops = Vec::new();
    let words = desk.image.words(spans, &[sequences * 8]).unwrap_or_default();
    for span in words.chunks_exact(8) {
        for i in 0..span[1] {
            let mut one = span.to_vec();
            (one[0], one[1], one[2]) = (span[0] + i, 1, span[2] + i);
            let place = desk.words(&one);
            let mut op = *op;
            if let Op::Conv { spans, sequences, .. } | Op::Delta { spans, sequences, .. } = &mut op
            {
                (*spans, *sequences) = (place, 1);
            }
            ops.push(op);
        }
    }
    ops
}
