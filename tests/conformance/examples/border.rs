//! What the border costs a decode step: crossings a step times the cost of one, over the step; and
//! the same device in process and through dlopen, in turn.
//!
//! usage: border MODEL_DIR LIBRARY_DIR [ROUNDS]      build first: `cargo kvern --version`

use kvern_abi::Plugin;
use kvern_contract::{ComputeDtype, DeviceBackend, KvEncoding, Options, Result};
use kvern_engine::{Engine, EngineSpec, Flow, Request, WeightPath};
use kvern_model::{Model, Sampler, Sampling};
use kvern_storage::Service;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Tokens of one measurement.
const TOKENS: u32 = 64;

fn library(dir: &Path, name: &str) -> Result<Plugin> {
    kvern_abi::open(&dir.join(format!("libkvern_{name}.so")))
}

fn engine(model: &Path, dir: &Path, device: Box<dyn DeviceBackend>) -> Result<Engine> {
    let Plugin::Kv(kv) = library(dir, "kv_resident")? else { unreachable!("a kv library") };
    let Plugin::Offload(offload) = library(dir, "offload_middle_band")? else {
        unreachable!("an offload library")
    };
    Engine::load(EngineSpec {
        model: Arc::new(Model::open(model)?),
        storage: Service::pool(2),
        device,
        device_options: Options::new(),
        kv,
        kv_options: Options::new(),
        offload,
        offload_options: Options::new(),
        compute: ComputeDtype::Auto,
        kv_dtype: KvEncoding::Bf16,
        threads: std::thread::available_parallelism().map_or(1, |n| n.get() as u32),
        memory_budget: None,
        kv_budget: None,
        cache_dir: std::env::temp_dir().join("kvern-border"),
        prefill_chunk: 512,
        context_tokens: Some(512),
        offload_cpu_layers: None,
        sessions: 1,
        reading: WeightPath::Cached,
        rates: kvern_engine::Rates::default(),
        dense_chunk_rows: None,
        load_deadline: Duration::from_secs(30),
        log: Arc::new(|_, _| ()),
        watch: kvern_engine::Watch::default(),
    })
}

/// Median time of a decode step in milliseconds, and crossings a step.
fn decode(engine: &mut Engine) -> Result<(f64, f64)> {
    let session = engine.begin()?;
    let prompt: Vec<u32> = (1..17).collect();
    let request = Request {
        prompt: &prompt,
        max_new_tokens: TOKENS,
        sampler: Sampler::new(Sampling::greedy())?,
        ignore_eos: true,
        stop: &[],
    };
    let mut before = 0;
    let outcome = engine.generate(session, &request, &mut |_| {
        if before == 0 {
            before = kvern_abi::crossings();
        }
        Flow::Go
    })?;
    let crossed = (kvern_abi::crossings() - before) as f64 / outcome.inter_token.len() as f64;
    engine.end(session)?;
    let mut steps: Vec<f64> = outcome.inter_token.iter().map(|d| d.as_secs_f64() * 1e3).collect();
    steps.sort_by(f64::total_cmp);
    Ok((steps[steps.len() / 2], crossed))
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let (Some(model), Some(dir)) = (args.next(), args.next()) else {
        eprintln!("usage: border MODEL_DIR LIBRARY_DIR [ROUNDS]");
        std::process::exit(2);
    };
    let rounds: usize = args.next().and_then(|n| n.parse().ok()).unwrap_or(15);
    let (model, dir) = (PathBuf::from(model), PathBuf::from(dir));
    let Plugin::Device(foreign) = library(&dir, "device_cpu")? else {
        unreachable!("a device library")
    };
    let calls = 1_000_000;
    let start = Instant::now();
    for _ in 0..calls {
        std::hint::black_box(foreign.span(kvern_contract::Buffer(0)));
    }
    let call_ns = start.elapsed().as_secs_f64() * 1e9 / f64::from(calls);
    let mut near = engine(&model, &dir, Box::new(kvern_device_cpu::CpuDevice::default()))?;
    let mut far = engine(&model, &dir, foreign)?;
    decode(&mut near)?;
    decode(&mut far)?;
    let (mut ratios, mut steps, mut crossings) = (Vec::new(), Vec::new(), 0.0);
    for _ in 0..rounds {
        let (a, (b, crossed)) = (decode(&mut near)?.0, decode(&mut far)?);
        let (c, d) = (decode(&mut far)?.0, decode(&mut near)?.0);
        ratios.push((b + c) / (a + d));
        steps.push((b + c) / 2.0);
        crossings = crossed;
    }
    let step = median(&mut steps);
    let mid = median(&mut ratios);
    // Order statistics that hold the median with 95 %, by the binomial distribution.
    let spread = 0.98 * (ratios.len() as f64).sqrt();
    let low = (ratios.len() as f64 / 2.0 - spread).floor().max(0.0) as usize;
    let high = ((ratios.len() as f64 / 2.0 + spread).ceil() as usize).min(ratios.len() - 1);
    println!("decode step through dlopen: {step:.3} ms, median of {rounds} rounds");
    println!("crossings a step: {crossings:.1}; a small call: {call_ns:.1} ns");
    println!("their share of the step: {:.4} %", crossings * call_ns / (step * 1e4));
    println!(
        "dlopen over in process: {mid:.4}, 95 % interval of the median {:.4} to {:.4}",
        ratios[low], ratios[high]
    );
    Ok(())
}
