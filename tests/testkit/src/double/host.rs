//! Hosts around a host: one that bends a call, one that counts calls and has a clock of its own.

use kvern_contract::*;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// What a host around another does with the calls that move or keep bytes; the default hands them
/// on.
pub trait HostHook: Send + Sync {
    /// Around [`Host::open`].
    fn open(&self, inner: &dyn Host, name: &str, how: Open) -> Result<FileId> {
        inner.open(name, how)
    }
    /// Around [`Host::list`].
    fn list(&self, inner: &dyn Host) -> Result<Vec<(String, u64)>> {
        inner.list()
    }
    /// Around [`Host::read_batch`].
    fn read_batch(
        &self,
        inner: &dyn Host,
        reads: &mut [FileRead<'_>],
        within: Duration,
    ) -> Result<()> {
        inner.read_batch(reads, within)
    }
    /// Around [`Host::write_batch`].
    fn write_batch(
        &self,
        inner: &dyn Host,
        writes: &[FileWrite<'_>],
        within: Duration,
    ) -> Result<()> {
        inner.write_batch(writes, within)
    }
    /// Around [`Host::sync`].
    fn sync(&self, inner: &dyn Host, files: &[FileId]) -> Result<()> {
        inner.sync(files)
    }
    /// Around [`Host::publish`].
    fn publish(&self, inner: &dyn Host, name: &str, bytes: &[u8]) -> Result<()> {
        inner.publish(name, bytes)
    }
    /// Around [`Host::truncate`].
    fn truncate(&self, inner: &dyn Host, file: FileId, bytes: u64) -> Result<()> {
        inner.truncate(file, bytes)
    }
    /// Around [`Host::remove`].
    fn remove(&self, inner: &dyn Host, name: &str) -> Result<()> {
        inner.remove(name)
    }
    /// Around [`Host::now`].
    fn now(&self, inner: &dyn Host) -> Duration {
        inner.now()
    }
}

/// A host that passes every call through a hook.
pub struct ThroughHost<H> {
    inner: HostRef,
    hook: H,
}

impl<H: HostHook> ThroughHost<H> {
    /// `hook` around `inner`.
    pub fn new(inner: HostRef, hook: H) -> Arc<Self> {
        Arc::new(ThroughHost { inner, hook })
    }
}

impl<H: HostHook> Host for ThroughHost<H> {
    fn open(&self, name: &str, how: Open) -> Result<FileId> {
        self.hook.open(&*self.inner, name, how)
    }
    fn close(&self, file: FileId) {
        self.inner.close(file);
    }
    fn list(&self) -> Result<Vec<(String, u64)>> {
        self.hook.list(&*self.inner)
    }
    fn read_batch(&self, reads: &mut [FileRead<'_>], within: Duration) -> Result<()> {
        self.hook.read_batch(&*self.inner, reads, within)
    }
    fn write_batch(&self, writes: &[FileWrite<'_>], within: Duration) -> Result<()> {
        self.hook.write_batch(&*self.inner, writes, within)
    }
    fn sync(&self, files: &[FileId]) -> Result<()> {
        self.hook.sync(&*self.inner, files)
    }
    fn publish(&self, name: &str, bytes: &[u8]) -> Result<()> {
        self.hook.publish(&*self.inner, name, bytes)
    }
    fn truncate(&self, file: FileId, bytes: u64) -> Result<()> {
        self.hook.truncate(&*self.inner, file, bytes)
    }
    fn remove(&self, name: &str) -> Result<()> {
        self.hook.remove(&*self.inner, name)
    }
    fn reserve(&self, bytes: u64) -> Result<()> {
        self.inner.reserve(bytes)
    }
    fn release(&self, bytes: u64) {
        self.inner.release(bytes);
    }
    fn event(&self, name: &str, took: Duration, bytes: u64) {
        self.inner.event(name, took, bytes);
    }
    fn log(&self, level: u32, line: &str) {
        self.inner.log(level, line);
    }
    fn now(&self) -> Duration {
        self.hook.now(&*self.inner)
    }
}

/// What a watched host saw, and the clock that it shows.
#[derive(Default)]
pub struct Watch {
    calls: Mutex<BTreeMap<&'static str, u64>>,
    now: Mutex<Option<Duration>>,
}

impl Watch {
    /// How often a call was made: `open`, `list`, `read`, `write`, `sync`, `publish`, `truncate` or
    /// `remove`. A publish syncs too, and counts as one of its own.
    pub fn count(&self, call: &str) -> u64 {
        let calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        calls.get(call).copied().unwrap_or_default()
    }

    /// Calls that change files: writes, publishes, truncations and removals.
    pub fn changes(&self) -> u64 {
        ["write", "publish", "truncate", "remove"].map(|call| self.count(call)).iter().sum()
    }

    /// Shows this time from now on; before, the clock is the host's own.
    pub fn set_now(&self, now: Duration) {
        *self.now.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
    }

    fn saw(&self, call: &'static str) {
        *self.calls.lock().unwrap_or_else(PoisonError::into_inner).entry(call).or_default() += 1;
    }
}

/// A hook that counts calls in a [`Watch`].
pub struct Watched(pub Arc<Watch>);

impl HostHook for Watched {
    fn open(&self, inner: &dyn Host, name: &str, how: Open) -> Result<FileId> {
        self.0.saw("open");
        inner.open(name, how)
    }
    fn list(&self, inner: &dyn Host) -> Result<Vec<(String, u64)>> {
        self.0.saw("list");
        inner.list()
    }
    fn read_batch(
        &self,
        inner: &dyn Host,
        reads: &mut [FileRead<'_>],
        within: Duration,
    ) -> Result<()> {
        self.0.saw("read");
        inner.read_batch(reads, within)
    }
    fn write_batch(
        &self,
        inner: &dyn Host,
        writes: &[FileWrite<'_>],
        within: Duration,
    ) -> Result<()> {
        self.0.saw("write");
        inner.write_batch(writes, within)
    }
    fn sync(&self, inner: &dyn Host, files: &[FileId]) -> Result<()> {
        self.0.saw("sync");
        inner.sync(files)
    }
    fn publish(&self, inner: &dyn Host, name: &str, bytes: &[u8]) -> Result<()> {
        self.0.saw("publish");
        inner.publish(name, bytes)
    }
    fn truncate(&self, inner: &dyn Host, file: FileId, bytes: u64) -> Result<()> {
        self.0.saw("truncate");
        inner.truncate(file, bytes)
    }
    fn remove(&self, inner: &dyn Host, name: &str) -> Result<()> {
        self.0.saw("remove");
        inner.remove(name)
    }
    fn now(&self, inner: &dyn Host) -> Duration {
        let set = *self.0.now.lock().unwrap_or_else(PoisonError::into_inner);
        set.unwrap_or_else(|| inner.now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvern_storage::double::MemoryStorage;
    use kvern_storage::{Budget, NoSink, RootHost};

    #[test]
    fn a_watched_host_counts_what_was_called_and_shows_the_time_it_is_told() {
        let storage = MemoryStorage::new();
        let root = RootHost::new(storage, "/root".into(), Budget::new(None), Arc::new(NoSink));
        let watch = Arc::<Watch>::default();
        let host = ThroughHost::new(root, Watched(watch.clone()));
        let file = host.open("f", Open::Write).unwrap();
        host.write_batch(&[FileWrite { file, offset: 0, bytes: b"x" }], Duration::MAX).unwrap();
        host.sync(&[file]).unwrap();
        host.publish("g", b"y").unwrap();
        assert_eq!((watch.count("open"), watch.count("sync"), watch.changes()), (1, 1, 2));
        watch.set_now(Duration::from_secs(9));
        assert_eq!(host.now(), Duration::from_secs(9));
    }
}
