//! Products: forms, shapes, epilogues, and the same bits however they are cut.

use crate::rig::*;
use kvern_contract::*;

struct Case {
    rows: usize,
    inputs: usize,
    outputs: Vec<usize>,
    form: WeightEncoding,
    epilogue: Epilogue,
    bias: bool,
}

struct Data {
    x: Vec<f32>,
    weights: Vec<(Vec<u8>, Vec<f32>)>,
    biases: Vec<Vec<f32>>,
    before: Vec<Vec<f32>>,
}

fn data(case: &Case, seed: u64) -> Data {
    let mut random = Random(seed);
    Data {
        x: random.floats(case.rows * case.inputs),
        weights: case
            .outputs
            .iter()
            .map(|n| encoded(&mut random, n * case.inputs, case.form))
            .collect(),
        biases: case.outputs.iter().map(|n| random.floats(*n)).collect(),
        before: case.outputs.iter().map(|n| random.floats(case.rows * n)).collect(),
    }
}

fn gated(case: &Case) -> bool {
    matches!(case.epilogue, Epilogue::SiluGated | Epilogue::GeluTanhGated)
}

/// Rows `from..to` as an op of their own; the outputs one after another.
fn run(rig: &mut Rig, case: &Case, data: &Data, from: usize, to: usize) -> Vec<Vec<f32>> {
    let rows = to - from;
    let x = rig.floats(&data.x[from * case.inputs..to * case.inputs]);
    let (mut weights, mut biases, mut outs) = (Vec::new(), Vec::new(), Vec::new());
    for (i, n) in case.outputs.iter().enumerate() {
        let at = rig.bytes(&data.weights[i].0);
        let (outputs, inputs) = (*n as u32, case.inputs as u32);
        weights.push(Weight {
            data: at,
            encoding: case.form,
            outputs,
            inputs,
            ..Weight::default()
        });
        biases.push(if case.bias { rig.floats(&data.biases[i]) } else { Slice::default() });
        if i == 0 || !gated(case) {
            outs.push(rig.floats(&data.before[i][from * n..to * n]));
        }
    }
    rig.run(&[Op::Linear {
        x,
        weights: Few::of(&weights),
        biases: Few::of(&biases),
        outs: Few::of(&outs),
        rows: rows as u32,
        epilogue: case.epilogue,
        limit: 0.0,
        alpha: 0.0,
    }]);
    let read = outs.iter().zip(&case.outputs).map(|(at, n)| rig.read(*at, rows * n)).collect();
    for at in weights.iter().map(|w| w.data).chain(biases).chain(outs).chain([x]) {
        rig.device.free(at.buffer);
    }
    read
}

/// Abramowitz and Stegun 7.1.26 is too coarse here: the series and the continued fraction are not.
pub fn erf(x: f64) -> f64 {
    if x.abs() > 3.0 {
        let mut tail = 0.0;
        for n in (1..60).rev() {
            tail = f64::from(n) / 2.0 / (x.abs() + tail);
        }
        let erfc = (-x * x).exp() / std::f64::consts::PI.sqrt() / (x.abs() + tail);
        return (1.0 - erfc) * x.signum();
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..100 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

pub fn gelu_tanh(v: f64) -> f64 {
    0.5 * v * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (v + 0.044715 * v * v * v)).tanh())
}

fn reference(case: &Case, data: &Data) -> Vec<Vec<f64>> {
    let product = |i: usize| -> Vec<f64> {
        let mut out = Vec::new();
        for r in 0..case.rows {
            for o in 0..case.outputs[i] {
                let w = &data.weights[i].1[o * case.inputs..(o + 1) * case.inputs];
                let x = &data.x[r * case.inputs..(r + 1) * case.inputs];
                let sum: f64 = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
                out.push(sum + if case.bias { f64::from(data.biases[i][o]) } else { 0.0 });
            }
        }
        out
    };
    let silu = |v: f64| v / (1.0 + (-v).exp());
    if gated(case) {
        let act = if case.epilogue == Epilogue::SiluGated { silu } else { gelu_tanh };
        let up = product(1);
        return vec![product(0).into_iter().zip(up).map(|(g, u)| act(g) * u).collect()];
    }
    let follow = |i: usize, at: usize, v: f64| match case.epilogue {
        Epilogue::Silu => silu(v),
        Epilogue::Gelu => 0.5 * v * (1.0 + erf(v / 2f64.sqrt())),
        Epilogue::GeluTanh => gelu_tanh(v),
        Epilogue::Add => f64::from(data.before[i][at]) + v,
        _ => v,
    };
    let outs = (0..case.outputs.len())
        .map(|i| product(i).into_iter().enumerate().map(|(at, v)| follow(i, at, v)).collect());
    outs.collect()
}

