//! A drive in memory with a switch: until a sync, a power cut leaves any sectors of what was
//! written.

use super::random::Random;
use crate::fault::{ends_early, no_file, read_only};
use crate::fill::{self, Fill, Filling, Priority};
use crate::meter::lock;
use crate::region::Region;
use crate::service::{Counters, FileFacts, OpenHow, Storage};
use kvern_contract::{Error, ErrorKind, FileId, FileRead, FileWrite, Result};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What the drive writes whole.
const SECTOR: usize = 512;

/// A change that no sync has covered.
enum Change {
    Write { offset: usize, bytes: Vec<u8> },
    Length(usize),
}
fn apply(image: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Length(bytes) => image.resize(*bytes, 0),
        Change::Write { offset, bytes } => {
            let end = offset + bytes.len();
            if image.len() < end {
                image.resize(end, 0);
            }
            image[*offset..end].copy_from_slice(bytes);
        }
    }
}

#[derive(Default)]
struct Inode {
    live: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Change>,
    name_is_new: bool,
}
impl Inode {
    fn change(&mut self, change: Change) {
        apply(&mut self.live, &change);
        self.pending.push(change);
    }
    /// A sync: what is pending reaches the drive. (Not all that is seen: see `fail_sync_at`.)
    fn settle(&mut self) {
        for change in std::mem::take(&mut self.pending) {
            apply(&mut self.durable, &change);
        }
    }
    /// What a cut leaves: each sector one of its versions, the length one of its lengths.
    fn survive(&self, random: &mut Random) -> Vec<u8> {
        if self.pending.is_empty() {
            return self.durable.clone();
        }
        // Some cuts lose all, some nothing, most a part.
        let luck = random.below(4);
        let mut running = self.durable.clone();
        let mut lengths = vec![running.len()];
        let mut versions: BTreeMap<usize, Vec<[u8; SECTOR]>> = BTreeMap::new();
        let sector_of = |image: &[u8], sector: usize| {
            let mut out = [0; SECTOR];
            let from = (sector * SECTOR).min(image.len());
            let there = &image[from..(from + SECTOR).min(image.len())];
            out[..there.len()].copy_from_slice(there);
            out
        };
        for change in &self.pending {
            let (first, end) = match change {
                Change::Write { offset, bytes } => (*offset, offset + bytes.len()),
                Change::Length(bytes) => (*bytes, running.len().max(*bytes)),
            };
            let sectors = first / SECTOR..end.div_ceil(SECTOR);
            for sector in sectors.clone() {
                let before = sector_of(&running, sector);
                versions.entry(sector).or_insert_with(|| vec![before]);
            }
            apply(&mut running, change);
            lengths.push(running.len());
            for sector in sectors {
                let after = sector_of(&running, sector);
                if let Some(list) = versions.get_mut(&sector) {
                    list.push(after);
                }
            }
        }
        let pick = |count: usize, random: &mut Random| match luck {
            0 => 0,
            1 => count - 1,
            _ => random.below(count as u64) as usize,
        };
        let mut image = self.durable.clone();
        image.resize(lengths[pick(lengths.len(), random)], 0);
        for (sector, list) in versions {
            let from = (sector * SECTOR).min(image.len());
            let end = (from + SECTOR).min(image.len());
            let chosen = &list[pick(list.len(), random)];
            image[from..end].copy_from_slice(&chosen[..end - from]);
        }
        image
    }
}

struct Handle {
    inode: u64,
    path: PathBuf,
    writable: bool,
}

