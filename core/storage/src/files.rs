//! Open files by id, and the slow calls on them: open, sync, publish, list.

use crate::born::Born;
use crate::fault::{at_path, ends_early, failed_twice, no_directory, read_only};
use crate::mapped::Mapped;
use crate::meter::Meter;
use crate::service::{FileFacts, OpenHow};
use kvern_contract::{Error, ErrorKind, FileId, Result};
use rustix::fs::{Advice, fadvise};
use std::collections::HashMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock};

/// Where a file's bytes are.
enum Body {
    Disk(File),
    Memory(&'static [u8]),
    /// Never answers until it is let go.
    #[cfg(test)]
    Stuck(Arc<Gate>),
}

/// Holds reads until a test opens it.
#[cfg(test)]
#[derive(Default)]
pub(crate) struct Gate {
    pub(crate) open: AtomicBool,
    pub(crate) entered: AtomicU32,
    pub(crate) left: AtomicU32,
}

/// What offset, address and length of a direct read are multiples of: at least what drives and file
/// systems ask for.
pub(crate) const DIRECT_ALIGN: u64 = 4096;

/// By which descriptor bytes come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Way {
    /// Through the page cache.
    Cached,
    /// Round it. *Caller*: all three are aligned, and the file is direct.
    Direct,
    /// Through it, a huge page at a time, which does not stay. *Caller*: on a thread that may wait.
    Mapped,
}

/// One open file. Operations under way hold it, so that closing an id never pulls it from under
/// them.
pub(crate) struct OpenFile {
    body: Body,
    /// The same file without the page cache.
    direct: Option<File>,
    /// Why there is none, where one was asked for.
    refused: Option<String>,
    /// Its mapping, where bytes pass through the page cache.
    mapped: Option<Mapped>,
    born: Option<Born>,
    path: PathBuf,
    /// The path as messages spell it.
    name: Arc<str>,
    writable: bool,
    /// How many of the system's next answers to a read count as a failure of the drive.
    #[cfg(test)]
    pub(crate) failing: AtomicU32,
    /// The name is not known to be durable: the directory is synced with the file's first sync.
    name_is_new: AtomicBool,
    /// A sync failed: the kernel may have dropped the dirty pages, so a later sync would lie.
    lost: AtomicBool,
}
impl OpenFile {
    /// Opens a path.
    pub(crate) fn open(path: &Path, how: OpenHow) -> Result<Self> {
        let writable = how == OpenHow::Write;
        let mut options = OpenOptions::new();
        options.read(true).write(writable).mode(0o600);
        let mut name_is_new = false;
        let file = match options.open(path) {
            Err(error) if writable && error.kind() == io::ErrorKind::NotFound => {
                if let Some(dir) = path.parent() {
                    make_directories("storage/open", dir)?;
                }
                name_is_new = true;
                options.create(true).open(path)
            }
            other => other,
        };
        let file = file.map_err(|error| at_path("storage/open", path, &error))?;
        let facts = file.metadata().map_err(|error| at_path("storage/open", path, &error))?;
        if !facts.is_file() {
            let text = format!("{} is not a regular file", path.display());
            return Err(Error::new(ErrorKind::Io, "storage/open", text));
        }
        let (mut direct, mut refused) = (None, None);
        if how == OpenHow::Direct {
            match open_direct(path) {
                Ok(file) => direct = Some(file),
                Err(error) => refused = Some(format!("O_DIRECT refused: {error}")),
            }
        }
        if direct.is_some() {
            // What is not aligned comes through the page cache, a few pages at a time: to read
            // ahead of them would be a waste. Elsewhere the kernel reads ahead, and so takes large
            // pages: several small ones cost more than half of the speed. Advice may be refused.
            let _ = fadvise(&file, 0, None, Advice::Random);
        }
        let passes = refused.is_some() || how == OpenHow::Passing;
        let mapped = if passes { Mapped::of(&file) } else { None };
        Ok(OpenFile {
            body: Body::Disk(file),
            direct,
            refused,
            mapped,
            born: (!writable).then(|| Born::of(&facts)),
            path: path.to_owned(),
            name: path.display().to_string().into(),
            writable,
            #[cfg(test)]
            failing: AtomicU32::new(0),
            name_is_new: AtomicBool::new(name_is_new),
            lost: AtomicBool::new(false),
        })
    }

