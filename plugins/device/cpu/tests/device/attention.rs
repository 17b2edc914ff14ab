//! Attention: against the whole softmax in f64, and the same bits however the history is cut.

use crate::pages::*;
use crate::rig::*;
use kvern_contract::*;

/// A device with everything in buffers.
pub struct Ready {
    pub rig: Rig,
    pub op: Op,
    out: Slice,
    rows: usize,
}

pub fn ready(mut rig: Rig, case: &Case, data: &Data) -> Ready {
    let rows: usize = case.sequences.iter().map(|s| s.0).sum();
    let out = rig.room(rows * case.heads * case.value_dim);
    let masks: Vec<u8> = data.masks.iter().flat_map(|m| m.to_le_bytes()).collect();
    let op = Op::Attention {
        q: rig.floats(&data.q),
        out,
        state: rig.room(rows * case.heads * (2 + case.value_dim)),
        spans: rig.words(&span_words(&data.spans)),
        entries: rig.words(&entry_words(&data.entries)),
        masks: rig.bytes(&masks),
        pool: rig.bytes(&data.pool),
        sinks: if case.sinks { rig.floats(&data.sinks) } else { Slice::default() },
        sequences: data.spans.len() as u32,
        heads: case.heads as u32,
        kv_heads: case.kv_heads as u32,
        key_dim: case.key_dim as u32,
        value_dim: case.value_dim as u32,
        scale: 1.0 / (case.key_dim as f32).sqrt(),
        softcap: case.softcap,
        window: case.window,
        keep: case.keep,
        causal: case.causal,
        first: true,
        last: true,
    };
    Ready { rig, op, out, rows }
}

impl Ready {
    pub fn answer(&self, case: &Case) -> Vec<f32> {
        self.rig.read(self.out, self.rows * case.heads * case.value_dim)
    }

    /// The op over other spans, with or without its ends.
    fn segment(&mut self, of: &[SpanEntry], begins: bool, ends: bool) {
        let table = self.rig.words(&span_words(of));
        let mut op = self.op;
        if let Op::Attention { spans, sequences, first, last, .. } = &mut op {
            (*spans, *sequences, *first, *last) = (table, of.len() as u32, begins, ends);
        }
        self.rig.run(&[op]);
    }
}

fn seen(case: &Case, data: &Data, e: usize, token: usize, position: usize, head: usize) -> bool {
    let entry = &data.entries[e];
    let at = entry.first as usize + token;
    let mut seen = token < entry.tokens as usize;
    if entry.packed == 0 {
        seen &= !case.causal || at <= position;
        let (window, keep) = (case.window as usize, case.keep as usize);
        seen &= window == 0 || at + window > position || at < keep;
    }
    if entry.mask != u32::MAX {
        seen &= data.masks[entry.mask as usize * case.kv_heads + head] >> token & 1 == 1;
    }
    seen
}

fn reference(case: &Case, data: &Data) -> Vec<f64> {
    let mut out = Vec::new();
    let scale = 1.0 / (case.key_dim as f64).sqrt();
    for span in &data.spans {
        for row in 0..span.rows as usize {
            for head in 0..case.heads {
                let kv = head / (case.heads / case.kv_heads);
                let at = ((span.row as usize + row) * case.heads + head) * case.key_dim;
                let q = &data.q[at..at + case.key_dim];
                let mut scored: Vec<(f64, Option<&[f32]>)> = Vec::new();
                if case.sinks {
                    scored.push((f64::from(data.sinks[head]), None));
                }
                for e in span.entry as usize..(span.entry + span.entries) as usize {
                    for token in 0..64 {
                        let position = span.position as usize + row;
                        if !seen(case, data, e, token, position, kv) {
                            continue;
                        }
                        let line = kv * 64 + token;
                        let k = &data.keys[e][line * case.key_dim..][..case.key_dim];
                        let dot: f64 =
                            q.iter().zip(k).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum();
                        let mut s = dot * scale;
                        if case.softcap > 0.0 {
                            let cap = f64::from(case.softcap);
                            s = cap * (s / cap).tanh();
                        }
                        let v = &data.values[e][line * case.value_dim..][..case.value_dim];
                        scored.push((s, Some(v)));
                    }
                }
                let top = scored.iter().fold(f64::MIN, |top, s| top.max(s.0));
                let total: f64 = scored.iter().map(|s| (s.0 - top).exp()).sum();
                for c in 0..case.value_dim {
                    let weigh = |s: &(f64, Option<&[f32]>)| {
                        s.1.map_or(0.0, |v| (s.0 - top).exp() * f64::from(v[c]))
                    };
                    let sum: f64 = scored.iter().map(weigh).sum();
                    out.push(if total == 0.0 { 0.0 } else { sum / total });
                }
            }
        }
    }
    out
}

