//! A host that nobody should ask anything.

use kvern_contract::*;
use std::sync::Arc;
use std::time::Duration;

struct NoHost;

impl Host for NoHost {
    fn open(&self, name: &str, _: Open) -> Result<FileId> {
        Err(Error::new(ErrorKind::NotFound, "host/open", name))
    }
    fn close(&self, _: FileId) {}
    fn list(&self) -> Result<Vec<(String, u64)>> {
        Ok(Vec::new())
    }
    fn read_batch(&self, reads: &mut [FileRead<'_>], _: Duration) -> Result<()> {
        for read in reads {
            read.done = Err(Error::new(ErrorKind::NotFound, "host/read_batch", "no such file"));
        }
        Ok(())
    }
    fn write_batch(&self, _: &[FileWrite<'_>], _: Duration) -> Result<()> {
        Err(Error::new(ErrorKind::OutOfSpace, "host/write_batch", "a device has no files"))
    }
    fn sync(&self, _: &[FileId]) -> Result<()> {
        Ok(())
    }
    fn publish(&self, _: &str, _: &[u8]) -> Result<()> {
        Err(Error::new(ErrorKind::OutOfSpace, "host/publish", "a device has no files"))
    }
    fn truncate(&self, _: FileId, _: u64) -> Result<()> {
        Ok(())
    }
    fn remove(&self, name: &str) -> Result<()> {
        Err(Error::new(ErrorKind::NotFound, "host/remove", name))
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

/// A host without files, whose log nobody reads.
pub fn host() -> HostRef {
    Arc::new(NoHost)
}
