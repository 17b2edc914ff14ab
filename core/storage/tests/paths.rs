//! Every path gives the same bytes: ring and threads, round the page cache and through it, into
//! registered memory and other.
#![allow(clippy::unwrap_used)] // helpers of tests

use kvern_contract::{ErrorKind, FileId, FileRead, FileWrite};
use kvern_storage::double::Random;
use kvern_storage::{Fill, OpenHow, PathChoice, Priority, Region, Service, ServiceSpec, Storage};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const LONG: Duration = Duration::from_secs(60);

fn services() -> Vec<Arc<Service>> {
    let of = |path, piece_bytes| {
        Service::new(ServiceSpec { path, piece_bytes, threads: 3, ..ServiceSpec::default() })
    };
    vec![
        of(PathChoice::Auto, 512 << 10),
        of(PathChoice::Auto, 4096),
        of(PathChoice::Pool, 64 << 10),
        Service::new(ServiceSpec { path: PathChoice::Pool, threads: 0, ..ServiceSpec::default() }),
    ]
}

/// A file whose every byte says where it is, and which does not end at a block.
fn written(dir: &Path) -> (std::path::PathBuf, Vec<u8>) {
    let bytes: Vec<u8> =
        (0..(3 << 20) + 1234u32).map(|i| (i ^ (i >> 8) ^ (i >> 16)) as u8).collect();
    let path = dir.join("weights");
    std::fs::write(&path, &bytes).unwrap();
    (path, bytes)
}

#[test]
fn fills_of_any_place_length_and_alignment_give_the_files_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let (path, bytes) = written(dir.path());
    let mut random = Random::new(7);
    for (index, service) in services().into_iter().enumerate() {
        for how in [OpenHow::Read, OpenHow::Direct, OpenHow::Passing] {
            let file = service.open(&path, how).unwrap();
            let region = Region::new(2 << 20).unwrap();
            if random.one_in(2) {
                service.register(&region);
            }
            for round in 0..60 {
                let length = 1 + random.below(1 << (1 + round % 20)) as usize;
                let offset = random.below((bytes.len() - length) as u64 + 1);
                // Half of them lie as the drive wants them.
                let skew = if random.one_in(2) { offset % 4096 } else { random.below(4096) };
                let at = random.below(128) as usize * 4096 + skew as usize;
                let mut other = region.lend(at + length, 64).unwrap();
                other.fill(0x5a);
                let fill = Fill { file, offset, into: region.lend(at, length).unwrap() };
                let mut got = service.fill(vec![fill], Priority::Next).wait(LONG);
                let lease = got.remove(0).unwrap();
                let want = &bytes[offset as usize..offset as usize + length];
                assert!(&lease[..] == want, "service {index}, {how:?}, {length} at {offset}");
                assert!(other.iter().all(|b| *b == 0x5a), "written past the lease");
                let mut into = vec![0; length];
                let mut read = [FileRead { file, offset, into: &mut into, done: Ok(()) }];
                let within = if random.one_in(2) { LONG } else { Duration::MAX };
                service.read_batch(&mut read, within).unwrap();
                assert!(into == want, "service {index}, {how:?}, batch");
            }
        }
    }
}

#[test]
fn aligned_fills_of_a_direct_file_go_round_the_page_cache_and_the_counters_say_so() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (path, bytes) = written(dir.path());
    for service in services() {
        let file = service.open(&path, OpenHow::Direct).unwrap();
        let facts = service.facts(file).unwrap();
        let region = Region::new(bytes.len()).unwrap();
        service.register(&region);
        let fill = Fill { file, offset: 0, into: region.lend(0, bytes.len()).unwrap() };
        let got = service.fill(vec![fill], Priority::Next).wait(LONG).remove(0).unwrap();
        assert!(got[..] == bytes[..]);
        let counters = service.counters();
        assert_eq!(counters.bytes_read, bytes.len() as u64);
        match facts.direct {
            true => {
                assert_eq!((facts.align, facts.refused), (4096, None));
                assert_eq!(counters.direct_bytes, (bytes.len() / 4096 * 4096) as u64);
            }
            false => {
                assert!(facts.refused.unwrap().starts_with("O_DIRECT refused: "));
                assert_eq!(counters.direct_bytes, 0);
            }
        }
    }
}

#[test]
fn many_small_reads_and_writes_at_once_are_those_of_a_file_in_memory() {
    let dir = tempfile::tempdir().unwrap();
    for (index, service) in services().into_iter().enumerate() {
        let path = dir.path().join(format!("kv-{index}"));
        let file = service.open(&path, OpenHow::Write).unwrap();
        let part = 40_000usize;
        std::thread::scope(|scope| {
            for turn in 0..3u64 {
                let service = &service;
                scope.spawn(move || check_part(service.as_ref(), file, turn, part));
            }
        });
        let counters = service.counters();
        assert!(counters.writes > 400 && counters.reads > 400, "{counters:?}");
    }
}

