//! Drives that fail, stick and stop answering, by the service's own paths.

use super::*;
use crate::files::Gate;
use kvern_contract::ErrorKind;
use std::sync::atomic::Ordering::Relaxed;

/// Reads from a stuck file until a worker is truly inside the operation; what the last call
/// left.
fn read_stuck(pool: &Service, gate: &Arc<Gate>) -> Vec<u8> {
    let file = pool.files.add(OpenFile::stuck(gate.clone()));
    let mut buffer = vec![0x11; 4096];
    while gate.entered.load(Relaxed) == 0 {
        let mut reads = [FileRead { file, offset: 0, into: &mut buffer, done: Ok(()) }];
        let answer = pool.read_batch(&mut reads, Duration::from_millis(5));
        assert_eq!(answer.unwrap_err().kind, ErrorKind::Timeout);
        assert_eq!(reads[0].done.as_ref().unwrap_err().kind, ErrorKind::Timeout);
    }
    buffer
}

#[test]
fn a_read_that_never_completes_times_out_and_never_touches_the_buffer() {
    let pool = Service::pool(2);
    let gate = Arc::new(Gate::default());
    let buffer = read_stuck(&pool, &gate);
    gate.open.store(true, Relaxed);
    while gate.left.load(Relaxed) < gate.entered.load(Relaxed) {
        std::thread::yield_now();
    }
    assert!(buffer.iter().all(|&byte| byte == 0x11));
}

#[test]
fn a_read_of_nothing_in_another_file_leaves_a_lone_piece_its_file() {
    let pool = Service::pool(2);
    let dir = tempfile::tempdir().unwrap();
    let open = |name: &str, byte: u8| {
        std::fs::write(dir.path().join(name), [byte; 4096]).unwrap();
        pool.open(&dir.path().join(name), OpenHow::Read).unwrap()
    };
    let (a, b) = (open("a", b'a'), open("b", b'b'));
    for order in [[a, b], [b, a]] {
        let (mut full, mut none) = ([0; 4096], [0; 0]);
        let mut into: [&mut [u8]; 2] = [&mut full, &mut none];
        if order[0] == b {
            into.reverse();
        }
        let mut reads: Vec<_> = (order.into_iter().zip(into))
            .map(|(file, into)| FileRead { file, offset: 0, into, done: Ok(()) })
            .collect();
        pool.read_batch(&mut reads, Duration::MAX).unwrap();
        assert!(full.iter().all(|&byte| byte == b'a'), "read {}", full[0]);
    }
}

#[test]
fn a_stuck_thread_leaves_the_others_working() {
    let pool = Service::pool(8);
    let gate = Arc::new(Gate::default());
    read_stuck(&pool, &gate);
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("f"), b"efgh").unwrap();
    let file = pool.open(&dir.path().join("f"), OpenHow::Read).unwrap();
    let (mut a, mut b) = ([0; 2], [0; 2]);
    let mut reads = [
        FileRead { file, offset: 0, into: &mut a, done: Ok(()) },
        FileRead { file, offset: 2, into: &mut b, done: Ok(()) },
    ];
    pool.read_batch(&mut reads, Duration::MAX).unwrap();
    assert_eq!((&a, &b), (b"ef", b"gh"));
    gate.open.store(true, Relaxed);
}

/// A service of one path, of as many operations at once.
fn service(path: PathChoice, count: usize) -> Arc<Service> {
    Service::new(ServiceSpec { path, threads: count, depth: count, ..ServiceSpec::default() })
}

/// A file in a directory of its own, and its bytes.
fn written(dir: &Path) -> (std::path::PathBuf, Vec<u8>) {
    let bytes: Vec<u8> = (0..20_000u32).map(|i| (i ^ (i >> 8)) as u8).collect();
    let path = dir.join("weights");
    std::fs::write(&path, &bytes).unwrap();
    (path, bytes)
}

fn fill(service: &Service, file: FileId, offset: u64, region: &Arc<Region>, at: usize) -> Filling {
    let into = region.lend(at, 4096).unwrap();
    service.fill(vec![Fill { file, offset, into }], Priority::Next)
}

const LONG: Duration = Duration::from_secs(60);

