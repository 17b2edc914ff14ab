//! Where this process is inside plugins' code. Every call into a plugin leaves a mark when it
//! begins and takes it away when it ends, so that a call that never comes back can be named while
//! it hangs, and one that crashed the process after it is gone: the marks may lie in a file that
//! outlives it.
//!
//! A mark is a few stores into a slot of the thread's own: no lock and no clock. Who watches
//! compares marks: the same sequence on the same thread is the call that was there before, whatever
//! it has asked of the host since.

mod crash;
mod operation;
mod table;

pub use crash::{leave, signal_name, tell_crashes};
pub use operation::Operation;

use crate::{Plugin, PluginKind};
use kvern_contract::{Error, ErrorKind, Result};
use std::cell::Cell;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::{Relaxed, Release};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;
use table::{Slot, Table};

/// A call into a plugin that has begun and not ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Call {
    /// Who is called, as kv strategy `chunked`; the kind alone while it has not said its name.
    pub plugin: String,
    /// The file of its code.
    pub library: PathBuf,
    /// What is called, as `kv/load`; `abi/load` while the library itself is loaded.
    pub operation: String,
    /// What the plugin asks of the host meanwhile, as `host/sync`: the time is then the host's.
    pub host: Option<String>,
    /// Of the calls of this thread, ascending: the same number is the same call. What it asks of
    /// the host does not change it.
    pub sequence: u64,
    /// How long the call was told that it may take, where it was told.
    pub limit: Option<Duration>,
    /// The signal that came on this thread inside the call, where [`tell_crashes`] was there to see
    /// it.
    pub struck: Option<i32>,
    /// Which thread, by a number of the trail's own.
    pub thread: u32,
}

impl Call {
    /// The plugin and its library, as a message names them.
    pub fn who(&self) -> String {
        format!("{} ({})", self.plugin, self.library.display())
    }

    /// The operation, and the host's under it.
    pub fn place(&self) -> String {
        match &self.host {
            Some(host) => format!("{}, in the host's {host}", self.operation),
            None => self.operation.clone(),
        }
    }
}

/// The marks' place: a table of this process, or one in a file.
static TABLE: OnceLock<&'static Table> = OnceLock::new();

fn table() -> &'static Table {
    TABLE.get_or_init(Table::own)
}

/// Keeps this process's marks in a file, for others to read when it is gone. Once, before the first
/// plugin is opened.
///
/// The file is there and empty, and must stay as it is while the process lives; its name need not.
/// *Errors* NotFound; Io, which a drive without room is; Invalid when it is no empty file, or when
/// there are marks already. What the path names is then as it was.
pub fn keep_in(path: &Path) -> Result<()> {
    let begun = || {
        let text = "the trail has begun: it is kept in a file from before the first plugin or not";
        Error::new(ErrorKind::Invalid, table::OPERATION, text)
    };
    match TABLE.get() {
        Some(_) => Err(begun()),
        None => TABLE.set(Table::in_file(path)?).map_err(|_| begun()),
    }
}

/// The calls of this process that have not ended, one a thread at most. A call that begins or ends
/// meanwhile may be told by halves: only what is there twice was there.
pub fn calls() -> Vec<Call> {
    table::calls(&table().words())
}

/// The calls that a process had not ended when it went, from the file that it kept them in.
/// *Errors* NotFound, Io; Invalid when the file is no trail of this build.
pub fn read(path: &Path) -> Result<Vec<Call>> {
    table::read(path)
}

/// The same of a file that is open, whether it still has a name or not. *Errors* as of [`read`].
pub fn read_from(file: &File) -> Result<Vec<Call>> {
    table::read_from(file, Path::new("the trail"))
}

/// Whose code is called, by a number of the trail's own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Maker(u32);

impl Maker {
    /// Code that leaves no marks: the host's own, and libraries beyond those that are counted.
    pub const NONE: Maker = Maker(u32::MAX);

    /// An error that came from this code, with its name, once it has one, as context `plugin`.
    #[cold]
    pub(crate) fn sign(self, mut error: Error) -> Error {
        let makers = MAKERS.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Known { kind, name: Some(name), .. }) = makers.get(self.0 as usize) {
            error.context.push(("plugin".into(), format!("{} `{name}`", kind.title())));
        }
        error
    }
}

/// A library that was opened.
struct Known {
    kind: PluginKind,
    library: PathBuf,
    /// Once it has said it.
    name: Option<String>,
}

/// What was opened, in the order of the numbers.
static MAKERS: Mutex<Vec<Known>> = Mutex::new(Vec::new());

/// The number of a library; the same library has the same one. A process counts as many as the
/// table has room for.
pub(crate) fn maker(kind: PluginKind, library: &Path) -> Maker {
    let mut makers = MAKERS.lock().unwrap_or_else(PoisonError::into_inner);
    let known = makers.iter().position(|known| known.kind == kind && known.library == library);
    let index = known.unwrap_or(makers.len());
    if known.is_none() {
        if !table().tell(index, kind, "", library) {
            return Maker::NONE;
        }
        makers.push(Known { kind, library: library.into(), name: None });
    }
    Maker(index as u32)
}

/// Gives a library the name that its plugin says.
pub(crate) fn name(maker: Maker, plugin: &Plugin) {
    let name = match plugin {
        Plugin::Kv(it) => it.describe().name,
        Plugin::Offload(it) => it.describe().name,
        Plugin::Device(it) => it.describe().name,
    };
    let mut makers = MAKERS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = makers.get_mut(maker.0 as usize) {
        table().tell(maker.0 as usize, known.kind, &name, &known.library);
        known.name = Some(name);
    }
}

