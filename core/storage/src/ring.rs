//! Moves pieces through one io_uring on one thread, which sleeps in the kernel until something
//! completes or arrives.
//!
//! Every operation lives in a slot until the kernel has answered it: with the slot lives the memory
//! (a piece's own, a caller's that waits, or a lease that the piece's job holds), so the kernel
//! never writes to memory that somebody else has. A slot's number and generation are the
//! operation's `user_data`: an answer is taken for its own operation or for none.
#![allow(unsafe_code)]

use crate::files::Way;
use crate::meter::Meter;
use crate::owner::Owner;
use crate::piece::{Piece, Task};
use crate::queue::{Next, Queue};
use crate::registry::{Asked, Registry};
use crate::{fault, files, trial};
use io_uring::{IoUring, opcode, types};
use kvern_contract::Result;
use std::io::{self, PipeReader, PipeWriter, Write};
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// `user_data` of the read that waits for the bell.
const BELL: u64 = u64::MAX;

/// Most bytes of one read that the kernel takes.
const MOST: usize = 1 << 30;

/// Wakes the ring's thread: a byte in a pipe, at most one at a time.
pub(crate) struct Bell {
    rung: AtomicBool,
    rope: PipeWriter,
}
impl Bell {
    pub(crate) fn ring(&self) {
        if !self.rung.swap(true, Ordering::AcqRel) {
            // The reader lives as long as its thread; once that has ended nobody needs waking.
            let _ = (&self.rope).write_all(&[1]);
        }
    }
}

/// An operation that the kernel has.
struct UnderWay {
    piece: Piece,
    owner: Owner,
    /// Memory of a [`Task::ReadOwned`].
    own: Vec<u8>,
    /// Bytes that came or went before, by shorter answers than was asked for.
    done: usize,
    tried: bool,
}
impl UnderWay {
    /// Where the rest of the bytes come from or go to.
    fn rest(&mut self) -> (*mut u8, usize) {
        let start = match &mut self.piece.task {
            Task::ReadOwned { .. } => self.own.as_mut_ptr(),
            Task::ReadLent(lent) | Task::ReadLeased(lent) => lent.address,
            Task::WriteOwned(bytes) => bytes.as_mut_ptr(),
            Task::WriteShown(shown) => shown.address.cast_mut(),
        };
        // SAFETY: `done` is at most the piece's length, which is its memory's.
        (unsafe { start.add(self.done) }, self.piece.bytes() - self.done)
    }
}

#[derive(Default)]
struct Slot {
    generation: u32,
    holds: Option<UnderWay>,
}

/// The ring and what it has under way.
pub(crate) struct Ring {
    ring: IoUring,
    queue: Arc<Queue>,
    meter: Arc<Meter>,
    bell: Arc<Bell>,
    heard: PipeReader,
    byte: Box<[u8; 1]>,
    listening: bool,
    slots: Vec<Slot>,
    free: Vec<usize>,
    registry: Registry,
}

impl Ring {
    /// Sets up a ring of at most `depth` operations and reads through it. *Errors*: the kernel's
    /// refusal, or that the reads went wrong.
    pub(crate) fn new(
        depth: usize,
        queue: Arc<Queue>,
        meter: Arc<Meter>,
        asked: Asked,
    ) -> io::Result<(Ring, Arc<Bell>)> {
        let depth = depth.clamp(1, 1024);
        let mut ring = IoUring::new((depth as u32 + 2).next_power_of_two())?;
        let mut registry = Registry::new(&ring.submitter(), asked);
        trial::try_reads(&mut ring, &mut registry, &trial::own_file()?)?;
        let (heard, rope) = io::pipe()?;
        let bell = Arc::new(Bell { rung: AtomicBool::new(false), rope });
        let ring = Ring {
            ring,
            queue,
            meter,
            bell: bell.clone(),
            heard,
            byte: Box::new([0]),
            listening: false,
            slots: std::iter::repeat_with(Slot::default).take(depth).collect(),
            free: (0..depth).collect(),
            registry,
        };
        Ok((ring, bell))
    }