#[test]
fn a_read_that_fails_once_is_tried_again_and_one_that_fails_twice_names_file_and_offset() {
    let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let (path, bytes) = written(dir.path());
    for choice in [PathChoice::Auto, PathChoice::Pool] {
        for how in [OpenHow::Read, OpenHow::Direct] {
            let service = service(choice, 2);
            let file = service.open(&path, how).unwrap();
            let failing = &service.files.get(file).unwrap().failing;
            let region = Region::new(8192).unwrap();
            failing.store(1, Relaxed);
            let got = fill(&service, file, 8192, &region, 0).wait(LONG).remove(0).unwrap();
            assert!(got[..] == bytes[8192..12288], "the same bytes");
            drop(got);
            assert_eq!(service.counters().retries, 1);
            failing.store(2, Relaxed);
            let mut got = fill(&service, file, 8192, &region, 0).wait(LONG);
            let error = got.remove(0).err().unwrap();
            assert_eq!(error.kind, ErrorKind::Io);
            let text = format!(
                "{}: input/output error at offset 8192, twice; check the drive",
                path.display()
            );
            assert_eq!(error.message, text);
            assert_eq!(service.counters().retries, 2, "tried once more, and no more than once");
            assert_eq!(failing.load(Relaxed), 0);
            assert!(region.lend(0, 8192).is_ok(), "its memory is free again");
        }
    }
}

#[test]
fn a_huge_page_that_fails_is_read_plainly_and_one_that_fails_again_names_file_and_offset() {
    let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let path = dir.path().join("weights");
    let bytes: Vec<u8> = (0..5 << 20).map(|i: u32| (i ^ (i >> 8) ^ (i >> 16)) as u8).collect();
    std::fs::write(&path, &bytes).unwrap();
    for choice in [PathChoice::Auto, PathChoice::Pool] {
        let service = service(choice, 2);
        let file = service.open(&path, OpenHow::Passing).unwrap();
        if !service.facts(file).unwrap().mapped {
            return;
        }
        let failing = &service.files.get(file).unwrap().failing;
        let region = Region::new(bytes.len()).unwrap();
        let (offset, length) = (12345, (4 << 20) + 777);
        let whole = || {
            let into = region.lend(0, length).unwrap();
            let fill = Fill { file, offset, into };
            service.fill(vec![fill], Priority::Next).wait(LONG).remove(0)
        };
        let want = &bytes[offset as usize..offset as usize + length];
        let mapped = || service.counters().mapped_bytes;
        assert!(whole().unwrap()[..] == *want);
        assert_eq!((mapped(), service.counters().reads), (length as u64, 3), "three huge pages");
        failing.store(1, Relaxed);
        assert!(whole().unwrap()[..] == *want);
        assert_eq!(service.counters().retries, 1);
        let again = mapped() - length as u64;
        assert!(again < length as u64 && again > 0, "one page was read plainly: {again}");
        failing.store(u32::MAX, Relaxed);
        let error = whole().err().unwrap();
        assert!(error.message.contains("input/output error at offset"), "{}", error.message);
        assert!(error.message.contains("twice; check the drive"), "{}", error.message);
        assert!(region.lend(0, region.bytes()).is_ok(), "its memory is free again");
    }
}

#[test]
fn huge_pages_wait_for_the_pace_of_all_reads_and_urgent_ones_do_not() {
    let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let path = dir.path().join("weights");
    std::fs::write(&path, vec![7; 1 << 20]).unwrap();
    let slow = ServiceSpec { bytes_per_second: Some(1), ..ServiceSpec::default() };
    let service = Service::new(slow);
    let file = service.open(&path, OpenHow::Passing).unwrap();
    let region = Region::new(2 << 20).unwrap();
    let whole = |at: usize, priority| {
        let into = region.lend(at, 1 << 20).unwrap();
        service.fill(vec![Fill { file, offset: 0, into }], priority)
    };
    // Paid for in more than an hour, by the other queue.
    fill(&service, file, 0, &region, 0).wait(LONG).remove(0).unwrap();
    let waits = whole(1 << 20, Priority::Next);
    for _ in 0..5 {
        whole(0, Priority::Urgent).wait(LONG).remove(0).unwrap();
    }
    assert!(!waits.is_done());
}

/// A file whose reads come when somebody writes into the pipe.
fn pipe(service: &Service) -> (FileId, std::io::PipeWriter) {
    let (reader, writer) = std::io::pipe().unwrap();
    let file = std::fs::File::from(std::os::fd::OwnedFd::from(reader));
    (service.files.add(OpenFile::of_file(file, "pipe")), writer)
}

