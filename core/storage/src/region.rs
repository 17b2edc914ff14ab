//! Memory that is lent in pieces: one anonymous mapping, and leases on ranges of it that never
//! overlap.
//!
//! A lease is the right to write. Whoever has the same bytes by address (a device that was given
//! the span) writes them only while no lease covers them. It may read them while a lease is out
//! once they are sealed: from then on the lease is only read, until it is dropped. That is the
//! engine's schedule, not checked here.
#![allow(unsafe_code)]

use crate::meter::lock;
use kvern_contract::{Error, ErrorKind, HostSpan, Result};
use memmap2::{Advice, MmapMut, MmapRaw};
use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex};

/// Anonymous, page-aligned memory, zero until it is touched.
pub struct Region {
    map: MmapRaw,
    bytes: usize,
    /// End of each live lease by its start; they do not overlap.
    leases: Mutex<BTreeMap<usize, usize>>,
    /// Who wants to know when the region has ended.
    ends: Mutex<Vec<AtEnd>>,
}

/// Told once.
type AtEnd = Box<dyn FnOnce() + Send>;

impl Region {
    /// Maps `bytes` bytes. Nothing is resident before it is touched. *Errors* Io: the system
    /// refused.
    pub fn new(bytes: usize) -> Result<Arc<Self>> {
        let map = MmapMut::map_anon(bytes.max(1)).map_err(|error| {
            let text = format!("cannot map {bytes} bytes of memory: {error}; lower the budget");
            Error::new(ErrorKind::Io, "region/new", text)
        })?;
        let (map, leases, ends) = (MmapRaw::from(map), Mutex::default(), Mutex::default());
        Ok(Arc::new(Region { map, bytes, leases, ends }))
    }
    /// The same for memory that will be used from end to end: in huge pages where the system has
    /// them, which are found and pinned faster. *Errors* as `new`.
    pub fn in_huge_pages(bytes: usize) -> Result<Arc<Self>> {
        let region = Self::new(bytes)?;
        // Advice: refused, the pages are small ones.
        let _ = region.map.advise(Advice::HugePage);
        Ok(region)
    }
    /// Where the memory is; valid as long as the region lives.
    pub fn span(&self) -> HostSpan {
        HostSpan { address: self.map.as_mut_ptr().addr(), bytes: self.bytes as u64 }
    }
    /// Its first byte; valid as long as the region lives.
    pub(crate) fn as_mut_ptr(&self) -> *mut u8 {
        self.map.as_mut_ptr()
    }
    /// Calls `hook` once nobody holds the region or a lease of it.
    pub(crate) fn at_end(&self, hook: impl FnOnce() + Send + 'static) {
        lock(&self.ends).push(Box::new(hook));
    }
    /// Length in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
    /// Bytes under live leases.
    pub fn leased_bytes(&self) -> usize {
        lock(&self.leases).iter().map(|(start, end)| end - start).sum()
    }
    /// Lends `bytes` bytes from `offset` on, to one holder, until the lease is dropped.
    /// *Errors* Busy (part of it is lent), Invalid (past the end).
    pub fn lend(self: &Arc<Self>, offset: usize, bytes: usize) -> Result<Lease> {
        let end = offset.checked_add(bytes).filter(|&end| end <= self.bytes).ok_or_else(|| {
            let text = format!("{bytes} bytes at {offset} pass the end of {} bytes", self.bytes);
            Error::new(ErrorKind::Invalid, "region/lend", text)
        })?;
        if bytes > 0 {
            let mut leases = lock(&self.leases);
            if let Some((&start, &stop)) = leases.range(..end).next_back()
                && stop > offset
            {
                let text = format!(
                    "{bytes} bytes at {offset} overlap a live lease of {} bytes at {start}",
                    stop - start
                );
                return Err(Error::new(ErrorKind::Busy, "region/lend", text));
            }
            leases.insert(offset, end);
        }
        Ok(Lease { region: self.clone(), offset, bytes })
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        lock(&self.ends).drain(..).for_each(|hook| hook());
    }
}