fn check(case: &Case, what: &str) {
    let data = data(case, what.len() as u64 * 77 + 1);
    let want = reference(case, &data);
    let mut first: Option<Vec<u32>> = None;
    for (name, rig) in rigs() {
        let mut ready = ready(rig, case, &data);
        ready.rig.run(&[ready.op]);
        let got = ready.answer(case);
        close(&got, &want, 2e-5, &format!("{what}, {name}"));
        let whole = first.get_or_insert_with(|| bits(&got));
        assert_eq!(*whole, bits(&got), "{what}, {name}");

        // Without a state buffer.
        let mut op = ready.op;
        if let Op::Attention { state, .. } = &mut op {
            *state = Slice::default();
        }
        ready.rig.run(&[op]);
        assert_eq!(*whole, bits(&ready.answer(case)), "{what}, {name}, no state");

        // In three segments of the history.
        for part in 0..3 {
            let cut = |n: u32| [0, n / 3, n / 3 + n / 2, n][part];
            let next = |n: u32| [n / 3, n / 3 + n / 2, n][part];
            let spans: Vec<SpanEntry> = data
                .spans
                .iter()
                .map(|s| SpanEntry {
                    entry: s.entry + cut(s.entries),
                    entries: next(s.entries) - cut(s.entries),
                    ..*s
                })
                .collect();
            ready.segment(&spans, part == 0, part == 2);
        }
        assert_eq!(*whole, bits(&ready.answer(case)), "{what}, {name}, in segments");

        // Row by row, each a sequence of its own, in one op and in one each.
        let rows: Vec<SpanEntry> = data
            .spans
            .iter()
            .flat_map(|s| {
                (0..s.rows).map(|r| SpanEntry {
                    row: s.row + r,
                    rows: 1,
                    position: s.position + r,
                    ..*s
                })
            })
            .collect();
        ready.segment(&rows, true, true);
        assert_eq!(*whole, bits(&ready.answer(case)), "{what}, {name}, rows apart");
        for row in rows.iter().rev().take(20) {
            ready.segment(&[*row], true, true);
        }
        assert_eq!(*whole, bits(&ready.answer(case)), "{what}, {name}, row by row");
    }
}

#[test]
fn one_row_against_a_long_history() {
    let encodings = vec![KvEncoding::Bf16];
    let sequences = vec![(1, 700)];
    check(
        &Case { heads: 9, kv_heads: 3, key_dim: 64, value_dim: 64, encodings, sequences, ..PLAIN },
        "a",
    );
    let encodings = vec![KvEncoding::F32, KvEncoding::F16];
    check(&Case { encodings, sequences: vec![(1, 300), (2, 1100)], ..PLAIN }, "long");
}

#[test]
fn many_rows_of_several_sequences() {
    let encodings = vec![KvEncoding::F16, KvEncoding::Bf16, KvEncoding::F32];
    let sequences = vec![(70, 0), (1, 130), (33, 100), (5, 0)];
    check(&Case { heads: 6, kv_heads: 2, encodings, sequences, ..PLAIN }, "many");
}

