//! A host that a device should ask for nothing but its log, its events and its clock.

use kvern_contract::*;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// A host without files, which keeps what it was first asked to do with one.
#[derive(Default)]
pub struct Quiet {
    asked: OnceLock<&'static str>,
}

impl Quiet {
    /// The first call about files, if there was one.
    pub fn asked(&self) -> Option<&'static str> {
        self.asked.get().copied()
    }

    fn none<T>(&self, call: &'static str) -> Result<T> {
        self.asked.get_or_init(|| call);
        Err(Error::new(ErrorKind::NotFound, "host", format!("{call}: a device has no files")))
    }
}

impl Host for Quiet {
    fn open(&self, _: &str, _: Open) -> Result<FileId> {
        self.none("open a file")
    }
    fn close(&self, _: FileId) {}
    fn list(&self) -> Result<Vec<(String, u64)>> {
        self.none("list files")
    }
    fn read_batch(&self, _: &mut [FileRead<'_>], _: Duration) -> Result<()> {
        self.none("read files")
    }
    fn write_batch(&self, _: &[FileWrite<'_>], _: Duration) -> Result<()> {
        self.none("write files")
    }
    fn sync(&self, _: &[FileId]) -> Result<()> {
        self.none("sync files")
    }
    fn publish(&self, _: &str, _: &[u8]) -> Result<()> {
        self.none("publish a file")
    }
    fn truncate(&self, _: FileId, _: u64) -> Result<()> {
        self.none("truncate a file")
    }
    fn remove(&self, _: &str) -> Result<()> {
        self.none("remove a file")
    }
    fn reserve(&self, _: u64) -> Result<()> {
        Ok(())
    }
    fn release(&self, _: u64) {}
    fn event(&self, _: &str, _: Duration, _: u64) {}
    fn log(&self, _: u32, _: &str) {}
    fn now(&self) -> Duration {
        Duration::ZERO
    }
}

/// Such a host, for an instance whose calls nobody looks at.
pub fn host() -> HostRef {
    Arc::new(Quiet::default())
}
