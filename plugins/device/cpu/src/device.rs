//! The device: buffers, one queue of lists, and the workers that `wait` runs them on.

use crate::check;
use crate::exec::Job;
use crate::kernels::{self, Isa};
use crate::memory::{ALIGN, Memory, Scratch};
use crate::pool::Pool;
use crate::task::{Move, Need, Task};
use kvern_contract::{
    Buffer, CopyRange, DeviceBackend, DeviceDescription, DeviceSpec, DeviceUsage, Error, ErrorKind,
    Fence, FenceState, Granularity, HostRef, HostSpan, KvEncoding, Op, OptionValue, Options, Queue,
    Result, Space, Support, Weight, WeightEncoding,
};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Failures that are remembered; older ones answer Done again, long after anyone could ask.
const FAILURES: usize = 1024;
/// More workers than this are no CPU's.
const WORKERS: usize = 1024;

/// Submitted, not yet run to its end.
struct List {
    fence: u64,
    after: Vec<u64>,
    tasks: Vec<Task>,
    /// Once it has begun.
    job: Option<Arc<Job>>,
}

/// What exists between `open` and the end.
struct Running {
    pool: Pool,
    workers: usize,
    isa: Isa,
    /// Scratch of each worker, and of all together.
    own: Vec<Scratch>,
    shared: Scratch,
}

/// The cpu backend. Create it, `open` it once, drop it to end its threads.
#[derive(Default)]
pub struct CpuDevice {
    running: Option<Running>,
    memory: Memory,
    pending: VecDeque<List>,
    issued: u64,
    reached: u64,
    /// Ranges of fences that failed, and why.
    failures: VecDeque<(u64, u64, ErrorKind)>,
    ops: u64,
    busy: Duration,
}

fn refuse<T>(kind: ErrorKind, call: &str, line: impl Into<String>) -> Result<T> {
    Err(Error::new(kind, &format!("device/{call}"), line))
}

fn chosen_isa(options: &Options) -> Result<Isa> {
    if let Some(name) = options.keys().find(|name| *name != "isa") {
        return refuse(ErrorKind::Invalid, "open", format!("no option {name}; there is isa"));
    }
    let word = match options.get("isa") {
        None => "auto",
        Some(OptionValue::Text(word)) => word,
        Some(other) => {
            return refuse(ErrorKind::Invalid, "open", format!("isa is {other:?}, not a word"));
        }
    };
    let Some(isa) = Isa::named(word) else {
        let line = format!("isa is {word}; auto, avx512, avx2 and scalar are known");
        return refuse(ErrorKind::Invalid, "open", line);
    };
    if !isa.here() {
        let line = format!("isa is {word}, which this cpu lacks; auto takes what it has");
        return refuse(ErrorKind::Unsupported, "open", line);
    }
    Ok(isa)
}

impl CpuDevice {
    /// A device that is not open yet.
    pub fn new() -> Self {
        Self::default()
    }

    fn workers(&self) -> usize {
        self.running.as_ref().map_or(1, |running| running.workers)
    }

    fn failure(&self, fence: u64) -> Option<ErrorKind> {
        let hit = self.failures.iter().find(|(from, to, _)| (*from..=*to).contains(&fence));
        hit.map(|(_, _, kind)| *kind)
    }

    fn remember(&mut self, from: u64, to: u64, kind: ErrorKind) {
        self.failures.push_back((from, to, kind));
        if self.failures.len() > FAILURES {
            self.failures.pop_front();
        }
    }

    /// Queue and fences of a call that adds work.
    fn accept(&self, call: &str, queue: Queue, after: &[Fence]) -> Result<()> {
        if self.running.is_none() {
            return refuse(ErrorKind::Invalid, call, "the device is not open");
        }
        if queue.0 != 0 {
            return refuse(ErrorKind::Invalid, call, format!("no queue {}; there is 0", queue.0));
        }
        match after.iter().find(|fence| fence.0 > self.issued) {
            Some(fence) => {
                refuse(ErrorKind::Invalid, call, format!("fence {} was never issued", fence.0))
            }
            None => Ok(()),
        }
    }

    fn enqueue(&mut self, tasks: Vec<Task>, after: &[Fence]) -> Fence {
        self.issued += 1;
        let after = after.iter().map(|fence| fence.0).collect();
        self.pending.push_back(List { fence: self.issued, after, tasks, job: None });
        Fence(self.issued)
    }

    /// Runs the oldest list, to its end or until the time is over. A failure takes with it what was
    /// submitted behind it so far.
    fn run_one(&mut self, until: Option<Instant>) {
        let Some(mut list) = self.pending.pop_front() else { return };
        let start = Instant::now();
        let failed = match list.job.take().map_or_else(|| self.begin(&mut list), Ok) {
            Ok(job) => {
                if let Some(running) = &self.running {
                    running.pool.run(&job, until);
                }
                if !job.is_over() && self.running.is_some() {
                    list.job = Some(job);
                    self.pending.push_front(list);
                    self.busy += start.elapsed();
                    return;
                }
                job.failure()
            }
            Err(kind) => Some(kind),
        };
        self.reached = list.fence;
        if let Some(kind) = failed {
            self.remember(list.fence, self.issued, kind);
            self.reached = self.issued;
            self.pending.clear();
        }
        if self.pending.is_empty() {
            self.memory.settle();
        }
        self.busy += start.elapsed();
    }