#[test]
fn a_read_behind_a_drive_that_sticks_is_late_and_comes_when_the_drive_goes_on() {
    use std::io::Write;
    let dir = tempfile::tempdir().unwrap();
    let (path, bytes) = written(dir.path());
    let service = service(PathChoice::Auto, 2);
    if service.path_kind() != "io_uring" {
        return;
    }
    let (stuck, mut writer) = pipe(&service);
    let file = service.open(&path, OpenHow::Read).unwrap();
    let region = Region::new(1 << 16).unwrap();
    // Both slots of the ring.
    let held = [0, 4096].map(|at| fill(&service, stuck, 0, &region, at));
    let late = fill(&service, file, 100, &region, 8192).wait(Duration::from_millis(30));
    let text = late[0].as_ref().err().unwrap().to_string();
    assert!(text.contains("weights at offset 100 waits behind others, and none was"), "{text}");
    let [first, second] = held;
    let late = first.wait(Duration::from_millis(1));
    let text = late[0].as_ref().err().unwrap().to_string();
    assert!(text.contains("a read of pipe at offset 0 was not answered within 0.001 s"), "{text}");
    assert!(region.lend(0, 1).is_err(), "the kernel may write to it");
    let next = fill(&service, file, 100, &region, 12288);
    writer.write_all(&[7; 8192]).unwrap();
    assert!(second.wait(LONG)[0].as_ref().unwrap().iter().all(|byte| *byte == 7));
    assert!(next.wait(LONG)[0].as_ref().unwrap()[..] == bytes[100..4196]);
}

#[test]
fn memory_that_the_kernel_may_write_to_outlives_its_service_and_everybody_who_waited() {
    use std::io::Write;
    let service = service(PathChoice::Auto, 2);
    if service.path_kind() != "io_uring" {
        return;
    }
    let (stuck, mut writer) = pipe(&service);
    let region = Region::new(8192).unwrap();
    service.register(&region);
    let meter = service.meter.clone();
    let filling = fill(&service, stuck, 0, &region, 0);
    while meter.read.is_idle() {
        std::thread::yield_now();
    }
    drop(filling);
    drop(service);
    let memory = Arc::downgrade(&region);
    drop(region);
    assert_eq!(memory.strong_count(), 1, "the read's lease");
    writer.write_all(&[7; 4096]).unwrap();
    let began = Instant::now();
    while memory.strong_count() > 0 {
        assert!(began.elapsed() < LONG, "the memory never came back");
        std::thread::yield_now();
    }
}

#[test]
fn memory_is_pinned_as_long_as_somebody_has_it_and_no_longer() {
    let dir = tempfile::tempdir().unwrap();
    let (path, bytes) = written(dir.path());
    let service = service(PathChoice::Auto, 2);
    let file = service.open(&path, OpenHow::Read).unwrap();
    let region = Region::new(4096).unwrap();
    service.register(&region);
    drop(fill(&service, file, 0, &region, 0).wait(LONG));
    if service.counters().registered_reads == 0 {
        return;
    }
    // More than the kernel's table has entries, one after another.
    for turn in 2..=300 {
        let next = Region::new(4096).unwrap();
        service.register(&next);
        service.register(&next);
        let got = fill(&service, file, turn, &next, 0).wait(LONG).remove(0).unwrap();
        assert!(got[..] == bytes[turn as usize..turn as usize + 4096]);
        assert_eq!(service.counters().registered_reads, turn, "turn {turn}");
        // Memory at the same address that nobody registered is nobody's entry.
        let address = next.span().address;
        drop((got, next));
        let other = Region::new(4096).unwrap();
        if other.span().address == address {
            let got = fill(&service, file, 7, &other, 0).wait(LONG).remove(0).unwrap();
            assert!(got[..] == bytes[7..4103], "read into memory that is another's");
            assert_eq!(service.counters().registered_reads, turn);
        }
    }
    drop(fill(&service, file, 0, &region, 0).wait(LONG));
    assert_eq!(service.counters().registered_reads, 301, "the first is pinned all the while");
}

#[test]
fn a_read_that_its_file_ends_in_says_how_much_came() {
    let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let (path, _) = written(dir.path());
    for choice in [PathChoice::Auto, PathChoice::Pool] {
        for how in [OpenHow::Read, OpenHow::Direct] {
            let service = service(choice, 2);
            let file = service.open(&path, how).unwrap();
            let region = Region::new(4096).unwrap();
            let error = fill(&service, file, 16384, &region, 0).wait(LONG).remove(0).err().unwrap();
            assert_eq!(error.kind, ErrorKind::Damaged, "{choice:?}, {how:?}: {error}");
            let text = "asked for 4096 bytes at offset 16384, got 3616";
            assert!(error.message.contains(text), "{error}");
        }
    }
}

