//! Where weights lie. What stays is read once; the rest is read again every sweep, ahead of the
//! device, by the storage service.

mod files;
mod layout;
mod ranges;
mod resident;
mod rows;
mod stream;

use crate::events::{Progress, Recorder};
use crate::family::{Matrix, Plan, UnitPlan};
use crate::placement;
use crate::spec::StreamFacts;
pub(crate) use files::{Files, Stored};
use kvern_contract::{
    Access, Buffer, DeviceBackend, Error, ErrorKind, FileId, Result, Slice, Weight,
};
use kvern_storage::{Budget, Lease, Region, Storage};
pub(crate) use layout::Layout;
pub(crate) use rows::RowReader;
use std::sync::Arc;
use std::time::Duration;
use stream::{Ring, Stream, Turn};

/// Vectors start at multiples of this in memory.
const ALIGN: u64 = 64;

/// Where every matrix and vector is for the device, right now.
pub(crate) struct Table {
    pub matrices: Vec<Weight>,
    /// f32, one row each.
    pub vectors: Vec<Weight>,
}

/// A unit's matrices and whether they stay.
pub(crate) struct Unit {
    name: Arc<str>,
    matrices: Vec<Matrix>,
    layout: Arc<Layout>,
    sweep: bool,
    resident: bool,
}

impl Unit {
    fn is_streamed(&self) -> bool {
        self.sweep && !self.resident && !self.matrices.is_empty()
    }
}

/// All of a model's weights.
pub(crate) struct Weights {
    pub table: Table,
    stored: Vec<Stored>,
    units: Vec<Unit>,
    stream: Option<Stream>,
    storage: Arc<dyn Storage>,
    events: Arc<Recorder>,
    /// Files that are read again every sweep.
    watched: Vec<FileId>,
    facts: StreamFacts,
    /// Memory that the device computes on for as long as the engine lives.
    kept: Vec<Arc<Region>>,
}

/// What a load of weights needs.
pub(crate) struct Load<'a> {
    pub plan: &'a Plan,
    pub files: Files,
    /// Whether each unit of the plan stays.
    pub resident: &'a [bool],
    /// Memory for units that do not.
    pub staging: Staging,
    pub device: &'a mut dyn DeviceBackend,
    pub storage: &'a Arc<dyn Storage>,
    pub budget: &'a Budget,
    /// How long one read may be with the system.
    pub deadline: Duration,
    pub events: Arc<Recorder>,
}

/// Memory in which streamed units take turns.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Staging {
    pub bytes: u64,
    /// Most units that are under way beyond the one that is computed.
    pub ahead: usize,
    /// So many always fit whole.
    pub whole: usize,
}

impl Weights {
    /// Reads what stays, makes room for what does not, and starts to read that. *Errors*
    /// OverBudget, and the reads'.
    pub(crate) fn load(load: Load<'_>) -> Result<Self> {
        let Load { plan, files, resident, staging, device, storage, budget, deadline, events } =
            load;
        let unit = |((unit, layout), resident): ((&UnitPlan, &Arc<Layout>), &bool)| Unit {
            name: placement::name(unit.layer, unit.role).into(),
            matrices: unit.matrices.clone(),
            layout: Arc::clone(layout),
            sweep: unit.access == Access::Sweep,
            resident: *resident,
        };
        let units: Vec<Unit> =
            plan.units.iter().zip(&files.layouts).zip(resident).map(unit).collect();
        let stay: u64 = units.iter().filter(|u| u.resident).map(|u| u.layout.memory()).sum();
        budget.reserve("weights", stay + files.vector_bytes())?;
        let streamed = || units.iter().filter(|u| u.is_streamed());
        let copied = streamed().map(|u| u.layout.copied());
        let (copied_tensors, copied_bytes) = copied.fold((0, 0), |a, c| (a.0 + c.0, a.1 + c.1));
        let facts = StreamFacts {
            units: streamed().count() as u32,
            staging_bytes: staging.bytes,
            read_ahead_units: staging.whole as u32,
            sweep_bytes: streamed().map(|u| u.layout.matrix_bytes).sum(),
            copied_tensors,
            copied_bytes,
            direct: files.direct,
            refused: files.refused.clone(),
            path: storage.path_kind(),
            ..StreamFacts::default()
        };
        let mut weights = Weights {
            table: Table {
                matrices: vec![Weight::default(); plan.matrices.len()],
                vectors: Vec::new(),
            },
            watched: watched(&units, &files.stored),
            stored: files.stored,
            units,
            stream: None,
            storage: Arc::clone(storage),
            events,
            facts,
            kept: Vec::new(),
        };
        weights.read_vectors(&files.vectors, device, storage.as_ref())?;
        weights.read_resident(device, storage.as_ref(), deadline)?;
        files_of(weights.stored.iter().chain(&files.vectors))
            .into_iter()
            .try_for_each(|file| storage.unchanged(file))?;
        weights.stream_rest(staging, device, budget, deadline)?;
        Ok(weights)
    }

    fn stream_rest(
        &mut self,
        staging: Staging,
        device: &mut dyn DeviceBackend,
        budget: &Budget,
        deadline: Duration,
    ) -> Result<()> {
        let turn = |unit: usize| {
            let Unit { name, layout, .. } = &self.units[unit];
            Turn { unit, name: Arc::clone(name), layout: Arc::clone(layout) }
        };
        let streamed = (0..self.units.len()).filter(|u| self.is_streamed(*u));
        let turns: Vec<Turn> = streamed.map(turn).collect();
        if !turns.is_empty() {
            budget.reserve("weight staging", staging.bytes)?;
            let (storage, events) = (&self.storage, Arc::clone(&self.events));
            let (staging_bytes, ahead) = (staging.bytes, staging.ahead);
            let ring = Ring { turns, staging_bytes, ahead, device, storage, deadline, events };
            self.stream = Some(Stream::new(ring)?);
        }
        Ok(())
    }

