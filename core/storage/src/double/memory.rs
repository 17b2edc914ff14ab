//! A drive in memory with a switch: until a sync, a power cut leaves any sectors of what was
//! written.

use super::disk::{Change, Disk, Handle, Inode, size};
use super::fills::one_by_one;
use super::random::Random;
use crate::fill::{Fill, Filling, Priority};
use crate::meter::lock;
use crate::region::Region;
use crate::service::{Counters, FileFacts, OpenHow, Storage};
use kvern_contract::{Error, ErrorKind, FileId, FileRead, FileWrite, Result};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A drive in memory. Deadlines always hold: nothing here waits.
///
/// Each change to the drive is an event: a name created or removed, a write, a file synced, a
/// truncation, and three for a publish. [`MemoryStorage::fail_at`] takes the power at one of them:
/// that change may or may not have reached the drive, and every call fails until
/// [`MemoryStorage::cut`] chooses what is left.
#[derive(Default)]
pub struct MemoryStorage {
    disk: Mutex<Disk>,
    number: u64,
    /// What fills of files that are opened `Direct` must be rounded to; 0: there are none.
    align: u64,
}
impl MemoryStorage {
    /// An empty drive.
    pub fn new() -> Arc<Self> {
        Self::direct(0)
    }
    /// An empty drive that takes direct reads as strictly as drives do: offset, address and end of
    /// each fill are multiples of `align` (or the end is the file's), or it is Invalid. Urgent
    /// fills, which are rows and pages of any length, are copied instead, and counted.
    pub fn direct(align: u64) -> Arc<Self> {
        static DRIVES: AtomicU64 = AtomicU64::new(1);
        let number = DRIVES.fetch_add(1, Ordering::Relaxed);
        Arc::new(MemoryStorage { number, align, ..MemoryStorage::default() })
    }
    /// A number that no other drive has that [`MemoryStorage::new`] makes in this process.
    pub fn number(&self) -> u64 {
        self.number
    }
    /// Changes to the drive so far.
    pub fn events(&self) -> u64 {
        lock(&self.disk).events
    }
    /// Takes the power at the event with this number (counted from 0 over the drive's life).
    pub fn fail_at(&self, event: u64) {
        lock(&self.disk).fail_at = Some(event);
    }
    /// Lets the sync at the event with this number fail as systems do: what was pending in that
    /// file never reaches the drive, though readers go on seeing it until the power is cut.
    pub fn fail_sync_at(&self, event: u64) {
        lock(&self.disk).fail_sync_at = Some(event);
    }
    /// Whether the power went.
    pub fn is_off(&self) -> bool {
        lock(&self.disk).off
    }
    /// Cuts the power and switches it on again: of what was not synced, `seed` chooses which
    /// sectors, lengths and names are left. Every open file is gone.
    pub fn cut(&self, seed: u64) {
        let mut random = Random::new(seed);
        let disk = &mut *lock(&self.disk);
        let mut names = disk.durable_names.clone();
        let changed: Vec<PathBuf> = {
            let all = disk.names.keys().chain(disk.durable_names.keys());
            let differs = |path: &&PathBuf| disk.names.get(*path) != disk.durable_names.get(*path);
            all.filter(differs).cloned().collect()
        };
        for path in changed {
            if random.one_in(2) {
                match disk.names.get(&path) {
                    Some(&inode) => names.insert(path, inode),
                    None => names.remove(&path),
                };
            }
        }
        let mut inodes = HashMap::new();
        for inode in names.values() {
            if let Some(old) = disk.inodes.get(inode) {
                let bytes = old.survive(&mut random);
                let live = bytes.clone();
                let new = Inode { live, durable: bytes, ..Inode::default() };
                inodes.insert(*inode, new);
            }
        }
        disk.inodes = inodes;
        disk.durable_names.clone_from(&names);
        disk.names = names;
        disk.handles.clear();
        disk.memory.clear();
        disk.off = false;
        disk.fail_at = None;
    }
    /// What a reader sees of a file now.
    pub fn contents(&self, path: &Path) -> Option<Vec<u8>> {
        let disk = lock(&self.disk);
        Some(disk.inodes.get(disk.names.get(path)?)?.live.clone())
    }
    /// Changes a file behind everybody's back, durably: rot, or another program.
    pub fn tamper(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let mut disk = lock(&self.disk);
        if let Some(&inode) = disk.names.get(path) {
            let inode = disk.inode(inode);
            change(&mut inode.live);
            inode.durable.clone_from(&inode.live);
            inode.pending.clear();
            inode.changes += 1;
        }
    }
    fn name(&self, file: FileId) -> Arc<str> {
        let disk = lock(&self.disk);
        let path = disk.handles.get(&file).map(|handle| handle.path.display().to_string());
        path.or_else(|| Some(disk.memory.get(&file)?.0.clone())).unwrap_or_default().into()
    }
}

