//! Rows, products, norms and what goes element by element.

use super::image::{Image, Value, Write, beyond, float, invalid, is_there};
use super::stored;
use kvern_contract::*;

pub fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

pub fn silu(x: f64) -> f64 {
    x * sigmoid(x)
}

fn gelu_tanh(x: f64) -> f64 {
    let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
    0.5 * x * (1.0 + inner.tanh())
}

/// The exact gelu, erf by its series.
fn gelu(x: f64) -> f64 {
    let z = x / std::f64::consts::SQRT_2;
    // Beyond here erf is 1 to the last place of an f64.
    if z.abs() > 5.0 {
        return x.max(0.0);
    }
    let (mut term, mut sum) = (z, z);
    for n in 1..200 {
        let n = f64::from(n);
        term *= -z * z / n;
        sum += term / (2.0 * n + 1.0);
    }
    0.5 * x * (1.0 + sum * 2.0 / std::f64::consts::PI.sqrt())
}

fn stray<T>(op: &Op) -> Result<T> {
    invalid(format!("{} came to the wrong place", op.name()))
}

pub fn embed(op: &Op, image: &Image) -> Result<Vec<Write>> {
    let Op::Embed { ids, table, out, rows, scale } = *op else { return stray(op) };
    let all = stored::matrix(image, &table, 0)?;
    let (width, mut writes) = (table.inputs as usize, Vec::new());
    for (row, id) in image.words(ids, &[rows])?.into_iter().enumerate() {
        if id >= table.outputs {
            return invalid(format!("id {id} of {}", table.outputs));
        }
        let to = beyond(out, (4 * width * row) as u64)?;
        let values = all[id as usize * width..][..width].iter();
        image.row(to, values.map(|x| float(x * f64::from(scale))), &mut writes)?;
    }
    Ok(writes)
}

pub fn norm(op: &Op, image: &Image) -> Result<Vec<Write>> {
    let Op::Norm { x, weight, bias, gate, out, kind, rows, groups, width, eps } = *op else {
        return stray(op);
    };
    let counts = [rows, groups, width];
    let x = image.view(&x, counts)?;
    let gates = if is_there(gate.at) { Some(image.view(&gate, counts)?) } else { None };
    let places = image.places(&out, counts, true)?;
    let weights = match weight.encoding {
        // No weight: 1, whatever the kind adds to it.
        WeightEncoding::None => vec![1.0; width as usize],
        _ => {
            let plus = if kind == NormKind::RmsPlusOne { 1.0 } else { 0.0 };
            let stored = stored::vector(image, &weight, width)?;
            stored.into_iter().map(|w| w + plus).collect()
        }
    };
    let bias = image.floats_or(bias, &[width], 0.0)?;
    let (n, mut writes) = (f64::from(width), Vec::new());
    for (g, group) in x.chunks_exact(width as usize).enumerate() {
        let mean = match kind {
            NormKind::Layer => group.iter().sum::<f64>() / n,
            _ => 0.0,
        };
        let squares: f64 = group.iter().map(|x| (x - mean).powi(2)).sum();
        let power = if kind == NormKind::L2 { squares } else { squares / n };
        let root = (power + f64::from(eps)).sqrt();
        for (i, x) in group.iter().enumerate() {
            let at = g * width as usize + i;
            let z = gates.as_ref().map(|gates| gates[at]);
            let factor = z.map_or(1.0, silu);
            let value = ((x - mean) / root * weights[i] + bias[i]) * factor;
            let terms = (x.abs() + mean.abs()) / root * weights[i].abs() + bias[i].abs();
            let steep = z.map_or(1.0, |z| z.abs() * (1.0 + z.abs()));
            let terms = 2.0 * terms * steep;
            writes.push(Write { to: places[at], value: Value::Float { value, terms } });
        }
    }
    Ok(writes)
}

/// A product with the size of its terms.
#[derive(Clone, Copy, Default)]
pub struct Sum {
    pub value: f64,
    pub terms: f64,
}

