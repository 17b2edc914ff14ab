//! Devices: products against a plain reference, attention in parts against attention at once, and
//! ranges that lead out of a buffer.

use crate::shipped::{devices, host};
use kvern_contract::*;
use kvern_storage::Region;
use std::sync::Arc;
use std::time::Duration;

/// Memory that device and test share, filled from the front.
struct Bench {
    device: Box<dyn DeviceBackend>,
    region: Arc<Region>,
    buffer: Buffer,
    used: usize,
}

impl Bench {
    fn new(mut device: Box<dyn DeviceBackend>) -> Bench {
        let spec = DeviceSpec {
            compute: ComputeDtype::F32,
            threads: 2,
            budget_bytes: 64 << 20,
            rows: 64,
            options: device.describe().options,
        };
        device.open(&spec, host()).expect("the device opens");
        let region = Region::new(1 << 20).expect("memory");
        let buffer = device.import(region.span()).expect("no error");
        let buffer = buffer.expect("a device in host memory imports host memory");
        Bench { device, region, buffer, used: 0 }
    }

    /// New room, aligned as the device wants it.
    fn room(&mut self, bytes: usize) -> Slice {
        let at = self.used.next_multiple_of(64);
        self.used = at + bytes;
        Slice { buffer: self.buffer, offset: at as u64 }
    }

    fn put(&mut self, bytes: &[u8]) -> Slice {
        let at = self.room(bytes.len());
        let mut lease = self.region.lend(at.offset as usize, bytes.len()).expect("free");
        lease.copy_from_slice(bytes);
        at
    }

    fn put_floats(&mut self, values: &[f32]) -> Slice {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.put(&bytes)
    }

    fn put_words(&mut self, values: &[u32]) -> Slice {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.put(&bytes)
    }

    fn floats(&self, at: Slice, count: usize) -> Vec<f32> {
        let lease = self.region.lend(at.offset as usize, 4 * count).expect("free");
        let words = lease.chunks_exact(4);
        words.map(|w| f32::from_le_bytes([w[0], w[1], w[2], w[3]])).collect()
    }

    fn run(&mut self, ops: &[Op]) -> Result<FenceState> {
        let fence = self.device.submit(Queue(0), ops, &[])?;
        loop {
            match self.device.wait(fence, Duration::from_secs(10))? {
                FenceState::Pending => continue,
                state => return Ok(state),
            }
        }
    }
}

/// Values that repeat after a long while, in -1 to 1.
fn values(count: usize, seed: u32) -> Vec<f32> {
    let word = |i: usize| (i as u32).wrapping_mul(2_654_435_761).wrapping_add(seed * 97) >> 8;
    (0..count).map(|i| word(i) as f32 / 8_388_608.0 - 1.0).collect()
}

const INPUTS: usize = 80;
const OUTPUTS: usize = 24;

/// `rows` rows through one weight.
fn product(bench: &mut Bench, x: &[f32], rows: usize, weight: Weight) -> Vec<f32> {
    let x = bench.put_floats(x);
    let out = bench.room(4 * rows * OUTPUTS);
    let op = Op::Linear {
        x,
        weights: Few::of(&[weight]),
        biases: Few::of(&[Slice::default()]),
        outs: Few::of(&[out]),
        rows: rows as u32,
        epilogue: Epilogue::None,
        limit: 0.0,
        alpha: 0.0,
    };
    assert_eq!(bench.run(&[op]), Ok(FenceState::Done));
    bench.floats(out, rows * OUTPUTS)
}

/// A weight in bf16 and its values.
fn weight(bench: &mut Bench) -> (Weight, Vec<f32>) {
    let halves: Vec<u16> =
        values(INPUTS * OUTPUTS, 3).iter().map(|v| (v.to_bits() >> 16) as u16).collect();
    let bytes: Vec<u8> = halves.iter().flat_map(|half| half.to_le_bytes()).collect();
    let weight = Weight {
        data: bench.put(&bytes),
        encoding: WeightEncoding::Bf16,
        outputs: OUTPUTS as u32,
        inputs: INPUTS as u32,
        ..Weight::default()
    };
    let kept = halves.iter().map(|half| f32::from_bits(u32::from(*half) << 16)).collect();
    (weight, kept)
}

#[test]
fn a_product_is_the_sum_of_products() {
    for (name, device) in devices() {
        let mut bench = Bench::new(device);
        let (weight, kept) = weight(&mut bench);
        let x = values(5 * INPUTS, 1);
        let found = product(&mut bench, &x, 5, weight);
        for (i, found) in found.iter().enumerate() {
            let (row, out) = (i / OUTPUTS, i % OUTPUTS);
            let pairs = x[row * INPUTS..][..INPUTS].iter().zip(&kept[out * INPUTS..][..INPUTS]);
            let wanted: f64 = pairs.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            let off = (f64::from(*found) - wanted).abs();
            assert!(off < 1e-4, "{name}: row {row}, output {out}: {found}, not {wanted}");
        }
    }
}

