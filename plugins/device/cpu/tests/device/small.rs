//! The small ops: norms, rope, maps, rows, tops, copies.

use crate::rig::*;
use kvern_contract::*;
use std::time::Duration;

pub fn view(at: Slice, groups: u32, width: u32) -> View {
    View { at, row: groups * width, group: width, step: 1 }
}

/// Runs on every path; all must give the bits of the first. Answers those.
pub fn same(what: &str, run: impl Fn(&mut Rig) -> Vec<f32>) -> Vec<f32> {
    let mut first: Option<Vec<f32>> = None;
    for (name, mut rig) in rigs() {
        let got = run(&mut rig);
        let first = first.get_or_insert_with(|| got.clone());
        assert_eq!(bits(first), bits(&got), "{what}, {name}");
    }
    first.unwrap()
}

struct NormCase {
    kind: NormKind,
    rows: u32,
    groups: u32,
    width: u32,
    form: WeightEncoding,
    bias: bool,
    gate: bool,
}

fn check_norm(case: &NormCase) {
    let NormCase { kind, rows, groups, width, form, bias, gate } = *case;
    let (n, w) = ((rows * groups * width) as usize, width as usize);
    let mut random = Random(u64::from(width) + 5);
    let (x, gates, biases) = (random.floats(n), random.floats(n), random.floats(w));
    let (bytes, weights) = encoded(&mut random, w, form);
    let eps = 1e-5f32;
    let got = same(&format!("{kind:?} of {width}"), |rig| {
        let x = rig.floats(&x);
        let weight = match form {
            WeightEncoding::None => Weight::default(),
            encoding => {
                let data = rig.bytes(&bytes);
                Weight { data, encoding, outputs: 1, inputs: width, ..Weight::default() }
            }
        };
        let gate = if gate { view(rig.floats(&gates), groups, width) } else { View::default() };
        let bias = if bias { rig.floats(&biases) } else { Slice::default() };
        let x = view(x, groups, width);
        // In place: out is x.
        rig.run(&[Op::Norm { x, weight, bias, gate, out: x, kind, rows, groups, width, eps }]);
        rig.read(x.at, n)
    });
    let mut want = Vec::new();
    for (g, group) in x.chunks(w).enumerate() {
        let mean = group.iter().map(|x| f64::from(*x)).sum::<f64>() / w as f64;
        let mean = if kind == NormKind::Layer { mean } else { 0.0 };
        let squares: f64 = group.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum();
        let power = if kind == NormKind::L2 { squares } else { squares / w as f64 };
        for (i, x) in group.iter().enumerate() {
            let mut v = (f64::from(*x) - mean) / (power + f64::from(eps)).sqrt();
            if form != WeightEncoding::None {
                let plus = if kind == NormKind::RmsPlusOne { 1.0 } else { 0.0 };
                v *= f64::from(weights[i]) + plus;
            }
            if bias {
                v += f64::from(biases[i]);
            }
            if gate {
                let z = f64::from(gates[g * w + i]);
                v *= z / (1.0 + (-z).exp());
            }
            want.push(v);
        }
    }
    close(&got, &want, 1e-5, &format!("{kind:?} of {width}"));
}

#[test]
fn norms_of_every_kind_width_and_weight() {
    use WeightEncoding::*;
    for kind in [NormKind::Rms, NormKind::RmsPlusOne, NormKind::Layer, NormKind::L2] {
        for (width, form) in [(3, F32), (16, Bf16), (17, F16), (64, None), (100, F32)] {
            let case = NormCase { kind, rows: 3, groups: 2, width, form, bias: false, gate: false };
            check_norm(&case);
            check_norm(&NormCase { rows: 1, groups: 1, bias: true, gate: true, ..case });
        }
    }
}

