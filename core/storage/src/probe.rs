//! What a drive gives: large sequential reads of files that are there, by the service's own paths.

use crate::fill::{Fill, Filling, Priority};
use crate::front::{PathChoice, Service, ServiceSpec};
use crate::region::Region;
use crate::service::{OpenHow, Storage};
use kvern_contract::{Error, ErrorKind, Result};
use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How to read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ProbeHow {
    /// Bytes of one operation; a multiple of 4096.
    pub block_bytes: usize,
    /// Operations that the system has at once.
    pub depth: usize,
    /// Where to begin, in bytes of all files one behind the other.
    pub from: u64,
    /// Bytes of each file from its start to stay within; `None`: all of it.
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

/// Reads files one after another, again and again, into all of `memory` in turn, for about `most`.
/// Memory that a cache holds takes bytes faster than staging does, and memory that was never
/// touched more slowly. *Errors* Invalid (files or memory hold fewer blocks than operations at
/// once), and the reads'.
pub fn drive_rate(
    paths: &[&Path],
    how: ProbeHow,
    memory: &Arc<Region>,
    most: Duration,
) -> Result<DriveRate> {
    let ProbeHow { block_bytes, depth, open, .. } = how;
    let (block, depth) = (block_bytes.max(4096), depth.max(1));
    let service = Service::new(ServiceSpec {
        path: how.path,
        threads: depth,
        depth,
        piece_bytes: block,
        ..ServiceSpec::default()
    });
    // Each file, and how many blocks it and those before it have.
    let (mut files, mut blocks) = (Vec::new(), 0);
    for path in paths {
        let file = service.open(path, open)?;
        let bytes = service.bytes(file)?;
        blocks += how.within.map_or(bytes, |within| within.min(bytes)) / block as u64;
        files.push((file, blocks));
    }
    if blocks < depth as u64 {
        let first = paths.first().map_or("no file".into(), |path| path.display().to_string());
        let text = format!(
            "{first} and {} more hold {blocks} blocks of {block} bytes; {depth} at least are \
             expected: name a larger file",
            paths.len().saturating_sub(1)
        );
        return Err(Error::new(ErrorKind::Invalid, "storage/probe", text));
    }
    let places = memory.bytes() / block;
    if places < depth {
        let text = format!(
            "memory of {} bytes has {places} places for blocks of {block} bytes; {depth} at least \
             are expected: lend more",
            memory.bytes()
        );
        return Err(Error::new(ErrorKind::Invalid, "storage/probe", text));
    }
    service.register(memory);
    let mut next = how.from / block as u64 % blocks;
    let mut place = 0;
    let mut start = || -> Result<Filling> {
        // Those under way are the last few: this one is free.
        let into = memory.lend(place * block, block)?;
        place = (place + 1) % places;
        let block_of_all = next % blocks;
        next += 1;
        let index = files.partition_point(|(_, end)| *end <= block_of_all);
        let before = index.checked_sub(1).map_or(0, |before| files[before].1);
        let (file, offset) = (files[index].0, (block_of_all - before) * block as u64);
        Ok(service.fill(vec![Fill { file, offset, into }], Priority::Next))
    };
    let began = Instant::now();
    let mut going: VecDeque<Filling> = VecDeque::new();
    for _ in 0..depth {
        going.push_back(start()?);
    }
    let mut bytes = 0;
    while let Some(filling) = going.pop_front() {
        for done in filling.wait(DEADLINE) {
            bytes += done?.len() as u64;
        }
        if began.elapsed() < most {
            going.push_back(start()?);
        }
    }
    let took = began.elapsed().as_secs_f64();
    Ok(DriveRate {
        bytes_per_second: bytes as f64 / took.max(f64::MIN_POSITIVE),
        bytes,
        path: service.path_kind(),
        direct: files.iter().try_fold(true, |all, (file, _)| {
            service.facts(*file).map(|facts| all && facts.direct)
        })?,
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
        let memory = Region::new(9 * 8192).unwrap();
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
            let rate = drive_rate(&[&path], how, &memory, Duration::ZERO).unwrap();
            assert_eq!(rate.bytes, 4 * 8192);
            assert!(rate.bytes_per_second > 0.0);
            let within = Some(24 << 10);
            for how in [ProbeHow { depth: 9, ..how }, ProbeHow { within, ..how }] {
                let error = drive_rate(&[&path], how, &memory, Duration::ZERO).unwrap_err();
                assert_eq!(error.kind, ErrorKind::Invalid);
            }
        }
    }
}