#[test]
fn a_rows_bits_do_not_depend_on_its_neighbours_where_that_is_declared() {
    for (name, device) in devices() {
        if !device.describe().row_invariant {
            continue;
        }
        let mut bench = Bench::new(device);
        let (weight, _) = weight(&mut bench);
        let x = values(33 * INPUTS, 7);
        let all = product(&mut bench, &x, 33, weight);
        for row in [0, 1, 16, 32] {
            let alone = product(&mut bench, &x[row * INPUTS..][..INPUTS], 1, weight);
            let together = &all[row * OUTPUTS..][..OUTPUTS];
            assert_eq!(alone, together, "{name}: row {row}");
        }
    }
}

const HEADS: u32 = 4;
const KV_HEADS: u32 = 2;
const DIM: u32 = 16;
const PAGES: usize = 5;
const ROWS: u32 = 3;

/// One sequence whose history fills five pages, and three rows that see all of it.
struct Attention {
    q: Slice,
    pool: Slice,
    entries: Vec<Slice>,
}

impl Attention {
    fn new(bench: &mut Bench) -> Attention {
        let page = 2 * (KV_HEADS * PAGE_TOKENS * DIM) as usize;
        let pool = bench.put_floats(&values(PAGES * page, 11));
        let entries = (0..PAGES).map(|n| {
            let words = [(n * page * 4) as u32, 0, n as u32 * 64, 64, 1, u32::MAX, 0, 0];
            words.to_vec()
        });
        let entries: Vec<u32> = entries.flatten().collect();
        let first = bench.put_words(&entries);
        let entries = (0..PAGES)
            .map(|n| Slice { buffer: first.buffer, offset: first.offset + 32 * n as u64 })
            .collect();
        let q = bench.put_floats(&values((ROWS * HEADS * DIM) as usize, 13));
        Attention { q, pool, entries }
    }

    /// Attention over pages in segments of these lengths.
    fn run(&self, bench: &mut Bench, segments: &[usize]) -> Vec<f32> {
        let count = (ROWS * HEADS * DIM) as usize;
        let (out, state) =
            (bench.room(4 * count), bench.room(4 * count + (8 * ROWS * HEADS) as usize));
        let mut at = 0;
        for (i, length) in segments.iter().enumerate() {
            let position = PAGES as u32 * PAGE_TOKENS;
            let span = [0, ROWS, position, 0, *length as u32, 0, 0, 0];
            let spans = bench.put_words(&span);
            let op = Op::Attention {
                q: self.q,
                out,
                state,
                spans,
                entries: self.entries[at],
                masks: Slice::default(),
                pool: self.pool,
                sinks: Slice::default(),
                sequences: 1,
                heads: HEADS,
                kv_heads: KV_HEADS,
                key_dim: DIM,
                value_dim: DIM,
                scale: 0.25,
                softcap: 0.0,
                window: 0,
                keep: 0,
                causal: true,
                first: i == 0,
                last: i + 1 == segments.len(),
            };
            assert_eq!(bench.run(&[op]), Ok(FenceState::Done));
            at += length;
        }
        bench.floats(out, count)
    }
}

#[test]
fn a_history_in_any_parts_has_the_bits_of_the_history_at_once() {
    for (name, device) in devices() {
        if !device.describe().kv.contains(&KvEncoding::F32) {
            continue;
        }
        let mut bench = Bench::new(device);
        let attention = Attention::new(&mut bench);
        let whole = attention.run(&mut bench, &[PAGES]);
        assert!(whole.iter().all(|value| value.is_finite()) && whole.iter().any(|v| *v != 0.0));
        for parts in [&[1, 1, 1, 1, 1][..], &[2, 3], &[4, 1], &[1, 3, 1]] {
            assert_eq!(attention.run(&mut bench, parts), whole, "{name}: parts of {parts:?}");
        }
    }
}

#[test]
fn a_place_that_leads_out_of_its_buffer_is_refused_and_nothing_is_written() {
    for (name, device) in devices() {
        let mut bench = Bench::new(device);
        let (weight, _) = weight(&mut bench);
        let x = bench.put_floats(&values(INPUTS, 1));
        let end = bench.region.bytes() as u64 - 8;
        let op = Op::Linear {
            x,
            weights: Few::of(&[weight]),
            biases: Few::of(&[Slice::default()]),
            outs: Few::of(&[Slice { buffer: bench.buffer, offset: end }]),
            rows: 1,
            epilogue: Epilogue::None,
            limit: 0.0,
            alpha: 0.0,
        };
        let answer = bench.run(&[op]);
        let is_refused = match &answer {
            Err(error) => error.kind == ErrorKind::Invalid,
            Ok(state) => *state == FenceState::Failed(ErrorKind::Invalid),
        };
        assert!(is_refused, "{name}: {answer:?}");
        let tail = Slice { buffer: bench.buffer, offset: end };
        assert_eq!(bench.floats(tail, 2), [0.0, 0.0], "{name}");
    }
}