#[test]
fn a_norm_reads_and_writes_through_strides() {
    let mut random = Random(9);
    let (x, gates) = (random.floats(2 * 40), random.floats(6));
    let plain = same("strided", |rig| {
        // Groups of 10 inside rows of 20, one gate a group, into rows of 30.
        let at = rig.floats(&x);
        let gate = rig.floats(&gates);
        let out = rig.floats(&[7.0; 120]);
        let op = Op::Norm {
            x: View { at, row: 20, group: 10, step: 1 },
            weight: Weight::default(),
            bias: Slice::default(),
            gate: View { at: gate, row: 2, group: 1, step: 0 },
            out: View { at: out, row: 30, group: 15, step: 1 },
            kind: NormKind::Rms,
            rows: 3,
            groups: 2,
            width: 10,
            eps: 0.0,
        };
        rig.run(&[op]);
        rig.read(out, 120)
    });
    for (i, v) in plain.iter().enumerate() {
        let (row, group, c) = (i / 30, i % 30 / 15, i % 15);
        if row > 2 || c > 9 {
            assert_eq!(*v, 7.0, "element {i} is nobody's");
            continue;
        }
        let values = &x[row * 20 + group * 10..][..10];
        let mean = values.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / 10.0;
        let z = f64::from(gates[row * 2 + group]);
        let want = f64::from(values[c]) / mean.sqrt() * z / (1.0 + (-z).exp());
        assert!((f64::from(*v) - want).abs() < 1e-5, "element {i}");
    }
}

#[test]
fn maps_of_every_kind_over_views() {
    let mut random = Random(3);
    let (a, b) = (random.floats(3 * 2 * 9000), random.floats(3));
    use MapKind::*;
    for kind in [Add, Mul, Scale, SigmoidMul, SiluMul, Softcap, Copy] {
        for width in [1u32, 15, 16, 33, 9000] {
            let n = (3 * 2 * width) as usize;
            let got = same(&format!("{kind:?}"), |rig| {
                let out = view(rig.floats(&a[..n]), 2, width);
                // One b a row, for all of its groups.
                let b = View { at: rig.floats(&b), row: 1, group: 0, step: 0 };
                let op = Op::Map { a: out, b, out, kind, rows: 3, groups: 2, width, scalar: 0.7 };
                rig.run(&[op]);
                rig.read(out.at, n)
            });
            let want: Vec<f64> = (0..n)
                .map(|i| {
                    let (a, b) = (f64::from(a[i]), f64::from(b[i / (2 * width as usize)]));
                    let (s, sigmoid) = (f64::from(0.7f32), 1.0 / (1.0 + (-b).exp()));
                    match kind {
                        Add => a + s * b,
                        Mul => a * b,
                        Scale => s * a,
                        SigmoidMul => a * sigmoid,
                        SiluMul => a * b * sigmoid,
                        Softcap => s * (a / s).tanh(),
                        Copy => a,
                    }
                })
                .collect();
            close(&got, &want, 1e-6, &format!("{kind:?} of {width}"));
        }
    }
}

#[test]
fn embedding_widens_and_scales_rows() {
    let mut random = Random(11);
    for form in [WeightEncoding::Bf16, WeightEncoding::F16, WeightEncoding::F32] {
        let (bytes, values) = encoded(&mut random, 50 * 37, form);
        let ids = [49, 0, 7, 7, 21];
        let got = same("embed", |rig| {
            let (data, out) = (rig.bytes(&bytes), rig.room(5 * 37));
            let (outputs, inputs) = (50, 37);
            let table = Weight { data, encoding: form, outputs, inputs, ..Weight::default() };
            let ids = rig.words(&ids);
            rig.run(&[Op::Embed { ids, table, out, rows: 5, scale: 3.5 }]);
            rig.read(out, 5 * 37)
        });
        for (row, id) in ids.iter().enumerate() {
            for c in 0..37 {
                assert_eq!(got[row * 37 + c], values[*id as usize * 37 + c] * 3.5);
            }
        }
    }
}