/// The only right to a range of a [`Region`]; ends when dropped. Movable between threads.
pub struct Lease {
    region: Arc<Region>,
    offset: usize,
    bytes: usize,
}
impl Lease {
    /// Start of the range, in bytes from the region's start.
    pub fn offset(&self) -> usize {
        self.offset
    }
    /// Where the range is in memory; valid as long as the region lives.
    pub fn span(&self) -> HostSpan {
        let HostSpan { address, .. } = self.region.span();
        HostSpan { address: address + self.offset, bytes: self.bytes as u64 }
    }
    fn start(&self) -> *mut u8 {
        // SAFETY: `lend` checked that offset + bytes lies inside the mapping.
        unsafe { self.region.map.as_mut_ptr().add(self.offset) }
    }
}
impl Deref for Lease {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: inside a live mapping of initialised bytes, and the lease table lends no byte
        // twice.
        unsafe { std::slice::from_raw_parts(self.start(), self.bytes) }
    }
}
impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `&mut self` makes this the lease's only slice.
        unsafe { std::slice::from_raw_parts_mut(self.start(), self.bytes) }
    }
}
impl Drop for Lease {
    fn drop(&mut self) {
        if self.bytes > 0 {
            lock(&self.region.leases).remove(&self.offset);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overlapping_lease_is_refused_and_free_again_once_dropped() {
        let region = Region::new(4096).unwrap();
        let mut held = region.lend(1000, 100).unwrap();
        held.fill(7);
        for (offset, bytes) in [(1000, 100), (0, 1001), (1099, 1), (900, 3000), (1050, 10)] {
            assert_eq!(region.lend(offset, bytes).err().unwrap().kind, ErrorKind::Busy);
        }
        let (before, after) = (region.lend(0, 1000).unwrap(), region.lend(1100, 2996).unwrap());
        assert_eq!(region.leased_bytes(), 4096);
        drop((before, after, held));
        let whole = region.lend(0, 4096).unwrap();
        assert_eq!((whole[999], whole[1000], whole[1099], whole[1100]), (0, 7, 7, 0));
    }

    #[test]
    fn a_lease_past_the_end_is_refused() {
        let region = Region::new(100).unwrap();
        for (offset, bytes) in [(0, 101), (101, 0), (usize::MAX, 2)] {
            assert_eq!(region.lend(offset, bytes).err().unwrap().kind, ErrorKind::Invalid);
        }
        assert!(region.lend(100, 0).unwrap().is_empty());
    }

    #[test]
    fn the_memory_is_aligned_to_a_page_and_outlives_the_handle() {
        let region = Region::new(10_000).unwrap();
        assert_eq!(region.span().address % 4096, 0);
        let mut lease = region.lend(1, 3).unwrap();
        drop(region);
        let thread = std::thread::spawn(move || {
            lease.copy_from_slice(b"abc");
            lease
        });
        assert_eq!(&thread.join().unwrap()[..], b"abc");
    }

    #[test]
    fn memory_that_is_used_from_end_to_end_is_asked_for_in_huge_pages() {
        if !std::path::Path::new("/sys/kernel/mm/transparent_hugepage").exists() {
            return;
        }
        let advised = |region: &Region| {
            let at = region.span().address;
            let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
            // Neighbours with the same advice are one mapping with it: it may start before.
            let holds = |line: &str| {
                let (start, end) = line.split(' ').next()?.split_once('-')?;
                let number = |text| usize::from_str_radix(text, 16).ok();
                Some((number(start)?..number(end)?).contains(&at))
            };
            let mut lines = smaps.lines().skip_while(|line| holds(line) != Some(true));
            let flags = lines.find(|line| line.starts_with("VmFlags")).unwrap();
            flags.split_ascii_whitespace().any(|flag| flag == "hg")
        };
        assert!(advised(&Region::in_huge_pages(4 << 20).unwrap()));
        // Neighbours with other advice are not one mapping with it.
        assert!(!advised(&Region::new(4 << 20).unwrap()));
    }
}
