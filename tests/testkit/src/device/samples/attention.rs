//! Histories in pages, rows that attend to them, and rows that are written to them.

use super::super::desk::Desk;
use super::of;
use kvern_contract::*;

pub fn rope_write(desk: &mut Desk, n: u64) -> Vec<Op> {
    let (heads, kv_heads) = of(&[(3, 2), (1, 1), (8, 2)], n);
    let (key_dim, value_dim) = of(&[(16, 16), (10, 7), (24, 32)], n / 2);
    let rows = of(&[1, 5, 33], n);
    let rotary = of(&[key_dim, key_dim / 4 * 2, 0], n / 3);
    let encoding = of(&[KvEncoding::F32, KvEncoding::F16, KvEncoding::Bf16], n);
    let layer = KvLayer { kind: LayerKind::Full, key_dim, value_dim, kv_heads };
    let page = layer.page_bytes(encoding);
    let table_rows = 40;
    let pool = desk.put(&vec![0; 3 * page as usize]);
    let mut places: Vec<u32> = (0..3 * 64).collect();
    let mut positions = Vec::new();
    let mut writes = Vec::new();
    for _ in 0..rows {
        positions.push(desk.random.below(u64::from(table_rows)) as u32);
        let at = desk.random.below(places.len() as u64) as usize;
        let place = places.swap_remove(at);
        writes.extend([(u64::from(place / 64) * page) as u32, 0, place % 64, 0]);
    }
    vec![Op::RopeWrite {
        q: desk.floats(rows * heads * key_dim),
        k: desk.floats(rows * kv_heads * key_dim),
        v: desk.floats(rows * kv_heads * value_dim),
        positions: desk.table(&positions),
        cos: desk.floats(table_rows * rotary / 2),
        sin: desk.floats(table_rows * rotary / 2),
        writes: desk.table(&writes),
        pool,
        rows,
        heads,
        kv_heads,
        key_dim,
        value_dim,
        rotary,
        table_rows,
        interleaved: n % 2 == 1,
        encoding: encoding_word(encoding),
    }]
}

/// Spans as rows and position: with room between their rows, and none that are empty or at once.
const BATCHES: [&[(u32, u32)]; 5] = [
    &[(1, 0)],
    &[(33, 40), (0, 0), (2, 200)],
    &[(3, 130), (1, 64)],
    &[(1, 255)],
    &[(17, 0), (5, 63)],
];

/// What nobody sees is never multiplied: it may be no number.
fn spoil(page: &mut [u8], encoding: KvEncoding, layer: &KvLayer, head: u32, seen: u64) {
    let size = match encoding {
        KvEncoding::F32 => 4,
        KvEncoding::F16 | KvEncoding::Bf16 => 2,
        _ => 1,
    };
    let [k, v, heads] = [layer.key_dim, layer.value_dim, layer.kv_heads].map(|n| n as usize);
    for t in (0..64).filter(|t| seen >> t & 1 == 0) {
        let row = head as usize * 64 + t;
        page[row * k * size..][..k * size].fill(0xff);
        page[(heads * 64 * k + row * v) * size..][..v * size].fill(0xff);
    }
}

pub fn attention(desk: &mut Desk, n: u64) -> Vec<Op> {
    let (heads, kv_heads) = of(&[(4, 2), (1, 1), (6, 2), (3, 3)], n);
    let (key_dim, value_dim) = of(&[(16, 16), (7, 13), (24, 8)], n);
    let layer = KvLayer { kind: LayerKind::Full, key_dim, value_dim, kv_heads };
    let batch = of(&BATCHES, n);
    let window = of(&[0, 0, 40, 100], n / 2);
    let (masked, packed) = (n % 3 == 2, n % 6 == 5);
    // Rows that see nothing: of samples without a state, where their m may be any.
    let blind = n % 12 == 11;
    let (mut spans, mut entries, mut masks, mut frames) = (vec![], vec![], vec![], vec![]);
    let mut row = 0;
    for (rows, position) in batch {
        // A row of nobody's between sequences.
        row += 1;
        let first = entries.len() as u32 / 8;
        let mut at = 0;
        while *rows > 0 && at < position + rows {
            let tokens = 64.min(position + rows - at);
            let number = entries.len() as u64 / 8;
            let encoding = desk.page_encoding(n + number);
            let mut page = desk.page(encoding, &layer, tokens);
            let mut mask = u32::MAX;
            if blind && row == 1 || masked && number.is_multiple_of(2) {
                mask = masks.len() as u32 / kv_heads;
                for head in 0..kv_heads {
                    let seen = match blind && row == 1 && head == 0 {
                        true => 0,
                        // Row 0 stays: no query is without anything to see.
                        false => desk.random.bits() | 1,
                    };
                    spoil(&mut page, encoding, &layer, head, seen);
                    masks.push(seen);
                }
            }
            // The oldest of several pages.
            let is_packed = u32::from(packed && at == 0 && position >= &64);
            entries.extend([frames.len() as u32, 0, at, tokens]);
            entries.extend([encoding_word(encoding), mask, is_packed, 0]);
            frames.extend(page);
            frames.resize(frames.len().next_multiple_of(64), 0xff);
            at += tokens;
        }
        spans.extend([row, *rows, *position, first, entries.len() as u32 / 8 - first, 0, 0, 0]);
        row += rows;
    }
    let sequences = batch.len() as u32;
    let masks = masks.iter().flat_map(|m: &u64| m.to_le_bytes()).collect::<Vec<_>>();
    let kept = n.is_multiple_of(2);
    vec![Op::Attention {
        q: desk.floats(row * heads * key_dim),
        out: desk.out(row * heads * value_dim),
        state: if kept { desk.out(row * heads * (2 + value_dim)) } else { Slice::default() },
        spans: desk.table(&spans),
        entries: desk.table(&entries),
        masks: if masks.is_empty() { Slice::default() } else { desk.put(&masks) },
        sinks: desk.maybe(n % 5 == 1, heads),
        // Last, so that a frame past its end is past the arena's soon.
        pool: desk.put(&frames),
        sequences,
        heads,
        kv_heads,
        key_dim,
        value_dim,
        scale: of(&[0.25, 0.5, 1.0], n / 5),
        softcap: of(&[0.0, 0.0, 2.0], n),
        window,
        keep: if window > 0 { of(&[0, 4], n / 3) } else { 0 },
        causal: n % 7 != 6,
        first: true,
        last: true,
    }]
}