#[test]
fn rows_gather_scatter_and_add_in_order() {
    let x: Vec<f32> = (0..4 * 20).map(|i| i as f32).collect();
    let indices = [2u32, 0, 2, 5];
    for (kind, rows) in [(RowsKind::Gather, 4), (RowsKind::Scatter, 6), (RowsKind::ScatterAdd, 6)] {
        let got = same(&format!("{kind:?}"), |rig| {
            let many: Vec<f32> = (0..6 * 20).map(|i| i as f32 / 8.0).collect();
            let gather = kind == RowsKind::Gather;
            let from = rig.floats(if gather { &many } else { &x });
            let out = rig.floats(if gather { &x } else { &many });
            let indices = rig.words(&indices);
            rig.run(&[Op::Rows { x: from, indices, out, kind, rows: 4, width: 20 }]);
            rig.read(out, rows * 20)
        });
        let at = |row: usize, c: usize| (row * 20 + c) as f32;
        for c in 0..20 {
            match kind {
                RowsKind::Gather => {
                    for (row, index) in indices.iter().enumerate() {
                        assert_eq!(got[row * 20 + c], at(*index as usize, c) / 8.0);
                    }
                }
                RowsKind::Scatter => {
                    // The later of two rows in one place stays.
                    assert_eq!([got[40 + c], got[c], got[100 + c]], [at(2, c), at(1, c), at(3, c)]);
                    assert_eq!(got[20 + c], at(1, c) / 8.0);
                }
                RowsKind::ScatterAdd => {
                    assert_eq!(got[40 + c], at(2, c) / 8.0 + at(0, c) + at(2, c));
                    assert_eq!(got[60 + c], at(3, c) / 8.0);
                }
            }
        }
    }
}

#[test]
fn tops_descend_and_ties_go_to_the_lower_id() {
    let mut random = Random(21);
    let mut logits: Vec<f32> = (0..3 * 500).map(|_| random.below(40) as f32).collect();
    logits[500 + 77] = f32::NAN;
    logits[1000] = f32::NEG_INFINITY;
    for top in [1u32, 2, 17, 500] {
        let got = same("top", |rig| {
            let n = 3 * top as usize;
            let (at, ids, values) = (rig.floats(&logits), rig.words(&vec![9; n]), rig.room(n));
            rig.run(&[Op::Top { logits: at, ids, values, rows: 3, width: 500, top }]);
            let ids = rig.words_of(ids, n).into_iter().map(|id| id as f32);
            rig.read(values, n).into_iter().chain(ids).collect()
        });
        let (values, ids) = got.split_at(3 * top as usize);
        for row in 0..3 {
            let logits = &logits[row * 500..][..500];
            let key = |id: &usize| (if logits[*id].is_nan() { f32::MAX } else { logits[*id] }, *id);
            let mut order: Vec<usize> = (0..500).collect();
            order.sort_by(|a, b| {
                let ((a, i), (b, j)) = (key(a), key(b));
                b.total_cmp(&a).then(i.cmp(&j))
            });
            for at in 0..top as usize {
                let place = row * top as usize + at;
                assert_eq!(ids[place], order[at] as f32, "row {row}, place {at} of {top}");
                assert_eq!(bits(&values[place..=place]), bits(&logits[order[at]..=order[at]]));
            }
        }
    }
}

