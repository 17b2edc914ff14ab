//! Attention over pages against one softmax in f64 over everything visible.

use crate::harness::*;
use kvern_contract::*;

/// One page of a test: its rows in f32, and what the entry says.
struct TestPage {
    encoding: KvEncoding,
    first: u32,
    tokens: u32,
    mask: Option<Vec<u64>>,
    packed: bool,
    keys: Vec<f64>,
    values: Vec<f64>,
}

struct Sequence {
    rows: usize,
    position: u32,
    pages: Vec<TestPage>,
}

#[derive(Clone, Copy)]
struct Form {
    heads: usize,
    kv: usize,
    key: usize,
    value: usize,
    softcap: f32,
    window: u32,
    keep: u32,
    causal: bool,
    sinks: bool,
}

const ENCODED: [KvEncoding; 3] = [KvEncoding::F32, KvEncoding::F16, KvEncoding::Bf16];

struct World {
    form: Form,
    scale: f32,
    sequences: Vec<Sequence>,
    q: Vec<f32>,
    sinks: Vec<f32>,
    pool: Vec<u8>,
    entries: Vec<[u32; 8]>,
    masks: Vec<u64>,
}

fn weight_form(encoding: KvEncoding) -> WeightEncoding {
    match encoding {
        KvEncoding::F16 => WeightEncoding::F16,
        KvEncoding::Bf16 => WeightEncoding::Bf16,
        _ => WeightEncoding::F32,
    }
}

impl World {
    fn new(form: Form, histories: &[(usize, usize)], seed: u64, odd: bool) -> Self {
        let dice = &mut Dice::new(seed);
        let mut world = World {
            form,
            scale: 3.0 / (form.key as f32).sqrt(),
            sequences: Vec::new(),
            q: Vec::new(),
            sinks: dice.floats(form.heads),
            pool: vec![0; 6],
            entries: Vec::new(),
            masks: Vec::new(),
        };
        for (rows, past) in histories {
            let total = (rows + past) as u32;
            let mut pages = Vec::new();
            for first in (0..total).step_by(64) {
                let tokens = (total - first).min(64);
                pages.push(world.page(dice, first, tokens, odd && first + 64 <= *past as u32));
            }
            world.q.extend(dice.floats(rows * form.heads * form.key));
            world.sequences.push(Sequence { rows: *rows, position: *past as u32, pages });
        }
        world
    }

    /// A page with poison in every row that nobody may see.
    fn page(&mut self, dice: &mut Dice, first: u32, tokens: u32, odd: bool) -> TestPage {
        let Form { kv, key, value, .. } = self.form;
        let encoding = ENCODED[dice.between(0, 2)];
        let mask: Option<Vec<u64>> =
            (odd && dice.between(0, 1) == 0).then(|| (0..kv).map(|_| dice.roll()).collect());
        let packed = odd && dice.between(0, 2) == 0;
        let hidden = |head: usize, t: usize| {
            t >= tokens as usize || mask.as_ref().is_some_and(|mask| mask[head] >> t & 1 == 0)
        };
        let mut offset = self.pool.len() as u64;
        let mut sides = Vec::new();
        for width in [key, value] {
            let mut rows = dice.floats(kv * 64 * width);
            for (i, x) in rows.iter_mut().enumerate() {
                if hidden(i / width / 64, i / width % 64) {
                    *x = f32::NAN;
                }
            }
            let (bytes, held) = encode(&rows, weight_form(encoding));
            self.pool.extend(bytes);
            sides.push(held);
        }
        // The pool's slice begins two bytes in.
        offset -= 2;
        let index = self.masks.len() / kv;
        self.masks.extend(mask.iter().flatten());
        let word = if mask.is_some() { index as u32 } else { u32::MAX };
        let (low, high) = (offset as u32, (offset >> 32) as u32);
        let packs = u32::from(packed);
        self.entries.push([low, high, first, tokens, encoding_word(encoding), word, packs, 0]);
        let values = sides.pop().unwrap();
        let keys = sides.pop().unwrap();
        TestPage { encoding, first, tokens, mask, packed, keys, values }
    }

