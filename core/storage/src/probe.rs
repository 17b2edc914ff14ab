//! What a drive gives: large sequential reads of a file that is there, by the service's own paths.

use crate::fill::{Fill, Filling, Priority};
use crate::front::{PathChoice, Service, ServiceSpec};
use crate::region::Region;
use crate::service::{OpenHow, Storage};
use kvern_contract::{Error, ErrorKind, Result};
use std::collections::VecDeque;
use std::path::Path;
use std::time::{Duration, Instant};

/// How to read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ProbeHow {
    /// Bytes of one operation; a multiple of 4096.
    pub block_bytes: usize,
    /// Operations that the system has at once.
    pub depth: usize,
    /// Where in the file to begin, in bytes.
    pub from: u64,
    /// Bytes of the file from its start to stay within; `None`: all of it.
    pub within: Option<u64>,
    /// To open the file: `Direct` goes round the page cache, `Read` has the page cache's rate where
    /// that has the file.
    pub open: OpenHow,
    /// What moves the bytes.
    pub path: PathChoice,
}

/// What came of it.
#[derive(Clone, PartialEq, Debug)]
pub struct DriveRate {
    /// Bytes that came in a second.
    pub bytes_per_second: f64,
    /// Bytes that came.
    pub bytes: u64,
    /// What really moved them: `io_uring`, `pread-pool`.
    pub path: &'static str,
    /// Whether they went round the page cache.
    pub direct: bool,
}

/// Longest that one operation may take before the probe ends with Timeout.
const DEADLINE: Duration = Duration::from_secs(10);

/// Bytes of a huge page.
const HUGE: usize = 2 << 20;

/// Reads a file, again and again, for about `most`. Memory: a block an operation, at least 2 MiB.
/// *Errors* Invalid (the file holds fewer bytes than the operations at once), and the reads'.
pub fn drive_rate(path: &Path, how: ProbeHow, most: Duration) -> Result<DriveRate> {
    let ProbeHow { block_bytes, depth, open, .. } = how;
    let (block, depth) = (block_bytes.max(4096), depth.max(1));
    let service = Service::new(ServiceSpec {
        path: how.path,
        threads: depth,
        depth,
        piece_bytes: block,
        ..ServiceSpec::default()
    });
    let file = service.open(path, open)?;
    let bytes = service.bytes(file)?;
    let blocks = how.within.map_or(bytes, |within| within.min(bytes)) / block as u64;
    if blocks < depth as u64 {
        let text = format!(
            "{} holds {blocks} blocks of {block} bytes; {depth} at least are expected: name a \
             larger file",
            path.display()
        );
        return Err(Error::new(ErrorKind::Invalid, "storage/probe", text));
    }
    // As weights are read: a drive takes longer for many small pages than for few large ones.
    let region = Region::in_huge_pages((block * depth).next_multiple_of(HUGE))?;
    service.register(&region);
    let mut next = how.from / block as u64 % blocks;
    let mut start = |slot: usize| -> Result<Filling> {
        let into = region.lend(slot * block, block)?;
        let offset = next % blocks * block as u64;
        next += 1;
        Ok(service.fill(vec![Fill { file, offset, into }], Priority::Next))
    };
    let began = Instant::now();
    let mut going: VecDeque<(usize, Filling)> = VecDeque::new();
    for slot in 0..depth {
        going.push_back((slot, start(slot)?));
    }
    let mut bytes = 0;
    while let Some((slot, filling)) = going.pop_front() {
        for done in filling.wait(DEADLINE) {
            bytes += done?.len() as u64;
        }
        if began.elapsed() < most {
            going.push_back((slot, start(slot)?));
        }
    }
    let took = began.elapsed().as_secs_f64();
    Ok(DriveRate {
        bytes_per_second: bytes as f64 / took.max(f64::MIN_POSITIVE),
        bytes,
        path: service.path_kind(),
        direct: service.facts(file)?.direct,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_reads_what_it_says_and_refuses_a_file_that_is_too_small() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, vec![3; 64 << 10]).unwrap();
        for choice in [PathChoice::Auto, PathChoice::Pool] {
            let (block_bytes, depth, from) = (8192, 4, 40 << 10);
            let how = ProbeHow {
                block_bytes,
                depth,
                from,
                within: None,
                open: OpenHow::Direct,
                path: choice,
            };
            let rate = drive_rate(&path, how, Duration::ZERO).unwrap();
            assert_eq!(rate.bytes, 4 * 8192);
            assert!(rate.bytes_per_second > 0.0);
            let within = Some(24 << 10);
            for how in [ProbeHow { depth: 9, ..how }, ProbeHow { within, ..how }] {
                let error = drive_rate(&path, how, Duration::ZERO).unwrap_err();
                assert_eq!(error.kind, ErrorKind::Invalid);
            }
        }
    }
}
