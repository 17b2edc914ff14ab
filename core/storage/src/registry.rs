//! Memory that the kernel has pinned for a ring, so that reads into it need not pin it one by one.
//! It is pinned as long as somebody holds the region or a lease of it: the ring itself holds
//! neither, and is told when the last one goes.
#![allow(unsafe_code)]

use crate::meter::lock;
use crate::region::Region;
use io_uring::Submitter;
use std::sync::{Arc, Mutex, Weak};

/// Most entries of the kernel's table; each is a piece of a region of at most [`ENTRY_BYTES`].
const ENTRIES: usize = 64;

/// The kernel's limit on one registered buffer.
const ENTRY_BYTES: usize = 1 << 30;

/// Regions that wait to be registered.
pub(crate) type Asked = Arc<Mutex<Vec<Weak<Region>>>>;

/// A region that is pinned, and where in the kernel's table.
struct Pinned {
    region: Weak<Region>,
    address: usize,
    bytes: usize,
    first: usize,
    count: usize,
}
impl Pinned {
    /// Whether nobody has the region any more. Its memory may be another's by now.
    fn is_gone(&self) -> bool {
        self.region.strong_count() == 0
    }
}

/// What a ring has pinned.
pub(crate) struct Registry {
    asked: Asked,
    pinned: Vec<Pinned>,
    /// Which entries of the kernel's table are taken; no entries where the kernel has no table.
    taken: Vec<bool>,
}

impl Registry {
    /// A table of the kernel's for this ring. Registered memory is a convenience: where the kernel
    /// refuses, every read pins its own.
    pub(crate) fn new(ring: &Submitter<'_>, asked: Asked) -> Self {
        let made = ring.register_buffers_sparse(ENTRIES as u32).is_ok();
        let taken = vec![false; if made { ENTRIES } else { 0 }];
        Registry { asked, pinned: Vec::new(), taken }
    }

    /// Asks for a region to be pinned.
    pub(crate) fn ask(&self, region: &Arc<Region>) {
        lock(&self.asked).push(Arc::downgrade(region));
    }

    /// Lets go of what nobody has any more, and pins what was asked for, as far as the kernel
    /// allows.
    pub(crate) fn settle(&mut self, ring: &Submitter<'_>) {
        let asked = std::mem::take(&mut *lock(&self.asked));
        if asked.is_empty() && !self.pinned.iter().any(Pinned::is_gone) {
            return;
        }
        let (gone, here) = self.pinned.drain(..).partition(Pinned::is_gone);
        self.pinned = here;
        let gone: Vec<Pinned> = gone;
        for pinned in gone {
            self.let_go(ring, pinned.first, pinned.count);
        }
        for region in asked {
            self.pin(ring, &region);
        }
    }

    /// The entry that a range of memory lies in.
    pub(crate) fn entry(&self, address: *mut u8, bytes: usize) -> Option<u16> {
        self.pinned.iter().filter(|pinned| !pinned.is_gone()).find_map(|pinned| {
            let at = address.addr().checked_sub(pinned.address)?;
            let end = at.checked_add(bytes).filter(|end| *end <= pinned.bytes)?;
            let (first, last) = (at / ENTRY_BYTES, end.saturating_sub(1) / ENTRY_BYTES);
            (first == last).then_some((pinned.first + first) as u16)
        })
    }

    /// Empties entries. Where the kernel refuses, they stay taken.
    fn let_go(&mut self, ring: &Submitter<'_>, first: usize, count: usize) {
        let nothing = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        // SAFETY: an entry of nothing has no memory; the kernel holds on to the pages of reads that
        // are under way.
        let done = unsafe {
            ring.register_buffers_update(first as u32, &vec![nothing; count], None).is_ok()
        };
        self.taken[first..first + count].fill(!done);
    }

    fn pin(&mut self, ring: &Submitter<'_>, asked: &Weak<Region>) {
        let Some(region) = asked.upgrade() else { return };
        let bytes = region.bytes();
        let count = bytes.div_ceil(ENTRY_BYTES);
        let free = |first: &usize| !self.taken[*first..first + count].contains(&true);
        let starts = 0..(self.taken.len() + 1).saturating_sub(count);
        let known = self.pinned.iter().any(|pinned| pinned.region.ptr_eq(asked));
        let Some(first) = starts.clone().find(free).filter(|_| count > 0 && !known) else { return };
        let start = region.as_mut_ptr();
        let part = |index: usize| {
            let at = index * ENTRY_BYTES;
            // SAFETY: `at` is below the region's length.
            let iov_base = unsafe { start.add(at) }.cast();
            libc::iovec { iov_base, iov_len: ENTRY_BYTES.min(bytes - at) }
        };
        let parts: Vec<libc::iovec> = (0..count).map(part).collect();
        // SAFETY: the region is mapped now, and the kernel pins its pages: what is unmapped later
        // stays the entry's until the entry is emptied, and `entry` names none that is gone.
        let done = unsafe { ring.register_buffers_update(first as u32, &parts, None).is_ok() };
        if done {
            self.taken[first..first + count].fill(true);
            let (region, address) = (asked.clone(), start.addr());
            self.pinned.push(Pinned { region, address, bytes, first, count });
        }
    }
}
