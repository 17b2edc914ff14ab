//! What systems and drives refuse: rings, parts of rings, and reads; and reads that start and end
//! anywhere.
#![allow(clippy::unwrap_used)] // helpers of tests
#![allow(unsafe_code)]

use kvern_contract::{ErrorKind, FileRead};
use kvern_storage::{
    Counters, FileFacts, Fill, OpenHow, PathChoice, Priority, Region, Service, ServiceSpec, Storage,
};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

const LONG: Duration = Duration::from_secs(60);

fn services() -> Vec<Arc<Service>> {
    let of = |path, piece_bytes| {
        Service::new(ServiceSpec { path, piece_bytes, threads: 3, ..ServiceSpec::default() })
    };
    vec![of(PathChoice::Auto, 512 << 10), of(PathChoice::Auto, 4096), of(PathChoice::Pool, 8192)]
}

/// A file of so many bytes, each of which says where it is.
fn written(dir: &Path, bytes: u32) -> (PathBuf, Vec<u8>) {
    let bytes: Vec<u8> = (0..bytes).map(|i| (i ^ (i >> 8) ^ (i >> 16)) as u8).collect();
    let path = dir.join("weights");
    std::fs::write(&path, &bytes).unwrap();
    (path, bytes)
}

/// Lets this thread, and those that it starts, no longer make one call: it answers EPERM.
fn refuse(call: libc::c_long) {
    let step = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let mut steps = [
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, call as u32),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: steps.len() as u16, filter: steps.as_mut_ptr() };
    // SAFETY: the program lives through the calls, which copy it.
    let done = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
            + libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program)
    };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

/// Reads a file in a system that refuses one call: the path that ran, why no other one did, and how
/// many reads went to registered memory.
fn read_without(call: libc::c_long) -> (&'static str, Option<String>, u64) {
    let read = move || {
        refuse(call);
        let dir = tempfile::tempdir().unwrap();
        let (path, bytes) = written(dir.path(), 100_000);
        let service = Service::new(ServiceSpec::default());
        let file = service.open(&path, OpenHow::Read).unwrap();
        let region = Region::new(bytes.len()).unwrap();
        service.register(&region);
        let into = region.lend(0, bytes.len()).unwrap();
        let got = service.fill(vec![Fill { file, offset: 0, into }], Priority::Next).wait(LONG);
        assert!(got[0].as_ref().unwrap()[..] == bytes[..]);
        let reason = service.path_reason().map(str::to_owned);
        (service.path_kind(), reason, service.counters().registered_reads)
    };
    std::thread::spawn(read).join().unwrap()
}

#[test]
fn where_the_system_refuses_a_ring_or_reads_through_it_threads_read_and_say_why() {
    for call in [libc::SYS_io_uring_setup, libc::SYS_io_uring_enter] {
        let (path, reason, _) = read_without(call);
        assert_eq!(path, "pread-pool");
        let reason = reason.unwrap();
        assert!(
            reason.starts_with("io_uring refused: ") && reason.contains("permitted"),
            "{reason}"
        );
    }
}

#[test]
fn where_the_system_refuses_to_register_memory_the_ring_reads_all_the_same() {
    let (path, reason, registered) = read_without(libc::SYS_io_uring_register);
    assert_eq!(registered, 0);
    // A system that refuses the ring as well says so by threads.
    assert_eq!(path == "io_uring", reason.is_none(), "{reason:?}");
}

/// Opens a file in a system that refuses one call, and reads it in one that does not.
fn open_without(call: libc::c_long, how: OpenHow) -> (FileFacts, Counters) {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (path, bytes) = written(dir.path(), 200_000);
    let service = Service::pool(2);
    let opened = std::thread::scope(|scope| {
        let open = || {
            refuse(call);
            service.open(&path, how).unwrap()
        };
        scope.spawn(open).join().unwrap()
    });
    let region = Region::new(bytes.len()).unwrap();
    let into = region.lend(0, bytes.len()).unwrap();
    let got = service.fill(vec![Fill { file: opened, offset: 0, into }], Priority::Next).wait(LONG);
    assert!(got[0].as_ref().unwrap()[..] == bytes[..]);
    (service.facts(opened).unwrap(), service.counters())
}

#[test]
fn a_file_that_opens_round_the_page_cache_and_cannot_be_read_so_is_read_through_it() {
    let (facts, counters) = open_without(libc::SYS_pread64, OpenHow::Direct);
    assert!(!facts.direct && facts.align == 1);
    assert!(facts.refused.unwrap().starts_with("O_DIRECT refused: "));
    assert_eq!(counters.direct_bytes, 0);
    assert_eq!(counters.mapped_bytes, if facts.mapped { 200_000 } else { 0 });
}

#[test]
fn where_the_system_refuses_to_copy_out_of_a_mapping_reads_are_plain_ones() {
    let (facts, counters) = open_without(libc::SYS_process_vm_readv, OpenHow::Passing);
    assert!(!facts.mapped && facts.refused.is_none());
    assert_eq!((counters.mapped_bytes, counters.retries), (0, 0));
    let (facts, counters) = open_without(libc::SYS_io_uring_setup, OpenHow::Passing);
    assert_eq!(counters.mapped_bytes, if facts.mapped { 200_000 } else { 0 }, "no part of it");
}

