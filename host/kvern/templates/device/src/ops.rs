//! Rows, norms, products and maps, as the table of ops says them.

use crate::memory::{Memory, on};
use crate::{attention, refuse};
use kvern_abi::contract::*;

/// Whether an op runs here, by its parameters alone. *Errors* Unsupported, Invalid.
pub fn supported(op: &Op) -> Result<()> {
    let ensure = |holds: bool| match holds {
        true => Ok(()),
        false => refuse(ErrorKind::Invalid, format!("parameters of {}", op.name())),
    };
    match op {
        Op::Embed { table, .. } => readable(table),
        Op::Norm { weight, groups, width, .. } => {
            ensure(*groups > 0 && *width > 0)?;
            if weight.encoding == WeightEncoding::None { Ok(()) } else { readable(weight) }
        }
        Op::Linear { weights, epilogue, .. } => {
            let weights = weights.as_slice();
            weights.iter().try_for_each(readable)?;
            ensure(!weights.is_empty() && weights.iter().all(|w| w.inputs == weights[0].inputs))?;
            match epilogue {
                Epilogue::SiluGated => {
                    ensure(weights.len() == 2 && weights[0].outputs == weights[1].outputs)
                }
                Epilogue::None | Epilogue::Silu | Epilogue::Add => Ok(()),
                other => refuse(ErrorKind::Unsupported, format!("the epilogue {other:?}")),
            }
        }
        Op::RopeWrite { key_dim, rotary, encoding, .. } => {
            ensure(rotary % 2 == 0 && rotary <= key_dim)?;
            attention::size(*encoding).map(drop)
        }
        Op::Attention { heads, kv_heads, key_dim, value_dim, .. } => {
            ensure(*kv_heads > 0 && *heads > 0 && *key_dim > 0 && *value_dim > 0)?;
            ensure(heads % kv_heads == 0)
        }
        Op::Map { groups, width, .. } => ensure(*groups > 0 && *width > 0),
        Op::Rows { width, .. } => ensure(*width > 0),
        Op::Top { width, top, .. } => ensure(*top > 0 && top <= width),
        other => refuse(ErrorKind::Unsupported, format!("{} does not run here", other.name())),
    }
}

