//! One plugin's view of the storage: the files of one directory, and a host that can be taken away.

use crate::budget::Budget;
use crate::fault::no_file;
use crate::lock::LOCK_NAME;
use crate::meter::lock;
use crate::service::{OpenHow, Storage};
use kvern_contract::{Error, ErrorKind, FileId, FileRead, FileWrite, Host, Open, Result};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// Where a plugin's events and log lines go.
pub trait HostSink: Send + Sync {
    /// `name` took `took` and moved `bytes` bytes.
    fn event(&self, name: &str, took: Duration, bytes: u64);
    /// A line for the log; level 1 error to 5 trace.
    fn log(&self, level: u32, line: &str);
}

/// A sink that forgets.
pub struct NoSink;
impl HostSink for NoSink {
    fn event(&self, _: &str, _: Duration, _: u64) {}
    fn log(&self, _: u32, _: &str) {}
}

/// A file of the root. A closed one stays open in the storage until the host drops, because an `At`
/// that the plugin returned before may still be read.
struct RootFile {
    name: String,
    how: Open,
    closed: bool,
}

#[derive(Default)]
struct State {
    revoked: bool,
    /// Calls that are inside the storage now.
    inside: u32,
    files: BTreeMap<FileId, RootFile>,
    /// Names that are being opened to write; the lock is not held meanwhile, or `revoke` would wait
    /// for a drive.
    opening: Vec<String>,
    reserved: u64,
}

/// The contract's [`Host`] over one directory. File ids are the storage's own, so the engine reads
/// an `At` with `Storage::read_batch` and the id that the plugin gave.
///
/// Names are one path component; `lock`, and names that begin with a dot, are the host's. Another
/// `open` to write of a name that is open to write is Busy.
pub struct RootHost {
    storage: Arc<dyn Storage>,
    root: PathBuf,
    holder: String,
    budget: Arc<Budget>,
    sink: Arc<dyn HostSink>,
    state: Mutex<State>,
    left: Condvar,
}
impl RootHost {
    /// A host for the plugin whose files are under `root`. Touches nothing yet. Reservations are
    /// held in `budget` under the root's own name.
    pub fn new(
        storage: Arc<dyn Storage>,
        root: PathBuf,
        budget: Arc<Budget>,
        sink: Arc<dyn HostSink>,
    ) -> Arc<Self> {
        let name = root.file_name().map(|name| name.to_string_lossy().into_owned());
        let holder = name.unwrap_or_else(|| root.display().to_string());
        Arc::new(RootHost {
            storage,
            root,
            holder,
            budget,
            sink,
            state: Mutex::default(),
            left: Condvar::new(),
        })
    }

    /// Takes the host away: every later call answers Timeout and does nothing. Calls that are
    /// inside the storage finish; before the root is opened anew, [`RootHost::quiet`] must say that
    /// there are none.
    pub fn revoke(&self) {
        lock(&self.state).revoked = true;
    }

    /// Waits until no call is inside the storage, at most `within`; whether that came true.
    pub fn quiet(&self, within: Duration) -> bool {
        let until = Instant::now().checked_add(within);
        let mut state = lock(&self.state);
        while state.inside > 0 {
            let rest = until.map_or(Duration::from_secs(3600), |until| {
                until.saturating_duration_since(Instant::now())
            });
            if rest.is_zero() {
                return false;
            }
            let waited = self.left.wait_timeout(state, rest);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// The storage's id of a file that this host gave to its plugin, closed since or not: what the
    /// engine asks before it reads an `At`. *Errors* NotFound: the id names no file of this root.
    pub fn file_of(&self, file: FileId) -> Result<FileId> {
        match lock(&self.state).files.contains_key(&file) {
            true => Ok(file),
            false => Err(no_file("root/file", file)),
        }
    }

    /// The directory.
    pub fn root(&self) -> &std::path::Path {
        &self.root
    }

    /// Runs a call inside the storage, unless the host was taken away.
    fn inside<T>(&self, operation: &str, call: impl FnOnce() -> Result<T>) -> Result<T> {
        {
            let mut state = lock(&self.state);
            if state.revoked {
                return Err(given_up(operation));
            }
            state.inside += 1;
        }
        // Leaves on unwinding too, or `quiet` would wait for ever.
        struct Leave<'a>(&'a RootHost);
        impl Drop for Leave<'_> {
            fn drop(&mut self) {
                lock(&self.0.state).inside -= 1;
                self.0.left.notify_all();
            }
        }
        let _leave = Leave(self);
        call()
    }

    fn path(&self, operation: &str, name: &str) -> Result<PathBuf> {
        let own = name == LOCK_NAME || name.starts_with('.');
        if name.is_empty() || own || name.contains(['/', '\\', '\0']) || name.len() > 200 {
            let text = format!(
                "{name:?} is no name for a file of a root: one path component of 1 to 200 \
                 bytes, no leading dot, not `{LOCK_NAME}`"
            );
            return Err(Error::new(ErrorKind::Invalid, operation, text));
        }
        Ok(self.root.join(name))
    }