/// Writes and reads a part of a file of one's own, against a copy in memory.
fn check_part(service: &Service, file: FileId, turn: u64, part: usize) {
    let mut random = Random::new(turn);
    let mut model = vec![turn as u8; part];
    let base = turn * part as u64;
    let all = [FileWrite { file, offset: base, bytes: &model }];
    service.write_batch(&all, Duration::MAX).unwrap();
    for round in 0..400 {
        let at = random.below(part as u64 - 64) as usize;
        let length = 1 + random.below(63) as usize;
        let offset = base + at as u64;
        let within = if random.one_in(2) { LONG } else { Duration::MAX };
        if random.one_in(2) {
            model[at..at + length].fill(round as u8);
            let writes = [FileWrite { file, offset, bytes: &model[at..at + length] }];
            service.write_batch(&writes, within).unwrap();
        } else {
            let (mut a, mut b) = (vec![0; length], vec![0; 64]);
            let mut reads = [
                FileRead { file, offset, into: &mut a, done: Ok(()) },
                FileRead { file, offset: base, into: &mut b, done: Ok(()) },
            ];
            service.read_batch(&mut reads, within).unwrap();
            assert_eq!(a, &model[at..at + length]);
            assert_eq!(b, &model[..64]);
        }
    }
}

#[test]
fn a_fill_past_the_end_says_what_was_asked_and_what_came() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("short"), [1; 5000]).unwrap();
    for service in services() {
        for how in [OpenHow::Read, OpenHow::Direct, OpenHow::Passing] {
            let file = service.open(&dir.path().join("short"), how).unwrap();
            let region = Region::new(8192).unwrap();
            let fill = Fill { file, offset: 0, into: region.lend(0, 8192).unwrap() };
            let got = service.fill(vec![fill], Priority::Urgent).wait(LONG);
            let error = got[0].as_ref().err().unwrap();
            assert_eq!(error.kind, ErrorKind::Damaged, "{how:?}: {error:?}");
            assert!(error.message.contains("ends early"), "{}", error.message);
            drop(got);
            assert!(region.lend(0, 8192).is_ok(), "its memory is free again");
        }
    }
}

#[test]
fn a_file_that_is_replaced_cut_or_written_while_it_is_open_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let service = Service::new(ServiceSpec::default());
    let path = dir.path().join("model");
    let opened = || {
        std::fs::write(&path, [1; 9000]).unwrap();
        let file = service.open(&path, OpenHow::Direct).unwrap();
        service.unchanged(file).unwrap();
        file
    };
    let said = |file| {
        let error = service.unchanged(file).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Damaged);
        error.message
    };
    let file = opened();
    std::fs::write(dir.path().join("new"), [2; 9000]).unwrap();
    std::fs::rename(dir.path().join("new"), &path).unwrap();
    assert!(said(file).contains("was replaced by another file"));
    let file = opened();
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(4000).unwrap();
    assert!(said(file).contains("went from 9000 to 4000 bytes"));
    let file = opened();
    let writer = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    let later = std::time::SystemTime::now() + Duration::from_secs(5);
    writer.set_modified(later).unwrap();
    assert!(said(file).contains("was written to"));
    std::fs::remove_file(&path).unwrap();
    assert_eq!(service.unchanged(file).unwrap_err().kind, ErrorKind::NotFound);
}

#[test]
fn a_service_that_is_dropped_finishes_what_the_system_has_and_gives_the_memory_back() {
    let dir = tempfile::tempdir().unwrap();
    let (path, bytes) = written(dir.path());
    for service in services() {
        let file = service.open(&path, OpenHow::Direct).unwrap();
        let region = Region::new(bytes.len()).unwrap();
        let fills = (0..700).map(|i| Fill {
            file,
            offset: i * 4096,
            into: region.lend(i as usize * 4096, 4096).unwrap(),
        });
        let filling = service.fill(fills.collect(), Priority::Background);
        drop(service);
        let got = filling.wait(LONG);
        for (index, lease) in got.into_iter().enumerate() {
            let want = &bytes[index * 4096..(index + 1) * 4096];
            assert!(lease.unwrap()[..] == *want, "read {index}");
        }
        assert_eq!(region.leased_bytes(), 0);
    }
}

#[test]
fn fills_that_nobody_waits_for_are_not_read() {
    let dir = tempfile::tempdir().unwrap();
    let (path, bytes) = written(dir.path());
    // So slow that most of it has not begun when it is given up.
    let slow = ServiceSpec { bytes_per_second: Some(20 << 20), ..ServiceSpec::default() };
    for (path_choice, how) in [PathChoice::Auto, PathChoice::Pool]
        .into_iter()
        .flat_map(|choice| [OpenHow::Read, OpenHow::Passing].map(|how| (choice, how)))
    {
        let service = Service::new(ServiceSpec { path: path_choice, threads: 1, ..slow });
        let file = service.open(&path, how).unwrap();
        let region = Region::new(bytes.len()).unwrap();
        let part = 256 << 10;
        let fills = (0..10).map(|i| {
            let into = region.lend(i * part, part).unwrap();
            Fill { file, offset: (i * part) as u64, into }
        });
        drop(service.fill(fills.collect(), Priority::Next));
        let into = region.lend(11 * part, 16).unwrap();
        let last = service.fill(vec![Fill { file, offset: 5, into }], Priority::Background);
        assert_eq!(last.wait(LONG)[0].as_ref().unwrap()[..], bytes[5..21]);
        assert!(service.counters().cancelled > 0);
        assert!(service.counters().bytes_read < 10 * part as u64);
    }
}
