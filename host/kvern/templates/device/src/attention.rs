//! Rope, K and V into pages, and queries against pages.
//!
//! Each page gives a partial alone, and partials fold in ascending position: so a history that
//! comes in parts has the bits of the history at once.

use crate::memory::{Memory, on};
use crate::ops::{dot, wide};
use crate::refuse;
use kvern_abi::contract::*;

const TOKENS: usize = PAGE_TOKENS as usize;

/// Bytes of a number in a page. *Errors* Unsupported.
pub fn size(encoding: u32) -> Result<u64> {
    match encoding_of(encoding) {
        Some(KvEncoding::F32) => Ok(4),
        Some(KvEncoding::Bf16) => Ok(2),
        _ => refuse(ErrorKind::Unsupported, format!("pages of encoding {encoding}")),
    }
}

/// Numbers of a page. *Errors* Invalid.
fn stored(at: Slice, count: u64, size: u64, memory: &Memory) -> Result<Vec<f32>> {
    if size == 4 {
        return memory.floats(at, count);
    }
    let pairs = memory.bytes(at, 2 * count)?.chunks_exact(2);
    Ok(pairs.map(|b| wide(u16::from_le_bytes([b[0], b[1]]))).collect())
}

/// Writes numbers of a page, rounded half to even. *Errors* Invalid.
fn store(at: Slice, values: &[f32], size: u64, memory: &mut Memory) -> Result<()> {
    if size == 4 {
        return memory.write(at, values);
    }
    let to = memory.bytes_mut(at, 2 * values.len() as u64)?.chunks_exact_mut(2);
    for (to, value) in to.zip(values) {
        let bits = value.to_bits();
        let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
        let bits = if value.is_nan() { bits >> 16 | 64 } else { rounded };
        to.copy_from_slice(&(bits as u16).to_le_bytes());
    }
    Ok(())
}

pub fn rope_write(op: &Op, memory: &mut Memory) -> Result<()> {
    let Op::RopeWrite {
        q,
        k,
        v,
        positions,
        cos,
        sin,
        writes,
        pool,
        rows,
        heads,
        kv_heads,
        key_dim,
        value_dim,
        rotary,
        table_rows,
        interleaved,
        encoding,
    } = *op
    else {
        return refuse(ErrorKind::Internal, "no rope");
    };
    let size = size(encoding)?;
    let [rows, heads, kv_heads, kd, vd] =
        [rows, heads, kv_heads, key_dim, value_dim].map(u64::from);
    let half = rotary as usize / 2;
    let turned = if rotary > 0 { rows } else { 0 };
    let positions = memory.words(positions, turned)?;
    let table = |at| memory.floats(at, u64::from(table_rows) * half as u64);
    let (cos, sin) = (table(cos)?, table(sin)?);
    if positions.iter().any(|position| *position >= table_rows) {
        return refuse(ErrorKind::Invalid, format!("a position past {table_rows}"));
    }
    let turn = |x: &mut [f32], row: usize| {
        for pair in 0..half {
            let (i, j) = if interleaved { (2 * pair, 2 * pair + 1) } else { (pair, pair + half) };
            let at = positions[row] as usize * half + pair;
            let (a, b, c, s) = (x[i], x[j], cos[at], sin[at]);
            (x[i], x[j]) = (a * c - b * s, b * c + a * s);
        }
    };
    if rotary > 0 {
        let mut all = memory.floats(q, rows * heads * kd)?;
        let each = all.chunks_exact_mut(kd as usize).enumerate();
        each.for_each(|(n, head)| turn(head, n / heads as usize));
        memory.write(q, &all)?;
    }
    let (mut k, v) =
        (memory.floats(k, rows * kv_heads * kd)?, memory.floats(v, rows * kv_heads * vd)?);
    let places = memory.words(writes, if kv_heads > 0 { 4 * rows } else { 0 })?;
    for (row, place) in places.chunks_exact(4).enumerate() {
        let frame = on(pool, u64::from(place[0]) | u64::from(place[1]) << 32);
        let (token, tokens) = (u64::from(place[2]), TOKENS as u64);
        memory.bytes(frame, kv_heads * tokens * (kd + vd) * size)?;
        if token >= tokens {
            return refuse(ErrorKind::Invalid, format!("row {token} of a page"));
        }
        for head in 0..kv_heads {
            let n = (row as u64 * kv_heads + head) as usize;
            let key = &mut k[n * kd as usize..][..kd as usize];
            turn(key, row);
            store(on(frame, (head * tokens + token) * kd * size), key, size, memory)?;
            let value = &v[n * vd as usize..][..vd as usize];
            let at = kv_heads * tokens * kd + (head * tokens + token) * vd;
            store(on(frame, at * size), value, size, memory)?;
        }
    }
    Ok(())
}

/// Folds a partial, or the state that an earlier op left, into a state: m, l, a.
fn fold(state: &mut [f32], partial: &[f32]) {
    let top = state[0].max(partial[0]);
    let (old, new) = ((state[0] - top).exp(), (partial[0] - top).exp());
    state[0] = top;
    for (state, partial) in state[1..].iter_mut().zip(&partial[1..]) {
        *state = *state * old + *partial * new;
    }
}