    /// Moves pieces until the queue is stopped and the kernel has answered everything. Only then
    /// is anything freed: on unwinding, too, the kernel may still write to what it was given.
    pub(crate) fn run(self) {
        let mut ring = ManuallyDrop::new(self);
        ring.serve();
        if !ring.listening {
            drop(ManuallyDrop::into_inner(ring));
        }
    }

    fn serve(&mut self) {
        let mut answers = Vec::new();
        loop {
            self.registry.settle(&self.ring.submitter());
            let (stopped, later) = match self.take() {
                Next::Stopped => (true, None),
                Next::Later(pause) => (false, Some(pause)),
                _ => (false, None),
            };
            let under_way = self.slots.len() - self.free.len();
            if stopped && under_way == 0 {
                // What listens for the bell reads into memory that ends with this: end it first.
                self.bell.ring();
                while self.listening && self.ring.submit_and_wait(1).is_ok() {
                    self.listening = !self.ring.completion().any(|c| c.user_data() == BELL);
                }
                return;
            }
            self.listen();
            self.sleep(later);
            answers.extend(self.ring.completion().map(|c| (c.user_data(), c.result())));
            for (tag, result) in answers.drain(..) {
                match tag {
                    BELL => {
                        self.listening = false;
                        self.bell.rung.store(false, Ordering::Release);
                    }
                    tag => self.answered(tag, result),
                }
            }
        }
    }

