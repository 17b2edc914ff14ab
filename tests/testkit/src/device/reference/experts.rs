//! Routers and the experts that they choose.

use super::image::{Image, Value, Write, beyond, invalid, is_there};
use super::plain::{Sum, exact, join, largest, products, sigmoid};
use super::stored;
use kvern_contract::*;
use std::collections::BTreeMap;

fn stray<T>(op: &Op) -> Result<T> {
    invalid(format!("{} came to the wrong place", op.name()))
}

fn softmax(line: &[f64]) -> Vec<f64> {
    let top = line.iter().fold(f64::NEG_INFINITY, |top, x| top.max(*x));
    let all: Vec<f64> = line.iter().map(|x| (x - top).exp()).collect();
    let sum: f64 = all.iter().sum();
    all.into_iter().map(|x| x / sum).collect()
}

pub fn route(op: &Op, image: &Image) -> Result<Vec<Write>> {
    let Op::Route { logits, bias, ids, weights, rows, experts, top, kind, renormalise, scale } =
        *op
    else {
        return stray(op);
    };
    let bias = image.floats_or(bias, &[experts], 0.0)?;
    let mut writes = Vec::new();
    let all = image.floats(logits, &[rows, experts])?;
    for (row, line) in all.chunks_exact(experts as usize).enumerate() {
        let scores = match kind {
            RouteKind::SoftmaxThenTop => softmax(line),
            RouteKind::TopThenSoftmax => line.to_vec(),
            RouteKind::SigmoidThenTop => line.iter().map(|x| sigmoid(*x)).collect(),
        };
        // A bias takes part in the choice, not in the weights.
        let chosen: Vec<f64> = scores.iter().zip(&bias).map(|(score, b)| score + b).collect();
        let chosen = largest(&chosen, top);
        let mut found: Vec<f64> = chosen.iter().map(|id| scores[*id as usize]).collect();
        if kind == RouteKind::TopThenSoftmax {
            found = softmax(&found);
        }
        if renormalise {
            let sum: f64 = found.iter().sum();
            found.iter_mut().for_each(|w| *w /= sum);
        }
        let far = 4 * row as u64 * u64::from(top);
        let steep = 2.0 + 2.0 * line.iter().fold(0.0f64, |most, x| most.max(x.abs()));
        let weight = |w: &f64| {
            let value = w * f64::from(scale);
            Value::Float { value, terms: value.abs() * steep }
        };
        image.row(beyond(ids, far)?, chosen.iter().map(|id| Value::Word(*id)), &mut writes)?;
        image.row(beyond(weights, far)?, found.iter().map(weight), &mut writes)?;
    }
    Ok(writes)
}

pub fn experts(op: &Op, image: &Image) -> Result<Vec<Write>> {
    let Op::Experts { x, ids, weights, slots, gate, up, down, out, rows, top, experts, .. } = *op
    else {
        return stray(op);
    };
    let Op::Experts { gate_bias, up_bias, down_bias, epilogue, limit, alpha, first, .. } = *op
    else {
        return stray(op);
    };
    let x = image.floats(x, &[rows, gate.inputs])?;
    let (ids, weights) = (image.words(ids, &[rows, top])?, image.floats(weights, &[rows, top])?);
    let slots = image.words(slots, &[experts])?;
    let before = if first { None } else { Some(image.floats(out, &[rows, down.outputs])?) };
    if let Some(id) = ids.iter().find(|id| **id >= experts) {
        return invalid(format!("expert {id} of {experts}"));
    }
    let gated = matches!(epilogue, Epilogue::SiluGated | Epilogue::GeluTanhGated);
    // Each expert that is here, read once.
    let mut here = BTreeMap::new();
    for id in ids.iter().filter(|id| slots[**id as usize] != u32::MAX) {
        let slot = slots[*id as usize];
        let bias = |at: Slice, outputs: u32| {
            let far = if is_there(at) { 4 * u64::from(*id) * u64::from(outputs) } else { 0 };
            image.floats_or(beyond(at, far)?, &[outputs], 0.0)
        };
        let second = match gated {
            true => Some((stored::matrix(image, &up, slot)?, bias(up_bias, up.outputs)?)),
            false => None,
        };
        let first = (stored::matrix(image, &gate, slot)?, bias(gate_bias, gate.outputs)?);
        let last = (stored::matrix(image, &down, slot)?, bias(down_bias, down.outputs)?);
        here.insert(*id, (first, second, last));
    }
    let modes = (f64::from(limit), f64::from(alpha));
    let width = down.outputs as usize;
    let mut writes = Vec::new();
    for row in 0..rows as usize {
        let x = exact(&x[row * gate.inputs as usize..][..gate.inputs as usize]);
        let mut sums = vec![Sum::default(); width];
        if let Some(before) = &before {
            sums = exact(&before[row * width..][..width]);
        }
        let own = row * top as usize..(row + 1) * top as usize;
        let mut chosen: Vec<(u32, f64)> =
            ids[own.clone()].iter().copied().zip(weights[own].iter().copied()).collect();
        chosen.sort_by_key(|(id, _)| *id);
        for (id, weight) in chosen {
            let Some((first, second, last)) = here.get(&id) else { continue };
            let first = products(&first.0, &x, &first.1);
            let second = second.as_ref().map(|(w, bias)| products(w, &x, bias));
            let hidden = join(epilogue, &first, second.as_deref(), modes)?;
            for (sum, y) in sums.iter_mut().zip(products(&last.0, &hidden, &last.1)) {
                // As in memory: so that waves of experts are all experts at once.
                sum.value = f64::from((sum.value + weight * y.value) as f32);
                sum.terms += (weight * y.terms).abs();
            }
        }
        let values = sums.iter().map(|s| Value::Float { value: s.value, terms: s.terms });
        image.row(beyond(out, (4 * row * width) as u64)?, values, &mut writes)?;
    }
    Ok(writes)
}
