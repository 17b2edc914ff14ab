//! The marks' table: words in memory of this process, or of a file that another may read. Whatever
//! words a file holds, reading them is an answer or an error.
#![allow(unsafe_code)]

use super::{Call, Operation, operation};
use crate::PluginKind;
use kvern_contract::{Error, ErrorKind, Result};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU32, AtomicU64};
use std::time::Duration;

/// What errors of a trail are errors of.
pub(super) const OPERATION: &str = "abi/trail";

/// A limit that is none.
pub(super) const UNLIMITED: u64 = u64::MAX;

const MAGIC: u64 = u64::from_le_bytes(*b"kvtrail1");
/// Threads that are inside plugins at once, at most.
const SLOTS: usize = 64;
/// Libraries that are told apart.
const MAKERS: usize = 64;
/// Words of a name, 8 bytes each.
const NAME: usize = 8;
/// Words of a path; a longer one loses its beginning.
const PATH: usize = 55;

/// Where a thread is. A cache line of its own.
#[repr(C, align(64))]
pub(super) struct Slot {
    /// The thread's number, 0 while the slot is free.
    thread: AtomicU64,
    /// What `state` makes, 0 outside of plugins.
    pub(super) state: AtomicU64,
    /// Nanoseconds.
    pub(super) limit: AtomicU64,
    /// Raised whenever a call into a plugin begins or ends.
    pub(super) sequence: AtomicU64,
    /// The signal that came inside the call, 0 for none.
    pub(super) struck: AtomicU64,
    /// Padding in words of its own: a table is read word by word.
    spare: [AtomicU64; 3],
}

/// Who made code. Lengths and kind are told last.
#[repr(C, align(64))]
struct MakerRow {
    /// kind, bytes of the name << 8, bytes of the path << 16.
    told: AtomicU64,
    name: [AtomicU64; NAME],
    path: [AtomicU64; PATH],
}

/// All of it.
#[repr(C, align(64))]
pub(super) struct Table {
    magic: AtomicU64,
    sign: AtomicU64,
    /// As in a slot.
    spare: [AtomicU64; 6],
    slots: [Slot; SLOTS],
    makers: [MakerRow; MAKERS],
}

const BYTES: usize = size_of::<Table>();
const WORDS: usize = BYTES / 8;
const SLOT_WORDS: usize = size_of::<Slot>() / 8;
const SLOTS_AT: usize = std::mem::offset_of!(Table, slots) / 8;
const MAKER_WORDS: usize = size_of::<MakerRow>() / 8;
const MAKERS_AT: usize = std::mem::offset_of!(Table, makers) / 8;
/// No byte of a table is padding: the fields are all of its words.
const _: () = assert!(
    SLOT_WORDS == 8
        && MAKER_WORDS == 1 + NAME + PATH
        && SLOTS_AT == 8
        && MAKERS_AT == SLOTS_AT + SLOTS * SLOT_WORDS
        && WORDS == MAKERS_AT + MAKERS * MAKER_WORDS
);

/// Threads that have had a slot.
static THREADS: AtomicU32 = AtomicU32::new(0);

/// The table of a process that keeps none in a file.
static OWN: Table = Table {
    magic: AtomicU64::new(MAGIC),
    sign: AtomicU64::new(operation::SIGN),
    spare: [const { AtomicU64::new(0) }; 6],
    slots: [const { Slot::free() }; SLOTS],
    makers: [const { MakerRow::none() }; MAKERS],
};

/// A mark's state: operation, the host's operation under it, maker.
pub(super) fn state(maker: u32, operation: Operation) -> u64 {
    u64::from(operation.index) | u64::from(maker) << 32
}

/// The same with what is asked of the host.
pub(super) fn with_host(state: u64, operation: Operation) -> u64 {
    state & !0xffff_0000 | u64::from(operation.index) << 16
}

fn fault(kind: ErrorKind, path: &Path, text: &dyn std::fmt::Display) -> Error {
    Error::new(kind, OPERATION, format!("{}: {text}", path.display()))
}

fn io(path: &Path) -> impl Fn(std::io::Error) -> Error + '_ {
    move |error| match error.kind() {
        std::io::ErrorKind::NotFound => fault(ErrorKind::NotFound, path, &error),
        _ => fault(ErrorKind::Io, path, &error),
    }
}

