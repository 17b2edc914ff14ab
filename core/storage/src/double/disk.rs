//! What a drive in memory holds: files with what a sync has not covered, names, and open files.

use super::random::Random;
use crate::fault::{ends_early, no_file, read_only};
use crate::service::{Counters, FileFacts};
use kvern_contract::{Error, ErrorKind, FileId, FileRead, HostSpan, Result};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

/// What the drive writes whole.
const SECTOR: usize = 512;

/// A change that no sync has covered.
pub(super) enum Change {
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
pub(super) struct Inode {
    pub(super) live: Vec<u8>,
    pub(super) durable: Vec<u8>,
    pub(super) pending: Vec<Change>,
    pub(super) name_is_new: bool,
    /// Counts changes, as a time of change would.
    pub(super) changes: u64,
}
impl Inode {
    pub(super) fn change(&mut self, change: Change) {
        apply(&mut self.live, &change);
        self.pending.push(change);
        self.changes += 1;
    }
    /// A sync: what is pending reaches the drive. (Not all that is seen: see `fail_sync_at`.)
    pub(super) fn settle(&mut self) {
        for change in std::mem::take(&mut self.pending) {
            apply(&mut self.durable, &change);
        }
    }
    /// Length and changes.
    pub(super) fn age(&self) -> (u64, u64) {
        (self.live.len() as u64, self.changes)
    }
    /// What a cut leaves: each sector one of its versions, the length one of its lengths.
    pub(super) fn survive(&self, random: &mut Random) -> Vec<u8> {
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

pub(super) struct Handle {
    pub(super) inode: u64,
    pub(super) path: PathBuf,
    pub(super) writable: bool,
    /// Where reads go round a page cache that is not there: what fills are multiples of.
    pub(super) align: u64,
    /// What it was when it was opened to be read: its length and changes.
    pub(super) born: Option<(u64, u64)>,
}

#[derive(Default)]
pub(super) struct Disk {
    pub(super) inodes: HashMap<u64, Inode>,
    pub(super) names: BTreeMap<PathBuf, u64>,
    pub(super) durable_names: BTreeMap<PathBuf, u64>,
    pub(super) handles: HashMap<FileId, Handle>,
    pub(super) memory: HashMap<FileId, (String, &'static [u8])>,
    pub(super) next_inode: u64,
    pub(super) next_file: u32,
    pub(super) events: u64,
    pub(super) fail_at: Option<u64>,
    pub(super) fail_sync_at: Option<u64>,
    pub(super) off: bool,
    pub(super) counters: Counters,
}
impl Disk {
    pub(super) fn powered(&self) -> Result<()> {
        match self.off {
            true => Err(Error::new(ErrorKind::Io, "storage", "the power is off")),
            false => Ok(()),
        }
    }
    /// Counts a change to the drive; whether it is the one at which the power goes.
    pub(super) fn event(&mut self) -> bool {
        let now = self.fail_at == Some(self.events);
        self.events += 1;
        self.off |= now;
        now
    }
    pub(super) fn handle(&self, operation: &str, file: FileId) -> Result<&Handle> {
        self.handles.get(&file).ok_or_else(|| no_file(operation, file))
    }
    pub(super) fn inode(&mut self, inode: u64) -> &mut Inode {
        self.inodes.entry(inode).or_default()
    }
    pub(super) fn create(&mut self, path: &Path) -> u64 {
        self.next_inode += 1;
        let inode = self.next_inode;
        self.inodes.insert(inode, Inode { name_is_new: true, ..Inode::default() });
        self.names.insert(path.to_owned(), inode);
        inode
    }
    /// Makes the names of one directory durable.
    pub(super) fn sync_names(&mut self, dir: Option<&Path>) {
        let inside = |path: &Path| path.parent() == dir;
        self.durable_names.retain(|path, _| !inside(path));
        for (path, &inode) in self.names.iter().filter(|(path, _)| inside(path)) {
            self.durable_names.insert(path.clone(), inode);
        }
    }
    pub(super) fn add(&mut self, handle: Handle) -> FileId {
        self.next_file += 1;
        let file = FileId(self.next_file);
        self.handles.insert(file, handle);
        file
    }
    pub(super) fn read(&mut self, read: &mut FileRead<'_>) -> Result<()> {
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
    /// How the bytes of an open file are reached.
    pub(super) fn facts(&self, file: FileId) -> FileFacts {
        let align = self.handles.get(&file).map_or(1, |handle| handle.align);
        FileFacts { align, direct: align > 1, ..FileFacts::default() }
    }
    /// Whether an open file, under its name, still is what was opened.
    pub(super) fn unchanged(&self, file: FileId) -> Result<()> {
        if self.memory.contains_key(&file) {
            return Ok(());
        }
        let handle = self.handle("storage/unchanged", file)?;
        let (Some(born), path) = (handle.born, handle.path.display()) else { return Ok(()) };
        let bad = |kind, text| Err(Error::new(kind, "storage/unchanged", text));
        let Some(named) = self.names.get(&handle.path) else {
            return bad(ErrorKind::NotFound, format!("{path}: no such file"));
        };
        let now = self.inodes.get(&handle.inode).map_or((0, 0), Inode::age);
        let what = if *named != handle.inode {
            "was replaced by another file".into()
        } else if now.0 != born.0 {
            format!("went from {} to {} bytes", born.0, now.0)
        } else if now != born {
            "was written to".into()
        } else {
            return Ok(());
        };
        bad(ErrorKind::Damaged, format!("{path} {what} while it was open; start again"))
    }
    /// Whether a fill may go to the drive as it is. *Errors* Invalid names what is not rounded.
    pub(super) fn rounded(&self, file: FileId, offset: u64, into: HostSpan) -> Result<()> {
        let Some(handle) = self.handles.get(&file) else { return Ok(()) };
        let (align, path) = (handle.align, handle.path.display());
        let bytes = self.inodes.get(&handle.inode).map_or(0, |inode| inode.live.len() as u64);
        let ends = (offset + into.bytes).is_multiple_of(align) || offset + into.bytes == bytes;
        if offset.is_multiple_of(align) && (into.address as u64).is_multiple_of(align) && ends {
            return Ok(());
        }
        let text = format!(
            "{} bytes of {path} at offset {offset} to address {:#x}: expected multiples of {align}",
            into.bytes, into.address
        );
        Err(Error::new(ErrorKind::Invalid, "storage/read", text))
    }
    pub(super) fn writable(&self, operation: &str, file: FileId) -> Result<u64> {
        let handle = self.handle(operation, file)?;
        match handle.writable {
            true => Ok(handle.inode),
            false => Err(read_only(operation, &handle.path.display().to_string())),
        }
    }
}

/// An offset that the drive has room for, with `more` bytes behind it.
pub(super) fn size(offset: u64, more: usize) -> Result<usize> {
    let room = |offset: &usize| offset.saturating_add(more) <= 1 << 32;
    usize::try_from(offset).ok().filter(room).ok_or_else(|| {
        let text = format!("{offset} bytes and {more} more pass the drive's 4 GiB");
        Error::new(ErrorKind::OutOfSpace, "storage/write", text)
    })
}
