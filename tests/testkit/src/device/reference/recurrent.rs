//! What folds the past into a state: convolutions, the gated delta rule, and its gates.

use super::image::{Image, Value, Write, beyond, invalid, is_there, product};
use super::plain::{sigmoid, silu};
use super::stored;
use kvern_contract::*;

fn stray<T>(op: &Op) -> Result<T> {
    invalid(format!("{} came to the wrong place", op.name()))
}

/// First row, rows, position and slot of each span that has rows.
fn spans(image: &Image, at: Slice, sequences: u32) -> Result<Vec<[u32; 4]>> {
    let words = image.words(at, &[sequences, 8])?;
    let spans = words.chunks_exact(8).map(|w| [w[0], w[1], w[2], w[5]]);
    Ok(spans.filter(|span| span[1] > 0).collect())
}

pub fn conv(op: &Op, image: &Image) -> Result<Vec<Write>> {
    let Op::Conv { x, weight, bias, state, spans: at, out, sequences, channels, .. } = *op else {
        return stray(op);
    };
    let Op::Conv { kernel, silu: act, .. } = *op else { return stray(op) };
    let weights = stored::matrix(image, &weight, 0)?;
    let bias = image.floats_or(bias, &[channels], 0.0)?;
    let (width, before) = (channels as usize, kernel as usize - 1);
    let row_bytes = 4 * u64::from(channels);
    let mut writes = Vec::new();
    for [row, rows, position, slot] in spans(image, at, sequences)? {
        let far = u64::from(row) * row_bytes;
        let kept = beyond(state, u64::from(slot) * row_bytes * before as u64)?;
        image.bytes(beyond(x, far)?, u64::from(rows) * row_bytes)?;
        // The last inputs, oldest first, then the new ones.
        let mut inputs = image.floats(kept, &[kernel - 1, channels])?;
        if position == 0 {
            inputs.fill(0.0);
        }
        inputs.extend(image.floats(beyond(x, far)?, &[rows, channels])?);
        for t in 0..rows as usize {
            let sum = |channel: usize| {
                let (mut value, mut terms) = (bias[channel], bias[channel].abs());
                for k in 0..kernel as usize {
                    let term =
                        weights[channel * kernel as usize + k] * inputs[(t + k) * width + channel];
                    value += term;
                    terms += term.abs();
                }
                if act {
                    (value, terms) = (silu(value), 1.2 * terms);
                }
                Value::Float { value, terms }
            };
            let to = beyond(out, far + t as u64 * row_bytes)?;
            image.row(to, (0..width).map(sum), &mut writes)?;
        }
        let newest = inputs[inputs.len() - before * width..].iter();
        let bits = newest.map(|x| Value::Word((*x as f32).to_bits()));
        image.row(kept, bits, &mut writes)?;
    }
    Ok(writes)
}