    /// What a list needs before it runs. *Errors* what failed before it; OverBudget.
    fn begin(&mut self, list: &mut List) -> std::result::Result<Arc<Job>, ErrorKind> {
        self.ops += list.tasks.len() as u64;
        if let Some(kind) = list.after.iter().find_map(|fence| self.failure(*fence)) {
            return Err(kind);
        }
        let Some(running) = &mut self.running else { return Err(ErrorKind::Invalid) };
        let workers = running.workers;
        let need = list.tasks.iter().fold(Need::default(), |all, task| {
            let need = kernels::need(task, workers);
            Need { own: all.own.max(need.own), shared: all.shared.max(need.shared) }
        });
        let own = running.own.iter_mut().map(|own| own.grow(need.own)).collect();
        let (Some(own), Some(shared)) = (own, running.shared.grow(need.shared)) else {
            return Err(ErrorKind::OverBudget);
        };
        Ok(Arc::new(Job::new(std::mem::take(&mut list.tasks), running.isa, own, shared)))
    }
}

impl DeviceBackend for CpuDevice {
    fn describe(&self) -> DeviceDescription {
        let all = [Granularity::Page, Granularity::Channel, Granularity::Token];
        let int8 =
            all.iter().flat_map(|key| all.map(|value| KvEncoding::Int8 { key: *key, value }));
        let plain = [KvEncoding::F32, KvEncoding::F16, KvEncoding::Bf16];
        DeviceDescription {
            name: "cpu".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            kind: "cpu".into(),
            unified: true,
            align: ALIGN as u32,
            queues: 1,
            kv: plain.into_iter().chain(int8).collect(),
            weights: vec![WeightEncoding::Bf16, WeightEncoding::F16, WeightEncoding::F32],
            row_invariant: true,
            options: Options::from([("isa".into(), OptionValue::Text("auto".into()))]),
        }
    }

    fn open(&mut self, spec: &DeviceSpec, _host: HostRef) -> Result<()> {
        if self.running.is_some() {
            return refuse(ErrorKind::Invalid, "open", "the device is open already");
        }
        let isa = chosen_isa(&spec.options)?;
        let workers = match spec.threads as usize {
            0 => std::thread::available_parallelism().map_or(1, |n| n.get()),
            n if n <= WORKERS => n,
            n => return refuse(ErrorKind::Invalid, "open", format!("{n} threads")),
        };
        let pool = Pool::start(workers).or_else(|error| {
            refuse(ErrorKind::Internal, "open", format!("no {workers} threads: {error}"))
        })?;
        self.memory = Memory::new(spec.budget_bytes);
        let own = (0..workers).map(|_| Scratch::default()).collect();
        self.running = Some(Running { pool, workers, isa, own, shared: Scratch::default() });
        Ok(())
    }

    fn supports(&self, op: &Op) -> Support {
        let workers = self.workers();
        match check::supported(op, workers) {
            Ok(need) => {
                let floats = need.own as u64 * workers as u64 + need.shared as u64;
                Support::Yes { workspace_bytes: 4 * floats }
            }
            Err(_) => Support::No,
        }
    }

    fn alloc(&mut self, bytes: u64, space: Space) -> Result<Buffer> {
        self.memory.alloc(bytes, space)
    }

    fn import(&mut self, memory: HostSpan) -> Result<Option<Buffer>> {
        self.memory.import(memory).map(Some)
    }

    fn span(&self, buffer: Buffer) -> Option<HostSpan> {
        self.memory.span(buffer)
    }

    fn free(&mut self, buffer: Buffer) {
        self.memory.free(buffer, !self.pending.is_empty());
    }

    /// Weights are read as stored: their order is already the one that kernels stream.
    fn adapt(&mut self, weight: &Weight) -> Result<Weight> {
        Ok(*weight)
    }

    fn copy(&mut self, queue: Queue, copies: &[CopyRange], after: &[Fence]) -> Result<Fence> {
        self.accept("copy", queue, after)?;
        let mut tasks = Vec::with_capacity(copies.len());
        for copy in copies {
            let places = check::Places(&self.memory);
            let both = places
                .at("the source", copy.from, &[copy.bytes])
                .and_then(|from| Ok((from, places.at("the target", copy.to, &[copy.bytes])?)));
            match both {
                Ok((from, to)) => {
                    tasks.push(Task::Move(Move { from, to, bytes: copy.bytes as usize }));
                }
                Err((kind, line)) => return refuse(kind, "copy", line),
            }
        }
        Ok(self.enqueue(tasks, after))
    }

    fn submit(&mut self, queue: Queue, ops: &[Op], after: &[Fence]) -> Result<Fence> {
        self.accept("submit", queue, after)?;
        let workers = self.workers();
        let mut tasks = Vec::with_capacity(ops.len());
        for op in ops {
            tasks.push(check::task(op, &self.memory, workers)?);
        }
        Ok(self.enqueue(tasks, after))
    }

    /// Runs lists up to the fence. The deadline is looked at before each op: it may be overrun by
    /// one op, and a wait of no time at all runs one.
    fn wait(&mut self, fence: Fence, deadline: Duration) -> Result<FenceState> {
        let start = Instant::now();
        if fence.0 > self.issued {
            // Failure is a state here, as the contract has it.
            return Ok(FenceState::Failed(ErrorKind::Invalid));
        }
        while self.reached < fence.0 {
            self.run_one(start.checked_add(deadline));
            if self.reached < fence.0 && start.elapsed() >= deadline {
                return Ok(FenceState::Pending);
            }
        }
        Ok(self.failure(fence.0).map_or(FenceState::Done, FenceState::Failed))
    }

    fn usage(&self) -> DeviceUsage {
        let (device, peak, staging) = self.memory.usage();
        DeviceUsage {
            device_bytes: device,
            device_peak_bytes: peak,
            reserved_bytes: None,
            reserved_peak_bytes: None,
            staging_bytes: staging,
            ops: self.ops,
            busy: self.busy,
        }
    }
}