pub fn attention(op: &Op, memory: &mut Memory) -> Result<()> {
    let Op::Attention { q, out, state, spans, entries, masks, pool, sinks, sequences, .. } = *op
    else {
        return refuse(ErrorKind::Internal, "no attention");
    };
    let Op::Attention { heads, kv_heads, key_dim, value_dim, scale, softcap, .. } = *op else {
        return refuse(ErrorKind::Internal, "no attention");
    };
    let Op::Attention { window, keep, causal, first, last, .. } = *op else {
        return refuse(ErrorKind::Internal, "no attention");
    };
    let kept = state.buffer != Buffer(0);
    let whole = first && last;
    if !kept && !whole {
        return refuse(ErrorKind::Invalid, "no state, and not both first and last");
    }
    let [heads, kv_heads, kd, vd] = [heads, kv_heads, key_dim, value_dim].map(u64::from);
    let (group, width) = (heads / kv_heads, 2 + vd as usize);
    let sinks = match sinks.buffer {
        Buffer(0) => None,
        _ => Some(memory.floats(sinks, heads)?),
    };
    for span in memory.words(spans, 8 * u64::from(sequences))?.chunks_exact(8) {
        let [row, rows, position, entry, count] = [0, 1, 2, 3, 4].map(|i| u64::from(span[i]));
        if rows == 0 {
            continue;
        }
        let q = memory.floats(on(q, 4 * row * heads * kd), rows * heads * kd)?;
        let place = on(state, 4 * row * heads * width as u64);
        let mut states = match first {
            false => memory.floats(place, rows * heads * width as u64)?,
            true => vec![0.0; (rows * heads) as usize * width],
        };
        if first {
            for (n, state) in states.chunks_exact_mut(width).enumerate() {
                let sink = sinks.as_ref().map(|sinks| sinks[n % heads as usize]);
                (state[0], state[1]) = sink.map_or((f32::NEG_INFINITY, 0.0), |sink| (sink, 1.0));
            }
        }
        for page in memory.words(on(entries, 32 * entry), 8 * count)?.chunks_exact(8) {
            let (at, tokens, size) = (u64::from(page[2]), page[3], size(page[4])?);
            let frame = on(pool, u64::from(page[0]) | u64::from(page[1]) << 32);
            if tokens > PAGE_TOKENS {
                return refuse(ErrorKind::Invalid, format!("{tokens} rows in a page"));
            }
            for kv in 0..kv_heads {
                let mut bits = u64::MAX >> (64 - tokens).min(63);
                if page[5] != u32::MAX {
                    let at = on(masks, 8 * (u64::from(page[5]) * kv_heads + kv));
                    let words = memory.words(at, 2)?;
                    bits &= u64::from(words[0]) | u64::from(words[1]) << 32;
                }
                // K of all heads comes first, then V.
                let side = |at: u64, dim| stored(on(frame, at * size), 64 * dim, size, memory);
                let k = side(kv * 64 * kd, kd)?;
                let v = side(kv_heads * 64 * kd + kv * 64 * vd, vd)?;
                for n in (0..rows).flat_map(|row| (0..group).map(move |i| (row, i))) {
                    let query = position + n.0;
                    let number = (n.0 * heads + kv * group + n.1) as usize;
                    let q = &q[number * kd as usize..][..kd as usize];
                    let sees = |t: &usize| {
                        let at = at + *t as u64;
                        let recent = window == 0 || at + u64::from(window) > query;
                        let visible = (!causal || at <= query) && (recent || at < u64::from(keep));
                        bits >> t & 1 == 1 && (page[6] != 0 || visible)
                    };
                    let score = |t: usize| {
                        let s = dot(q, &k[t * kd as usize..][..kd as usize]) * scale;
                        let capped = softcap * (s / softcap).tanh();
                        (t, if softcap == 0.0 { s } else { capped })
                    };
                    let scores: Vec<(usize, f32)> =
                        (0..tokens as usize).filter(sees).map(score).collect();
                    if scores.is_empty() {
                        continue;
                    }
                    let mut partial = vec![0.0; width];
                    partial[0] = scores.iter().fold(f32::NEG_INFINITY, |m, s| m.max(s.1));
                    for (t, s) in scores {
                        let p = (s - partial[0]).exp();
                        partial[1] += p;
                        let value = &v[t * vd as usize..][..vd as usize];
                        partial[2..].iter_mut().zip(value).for_each(|(a, v)| *a += p * v);
                    }
                    fold(&mut states[number * width..][..width], &partial);
                }
            }
        }
        if kept {
            memory.write(place, &states)?;
        }
        if last {
            let mut answers = Vec::new();
            for state in states.chunks_exact(width) {
                let l = state[1];
                answers.extend(state[2..].iter().map(|a| if l == 0.0 { 0.0 } else { a / l }));
            }
            memory.write(on(out, 4 * row * heads * vd), &answers)?;
        }
    }
    Ok(())
}
