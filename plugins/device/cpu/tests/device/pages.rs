//! Histories in pages of every encoding, as bytes and as what these mean.

use crate::rig::*;
use kvern_contract::*;

pub struct Case {
    pub heads: usize,
    pub kv_heads: usize,
    pub key_dim: usize,
    pub value_dim: usize,
    pub encodings: Vec<KvEncoding>,
    /// Rows, and position of the first; each sequence has its own history up to its last row.
    pub sequences: Vec<(usize, usize)>,
    pub window: u32,
    pub keep: u32,
    pub softcap: f32,
    pub causal: bool,
    pub sinks: bool,
    pub masks: bool,
    pub packed: bool,
}

pub const PLAIN: Case = Case {
    heads: 2,
    kv_heads: 1,
    key_dim: 16,
    value_dim: 16,
    encodings: Vec::new(),
    sequences: Vec::new(),
    window: 0,
    keep: 0,
    softcap: 0.0,
    causal: true,
    sinks: false,
    masks: false,
    packed: false,
};

pub struct Data {
    pub q: Vec<f32>,
    pub spans: Vec<SpanEntry>,
    pub entries: Vec<PageEntry>,
    pub masks: Vec<u64>,
    pub sinks: Vec<f32>,
    pub pool: Vec<u8>,
    /// K and V of each entry as numbers: `[kv_head][64][dim]`.
    pub keys: Vec<Vec<f32>>,
    pub values: Vec<Vec<f32>>,
}

fn page(random: &mut Random, case: &Case, encoding: KvEncoding) -> (Vec<u8>, Vec<f32>, Vec<f32>) {
    let (k, v) = (case.kv_heads * 64 * case.key_dim, case.kv_heads * 64 * case.value_dim);
    let plain = |random: &mut Random, form| {
        let ((mut bytes, keys), (more, values)) =
            (encoded(random, k, form), encoded(random, v, form));
        bytes.extend(more);
        (bytes, keys, values)
    };
    let (key, value) = match encoding {
        KvEncoding::F32 => return plain(random, WeightEncoding::F32),
        KvEncoding::F16 => return plain(random, WeightEncoding::F16),
        KvEncoding::Bf16 => return plain(random, WeightEncoding::Bf16),
        KvEncoding::Int8 { key, value } => (key, value),
        KvEncoding::Codec => panic!("no page has it"),
    };
    let mut bytes: Vec<u8> = (0..k + v).map(|_| random.word() as u8).collect();
    let mut sides = Vec::new();
    let mut at = 0;
    for (granularity, dim) in [(key, case.key_dim), (value, case.value_dim)] {
        let count = [1, case.kv_heads * dim, case.kv_heads * 64][granularity as usize];
        let scales: Vec<f32> = (0..count).map(|_| random.float().abs() / 100.0).collect();
        let mut numbers = Vec::new();
        for head in 0..case.kv_heads {
            for token in 0..64 {
                for channel in 0..dim {
                    let scale = match granularity {
                        Granularity::Page => scales[0],
                        Granularity::Channel => scales[head * dim + channel],
                        Granularity::Token => scales[head * 64 + token],
                    };
                    numbers.push(f32::from(bytes[at] as i8) * scale);
                    at += 1;
                }
            }
        }
        bytes.extend(scales.iter().flat_map(|s| s.to_le_bytes()));
        sides.push(numbers);
    }
    let values = sides.remove(1);
    (bytes, sides.remove(0), values)
}

pub fn data(case: &Case, seed: u64) -> Data {
    let mut random = Random(seed);
    let rows: usize = case.sequences.iter().map(|s| s.0).sum();
    let mut q = random.floats(rows * case.heads * case.key_dim);
    q.iter_mut().for_each(|q| *q *= 3.0);
    let mut made = Data {
        q,
        spans: Vec::new(),
        entries: Vec::new(),
        masks: Vec::new(),
        sinks: random.floats(case.heads),
        pool: Vec::new(),
        keys: Vec::new(),
        values: Vec::new(),
    };
    let mut row = 0;
    for (rows, position) in &case.sequences {
        let (filled, entry) = (position + rows, made.entries.len());
        for first in (0..filled).step_by(64) {
            let encoding = case.encodings[made.entries.len() % case.encodings.len()];
            let (bytes, keys, values) = page(&mut random, case, encoding);
            let packed = case.packed && first + 64 <= *position;
            let mut tokens = 64.min(filled - first) as u32;
            if packed {
                tokens = 1 + random.below(tokens);
            }
            let mask = if case.masks && random.below(3) > 0 {
                let word = |r: &mut Random| u64::from(r.word()) << 32 | u64::from(r.word());
                made.masks.extend((0..case.kv_heads).map(|_| word(&mut random)));
                (made.masks.len() / case.kv_heads - 1) as u32
            } else {
                u32::MAX
            };
            made.entries.push(PageEntry {
                offset: made.pool.len() as u64,
                first: first as u32,
                tokens,
                encoding: encoding_word(encoding),
                mask,
                packed: packed.into(),
                reserved: 0,
            });
            made.pool.extend(bytes);
            made.keys.push(keys);
            made.values.push(values);
        }
        made.spans.push(SpanEntry {
            row,
            rows: *rows as u32,
            position: *position as u32,
            entry: entry as u32,
            entries: (made.entries.len() - entry) as u32,
            ..SpanEntry::default()
        });
        row += *rows as u32;
    }
    made
}

pub fn span_words(spans: &[SpanEntry]) -> Vec<u32> {
    let words = |s: &SpanEntry| [s.row, s.rows, s.position, s.entry, s.entries, s.slot, 0, 0];
    spans.iter().flat_map(words).collect()
}

pub fn entry_words(entries: &[PageEntry]) -> Vec<u32> {
    let words = |e: &PageEntry| {
        let offset = [e.offset as u32, (e.offset >> 32) as u32];
        [offset[0], offset[1], e.first, e.tokens, e.encoding, e.mask, e.packed, 0]
    };
    entries.iter().flat_map(words).collect()
}