/// `matrix` `[out][in]` times `x`, plus `bias`.
pub fn products(matrix: &[f64], x: &[Sum], bias: &[f64]) -> Vec<Sum> {
    let lines = matrix.chunks_exact(x.len()).zip(bias);
    let sum = |(line, bias): (&[f64], &f64)| {
        let mut sum = Sum { value: *bias, terms: bias.abs() };
        for (w, x) in line.iter().zip(x) {
            sum.value += w * x.value;
            sum.terms += w.abs() * x.terms;
        }
        sum
    };
    lines.map(sum).collect()
}

pub fn exact(values: &[f64]) -> Vec<Sum> {
    values.iter().map(|x| Sum { value: *x, terms: x.abs() }).collect()
}

/// What follows the products of one row: as many as come out.
pub fn join(
    epilogue: Epilogue,
    first: &[Sum],
    second: Option<&[Sum]>,
    (limit, alpha): (f64, f64),
) -> Result<Vec<Sum>> {
    // No activation is steeper than 1.2.
    let act = |f: fn(f64) -> f64| {
        first.iter().map(move |x| Sum { value: f(x.value), terms: 1.2 * x.terms })
    };
    let gated = |f: fn(f64) -> f64| match second {
        Some(second) => Ok(act(f)
            .zip(second)
            .map(|(a, b)| Sum {
                value: a.value * b.value,
                terms: a.terms * b.value.abs() + a.value.abs() * b.terms,
            })
            .collect()),
        None => invalid("a gate without what it gates"),
    };
    match epilogue {
        Epilogue::None | Epilogue::Add => Ok(first.to_vec()),
        Epilogue::Silu => Ok(act(silu).collect()),
        Epilogue::Gelu => Ok(act(gelu).collect()),
        Epilogue::GeluTanh => Ok(act(gelu_tanh).collect()),
        Epilogue::SiluGated => gated(silu),
        Epilogue::GeluTanhGated => gated(gelu_tanh),
        Epilogue::Clamped => Ok(first
            .chunks_exact(2)
            .map(|pair| {
                let (g, u) = (pair[0].value.min(limit), pair[1].value.clamp(-limit, limit));
                let gate = g * sigmoid(alpha * g);
                let terms = pair[0].terms * (1.0 + (alpha * g).abs()) * (u + 1.0).abs();
                Sum { value: (u + 1.0) * gate, terms: terms + pair[1].terms * gate.abs() }
            })
            .collect()),
    }
}

pub fn linear(op: &Op, image: &Image) -> Result<Vec<Write>> {
    let Op::Linear { x, weights, biases, outs, rows, epilogue, limit, alpha } = *op else {
        return stray(op);
    };
    let weights = weights.as_slice();
    let inputs = weights.first().map_or(1, |w| w.inputs);
    let x = image.floats(x, &[rows, inputs])?;
    let gated = matches!(epilogue, Epilogue::SiluGated | Epilogue::GeluTanhGated);
    let modes = (f64::from(limit), f64::from(alpha));
    let mut stored = Vec::new();
    for (i, weight) in weights.iter().enumerate() {
        let bias = biases.as_slice().get(i).copied().unwrap_or_default();
        let bias = image.floats_or(bias, &[weight.outputs], 0.0)?;
        stored.push((stored::matrix(image, weight, 0)?, bias));
    }
    let mut writes = Vec::new();
    for (row, x) in x.chunks_exact(inputs as usize).enumerate() {
        let all: Vec<Vec<Sum>> =
            stored.iter().map(|(w, bias)| products(w, &exact(x), bias)).collect();
        for (i, first) in all.iter().enumerate().take(if gated { 1 } else { all.len() }) {
            let mut done = join(epilogue, first, all.get(1).map(Vec::as_slice), modes)?;
            let out = outs.as_slice().get(i).copied().unwrap_or_default();
            let to = beyond(out, (4 * row * done.len()) as u64)?;
            if epilogue == Epilogue::Add {
                let before = image.floats(to, &[done.len() as u32])?;
                for (sum, before) in done.iter_mut().zip(before) {
                    sum.value += before;
                    sum.terms += before.abs();
                }
            }
            let values = done.iter().map(|s| Value::Float { value: s.value, terms: s.terms });
            image.row(to, values, &mut writes)?;
        }
    }
    Ok(writes)
}