    fn sees(&self, page: &TestPage, head: usize, t: usize, at: u32) -> bool {
        let Form { causal, window, keep, .. } = self.form;
        if t >= page.tokens as usize || page.mask.as_ref().is_some_and(|m| m[head] >> t & 1 == 0) {
            return false;
        }
        let position = page.first + t as u32;
        let recent = window == 0 || position + window > at || position < keep;
        page.packed || ((!causal || position <= at) && recent)
    }

    /// f64 `[row][head][value]`.
    fn expected(&self) -> Vec<f64> {
        let Form { heads, kv, key, value, softcap, sinks, .. } = self.form;
        let (mut out, mut row) = (Vec::new(), 0);
        for sequence in &self.sequences {
            for i in 0..sequence.rows {
                let at = sequence.position + i as u32;
                for head in 0..heads {
                    let from = kv * head / heads;
                    let q = &self.q[((row + i) * heads + head) * key..][..key];
                    let mut l = if sinks { f64::from(self.sinks[head]).exp() } else { 0.0 };
                    let mut a = vec![0.0; value];
                    for page in &sequence.pages {
                        for t in (0..64).filter(|t| self.sees(page, from, *t, at)) {
                            let k = &page.keys[(from * 64 + t) * key..][..key];
                            let dot: f64 = q.iter().zip(k).map(|(q, k)| f64::from(*q) * k).sum();
                            let mut s = dot * f64::from(self.scale);
                            if softcap != 0.0 {
                                s = f64::from(softcap) * (s / f64::from(softcap)).tanh();
                            }
                            l += s.exp();
                            let v = &page.values[(from * 64 + t) * value..][..value];
                            a.iter_mut().zip(v).for_each(|(a, v)| *a += s.exp() * v);
                        }
                    }
                    out.extend(a.iter().map(|a| if l == 0.0 { 0.0 } else { a / l }));
                }
            }
            row += sequence.rows;
        }
        out
    }

    /// Runs it in `parts` ops, each with its share of every sequence's pages.
    fn run(&self, parts: usize, carry: bool) -> Vec<f32> {
        let mut rig = Rig::new();
        let Form { heads, kv, key, value, softcap, window, keep, causal, sinks } = self.form;
        let rows: usize = self.sequences.iter().map(|s| s.rows).sum();
        let q = rig.floats(&self.q);
        let out = rig.zeros(rows * heads * value);
        let state = if carry { rig.zeros(rows * heads * (2 + value)) } else { Slice::default() };
        let pool = Slice { offset: 2, ..rig.bytes_at(&self.pool, 0) };
        let entries = rig.words(&self.entries.concat());
        let masks: Vec<u8> = self.masks.iter().flat_map(|m| m.to_le_bytes()).collect();
        let masks = rig.bytes_at(&masks, 0);
        let sink = if sinks { rig.floats(&self.sinks) } else { Slice::default() };
        let mut ops = Vec::new();
        for part in 0..parts {
            let (mut spans, mut row, mut entry) = (Vec::new(), 0u32, 0u32);
            for sequence in &self.sequences {
                let cut = |part: usize| (sequence.pages.len() * part / parts) as u32;
                let (from, to) = (cut(part), cut(part + 1));
                let rows = sequence.rows as u32;
                spans.extend([row, rows, sequence.position, entry + from, to - from, 0, 0, 0]);
                row += rows;
                entry += sequence.pages.len() as u32;
            }
            ops.push(Op::Attention {
                q,
                out,
                state,
                spans: rig.words(&spans),
                entries,
                masks,
                pool,
                sinks: sink,
                sequences: self.sequences.len() as u32,
                heads: heads as u32,
                kv_heads: kv as u32,
                key_dim: key as u32,
                value_dim: value as u32,
                scale: self.scale,
                softcap,
                window,
                keep,
                causal,
                first: part == 0,
                last: part + 1 == parts,
            });
        }
        assert_eq!(rig.state(&ops), FenceState::Done);
        rig.get(out, rows * heads * value)
    }
}

