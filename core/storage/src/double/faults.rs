//! Any storage, spoiled by a seed: slow, short, full, failing, lying, or silent.

use super::fills::{FillFault, Kept};
use super::random::Random;
use crate::fault::{ends_early, late};
use crate::fill::{Fill, Filling, Priority};
use crate::meter::lock;
use crate::region::Region;
use crate::service::{Counters, FileFacts, OpenHow, Storage};
use kvern_contract::{Error, ErrorKind, FileId, FileRead, FileWrite, Result};
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What goes wrong. The default: nothing.
#[derive(Clone, Debug, Default)]
pub struct FaultPlan {
    /// Chooses among the rest; the same seed, the same faults for the same calls.
    pub seed: u64,
    /// Shortest and longest time that a read or write call takes.
    pub latency: Option<(Duration, Duration)>,
    /// One read in so many fills half its buffer and fails; 0: none.
    pub short_one_in: u64,
    /// One read in so many comes back with one bit flipped, and says nothing; 0: none.
    pub flip_one_in: u64,
    /// Reads that succeed before all others fail with Io.
    pub reads_before_eio: Option<u64>,
    /// Writes that succeed before all others fail with Io.
    pub writes_before_eio: Option<u64>,
    /// Files synced before every other sync fails with Io; what was written before stays unsynced.
    /// A publish is two: its file, which is not there if that fails, and its name, which is.
    pub syncs_before_eio: Option<u64>,
    /// One write in so many lands elsewhere in its file, some sectors before or behind where it
    /// should, and says nothing; 0: none.
    pub misdirect_one_in: u64,
    /// Bytes written before the drive is full.
    pub space_bytes: Option<u64>,
    /// What goes wrong with which tries of fills, counted from 1; a fill that is tried once more
    /// is two tries.
    pub fills: Vec<(u64, FillFault)>,
    /// Reads wait until [`Faults::release`], or their deadline; fills are kept as
    /// [`FillFault::Hold`] has it.
    pub hold_reads: bool,
    /// Writes, syncs and publishes wait until [`Faults::release`], or their deadline.
    pub hold_writes: bool,
}

pub(super) struct State {
    pub(super) plan: FaultPlan,
    random: Random,
    /// Tries of fills, and those that were tried once more.
    pub(super) tries: u64,
    pub(super) retries: u64,
    reads: u64,
    writes: u64,
    syncs: u64,
    written: u64,
    held: u32,
}

/// A storage that does what its plan says.
pub struct Faults {
    pub(super) inner: Arc<dyn Storage>,
    pub(super) state: Mutex<State>,
    /// Fills that have not come.
    pub(super) kept: Mutex<Vec<Kept>>,
    /// Paths of open files, for messages.
    names: Mutex<HashMap<FileId, Arc<str>>>,
    released: Condvar,
}
impl Faults {
    /// Spoils `inner` by `plan`.
    pub fn new(inner: Arc<dyn Storage>, plan: FaultPlan) -> Arc<Self> {
        let random = Random::new(plan.seed);
        let state = State {
            plan,
            random,
            tries: 0,
            retries: 0,
            reads: 0,
            writes: 0,
            syncs: 0,
            written: 0,
            held: 0,
        };
        Arc::new(Faults {
            inner,
            state: Mutex::new(state),
            kept: Mutex::default(),
            names: Mutex::default(),
            released: Condvar::new(),
        })
    }
    /// Replaces the plan; counts start anew. Held calls look again.
    pub fn set(&self, plan: FaultPlan) {
        let mut state = lock(&self.state);
        state.random = Random::new(plan.seed);
        state.plan = plan;
        (state.tries, state.reads, state.writes, state.syncs, state.written) = (0, 0, 0, 0, 0);
        self.released.notify_all();
    }
    /// Lets held calls go on and kept fills come, and holds no more.
    pub fn release(&self) {
        {
            let mut state = lock(&self.state);
            (state.plan.hold_reads, state.plan.hold_writes) = (false, false);
            state.plan.fills.retain(|(_, fault)| *fault != FillFault::Hold);
            self.released.notify_all();
        }
        self.let_go();
    }
    /// Fills that are kept now.
    pub fn kept(&self) -> usize {
        lock(&self.kept).len()
    }
    /// The path of an open file, as it was opened.
    pub(super) fn name(&self, file: FileId) -> Arc<str> {
        lock(&self.names).get(&file).cloned().unwrap_or_else(|| "a file".into())
    }
    /// Calls that are held now.
    pub fn held(&self) -> u32 {
        lock(&self.state).held
    }