/// Runs an op. *Errors* Unsupported, Invalid.
pub fn run(op: &Op, memory: &mut Memory) -> Result<()> {
    match *op {
        Op::Embed { ids, table, out, rows, scale } => {
            memory.bytes(table.data, row_bytes(&table).saturating_mul(table.outputs.into()))?;
            for (row, id) in memory.words(ids, u64::from(rows))?.into_iter().enumerate() {
                let mut values = matrix_row(&table, id, memory)?;
                values.iter_mut().for_each(|value| *value *= scale);
                memory.write(on(out, 4 * row as u64 * u64::from(table.inputs)), &values)?;
            }
            Ok(())
        }
        Op::Norm { .. } => norm(op, memory),
        Op::Linear { .. } => linear(op, memory),
        Op::RopeWrite { .. } => attention::rope_write(op, memory),
        Op::Attention { .. } => attention::attention(op, memory),
        Op::Map { a, b, out, kind, rows, groups, width, scalar } => {
            for (row, group) in lines(rows, groups) {
                let mut values = read(&a, row, group, width, memory)?;
                let others = match kind {
                    MapKind::Scale | MapKind::Softcap | MapKind::Copy => vec![0.0; values.len()],
                    _ => read(&b, row, group, width, memory)?,
                };
                for (a, b) in values.iter_mut().zip(others) {
                    *a = match kind {
                        MapKind::Add => *a + scalar * b,
                        MapKind::Mul => *a * b,
                        MapKind::Scale => scalar * *a,
                        MapKind::SigmoidMul => *a * sigmoid(b),
                        MapKind::SiluMul => *a * b * sigmoid(b),
                        MapKind::Softcap => scalar * (*a / scalar).tanh(),
                        MapKind::Copy => *a,
                    };
                }
                memory.write(line(&out, row, group), &values)?;
            }
            Ok(())
        }
        Op::Rows { x, indices, out, kind, rows, width } => {
            let (width, bytes) = (u64::from(width), 4 * u64::from(width));
            for (row, index) in memory.words(indices, u64::from(rows))?.into_iter().enumerate() {
                let (row, index) = (row as u64 * bytes, u64::from(index) * bytes);
                let (from, to) = match kind {
                    RowsKind::Gather => (on(x, index), on(out, row)),
                    RowsKind::Scatter | RowsKind::ScatterAdd => (on(x, row), on(out, index)),
                };
                let mut values = memory.floats(from, width)?;
                if kind == RowsKind::ScatterAdd {
                    let before = memory.floats(to, width)?;
                    values.iter_mut().zip(before).for_each(|(value, before)| *value += before);
                }
                memory.write(to, &values)?;
            }
            Ok(())
        }
        Op::Top { logits, ids, values, rows, width, top } => {
            for row in 0..u64::from(rows) {
                let all = memory.floats(on(logits, 4 * row * u64::from(width)), width.into())?;
                let mut order: Vec<u32> = (0..width).collect();
                let larger =
                    |a: &u32, b: &u32| all[*b as usize].total_cmp(&all[*a as usize]).then(a.cmp(b));
                order.sort_unstable_by(larger);
                order.truncate(top as usize);
                let found: Vec<f32> = order.iter().map(|id| all[*id as usize]).collect();
                // Words are written as what they are: floats of the same bits.
                let order: Vec<f32> = order.into_iter().map(f32::from_bits).collect();
                memory.write(on(ids, 4 * row * u64::from(top)), &order)?;
                memory.write(on(values, 4 * row * u64::from(top)), &found)?;
            }
            Ok(())
        }
        _ => refuse(ErrorKind::Unsupported, format!("{} does not run here", op.name())),
    }
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// Whether a weight is of a form that is read here. *Errors* Unsupported, Invalid.
fn readable(weight: &Weight) -> Result<()> {
    use WeightEncoding::{Bf16, F16, F32};
    if weight.layout != 0 || !matches!(weight.encoding, Bf16 | F16 | F32) {
        return refuse(ErrorKind::Unsupported, format!("a weight in {:?}", weight.encoding));
    }
    match weight.outputs.max(1) > 0 && weight.inputs > 0 {
        true => Ok(()),
        false => refuse(ErrorKind::Invalid, "a weight of nothing"),
    }
}

fn row_bytes(weight: &Weight) -> u64 {
    let size = if weight.encoding == WeightEncoding::F32 { 4 } else { 2 };
    size * u64::from(weight.inputs)
}

/// A row of a weight. *Errors* Invalid.
fn matrix_row(weight: &Weight, row: u32, memory: &Memory) -> Result<Vec<f32>> {
    if row >= weight.outputs.max(1) {
        return refuse(ErrorKind::Invalid, format!("row {row} of {}", weight.outputs));
    }
    let bytes = row_bytes(weight);
    let all = memory.bytes(on(weight.data, u64::from(row).saturating_mul(bytes)), bytes)?;
    let pair = |b: &[u8]| u16::from_le_bytes([b[0], b[1]]);
    Ok(match weight.encoding {
        WeightEncoding::Bf16 => all.chunks_exact(2).map(|b| wide(pair(b))).collect(),
        WeightEncoding::F16 => all.chunks_exact(2).map(|b| half(pair(b))).collect(),
        _ => all.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
    })
}

/// What a bf16 says.
pub fn wide(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// What an f16 says.
fn half(bits: u16) -> f32 {
    let (exponent, fraction) = (i32::from(bits >> 10 & 31), f32::from(bits & 1023));
    let value = match exponent {
        0 => fraction * 2f32.powi(-24),
        31 if fraction == 0.0 => f32::INFINITY,
        31 => f32::NAN,
        _ => (1.0 + fraction / 1024.0) * 2f32.powi(exponent - 15),
    };
    if bits >> 15 == 1 { -value } else { value }
}

/// Every group of every row.
fn lines(rows: u32, groups: u32) -> impl Iterator<Item = (u32, u32)> {
    (0..rows).flat_map(move |row| (0..groups).map(move |group| (row, group)))
}

/// Where a group of a row begins in a view.
fn line(view: &View, row: u32, group: u32) -> Slice {
    let floats = u64::from(row) * u64::from(view.row) + u64::from(group) * u64::from(view.group);
    on(view.at, 4 * floats)
}

/// The values of a group of a row of a view. *Errors* Invalid.
fn read(view: &View, row: u32, group: u32, width: u32, memory: &Memory) -> Result<Vec<f32>> {
    match view.step {
        1 => memory.floats(line(view, row, group), u64::from(width)),
        0 => Ok(vec![memory.floats(line(view, row, group), 1)?[0]; width as usize]),
        step => refuse(ErrorKind::Invalid, format!("a view that steps by {step}")),
    }
}

fn norm(op: &Op, memory: &mut Memory) -> Result<()> {
    let Op::Norm { x, weight, bias, gate, out, kind, rows, groups, width, eps } = *op else {
        return refuse(ErrorKind::Internal, "no norm");
    };
    let weights = match weight.encoding {
        WeightEncoding::None => vec![1.0; width as usize],
        _ => {
            let flat = Weight { outputs: 1, inputs: width, ..weight };
            let plus = if kind == NormKind::RmsPlusOne { 1.0 } else { 0.0 };
            matrix_row(&flat, 0, memory)?.into_iter().map(|w| w + plus).collect()
        }
    };
    let bias = memory.floats_or(bias, u64::from(width), 0.0)?;
    for (row, group) in lines(rows, groups) {
        let mut values = read(&x, row, group, width, memory)?;
        if kind == NormKind::Layer {
            let mean = values.iter().sum::<f32>() / width as f32;
            values.iter_mut().for_each(|x| *x -= mean);
        }
        let squares: f32 = values.iter().map(|x| x * x).sum();
        let power = if kind == NormKind::L2 { squares } else { squares / width as f32 };
        let root = (power + eps).sqrt();
        for (x, (w, b)) in values.iter_mut().zip(weights.iter().zip(&bias)) {
            *x = *x / root * w + b;
        }
        if gate.at.buffer != Buffer(0) {
            let gates = read(&gate, row, group, width, memory)?;
            values.iter_mut().zip(gates).for_each(|(x, gate)| *x *= gate * sigmoid(gate));
        }
        memory.write(line(&out, row, group), &values)?;
    }
    Ok(())
}

/// A sum of products, in eight lanes, for the vector units' sake: one order, whatever is beside.
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (mut lanes, whole) = ([0f32; 8], a.len() / 8 * 8);
    for (a, b) in a[..whole].chunks_exact(8).zip(b.chunks_exact(8)) {
        lanes.iter_mut().zip(a.iter().zip(b)).for_each(|(sum, (a, b))| *sum += a * b);
    }
    let rest: f32 = a[whole..].iter().zip(&b[whole..]).map(|(a, b)| a * b).sum();
    lanes.iter().sum::<f32>() + rest
}

fn linear(op: &Op, memory: &mut Memory) -> Result<()> {
    let Op::Linear { x, weights, biases, outs, rows, epilogue, .. } = *op else {
        return refuse(ErrorKind::Internal, "no product");
    };
    let inputs = weights.as_slice().first().map_or(1, |weight| weight.inputs);
    let x = memory.floats(x, u64::from(rows) * u64::from(inputs))?;
    let mut products = Vec::new();
    for (i, weight) in weights.as_slice().iter().enumerate() {
        let bias = biases.as_slice().get(i).copied().unwrap_or_default();
        let bias = memory.floats_or(bias, u64::from(weight.outputs), 0.0)?;
        let mut product = vec![0.0; rows as usize * weight.outputs as usize];
        for output in 0..weight.outputs {
            let line = matrix_row(weight, output, memory)?;
            for (row, x) in x.chunks_exact(inputs as usize).enumerate() {
                let at = row * weight.outputs as usize + output as usize;
                product[at] = dot(x, &line) + bias[output as usize];
            }
        }
        products.push(product);
    }
    if epilogue == Epilogue::SiluGated {
        let second = products.pop().unwrap_or_default();
        for (a, b) in products[0].iter_mut().zip(second) {
            *a = *a * sigmoid(*a) * b;
        }
    }
    for (product, out) in products.iter_mut().zip(outs.as_slice()) {
        match epilogue {
            Epilogue::Silu => product.iter_mut().for_each(|a| *a *= sigmoid(*a)),
            Epilogue::Add => {
                let before = memory.floats(*out, product.len() as u64)?;
                product.iter_mut().zip(before).for_each(|(a, before)| *a += before);
            }
            _ => {}
        }
        memory.write(*out, product)?;
    }
    Ok(())
}
