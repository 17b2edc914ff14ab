//! Products: every encoding, epilogue and layout, kept and streamed.

use crate::harness::*;
use kvern_contract::*;

struct Case {
    rows: usize,
    inputs: usize,
    outputs: usize,
    biased: bool,
}

const CASES: [Case; 5] = [
    Case { rows: 1, inputs: 1, outputs: 1, biased: true },
    Case { rows: 1, inputs: 576, outputs: 1537, biased: false },
    Case { rows: 7, inputs: 63, outputs: 129, biased: true },
    Case { rows: 3, inputs: 8, outputs: 70_000, biased: true },
    Case { rows: 65, inputs: 130, outputs: 33, biased: false },
];

/// Products in f64, `[row][out]`.
fn products(x: &[f32], weight: &[f64], bias: Option<&[f32]>, case: &Case) -> Vec<f64> {
    let mut all = Vec::new();
    for x in x.chunks_exact(case.inputs) {
        for (o, w) in weight.chunks_exact(case.inputs).enumerate() {
            let sum: f64 = x.iter().zip(w).map(|(x, w)| f64::from(*x) * w).sum();
            all.push(sum + bias.map_or(0.0, |bias| f64::from(bias[o])));
        }
    }
    all
}

fn linear(x: Slice, weights: &[Weight], biases: &[Slice], outs: &[Slice], rows: usize) -> Op {
    Op::Linear {
        x,
        weights: Few::of(weights),
        biases: Few::of(biases),
        outs: Few::of(outs),
        rows: rows as u32,
        epilogue: Epilogue::None,
        limit: 0.0,
        alpha: 0.0,
    }
}

fn with(op: Op, epilogue: Epilogue) -> Op {
    match op {
        Op::Linear { x, weights, biases, outs, rows, limit, alpha, .. } => {
            Op::Linear { x, weights, biases, outs, rows, epilogue, limit, alpha }
        }
        other => other,
    }
}

fn single(epilogue: Epilogue, case: &Case, encoding: WeightEncoding, adapted: bool) {
    let mut dice = Dice::new(case.outputs as u64 + epilogue as u64);
    let mut rig = Rig::new();
    let x = dice.floats(case.rows * case.inputs);
    let values = dice.floats(case.outputs * case.inputs);
    let bias = dice.floats(case.outputs);
    let before = dice.floats(case.rows * case.outputs);
    let (mut weight, held) = rig.weight(&values, case.outputs, case.inputs, encoding);
    if adapted {
        weight = rig.device.adapt(&weight).unwrap();
        assert_eq!(weight.layout, 2);
    }
    let (at, out) = (rig.floats(&x), rig.floats(&before));
    let slices = if case.biased { vec![rig.floats(&bias)] } else { vec![] };
    rig.run(with(linear(at, &[weight], &slices, &[out], case.rows), epilogue));
    let want = products(&x, &held, case.biased.then_some(&bias[..]), case);
    let want: Vec<f64> = want
        .iter()
        .zip(&before)
        .map(|(y, before)| match epilogue {
            Epilogue::Silu => silu(*y),
            Epilogue::Gelu => gelu(*y),
            Epilogue::GeluTanh => gelu_tanh(*y),
            Epilogue::Add => y + f64::from(*before),
            _ => *y,
        })
        .collect();
    let name = format!("{epilogue:?} {encoding:?} {} adapted {adapted}", case.outputs);
    close(&name, &rig.get(out, want.len()), &want, 1e-5);
}

#[test]
fn a_product_is_the_sum_of_products_in_every_encoding() {
    for case in &CASES {
        for encoding in ENCODINGS {
            single(Epilogue::None, case, encoding, false);
            single(Epilogue::None, case, encoding, true);
        }
    }
}

#[test]
fn what_follows_a_product_is_applied_once() {
    for case in &CASES[..3] {
        for epilogue in [Epilogue::Silu, Epilogue::Gelu, Epilogue::GeluTanh, Epilogue::Add] {
            single(epilogue, case, WeightEncoding::F16, false);
            single(epilogue, case, WeightEncoding::Bf16, true);
        }
    }
    single(Epilogue::Silu, &CASES[3], WeightEncoding::F32, false);
    single(Epilogue::Add, &CASES[3], WeightEncoding::F32, true);
}

