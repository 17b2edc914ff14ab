//! Rope with the writing of K and V, attention over pages, and its masses.

use super::image::{Image, Value, Write, beyond, invalid, is_there, product};
use super::stored::{self, Shape};
use kvern_contract::*;
use std::collections::BTreeMap;

fn stray<T>(op: &Op) -> Result<T> {
    invalid(format!("{} came to the wrong place", op.name()))
}

pub fn rope_write(op: &Op, image: &Image) -> Result<Vec<Write>> {
    let Op::RopeWrite { q, k, v, positions, cos, sin, writes, pool, encoding, .. } = *op else {
        return stray(op);
    };
    let Op::RopeWrite { rows, heads, kv_heads, key_dim, value_dim, .. } = *op else {
        return stray(op);
    };
    let Op::RopeWrite { rotary, table_rows, interleaved, .. } = *op else { return stray(op) };
    let encoding = stored::encoding(encoding)?;
    let half = rotary as usize / 2;
    let turned = if rotary > 0 { rows } else { 0 };
    let positions = image.words(positions, &[turned])?;
    let table = |at| image.floats(at, &[if rotary > 0 { table_rows } else { 0 }, rotary / 2]);
    let (cos, sin) = (table(cos)?, table(sin)?);
    if let Some(position) = positions.iter().find(|p| **p >= table_rows) {
        return invalid(format!("position {position} of tables of {table_rows}"));
    }
    // A head's channels after rope, with the sizes of their terms.
    let turn = |x: &[f64], row: usize| -> Vec<(f64, f64)> {
        let mut out: Vec<(f64, f64)> = x.iter().map(|x| (*x, 0.0)).collect();
        for pair in 0..half {
            let (i, j) = if interleaved { (2 * pair, 2 * pair + 1) } else { (pair, pair + half) };
            let at = positions[row] as usize * half + pair;
            let (a, b, c, s) = (x[i], x[j], cos[at], sin[at]);
            out[i] = (a * c - b * s, (a * c).abs() + (b * s).abs());
            out[j] = (b * c + a * s, (b * c).abs() + (a * s).abs());
        }
        out
    };
    let (kd, vd) = (key_dim as usize, value_dim as usize);
    let mut all = Vec::new();
    if rotary > 0 {
        for (n, head) in image.floats(q, &[rows, heads, key_dim])?.chunks_exact(kd).enumerate() {
            let row = turn(head, n / heads as usize).into_iter();
            let values = row.map(|(value, terms)| Value::Float { value, terms });
            image.row(beyond(q, (4 * n * kd) as u64)?, values, &mut all)?;
        }
    }
    if kv_heads == 0 {
        return Ok(all);
    }
    let (k, v) = (
        image.floats(k, &[rows, kv_heads, key_dim])?,
        image.floats(v, &[rows, kv_heads, value_dim])?,
    );
    let places = image.words(writes, &[rows, 4])?;
    let shape = Shape { kv_heads, key_dim, value_dim };
    let size = if encoding == KvEncoding::F32 { 4 } else { 2 };
    let number = |(value, terms): (f64, f64)| match encoding {
        KvEncoding::F16 => Value::Half { value, terms },
        KvEncoding::Bf16 => Value::Bf16 { value, terms },
        _ => Value::Float { value, terms },
    };
    for (row, place) in places.chunks_exact(4).enumerate() {
        let offset = u64::from(place[0]) | u64::from(place[1]) << 32;
        let token = place[2] as usize;
        let frame = beyond(pool, offset)?;
        image.bytes(frame, shape.bytes(encoding)?)?;
        if place[2] >= PAGE_TOKENS {
            return invalid(format!("row {token} of a page"));
        }
        let tokens = PAGE_TOKENS as usize;
        for head in 0..kv_heads as usize {
            let from = row * kv_heads as usize + head;
            let at = (head * tokens + token) * kd * size;
            let key = turn(&k[from * kd..][..kd], row).into_iter().map(number);
            image.row(beyond(frame, at as u64)?, key, &mut all)?;
            let at = (kv_heads as usize * tokens * kd + (head * tokens + token) * vd) * size;
            let value = v[from * vd..][..vd].iter().map(|v| number((*v, 0.0)));
            image.row(beyond(frame, at as u64)?, value, &mut all)?;
        }
    }
    Ok(all)
}