#[test]
fn a_drive_that_fails_a_read_twice_is_named_with_the_place_and_gives_the_memory_back() {
    // The system's own memory as a file: reads of what is not mapped are EIO.
    let region = Region::new(8192).unwrap();
    let mapped = Region::new(4096).unwrap();
    // Nothing is ever mapped there.
    let hole = 4096;
    for service in services() {
        let file = service.open(Path::new("/proc/self/mem"), OpenHow::Read).unwrap();
        let read = |offset: u64| {
            let into = region.lend(0, 4096).unwrap();
            service.fill(vec![Fill { file, offset, into }], Priority::Next).wait(LONG).remove(0)
        };
        mapped.lend(0, 4096).unwrap().fill(9);
        let came = read(mapped.span().address as u64);
        assert!(came.unwrap().iter().all(|byte| *byte == 9));
        let error = read(hole).err().unwrap();
        assert_eq!(error.kind, ErrorKind::Io);
        let text =
            format!("/proc/self/mem: input/output error at offset {hole}, twice; check the drive");
        assert_eq!(error.message, text);
        assert_eq!(service.counters().retries, 1);
        assert!(region.lend(0, 8192).is_ok());
    }
}

/// Where reads start and how long they are: round the borders of sectors and blocks.
const STARTS: [u64; 11] = [0, 1, 511, 512, 513, 4095, 4096, 4097, 8191, 8192, 12_289];
const LENGTHS: [usize; 11] = [1, 511, 512, 513, 4095, 4096, 4097, 8191, 8192, 8193, 12_289];
/// Bytes between the memory of two reads.
const SLOT: usize = 24 << 10;

/// One read of each start and length, to memory that agrees with the file modulo a block, or is so
/// far off: offset, place and length.
fn reads_at(skew: Option<usize>) -> Vec<(u64, usize, usize)> {
    let all = STARTS.iter().flat_map(|start| LENGTHS.map(|length| (*start, length)));
    let place = |index: usize, start: u64| index * SLOT + skew.unwrap_or(start as usize % 4096);
    all.enumerate().map(|(i, (start, length))| (start, place(i, start), length)).collect()
}

#[test]
fn reads_that_start_and_end_round_every_border_are_those_of_a_plain_file() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (path, bytes) = written(dir.path(), 5 * 4096 + 100);
    let region = Region::new(STARTS.len() * LENGTHS.len() * SLOT).unwrap();
    for (service, how) in services()
        .into_iter()
        .flat_map(|service| [OpenHow::Read, OpenHow::Direct].map(|how| (service.clone(), how)))
    {
        let file = service.open(&path, how).unwrap();
        let direct = service.facts(file).unwrap().direct;
        for skew in [None, Some(0), Some(1), Some(512), Some(4095)] {
            region.lend(0, region.bytes()).unwrap().fill(0xee);
            let reads = reads_at(skew);
            let before = service.counters();
            let fills = reads.iter().map(|(offset, at, length)| Fill {
                file,
                offset: *offset,
                into: region.lend(*at, *length).unwrap(),
            });
            let done = service.fill(fills.collect(), Priority::Next).wait(LONG);
            let (mut middles, mut ended) = (0, 0);
            for (done, (offset, at, length)) in done.into_iter().zip(reads) {
                let what = format!("{length} at {offset} to {at}, {how:?}, {skew:?}");
                let end = offset as usize + length;
                if end > bytes.len() {
                    let error = done.err().unwrap();
                    assert_eq!(error.kind, ErrorKind::Damaged, "{what}");
                    ended += 1;
                    continue;
                }
                let lease = done.unwrap();
                assert!(lease[..] == bytes[offset as usize..end], "{what}");
                drop(lease);
                let around = region.lend(at / SLOT * SLOT, SLOT).unwrap();
                let other = around.iter().enumerate().filter(|(i, byte)| {
                    !(at % SLOT..at % SLOT + length).contains(i) && **byte != 0xee
                });
                assert_eq!(other.count(), 0, "{what}: bytes beside it were written");
                if offset as usize % 4096 == at % 4096 {
                    let middle = end / 4096 * 4096;
                    middles += middle.saturating_sub(offset.next_multiple_of(4096) as usize);
                }
            }
            assert!(ended > 0 && ended < 20);
            let went = service.counters().direct_bytes - before.direct_bytes;
            let least = if direct { middles as u64 } else { 0 };
            // Those that pass the end of the file have read something, too.
            assert!(went >= least && (direct || went == 0), "{went} of {least}, {skew:?}");
        }
    }
}

#[test]
fn a_read_in_several_pieces_that_one_of_them_fails_is_one_error_and_leaves_no_memory_lent() {
    let dir = tempfile::tempdir().unwrap();
    let (path, bytes) = written(dir.path(), 3 << 20);
    for service in services() {
        let file = service.open(&path, OpenHow::Direct).unwrap();
        let region = Region::new(bytes.len() + 8192).unwrap();
        let into = region.lend(0, bytes.len() + 8192).unwrap();
        let got = service.fill(vec![Fill { file, offset: 0, into }], Priority::Next).wait(LONG);
        let text = got[0].as_ref().err().unwrap().to_string();
        assert!(text.contains("ends early: asked for"), "{text}");
        assert!(region.lend(0, region.bytes()).is_ok());
        let mut into = vec![0; bytes.len() + 1];
        let mut read = [FileRead { file, offset: 0, into: &mut into, done: Ok(()) }];
        for within in [LONG, Duration::MAX] {
            let error = service.read_batch(&mut read, within).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Damaged);
        }
    }
}