impl Table {
    /// The table in this process's own memory.
    pub(super) fn own() -> &'static Table {
        &OWN
    }

    /// A table in an empty file, for the life of the process.
    pub(super) fn in_file(path: &Path) -> Result<&'static Table> {
        let mut how = OpenOptions::new();
        // Whatever the path names is opened without a wait and without a change.
        how.read(true).write(true);
        how.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY);
        let mut file = how.open(path).map_err(io(path))?;
        let found = file.metadata().map_err(io(path))?;
        if !found.is_file() || found.len() != 0 {
            return Err(fault(ErrorKind::Invalid, path, &"a trail is kept in an empty file alone"));
        }
        // Written, not only made longer: where the room is not there, this fails and no store into
        // the map does.
        file.write_all(&vec![0; BYTES]).map_err(io(path))?;
        // SAFETY: the file was just made this long, and who keeps a trail in it promises to leave
        // it so (`keep_in`); other processes only read it.
        let map = unsafe { memmap2::MmapMut::map_mut(&file) }.map_err(io(path))?;
        let map: &'static memmap2::MmapMut = Box::leak(Box::new(map));
        // SAFETY: the map is `BYTES` long, starts at a page, is never unmapped and only reached
        // through this reference; a table is atomic integers, of which any bytes are values.
        let table = unsafe { &*map.as_ptr().cast::<Table>() };
        table.sign.store(operation::SIGN, Relaxed);
        table.magic.store(MAGIC, Release);
        Ok(table)
    }

    /// A free slot for this thread.
    pub(super) fn take(&'static self) -> Option<&'static Slot> {
        let thread = u64::from(THREADS.fetch_add(1, Relaxed).wrapping_add(1).max(1));
        let free = |slot: &&Slot| slot.thread.compare_exchange(0, thread, Acquire, Relaxed).is_ok();
        self.slots.iter().find(free)
    }

    /// Writes down who a maker is; false where there is no room.
    pub(super) fn tell(&self, index: usize, kind: PluginKind, name: &str, path: &Path) -> bool {
        let Some(row) = self.makers.get(index) else { return false };
        let shown: String = name.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
        let name = shown.get(..shown.floor_char_boundary(NAME * 8)).unwrap_or_default().as_bytes();
        let path = without_controls(path.as_os_str().as_bytes());
        let path = path.get(path.len().saturating_sub(PATH * 8)..).unwrap_or_default();
        row.told.store(0, Release);
        put(&row.name, name);
        put(&row.path, path);
        let told = u64::from(kind as u32) | (name.len() as u64) << 8 | (path.len() as u64) << 16;
        row.told.store(told, Release);
        true
    }

    /// A slot whose thread is inside a plugin.
    pub(super) fn busy(&'static self) -> Option<&'static Slot> {
        self.slots.iter().find(|slot| slot.state.load(Relaxed) != 0)
    }

    /// Plugin and library of a slot's call, without an allocation.
    pub(super) fn who(&self, slot: &Slot, say: &mut dyn FnMut(&[u8])) {
        let row = self.makers.get((slot.state.load(Relaxed) >> 32) as usize);
        let told = row.map_or(0, |row| row.told.load(Acquire));
        let kind = PluginKind::ALL.into_iter().find(|kind| *kind as u64 == told & 0xff);
        let (Some(row), Some(kind)) = (row, kind) else { return say(b"a plugin") };
        say(kind.title().as_bytes());
        if told >> 8 & 0xff != 0 {
            say(b" `");
            say_words(&row.name, told >> 8 & 0xff, say);
            say(b"`");
        }
        say(b" (");
        say_words(&row.path, told >> 16 & 0xffff, say);
        say(b")");
    }

    /// All words, as they are now.
    pub(super) fn words(&'static self) -> Vec<u64> {
        // SAFETY: a table is `WORDS` atomic integers of 8 bytes without padding, as is asserted
        // above, and is only ever reached as such.
        let words = unsafe {
            std::slice::from_raw_parts(std::ptr::from_ref(self).cast::<AtomicU64>(), WORDS)
        };
        words.iter().map(|word| word.load(Acquire)).collect()
    }
}

impl MakerRow {
    const fn none() -> MakerRow {
        MakerRow {
            told: AtomicU64::new(0),
            name: [const { AtomicU64::new(0) }; NAME],
            path: [const { AtomicU64::new(0) }; PATH],
        }
    }
}

impl Slot {
    const fn free() -> Slot {
        Slot {
            thread: AtomicU64::new(0),
            state: AtomicU64::new(0),
            limit: AtomicU64::new(0),
            sequence: AtomicU64::new(0),
            struck: AtomicU64::new(0),
            spare: [const { AtomicU64::new(0) }; 3],
        }
    }

    /// The operation under way and the host's under it, without an allocation.
    pub(super) fn place(&self, say: &mut dyn FnMut(&[u8])) {
        let state = self.state.load(Relaxed);
        let named = |shift: u32| Operation::named((state >> shift & 0xffff) as u16);
        say(named(0).unwrap_or("a call").as_bytes());
        if let Some(host) = named(16) {
            say(b", in the host's ");
            say(host.as_bytes());
        }
    }

    /// Gives a slot back.
    pub(super) fn give(&self) {
        self.state.store(0, Relaxed);
        self.thread.store(0, Release);
    }
}

/// A path's bytes as one line can show them: a control character is `?`, each byte of it.
fn without_controls(path: &[u8]) -> Vec<u8> {
    let mut shown = path.to_vec();
    let mut before = 0;
    for byte in &mut shown {
        let is = *byte;
        // The second half of them is two bytes in UTF-8, of which the second alone matters.
        if is.is_ascii_control() || before == 0xc2 && (0x80..0xa0).contains(&is) {
            *byte = b'?';
        }
        before = is;
    }
    shown
}

fn put(words: &[AtomicU64], bytes: &[u8]) {
    for (word, bytes) in words.iter().zip(bytes.chunks(8)) {
        let mut whole = [0; 8];
        whole.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        word.store(u64::from_ne_bytes(whole), Relaxed);
    }
}

fn say_words(words: &[AtomicU64], bytes: u64, say: &mut dyn FnMut(&[u8])) {
    let mut left = bytes as usize;
    for word in words {
        let whole = word.load(Relaxed).to_ne_bytes();
        let some = whole.get(..left.min(8)).unwrap_or_default();
        say(some);
        left -= some.len();
    }
}

fn take(words: &[u64], bytes: u64) -> Option<Vec<u8>> {
    let mut out: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let bytes = usize::try_from(bytes).ok().filter(|n| *n <= out.len())?;
    out.truncate(bytes);
    Some(out)
}

/// The calls of a file.
pub(super) fn read(path: &Path) -> Result<Vec<Call>> {
    let file = std::fs::File::open(path).map_err(io(path))?;
    read_from(&file, path)
}

/// The same of a file that is open, from its beginning; `path` is its name in messages.
pub(super) fn read_from(file: &File, path: &Path) -> Result<Vec<Call>> {
    let mut bytes = vec![0; BYTES + 1];
    let mut length = 0;
    while let Some(rest) = bytes.get_mut(length..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, length as u64) {
            Ok(0) => break,
            Ok(some) => length += some,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(io(path)(error)),
        }
    }
    bytes.truncate(length);
    let words: Vec<u64> = bytes
        .chunks_exact(8)
        .filter_map(|word| word.try_into().ok().map(u64::from_ne_bytes))
        .collect();
    if bytes.len() != BYTES || words.first_chunk() != Some(&[MAGIC, operation::SIGN]) {
        return Err(fault(ErrorKind::Invalid, path, &"it is no trail of this build"));
    }
    Ok(calls(&words))
}