pub fn map(op: &Op, image: &Image) -> Result<Vec<Write>> {
    let Op::Map { a, b, out, kind, rows, groups, width, scalar } = *op else { return stray(op) };
    let counts = [rows, groups, width];
    let two = matches!(kind, MapKind::Add | MapKind::Mul | MapKind::SigmoidMul | MapKind::SiluMul);
    let a = image.view(&a, counts)?;
    let b = if two { image.view(&b, counts)? } else { vec![0.0; a.len()] };
    let places = image.places(&out, counts, true)?;
    let s = f64::from(scalar);
    let map = |(a, b): (f64, f64)| {
        let (value, terms) = match kind {
            MapKind::Add => (a + s * b, a.abs() + (s * b).abs()),
            MapKind::Mul => (a * b, (a * b).abs()),
            MapKind::Scale => (s * a, (s * a).abs()),
            MapKind::SigmoidMul => (a * sigmoid(b), a.abs() * (1.0 + b.abs())),
            MapKind::SiluMul => (a * silu(b), a.abs() * b.abs() * (1.0 + b.abs())),
            MapKind::Softcap => (s * (a / s).tanh(), a.abs()),
            MapKind::Copy => (a, 0.0),
        };
        Value::Float { value, terms }
    };
    let values = a.into_iter().zip(b).map(map);
    Ok(places.into_iter().zip(values).map(|(to, value)| Write { to, value }).collect())
}

pub fn rows(op: &Op, image: &Image) -> Result<Vec<Write>> {
    let Op::Rows { x, indices, out, kind, rows, width } = *op else { return stray(op) };
    let mut after = image.clone();
    let mut writes = Vec::new();
    let bytes = 4 * u64::from(width);
    for (row, index) in image.words(indices, &[rows])?.into_iter().enumerate() {
        let (row, index) = (row as u64 * bytes, u64::from(index) * bytes);
        let (from, to) = match kind {
            RowsKind::Gather => (beyond(x, index)?, beyond(out, row)?),
            RowsKind::Scatter | RowsKind::ScatterAdd => (beyond(x, row)?, beyond(out, index)?),
        };
        let values = image.words(from, &[width])?;
        let mut one = Vec::new();
        let before = after.words(to, &[width])?;
        let values = values.into_iter().zip(before).map(|(x, before)| match kind {
            RowsKind::ScatterAdd => {
                let [x, before] = [x, before].map(|word| f64::from(f32::from_bits(word)));
                Value::Float { value: x + before, terms: x.abs() + before.abs() }
            }
            _ => Value::Word(x),
        });
        image.row(to, values, &mut one)?;
        if kind == RowsKind::ScatterAdd {
            // An index may come twice: the second adds to the first.
            after.apply(&one)?;
        }
        writes.extend(one);
    }
    Ok(writes)
}

pub fn top(op: &Op, image: &Image) -> Result<Vec<Write>> {
    let Op::Top { logits, ids, values, rows, width, top } = *op else { return stray(op) };
    let all = image.floats(logits, &[rows, width])?;
    let mut writes = Vec::new();
    for (row, line) in all.chunks_exact(width as usize).enumerate() {
        let chosen = largest(line, top);
        let far = 4 * row as u64 * u64::from(top);
        let bits = |id: &u32| Value::Word((line[*id as usize] as f32).to_bits());
        image.row(beyond(ids, far)?, chosen.iter().map(|id| Value::Word(*id)), &mut writes)?;
        image.row(beyond(values, far)?, chosen.iter().map(bits), &mut writes)?;
    }
    Ok(writes)
}

/// Descending, ties to the lower id.
pub fn largest(line: &[f64], top: u32) -> Vec<u32> {
    let mut ids: Vec<u32> = (0..line.len() as u32).collect();
    ids.sort_by(|a, b| line[*b as usize].total_cmp(&line[*a as usize]).then(a.cmp(b)));
    ids.truncate(top as usize);
    ids
}