    /// Waits as the plan says; what is left of `within`, or `None` when it has passed.
    pub(super) fn wait(&self, within: Duration, holds: fn(&FaultPlan) -> bool) -> Option<Duration> {
        let start = Instant::now();
        let mut state = lock(&self.state);
        let nap = state.plan.latency.map(|(least, most)| {
            let spread = u64::try_from(most.saturating_sub(least).as_nanos()).unwrap_or(u64::MAX);
            least + Duration::from_nanos(state.random.below(spread.saturating_add(1)))
        });
        while holds(&state.plan) {
            let left = within.saturating_sub(start.elapsed());
            if left.is_zero() {
                return None;
            }
            state.held += 1;
            let waited = self.released.wait_timeout(state, left.min(Duration::from_secs(3600)));
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            state.held -= 1;
        }
        drop(state);
        if let Some(nap) = nap {
            std::thread::sleep(nap.min(within.saturating_sub(start.elapsed())));
        }
        match within {
            Duration::MAX => Some(within),
            _ => Some(within.saturating_sub(start.elapsed())).filter(|left| !left.is_zero()),
        }
    }
    /// Whether a write of `bytes` may go on.
    fn admit(&self, bytes: u64) -> Result<()> {
        let mut state = lock(&self.state);
        state.writes += 1;
        if state.plan.writes_before_eio.is_some_and(|count| state.writes > count) {
            return Err(Error::new(
                ErrorKind::Io,
                "storage/write",
                "input/output error (injected)",
            ));
        }
        state.written += bytes;
        if state.plan.space_bytes.is_some_and(|space| state.written > space) {
            let text = "no space left on device (injected); free some space";
            return Err(Error::new(ErrorKind::OutOfSpace, "storage/write", text));
        }
        Ok(())
    }
    /// Whether a sync may go on.
    fn syncs(&self) -> Result<()> {
        let mut state = lock(&self.state);
        state.syncs += 1;
        if state.plan.syncs_before_eio.is_some_and(|count| state.syncs > count) {
            let text = "input/output error (injected)";
            return Err(Error::new(ErrorKind::Io, "storage/sync", text));
        }
        Ok(())
    }
    /// Where a write lands that should land at `offset`.
    fn aim(&self, offset: u64) -> u64 {
        let mut state = lock(&self.state);
        let one_in = state.plan.misdirect_one_in;
        if !state.random.one_in(one_in) {
            return offset;
        }
        let sectors = (1 + state.random.below(8)) * 512;
        match state.random.one_in(2) && offset >= sectors {
            true => offset - sectors,
            false => offset + sectors,
        }
    }
    /// Spoils one read that came well.
    pub(super) fn spoil(&self, read: &mut FileRead<'_>) {
        let mut state = lock(&self.state);
        state.reads += 1;
        let plan = state.plan.clone();
        let asked = read.into.len();
        if plan.reads_before_eio.is_some_and(|count| state.reads > count) {
            read.into.fill(0xee);
            let text = "input/output error (injected)";
            read.done = Err(Error::new(ErrorKind::Io, "storage/read", text));
        } else if state.random.one_in(plan.short_one_in) {
            read.into[asked / 2..].fill(0xee);
            let got = asked as u64 / 2;
            read.done = Err(ends_early("a file", read.offset, asked as u64, got));
        } else if asked > 0 && state.random.one_in(plan.flip_one_in) {
            let at = state.random.below(asked as u64 * 8);
            read.into[(at / 8) as usize] ^= 1 << (at % 8);
        }
    }
}

impl Storage for Faults {
    fn open(&self, path: &Path, how: OpenHow) -> Result<FileId> {
        let file = self.inner.open(path, how)?;
        lock(&self.names).insert(file, path.display().to_string().into());
        Ok(file)
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
        self.inner.register(region);
    }
    fn fill(&self, fills: Vec<Fill>, priority: Priority) -> Filling {
        self.start(fills, priority)
    }
    fn list(&self, dir: &Path) -> Result<Vec<(String, u64)>> {
        self.inner.list(dir)
    }
    fn read_batch(&self, reads: &mut [FileRead<'_>], within: Duration) -> Result<()> {
        let Some(left) = self.wait(within, |plan| plan.hold_reads) else {
            let error = late("storage/read", within);
            reads.iter_mut().for_each(|read| read.done = Err(error.clone()));
            return Err(error);
        };
        // The answer is in each read.
        let _ = self.inner.read_batch(reads, left);
        let mut first = Ok(());
        for read in reads {
            if read.done.is_ok() {
                self.spoil(read);
            }
            first = first.and(read.done.clone());
        }
        first
    }
    fn write_batch(&self, writes: &[FileWrite<'_>], within: Duration) -> Result<()> {
        let left = self.wait(within, |plan| plan.hold_writes);
        let left = left.ok_or_else(|| late("storage/write", within))?;
        for write in writes {
            self.admit(write.bytes.len() as u64)?;
            let &FileWrite { file, offset, bytes } = write;
            let offset = self.aim(offset);
            self.inner.write_batch(&[FileWrite { file, offset, bytes }], left)?;
        }
        Ok(())
    }
    fn sync(&self, files: &[FileId]) -> Result<()> {
        self.wait(Duration::MAX, |plan| plan.hold_writes);
        for &file in files {
            self.syncs()?;
            self.inner.sync(&[file])?;
        }
        Ok(())
    }
    fn publish(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        self.wait(Duration::MAX, |plan| plan.hold_writes);
        self.admit(bytes.len() as u64)?;
        self.syncs()?;
        self.inner.publish(path, bytes)?;
        self.syncs()
    }
    fn truncate(&self, file: FileId, bytes: u64) -> Result<()> {
        self.inner.truncate(file, bytes)
    }
    fn remove(&self, path: &Path) -> Result<()> {
        self.inner.remove(path)
    }
    fn counters(&self) -> Counters {
        let counters = self.inner.counters();
        Counters { retries: counters.retries + lock(&self.state).retries, ..counters }
    }
    fn path_kind(&self) -> &'static str {
        self.inner.path_kind()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::double::MemoryStorage;

    #[test]
    fn a_publish_fails_with_the_sync_of_its_file_or_of_its_name() {
        for (syncs, there) in [(0, false), (1, true), (2, true)] {
            let memory = MemoryStorage::new();
            let plan = FaultPlan { syncs_before_eio: Some(syncs), ..FaultPlan::default() };
            let faults = Faults::new(memory.clone(), plan);
            let published = faults.publish(Path::new("/root/f"), b"x");
            let kind = published.err().map(|error| error.kind);
            assert_eq!(kind, Some(ErrorKind::Io).filter(|_| syncs < 2), "{syncs}");
            assert_eq!(memory.contents(Path::new("/root/f")).is_some(), there, "{syncs}");
        }
    }
}