    /// A file whose bytes are in memory.
    pub(crate) fn memory(name: &str, bytes: &'static [u8]) -> Self {
        Self::of(Body::Memory(bytes), name)
    }

    /// A file whose reads wait for the gate.
    #[cfg(test)]
    pub(crate) fn stuck(gate: Arc<Gate>) -> Self {
        Self::of(Body::Stuck(gate), "stuck")
    }

    /// A file by its descriptor.
    #[cfg(test)]
    pub(crate) fn of_file(file: File, name: &str) -> Self {
        Self::of(Body::Disk(file), name)
    }

    fn of(body: Body, name: &str) -> Self {
        OpenFile {
            body,
            direct: None,
            refused: None,
            mapped: None,
            born: None,
            path: PathBuf::from(name),
            name: name.into(),
            writable: false,
            #[cfg(test)]
            failing: AtomicU32::new(0),
            name_is_new: AtomicBool::new(false),
            lost: AtomicBool::new(false),
        }
    }

    /// Whether no drive takes part.
    pub(crate) fn is_memory(&self) -> bool {
        matches!(self.body, Body::Memory(_))
    }

    /// Whether long fills come by mapped huge pages.
    pub(crate) fn is_mapped(&self) -> bool {
        self.mapped.is_some()
    }

    /// How its bytes are reached.
    pub(crate) fn facts(&self) -> FileFacts {
        FileFacts {
            align: if self.direct.is_some() { DIRECT_ALIGN } else { 1 },
            direct: self.direct.is_some(),
            refused: self.refused.clone(),
            mapped: self.is_mapped(),
        }
    }

    /// The path, for messages.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The same as text.
    pub(crate) fn name(&self) -> Arc<str> {
        self.name.clone()
    }

    /// What the system answered to a read: bytes that came.
    #[cfg(not(test))]
    pub(crate) fn answer(&self, answer: io::Result<usize>) -> io::Result<usize> {
        answer
    }

    /// The same, or a failure where a test wants one.
    #[cfg(test)]
    pub(crate) fn answer(&self, answer: io::Result<usize>) -> io::Result<usize> {
        let fails = self.failing.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok();
        if fails { Err(io::Error::from_raw_os_error(libc::EIO)) } else { answer }
    }

    /// The descriptor of a way; `None` where no drive takes part.
    pub(crate) fn descriptor(&self, way: Way) -> Option<RawFd> {
        match (&self.body, way, &self.direct) {
            (Body::Disk(_), Way::Direct, Some(file)) => Some(file.as_raw_fd()),
            (Body::Disk(file), ..) => Some(file.as_raw_fd()),
            _ => None,
        }
    }

    /// Whether the file, under its name, still is what was opened.
    pub(crate) fn unchanged(&self) -> Result<()> {
        let (Body::Disk(file), Some(born)) = (&self.body, self.born) else { return Ok(()) };
        let here = |error: io::Error| at_path("storage/unchanged", &self.path, &error);
        let now = Born::of(&file.metadata().map_err(here)?);
        let named = Born::of(&fs::metadata(&self.path).map_err(here)?);
        let Some(what) = born.became(now, named) else { return Ok(()) };
        let text = format!("{} {what} while it was open; start again", self.path.display());
        Err(Error::new(ErrorKind::Damaged, "storage/unchanged", text))
    }

    /// Length in bytes.
    pub(crate) fn bytes(&self) -> Result<u64> {
        match &self.body {
            Body::Disk(file) => {
                let facts = file.metadata();
                Ok(facts.map_err(|error| at_path("storage/bytes", &self.path, &error))?.len())
            }
            Body::Memory(bytes) => Ok(bytes.len() as u64),
            #[cfg(test)]
            Body::Stuck(_) => Ok(u64::MAX),
        }
    }

    /// Fills `into` from `offset`, or says why not.
    pub(crate) fn read(&self, meter: &Meter, offset: u64, into: &mut [u8]) -> Result<()> {
        self.read_by(Way::Cached, meter, offset, into)
    }