    /// Until something completes or arrives, or until what waits may begin.
    fn sleep(&mut self, later: Option<Duration>) {
        let woken = match later {
            None => self.ring.submit_and_wait(1),
            Some(pause) => {
                let until = types::Timespec::from(pause);
                let ask = types::SubmitArgs::new().timespec(&until);
                self.ring.submitter().submit_with_args(1, &ask)
            }
        };
        if woken.is_err_and(|e| !matches!(e.raw_os_error(), Some(libc::EINTR | libc::ETIME))) {
            // The kernel is short of something for now: what was asked stays asked.
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Starts what waits, as far as there are slots; says what is left.
    fn take(&mut self) -> Next {
        while let Some(&slot) = self.free.last() {
            match self.queue.look(&self.meter) {
                Next::Work(piece, owner) => {
                    let Some(_) = piece.file.descriptor(piece.way) else {
                        // No drive takes part: nothing to wait for.
                        self.queue.move_now(piece, owner, &self.meter);
                        continue;
                    };
                    self.free.pop();
                    // Memory that was registered before this read was asked for counts for it.
                    self.registry.settle(&self.ring.submitter());
                    owner.began(&piece);
                    let own = match piece.task {
                        Task::ReadOwned { bytes } => self.queue.memory(bytes),
                        _ => Vec::new(),
                    };
                    let held = UnderWay { piece, owner, own, done: 0, tried: false };
                    self.slots[slot].holds = Some(held);
                    let depth = (self.slots.len() - self.free.len()) as u64;
                    self.meter.depth_peak.fetch_max(depth, Ordering::Relaxed);
                    self.submit(slot);
                }
                rest => return rest,
            }
        }
        Next::Empty
    }

    /// Gives the kernel a slot's operation, or the rest of it.
    fn submit(&mut self, slot: usize) {
        let generation = self.slots[slot].generation;
        let Some(held) = &mut self.slots[slot].holds else { return };
        let (address, left) = held.rest();
        let bytes = left.min(MOST);
        let offset = held.piece.offset.saturating_add(held.done as u64);
        // A rest that is not aligned any more comes through the page cache.
        let whole = |n: u64| n.is_multiple_of(files::DIRECT_ALIGN);
        if !(whole(offset) && whole(bytes as u64)) {
            held.piece.way = Way::Cached;
        }
        let descriptor: RawFd = held.piece.file.descriptor(held.piece.way).unwrap_or(-1);
        let (file, length) = (types::Fd(descriptor), bytes as u32);
        let reads = held.piece.reads();
        let entry = match reads {
            true => self.registry.entry(address, bytes),
            false => None,
        };
        let operation = match (reads, entry) {
            (true, Some(entry)) => {
                self.meter.registered_reads.fetch_add(1, Ordering::Relaxed);
                opcode::ReadFixed::new(file, address, length, entry).offset(offset).build()
            }
            (true, None) => opcode::Read::new(file, address, length).offset(offset).build(),
            (false, _) => opcode::Write::new(file, address, length).offset(offset).build(),
        };
        self.flow(slot, |flow| flow.begin());
        let tag = (u64::from(generation) << 32) | slot as u64;
        self.push(&operation.user_data(tag));
    }

    fn flow(&self, slot: usize, tell: impl FnOnce(&crate::meter::Flow)) {
        let reads = self.slots[slot].holds.as_ref().is_none_or(|held| held.piece.reads());
        tell(if reads { &self.meter.read } else { &self.meter.write });
    }

    /// Puts an operation on the submission queue; full, that is handed to the kernel first.
    fn push(&mut self, operation: &io_uring::squeue::Entry) {
        loop {
            // SAFETY: the memory of a slot's operation lives in the slot, in the job of its lease
            // or with a caller that waits, until `answered`; that of the bell in `self.byte`, until
            // `run` returns. The descriptor lives in the piece's file.
            if unsafe { self.ring.submission().push(operation) }.is_ok() {
                return;
            }
            let _busy = self.ring.submit();
        }
    }

    fn listen(&mut self) {
        if !self.listening {
            let file = types::Fd(self.heard.as_raw_fd());
            let read = opcode::Read::new(file, self.byte.as_mut_ptr(), 1).build().user_data(BELL);
            self.push(&read);
            self.listening = true;
        }
    }

    /// The kernel answered an operation: on with its rest, once more, or done.
    fn answered(&mut self, tag: u64, result: i32) {
        let (slot, generation) = (tag as u32 as usize, (tag >> 32) as u32);
        if self.slots.get(slot).is_none_or(|s| s.generation != generation || s.holds.is_none()) {
            return;
        }
        let moved = usize::try_from(result);
        self.flow(slot, |flow| flow.end(moved.ok()));
        let Some(held) = &mut self.slots[slot].holds else { return };
        let moved = moved.map_err(|_| io::Error::from_raw_os_error(-result));
        let reads = held.piece.reads();
        let file = &held.piece.file;
        let done: Result<()> = match if reads { file.answer(moved) } else { moved } {
            Ok(0) if held.piece.bytes() > held.done && reads => {
                let (asked, got) = (held.piece.bytes() as u64, held.done as u64);
                Err(fault::ends_early(&file.name(), held.piece.offset, asked, got))
            }
            Ok(0) if held.piece.bytes() > held.done => {
                let error = io::Error::from(io::ErrorKind::WriteZero);
                Err(fault::at_path("storage/write", file.path(), &error))
            }
            Ok(moved) => {
                held.done += moved;
                if reads && held.piece.way == Way::Direct {
                    self.meter.direct_bytes.fetch_add(moved as u64, Ordering::Relaxed);
                }
                if held.done < held.piece.bytes() {
                    return self.submit(slot);
                }
                Ok(())
            }
            Err(error) => match error.kind() {
                io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock => {
                    return self.submit(slot);
                }
                _ if reads && !held.tried => {
                    held.tried = true;
                    self.meter.retries.fetch_add(1, Ordering::Relaxed);
                    return self.submit(slot);
                }
                _ if reads => {
                    let at = held.piece.offset.saturating_add(held.done as u64);
                    Err(fault::failed_twice(file.path(), at, &error))
                }
                _ => Err(fault::at_path("storage/write", file.path(), &error)),
            },
        };
        let Some(held) = self.slots[slot].holds.take() else { return };
        self.slots[slot].generation = generation.wrapping_add(1);
        self.free.push(slot);
        let UnderWay { piece, owner, own, .. } = held;
        let own = matches!(piece.task, Task::ReadOwned { .. }).then_some(own);
        if let (Some(own), Ok(())) = (&own, &done) {
            self.meter.copied_bytes.fetch_add(own.len() as u64, Ordering::Relaxed);
        }
        owner.answer(piece.offset, done.map(|()| own));
    }
}
