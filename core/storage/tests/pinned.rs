//! Memory that the kernel has pinned goes with whoever had it, though nobody reads any more. Alone
//! in its process: what is counted is the process's.
#![allow(clippy::unwrap_used)] // helpers of tests

use kvern_storage::{Fill, OpenHow, Priority, Region, Service, ServiceSpec, Storage};
use std::time::{Duration, Instant};

const LONG: Duration = Duration::from_secs(60);

/// Bytes that the kernel has pinned for this process.
fn pinned() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmPin:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

#[test]
fn memory_that_nobody_has_any_more_is_unpinned_while_nothing_is_read() {
    const BYTES: usize = 1 << 20;
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("f"), [3; 4096]).unwrap();
    let service = Service::new(ServiceSpec::default());
    let file = service.open(&dir.path().join("f"), OpenHow::Read).unwrap();
    let region = Region::new(BYTES).unwrap();
    service.register(&region);
    let fill = Fill { file, offset: 0, into: region.lend(0, 4096).unwrap() };
    let lease = service.fill(vec![fill], Priority::Next).wait(LONG).remove(0).unwrap();
    if service.counters().registered_reads == 0 {
        return;
    }
    assert!(pinned() >= BYTES as u64, "{} bytes are pinned", pinned());
    drop(region);
    assert!(pinned() >= BYTES as u64, "its lease is out");
    drop(lease);
    let began = Instant::now();
    while pinned() >= BYTES as u64 {
        assert!(began.elapsed() < LONG, "{} bytes are still pinned", pinned());
        std::thread::yield_now();
    }
}