pub fn delta(op: &Op, image: &Image) -> Result<Vec<Write>> {
    let Op::Delta { q, k, v, decay, beta, state, spans: at, out, sequences, heads, .. } = *op
    else {
        return stray(op);
    };
    let Op::Delta { key_heads, key_dim, value_dim, scale, .. } = *op else { return stray(op) };
    let (kd, vd) = (key_dim as usize, value_dim as usize);
    let mut writes = Vec::new();
    for [row, rows, position, slot] in spans(image, at, sequences)? {
        let end = match row.checked_add(rows) {
            Some(end) => end,
            None => return invalid("rows past any batch"),
        };
        // Views of the whole batch up to this span's end, of which its rows are read.
        let of = |view: &View, groups: u32, width: u32| -> Result<Vec<f64>> {
            let strides = [view.row, view.group, view.step].map(u64::from);
            let [far, groups_far, step] = strides;
            let last = u64::from(end - 1) * far
                + u64::from(groups - 1) * groups_far
                + u64::from(width - 1) * step;
            image.bytes(view.at, 4 * (last + 1))?;
            let start = beyond(view.at, 4 * u64::from(row) * far)?;
            image.view(&View { at: start, ..*view }, [rows, groups, width])
        };
        let turned = is_there(q.at);
        let q = if turned { of(&q, key_heads, key_dim)? } else { Vec::new() };
        let (k, v) = (of(&k, key_heads, key_dim)?, of(&v, heads, value_dim)?);
        let per_row = 4 * u64::from(row) * u64::from(heads);
        let decay = image.floats(beyond(decay, per_row)?, &[rows, heads])?;
        let beta = image.floats(beyond(beta, per_row)?, &[rows, heads])?;
        let bytes = 4 * product(&[heads, key_dim, value_dim])?;
        let place = beyond(state, u64::from(slot) * bytes)?;
        let mut s = image.floats(place, &[heads, key_dim, value_dim])?;
        if position == 0 {
            s.fill(0.0);
        }
        let mut sizes: Vec<f64> = s.iter().map(|s| s.abs()).collect();
        for t in 0..rows as usize {
            for head in 0..heads as usize {
                let key_head = head * key_heads as usize / heads as usize;
                let at = (t * key_heads as usize + key_head) * kd;
                let k = &k[at..at + kd];
                let v = &v[(t * heads as usize + head) * vd..][..vd];
                let (gate, beta) =
                    (decay[t * heads as usize + head].exp(), beta[t * heads as usize + head]);
                let s = &mut s[head * kd * vd..][..kd * vd];
                let sizes = &mut sizes[head * kd * vd..][..kd * vd];
                s.iter_mut().chain(&mut *sizes).for_each(|s| *s *= gate);
                for j in 0..vd {
                    let seen: f64 = (0..kd).map(|i| s[i * vd + j] * k[i]).sum();
                    let size: f64 = (0..kd).map(|i| sizes[i * vd + j] * k[i].abs()).sum();
                    let (new, most) = (beta * (v[j] - seen), beta * (v[j].abs() + size));
                    for i in 0..kd {
                        // As in memory: so that rows in parts are all rows at once.
                        s[i * vd + j] = f64::from((s[i * vd + j] + k[i] * new) as f32);
                        sizes[i * vd + j] += (k[i] * most).abs();
                    }
                }
                if turned && is_there(out) {
                    let q = &q[at..at + kd];
                    let values = (0..vd).map(|j| {
                        let term = |s: &[f64], i: usize| s[i * vd + j] * q[i] * f64::from(scale);
                        let value = (0..kd).map(|i| term(s, i)).sum();
                        let terms = (0..kd).map(|i| term(sizes, i).abs()).sum();
                        Value::Float { value, terms }
                    });
                    let number = (u64::from(row) + t as u64) * u64::from(heads) + head as u64;
                    let to = beyond(out, 4 * number * u64::from(value_dim))?;
                    image.row(to, values, &mut writes)?;
                }
            }
        }
        let values = s.iter().zip(&sizes).map(|(s, size)| Value::Float { value: *s, terms: *size });
        image.row(place, values, &mut writes)?;
    }
    Ok(writes)
}

pub fn gates(op: &Op, image: &Image) -> Result<Vec<Write>> {
    let Op::DeltaGates { a, b, a_log, dt_bias, decay, beta, rows, groups, width } = *op else {
        return stray(op);
    };
    let heads = match groups.checked_mul(width) {
        Some(heads) => heads,
        None => return invalid("more heads than there are numbers"),
    };
    let (a, b) = (image.view(&a, [rows, groups, width])?, image.view(&b, [rows, groups, width])?);
    let (a_log, dt_bias) = (image.floats(a_log, &[heads])?, image.floats(dt_bias, &[heads])?);
    let mut writes = Vec::new();
    let head = |n: usize| n % heads as usize;
    let decays = a.iter().enumerate().map(|(n, a)| {
        let (sum, rate) = (a + dt_bias[head(n)], a_log[head(n)].exp());
        let softplus = sum.max(0.0) + (-sum.abs()).exp().ln_1p();
        let terms = rate * (softplus * (1.0 + a_log[head(n)].abs()) + a.abs() + 1.0);
        Value::Float { value: -rate * softplus, terms }
    });
    image.row(decay, decays, &mut writes)?;
    let beta_of = |b: &f64| Value::Float { value: sigmoid(*b), terms: 1.0 + b.abs() };
    image.row(beta, b.iter().map(beta_of), &mut writes)?;
    Ok(writes)
}