/// A page of a list, read.
struct Page {
    first: u64,
    packed: bool,
    /// Rows that may be seen at all, one word a kv head.
    bits: Vec<u64>,
    k: Vec<f64>,
    v: Vec<f64>,
}

/// What attention and its masses have in common.
struct Sight {
    q: Slice,
    heads: u32,
    shape: Shape,
    scale: f64,
    softcap: f64,
    window: u64,
    keep: u64,
    causal: bool,
    entries: Slice,
    masks: Slice,
    pool: Slice,
}

impl Sight {
    fn read(&self, image: &Image, entry: u64) -> Result<Page> {
        let words = image.words(beyond(self.entries, 32 * entry)?, &[8])?;
        let offset = u64::from(words[0]) | u64::from(words[1]) << 32;
        let (first, tokens, mask, packed) = (words[2], words[3], words[5], words[6]);
        if tokens > PAGE_TOKENS {
            return invalid(format!("a page of {tokens} rows"));
        }
        let filled = if tokens == PAGE_TOKENS { u64::MAX } else { (1 << tokens) - 1 };
        let mut bits = vec![filled; self.shape.kv_heads as usize];
        if mask != u32::MAX {
            let far = 8 * u64::from(mask) * u64::from(self.shape.kv_heads);
            let words = image.words(beyond(self.masks, far)?, &[self.shape.kv_heads, 2])?;
            for (bits, pair) in bits.iter_mut().zip(words.chunks_exact(2)) {
                *bits &= u64::from(pair[0]) | u64::from(pair[1]) << 32;
            }
        }
        let encoding = stored::encoding(words[4])?;
        let (k, v) = stored::page(image, beyond(self.pool, offset)?, encoding, self.shape)?;
        Ok(Page { first: u64::from(first), packed: packed != 0, bits, k, v })
    }

    /// Whether a query at a position sees row `t` of a page.
    fn sees(&self, page: &Page, kv: usize, query: u64, t: usize) -> bool {
        if page.bits[kv] >> t & 1 == 0 {
            return false;
        }
        let at = page.first + t as u64;
        let recent = self.window == 0 || at + self.window > query;
        page.packed || ((!self.causal || at <= query) && (recent || at < self.keep))
    }

    /// Scores of the rows of a page that a query sees, with their numbers and sizes.
    fn scores(&self, page: &Page, kv: usize, query: u64, q: &[f64]) -> Vec<(usize, f64, f64)> {
        let mut scores = Vec::new();
        for t in (0..PAGE_TOKENS as usize).filter(|t| self.sees(page, kv, query, *t)) {
            let k = &page.k[(kv * PAGE_TOKENS as usize + t) * q.len()..][..q.len()];
            let s: f64 = q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>() * self.scale;
            let terms = q.iter().zip(k).map(|(q, k)| (q * k).abs()).sum::<f64>() * self.scale;
            let capped = self.softcap * (s / self.softcap).tanh();
            scores.push((t, if self.softcap == 0.0 { s } else { capped }, terms.abs()));
        }
        scores
    }

    fn queries(&self, image: &Image, row: u64) -> Result<Vec<f64>> {
        let width = product(&[self.heads, self.shape.key_dim])?;
        image.floats(beyond(self.q, 4 * width * row)?, &[self.heads, self.shape.key_dim])
    }
}

/// Spans as read, with their pages; pages of entry numbers that several spans name are read once.
type Spans = (Vec<SpanEntry>, BTreeMap<u64, Page>);

