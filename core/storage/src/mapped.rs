//! Long reads of a file that the page cache cannot keep: a huge page of it is mapped and fetched at
//! once, copied, and dropped again.
//!
//! Where a reader goes on, the kernel reads ahead of it; where a reader jumps, as one does from
//! unit to unit, what was read ahead is of no use, and the drive is idle until the kernel has found
//! the new rhythm. A mapping that is advised to be huge and read in random order is fetched by
//! whole huge pages, and nothing ahead of them (Linux: `do_sync_mmap_readahead`). The call that
//! fetches returns when the page is there: several threads keep a drive busy.
#![allow(unsafe_code)]

use crate::files::Way;
use memmap2::{Advice, MmapOptions, MmapRaw, UncheckedAdvice};
use rustix::fs::{Advice as FileAdvice, fadvise};
use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::path::Path;

/// Bytes of a huge page, and where in a file one begins.
pub(crate) const PAGE: u64 = 2 << 20;
/// Threads that fetch: with fewer a drive waits for them to copy, more are memory in which bytes
/// wait.
pub(crate) const THREADS: usize = 6;
/// Reads of fewer bytes than this are rows, not weights on their way.
const LONG: usize = 64 << 10;
/// There where the kernel has huge pages at all.
const HUGE_PAGES: &str = "/sys/kernel/mm/transparent_hugepage";

/// A file's mapping. It is never read here but by the kernel, which answers an error where a plain
/// load would end the process: behind the end of a file that was cut, or where the drive fails.
pub(crate) struct Mapped {
    map: MmapRaw,
}

impl Mapped {
    /// Maps a file, and reads a part in this way. `None`: the system refuses a step of it.
    pub(crate) fn of(file: &File) -> Option<Mapped> {
        // Without them each small page would be fetched by itself.
        if !Path::new(HUGE_PAGES).exists() {
            return None;
        }
        let map = MmapOptions::new().map_raw_read_only(file).ok()?;
        map.advise(Advice::HugePage).ok()?;
        map.advise(Advice::Random).ok()?;
        let mapped = Mapped { map };
        let mut part = [0; 64];
        let bytes = part.len().min(mapped.map.len());
        mapped.read(file, 0, &mut part[..bytes]).ok()?;
        Some(mapped)
    }

    /// Fills `into` from `offset` of the file that is mapped. *Errors*: nothing is promised of
    /// `into`; a plain read finds out why.
    pub(crate) fn read(&self, file: &File, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let end = from.checked_add(into.len()).filter(|end| *end <= self.map.len());
        let Some(end) = end.filter(|end| *end > from) else {
            return Err(io::ErrorKind::UnexpectedEof.into());
        };
        self.map.advise_range(Advice::PopulateRead, from, into.len())?;
        let copied = self.copy(from, into);
        // From here on all is best effort: what was copied stands.
        // SAFETY: of a file's mapping only the page tables go; its bytes are the file's.
        let _ =
            unsafe { self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, from, into.len()) };
        // A page that others read a part of stays until the kernel needs its place: to drop it in
        // part would ask every core, and fetch it twice.
        let (first, last) = (offset.next_multiple_of(PAGE), end as u64 / PAGE * PAGE);
        if let Some(bytes) = last.checked_sub(first).and_then(NonZeroU64::new) {
            let _ = fadvise(file, first, Some(bytes), FileAdvice::DontNeed);
        }
        copied
    }

    /// The kernel copies from the mapping.
    fn copy(&self, from: usize, into: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while done < into.len() {
            let rest = &mut into[done..];
            let to = libc::iovec { iov_base: rest.as_mut_ptr().cast(), iov_len: rest.len() };
            let start = self.map.as_mut_ptr().wrapping_add(from + done);
            let mapped = libc::iovec { iov_base: start.cast(), iov_len: rest.len() };
            // SAFETY: it writes to `rest` alone, which is borrowed, and reads what is mapped as
            // long as `self` lives; where nothing is to be read it answers so.
            let moved = unsafe { libc::process_vm_readv(libc::getpid(), &to, 1, &mapped, 1, 0) };
            match usize::try_from(moved) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(moved) => done += moved,
                Err(_) => return Err(io::Error::last_os_error()),
            }
        }
        Ok(done)
    }
}