    /// The same by one way; tried once more where the drive fails.
    pub(crate) fn read_by(
        &self,
        way: Way,
        meter: &Meter,
        offset: u64,
        into: &mut [u8],
    ) -> Result<()> {
        let asked = into.len() as u64;
        let early = |got| Err(ends_early(&self.name, offset, asked, got));
        match &self.body {
            Body::Disk(cached) => {
                let direct = self.direct.as_ref().filter(|_| way == Way::Direct);
                let file = direct.unwrap_or(cached);
                let (mut got, mut tried) = (0, false);
                if let Some(mapped) = self.mapped.as_ref().filter(|_| way == Way::Mapped) {
                    let read = || self.answer(mapped.read(cached, offset, into));
                    match meter.read.run(read) {
                        Ok(moved) => {
                            got = moved;
                            meter.mapped_bytes.fetch_add(moved as u64, Relaxed);
                        }
                        // A plain read is the second try, and says what is wrong.
                        Err(_) => {
                            tried = true;
                            meter.retries.fetch_add(1, Relaxed);
                        }
                    }
                }
                while got < into.len() {
                    let at = offset.saturating_add(got as u64);
                    let rest = &mut into[got..];
                    match meter.read.run(|| self.answer(file.read_at(rest, at))) {
                        Ok(0) => return early(got as u64),
                        Ok(moved) => {
                            got += moved;
                            if direct.is_some() {
                                meter.direct_bytes.fetch_add(moved as u64, Relaxed);
                            }
                        }
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                        Err(_) if !tried => {
                            tried = true;
                            meter.retries.fetch_add(1, Relaxed);
                        }
                        Err(error) => return Err(failed_twice(&self.path, at, &error)),
                    }
                }
                Ok(())
            }
            Body::Memory(bytes) => {
                let from = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
                let there = &bytes[from..];
                if there.len() < into.len() {
                    return early(there.len() as u64);
                }
                into.copy_from_slice(&there[..into.len()]);
                meter.memory_bytes.fetch_add(asked, Relaxed);
                Ok(())
            }
            #[cfg(test)]
            Body::Stuck(gate) => {
                gate.entered.fetch_add(1, Relaxed);
                while !gate.open.load(Relaxed) {
                    std::thread::yield_now();
                }
                into.fill(0xaa);
                gate.left.fetch_add(1, Relaxed);
                Ok(())
            }
        }
    }

    /// Writes all of `bytes` at `offset`.
    pub(crate) fn write(&self, meter: &Meter, offset: u64, bytes: &[u8]) -> Result<()> {
        let file = self.writable_file("storage/write")?;
        let mut put = 0;
        while put < bytes.len() {
            let at = offset.saturating_add(put as u64);
            match meter.write.run(|| file.write_at(&bytes[put..], at)) {
                Ok(0) => {
                    let error = io::Error::from(io::ErrorKind::WriteZero);
                    return Err(at_path("storage/write", &self.path, &error));
                }
                Ok(moved) => put += moved,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(at_path("storage/write", &self.path, &error)),
            }
        }
        Ok(())
    }

    /// Cuts or extends the file.
    pub(crate) fn truncate(&self, bytes: u64) -> Result<()> {
        let file = self.writable_file("storage/truncate")?;
        file.set_len(bytes).map_err(|error| at_path("storage/truncate", &self.path, &error))
    }

    /// Makes bytes, length and, once, the name durable.
    pub(crate) fn sync(&self, meter: &Meter) -> Result<()> {
        let Body::Disk(file) = &self.body else { return Ok(()) };
        if self.lost.load(Relaxed) {
            let text = format!(
                "{}: a sync failed before, so what it held back may be lost; open the root anew",
                self.path.display()
            );
            return Err(Error::new(ErrorKind::Io, "storage/sync", text));
        }
        let synced = file.sync_data().and_then(|()| {
            meter.syncs.fetch_add(1, Relaxed);
            if self.name_is_new.load(Relaxed) {
                sync_directory_of(&self.path, meter)?;
                self.name_is_new.store(false, Relaxed);
            }
            Ok(())
        });
        synced.map_err(|error| {
            self.lost.store(true, Relaxed);
            let mut out = at_path("storage/sync", &self.path, &error);
            out.kind = if out.kind == ErrorKind::OutOfSpace { out.kind } else { ErrorKind::Io };
            out
        })
    }

    fn writable_file(&self, operation: &str) -> Result<&File> {
        match &self.body {
            Body::Disk(file) if self.writable => Ok(file),
            _ => Err(read_only(operation, &self.path.display().to_string())),
        }
    }
}

