//! Rows of a table that is not in memory, read one by one: a step needs a few of an embedding's.

use super::files::{Stored, finish};
use super::import;
use kvern_contract::{DeviceBackend, FileRead, Result, Slice, Weight};
use kvern_storage::{Budget, Region, Storage};
use std::sync::Arc;

/// Memory for the rows of one step.
pub(crate) struct RowReader {
    region: Arc<Region>,
    at: Slice,
    table: Stored,
    row_bytes: usize,
}

impl RowReader {
    /// Room for `rows` rows of `table`.
    pub(crate) fn new(
        table: Stored,
        rows: u32,
        device: &mut dyn DeviceBackend,
        budget: &Budget,
    ) -> Result<Self> {
        let row_bytes = (table.bytes / u64::from(table.outputs.max(1))) as usize;
        let bytes = row_bytes * rows as usize;
        budget.reserve("embedding rows", bytes as u64)?;
        let region = Region::new(bytes.max(1))?;
        let at = Slice { buffer: import(device, &region)?, offset: 0 };
        Ok(RowReader { region, at, table, row_bytes })
    }

    /// Reads the rows of `ids`, in order; the answer is a table of just these. *Caller*: no work on
    /// the last answer is left. *Errors* of the reads.
    pub(crate) fn read(&mut self, ids: &[u32], storage: &dyn Storage) -> Result<Weight> {
        let mut lease = self.region.lend(0, self.row_bytes * ids.len())?;
        let rows = lease.chunks_exact_mut(self.row_bytes);
        let row = |(id, into): (&u32, _)| FileRead {
            file: self.table.file,
            offset: self.table.offset + u64::from(*id) * self.row_bytes as u64,
            into,
            done: Ok(()),
        };
        let mut reads: Vec<_> = ids.iter().zip(rows).map(row).collect();
        finish(storage, &mut reads)?;
        Ok(Weight {
            data: self.at,
            encoding: self.table.encoding,
            outputs: ids.len() as u32,
            inputs: self.table.inputs,
            ..Weight::default()
        })
    }
}
