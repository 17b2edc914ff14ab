//! Rotations, and where K and V land.

use crate::harness::*;
use kvern_contract::*;

struct Shape {
    rows: usize,
    heads: usize,
    kv: usize,
    key: usize,
    value: usize,
    rotary: usize,
    interleaved: bool,
    encoding: KvEncoding,
}

fn of(encoding: KvEncoding) -> WeightEncoding {
    match encoding {
        KvEncoding::F16 => WeightEncoding::F16,
        KvEncoding::Bf16 => WeightEncoding::Bf16,
        _ => WeightEncoding::F32,
    }
}

/// Lines of `width`, each turned by its row's position.
fn turned(x: &[f32], shape: &Shape, heads: usize, angle: impl Fn(usize, usize) -> f64) -> Vec<f64> {
    let (half, mut all) = (shape.rotary / 2, wide(x));
    for (line, x) in all.chunks_exact_mut(shape.key).enumerate() {
        for i in 0..half {
            let (a, b) = if shape.interleaved { (2 * i, 2 * i + 1) } else { (i, i + half) };
            let (sin, cos) = angle(line / heads, i).sin_cos();
            (x[a], x[b]) = (x[a] * cos - x[b] * sin, x[b] * cos + x[a] * sin);
        }
    }
    all
}

fn check(shape: &Shape, seed: u64) {
    let mut dice = Dice::new(seed);
    let mut rig = Rig::new();
    let Shape { rows, heads, kv, key, value, rotary, .. } = *shape;
    let (table_rows, half) = (200, rotary / 2);
    let angles: Vec<f64> = wide(&dice.floats(table_rows * half)).iter().map(|x| 3.0 * x).collect();
    let table = |f: fn(f64) -> f64| angles.iter().map(|x| f(*x) as f32).collect::<Vec<_>>();
    let q = dice.floats(rows * heads * key);
    let (k, v) = (dice.floats(rows * kv * key), dice.floats(rows * kv * value));
    let positions: Vec<u32> = (0..rows).map(|_| dice.between(0, 199) as u32).collect();
    let layer = KvLayer {
        kind: LayerKind::Full,
        key_dim: key as u32,
        value_dim: value as u32,
        kv_heads: kv as u32,
    };
    let page = layer.page_bytes(shape.encoding);
    // Each row goes to a place of its own, in three frames that lie apart and at no round address.
    let frames = 3 + rows / 64;
    let places: Vec<(u64, u32)> = (0..rows)
        .map(|row| (((row % frames) as u64) * (page + 5) + 9, (row / frames) as u32))
        .collect();
    let writes: Vec<u32> = places
        .iter()
        .flat_map(|(offset, row)| [*offset as u32, (*offset >> 32) as u32, *row, 77])
        .collect();
    let pool = rig.bytes_at(&vec![0; frames * (page as usize + 5) + 9], 0);
    let q_at = rig.floats(&q);
    let op = Op::RopeWrite {
        q: q_at,
        k: rig.floats(&k),
        v: rig.floats(&v),
        positions: rig.words(&positions),
        cos: rig.floats(&table(f64::cos)),
        sin: rig.floats(&table(f64::sin)),
        writes: rig.words(&writes),
        pool,
        rows: rows as u32,
        heads: heads as u32,
        kv_heads: kv as u32,
        key_dim: key as u32,
        value_dim: value as u32,
        rotary: rotary as u32,
        table_rows: table_rows as u32,
        interleaved: shape.interleaved,
        encoding: encoding_word(shape.encoding),
    };
    rig.run(op);
    let angle = |row: usize, i: usize| angles[positions[row] as usize * half + i];
    close("q", &rig.get(q_at, q.len()), &turned(&q, shape, heads, angle), 1e-5);

    let bytes = rig.get_bytes(pool);
    let each = if shape.encoding == KvEncoding::F32 { 4 } else { 2 };
    let read = |at: usize| match shape.encoding {
        KvEncoding::F32 => f32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()),
        KvEncoding::F16 => half::f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32(),
        _ => half::bf16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32(),
    };
    let side = |base: usize, width: usize| -> Vec<f32> {
        let mut all = Vec::new();
        for (offset, row) in &places {
            for head in 0..kv {
                let line = *offset as usize + (base + (head * 64 + *row as usize) * width) * each;
                all.extend((0..width).map(|i| read(line + i * each)));
            }
        }
        all
    };
    // What 16 bits cannot hold is lost: half a unit in the last place.
    let lost = match shape.encoding {
        KvEncoding::F32 => 1e-5,
        KvEncoding::F16 => 1.0 / 2048.0 + 1e-5,
        _ => 1.0 / 256.0 + 1e-5,
    };
    close("k", &side(0, key), &turned(&k, shape, kv, angle), lost);
    close("v", &side(kv * 64 * key, value), &encode(&v, of(shape.encoding)).1, 1e-7);
    let written = bytes.iter().filter(|byte| **byte != 0).count();
    assert!(written <= rows * kv * (key + value) * each, "bytes were written elsewhere");
}

#[test]
fn queries_turn_and_keys_and_values_reach_their_frames_in_every_form() {
    let encodings = [KvEncoding::F32, KvEncoding::F16, KvEncoding::Bf16];
    let mut seed = 0;
    for encoding in encodings {
        for interleaved in [false, true] {
            for (rows, heads, kv, key, value, rotary) in [
                (1, 1, 1, 2, 2, 2),
                (70, 9, 3, 64, 64, 64),
                (5, 4, 2, 24, 16, 8),
                (3, 3, 1, 7, 5, 0),
                (2, 130, 2, 512, 1, 256),
            ] {
                seed += 1;
                let shape = Shape { rows, heads, kv, key, value, rotary, interleaved, encoding };
                check(&shape, seed);
            }
        }
    }
}
