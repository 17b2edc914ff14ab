//! Units that take turns in staging memory, over and over: a ring in the order of a sweep. While
//! the device computes one, the next ones arrive; behind the last comes the first of the next
//! sweep, so that the drive works while the head computes. The service's threads read; this one
//! only starts reads and waits for them.

use super::layout::{Extent, Layout};
use super::ranges::Ranges;
use super::{import, lend};
use crate::events::{Recorder, Track, What};
use kvern_contract::{Buffer, DeviceBackend, Error, ErrorKind, Result, Slice};
use kvern_storage::{Fill, Filling, Priority, Region, Storage};
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long memory is waited for once a read failed: the failure is what is told.
const LOSS_WAIT: Duration = Duration::from_secs(1);

/// A unit that is streamed.
pub(super) struct Turn {
    /// Its index in the plan.
    pub unit: usize,
    pub name: Arc<str>,
    pub layout: Arc<Layout>,
}

/// What a ring needs.
pub(super) struct Ring<'a> {
    /// In the order of a sweep, at least one.
    pub turns: Vec<Turn>,
    /// Bytes of staging memory: the largest unit's at least.
    pub staging_bytes: u64,
    /// Most units under way beyond the one that is computed.
    pub ahead: usize,
    pub device: &'a mut dyn DeviceBackend,
    pub storage: &'a Arc<dyn Storage>,
    /// How long one read may be with the system.
    pub deadline: Duration,
    pub events: Arc<Recorder>,
}

/// An extent in staging memory, or on its way there.
struct Flight {
    turn: u64,
    extent: usize,
    at: u64,
    /// Until it has arrived.
    filling: Option<Filling>,
}

/// The ring. A turn is a count over all sweeps: turn `t` is of unit `t % units`.
pub(super) struct Stream {
    ring: Vec<Turn>,
    region: Arc<Region>,
    buffer: Buffer,
    ranges: Ranges,
    storage: Arc<dyn Storage>,
    deadline: Duration,
    events: Arc<Recorder>,
    ahead: usize,
    /// In the order of turns and extents.
    flights: VecDeque<Flight>,
    /// The turn and extent to start next.
    next: (u64, usize),
    /// The turn whose unit is computed.
    held: Option<u64>,
    /// Turns before this are over.
    over: u64,
    /// Turns that this sweep leaves out.
    left_out: Range<u64>,
    /// Bytes of this sweep's matrices, and what had arrived before it.
    sweep_bytes: u64,
    arrived_before: u64,
    /// Bytes of matrices that arrived, and the time that was waited for them.
    pub arrived_bytes: u64,
    pub waited: Duration,
}

impl Stream {
    /// Makes staging memory and starts to read. *Errors* of memory and the device.
    pub(super) fn new(ring: Ring<'_>) -> Result<Self> {
        let Ring { turns, staging_bytes, ahead, device, storage, deadline, events } = ring;
        let region = Region::in_huge_pages(staging_bytes as usize)?;
        let buffer = import(device, &region)?;
        storage.register(&region);
        let mut stream = Stream {
            // Behind the last unit comes the first, which is not read while it is in memory.
            ahead: ahead.min(turns.len().saturating_sub(1)),
            ring: turns,
            region,
            buffer,
            ranges: Ranges::new(staging_bytes),
            storage: Arc::clone(storage),
            deadline,
            events,
            flights: VecDeque::new(),
            next: (0, 0),
            held: None,
            over: 0,
            left_out: 0..0,
            sweep_bytes: 0,
            arrived_before: 0,
            arrived_bytes: 0,
            waited: Duration::ZERO,
        };
        stream.pump()?;
        Ok(stream)
    }

    /// A sweep begins that uses units before `end` only: the others are not read for it.
    pub(super) fn begin(&mut self, end: usize) -> Result<()> {
        let units = self.ring.len() as u64;
        let start = self.held.map_or(self.over, |held| held + 1).next_multiple_of(units);
        let used = || self.ring.iter().filter(|t| t.unit < end);
        self.left_out = start + used().count() as u64..start + units;
        self.sweep_bytes = used().map(|t| t.layout.matrix_bytes).sum();
        self.arrived_before = self.arrived_bytes;
        self.pump()
    }

    /// Bytes of this sweep's matrices that arrived, and of all of them.
    pub(super) fn swept(&self) -> (u64, u64) {
        (self.arrived_bytes - self.arrived_before, self.sweep_bytes)
    }

    /// Whether a unit is being computed on.
    pub(super) fn holds(&self) -> bool {
        self.held.is_some()
    }

