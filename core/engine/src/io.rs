//! What the host tells the device in buffers: ids, rope tables, write targets, spans, page tables.
//! Parts of one region. A step's inputs stay as long as it runs; its other tables stay until the
//! list of ops that reads them has run.

use crate::weights::import;
use kvern_contract::{
    DeviceBackend, Error, ErrorKind, PageEntry, Result, RowWrite, Slice, SpanEntry,
};
use kvern_storage::{Budget, Region};
use std::sync::Arc;

/// Tables start at multiples of this.
const ALIGN: usize = 64;

/// The region and what has been put into it.
pub(crate) struct Io {
    region: Arc<Region>,
    at: Slice,
    /// Bytes of this step that are not handed over yet, and where they go.
    bytes: Vec<u8>,
    start: usize,
    /// Where the step's inputs end.
    inputs: usize,
    inverse_frequencies: Vec<f32>,
}

/// Where a step's inputs are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Inputs {
    /// Ids, u32 `[row]`.
    pub ids: Slice,
    /// 0, 1, 2, ... u32 `[row]`: rows of the tables below, and of embeddings read row by row.
    pub rows: Slice,
    /// Cosines and sines, f32 `[row][rotary / 2]`, at each row's position.
    pub cos: Slice,
    pub sin: Slice,
}

/// How large the tables of a step can be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    pub rows: u64,
    pub layers: u64,
    /// Sequences of a batch.
    pub sessions: u64,
    /// Pages of a layer that one sequence has.
    pub pages: u64,
    /// Values of a row of cosines.
    pub rotary_half: u64,
}

/// Bytes that the tables of any step take.
pub(crate) fn bytes_of(size: Size) -> u64 {
    let inputs = size.rows * (4 + 4 + 4 + 8 * size.rotary_half) + 6 * ALIGN as u64;
    let entries = size.sessions * size.pages * size_of::<PageEntry>() as u64;
    let spans = size.sessions * size_of::<SpanEntry>() as u64;
    // A list ends with each part of a history that is loaded: at most two parts are on one.
    let layer = size.rows * size_of::<RowWrite>() as u64 + entries + 2 * spans;
    inputs + size.layers * (layer + 5 * ALIGN as u64)
}

impl Io {
    pub(crate) fn new(
        bytes: u64,
        inverse_frequencies: Vec<f32>,
        device: &mut dyn DeviceBackend,
        budget: &Budget,
    ) -> Result<Self> {
        budget.reserve("step tables", bytes)?;
        let region = Region::new(bytes as usize)?;
        let at = Slice { buffer: import(device, &region)?, offset: 0 };
        Ok(Io { region, at, bytes: Vec::new(), start: 0, inputs: 0, inverse_frequencies })
    }

    /// Starts a step. *Caller*: no work is left that reads the last one's.
    pub(crate) fn begin(&mut self, ids: &[u32], positions: &[u64]) -> Result<Inputs> {
        self.bytes.clear();
        self.start = 0;
        let half = self.inverse_frequencies.len();
        let (mut cos, mut sin) = (Vec::new(), Vec::new());
        for position in positions {
            // f32 times f32, as transformers does: an exact angle would be another model.
            for j in 0..half {
                let (s, c) = (*position as f32 * self.inverse_frequencies[j]).sin_cos();
                cos.push(c);
                sin.push(s);
            }
        }
        let inputs = Inputs {
            ids: self.words(ids)?,
            rows: self.words(&(0..ids.len() as u32).collect::<Vec<_>>())?,
            cos: self.words(&cos.iter().map(|x| x.to_bits()).collect::<Vec<_>>())?,
            sin: self.words(&sin.iter().map(|x| x.to_bits()).collect::<Vec<_>>())?,
        };
        self.inputs = self.align();
        Ok(inputs)
    }

    /// u32 values.
    pub(crate) fn words(&mut self, words: &[u32]) -> Result<Slice> {
        let at = self.align();
        self.push(words);
        self.place(at)
    }

    /// Write targets, one a row.
    pub(crate) fn writes(&mut self, writes: &[RowWrite]) -> Result<Slice> {
        let at = self.align();
        for write in writes {
            self.bytes.extend_from_slice(&write.offset.to_le_bytes());
            self.push(&[write.row, write.reserved]);
        }
        self.place(at)
    }

    /// Sequences of a batch.
    pub(crate) fn spans(&mut self, spans: &[SpanEntry]) -> Result<Slice> {
        let at = self.align();
        for s in spans {
            self.push(&[s.row, s.rows, s.position, s.entry, s.entries, s.slot]);
            self.push(&s.reserved);
        }
        self.place(at)
    }

    /// Pages that attention reads.
    pub(crate) fn entries(&mut self, entries: &[PageEntry]) -> Result<Slice> {
        let at = self.align();
        for e in entries {
            self.bytes.extend_from_slice(&e.offset.to_le_bytes());
            self.push(&[e.first, e.tokens, e.encoding, e.mask, e.packed, e.reserved]);
        }
        self.place(at)
    }

    fn push(&mut self, words: &[u32]) {
        words.iter().for_each(|word| self.bytes.extend_from_slice(&word.to_le_bytes()));
    }

    /// Where the next table starts in the region.
    fn align(&mut self) -> usize {
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGN), 0);
        self.start + self.bytes.len()
    }

    fn place(&self, at: usize) -> Result<Slice> {
        if self.start + self.bytes.len() > self.region.bytes() {
            let text = "a step's tables are larger than was foreseen";
            return Err(Error::new(ErrorKind::Internal, "engine/step", text));
        }
        Ok(Slice { buffer: self.at.buffer, offset: at as u64 })
    }

    /// Frees all tables but the inputs. *Caller*: has waited for every list that reads them, and
    /// none that was put since is on a list.
    pub(crate) fn free(&mut self) {
        self.start = self.start.min(self.inputs);
    }

    /// Hands over what was put since the last time.
    pub(crate) fn hand_over(&mut self) -> Result<()> {
        if self.bytes.is_empty() {
            return Ok(());
        }
        self.region.lend(self.start, self.bytes.len())?.copy_from_slice(&self.bytes);
        self.start = (self.start + self.bytes.len()).next_multiple_of(ALIGN);
        self.bytes.clear();
        Ok(())
    }
}
