//! Units that take turns in staging memory. One thread reads, the engine computes; a slot's lease
//! travels to the thread and comes home with its answer.

use super::files::{Stored, finish, read};
use super::{ALIGN, import, up};
use crate::events::Recorder;
use crate::family::Matrix;
use kvern_contract::{DeviceBackend, Error, ErrorKind, Result, Slice};
use kvern_storage::{Lease, Region, Storage};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

/// Matrices and their places in a slot.
pub(super) type Pieces = Vec<(Stored, usize)>;

/// Where a unit's matrices go in a slot, one after another.
pub(super) fn pieces(matrices: &[Matrix], stored: &[Stored]) -> Pieces {
    let mut at = 0;
    let place = |m: &Matrix| {
        let here = at;
        at += up(stored[m.0].bytes, ALIGN) as usize;
        (stored[m.0], here)
    };
    matrices.iter().map(place).collect()
}

struct Slot {
    region: Arc<Region>,
    at: Slice,
    holds: Option<usize>,
}

/// Staging memory and the thread that fills it.
pub(super) struct Stream {
    slots: Vec<Slot>,
    next: usize,
    /// The unit on its way, and its slot.
    arriving: Option<(usize, usize, u64)>,
    ask: Sender<(Lease, Pieces)>,
    answer: Receiver<(Result<()>, Duration)>,
}

impl Stream {
    /// `slots` places for units of at most `largest` bytes.
    pub(super) fn new(
        largest: u64,
        slots: usize,
        device: &mut dyn DeviceBackend,
        storage: &Arc<dyn Storage>,
    ) -> Result<Self> {
        let slot = || {
            let region = Region::new(largest as usize)?;
            let at = Slice { buffer: import(device, &region)?, offset: 0 };
            Ok(Slot { region, at, holds: None })
        };
        let slots = std::iter::repeat_with(slot).take(slots).collect::<Result<_>>()?;
        let (ask, asked) = channel::<(Lease, Pieces)>();
        let (reply, answer) = channel();
        let storage = Arc::clone(storage);
        std::thread::Builder::new()
            .name("kvern-weights".into())
            .spawn(move || {
                while let Ok((mut lease, pieces)) = asked.recv() {
                    let start = Instant::now();
                    let done = fill(storage.as_ref(), &mut lease, &pieces);
                    drop(lease);
                    if reply.send((done, start.elapsed())).is_err() {
                        return;
                    }
                }
            })
            .map_err(|e| Error::new(ErrorKind::Internal, "engine/load", e.to_string()))?;
        Ok(Stream { slots, next: 0, arriving: None, ask, answer })
    }

    /// Waits for `this` and starts to read `next` into another slot, where there is one. Answers
    /// where `this` is.
    pub(super) fn arrive(
        &mut self,
        this: (usize, Pieces),
        next: Option<(usize, Pieces)>,
        events: &Recorder,
    ) -> Result<Slice> {
        self.settle(events)?;
        if !self.slots.iter().any(|s| s.holds == Some(this.0)) {
            self.request(this.0, this.1)?;
            self.settle(events)?;
        }
        let held = self.slots.iter().position(|s| s.holds == Some(this.0));
        let held = held.ok_or_else(|| {
            let text = "a unit was read and no slot holds it";
            Error::new(ErrorKind::Internal, "engine/stream", text)
        })?;
        if let Some((unit, pieces)) = next
            && self.slots.len() > 1
            && !self.slots.iter().any(|s| s.holds == Some(unit))
        {
            self.next = (held + 1) % self.slots.len();
            self.request(unit, pieces)?;
        }
        Ok(self.slots[held].at)
    }

    fn request(&mut self, unit: usize, pieces: Pieces) -> Result<()> {
        let slot = &mut self.slots[self.next];
        slot.holds = None;
        let bytes = pieces.last().map_or(0, |(s, at)| *at + s.bytes as usize);
        let lease = slot.region.lend(0, bytes)?;
        self.ask.send((lease, pieces)).map_err(|_| gone())?;
        self.arriving = Some((unit, self.next, bytes as u64));
        self.next = (self.next + 1) % self.slots.len();
        Ok(())
    }

    fn settle(&mut self, events: &Recorder) -> Result<()> {
        let Some((unit, slot, bytes)) = self.arriving.take() else { return Ok(()) };
        let (done, took) = self.answer.recv().map_err(|_| gone())?;
        done?;
        events.record("safetensor_read", took, bytes);
        events.record("layer_load", took, bytes);
        self.slots[slot].holds = Some(unit);
        Ok(())
    }
}

fn gone() -> Error {
    Error::new(ErrorKind::Internal, "engine/stream", "the thread that reads weights has ended")
}

fn fill(storage: &dyn Storage, lease: &mut [u8], pieces: &Pieces) -> Result<()> {
    let mut reads = Vec::new();
    let (mut rest, mut start) = (lease, 0);
    for (stored, at) in pieces {
        let (_, from) = rest.split_at_mut(at - start);
        let (this, after) = from.split_at_mut(stored.bytes as usize);
        reads.push(read(stored, this));
        (rest, start) = (after, at + stored.bytes as usize);
    }
    finish(storage, &mut reads)
}