/// Opens a file without the page cache, and reads a block: some file systems accept the one and
/// refuse the other.
fn open_direct(path: &Path) -> io::Result<File> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::RDONLY | OFlags::DIRECT | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    let block = DIRECT_ALIGN as usize;
    let mut room = vec![0; 2 * block];
    let skip = room.as_ptr().align_offset(block);
    let aligned = room.get_mut(skip..skip.saturating_add(block));
    let aligned = aligned.ok_or_else(|| io::Error::other("no aligned memory"))?;
    file.read_at(aligned, 0)?;
    Ok(file)
}

/// Files by id. Ids are never used twice.
pub(crate) struct FileTable {
    open: RwLock<HashMap<FileId, Arc<OpenFile>>>,
    next: AtomicU32,
}
impl FileTable {
    pub(crate) fn new() -> Self {
        FileTable { open: RwLock::new(HashMap::new()), next: AtomicU32::new(1) }
    }
    pub(crate) fn add(&self, file: OpenFile) -> FileId {
        let id = FileId(self.next.fetch_add(1, Relaxed));
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        open.insert(id, Arc::new(file));
        id
    }
    pub(crate) fn get(&self, id: FileId) -> Option<Arc<OpenFile>> {
        self.open.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }
    pub(crate) fn close(&self, id: FileId) {
        self.open.write().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }
}

/// Creates a directory and its parents, mode 0700, and makes their names durable.
pub(crate) fn make_directories(operation: &str, dir: &Path) -> Result<()> {
    let mut missing = Vec::new();
    let mut at = Some(dir);
    while let Some(here) = at {
        if here.as_os_str().is_empty() || here.is_dir() {
            break;
        }
        missing.push(here);
        at = here.parent();
    }
    for here in missing.iter().rev() {
        match DirBuilder::new().mode(0o700).create(here) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && here.is_dir() => {}
            other => other.map_err(|error| no_directory(operation, dir, &error))?,
        }
        // Best effort: some file systems refuse to sync a directory, and an empty one promises
        // nothing yet.
        let _ = sync_directory_of(here, &Meter::default());
    }
    Ok(())
}

/// Syncs the directory that holds `path`.
fn sync_directory_of(path: &Path, meter: &Meter) -> io::Result<()> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(dir)?.sync_all()?;
    meter.syncs.fetch_add(1, Relaxed);
    Ok(())
}

/// Writes `bytes` beside `path`, syncs, renames over `path`, syncs the directory.
pub(crate) fn publish(path: &Path, bytes: &[u8], meter: &Meter) -> Result<()> {
    let name = path.file_name().ok_or_else(|| {
        let text = format!("{} names no file", path.display());
        Error::new(ErrorKind::Invalid, "storage/publish", text)
    })?;
    if let Some(dir) = path.parent() {
        make_directories("storage/publish", dir)?;
    }
    static TURN: AtomicU32 = AtomicU32::new(0);
    let turn = TURN.fetch_add(1, Relaxed);
    let mut beside = std::ffi::OsString::from(".");
    beside.push(name);
    beside.push(format!(".{}-{turn}", std::process::id()));
    let beside = path.with_file_name(beside);
    let done = (|| {
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
        meter.write.run(|| file.write_all(bytes).map(|()| bytes.len()))?;
        file.sync_all()?;
        meter.syncs.fetch_add(1, Relaxed);
        fs::rename(&beside, path)?;
        sync_directory_of(path, meter)
    })();
    done.map_err(|error: io::Error| {
        // The rename may have happened; then there is nothing left to remove.
        let _ = fs::remove_file(&beside);
        at_path("storage/publish", path, &error)
    })
}

/// Regular files of a directory with their lengths, sorted by name; names that are not UTF-8 are
/// not ours.
pub(crate) fn list(dir: &Path) -> Result<Vec<(String, u64)>> {
    let read = || -> io::Result<Vec<(String, u64)>> {
        let mut out = Vec::new();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let facts = match entry.metadata() {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => other?,
            };
            if let (true, Ok(name)) = (facts.is_file(), entry.file_name().into_string()) {
                out.push((name, facts.len()));
            }
        }
        out.sort();
        Ok(out)
    };
    read().map_err(|error| at_path("storage/list", dir, &error))
}