fn spans(image: &Image, at: Slice, sequences: u32, sight: &Sight) -> Result<Spans> {
    let (mut all, mut pages) = (Vec::new(), BTreeMap::new());
    for words in image.words(at, &[sequences, 8])?.chunks_exact(8) {
        let [row, rows, position, entry, entries, slot] =
            [words[0], words[1], words[2], words[3], words[4], words[5]];
        if rows == 0 {
            continue;
        }
        // Checked before what they name is counted through.
        if entries > 0 {
            image.bytes(sight.entries, 32 * (u64::from(entry) + u64::from(entries)))?;
        }
        let width = 4 * product(&[sight.heads, sight.shape.key_dim])?;
        image.bytes(sight.q, (u64::from(row) + u64::from(rows)) * width)?;
        for number in u64::from(entry)..u64::from(entry) + u64::from(entries) {
            pages.insert(number, sight.read(image, number)?);
        }
        all.push(SpanEntry { row, rows, position, entry, entries, slot, reserved: [0; 2] });
    }
    Ok((all, pages))
}

/// m, l and a of a query, and the sizes of what a was summed from and of the largest score.
struct State {
    m: f64,
    l: f64,
    a: Vec<f64>,
    sizes: Vec<f64>,
    steep: f64,
}

impl State {
    fn fold(&mut self, scores: &[(usize, f64, f64)], values: impl Fn(usize) -> Vec<f64>) {
        if scores.is_empty() {
            return;
        }
        let m = scores.iter().fold(f64::NEG_INFINITY, |m, s| m.max(s.1));
        let top = self.m.max(m);
        let old = (self.m - top).exp();
        let (mut l, mut a) = (self.l * old, self.a.clone());
        a.iter_mut().chain(&mut self.sizes).for_each(|a| *a *= old);
        for (t, s, terms) in scores {
            let p = (s - top).exp();
            l += p;
            for ((a, size), v) in a.iter_mut().zip(&mut self.sizes).zip(values(*t)) {
                *a += p * v;
                *size += p * v.abs();
            }
            self.steep = self.steep.max(*terms);
        }
        // As a state in memory: so that a history in parts is the history at once.
        let round = |x: f64| f64::from(x as f32);
        (self.m, self.l) = (round(top), round(l));
        self.a = a.into_iter().map(round).collect();
    }
}

pub fn attention(op: &Op, image: &Image) -> Result<Vec<Write>> {
    let Op::Attention { q, out, state, entries, masks, pool, sinks, sequences, heads, .. } = *op
    else {
        return stray(op);
    };
    let Op::Attention { spans: at, kv_heads, key_dim, value_dim, scale, softcap, .. } = *op else {
        return stray(op);
    };
    let Op::Attention { window, keep, causal, first, last, .. } = *op else { return stray(op) };
    let shape = Shape { kv_heads, key_dim, value_dim };
    let (scale, softcap) = (f64::from(scale), f64::from(softcap));
    let (window, keep) = (u64::from(window), u64::from(keep));
    let sight =
        Sight { q, heads, shape, scale, softcap, window, keep, causal, entries, masks, pool };
    let whole = first && last;
    if !is_there(state) && !whole {
        return invalid("no state, and not both first and last");
    }
    let (vd, h) = (u64::from(value_dim), u64::from(heads));
    let sinks = if is_there(sinks) { Some(image.floats(sinks, &[heads])?) } else { None };
    let (spans, pages) = spans(image, at, sequences, &sight)?;
    let mut writes = Vec::new();
    for span in &spans {
        for i in 0..u64::from(span.rows) {
            let (row, query) = (u64::from(span.row) + i, u64::from(span.position) + i);
            let q = sight.queries(image, row)?;
            for (head, q) in q.chunks_exact(key_dim as usize).enumerate() {
                let number = row * h + head as u64;
                let mut one = State {
                    m: sinks.as_ref().map_or(f64::NEG_INFINITY, |sinks| sinks[head]),
                    l: if sinks.is_some() { 1.0 } else { 0.0 },
                    a: vec![0.0; vd as usize],
                    sizes: vec![0.0; vd as usize],
                    steep: 0.0,
                };
                let place = beyond(state, if is_there(state) { 4 * number * (2 + vd) } else { 0 })?;
                if !first {
                    let held = image.floats(place, &[2 + value_dim])?;
                    (one.m, one.l, one.a) = (held[0], held[1], held[2..].to_vec());
                    // What it was summed from is not known: values are about 1.
                    one.sizes = one.a.iter().map(|a| a.abs() + one.l).collect();
                }
                let kv = head / (heads / kv_heads) as usize;
                for entry in u64::from(span.entry)..u64::from(span.entry) + u64::from(span.entries)
                {
                    let page = &pages[&entry];
                    let value = |t| {
                        let n = kv * PAGE_TOKENS as usize + t;
                        page.v[n * vd as usize..][..vd as usize].to_vec()
                    };
                    one.fold(&sight.scores(page, kv, query, q), value);
                }
                // A score that is off by a part of its terms moves every exponential by as much.
                let steep = 1.0 + 2.0 * one.steep;
                let number_of = |value, terms: f64| Value::Float { value, terms: terms * steep };
                if is_there(state) {
                    let m = Value::Float { value: one.m, terms: one.steep + one.m.abs() };
                    let a = one.a.iter().zip(&one.sizes).map(|(a, size)| number_of(*a, *size));
                    let values = [m, number_of(one.l, one.l)].into_iter().chain(a);
                    image.row(place, values, &mut writes)?;
                }
                if last {
                    let nothing = one.l == 0.0;
                    let answer = |x: f64| if nothing { 0.0 } else { x / one.l };
                    let values = one.a.iter().zip(&one.sizes);
                    let values = values.map(|(a, size)| number_of(answer(*a), answer(*size)));
                    image.row(beyond(out, 4 * number * vd)?, values, &mut writes)?;
                }
            }
        }
    }
    Ok(writes)
}

