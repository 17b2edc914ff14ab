//! Doubles of the drive's side: a storage and a device that write down in which order reads are
//! asked for and work is computed, and models in memory.

use super::doubles::Policy;
use kvern_contract::{
    Buffer, CopyRange, DeviceBackend, DeviceDescription, DeviceSpec, DeviceUsage, Fence,
    FenceState, FileId, FileRead, FileWrite, HostRef, HostSpan, Op, Queue, Result, Space, Support,
    Weight,
};
use kvern_device_cpu::CpuDevice;
use kvern_storage::double::MemoryStorage;
use kvern_storage::{Counters, FileFacts, Fill, Filling, OpenHow, Priority, Region, Storage};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// A policy that keeps these layers, and the head if told to.
pub(super) fn keeping(layers: &[u32], head: bool, read_ahead: u32) -> Box<Policy> {
    Box::new(Policy { layers: Some(layers.to_vec()), head, read_ahead, ..Policy::everything() })
}

/// Something that happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step {
    /// A read of weights was asked for, at this offset.
    Asked(u64),
    /// The device was given work.
    Computed,
}

/// What happened, in order.
#[derive(Clone, Default)]
pub(super) struct Log(Arc<Mutex<Vec<Step>>>);

impl Log {
    pub(super) fn push(&self, step: Step) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(step);
    }
    /// What happened since the last call.
    pub(super) fn take(&self) -> Vec<Step> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Called before a read of weights starts, with how many were asked for before.
type OnFill = Box<dyn Fn(u64) + Send + Sync>;

/// A storage that writes down reads of weights.
pub(super) struct Drive {
    pub inner: Arc<dyn Storage>,
    pub log: Log,
    pub on_fill: OnFill,
    pub asked: Mutex<u64>,
    /// Bytes of memory that it was to pin.
    pub pinned: Mutex<Vec<u64>>,
}

impl Drive {
    pub(super) fn new(inner: Arc<dyn Storage>, log: &Log) -> Arc<Self> {
        Drive::telling(inner, log, Box::new(|_| ()))
    }
    pub(super) fn telling(inner: Arc<dyn Storage>, log: &Log, on_fill: OnFill) -> Arc<Self> {
        let (asked, pinned) = (Mutex::new(0), Mutex::default());
        Arc::new(Drive { inner, log: log.clone(), on_fill, asked, pinned })
    }
}

impl Storage for Drive {
    fn fill(&self, fills: Vec<Fill>, priority: Priority) -> Filling {
        for fill in fills.iter().filter(|_| priority == Priority::Next) {
            let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
            (self.on_fill)(*asked);
            *asked += 1;
            self.log.push(Step::Asked(fill.offset));
        }
        self.inner.fill(fills, priority)
    }
    fn open(&self, path: &Path, how: OpenHow) -> Result<FileId> {
        self.inner.open(path, how)
    }
    fn open_memory(&self, name: &str, bytes: &'static [u8]) -> Result<FileId> {
        self.inner.open_memory(name, bytes)
    }
    fn close(&self, file: FileId) {
        self.inner.close(file);
    }
    fn bytes(&self, file: FileId) -> Result<u64> {
        self.inner.bytes(file)
    }
    fn facts(&self, file: FileId) -> Result<FileFacts> {
        self.inner.facts(file)
    }
    fn unchanged(&self, file: FileId) -> Result<()> {
        self.inner.unchanged(file)
    }
    fn register(&self, region: &Arc<Region>) {
        self.pinned.lock().unwrap_or_else(PoisonError::into_inner).push(region.bytes() as u64);
        self.inner.register(region);
    }
    fn list(&self, dir: &Path) -> Result<Vec<(String, u64)>> {
        self.inner.list(dir)
    }
    fn read_batch(&self, reads: &mut [FileRead<'_>], within: Duration) -> Result<()> {
        self.inner.read_batch(reads, within)
    }
    fn write_batch(&self, writes: &[FileWrite<'_>], within: Duration) -> Result<()> {
        self.inner.write_batch(writes, within)
    }
    fn sync(&self, files: &[FileId]) -> Result<()> {
        self.inner.sync(files)
    }
    fn publish(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        self.inner.publish(path, bytes)
    }
    fn truncate(&self, file: FileId, bytes: u64) -> Result<()> {
        self.inner.truncate(file, bytes)
    }
    fn remove(&self, path: &Path) -> Result<()> {
        self.inner.remove(path)
    }
    fn counters(&self) -> Counters {
        self.inner.counters()
    }
    fn path_kind(&self) -> &'static str {
        self.inner.path_kind()
    }
}

/// A cpu device that writes down that it is given work.
#[derive(Default)]
pub(super) struct Worker {
    inner: CpuDevice,
    pub log: Log,
}

impl Worker {
    pub(super) fn new(log: &Log) -> Box<Self> {
        Box::new(Worker { log: log.clone(), ..Worker::default() })
    }
}

impl DeviceBackend for Worker {
    fn submit(&mut self, queue: Queue, ops: &[Op], after: &[Fence]) -> Result<Fence> {
        self.log.push(Step::Computed);
        self.inner.submit(queue, ops, after)
    }
    fn describe(&self) -> DeviceDescription {
        self.inner.describe()
    }
    fn open(&mut self, spec: &DeviceSpec, host: HostRef) -> Result<()> {
        self.inner.open(spec, host)
    }
    fn supports(&self, op: &Op) -> Support {
        self.inner.supports(op)
    }
    fn alloc(&mut self, bytes: u64, space: Space) -> Result<Buffer> {
        self.inner.alloc(bytes, space)
    }
    fn import(&mut self, memory: HostSpan) -> Result<Option<Buffer>> {
        self.inner.import(memory)
    }
    fn span(&self, buffer: Buffer) -> Option<HostSpan> {
        self.inner.span(buffer)
    }
    fn free(&mut self, buffer: Buffer) {
        self.inner.free(buffer);
    }
    fn adapt(&mut self, weight: &Weight) -> Result<Weight> {
        self.inner.adapt(weight)
    }
    fn copy(&mut self, queue: Queue, copies: &[CopyRange], after: &[Fence]) -> Result<Fence> {
        self.inner.copy(queue, copies, after)
    }
    fn wait(&mut self, fence: Fence, deadline: Duration) -> Result<FenceState> {
        self.inner.wait(fence, deadline)
    }
    fn usage(&self) -> DeviceUsage {
        self.inner.usage()
    }
}

/// The weights of a model directory on a drive in memory, under their own name.
pub(super) fn on(drive: &Arc<MemoryStorage>, model: &Path) {
    let path = model.join("model.safetensors");
    let bytes = std::fs::read(&path).expect("the weights");
    drive.publish(&path, &bytes).expect("a drive in memory takes them");
}