fn check(case: &Case) {
    let what = format!(
        "{} rows, {} to {:?}, {:?}, {:?}",
        case.rows, case.inputs, case.outputs, case.form, case.epilogue
    );
    let data = data(case, case.rows as u64 * 1000 + case.inputs as u64);
    let want = reference(case, &data);
    let mut first: Option<Vec<Vec<u32>>> = None;
    for (name, mut rig) in rigs() {
        let got = run(&mut rig, case, &data, 0, case.rows);
        for (got, want) in got.iter().zip(&want) {
            close(got, want, 2e-5 * (case.inputs as f64).sqrt(), &format!("{what}, {name}"));
        }
        let got: Vec<Vec<u32>> = got.iter().map(|out| bits(out)).collect();
        match &first {
            None => first = Some(got),
            Some(first) => assert_eq!(*first, got, "{what}, {name}"),
        }
    }
    let Some(first) = first else { return };
    // Rows in pieces of every size that a tile may have: the same bits again.
    let mut rig = Rig::open("auto", 2).unwrap();
    let mut from = 0;
    for piece in [1, 2, 3, 4, 5, 6, 7, 9, 13].into_iter().cycle() {
        if from == case.rows {
            break;
        }
        let to = case.rows.min(from + piece);
        let got = run(&mut rig, case, &data, from, to);
        for ((got, whole), n) in got.iter().zip(&first).zip(&case.outputs) {
            assert_eq!(bits(got), whole[from * n..to * n], "{what}, rows {from} to {to}");
        }
        from = to;
    }
}

const FORMS: [WeightEncoding; 3] = [WeightEncoding::Bf16, WeightEncoding::F16, WeightEncoding::F32];

#[test]
fn products_of_every_form_and_shape_have_one_result() {
    let shapes = [(1, 1, 1), (1, 16, 4), (2, 17, 5), (3, 31, 7), (5, 64, 9), (7, 33, 70)];
    let more = [(8, 100, 3), (9, 48, 130), (23, 15, 66), (50, 65, 2), (70, 130, 37)];
    for form in FORMS {
        for (rows, inputs, outputs) in shapes.into_iter().chain(more) {
            let outputs = vec![outputs];
            check(&Case { rows, inputs, outputs, form, epilogue: Epilogue::None, bias: false });
        }
    }
}

#[test]
fn four_weights_over_one_input_are_four_products() {
    for rows in [1, 4, 30] {
        let outputs = vec![19, 4, 33, 1];
        let form = WeightEncoding::Bf16;
        check(&Case { rows, inputs: 40, outputs, form, epilogue: Epilogue::None, bias: true });
    }
}

#[test]
fn every_epilogue_follows_the_products() {
    use Epilogue::*;
    for epilogue in [Silu, Gelu, GeluTanh, Add] {
        for (rows, bias) in [(1, true), (6, false), (29, true)] {
            let outputs = vec![18, 5];
            check(&Case { rows, inputs: 37, outputs, form: WeightEncoding::F16, epilogue, bias });
        }
    }
    for epilogue in [SiluGated, GeluTanhGated] {
        for (rows, bias) in [(1, false), (5, true), (33, true)] {
            let outputs = vec![39, 39];
            check(&Case { rows, inputs: 52, outputs, form: WeightEncoding::Bf16, epilogue, bias });
        }
    }
}

#[test]
fn nan_and_infinity_come_through() {
    let case = Case {
        rows: 12,
        inputs: 40,
        outputs: vec![9],
        form: WeightEncoding::F32,
        epilogue: Epilogue::Silu,
        bias: false,
    };
    let mut data = data(&case, 7);
    data.x[40] = f32::NAN;
    data.x[2 * 40] = f32::INFINITY;
    data.weights[0].0 = data.weights[0].1.iter().flat_map(|w| w.abs().to_le_bytes()).collect();
    for (name, mut rig) in rigs() {
        let got = run(&mut rig, &case, &data, 0, 12).remove(0);
        assert!(got[9..18].iter().all(|v| v.is_nan()), "{name}");
        assert!(got[18..27].iter().all(|v| *v == f32::INFINITY), "{name}");
        assert!(got[..9].iter().chain(&got[27..]).all(|v| v.is_finite()), "{name}");
    }
}