    /// Says where a unit's matrices are now; `extents` are its extents' places.
    fn place(&mut self, unit: usize, extents: &[Slice]) {
        let unit = &self.units[unit];
        for (matrix, place) in unit.matrices.iter().zip(&unit.layout.places) {
            let (stored, at) = (&self.stored[matrix.0], extents[place.extent]);
            self.table.matrices[matrix.0] = Weight {
                data: Slice { buffer: at.buffer, offset: at.offset + place.at },
                encoding: stored.encoding,
                outputs: stored.outputs,
                inputs: stored.inputs,
                ..Weight::default()
            };
        }
    }

    /// Whether a unit is read again every sweep.
    pub(crate) fn is_streamed(&self, unit: usize) -> bool {
        self.units[unit].is_streamed()
    }

    /// What a unit is called.
    pub(crate) fn name(&self, unit: usize) -> &str {
        &self.units[unit].name
    }

    /// Sweeps that have begun.
    pub(crate) fn sweeps(&self) -> u64 {
        self.facts.sweeps
    }

    /// Whether a matrix is in memory for the whole run.
    pub(crate) fn stays(&self, matrix: Matrix) -> bool {
        self.units.iter().any(|u| u.resident && u.matrices.contains(&matrix))
    }

    /// A matrix in its file.
    pub(crate) fn stored(&self, matrix: Matrix) -> Stored {
        self.stored[matrix.0]
    }

    /// A sweep begins that uses units before `end` only.
    pub(crate) fn begin(&mut self, end: usize) -> Result<()> {
        self.facts.sweeps += 1;
        self.stream.as_mut().map_or(Ok(()), |stream| stream.begin(end))?;
        self.tell();
        Ok(())
    }

    /// Says how far the sweep is.
    fn tell(&self) {
        let (bytes, of) = self.stream.as_ref().map_or((0, 0), Stream::swept);
        self.events.progress(|| Progress::Sweep { bytes, of });
    }

    /// Bytes of streamed weights that arrived so far.
    pub(crate) fn arrived(&self) -> u64 {
        self.stream.as_ref().map_or(0, |s| s.arrived_bytes)
    }

    /// Whether all that a sweep has read is of the files that were opened. *Caller*: the sweep
    /// reads nothing more, and nothing that was computed of it is believed yet. *Errors* Damaged:
    /// a file is not what it was.
    pub(crate) fn vouch(&self) -> Result<()> {
        self.watched.iter().try_for_each(|file| self.storage.unchanged(*file))
    }

    /// Whether work on weights has to be done before this unit is entered: it is streamed, or the
    /// last one was and gives its memory back.
    pub(crate) fn is_border(&self, unit: usize) -> bool {
        self.is_streamed(unit) || self.stream.as_ref().is_some_and(Stream::holds)
    }

    /// Makes a unit be in memory, and lets those before it give way to the next ones. *Caller*: has
    /// waited for all work on streamed units before it. *Errors* of the reads.
    pub(crate) fn arrive(&mut self, unit: usize) -> Result<()> {
        let streamed = self.is_streamed(unit);
        let Some(stream) = &mut self.stream else {
            let text = format!("unit {unit} is streamed and there is no staging memory");
            return if streamed {
                Err(Error::new(ErrorKind::Internal, "engine/stream", text))
            } else {
                Ok(())
            };
        };
        match streamed {
            false => stream.leave(),
            true => {
                let extents = stream.arrive(unit)?;
                self.place(unit, &extents);
                self.tell();
                Ok(())
            }
        }
    }

    /// What was streamed so far.
    pub(crate) fn facts(&self) -> StreamFacts {
        let stream = self.stream.as_ref();
        StreamFacts {
            streamed_bytes: self.arrived(),
            waited: stream.map_or(Duration::ZERO, |s| s.waited),
            ..self.facts.clone()
        }
    }
}

/// Files that hold a unit that does not stay.
fn watched(units: &[Unit], stored: &[Stored]) -> Vec<FileId> {
    let away = units.iter().filter(|u| !u.resident).flat_map(|u| &u.matrices);
    files_of(away.map(|m| &stored[m.0]))
}

/// Each file once.
fn files_of<'a>(stored: impl Iterator<Item = &'a Stored>) -> Vec<FileId> {
    let mut files: Vec<FileId> = stored.map(|s| s.file).collect();
    files.sort_by_key(|file| file.0);
    files.dedup();
    files
}

pub(crate) fn up(n: u64, to: u64) -> u64 {
    n.div_ceil(to) * to
}

/// Memory for reads that come again and again. *Errors* Timeout: a read that was given up still has
/// it.
fn lend(region: &Arc<Region>, at: usize, bytes: usize) -> Result<Lease> {
    region.lend(at, bytes).map_err(|error| {
        let text = "a read that was given up is still with the system, and so is its memory: check \
                    the drive, and start again";
        match error.kind {
            ErrorKind::Busy => Error::new(ErrorKind::Timeout, "engine/stream", text),
            _ => error,
        }
    })
}

/// Host memory as a device's buffer. *Errors* Unsupported: the device cannot share host memory.
pub(crate) fn import(device: &mut dyn DeviceBackend, region: &Region) -> Result<Buffer> {
    device.import(region.span())?.ok_or_else(|| {
        let text = "the device cannot compute on host memory, which this engine needs of it";
        Error::new(ErrorKind::Unsupported, "engine/load", text)
    })
}
