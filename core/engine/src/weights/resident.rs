//! Weights that stay: read once, many units under way at once, and repacked by the device where it
//! does that.

use super::files::{Stored, finish, read, widen};
use super::stream::copy;
use super::{ALIGN, Weights, import, up};
use crate::events::{Progress, Track, What};
use kvern_contract::{DeviceBackend, Result, Slice, Weight, WeightEncoding};
use kvern_storage::{Fill, Filling, Priority, Region, Storage};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bytes that are under way or not repacked yet, at least one unit's: enough for any drive's depth,
/// and little beside the weights where a device keeps copies of its own. Less in tests, whose
/// models are small.
const UNDER_WAY: u64 = if cfg!(test) { 1 << 20 } else { 256 << 20 };

struct Coming {
    unit: usize,
    region: Arc<Region>,
    filling: Filling,
}

impl Weights {
    /// Reads vectors, and widens them to f32.
    pub(super) fn read_vectors(
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
        let began = Instant::now();
        finish(storage, &mut reads)?;
        let read = vectors.iter().map(|v| v.bytes).sum();
        let what = || What::new(Track::Reading, "vectors");
        self.events.operation("safetensor_read", (began, began.elapsed()), read, what);
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

    /// Reads the units that stay. *Errors* of the reads, and the device's.
    pub(super) fn read_resident(
        &mut self,
        device: &mut dyn DeviceBackend,
        storage: &dyn Storage,
        deadline: Duration,
    ) -> Result<()> {
        let stay = |unit: &usize| self.units[*unit].resident;
        let units: Vec<usize> = (0..self.units.len()).filter(stay).collect();
        let of: u64 = units.iter().map(|u| self.units[*u].layout.read_bytes()).sum();
        let mut read = 0;
        let events = Arc::clone(&self.events);
        let mut settled = |bytes: u64| {
            read += bytes;
            events.progress(|| Progress::Load { bytes: read, of });
        };
        settled(0);
        let (mut coming, mut under_way) = (VecDeque::<Coming>::new(), 0);
        for unit in units {
            let bytes = self.units[unit].layout.memory();
            while under_way > 0 && under_way + bytes > UNDER_WAY {
                let Some(first) = coming.pop_front() else { break };
                under_way -= first.region.bytes() as u64;
                settled(self.settle(first, device, deadline)?);
            }
            coming.push_back(self.begin_resident(unit, storage)?);
            under_way += bytes;
        }
        for one in coming {
            settled(self.settle(one, device, deadline)?);
        }
        Ok(())
    }

    fn begin_resident(&self, unit: usize, storage: &dyn Storage) -> Result<Coming> {
        let layout = &self.units[unit].layout;
        let region = Region::in_huge_pages(layout.memory() as usize)?;
        let mut at = 0;
        let mut fills = Vec::new();
        for extent in &layout.extents {
            let into = region.lend(at as usize, extent.bytes as usize)?;
            fills.push(Fill { file: extent.file, offset: extent.start, into });
            at += extent.memory;
        }
        Ok(Coming { unit, region, filling: storage.fill(fills, Priority::Next) })
    }

    /// Waits for a unit, and lets the device repack it; answers the bytes that were read.
    fn settle(
        &mut self,
        coming: Coming,
        device: &mut dyn DeviceBackend,
        deadline: Duration,
    ) -> Result<u64> {
        let Coming { unit, region, filling } = coming;
        let clock = filling.clock();
        filling.wait(deadline).into_iter().try_for_each(|done| done.map(drop))?;
        let layout = Arc::clone(&self.units[unit].layout);
        let what = || What::new(Track::Reading, &*self.units[unit].name);
        let reading = (clock.began(), clock.took());
        self.events.operation("safetensor_read", reading, layout.read_bytes(), what);
        let buffer = import(device, &region)?;
        let mut at = 0;
        let mut extents = Vec::new();
        for extent in &layout.extents {
            copy(&region, at, extent)?;
            extents.push(Slice { buffer, offset: at });
            at += extent.memory;
        }
        self.place(unit, &extents);
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
        Ok(layout.read_bytes())
    }
}