#[test]
fn a_read_round_the_page_cache_has_its_ends_through_it() {
    let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let (path, bytes) = written(dir.path());
    for choice in [PathChoice::Auto, PathChoice::Pool] {
        let service = service(choice, 2);
        let file = service.open(&path, OpenHow::Direct).unwrap();
        let region = Region::new(1 << 15).unwrap();
        // An end of a block, two blocks, and the start of a block, as memory has them too.
        let into = region.lend(4000, 96 + 8192 + 50).unwrap();
        let fills = vec![Fill { file, offset: 4000, into }];
        let got = service.fill(fills, Priority::Next).wait(LONG).remove(0).unwrap();
        assert!(got[..] == bytes[4000..12_338], "{choice:?}");
        let direct = if service.facts(file).unwrap().direct { 8192 } else { 0 };
        assert_eq!(service.counters().direct_bytes, direct, "{choice:?}");
    }
}

#[test]
fn a_fill_that_fails_is_told_by_its_first_failure_and_leaves_the_others_of_its_filling() {
    let dir = tempfile::tempdir().unwrap();
    let (path, bytes) = written(dir.path());
    for path_choice in [PathChoice::Auto, PathChoice::Pool] {
        // One piece after another.
        let one = ServiceSpec { path: path_choice, threads: 1, depth: 1, ..Default::default() };
        let service = Service::new(ServiceSpec { piece_bytes: 4096, ..one });
        let [bad, good] = [(); 2].map(|()| service.open(&path, OpenHow::Read).unwrap());
        let region = Region::new(1 << 15).unwrap();
        // What comes of a piece that is tried twice; those after it are not read.
        service.files.get(bad).unwrap().failing.store(2, Relaxed);
        let lend = |at| region.lend(at, 8192).unwrap();
        let fills = vec![
            Fill { file: bad, offset: 0, into: lend(0) },
            Fill { file: FileId(u32::MAX), offset: 0, into: lend(8192) },
            Fill { file: good, offset: 100, into: lend(16384) },
        ];
        let got = service.fill(fills, Priority::Next).wait(LONG);
        let text = got[0].as_ref().err().unwrap().to_string();
        assert!(text.contains("at offset 0, twice; check the drive"), "{text}");
        assert_eq!(got[1].as_ref().err().unwrap().kind, ErrorKind::NotFound);
        assert!(got[2].as_ref().unwrap()[..] == bytes[100..8292]);
    }
}

#[test]
fn reads_that_somebody_waits_for_go_before_those_that_wait_for_the_pace() {
    let dir = tempfile::tempdir().unwrap();
    let (path, bytes) = written(dir.path());
    for path_choice in [PathChoice::Auto, PathChoice::Pool] {
        // What is read first is paid for in an hour.
        let slow = ServiceSpec { bytes_per_second: Some(1), threads: 1, ..Default::default() };
        let service = Service::new(ServiceSpec { path: path_choice, ..slow });
        let file = service.open(&path, OpenHow::Read).unwrap();
        let region = Region::new(1 << 15).unwrap();
        fill(&service, file, 0, &region, 0).wait(LONG).remove(0).unwrap();
        let waits = fill(&service, file, 0, &region, 0);
        let into = region.lend(4096, 96).unwrap();
        let urgent = service.fill(vec![Fill { file, offset: 7, into }], Priority::Urgent);
        assert!(urgent.wait(LONG).remove(0).unwrap()[..] == bytes[7..103]);
        let mut into = [0; 5];
        let mut read = [FileRead { file, offset: 9, into: &mut into, done: Ok(()) }];
        service.read_batch(&mut read, LONG).unwrap();
        assert!(into == bytes[9..14] && !waits.is_done());
    }
}

#[test]
fn an_id_that_was_closed_is_no_other_files() {
    let dir = tempfile::tempdir().unwrap();
    let (path, _) = written(dir.path());
    let service = Service::pool(1);
    let [first, second] = [(); 2].map(|()| service.open(&path, OpenHow::Read).unwrap());
    service.close(first);
    let third = service.open(&path, OpenHow::Read).unwrap();
    assert!(third != first && third != second);
    let region = Region::new(4096).unwrap();
    let got = fill(&service, first, 0, &region, 0).wait(LONG).remove(0);
    assert_eq!(got.err().unwrap().kind, ErrorKind::NotFound);
}
