//! Where weights lie. What stays is read once; the rest is read again every sweep, the next unit
//! while the device computes the last one, by a thread that sleeps in the kernel.

mod files;
mod rows;
mod stream;

use crate::events::Recorder;
use crate::family::{Matrix, Plan};
pub(crate) use files::{Files, Stored};
use files::{finish, read, widen};
use kvern_contract::{
    Access, Buffer, DeviceBackend, Error, ErrorKind, FileRead, Result, Slice, Weight,
    WeightEncoding,
};
use kvern_storage::{Budget, Region, Storage};
pub(crate) use rows::RowReader;
use std::sync::Arc;
use std::time::Instant;
use stream::Stream;

/// Matrices start at multiples of this in memory, whatever their place in the file.
const ALIGN: u64 = 64;

/// Where every matrix and vector is for the device, right now.
pub(crate) struct Table {
    pub matrices: Vec<Weight>,
    /// f32, one row each.
    pub vectors: Vec<Weight>,
}

/// A unit's matrices and whether they stay.
pub(crate) struct Unit {
    matrices: Vec<Matrix>,
    bytes: u64,
    sweep: bool,
    resident: bool,
}

impl Unit {
    fn is_streamed(&self) -> bool {
        self.sweep && !self.resident
    }
}

/// All of a model's weights.
pub(crate) struct Weights {
    pub table: Table,
    stored: Vec<Stored>,
    units: Vec<Unit>,
    stream: Option<Stream>,
    events: Arc<Recorder>,
    /// Memory that the device computes on for as long as the engine lives.
    kept: Vec<Arc<Region>>,
}

/// What a load of weights needs.
pub(crate) struct Load<'a> {
    pub plan: &'a Plan,
    pub files: Files,
    /// Whether each unit of the plan stays.
    pub resident: &'a [bool],
    /// How many streamed units memory holds at once.
    pub slots: usize,
    pub device: &'a mut dyn DeviceBackend,
    pub storage: &'a Arc<dyn Storage>,
    pub budget: &'a Budget,
    pub events: Arc<Recorder>,
}

impl Weights {
    /// Reads what stays and makes room for what does not. *Errors* OverBudget, and the reads'.
    pub(crate) fn load(load: Load<'_>) -> Result<Self> {
        let Load { plan, files, resident, slots, device, storage, budget, events } = load;
        let unit = |(unit, resident): (&crate::family::UnitPlan, &bool)| Unit {
            matrices: unit.matrices.clone(),
            bytes: unit_bytes(&unit.matrices, &files.stored),
            sweep: unit.access == Access::Sweep,
            resident: *resident,
        };
        let units: Vec<Unit> = plan.units.iter().zip(resident).map(unit).collect();
        let stay: u64 = units.iter().filter(|u| u.resident).map(|u| u.bytes).sum();
        budget.reserve("weights", stay + files.vector_bytes())?;
        let matrices = vec![Weight::default(); plan.matrices.len()];
        let mut weights = Weights {
            table: Table { matrices, vectors: Vec::new() },
            stored: files.stored,
            units,
            stream: None,
            events,
            kept: Vec::new(),
        };
        weights.read_vectors(&files.vectors, device, storage.as_ref())?;
        for unit in 0..weights.units.len() {
            if weights.units[unit].resident {
                weights.read_resident(unit, device, storage.as_ref())?;
            }
        }
        let streamed = weights.units.iter().filter(|u| u.is_streamed());
        if let Some(largest) = streamed.map(|u| u.bytes).max() {
            budget.reserve("weight staging", largest * slots as u64)?;
            weights.stream = Some(Stream::new(largest, slots, device, storage)?);
        }
        Ok(weights)
    }

    fn read_vectors(
        &mut self,
        vectors: &[Stored],
        device: &mut dyn DeviceBackend,
        storage: &dyn Storage,
    ) -> Result<()> {
        let bytes = vectors.iter().map(|v| up(4 * u64::from(v.inputs), ALIGN)).sum::<u64>();
        let region = Region::new(bytes.max(ALIGN) as usize)?;
        let buffer = import(device, &region)?;
        let mut raw: Vec<Vec<u8>> = vectors.iter().map(|v| vec![0; v.bytes as usize]).collect();
        let mut reads: Vec<_> =
            vectors.iter().zip(&mut raw).map(|(v, into)| read(v, into)).collect();
        finish(storage, &mut reads)?;
        let mut lease = region.lend(0, bytes.max(ALIGN) as usize)?;
        let mut at = 0;
        for (vector, raw) in vectors.iter().zip(&raw) {
            widen(raw, vector.encoding, &mut lease[at..at + 4 * vector.inputs as usize]);
            self.table.vectors.push(Weight {
                data: Slice { buffer, offset: at as u64 },
                encoding: WeightEncoding::F32,
                outputs: 1,
                inputs: vector.inputs,
                ..Weight::default()
            });
            at += up(4 * u64::from(vector.inputs), ALIGN) as usize;
        }
        drop(lease);
        self.kept.push(region);
        Ok(())
    }

