//! What the border costs on this machine, beside the same calls made directly: the numbers are
//! printed, none is judged.
//!
//! `cargo run --release -p kvern-abi --example border_cost -- ECHO_DEVICE_LIBRARY ECHO_KV_LIBRARY`

#[path = "../../../tests/fixtures/plugins/echo-device/src/echo.rs"]
mod echo_device;
#[path = "../../../tests/fixtures/plugins/echo-kv/src/echo.rs"]
mod echo_kv;

use kvern_abi::{Plugin, open};
use kvern_contract::*;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A host that does nothing.
struct Silent;

impl Host for Silent {
    fn open(&self, _name: &str, _how: Open) -> Result<FileId> {
        Ok(FileId(1))
    }
    fn close(&self, _file: FileId) {}
    fn list(&self) -> Result<Vec<(String, u64)>> {
        Ok(Vec::new())
    }
    fn read_batch(&self, _reads: &mut [FileRead<'_>], _within: Duration) -> Result<()> {
        Ok(())
    }
    fn write_batch(&self, _writes: &[FileWrite<'_>], _within: Duration) -> Result<()> {
        Ok(())
    }
    fn sync(&self, _files: &[FileId]) -> Result<()> {
        Ok(())
    }
    fn publish(&self, _name: &str, _bytes: &[u8]) -> Result<()> {
        Ok(())
    }
    fn truncate(&self, _file: FileId, _bytes: u64) -> Result<()> {
        Ok(())
    }
    fn remove(&self, _name: &str) -> Result<()> {
        Ok(())
    }
    fn reserve(&self, _bytes: u64) -> Result<()> {
        Ok(())
    }
    fn release(&self, _bytes: u64) {}
    fn event(&self, _name: &str, _took: Duration, _bytes: u64) {}
    fn log(&self, _level: u32, _line: &str) {}
    fn now(&self) -> Duration {
        Duration::ZERO
    }
}

/// The best of 30 rounds, in nanoseconds a call.
fn best(calls: u32, mut call: impl FnMut()) -> f64 {
    let round = |_| {
        let start = Instant::now();
        (0..calls).for_each(|_| call());
        start.elapsed().as_nanos() as f64 / f64::from(calls)
    };
    (0..30).map(round).fold(f64::INFINITY, f64::min)
}

/// A list as a decoder layer has it, again and again.
fn list(ops: usize, rows: u32) -> Vec<Op> {
    let slice = |n: usize| Slice { buffer: Buffer(n as u32), offset: n as u64 * 4096 };
    let weight = |n| Weight {
        data: slice(n),
        encoding: WeightEncoding::Bf16,
        outputs: 2048,
        inputs: 2048,
        ..Weight::default()
    };
    let view = |n| View { at: slice(n), row: 2048, group: 0, step: 1 };
    let op = |n: usize| match n % 4 {
        0 => Op::Norm {
            x: view(n),
            weight: weight(n),
            bias: Slice::default(),
            gate: View::default(),
            out: view(n + 1),
            kind: NormKind::Rms,
            rows,
            groups: 1,
            width: 2048,
            eps: 1e-6,
        },
        1 | 3 => Op::Linear {
            x: slice(n),
            weights: Few::of(&[weight(n), weight(n + 1), weight(n + 2)]),
            biases: Few::of(&[Slice::default(); 3]),
            outs: Few::of(&[slice(n), slice(n + 1), slice(n + 2)]),
            rows,
            epilogue: Epilogue::None,
            limit: 0.0,
            alpha: 0.0,
        },
        _ => Op::Attention {
            q: slice(n),
            out: slice(n + 1),
            state: Slice::default(),
            spans: slice(1),
            entries: slice(2),
            masks: slice(3),
            pool: slice(4),
            sinks: Slice::default(),
            sequences: 1,
            heads: 16,
            kv_heads: 8,
            key_dim: 128,
            value_dim: 128,
            scale: 0.088,
            softcap: 0.0,
            window: 0,
            keep: 0,
            causal: true,
            first: true,
            last: true,
        },
    };
    (0..ops).map(op).collect()
}

fn device_costs(name: &str, device: &mut dyn DeviceBackend) {
    let spec = DeviceSpec {
        compute: ComputeDtype::Auto,
        threads: 1,
        budget_bytes: 0,
        rows: 1,
        options: Options::new(),
    };
    device.open(&spec, Arc::new(Silent)).expect("the fixture opens");
    let wait = best(10_000, || drop(device.wait(Fence(3), Duration::ZERO)));
    let span = best(10_000, || _ = device.span(Buffer(64)));
    let ops = list(200, 1);
    let repeated = best(200, || drop(device.submit(Queue(0), &ops, &[Fence(1)])));
    let layers: Vec<_> = (0..28).map(|layer| list(14, layer + 1)).collect();
    let by_layer = best(20, || {
        layers.iter().for_each(|ops| drop(device.submit(Queue(0), ops, &[])));
    });
    let mut rows = 1000;
    let fresh = best(20, || {
        rows += 1;
        let _ = device.submit(Queue(0), &list(200, rows), &[]);
    });
    let made = best(20, || drop(std::hint::black_box(list(200, 7))));
    println!("{name}: wait {wait:.1} ns, span {span:.1} ns");
    println!("{name}: submit of 200 repeated ops {:.2} us", repeated / 1e3);
    println!("{name}: 28 repeated lists of 14 ops {:.2} us", by_layer / 1e3);
    println!("{name}: submit of 200 new ops {:.2} us", (fresh - made) / 1e3);
}

fn store_costs(name: &str, strategy: &mut dyn KvStrategy) {
    let layer = KvLayer { kind: LayerKind::Full, key_dim: 64, value_dim: 64, kv_heads: 2 };
    let policy = KvPolicy {
        policy_id: String::new(),
        flush: None,
        retain: Threshold::default(),
        window: None,
        keep_rows: None,
        cold: KvEncoding::F16,
        cold_after: 0,
        store_partial: false,
    };
    let spec = StoreSpec {
        identity: Vec::new(),
        shape: KvShape { layers: vec![layer], hot: KvEncoding::F16 },
        cold: KvEncoding::F16,
        policy,
        lifecycle: Lifecycle::RuntimeScoped,
        quota_bytes: None,
        io_align: 512,
        step_pages: 1,
        read_only: false,
        options: Options::from([("quiet".into(), OptionValue::Switch(true))]),
    };
    let opened = strategy.open(&spec, Arc::new(Silent)).expect("the fixture opens");
    let mut store = opened.store.expect("the fixture has a store");
    let key = PageKey { session: SessionId(1), layer: LayerIndex(0), part: Part::Page(0) };
    let small = best(10_000, || drop(store.flush(SessionId(1))));
    let mut frames = vec![[0u8; 64]; 64];
    let load = best(200, || {
        let page = |into| PageLoad { key, into, verdict: Verdict::Missing };
        let mut pages: Vec<_> = frames.iter_mut().map(|frame| page(&mut frame[..])).collect();
        let _ = store.load(&mut pages, Duration::from_secs(1));
    });
    println!("{name}: flush {small:.1} ns, load of 64 pages {:.2} us", load / 1e3);
}

fn main() {
    let mut paths = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(device_path), Some(kv_path)) = (paths.next(), paths.next()) else {
        eprintln!("usage: border_cost ECHO_DEVICE_LIBRARY ECHO_KV_LIBRARY");
        std::process::exit(2);
    };
    let start = Instant::now();
    let device = open(&device_path);
    println!("open: {:.2} ms", start.elapsed().as_secs_f64() * 1e3);
    let (Ok(Plugin::Device(mut device)), Ok(Plugin::Kv(mut kv))) = (device, open(&kv_path)) else {
        eprintln!("these are not the two echo fixtures");
        std::process::exit(1);
    };
    device_costs("direct", &mut echo_device::Echo::default());
    device_costs("border", &mut *device);
    store_costs("direct", &mut echo_kv::Echo);
    store_costs("border", &mut *kv);
    println!("crossings: {}", kvern_abi::crossings());
}