impl Storage for MemoryStorage {
    fn open(&self, path: &Path, how: OpenHow) -> Result<FileId> {
        let mut disk = lock(&self.disk);
        disk.powered()?;
        let inode = match (disk.names.get(path), how) {
            (Some(&inode), _) => inode,
            (None, OpenHow::Write) => {
                let inode = disk.create(path);
                if disk.event() {
                    disk.powered()?;
                }
                inode
            }
            (None, OpenHow::Read | OpenHow::Direct | OpenHow::Passing) => {
                let text = format!("{}: no such file", path.display());
                return Err(Error::new(ErrorKind::NotFound, "storage/open", text));
            }
        };
        let writable = how == OpenHow::Write;
        let align = if how == OpenHow::Direct { self.align.max(1) } else { 1 };
        let born = disk.inodes.get(&inode).map(Inode::age).filter(|_| !writable);
        Ok(disk.add(Handle { inode, path: path.to_owned(), writable, align, born }))
    }
    fn open_memory(&self, name: &str, bytes: &'static [u8]) -> Result<FileId> {
        let mut disk = lock(&self.disk);
        disk.next_file += 1;
        let file = FileId(disk.next_file);
        disk.memory.insert(file, (name.to_owned(), bytes));
        Ok(file)
    }
    fn close(&self, file: FileId) {
        let mut disk = lock(&self.disk);
        disk.handles.remove(&file);
        disk.memory.remove(&file);
    }
    fn bytes(&self, file: FileId) -> Result<u64> {
        let disk = lock(&self.disk);
        disk.powered()?;
        if let Some((_, bytes)) = disk.memory.get(&file) {
            return Ok(bytes.len() as u64);
        }
        let handle = disk.handle("storage/bytes", file)?;
        Ok(disk.inodes.get(&handle.inode).map_or(0, |inode| inode.live.len() as u64))
    }
    fn facts(&self, file: FileId) -> Result<FileFacts> {
        self.bytes(file)?;
        Ok(lock(&self.disk).facts(file))
    }
    fn unchanged(&self, file: FileId) -> Result<()> {
        let disk = lock(&self.disk);
        disk.powered()?;
        disk.unchanged(file)
    }
    fn register(&self, _: &Arc<Region>) {}
    fn fill(&self, fills: Vec<Fill>, priority: Priority) -> Filling {
        one_by_one(
            fills,
            |file| self.name(file),
            |fill, ticket| {
                let Fill { file, offset, mut into } = fill;
                let (bytes, mut disk) = (into.len() as u64, lock(&self.disk));
                let rounded = disk.rounded(file, offset, into.span());
                let direct = disk.facts(file).direct;
                let mut read = FileRead { file, offset, into: &mut into, done: Ok(()) };
                let done = match (rounded, disk.powered()) {
                    (_, Err(off)) => Err(off),
                    (Err(error), _) if priority != Priority::Urgent => Err(error),
                    (rounded, _) => disk.read(&mut read).inspect(|()| match (direct, rounded) {
                        (true, Ok(())) => disk.counters.direct_bytes += bytes,
                        (true, Err(_)) => disk.counters.copied_bytes += bytes,
                        (false, _) => {}
                    }),
                };
                drop(disk);
                ticket.answer(done.map(|()| into));
            },
        )
    }
    fn list(&self, dir: &Path) -> Result<Vec<(String, u64)>> {
        let disk = lock(&self.disk);
        disk.powered()?;
        let here = disk.names.iter().filter(|(path, _)| path.parent() == Some(dir));
        let list = here.filter_map(|(path, inode)| {
            let name = path.file_name()?.to_str()?.to_owned();
            Some((name, disk.inodes.get(inode)?.live.len() as u64))
        });
        Ok(list.collect())
    }
    fn read_batch(&self, reads: &mut [FileRead<'_>], _within: Duration) -> Result<()> {
        let mut disk = lock(&self.disk);
        let mut first = Ok(());
        for read in reads {
            read.done = match disk.powered() {
                Ok(()) => disk.read(read),
                off => off,
            };
            first = first.and(read.done.clone());
        }
        first
    }
    fn write_batch(&self, writes: &[FileWrite<'_>], _within: Duration) -> Result<()> {
        let mut disk = lock(&self.disk);
        for write in writes {
            disk.powered()?;
            let inode = disk.writable("storage/write", write.file)?;
            let offset = size(write.offset, write.bytes.len())?;
            disk.inode(inode).change(Change::Write { offset, bytes: write.bytes.to_vec() });
            disk.counters.writes += 1;
            disk.counters.bytes_written += write.bytes.len() as u64;
            disk.event();
        }
        disk.powered()
    }
    fn sync(&self, files: &[FileId]) -> Result<()> {
        let mut disk = lock(&self.disk);
        for &file in files {
            disk.powered()?;
            let handle = disk.handle("storage/sync", file)?;
            let (inode, dir) = (handle.inode, handle.path.parent().map(Path::to_owned));
            let fails = disk.fail_sync_at == Some(disk.events);
            if disk.event() {
                return disk.powered();
            }
            if fails {
                disk.inode(inode).pending.clear();
                let text = "input/output error (injected)";
                return Err(Error::new(ErrorKind::Io, "storage/sync", text));
            }
            disk.inode(inode).settle();
            if std::mem::take(&mut disk.inode(inode).name_is_new) {
                disk.sync_names(dir.as_deref());
            }
            disk.counters.syncs += 1;
        }
        Ok(())
    }
    fn publish(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        let mut disk = lock(&self.disk);
        disk.powered()?;
        // The bytes go to a name that no reader looks at, and are synced there.
        if disk.event() {
            return disk.powered();
        }
        let old = disk.names.get(path).copied();
        let inode = disk.create(path);
        let new = disk.inode(inode);
        new.live = bytes.to_vec();
        new.durable = bytes.to_vec();
        new.name_is_new = false;
        disk.counters.writes += 1;
        disk.counters.bytes_written += bytes.len() as u64;
        // The rename: in memory now, on the drive with the directory's sync.
        if disk.event() {
            return disk.powered();
        }
        if disk.event() {
            return disk.powered();
        }
        let dir = path.parent().map(Path::to_owned);
        disk.sync_names(dir.as_deref());
        disk.counters.syncs += 2;
        if let Some(old) = old
            && !disk.handles.values().any(|handle| handle.inode == old)
        {
            disk.inodes.remove(&old);
        }
        Ok(())
    }
    fn truncate(&self, file: FileId, bytes: u64) -> Result<()> {
        let mut disk = lock(&self.disk);
        disk.powered()?;
        let inode = disk.writable("storage/truncate", file)?;
        let length = size(bytes, 0)?;
        disk.inode(inode).change(Change::Length(length));
        disk.event();
        disk.powered()
    }
    fn remove(&self, path: &Path) -> Result<()> {
        let mut disk = lock(&self.disk);
        disk.powered()?;
        if disk.names.remove(path).is_none() {
            let text = format!("{}: no such file", path.display());
            return Err(Error::new(ErrorKind::NotFound, "storage/remove", text));
        }
        disk.event();
        disk.powered()
    }
    fn counters(&self) -> Counters {
        lock(&self.disk).counters
    }
    fn path_kind(&self) -> &'static str {
        "memory-double"
    }
}