/// Where a read of so many bytes is cut: a huge page of the file each. `None`: it is not long.
pub(crate) fn cuts(offset: u64, bytes: usize) -> Option<Vec<(usize, usize, Way)>> {
    let mut out = Vec::new();
    let mut at = 0;
    while bytes >= LONG && at < bytes {
        let here = offset.checked_add(at as u64)?;
        let most = (PAGE - here % PAGE) as usize;
        let part = most.min(bytes - at);
        out.push((at, part, Way::Mapped));
        at += part;
    }
    (!out.is_empty()).then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(bytes: usize) -> (tempfile::TempDir, File, Vec<u8>) {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = dir.path().join("f");
        let all: Vec<u8> = (0..bytes).map(|i| (i ^ (i >> 8) ^ (i >> 16)) as u8).collect();
        std::fs::write(&path, &all).unwrap();
        let open = File::options().read(true).write(true).open(&path).unwrap();
        (dir, open, all)
    }

    #[test]
    fn parts_of_any_place_and_length_are_the_files_bytes() {
        let page = PAGE as usize;
        let (_dir, file, all) = file(3 * page + 4567);
        let Some(mapped) = Mapped::of(&file) else { return };
        for (from, bytes) in [(0, all.len()), (1, 3), (page - 1, 2), (page, page), (77, 2 * page)] {
            let mut into = vec![0; bytes];
            assert_eq!(mapped.read(&file, from as u64, &mut into).unwrap(), bytes);
            assert!(into == all[from..from + bytes], "{bytes} at {from}");
        }
    }

    #[test]
    fn behind_the_end_of_a_file_and_of_one_that_was_cut_is_an_error_and_no_signal() {
        let (_dir, file, all) = file(2 * PAGE as usize);
        let Some(mapped) = Mapped::of(&file) else { return };
        let mut into = vec![0; 8192];
        for from in [all.len() as u64 - 4096, all.len() as u64, u64::MAX - 1] {
            assert!(mapped.read(&file, from, &mut into).is_err(), "{from}");
        }
        file.set_len(4096).unwrap();
        assert!(mapped.read(&file, PAGE, &mut into).is_err());
        assert!(mapped.copy(PAGE as usize, &mut into).is_err());
        assert_eq!(mapped.read(&file, 0, &mut into[..4096]).unwrap(), 4096);
    }

    #[test]
    fn long_reads_are_cut_where_huge_pages_of_the_file_begin() {
        let page = PAGE as usize;
        assert_eq!(cuts(5, LONG - 1), None);
        assert_eq!(cuts(u64::MAX, LONG), None, "no such place");
        let part = |at, bytes| (at, bytes, Way::Mapped);
        assert_eq!(cuts(0, LONG), Some(vec![part(0, LONG)]));
        assert_eq!(
            cuts(PAGE - 10, page + 20),
            Some(vec![part(0, 10), part(10, page), part(page + 10, 10)])
        );
    }

    #[test]
    fn whole_pages_do_not_stay_in_the_page_cache_and_parts_do() {
        let (_dir, file, _) = file(3 * PAGE as usize);
        let Some(mapped) = Mapped::of(&file) else { return };
        // Without a drive behind it, and before a drive has it, nothing can be dropped.
        file.sync_all().unwrap();
        if rustix::fs::fstatfs(&file).unwrap().f_type == libc::TMPFS_MAGIC {
            return;
        }
        fadvise(&file, 0, None, FileAdvice::DontNeed).unwrap();
        let mut into = vec![0; PAGE as usize];
        mapped.read(&file, PAGE, &mut into).unwrap();
        assert_eq!(resident(&mapped), 0);
        mapped.read(&file, PAGE / 2, &mut into).unwrap();
        assert!(resident(&mapped) > 0);
    }

    /// Small pages of a mapping whose bytes are in the page cache.
    fn resident(mapped: &Mapped) -> usize {
        let mut seen = vec![0_u8; mapped.map.len().div_ceil(4096)];
        let start = mapped.map.as_mut_ptr().cast();
        // SAFETY: a byte is written for each page of the mapping, and there is room for them.
        let done = unsafe { libc::mincore(start, mapped.map.len(), seen.as_mut_ptr()) };
        assert_eq!(done, 0);
        seen.iter().filter(|page| **page & 1 == 1).count()
    }

    #[test]
    fn an_empty_file_is_not_mapped() {
        let (_dir, file, _) = file(0);
        if let Some(mapped) = Mapped::of(&file) {
            assert!(mapped.read(&file, 0, &mut [0; 1]).is_err());
        }
    }
}