    /// The unit that was computed gives way. *Caller*: has waited for all work on it.
    pub(super) fn leave(&mut self) -> Result<()> {
        if let Some(held) = self.held.take() {
            self.over = held + 1;
            self.release(held + 1)?;
        }
        self.pump()
    }

    /// Waits until a unit is in memory; answers where each of its extents is. Units before it give
    /// way. *Caller*: has waited for all work on them. *Errors* of the reads.
    pub(super) fn arrive(&mut self, unit: usize) -> Result<Vec<Slice>> {
        let units = self.ring.len() as u64;
        let index = self.ring.iter().position(|t| t.unit == unit);
        let index = index.ok_or_else(|| internal(format!("unit {unit} is not streamed")))? as u64;
        let held = self.held.filter(|held| held % units == index);
        let turn = held.unwrap_or_else(|| {
            let from = self.held.map_or(self.over, |held| held + 1);
            from + (index + units - from % units) % units
        });
        if held.is_none() {
            self.enter(turn).inspect_err(|_| self.lose(turn))?;
            self.wait(turn).inspect_err(|_| self.lose(turn))?;
        }
        let here = self.flights.iter().filter(|f| f.turn == turn);
        Ok(here.map(|f| Slice { buffer: self.buffer, offset: f.at }).collect())
    }

    /// Makes a turn the one that is computed, with all of its reads started.
    fn enter(&mut self, turn: u64) -> Result<()> {
        self.held = Some(turn);
        self.release(turn)?;
        if self.flights.front().map_or(self.next, |f| (f.turn, f.extent)) != (turn, 0) {
            // It was not expected now: what was read ahead is of no use.
            self.release(u64::MAX)?;
            self.next = (turn, 0);
        }
        while self.next.0 == turn {
            if !self.start()? {
                return Err(internal("a unit that fits staging memory found no room".into()));
            }
        }
        self.pump()
    }

    /// Waits for the reads of a turn.
    fn wait(&mut self, turn: u64) -> Result<()> {
        let began = Instant::now();
        let (mut asked, mut ended, mut read) = (None, began, 0);
        for flight in self.flights.iter_mut().filter(|f| f.turn == turn) {
            let extent =
                &self.ring[(turn % self.ring.len() as u64) as usize].layout.extents[flight.extent];
            let Some(filling) = flight.filling.take() else { continue };
            let clock = filling.clock();
            filling.wait(self.deadline).into_iter().try_for_each(|done| done.map(drop))?;
            copy(&self.region, flight.at, extent)?;
            let since = *asked.get_or_insert(clock.began());
            ended = if read == 0 { since } else { ended }.max(clock.began() + clock.took());
            read += extent.bytes;
        }
        let waited = began.elapsed();
        self.waited += waited;
        self.arrived_bytes += self.layout(turn).matrix_bytes;
        let units = self.ring.len() as u64;
        let name = &self.ring[(turn % units) as usize].name;
        let what = |track| {
            let sweep = turn / units + 1;
            move || What::new(track, &**name).arg("sweep", sweep)
        };
        let asked = asked.unwrap_or(began);
        let reading = (asked, ended.duration_since(asked));
        self.events.operation("safetensor_read", reading, read, what(Track::Reading));
        self.events.operation("layer_load", (began, waited), read, what(Track::Waiting));
        Ok(())
    }

    /// What an error leaves: a sweep that is over, and nothing under way.
    fn lose(&mut self, turn: u64) {
        let start = (turn + 1).next_multiple_of(self.ring.len() as u64);
        (self.held, self.over, self.next) = (None, start, (start, 0));
        let within = self.deadline.min(LOSS_WAIT);
        // The error that is on its way says more.
        let _ = self.free(u64::MAX, within);
    }

    /// Starts reads while there is room, at most `ahead` units beyond the one that is computed.
    fn pump(&mut self) -> Result<()> {
        while self.start()? {}
        Ok(())
    }