#[test]
fn rope_turns_q_and_writes_k_and_v_to_their_places() {
    let (rows, heads, kv_heads, kd, vd) = (5usize, 3usize, 2usize, 10usize, 7usize);
    let mut random = Random(31);
    let q = random.floats(rows * heads * kd);
    let k = random.floats(rows * kv_heads * kd);
    let v = random.floats(rows * kv_heads * vd);
    let (cos, sin) = (random.floats(8 * 4), random.floats(8 * 4));
    let positions = [3u32, 7, 0, 1, 3];
    // Two frames; offset and row of each.
    let places = [(0, 0), (1, 63), (1, 5), (0, 17), (0, 18)];
    for (encoding, size) in [(KvEncoding::F32, 4), (KvEncoding::F16, 2), (KvEncoding::Bf16, 2)] {
        for (rotary, interleaved) in [(8usize, false), (8, true), (4, false), (0, false)] {
            let page = kv_heads * 64 * (kd + vd) * size;
            let what = format!("{encoding:?}, {rotary}, {interleaved}");
            let number = |bytes: &[u8]| match encoding {
                KvEncoding::F32 => f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
                KvEncoding::F16 => half(u16::from_le_bytes([bytes[0], bytes[1]])),
                _ => f32::from_bits(u32::from(u16::from_le_bytes([bytes[0], bytes[1]])) << 16),
            };
            let got = same(&what, |rig| {
                let q_at = rig.floats(&q);
                let pool = rig.bytes(&vec![0; 2 * page]);
                let words: Vec<u32> =
                    places.iter().flat_map(|(f, r)| [(f * page) as u32, 0, *r as u32, 0]).collect();
                let op = Op::RopeWrite {
                    q: q_at,
                    k: rig.floats(&k),
                    v: rig.floats(&v),
                    positions: rig.words(&positions),
                    cos: rig.floats(&cos[..8 * rotary / 2]),
                    sin: rig.floats(&sin[..8 * rotary / 2]),
                    writes: rig.words(&words),
                    pool,
                    rows: rows as u32,
                    heads: heads as u32,
                    kv_heads: kv_heads as u32,
                    key_dim: kd as u32,
                    value_dim: vd as u32,
                    rotary: rotary as u32,
                    table_rows: 8,
                    interleaved,
                    encoding: encoding_word(encoding),
                };
                rig.run(&[op]);
                let mut all = rig.read(q_at, q.len());
                all.extend(rig.read_bytes(pool, 2 * page).chunks(size).map(number));
                all
            });
            let turned = |x: &[f32], row: usize| -> Vec<f64> {
                let mut y: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
                for pair in 0..rotary / 2 {
                    let (i, j) = if interleaved {
                        (2 * pair, 2 * pair + 1)
                    } else {
                        (pair, pair + rotary / 2)
                    };
                    let at = positions[row] as usize * (rotary / 2) + pair;
                    let (a, b) = (f64::from(x[i]), f64::from(x[j]));
                    let (c, s) = (f64::from(cos[at]), f64::from(sin[at]));
                    (y[i], y[j]) = (a * c - b * s, b * c + a * s);
                }
                y
            };
            let mut want: Vec<f64> =
                (0..rows * heads).flat_map(|h| turned(&q[h * kd..][..kd], h / heads)).collect();
            let mut pool = vec![0f64; 2 * page / size];
            for (row, (frame, token)) in places.iter().enumerate() {
                for head in 0..kv_heads {
                    let at = frame * page / size + (head * 64 + token) * kd;
                    let from = (row * kv_heads + head) * kd;
                    pool[at..at + kd].copy_from_slice(&turned(&k[from..][..kd], row));
                    let at = frame * page / size + kv_heads * 64 * kd + (head * 64 + token) * vd;
                    for c in 0..vd {
                        pool[at + c] = f64::from(v[(row * kv_heads + head) * vd + c]);
                    }
                }
            }
            want.extend(pool);
            let bound = match encoding {
                KvEncoding::F32 => 1e-6,
                KvEncoding::F16 => 1e-3,
                _ => 8e-3,
            };
            close(&got, &want, bound, &what);
        }
    }
}

#[test]
fn copies_move_bytes_also_over_themselves() {
    let bytes: Vec<u8> = (0..1_000_000u32).map(|i| (i * 7) as u8).collect();
    for (name, mut rig) in rigs() {
        let (from, to) = (rig.bytes(&bytes), rig.bytes(&vec![0; 1_000_000]));
        let far = Slice { offset: from.offset + 300_000, ..from };
        let copies = [
            CopyRange { from, to, bytes: 1_000_000 },
            CopyRange { from, to: far, bytes: 700_000 },
            CopyRange { from, to, bytes: 0 },
        ];
        let fence = rig.device.copy(Queue(0), &copies, &[]).unwrap();
        assert_eq!(rig.device.wait(fence, Duration::from_secs(9)).unwrap(), FenceState::Done);
        assert!(rig.read_bytes(to, 1_000_000) == bytes, "{name}");
        assert!(rig.read_bytes(far, 700_000) == bytes[..700_000], "{name}");
    }
}