#[derive(Default)]
struct Disk {
    inodes: HashMap<u64, Inode>,
    names: BTreeMap<PathBuf, u64>,
    durable_names: BTreeMap<PathBuf, u64>,
    handles: HashMap<FileId, Handle>,
    memory: HashMap<FileId, (String, &'static [u8])>,
    next_inode: u64,
    next_file: u32,
    events: u64,
    fail_at: Option<u64>,
    fail_sync_at: Option<u64>,
    off: bool,
    counters: Counters,
}
impl Disk {
    fn powered(&self) -> Result<()> {
        match self.off {
            true => Err(Error::new(ErrorKind::Io, "storage", "the power is off")),
            false => Ok(()),
        }
    }
    /// Counts a change to the drive; whether it is the one at which the power goes.
    fn event(&mut self) -> bool {
        let now = self.fail_at == Some(self.events);
        self.events += 1;
        self.off |= now;
        now
    }
    fn handle(&self, operation: &str, file: FileId) -> Result<&Handle> {
        self.handles.get(&file).ok_or_else(|| no_file(operation, file))
    }
    fn inode(&mut self, inode: u64) -> &mut Inode {
        self.inodes.entry(inode).or_default()
    }
    fn create(&mut self, path: &Path) -> u64 {
        self.next_inode += 1;
        let inode = self.next_inode;
        self.inodes.insert(inode, Inode { name_is_new: true, ..Inode::default() });
        self.names.insert(path.to_owned(), inode);
        inode
    }
    /// Makes the names of one directory durable.
    fn sync_names(&mut self, dir: Option<&Path>) {
        let inside = |path: &Path| path.parent() == dir;
        self.durable_names.retain(|path, _| !inside(path));
        for (path, &inode) in self.names.iter().filter(|(path, _)| inside(path)) {
            self.durable_names.insert(path.clone(), inode);
        }
    }
    fn add(&mut self, handle: Handle) -> FileId {
        self.next_file += 1;
        let file = FileId(self.next_file);
        self.handles.insert(file, handle);
        file
    }
    fn read(&mut self, read: &mut FileRead<'_>) -> Result<()> {
        let (name, bytes): (String, &[u8]) = match self.memory.get(&read.file) {
            Some((name, bytes)) => (name.clone(), bytes),
            None => {
                let handle = self.handle("storage/read", read.file)?;
                let name = handle.path.display().to_string();
                let live = self.inodes.get(&handle.inode).map(|inode| inode.live.as_slice());
                (name, live.unwrap_or_default())
            }
        };
        let from = usize::try_from(read.offset).unwrap_or(usize::MAX).min(bytes.len());
        let there = &bytes[from..];
        let asked = read.into.len();
        if there.len() < asked {
            return Err(ends_early(&name, read.offset, asked as u64, there.len() as u64));
        }
        read.into.copy_from_slice(&there[..asked]);
        self.counters.reads += 1;
        self.counters.bytes_read += asked as u64;
        Ok(())
    }
    fn writable(&self, operation: &str, file: FileId) -> Result<u64> {
        let handle = self.handle(operation, file)?;
        match handle.writable {
            true => Ok(handle.inode),
            false => Err(read_only(operation, &handle.path.display().to_string())),
        }
    }
}

/// An offset that the drive has room for, with `more` bytes behind it.
fn size(offset: u64, more: usize) -> Result<usize> {
    let room = |offset: &usize| offset.saturating_add(more) <= 1 << 32;
    usize::try_from(offset).ok().filter(room).ok_or_else(|| {
        let text = format!("{offset} bytes and {more} more pass the drive's 4 GiB");
        Error::new(ErrorKind::OutOfSpace, "storage/write", text)
    })
}

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
}
impl MemoryStorage {
    /// An empty drive.
    pub fn new() -> Arc<Self> {
        static DRIVES: AtomicU64 = AtomicU64::new(1);
        let number = DRIVES.fetch_add(1, Ordering::Relaxed);
        Arc::new(MemoryStorage { number, ..MemoryStorage::default() })
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
                let new = Inode { live, durable: bytes, pending: Vec::new(), name_is_new: false };
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
        }
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
            (None, OpenHow::Read | OpenHow::Direct) => {
                let text = format!("{}: no such file", path.display());
                return Err(Error::new(ErrorKind::NotFound, "storage/open", text));
            }
        };
        let writable = how == OpenHow::Write;
        Ok(disk.add(Handle { inode, path: path.to_owned(), writable }))
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
        Ok(FileFacts { align: 1, ..FileFacts::default() })
    }
    fn unchanged(&self, file: FileId) -> Result<()> {
        self.bytes(file).map(|_| ())
    }
    fn register(&self, _: &Arc<Region>) {}
    fn fill(&self, fills: Vec<Fill>, _: Priority) -> Filling {
        fill::at_once(self, fills)
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