    /// Starts the next extent's read; whether there was room.
    fn start(&mut self) -> Result<bool> {
        if self.next.1 == 0 && self.held != Some(self.next.0) {
            if self.left_out.contains(&self.next.0) {
                self.next.0 = self.left_out.end;
            }
            let mut beyond: Vec<u64> = self.flights.iter().map(|f| f.turn).collect();
            beyond.dedup();
            // The one that is computed, or will be next, is among them.
            if beyond.len() > self.ahead {
                return Ok(false);
            }
        }
        let (turn, index) = self.next;
        let layout = Arc::clone(self.layout(turn));
        let extent = layout.extents.get(index);
        let extent = extent.ok_or_else(|| internal("a streamed unit has no weights".into()))?;
        let own: Vec<u64> = self.flights.iter().filter(|f| f.turn == turn).map(|f| f.at).collect();
        let rest: Vec<u64> = layout.extents[index + 1..].iter().map(|e| e.memory).collect();
        let Some(at) = self.ranges.place(&own, extent.memory, &rest) else { return Ok(false) };
        let into = lend(&self.region, at as usize, extent.bytes as usize)?;
        self.ranges.take(at, extent.memory);
        let fill = Fill { file: extent.file, offset: extent.start, into };
        let filling = Some(self.storage.fill(vec![fill], Priority::Next));
        self.flights.push_back(Flight { turn, extent: index, at, filling });
        self.next = match index + 1 == layout.extents.len() {
            true => (turn + 1, 0),
            false => (turn, index + 1),
        };
        Ok(true)
    }

    /// Frees the memory of turns before `end`. *Errors* Timeout: the system still writes to it.
    fn release(&mut self, end: u64) -> Result<()> {
        self.free(end, self.deadline)
    }

    /// Frees the memory of turns before `end`. What is still read there is given up, and waited for
    /// where the system has it already, but not for longer than `within`.
    fn free(&mut self, end: u64, within: Duration) -> Result<()> {
        let count = self.flights.iter().take_while(|f| f.turn < end).count();
        let gone: Vec<Flight> = self.flights.drain(..count).collect();
        gone.iter().for_each(|f| self.ranges.free(f.at));
        let under_way: Vec<Filling> = gone.into_iter().filter_map(|f| f.filling).collect();
        under_way.iter().for_each(Filling::give_up);
        let began = Instant::now();
        while !under_way.iter().all(Filling::is_done) {
            if began.elapsed() > within {
                let text = format!(
                    "reads that were given up are still with the system after {} s: check the \
                     drive",
                    within.as_secs_f64()
                );
                return Err(Error::new(ErrorKind::Timeout, "engine/stream", text));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    fn layout(&self, turn: u64) -> &Arc<Layout> {
        &self.ring[(turn % self.ring.len() as u64) as usize].layout
    }
}

/// Puts those of an extent's matrices elsewhere whose place does not suit their values.
pub(super) fn copy(region: &Arc<Region>, at: u64, extent: &Extent) -> Result<()> {
    if extent.copies.is_empty() {
        return Ok(());
    }
    let mut memory = region.lend(at as usize, extent.memory as usize)?;
    for copy in &extent.copies {
        let from = copy.from as usize;
        memory.copy_within(from..from + copy.bytes as usize, copy.to as usize);
    }
    Ok(())
}

fn internal(text: String) -> Error {
    Error::new(ErrorKind::Internal, "engine/stream", text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::Watch;
    use crate::weights::Stored;
    use crate::weights::layout::Shape;
    use kvern_contract::WeightEncoding;
    use kvern_device_cpu::CpuDevice;
    use kvern_storage::OpenHow;
    use kvern_storage::double::{FaultPlan, Faults, MemoryStorage};

    #[test]
    fn memory_of_reads_that_were_given_up_is_free_once_the_system_is_done_and_not_before() {
        let drive = MemoryStorage::new();
        drive.publish("/f".as_ref(), &[7; 8192]).expect("a file");
        let faults = Faults::new(drive, FaultPlan { hold_reads: true, ..FaultPlan::default() });
        let storage = Arc::clone(&faults) as Arc<dyn Storage>;
        let file = storage.open("/f".as_ref(), OpenHow::Read).expect("it opens");
        let turn = |unit: usize| {
            let (offset, encoding) = (4096 * unit as u64, WeightEncoding::Bf16);
            let of = Stored { file, offset, bytes: 4096, encoding, outputs: 1, inputs: 2048 };
            let layout = Layout::of(&[of], |_| Shape { align: 1, bytes: 8192 });
            Turn { unit, name: "a unit".into(), layout: Arc::new(layout) }
        };
        let mut stream = Stream::new(Ring {
            turns: vec![turn(0), turn(1)],
            staging_bytes: 8192,
            ahead: 1,
            device: &mut CpuDevice::default(),
            storage: &storage,
            deadline: Duration::from_millis(5),
            events: Recorder::new(Arc::new(|_, _| ()), Watch::default()),
        })
        .expect("reads that start");
        assert_eq!(faults.kept(), 2);
        let error = stream.release(1).expect_err("the system has it");
        assert_eq!(error.kind, ErrorKind::Timeout);
        assert!(error.message.contains("given up are still with the system"), "{error}");
        faults.release();
        stream.release(2).expect("the system is done");
        assert!(stream.region.lend(0, 8192).is_ok());
    }
}