#[test]
fn a_gate_acts_on_the_first_product_alone() {
    for (epilogue, act) in
        [(Epilogue::SiluGated, silu as fn(f64) -> f64), (Epilogue::GeluTanhGated, gelu_tanh)]
    {
        for case in &CASES {
            let mut dice = Dice::new(5 + case.rows as u64);
            let mut rig = Rig::new();
            let x = dice.floats(case.rows * case.inputs);
            let mut sides = Vec::new();
            for adapted in [true, false] {
                let values = dice.floats(case.outputs * case.inputs);
                let bias = dice.floats(case.outputs);
                let (weight, held) =
                    rig.weight(&values, case.outputs, case.inputs, WeightEncoding::Bf16);
                let weight = if adapted { rig.device.adapt(&weight).unwrap() } else { weight };
                let want = products(&x, &held, Some(&bias), case);
                sides.push((weight, rig.floats(&bias), want));
            }
            let (at, out) = (rig.floats(&x), rig.zeros(case.rows * case.outputs));
            let op =
                linear(at, &[sides[0].0, sides[1].0], &[sides[0].1, sides[1].1], &[out], case.rows);
            rig.run(with(op, epilogue));
            let pairs = sides[0].2.iter().zip(&sides[1].2);
            let want: Vec<f64> = pairs.map(|(gate, up)| act(*gate) * up).collect();
            close("gated", &rig.get(out, want.len()), &want, 1e-5);
        }
    }
}

#[test]
fn four_weights_share_one_input_and_some_have_a_bias() {
    let mut dice = Dice::new(9);
    let mut rig = Rig::new();
    let (rows, inputs) = (5, 48);
    let x = dice.floats(rows * inputs);
    let at = rig.floats(&x);
    let (mut weights, mut biases, mut outs, mut wants) = (vec![], vec![], vec![], vec![]);
    for (i, outputs) in [48usize, 16, 17, 1].into_iter().enumerate() {
        let case = Case { rows, inputs, outputs, biased: false };
        let values = dice.floats(outputs * inputs);
        let (weight, held) = rig.weight(&values, outputs, inputs, ENCODINGS[i % 3]);
        weights.push(weight);
        let bias = dice.floats(outputs);
        let biased = i % 2 == 1;
        biases.push(if biased { rig.floats(&bias) } else { Slice::default() });
        outs.push(rig.zeros(rows * outputs));
        wants.push(products(&x, &held, biased.then_some(&bias[..]), &case));
    }
    rig.run(linear(at, &weights, &biases, &outs, rows));
    for (out, want) in outs.iter().zip(&wants) {
        close("one of four", &rig.get(*out, want.len()), want, 1e-5);
    }
}

#[test]
fn a_weight_stored_by_columns_is_read_by_columns() {
    let mut dice = Dice::new(10);
    for adapted in [false, true] {
        let mut rig = Rig::new();
        let case = Case { rows: 3, inputs: 700, outputs: 900, biased: false };
        let x = dice.floats(case.rows * case.inputs);
        let values = dice.floats(case.outputs * case.inputs);
        let mut across = vec![0.0; values.len()];
        for (i, value) in values.iter().enumerate() {
            across[i % case.inputs * case.outputs + i / case.inputs] = *value;
        }
        let (weight, _) = rig.weight(&across, case.outputs, case.inputs, WeightEncoding::F16);
        let held = encode(&values, WeightEncoding::F16).1;
        let mut weight = Weight { layout: 1, ..weight };
        if adapted {
            weight = rig.device.adapt(&weight).unwrap();
        }
        let (at, out) = (rig.floats(&x), rig.zeros(case.rows * case.outputs));
        rig.run(linear(at, &[weight], &[], &[out], case.rows));
        let want = products(&x, &held, None, &case);
        close("by columns", &rig.get(out, want.len()), &want, 1e-5);
    }
}

#[test]
fn neither_threads_nor_adapting_change_a_bit_of_a_product() {
    for rows in [1usize, 4, 65] {
        let mut answers = Vec::new();
        for (threads, adapted) in [(1, false), (3, false), (3, true)] {
            let mut dice = Dice::new(12);
            let mut rig = Rig::with(threads, u64::MAX);
            let (x, values) = (dice.floats(rows * 512), dice.floats(4099 * 512));
            for layout in [0, 1] {
                let (weight, _) = rig.weight(&values, 4099, 512, WeightEncoding::Bf16);
                let stored = Weight { layout, ..weight };
                let weight = if adapted { rig.device.adapt(&stored).unwrap() } else { stored };
                let (at, out) = (rig.floats(&x), rig.zeros(rows * 4099));
                rig.run(linear(at, &[weight], &[], &[out], rows));
                answers.push((layout, rig.get_words(out, rows * 4099)));
            }
        }
        for (layout, answer) in &answers[2..] {
            assert!(*answer == answers[*layout as usize].1, "{rows} rows, layout {layout}");
        }
    }
}
