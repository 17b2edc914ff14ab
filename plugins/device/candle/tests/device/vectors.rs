//! Norms and maps over strided views.

use crate::harness::*;
use kvern_contract::*;

fn view(at: Slice, row: usize, group: usize) -> View {
    View { at, row: row as u32, group: group as u32, step: 1 }
}

fn normed(x: &[f64], kind: NormKind, eps: f64) -> Vec<f64> {
    let count = x.len() as f64;
    let mean = if kind == NormKind::Layer { x.iter().sum::<f64>() / count } else { 0.0 };
    let squares: f64 = x.iter().map(|x| (x - mean) * (x - mean)).sum();
    let by = if kind == NormKind::L2 { squares + eps } else { squares / count + eps };
    x.iter().map(|x| (x - mean) / by.sqrt()).collect()
}

#[test]
fn norms_match_their_definition_by_group_with_weight_bias_and_gate() {
    let mut dice = Dice::new(1);
    let kinds = [NormKind::Rms, NormKind::RmsPlusOne, NormKind::Layer, NormKind::L2];
    let shapes = [(1, 1, 1), (5, 3, 64), (2, 1, 576), (37, 4, 33), (3, 1, 32_768)];
    for (round, kind) in kinds.into_iter().cycle().take(16).enumerate() {
        let (rows, groups, width) = shapes[round % shapes.len()];
        let (weighted, gated, in_place) = (round % 3 != 0, round % 2 == 0, round % 5 == 0);
        let mut rig = Rig::new();
        // Rows are wider than their groups: seven floats of something else follow.
        let stride = groups * width + 7;
        let values = dice.floats(rows * stride);
        let gate = dice.floats(rows * stride);
        let (scale, bias) = (dice.floats(width), dice.floats(width));
        let (at, gate_at) = (rig.floats(&values), rig.floats(&gate));
        let (mut weight, held) = rig.weight(&scale, 1, width, ENCODINGS[round % 3]);
        if round % 4 == 0 {
            weight = rig.device.adapt(&weight).unwrap();
        }
        let bias_at = rig.floats(&bias);
        let out = if in_place { at } else { rig.floats(&values) };
        rig.run(Op::Norm {
            x: view(at, stride, width),
            weight: if weighted { weight } else { Weight::default() },
            bias: if weighted { bias_at } else { Slice::default() },
            gate: if gated { view(gate_at, stride, width) } else { View::default() },
            out: view(out, stride, width),
            kind,
            rows: rows as u32,
            groups: groups as u32,
            width: width as u32,
            eps: 1e-5,
        });
        let mut want = wide(&values);
        for (at, line) in want.chunks_exact_mut(stride).enumerate() {
            for (g, group) in line[..groups * width].chunks_exact_mut(width).enumerate() {
                let y = normed(group, kind, f64::from(1e-5f32));
                for (i, y) in y.into_iter().enumerate() {
                    let scale = held[i] + f64::from(u8::from(kind == NormKind::RmsPlusOne));
                    let y = if weighted { y * scale + f64::from(bias[i]) } else { y };
                    let by = f64::from(gate[at * stride + g * width + i]);
                    group[i] = if gated { y * silu(by) } else { y };
                }
            }
        }
        close(&format!("{kind:?} {round}"), &rig.get(out, want.len()), &want, 1e-5);
    }
}

#[test]
fn maps_match_their_definition_over_views() {
    let mut dice = Dice::new(2);
    type Of = fn(f64, f64) -> f64;
    let kinds: [(MapKind, Of); 7] = [
        (MapKind::Add, |a, b| a + 1.5 * b),
        (MapKind::Mul, |a, b| a * b),
        (MapKind::Scale, |a, _| 1.5 * a),
        (MapKind::SigmoidMul, |a, b| a / (1.0 + (-b).exp())),
        (MapKind::SiluMul, |a, b| a * silu(b)),
        (MapKind::Softcap, |a, _| 1.5 * (a / 1.5).tanh()),
        (MapKind::Copy, |a, _| a),
    ];
    for (kind, of) in kinds {
        for (rows, groups, width) in [(1, 1, 1), (6, 3, 17), (2, 1, 70_001), (300, 2, 128)] {
            let mut rig = Rig::new();
            let stride = groups * width + 3;
            let (a, b) = (dice.floats(rows * stride), dice.floats(rows * groups));
            let (a_at, b_at) = (rig.floats(&a), rig.floats(&b));
            let out = rig.zeros(rows * groups * width);
            rig.run(Op::Map {
                a: view(a_at, stride, width),
                // One value a group.
                b: View { at: b_at, row: groups as u32, group: 1, step: 0 },
                out: view(out, groups * width, width),
                kind,
                rows: rows as u32,
                groups: groups as u32,
                width: width as u32,
                scalar: 1.5,
            });
            let mut want = Vec::new();
            for row in 0..rows {
                for i in 0..groups * width {
                    let b = b[row * groups + i / width];
                    want.push(of(f64::from(a[row * stride + i]), f64::from(b)));
                }
            }
            close(&format!("{kind:?}"), &rig.get(out, want.len()), &want, 1e-5);
        }
    }
}

#[test]
fn a_map_may_write_over_its_operand() {
    let mut rig = Rig::new();
    let (a, b) = (rig.floats(&[1.0, 2.0, 3.0]), rig.floats(&[10.0, 20.0, 30.0]));
    let (a, b) = (view(a, 3, 3), view(b, 3, 3));
    let (kind, scalar) = (MapKind::Add, 1.0);
    rig.run(Op::Map { a, b, out: a, kind, rows: 1, groups: 1, width: 3, scalar });
    assert_eq!(rig.get(a.at, 3), [11.0, 22.0, 33.0]);
}