thread_local! {
    /// This thread's slot, once it has one.
    static SLOT: Cell<Option<&'static Slot>> = const { Cell::new(None) };
    /// Gives the slot back when the thread ends.
    static HELD: Held = const { Held(Cell::new(None)) };
}

struct Held(Cell<Option<&'static Slot>>);

impl Drop for Held {
    fn drop(&mut self) {
        SLOT.set(None);
        if let Some(slot) = self.0.get() {
            slot.give();
        }
    }
}

/// A thread without a slot gets one, unless all are taken or it is about to end.
#[cold]
fn claim() -> Option<&'static Slot> {
    let slot = HELD.try_with(|held| {
        let slot = table().take();
        held.0.set(slot);
        slot
    });
    let slot = slot.ok().flatten();
    SLOT.set(slot);
    slot
}

/// A mark; taken away when it is dropped.
pub(crate) struct Step {
    slot: Option<&'static Slot>,
    /// What was there before.
    state: u64,
    limit: u64,
    /// Whether it is a call of its own, and not what a call asks of the host.
    is_call: bool,
}

impl Step {
    const NONE: Step = Step { slot: None, state: 0, limit: 0, is_call: false };
}

impl Drop for Step {
    #[inline]
    fn drop(&mut self) {
        if let Some(slot) = self.slot {
            match self.is_call {
                true => slot.mark(self.state, self.limit),
                false => slot.state.store(self.state, Release),
            }
        }
    }
}

impl Slot {
    #[inline]
    fn mark(&self, state: u64, limit: u64) {
        self.limit.store(limit, Relaxed);
        self.state.store(state, Relaxed);
        // The thread's own: nobody else writes it.
        self.sequence.store(self.sequence.load(Relaxed).wrapping_add(1), Release);
    }

    #[inline]
    fn step(&'static self, state: u64, limit: u64) -> Step {
        let before = Step {
            slot: Some(self),
            state: self.state.load(Relaxed),
            limit: self.limit.load(Relaxed),
            is_call: true,
        };
        self.mark(state, limit);
        before
    }
}

/// Marks a call into a plugin.
#[inline]
pub(crate) fn enter(maker: Maker, operation: Operation) -> Step {
    enter_within(maker, operation, table::UNLIMITED)
}

/// The same for a call that was told how long it may take, in nanoseconds.
#[inline]
pub(crate) fn enter_within(maker: Maker, operation: Operation, limit: u64) -> Step {
    if maker == Maker::NONE {
        return Step::NONE;
    }
    match SLOT.get().or_else(claim) {
        Some(slot) => slot.step(table::state(maker.0, operation), limit),
        None => Step::NONE,
    }
}

/// Marks a call of the plugin back into the host, on a thread that is inside a call of the plugin.
/// The call stays the one that it was: else a plugin that only ever asks would always be new.
#[inline]
pub(crate) fn back(operation: Operation) -> Step {
    let Some(slot) = SLOT.get() else { return Step::NONE };
    match slot.state.load(Relaxed) {
        0 => Step::NONE,
        state => {
            slot.state.store(table::with_host(state, operation), Release);
            Step { slot: Some(slot), state, limit: 0, is_call: false }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOAD: Operation = Operation::of("kv/load");
    const SYNC: Operation = Operation::of("host/sync");

    fn mine(library: &str) -> Option<Call> {
        calls().into_iter().find(|call| call.library == Path::new(library))
    }

    #[test]
    fn a_call_is_there_while_it_runs_and_so_is_what_it_asks_of_the_host() {
        let maker = maker(PluginKind::Kv, Path::new("/x/liba.so"));
        assert_eq!(back(SYNC).state, 0, "no plugin asks");
        let step = enter_within(maker, LOAD, 7);
        let call = mine("/x/liba.so").unwrap();
        assert_eq!((call.plugin.as_str(), call.operation.as_str()), ("kv strategy", "kv/load"));
        assert_eq!((call.limit, call.host.as_ref()), (Some(Duration::from_nanos(7)), None));
        assert_eq!(mine("/x/liba.so").unwrap(), call, "it has not moved");
        let inner = back(SYNC);
        let moved = mine("/x/liba.so").unwrap();
        assert_eq!(moved.place(), "kv/load, in the host's host/sync");
        assert_eq!((moved.sequence, moved.limit), (call.sequence, call.limit), "the same call");
        drop(inner);
        let again = mine("/x/liba.so").unwrap();
        assert_eq!((again.place(), again.limit), ("kv/load".into(), call.limit));
        assert_eq!(again, call);
        drop(step);
        assert_eq!(mine("/x/liba.so"), None);
    }

    #[test]
    fn threads_have_marks_of_their_own_and_give_their_slots_back() {
        let maker = maker(PluginKind::Device, Path::new("/x/libb.so"));
        for _ in 0..300 {
            let (began, go) = (std::sync::Barrier::new(2), std::sync::Barrier::new(2));
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let _step = enter(maker, Operation::of("device/wait"));
                    began.wait();
                    go.wait();
                });
                began.wait();
                assert_eq!(mine("/x/libb.so").unwrap().place(), "device/wait");
                go.wait();
            });
            assert_eq!(mine("/x/libb.so"), None);
        }
    }

    #[test]
    fn the_same_library_is_counted_once() {
        let first = maker(PluginKind::Kv, Path::new("/x/libc.so"));
        assert_eq!(maker(PluginKind::Kv, Path::new("/x/libc.so")), first);
        assert_ne!(maker(PluginKind::Kv, Path::new("/x/libd.so")), first);
    }
}
