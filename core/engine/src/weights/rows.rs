//! Rows of a table that is not in memory, read one by one: a step needs a few of an embedding's.

use super::files::Stored;
use super::{import, lend};
use crate::events::{Recorder, Track, What};
use kvern_contract::{DeviceBackend, Result, Slice, Weight};
use kvern_storage::{Budget, Fill, Priority, Region, Storage};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// Memory for the rows of one step.
pub(crate) struct RowReader {
    region: Arc<Region>,
    at: Slice,
    table: Stored,
    row_bytes: usize,
    events: Arc<Recorder>,
}

impl RowReader {
    /// Room for `rows` rows of `table`.
    pub(crate) fn new(
        table: Stored,
        rows: u32,
        device: &mut dyn DeviceBackend,
        budget: &Budget,
        events: &Arc<Recorder>,
    ) -> Result<Self> {
        let row_bytes = (table.bytes / u64::from(table.outputs.max(1))) as usize;
        let bytes = row_bytes * rows as usize;
        budget.reserve("embedding rows", bytes as u64)?;
        let region = Region::new(bytes.max(1))?;
        let at = Slice { buffer: import(device, &region)?, offset: 0 };
        Ok(RowReader { region, at, table, row_bytes, events: Arc::clone(events) })
    }

    /// Reads the rows of `ids`, each id's once; the answer is a table of just these, in order.
    /// *Caller*: no work on the last answer is left. *Errors* of the reads.
    pub(crate) fn read(
        &mut self,
        ids: &[u32],
        storage: &dyn Storage,
        deadline: Duration,
    ) -> Result<Weight> {
        let bytes = self.row_bytes;
        let (mut first, mut again, mut fills) = (HashMap::new(), Vec::new(), Vec::new());
        for (row, id) in ids.iter().enumerate() {
            if let Some(from) = first.get(id) {
                again.push((*from, row));
                continue;
            }
            first.insert(*id, row);
            let offset = self.table.offset + u64::from(*id) * bytes as u64;
            let into = lend(&self.region, row * bytes, bytes)?;
            fills.push(Fill { file: self.table.file, offset, into });
        }
        let rows = fills.len() as u64;
        let filling = storage.fill(fills, Priority::Urgent);
        let clock = filling.clock();
        filling.wait(deadline).into_iter().try_for_each(|done| done.map(drop))?;
        let what = |track| move || What::new(track, "embedding rows").arg("rows", rows);
        let (reading, read) = ((clock.began(), clock.took()), rows * bytes as u64);
        self.events.operation("safetensor_read", reading, read, what(Track::Reading));
        let waited = self.events.clock().map(|_| clock.began());
        self.events.span("row_wait", waited, what(Track::Waiting));
        if !again.is_empty() {
            let mut rows = lend(&self.region, 0, bytes * ids.len())?;
            for (from, row) in again {
                rows.copy_within(from * bytes..(from + 1) * bytes, row * bytes);
            }
        }
        Ok(Weight {
            data: self.at,
            encoding: self.table.encoding,
            outputs: ids.len() as u32,
            inputs: self.table.inputs,
            ..Weight::default()
        })
    }
}