    /// Reads a unit that stays and lets the device repack it.
    fn read_resident(
        &mut self,
        unit: usize,
        device: &mut dyn DeviceBackend,
        storage: &dyn Storage,
    ) -> Result<()> {
        let bytes = self.units[unit].bytes.max(ALIGN) as usize;
        let region = Region::new(bytes)?;
        let buffer = import(device, &region)?;
        let start = Instant::now();
        let mut lease = region.lend(0, bytes)?;
        let mut into = &mut lease[..];
        let mut reads: Vec<FileRead<'_>> = Vec::new();
        for matrix in &self.units[unit].matrices {
            let stored = &self.stored[matrix.0];
            let (this, rest) = into.split_at_mut(up(stored.bytes, ALIGN) as usize);
            into = rest;
            reads.push(read(stored, &mut this[..stored.bytes as usize]));
        }
        finish(storage, &mut reads)?;
        drop(reads);
        drop(lease);
        self.events.record("safetensor_read", start.elapsed(), self.units[unit].bytes);
        self.place(unit, Slice { buffer, offset: 0 });
        let mut used = false;
        for matrix in self.units[unit].matrices.clone() {
            let adapted = device.adapt(&self.table.matrices[matrix.0])?;
            used |= adapted.data.buffer == buffer || adapted.scales.buffer == buffer;
            self.table.matrices[matrix.0] = adapted;
        }
        match used {
            true => self.kept.push(region),
            false => device.free(buffer),
        }
        Ok(())
    }

    /// Says where a unit's matrices are now.
    fn place(&mut self, unit: usize, mut at: Slice) {
        for matrix in &self.units[unit].matrices {
            let stored = &self.stored[matrix.0];
            self.table.matrices[matrix.0] = Weight {
                data: at,
                encoding: stored.encoding,
                outputs: stored.outputs,
                inputs: stored.inputs,
                ..Weight::default()
            };
            at.offset += up(stored.bytes, ALIGN);
        }
    }

    /// Whether a unit is read again every sweep.
    pub(crate) fn is_streamed(&self, unit: usize) -> bool {
        self.units[unit].is_streamed()
    }

    /// Whether a matrix is in memory for the whole run.
    pub(crate) fn stays(&self, matrix: Matrix) -> bool {
        self.units.iter().any(|u| u.resident && u.matrices.contains(&matrix))
    }

    /// A matrix in its file.
    pub(crate) fn stored(&self, matrix: Matrix) -> Stored {
        self.stored[matrix.0]
    }

    /// Waits until a streamed unit is in memory, and starts reading the one after it. *Caller*: has
    /// waited for all work on streamed units before it. *Errors* of the reads.
    pub(crate) fn arrive(&mut self, unit: usize) -> Result<()> {
        let next = (unit + 1..self.units.len()).find(|u| self.units[*u].is_streamed());
        let Some(stream) = &mut self.stream else {
            let text = format!("unit {unit} is streamed and there is no staging memory");
            return Err(Error::new(ErrorKind::Internal, "engine/stream", text));
        };
        let pieces = |unit: usize| stream::pieces(&self.units[unit].matrices, &self.stored);
        let at = stream.arrive((unit, pieces(unit)), next.map(|n| (n, pieces(n))), &self.events)?;
        self.place(unit, at);
        Ok(())
    }
}

pub(crate) fn up(n: u64, to: u64) -> u64 {
    n.div_ceil(to) * to
}

/// Bytes that a unit's matrices take in memory.
pub(crate) fn unit_bytes(matrices: &[Matrix], stored: &[Stored]) -> u64 {
    matrices.iter().map(|m| up(stored[m.0].bytes, ALIGN)).sum()
}

/// Host memory as a device's buffer. *Errors* Unsupported: the device cannot share host memory.
pub(crate) fn import(device: &mut dyn DeviceBackend, region: &Region) -> Result<Buffer> {
    device.import(region.span())?.ok_or_else(|| {
        let text = "the device cannot compute on host memory, which this engine needs of it";
        Error::new(ErrorKind::Unsupported, "engine/load", text)
    })
}
