//! The backend: buffers, a line of work, and a pool of bounded size that runs it inside `wait`.

use crate::fault::invalid;
use crate::limits::{ALIGN, KEPT};
use crate::line::{Line, Work};
use crate::memory::Memory;
use crate::ops::{self, Operands};
use crate::{shape, weight};
use kvern_contract::*;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// candle's CPU backend behind the device contract.
#[derive(Default)]
pub struct CandleDevice {
    open: Option<Running>,
    memory: Memory,
    line: Line,
    ops: u64,
    busy: Duration,
}

struct Running {
    pool: rayon::ThreadPool,
    host: HostRef,
    rows: u32,
    threads: u32,
}

fn panicked(cause: &(dyn std::any::Any + Send)) -> Error {
    let text = cause.downcast_ref::<&str>().map(|text| (*text).to_string());
    let text = text.or_else(|| cause.downcast_ref::<String>().cloned()).unwrap_or_default();
    Error::new(ErrorKind::Panicked, "device/candle", format!("candle panicked: {text}"))
}

/// Runs `work` in the pool; a panic in it is an error.
fn guarded<R: Send>(
    pool: &rayon::ThreadPool,
    work: impl FnOnce() -> Result<R> + Send,
) -> Result<R> {
    catch_unwind(AssertUnwindSafe(|| pool.install(work))).unwrap_or_else(|e| Err(panicked(&*e)))
}

impl CandleDevice {
    /// A closed device.
    pub fn new() -> Self {
        Self::default()
    }

    fn running(&self) -> Result<&Running> {
        self.open.as_ref().ok_or_else(|| invalid("the device is not open: call open first"))
    }

    fn admit(&self, queue: Queue, after: &[Fence]) -> Result<()> {
        self.running()?;
        if queue.0 != 0 {
            return Err(invalid(format!("queue {} of a device with one, 0", queue.0)));
        }
        match after.iter().find(|fence| fence.0 > self.line.issued()) {
            Some(fence) => Err(invalid(format!("fence {} was never given out", fence.0))),
            None => Ok(()),
        }
    }

    fn convert(&self, weight: &Weight) -> Result<candle_core::Tensor> {
        let operands = Operands::dry(&self.memory);
        let matrix = weight::Matrix::bind(weight, &operands)?;
        guarded(&self.running()?.pool, || matrix.whole())
    }

    /// Runs pieces of the line until `fence` or the deadline, at least one.
    fn advance(&mut self, fence: Fence, deadline: Duration) {
        let start = Instant::now();
        let (memory, line, ops) = (&self.memory, &mut self.line, &mut self.ops);
        let Some(open) = &self.open else { return };
        while line.reached() < fence.0 {
            let ran = guarded(&open.pool, || {
                while line.reached() < fence.0 {
                    let Some((job, blocked)) = line.head() else { break };
                    if let Some(kind) = blocked {
                        let text = "waits for work that failed";
                        return Err(Error::new(kind, "device/wait", text));
                    }
                    if step(&job.work, job.done, memory)? {
                        job.done += 1;
                        *ops += u64::from(matches!(job.work, Work::Ops(_)));
                    } else {
                        line.finish();
                    }
                    if start.elapsed() >= deadline {
                        break;
                    }
                }
                Ok(())
            });
            if let Err(error) = ran {
                open.host.log(1, &error.to_string());
                line.fail(error.kind);
            }
            if start.elapsed() >= deadline {
                break;
            }
        }
        self.busy += start.elapsed();
    }
}

/// Does piece `at` of some work; false when there is none left.
fn step(work: &Work, at: usize, memory: &Memory) -> Result<bool> {
    match work {
        Work::Ops(ops) => {
            let Some(op) = ops.get(at) else { return Ok(false) };
            ops::run(op, &Operands::wet(memory)).map_err(|error| in_op(error, op))?;
        }
        Work::Copies(copies) => {
            let Some(copy) = copies.get(at) else { return Ok(false) };
            let from = memory.region(copy.from, copy.bytes, false)?;
            memory.region(copy.to, copy.bytes, false)?.copy_from(&from)?;
        }
    }
    Ok(true)
}

/// Says which op it was.
fn in_op(mut error: Error, op: &Op) -> Error {
    error.message = format!("{}: {}", op.name(), error.message);
    error
}

impl DeviceBackend for CandleDevice {
    fn describe(&self) -> DeviceDescription {
        DeviceDescription {
            name: "candle".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            kind: "cpu".into(),
            unified: true,
            align: ALIGN as u32,
            queues: 1,
            kv: vec![KvEncoding::F32, KvEncoding::F16, KvEncoding::Bf16],
            weights: vec![WeightEncoding::Bf16, WeightEncoding::F16, WeightEncoding::F32],
            row_invariant: false,
            options: Options::new(),
        }
    }