/// The calls in a table's words; what makes no sense is left out.
pub(super) fn calls(words: &[u64]) -> Vec<Call> {
    let slots = words.get(SLOTS_AT..SLOTS_AT + SLOTS * SLOT_WORDS).unwrap_or_default();
    slots.chunks_exact(SLOT_WORDS).filter_map(|slot| call(slot, words)).collect()
}

fn call(slot: &[u64], words: &[u64]) -> Option<Call> {
    let [thread, state, limit, sequence, struck] = *slot.first_chunk()?;
    let number = |shift: u32| (state >> shift & 0xffff) as u16;
    let operation = Operation::named(number(0)).filter(|_| thread != 0)?.into();
    let (plugin, library) = maker((state >> 32) as usize, words)?;
    Some(Call {
        plugin,
        library,
        operation,
        host: Operation::named(number(16)).map(Into::into),
        sequence,
        limit: (limit != UNLIMITED).then_some(Duration::from_nanos(limit)),
        struck: (struck != 0).then_some(struck as i32),
        thread: thread as u32,
    })
}

fn maker(index: usize, words: &[u64]) -> Option<(String, PathBuf)> {
    let at = MAKERS_AT + index.checked_mul(MAKER_WORDS).filter(|_| index < MAKERS)?;
    let (told, row) = words.get(at..at + MAKER_WORDS)?.split_first()?;
    let (name, path) = row.split_at_checked(NAME)?;
    let kind = PluginKind::ALL.into_iter().find(|kind| *kind as u64 == told & 0xff)?;
    let name = String::from_utf8_lossy(&take(name, told >> 8 & 0xff)?).into_owned();
    let path = take(path, told >> 16 & 0xffff)?;
    let name = if name.is_empty() { name } else { format!(" `{name}`") };
    Some((format!("{}{name}", kind.title()), std::ffi::OsString::from_vec(path).into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A table's words with one call in it.
    fn words() -> Vec<u64> {
        let mut words = vec![0; WORDS];
        (words[0], words[1]) = (MAGIC, operation::SIGN);
        let table = Table::own();
        assert!(table.tell(MAKERS - 1, PluginKind::Kv, "x\ny", Path::new("/p/lib.so")));
        let row = MAKERS_AT + (MAKERS - 1) * MAKER_WORDS;
        words[row..row + MAKER_WORDS].copy_from_slice(&table.words()[row..row + MAKER_WORDS]);
        let mark = state(MAKERS as u32 - 1, Operation::of("kv/open"));
        words[SLOTS_AT..SLOTS_AT + 5].copy_from_slice(&[3, mark, UNLIMITED, 9, 11]);
        words
    }

    fn file(words: &[u64]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_ne_bytes()).collect();
        std::fs::write(file.path(), bytes).unwrap();
        file
    }

    #[test]
    fn a_files_calls_are_what_was_marked() {
        let found = read(file(&words()).path()).unwrap();
        let [call] = &found[..] else { panic!("{found:?}") };
        assert_eq!(call.who(), "kv strategy `x?y` (/p/lib.so)");
        assert_eq!((call.place(), call.sequence, call.thread), ("kv/open".into(), 9, 3));
        assert_eq!((call.limit, &call.host, call.struck), (None, &None, Some(11)));
    }

    #[test]
    fn a_long_path_keeps_its_end_and_a_long_name_its_beginning() {
        let table = Table::own();
        let (path, name) = (format!("/{}/lib.so", "d".repeat(900)), "\u{e9}".repeat(90));
        table.tell(MAKERS - 2, PluginKind::Device, &name, Path::new(&path));
        let (plugin, library) = maker(MAKERS - 2, &table.words()).unwrap();
        assert!(library.to_string_lossy().ends_with("ddd/lib.so"), "{library:?}");
        assert_eq!(plugin, format!("device `{}`", "\u{e9}".repeat(32)));
        assert!(!table.tell(MAKERS, PluginKind::Device, "x", Path::new("y")), "no room");
    }

    #[test]
    fn who_and_where_are_one_line_and_say_what_the_host_does_meanwhile() {
        let table = Table::own();
        let path = Path::new("/p\n/\u{e9}\u{9b}\x7f/lib.so");
        table.tell(MAKERS - 3, PluginKind::Kv, "", path);
        let slot = Slot::free();
        let load = state(MAKERS as u32 - 3, Operation::of("kv/load"));
        let told = |state: u64| {
            slot.state.store(state, Relaxed);
            let mut line = Vec::new();
            table.who(&slot, &mut |bytes| line.extend_from_slice(bytes));
            line.extend_from_slice(b" in ");
            slot.place(&mut |bytes| line.extend_from_slice(bytes));
            String::from_utf8_lossy(&line).into_owned()
        };
        let who = "kv strategy (/p?/\u{e9}\u{fffd}??/lib.so) in kv/load";
        assert_eq!(told(load), who);
        let synced = with_host(load, Operation::of("host/sync"));
        assert_eq!(told(synced), format!("{who}, in the host's host/sync"));
    }

    #[test]
    fn any_bytes_are_an_answer_or_an_error() {
        let good = words();
        let refused = |file: &tempfile::NamedTempFile| read(file.path()).unwrap_err().kind;
        for cut in [0, 1, 2, 100, WORDS - 1] {
            assert_eq!(refused(&file(&good[..cut])), ErrorKind::Invalid, "{cut}");
        }
        assert_eq!(refused(&file(&[&good[..], &[0]].concat())), ErrorKind::Invalid);
        let mut other = good.clone();
        other[1] ^= 1;
        assert_eq!(refused(&file(&other)), ErrorKind::Invalid, "another build's");
        assert_eq!(read(Path::new("/nonexistent")).unwrap_err().kind, ErrorKind::NotFound);
        let mut seed = 0x9e37_79b9_7f4a_7c15u64;
        for _ in 0..2000 {
            let mut words = good.clone();
            for _ in 0..8 {
                seed ^= seed << 13;
                seed ^= seed >> 7;
                seed ^= seed << 17;
                let rows = [SLOTS_AT, MAKERS_AT + (MAKERS - 1) * MAKER_WORDS];
                words[rows[(seed >> 60) as usize % 2] + (seed >> 50) as usize % 5] = seed;
            }
            calls(&words).iter().for_each(|call| drop(call.who() + &call.place()));
        }
        assert!(calls(&[]).is_empty());
    }
}