    /// Whether the plugin has this id open.
    fn is_open(&self, file: FileId) -> bool {
        lock(&self.state).files.get(&file).is_some_and(|file| !file.closed)
    }

    fn must_be_open(&self, operation: &str, file: FileId) -> Result<()> {
        if self.is_open(file) { Ok(()) } else { Err(no_file(operation, file)) }
    }
}

fn given_up(operation: &str) -> Error {
    Error::new(ErrorKind::Timeout, operation, "the host gave this instance up; nothing was done")
}

impl Host for RootHost {
    fn open(&self, name: &str, how: Open) -> Result<FileId> {
        self.inside("host/open", || {
            let path = self.path("host/open", name)?;
            if how == Open::Write {
                let mut state = lock(&self.state);
                let taken =
                    |file: &RootFile| !file.closed && file.name == name && file.how == Open::Write;
                if state.opening.iter().any(|other| other == name)
                    || state.files.values().any(taken)
                {
                    let text = format!("{name} is open to write already; close it first");
                    return Err(Error::new(ErrorKind::Busy, "host/open", text));
                }
                state.opening.push(name.to_owned());
            }
            let way = if how == Open::Write { OpenHow::Write } else { OpenHow::Read };
            let opened = self.storage.open(&path, way);
            let mut state = lock(&self.state);
            if how == Open::Write {
                state.opening.retain(|other| other != name);
            }
            let file = opened?;
            state.files.insert(file, RootFile { name: name.to_owned(), how, closed: false });
            Ok(file)
        })
    }
    fn close(&self, file: FileId) {
        if let Some(file) = lock(&self.state).files.get_mut(&file) {
            file.closed = true;
        }
    }
    fn list(&self) -> Result<Vec<(String, u64)>> {
        self.inside("host/list", || match self.storage.list(&self.root) {
            Err(error) if error.kind == ErrorKind::NotFound => Ok(Vec::new()),
            other => {
                let mut files = other?;
                files.retain(|(name, _)| name != LOCK_NAME && !name.starts_with('.'));
                Ok(files)
            }
        })
    }
    fn read_batch(&self, reads: &mut [FileRead<'_>], within: Duration) -> Result<()> {
        let error = given_up("host/read");
        reads.iter_mut().for_each(|read| read.done = Err(error.clone()));
        self.inside("host/read", || {
            if let Some(read) = reads.iter().find(|read| !self.is_open(read.file)) {
                let error = no_file("host/read", read.file);
                reads.iter_mut().for_each(|read| read.done = Err(error.clone()));
                return Err(error);
            }
            self.storage.read_batch(reads, within)
        })
    }
    fn write_batch(&self, writes: &[FileWrite<'_>], within: Duration) -> Result<()> {
        self.inside("host/write", || {
            for write in writes {
                self.must_be_open("host/write", write.file)?;
            }
            self.storage.write_batch(writes, within)
        })
    }
    fn sync(&self, files: &[FileId]) -> Result<()> {
        self.inside("host/sync", || {
            for &file in files {
                self.must_be_open("host/sync", file)?;
            }
            self.storage.sync(files)
        })
    }
    fn publish(&self, name: &str, bytes: &[u8]) -> Result<()> {
        self.inside("host/publish", || {
            self.storage.publish(&self.path("host/publish", name)?, bytes)
        })
    }
    fn truncate(&self, file: FileId, bytes: u64) -> Result<()> {
        self.inside("host/truncate", || {
            self.must_be_open("host/truncate", file)?;
            self.storage.truncate(file, bytes)
        })
    }
    fn remove(&self, name: &str) -> Result<()> {
        self.inside("host/remove", || self.storage.remove(&self.path("host/remove", name)?))
    }
    fn reserve(&self, bytes: u64) -> Result<()> {
        self.inside("host/reserve", || {
            self.budget.reserve(&self.holder, bytes)?;
            lock(&self.state).reserved += bytes;
            Ok(())
        })
    }
    fn release(&self, bytes: u64) {
        let mut state = lock(&self.state);
        if !state.revoked {
            let back = bytes.min(state.reserved);
            state.reserved -= back;
            self.budget.release(&self.holder, back);
        }
    }
    fn event(&self, name: &str, took: Duration, bytes: u64) {
        if !lock(&self.state).revoked {
            self.sink.event(name, took, bytes);
        }
    }
    fn log(&self, level: u32, line: &str) {
        if !lock(&self.state).revoked {
            self.sink.log(level, line);
        }
    }
    fn now(&self) -> Duration {
        static START: OnceLock<Instant> = OnceLock::new();
        START.get_or_init(Instant::now).elapsed()
    }
}
impl Drop for RootHost {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        for &file in state.files.keys() {
            self.storage.close(file);
        }
        self.budget.release(&self.holder, state.reserved);
    }
}