    fn open(&mut self, spec: &DeviceSpec, host: HostRef) -> Result<()> {
        let refuse = |kind, text: String| Err(Error::new(kind, "device/open", text));
        if self.open.is_some() {
            return refuse(ErrorKind::Invalid, "the device is open already".into());
        }
        if let Some(name) = spec.options.keys().next() {
            return refuse(ErrorKind::Invalid, format!("option {name} is unknown: there are none"));
        }
        let threads = spec.threads.max(1);
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads as usize)
            .thread_name(|i| format!("candle-{i}"))
            .build();
        match pool {
            Ok(pool) => {
                self.memory.budget_bytes = spec.budget_bytes;
                self.open = Some(Running { pool, host, rows: spec.rows, threads });
                Ok(())
            }
            Err(error) => refuse(ErrorKind::Internal, format!("no threads: {error}")),
        }
    }

    fn supports(&self, op: &Op) -> Support {
        let (rows, threads) = self.open.as_ref().map_or((1, 1), |open| (open.rows, open.threads));
        match shape::check(op) {
            Ok(()) => Support::Yes { workspace_bytes: shape::workspace(op, rows, threads) },
            Err(_) => Support::No,
        }
    }

    fn alloc(&mut self, bytes: u64, space: Space) -> Result<Buffer> {
        self.running()?;
        self.memory.alloc(bytes, space)
    }

    fn import(&mut self, memory: HostSpan) -> Result<Option<Buffer>> {
        self.running()?;
        self.memory.import(memory)
    }

    fn span(&self, buffer: Buffer) -> Option<HostSpan> {
        self.memory.span(buffer)
    }

    fn free(&mut self, buffer: Buffer) {
        self.memory.free(buffer, self.line.issued());
        self.memory.reap(self.line.reached());
    }

    /// A matrix in a plain encoding becomes an f32 tensor. Under a budget only where that takes no
    /// more than it does as stored: what it grows by was promised to nobody. Anything else stays.
    fn adapt(&mut self, weight: &Weight) -> Result<Weight> {
        self.running()?;
        let Some(each) = weight::value_bytes(weight.encoding) else { return Ok(*weight) };
        let growing = each < 4 && self.memory.budget_bytes != u64::MAX;
        let bytes = 4 * u128::from(weight.outputs) * u128::from(weight.inputs);
        let room = bytes <= u128::from(self.memory.free_bytes());
        if growing || !room || weight.layout == KEPT || weight.stride != 0 {
            return Ok(*weight);
        }
        let tensor = self.convert(weight)?;
        let data = Slice { buffer: self.memory.keep(tensor)?, offset: 0 };
        Ok(Weight { data, scales: Slice::default(), layout: KEPT, ..*weight })
    }

    fn copy(&mut self, queue: Queue, copies: &[CopyRange], after: &[Fence]) -> Result<Fence> {
        self.admit(queue, after)?;
        for copy in copies {
            self.memory.region(copy.from, copy.bytes, true)?;
            self.memory.region(copy.to, copy.bytes, true)?;
        }
        Ok(self.line.push(Work::Copies(copies.to_vec()), after))
    }

    fn submit(&mut self, queue: Queue, ops: &[Op], after: &[Fence]) -> Result<Fence> {
        self.admit(queue, after)?;
        let operands = Operands::dry(&self.memory);
        for op in ops {
            let checked = catch_unwind(AssertUnwindSafe(|| ops::run(op, &operands)));
            let checked = checked.unwrap_or_else(|e| Err(panicked(&*e)));
            checked.map_err(|error| in_op(error, op))?;
        }
        Ok(self.line.push(Work::Ops(ops.to_vec()), after))
    }

    fn wait(&mut self, fence: Fence, deadline: Duration) -> Result<FenceState> {
        if self.line.state(fence) == FenceState::Pending {
            self.advance(fence, deadline);
            self.memory.reap(self.line.reached());
        }
        Ok(self.line.state(fence))
    }

    fn usage(&self) -> DeviceUsage {
        DeviceUsage {
            device_bytes: self.memory.device_bytes,
            device_peak_bytes: self.memory.device_peak_bytes,
            reserved_bytes: None,
            reserved_peak_bytes: None,
            staging_bytes: self.memory.staging_bytes,
            ops: self.ops,
            busy: self.busy,
        }
    }
}
