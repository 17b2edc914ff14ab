//! Rates of the kernels that a small llama spends its time in, beside the memory's own read rate.
//!
//! `cargo run --release -p kvern-device-cpu --example kernels [threads] [isa]`. Each figure is the
//! best of a few runs within a tenth of a second; shapes are SmolLM2-135M's.
#![allow(unsafe_code)]

use kvern_contract::*;
use kvern_device_cpu::CpuDevice;
use std::time::{Duration, Instant};

#[path = "../tests/device/rig.rs"]
#[allow(dead_code)]
mod rig;

struct Bench {
    device: CpuDevice,
}

impl Bench {
    /// Memory of so many bytes; each byte is touched, so that pages are there.
    fn room(&mut self, bytes: u64) -> Slice {
        let buffer = self.device.alloc(bytes, Space::Device).expect("memory for a small model");
        let span = self.device.span(buffer).expect("it was just made");
        // SAFETY: the buffer is this long, and no work is pending on it. Small bf16 and f32 values
        // alike.
        unsafe { std::ptr::write_bytes(span.address as *mut u8, 0x3b, bytes as usize) };
        Slice { buffer, offset: 0 }
    }

    fn words(&mut self, words: &[u32]) -> Slice {
        let at = self.room(words.len() as u64 * 4);
        let span = self.device.span(at.buffer).expect("it was just made");
        for (i, word) in words.iter().enumerate() {
            // SAFETY: the buffer has a place for each word, and no work is pending on it.
            unsafe { (span.address as *mut u32).add(i).write_unaligned(*word) };
        }
        at
    }

    /// Seconds of the fastest of several runs.
    fn best(&mut self, ops: &[Op]) -> f64 {
        let mut best = f64::MAX;
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(100) {
            let fence = self.device.submit(Queue(0), ops, &[]).expect("a sound list");
            let start = Instant::now();
            let state = self.device.wait(fence, Duration::MAX).expect("no panic");
            assert_eq!(state, FenceState::Done);
            best = best.min(start.elapsed().as_secs_f64());
        }
        best
    }
}

/// A name, outputs and inputs of each weight, and how many copies.
type Case = (&'static str, &'static [(u32, u32)], usize);

/// A weight with a different copy for each layer, so that no cache holds it.
fn linear(
    bench: &mut Bench,
    shapes: &[(u32, u32)],
    rows: u32,
    layers: usize,
) -> (Vec<Op>, f64, f64) {
    let (outputs, inputs): (Vec<u32>, Vec<u32>) = shapes.iter().copied().unzip();
    let x = bench.room(u64::from(rows * inputs[0]) * 4);
    let mut ops = Vec::new();
    let (mut bytes, mut flops) = (0.0, 0.0);
    let outs: Vec<Slice> =
        outputs.iter().map(|n| bench.room(u64::from(rows) * u64::from(*n) * 4)).collect();
    for _ in 0..layers {
        let mut weights = Vec::new();
        for (outputs, inputs) in shapes {
            let size = u64::from(*outputs) * u64::from(*inputs);
            let (data, encoding) = (bench.room(size * 2), WeightEncoding::Bf16);
            let (outputs, inputs) = (*outputs, *inputs);
            weights.push(Weight { data, encoding, outputs, inputs, ..Weight::default() });
            bytes += size as f64 * 2.0;
            flops += size as f64 * 2.0 * f64::from(rows);
        }
        let gated = shapes.len() == 2;
        ops.push(Op::Linear {
            x,
            weights: Few::of(&weights),
            biases: Few::default(),
            outs: Few::of(if gated { &outs[..1] } else { &outs }),
            rows,
            epilogue: if gated { Epilogue::SiluGated } else { Epilogue::None },
            limit: 0.0,
            alpha: 0.0,
        });
    }
    (ops, bytes, flops)
}