const PLAIN: Form = Form {
    heads: 9,
    kv: 3,
    key: 64,
    value: 64,
    softcap: 0.0,
    window: 0,
    keep: 0,
    causal: true,
    sinks: false,
};

fn forms() -> Vec<Form> {
    vec![
        PLAIN,
        Form { heads: 1, kv: 1, key: 1, value: 1, ..PLAIN },
        Form { heads: 6, kv: 6, key: 17, value: 5, softcap: 1.5, ..PLAIN },
        Form { heads: 8, kv: 2, key: 32, value: 48, window: 70, keep: 4, sinks: true, ..PLAIN },
        Form { heads: 4, kv: 1, window: 1, ..PLAIN },
        Form { heads: 4, kv: 4, key: 8, value: 8, causal: false, ..PLAIN },
        Form { heads: 512, kv: 2, key: 4, value: 3, sinks: true, ..PLAIN },
    ]
}

#[test]
fn ragged_batches_match_one_softmax() {
    for (i, form) in forms().into_iter().enumerate() {
        for (j, histories) in
            [&[(1, 0)][..], &[(1, 200), (64, 0), (3, 63)], &[(70, 130), (1, 64), (2, 2500)]]
                .into_iter()
                .enumerate()
        {
            let world = World::new(form, histories, (10 * i + j) as u64 + 1, false);
            close(&format!("form {i}.{j}"), &world.run(1, false), &world.expected(), 1e-5);
        }
    }
}

#[test]
fn masks_and_packed_pages_hide_rows_whose_poison_never_shows() {
    for (i, form) in forms().into_iter().enumerate() {
        let world = World::new(form, &[(5, 640), (1, 321), (33, 70)], 100 + i as u64, true);
        assert!(world.sequences.iter().any(|s| s.pages.iter().any(|p| p.mask.is_some())));
        close(&format!("form {i}"), &world.run(1, true), &world.expected(), 1e-5);
    }
}

#[test]
fn a_history_in_parts_has_the_bits_of_the_history_at_once() {
    for (i, form) in forms().into_iter().enumerate() {
        let histories = [(4, 700), (1, 0), (17, 130), (1, 3000)];
        let world = World::new(form, &histories, 200 + i as u64, true);
        let want = world.expected();
        let whole = world.run(1, true);
        for parts in [2, 3, 12, 50] {
            let got = world.run(parts, true);
            close(&format!("form {i} in {parts}"), &got, &want, 1e-5);
            let same = got.iter().zip(&whole).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same, "form {i} in {parts} parts differs in its bits");
        }
    }
}

#[test]
fn what_comes_later_is_never_multiplied() {
    let mut world = World::new(Form { kv: 9, ..PLAIN }, &[(20, 10)], 300, false);
    let want = world.expected();
    // The last row of V in the page becomes infinite in every head: only the last query sees it.
    let page = &world.sequences[0].pages[0];
    let each = if page.encoding == KvEncoding::F32 { 4 } else { 2 };
    let infinity: Vec<u8> = match page.encoding {
        KvEncoding::F32 => f32::INFINITY.to_le_bytes().to_vec(),
        KvEncoding::F16 => half::f16::INFINITY.to_le_bytes().to_vec(),
        _ => half::bf16::INFINITY.to_le_bytes().to_vec(),
    };
    let base = world.entries[0][0] as usize + 2 + 9 * 64 * 64 * each;
    for head in 0..9 {
        for i in 0..64 {
            let at = base + ((head * 64 + 29) * 64 + i) * each;
            world.pool[at..at + each].copy_from_slice(&infinity);
        }
    }
    let (got, before) = (world.run(1, false), 19 * 9 * 64);
    close("earlier rows", &got[..before], &want[..before], 1e-5);
    assert!(got[before..].iter().all(|x| x.is_infinite()), "the last row sees the infinity");
}

#[test]
fn a_row_that_sees_nothing_answers_zero() {
    let world = World::new(PLAIN, &[(2, 0)], 400, false);
    let mut blind = World { masks: vec![0; 3], ..world };
    blind.entries[0][5] = 0;
    assert!(blind.run(1, false).iter().all(|x| *x == 0.0));
}
