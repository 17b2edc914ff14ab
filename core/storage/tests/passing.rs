//! What only passes through the page cache does not push out what is there.
#![allow(clippy::unwrap_used)] // helpers of tests
#![allow(unsafe_code)] // asks the kernel which pages it holds

use kvern_storage::{Fill, OpenHow, PathChoice, Priority, Region, Service, ServiceSpec, Storage};
use std::path::Path;
use std::time::Duration;

const LONG: Duration = Duration::from_secs(60);

/// Pages of a file that are in the page cache.
fn cached_pages(path: &Path, bytes: usize) -> usize {
    let file = std::fs::File::open(path).unwrap();
    // SAFETY: the file is not cut while it is mapped.
    let map = unsafe { memmap2::Mmap::map(&file) }.unwrap();
    let mut pages = vec![0u8; bytes.div_ceil(4096)];
    // SAFETY: the mapping is as long as it says, and there is a byte for each of its pages.
    let done = unsafe { libc::mincore(map.as_ptr() as *mut _, map.len(), pages.as_mut_ptr()) };
    assert_eq!(done, 0);
    pages.iter().filter(|page| **page & 1 == 1).count()
}

#[test]
fn what_only_passes_does_not_stay_in_the_page_cache() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("weights");
    let bytes: Vec<u8> = (0..(3 << 20) + 1234u32).map(|i| (i ^ (i >> 8)) as u8).collect();
    std::fs::write(&path, &bytes).unwrap();
    let file = std::fs::File::open(&path).unwrap();
    file.sync_all().unwrap();
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    if cached_pages(&path, bytes.len()) > 0 {
        // A file system in memory has nowhere to drop its pages to.
        return;
    }
    for choice in [PathChoice::Auto, PathChoice::Pool] {
        let service = Service::new(ServiceSpec { path: choice, ..ServiceSpec::default() });
        for (how, stays) in [(OpenHow::Passing, false), (OpenHow::Read, true)] {
            let file = service.open(&path, how).unwrap();
            let region = Region::new(bytes.len()).unwrap();
            let into = region.lend(0, bytes.len()).unwrap();
            let fill = Fill { file, offset: 0, into };
            let mut got = service.fill(vec![fill], Priority::Next).wait(LONG);
            assert!(got.remove(0).unwrap()[..] == bytes[..], "{choice:?}");
            let cached = cached_pages(&path, bytes.len());
            // The last page is not whole, and stays.
            assert!(if stays { cached > 700 } else { cached <= 1 }, "{choice:?}: {cached}");
        }
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    }
}