fn attention(bench: &mut Bench, rows: u32, depth: u32, layers: u64) -> (Vec<Op>, f64, f64) {
    let (heads, kv_heads, dim, page) = (9u32, 3u32, 64u32, 3 * 64 * 128 * 2u32);
    let pages = depth.div_ceil(64);
    let pool = bench.room(u64::from(pages * page) * layers);
    let q = bench.room(u64::from(rows * heads * dim) * 4);
    let out = bench.room(u64::from(rows * heads * dim) * 4);
    let spans = bench.words(&[0, rows, depth - rows, 0, pages, 0, 0, 0]);
    let mut ops = Vec::new();
    for layer in 0..layers {
        let mut words = Vec::new();
        for p in 0..pages {
            let offset = (layer as u32 * pages + p) * page;
            words.extend([offset, 0, p * 64, (depth - p * 64).min(64), 3, u32::MAX, 0, 0]);
        }
        let none = Slice::default();
        ops.push(Op::Attention {
            q,
            out,
            state: none,
            spans,
            entries: bench.words(&words),
            masks: none,
            pool,
            sinks: none,
            sequences: 1,
            heads,
            kv_heads,
            key_dim: dim,
            value_dim: dim,
            scale: 0.125,
            softcap: 0.0,
            window: 0,
            keep: 0,
            causal: true,
            first: true,
            last: true,
        });
    }
    let seen: f64 = (0..rows).map(|r| f64::from(depth - rows + r + 1)).sum();
    let flops = seen * f64::from(heads * dim) * 4.0 * layers as f64;
    (ops, f64::from(pages * page) * layers as f64, flops)
}

/// Bytes a second that the cores read together: plain sums over memory that no cache holds.
fn memory_rate(threads: usize) -> f64 {
    const WORDS: usize = 16 << 20;
    let data = vec![1u64; WORDS * threads];
    let mut best = f64::MAX;
    for _ in 0..5 {
        let start = Instant::now();
        std::thread::scope(|scope| {
            for part in data.chunks(WORDS) {
                scope.spawn(|| {
                    let mut sums = [0u64; 32];
                    for line in part.chunks_exact(32) {
                        for (sum, x) in sums.iter_mut().zip(line) {
                            *sum = sum.wrapping_add(*x);
                        }
                    }
                    std::hint::black_box(sums);
                });
            }
        });
        best = best.min(start.elapsed().as_secs_f64());
    }
    (data.len() * 8) as f64 / best
}

fn main() {
    let mut args = std::env::args().skip(1);
    let threads: u32 = args.next().and_then(|a| a.parse().ok()).unwrap_or(2);
    let isa = args.next().unwrap_or_else(|| "auto".into());
    println!("threads {threads}, isa {isa}");
    println!("memory read           {:8.1} GB/s", memory_rate(threads as usize) / 1e9);
    let line = |name: &str, (bytes, flops): (f64, f64), took: f64| {
        let (gb, gflop) = (bytes / took / 1e9, flops / took / 1e9);
        println!("{name:21} {gb:8.1} GB/s {gflop:8.1} GFLOP/s {:9.1} us", took * 1e6);
    };
    for rows in [1, 4, 512] {
        let cases: [Case; 5] = [
            ("qkv", &[(576, 576), (192, 576), (192, 576)], 240),
            ("o", &[(576, 576)], 400),
            ("gate, up", &[(1536, 576), (1536, 576)], 80),
            ("down", &[(576, 1536)], 160),
            ("head", &[(49152, 576)], 5),
        ];
        for (name, shapes, layers) in cases {
            if rows > 4 && name == "head" {
                continue;
            }
            let mut bench = Bench { device: CpuDevice::new() };
            bench.device.open(&rig::spec(&isa, threads), rig::host()).expect("the isa is here");
            let layers = if rows > 4 { 2 } else { layers };
            let (ops, bytes, flops) = linear(&mut bench, shapes, rows, layers);
            let took = bench.best(&ops);
            line(&format!("{name}, {rows} rows"), (bytes, flops), took);
        }
    }
    for (rows, layers) in [(1, 150), (512, 1), (2048, 1)] {
        let mut bench = Bench { device: CpuDevice::new() };
        bench.device.open(&rig::spec(&isa, threads), rig::host()).expect("the isa is here");
        let (ops, bytes, flops) = attention(&mut bench, rows, 2048, layers);
        let took = bench.best(&ops);
        line(&format!("attention, {rows} rows"), (bytes, flops), took);
    }
}