/// Attention with its state, then the masses of its pages.
pub fn mass(desk: &mut Desk, n: u64) -> Vec<Op> {
    // Samples with a state.
    let mut ops = attention(desk, 2 * n);
    let pages = desk.tables.last().map_or(1, |(_, words)| *words as u32 / 8);
    let Some(Op::Attention { q, state, spans, entries, masks, pool, sequences, .. }) =
        ops.first().copied()
    else {
        return ops;
    };
    let Some(Op::Attention { heads, kv_heads, key_dim, value_dim, scale, softcap, .. }) =
        ops.first().copied()
    else {
        return ops;
    };
    let Some(Op::Attention { window, keep, causal, .. }) = ops.first().copied() else {
        return ops;
    };
    let out = desk.out(pages * kv_heads * 64);
    ops.push(Op::AttentionMass {
        q,
        state,
        out,
        spans,
        entries,
        masks,
        pool,
        sequences,
        heads,
        kv_heads,
        key_dim,
        value_dim,
        scale,
        softcap,
        window,
        keep,
        causal,
    });
    ops
}

/// A table in the arena as words.
fn table(desk: &Desk, at: Slice, words: u32) -> Vec<u32> {
    desk.image.words(at, &[words]).unwrap_or_default()
}

/// The same attention in parts: of the pages of each sequence, those before the first cut, those
/// from there to the second, and so on. A cut is a part of 8.
pub fn parts(desk: &mut Desk, op: &Op, cuts: &[u32]) -> Vec<Op> {
    let Op::Attention { spans, sequences, .. } = *op else { return Vec::new() };
    let words = table(desk, spans, sequences * 8);
    let mut ops = Vec::new();
    for (i, _) in cuts.iter().enumerate().chain([(cuts.len(), &0)]) {
        let mut part = words.clone();
        for span in part.chunks_exact_mut(8) {
            let count = span[4];
            let cut = |i: Option<usize>| i.and_then(|i| cuts.get(i)).map(|cut| cut * count / 8);
            let from = cut(i.checked_sub(1)).unwrap_or(0);
            let to = cut(Some(i)).unwrap_or(count);
            (span[3], span[4]) = (span[3] + from, to - from);
        }
        let mut op = *op;
        let place = desk.words(&part);
        if let Op::Attention { spans, first, last, .. } = &mut op {
            (*spans, *first, *last) = (place, i == 0, i == cuts.len());
        }
        ops.push(op);
    }
    ops
}

/// The same attention, an op for every row.
pub fn rows_of(desk: &mut Desk, op: &Op) -> Vec<Op> {
    let Op::Attention { spans, sequences, .. } = *op else { return Vec::new() };
    let mut ops = Vec::new();
    for span in table(desk, spans, sequences * 8).chunks_exact(8) {
        for i in 0..span[1] {
            let mut one = span.to_vec();
            (one[0], one[1], one[2]) = (span[0] + i, 1, span[2] + i);
            let place = desk.words(&one);
            let mut op = *op;
            if let Op::Attention { spans, sequences, .. } = &mut op {
                (*spans, *sequences) = (place, 1);
            }
            ops.push(op);
        }
    }
    ops
}
