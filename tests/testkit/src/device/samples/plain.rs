//! Rows, products, norms and what goes element by element.

use super::super::desk::Desk;
use super::of;
use kvern_contract::*;

pub fn embed(desk: &mut Desk, n: u64) -> Vec<Op> {
    let (rows, width) = (of(&[1, 33, 5], n), of(&[32, 96, 64, 160], n));
    let encoding = desk.weight_encoding(n);
    let table = desk.weight(encoding, (11, width), (1, 0));
    let ids: Vec<u32> = (0..rows).map(|_| desk.random.below(11) as u32).collect();
    let (ids, out) = (desk.table(&ids), desk.out(rows * width));
    vec![Op::Embed { ids, table, out, rows, scale: of(&[1.0, 3.5], n) }]
}

pub fn norm(desk: &mut Desk, n: u64) -> Vec<Op> {
    let kind = of(&[NormKind::Rms, NormKind::RmsPlusOne, NormKind::Layer, NormKind::L2], n);
    let (rows, groups) = (of(&[1, 3, 33], n), of(&[1, 4], n / 3));
    let width: u32 = of(&[3, 32, 17, 96, 100], n);
    let counts = [rows, groups, width];
    // A width in blocks may be in any encoding, another in none that has blocks.
    let encoding = match desk.weight_encoding(n / 2) {
        _ if n % 7 == 6 => WeightEncoding::None,
        WeightEncoding::Mxfp4 if !width.is_multiple_of(32) => WeightEncoding::F32,
        other => other,
    };
    let weight = match encoding {
        WeightEncoding::None => Weight::default(),
        encoding => desk.weight(encoding, (1, width), (1, 0)),
    };
    let x = desk.view(counts, (n % 3) as u32);
    let (bias, gated) = (desk.maybe(n % 4 > 1, width), n / 4 % 3 == 1);
    let gate = match gated {
        // Now and then one gate a group.
        true if n % 2 == 1 => View { step: 0, ..desk.view([rows, groups, 1], 0) },
        true => desk.view(counts, 1),
        false => View::default(),
    };
    let out = if n.is_multiple_of(5) { x } else { desk.view(counts, (n % 2) as u32) };
    let eps = of(&[1e-5, 0.01], n);
    vec![Op::Norm { x, weight, bias, gate, out, kind, rows, groups, width, eps }]
}

pub fn linear(desk: &mut Desk, n: u64) -> Vec<Op> {
    use Epilogue::*;
    let epilogue = of(&[None, Silu, Gelu, GeluTanh, SiluGated, GeluTanhGated, Clamped, Add], n);
    let rows = of(&[1, 7, 33, 2, 16], n);
    let round = n / 8;
    let blocks: u32 = of(&[32, 96, 64, 160, 256], round);
    let odd = of(&[37, 1, 129, 48, 63, 200], round);
    let scaled = desk.weights.contains(&WeightEncoding::Mxfp4);
    let inputs = if scaled && round.is_multiple_of(2) { blocks } else { odd };
    let encoding = |desk: &Desk, n: u64| match desk.weight_encoding(n) {
        WeightEncoding::Mxfp4 if !inputs.is_multiple_of(32) => WeightEncoding::Bf16,
        other => other,
    };
    let outputs: Vec<u32> = match epilogue {
        SiluGated | GeluTanhGated => vec![of(&[24, 5, 37], round); 2],
        Clamped => vec![of(&[24, 10], round)],
        _ => [12, 1, 33, 7][..=(n / 3 % 4) as usize].to_vec(),
    };
    let x = desk.floats(rows * inputs);
    let (mut weights, mut biases, mut outs) = (Vec::new(), Vec::new(), Vec::new());
    for (i, outputs) in outputs.iter().enumerate() {
        let encoding = encoding(desk, n + i as u64 + round);
        // Some by columns: where the device reads them so.
        let plain = !matches!(encoding, WeightEncoding::Int8 | WeightEncoding::Mxfp4);
        let layout = u32::from(plain && n % 11 == 10);
        weights.push(desk.weight(encoding, (*outputs, inputs), (1, layout)));
        biases.push(desk.maybe(!(n + i as u64).is_multiple_of(3), *outputs));
        outs.push(match epilogue {
            Add => desk.floats(rows * outputs),
            Clamped => desk.out(rows * outputs / 2),
            _ => desk.out(rows * outputs),
        });
    }
    if matches!(epilogue, SiluGated | GeluTanhGated) {
        outs.truncate(1);
    }
    let (weights, biases, outs) = (Few::of(&weights), Few::of(&biases), Few::of(&outs));
    let (limit, alpha) = (0.75, 1.702);
    vec![Op::Linear { x, weights, biases, outs, rows, epilogue, limit, alpha }]
}

pub fn map(desk: &mut Desk, n: u64) -> Vec<Op> {
    use MapKind::*;
    let kind = of(&[Add, Mul, Scale, SigmoidMul, SiluMul, Softcap, Copy], n);
    let (rows, groups) = (of(&[3, 1, 33], n / 7), of(&[2, 1], n));
    let width = of(&[33, 1, 16, 100], n / 7);
    let counts = [rows, groups, width];
    let a = desk.view(counts, (n % 2) as u32);
    let b = match kind {
        Scale | Softcap | Copy => View::default(),
        // One b a row, for all of its groups.
        _ if n.is_multiple_of(3) => View { group: 0, step: 0, ..desk.view([rows, 1, 1], 0) },
        _ => desk.view(counts, 1),
    };
    let out = match n % 4 {
        0 => a,
        1 if b.step == 1 => b,
        _ => desk.view(counts, (n % 3) as u32),
    };
    vec![Op::Map { a, b, out, kind, rows, groups, width, scalar: 0.7 }]
}

pub fn rows(desk: &mut Desk, n: u64) -> Vec<Op> {
    let kind = of(&[RowsKind::Gather, RowsKind::Scatter, RowsKind::ScatterAdd], n);
    let (rows, width, many) = (of(&[5, 1, 33], n / 3), of(&[20, 7, 33], n / 3), 40);
    let mut indices: Vec<u32> = (0..many).collect();
    // A shuffle, so that no index comes twice, save of what adds or is only read.
    for i in (1..indices.len()).rev() {
        indices.swap(i, desk.random.below(i as u64 + 1) as usize);
    }
    indices.truncate(rows as usize);
    if kind != RowsKind::Scatter && rows > 2 {
        indices[2] = indices[0];
    }
    let indices = desk.table(&indices);
    let (x, out) = match kind {
        RowsKind::Gather => (desk.floats(many * width), desk.out(rows * width)),
        _ => (desk.floats(rows * width), desk.floats(many * width)),
    };
    // The indexed side goes on to the arena's end: only an index past that is out of range.
    vec![Op::Rows { x, indices, out, kind, rows, width }]
}

pub fn top(desk: &mut Desk, n: u64) -> Vec<Op> {
    let (rows, width) = (of(&[1, 3, 33], n), of(&[5, 100, 33, 500], n));
    let top = of(&[1, 2, 5], n / 3);
    let mut values = desk.numbers(rows * width);
    if n % 2 == 1 {
        // Few values: most places are ties.
        values.iter_mut().for_each(|x| *x = (*x * 3.0).round());
    }
    let logits = desk.given(&values);
    let (ids, values) = (desk.out(rows * top), desk.out(rows * top));
    vec![Op::Top { logits, ids, values, rows, width, top }]
}
