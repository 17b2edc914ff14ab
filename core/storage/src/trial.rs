//! Whether a ring really reads: some systems let one be set up and refuse, or never learned, what
//! it is for.
#![allow(unsafe_code)]

use crate::region::{Lease, Region};
use crate::registry::Registry;
use io_uring::{IoUring, opcode, squeue, types};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

/// Bytes of a trial read.
const BLOCK: usize = 4096;

/// This program's own file: it is there, and it can be read.
pub(crate) fn own_file() -> io::Result<File> {
    File::open("/proc/self/exe")
}

/// Reads the start of a file through a ring that has nothing under way, into plain memory and,
/// where the kernel pins some, into registered memory. *Errors*: what the ring answered, or that it
/// gave other bytes than a plain read.
pub(crate) fn try_reads(
    ring: &mut IoUring,
    registry: &mut Registry,
    file: &File,
) -> io::Result<()> {
    let mut want = vec![0; BLOCK];
    let there = file.read_at(&mut want, 0)?;
    let memory = || {
        let region = Region::new(BLOCK)?;
        let lease = region.lend(0, BLOCK)?;
        Ok((region, lease))
    };
    let made: kvern_contract::Result<_> = memory();
    let (region, mut into) = made.map_err(|error| io::Error::other(error.message))?;
    for is_registered in [false, true] {
        if is_registered {
            registry.ask(&region);
            registry.settle(&ring.submitter());
        }
        into.fill(0x55);
        let (address, file) = (into.span().address as *mut u8, types::Fd(file.as_raw_fd()));
        let read = match registry.entry(address, BLOCK) {
            Some(entry) => opcode::ReadFixed::new(file, address, BLOCK as u32, entry).build(),
            None => opcode::Read::new(file, address, BLOCK as u32).build(),
        };
        let got;
        (into, got) = once(ring, &read, into)?;
        if got != there || into[..got] != want[..got] {
            return Err(io::Error::other("a read through it gave other bytes than a plain one"));
        }
    }
    Ok(())
}

/// Runs one read into a lease, and waits for it; how many bytes came.
fn once(ring: &mut IoUring, read: &squeue::Entry, into: Lease) -> io::Result<(Lease, usize)> {
    // SAFETY: the read goes to `into`, which is given back once the kernel has answered, and
    // forgotten where it has not.
    unsafe { ring.submission().push(read) }.map_err(io::Error::other)?;
    loop {
        let waited = ring.submit_and_wait(1);
        if let Some(answer) = ring.completion().next() {
            return match usize::try_from(answer.result()) {
                Ok(moved) => Ok((into, moved.min(BLOCK))),
                Err(_) => Err(io::Error::from_raw_os_error(-answer.result())),
            };
        }
        match waited {
            Err(error) if error.raw_os_error() != Some(libc::EINTR) => {
                std::mem::forget(into);
                return Err(error);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn a_ring_reads_its_own_file_and_says_what_it_cannot_read() {
        let Ok(mut ring) = IoUring::new(4) else { return };
        let mut registry = Registry::new(&ring.submitter(), Arc::default());
        try_reads(&mut ring, &mut registry, &own_file().unwrap()).unwrap();
        let dir = File::open("/").unwrap();
        let error = try_reads(&mut ring, &mut registry, &dir).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EISDIR));
    }

    #[test]
    fn a_ring_that_gives_other_bytes_than_a_plain_read_is_found_out() {
        let Ok(mut ring) = IoUring::new(4) else { return };
        let mut registry = Registry::new(&ring.submitter(), Arc::default());
        // No two reads of it are alike.
        let random = File::open("/dev/urandom").unwrap();
        let error = try_reads(&mut ring, &mut registry, &random).unwrap_err();
        assert!(error.to_string().contains("gave other bytes than a plain one"), "{error}");
    }
}