#[test]
fn odd_dims_and_differing_k_and_v() {
    for (key_dim, value_dim) in [(5, 7), (80, 33), (48, 100)] {
        let encodings = vec![KvEncoding::Bf16, KvEncoding::F32];
        let sequences = vec![(9, 60), (1, 200)];
        check(&Case { heads: 3, key_dim, value_dim, encodings, sequences, ..PLAIN }, "odd");
    }
}

#[test]
fn int8_pages_of_every_granularity() {
    let all = [Granularity::Page, Granularity::Channel, Granularity::Token];
    let int8 = all.iter().flat_map(|key| all.map(|value| KvEncoding::Int8 { key: *key, value }));
    let encodings: Vec<KvEncoding> = int8.chain([KvEncoding::Bf16]).collect();
    let sequences = vec![(20, 400), (1, 500)];
    let case = Case { heads: 4, kv_heads: 2, key_dim: 24, value_dim: 20, encodings, ..PLAIN };
    check(&Case { sequences, ..case }, "int8");
}

#[test]
fn windows_softcap_sinks_and_no_causality() {
    let encodings = vec![KvEncoding::F32];
    let sequences = vec![(40, 200), (1, 600), (3, 0)];
    let base = || Case { encodings: encodings.clone(), sequences: sequences.clone(), ..PLAIN };
    check(&Case { window: 100, ..base() }, "window");
    check(&Case { window: 1, ..base() }, "itself");
    check(&Case { window: 70, keep: 5, sinks: true, ..base() }, "kept");
    check(&Case { softcap: 2.5, sinks: true, ..base() }, "softcap");
    check(&Case { causal: false, ..base() }, "encoder");
}

#[test]
fn masks_and_packed_pages() {
    let encodings = vec![KvEncoding::Bf16];
    let sequences = vec![(30, 300), (1, 400)];
    let base = Case { heads: 4, kv_heads: 2, encodings, sequences, masks: true, ..PLAIN };
    check(&base, "masks");
    check(&Case { packed: true, window: 50, ..base }, "packed");
}

#[test]
fn groups_larger_than_a_block() {
    let encodings = vec![KvEncoding::F16];
    let sequences = vec![(3, 100), (1, 300)];
    check(&Case { heads: 50, kv_heads: 1, encodings, sequences, ..PLAIN }, "mqa");
}

#[test]
fn a_history_longer_than_shared_scratch_folds_in_rounds() {
    let encodings = vec![KvEncoding::F16];
    let sequences = vec![(2, 64 * 40)];
    check(
        &Case { heads: 32, kv_heads: 1, key_dim: 3, value_dim: 2, encodings, sequences, ..PLAIN },
        "rounds",
    );
}

#[test]
fn a_row_that_sees_nothing_answers_zero() {
    let case = Case { encodings: vec![KvEncoding::F32], sequences: vec![(2, 10)], ..PLAIN };
    let mut data = data(&case, 3);
    data.spans[0].entries = 0;
    for (name, rig) in rigs() {
        let mut ready = ready(rig, &case, &data);
        ready.rig.run(&[ready.op]);
        assert!(ready.answer(&case).iter().all(|v| *v == 0.0), "{name}");
    }
}

#[test]
fn unseen_garbage_stays_unseen_and_seen_nan_shows() {
    let case = Case { encodings: vec![KvEncoding::F32], sequences: vec![(20, 30)], ..PLAIN };
    let mut data = data(&case, 4);
    // V of token 45 is NaN: rows at positions 30 to 44 do not see it, later ones do.
    let at = (64 * 16 + 45 * 16) * 4;
    data.pool[at..at + 64].copy_from_slice(&f32::NAN.to_le_bytes().repeat(16));
    for (name, rig) in rigs() {
        let mut ready = ready(rig, &case, &data);
        ready.rig.run(&[ready.op]);
        let out = ready.answer(&case);
        assert!(out[..15 * 32].iter().all(|v| v.is_finite()), "{name}");
        assert!(out[15 * 32..].iter().all(|v| v.is_nan()), "{name}");
    }
}