pub fn mass(op: &Op, image: &Image) -> Result<Vec<Write>> {
    let Op::AttentionMass { q, state, out, entries, masks, pool, sequences, heads, .. } = *op
    else {
        return stray(op);
    };
    let Op::AttentionMass { spans: at, kv_heads, key_dim, value_dim, scale, softcap, .. } = *op
    else {
        return stray(op);
    };
    let Op::AttentionMass { window, keep, causal, .. } = *op else { return stray(op) };
    let shape = Shape { kv_heads, key_dim, value_dim };
    let (scale, softcap) = (f64::from(scale), f64::from(softcap));
    let (window, keep) = (u64::from(window), u64::from(keep));
    let sight =
        Sight { q, heads, shape, scale, softcap, window, keep, causal, entries, masks, pool };
    let (spans, pages) = spans(image, at, sequences, &sight)?;
    let tokens = PAGE_TOKENS as usize;
    let mut writes = Vec::new();
    for span in &spans {
        let width = u64::from(2 + value_dim);
        for entry in u64::from(span.entry)..u64::from(span.entry) + u64::from(span.entries) {
            let mut sums = vec![(0.0, 0.0); kv_heads as usize * tokens];
            for i in 0..u64::from(span.rows) {
                let (row, query) = (u64::from(span.row) + i, u64::from(span.position) + i);
                let q = sight.queries(image, row)?;
                for (head, q) in q.chunks_exact(key_dim as usize).enumerate() {
                    let number = row * u64::from(heads) + head as u64;
                    let held = image.floats(beyond(state, 4 * number * width)?, &[2])?;
                    let kv = head / (heads / kv_heads) as usize;
                    for (t, s, terms) in sight.scores(&pages[&entry], kv, query, q) {
                        let p = (s - held[0]).exp() / held[1];
                        let sum = &mut sums[kv * tokens + t];
                        *sum = (sum.0 + p, sum.1 + p * (1.0 + 2.0 * terms));
                    }
                }
            }
            let far = 4 * entry * u64::from(kv_heads) * u64::from(PAGE_TOKENS);
            let values = sums.into_iter().map(|(value, terms)| Value::Float { value, terms });
            image.row(beyond(out, far)?, values, &mut writes)?;
        }
    }
    Ok(writes)
}
