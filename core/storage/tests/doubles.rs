//! The doubles must be able to do the harm that they promise, and no other.
#![allow(clippy::unwrap_used)]

use kvern_contract::{ErrorKind, FileId, FileRead, FileWrite};
use kvern_storage::double::{FaultPlan, Faults, FillFault, MemoryStorage};
use kvern_storage::{Fill, Filling, OpenHow, Priority, Region, Storage};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

fn put(storage: &dyn Storage, file: FileId, offset: u64, bytes: &[u8]) {
    storage.write_batch(&[FileWrite { file, offset, bytes }], Duration::MAX).unwrap();
}
fn get(storage: &dyn Storage, file: FileId, bytes: usize) -> kvern_contract::Result<Vec<u8>> {
    let mut out = vec![0x11; bytes];
    let mut reads = [FileRead { file, offset: 0, into: &mut out, done: Ok(()) }];
    storage.read_batch(&mut reads, Duration::MAX).map(|()| out)
}

#[test]
fn a_power_cut_keeps_what_was_synced_and_leaves_any_sectors_of_the_rest() {
    let path = Path::new("/r/f");
    let (mut lengths, mut mixes) = (BTreeSet::new(), BTreeSet::new());
    for seed in 0..200 {
        let storage = MemoryStorage::new();
        let file = storage.open(path, OpenHow::Write).unwrap();
        put(&*storage, file, 0, &[1; 1024]);
        storage.sync(&[file]).unwrap();
        put(&*storage, file, 512, &[2; 1024]);
        put(&*storage, file, 1024, &[3; 512]);
        storage.cut(seed);
        let left = storage.contents(path).expect("a synced name");
        assert!(left[..512] == [1; 512], "a sector nobody wrote changed");
        lengths.insert(left.len());
        assert!([1, 2].contains(&left[512]) && left[512..1024].iter().all(|b| *b == left[512]));
        if left.len() > 1024 {
            assert!([0, 2, 3].contains(&left[1024]));
            mixes.insert((left[512], left[1024]));
        }
        assert_eq!(storage.bytes(file).unwrap_err().kind, ErrorKind::NotFound);
    }
    assert_eq!(lengths, BTreeSet::from([1024, 1536]));
    // Reordered: the later write there without the earlier, a length without bytes, and the rest.
    assert_eq!(mixes.len(), 6, "{mixes:?}");
}

#[test]
fn an_unsynced_name_may_vanish_and_a_removed_one_may_come_back() {
    let (mut there, mut back) = (BTreeSet::new(), BTreeSet::new());
    for seed in 0..40 {
        let storage = MemoryStorage::new();
        let kept = storage.open(Path::new("/r/kept"), OpenHow::Write).unwrap();
        put(&*storage, kept, 0, b"k");
        storage.sync(&[kept]).unwrap();
        storage.open(Path::new("/r/new"), OpenHow::Write).unwrap();
        storage.remove(Path::new("/r/kept")).unwrap();
        storage.cut(seed);
        there.insert(storage.contents(Path::new("/r/new")).is_some());
        back.insert(storage.contents(Path::new("/r/kept")).is_some());
    }
    assert_eq!((there.len(), back.len()), (2, 2));
}

#[test]
fn a_publish_cut_at_any_event_leaves_the_old_file_or_the_new_one_whole() {
    let path = Path::new("/r/identity");
    let mut seen = BTreeSet::new();
    for (event, seed) in (0..4).flat_map(|event| (0..20).map(move |seed| (event, seed))) {
        let storage = MemoryStorage::new();
        storage.publish(path, &[1; 2000]).unwrap();
        storage.fail_at(storage.events() + event);
        let answer = storage.publish(path, &[2; 3000]);
        assert_eq!(answer.is_ok(), event == 3);
        storage.cut(seed);
        let left = storage.contents(path).unwrap();
        assert!(left == [1; 2000] || left == [2; 3000]);
        assert!(event != 0 || left[0] == 1, "nothing was renamed yet");
        assert!(event != 3 || left[0] == 2, "publish had returned");
        seen.insert((event, left[0]));
    }
    assert!(seen.contains(&(1, 1)) && seen.contains(&(1, 2)), "{seen:?}");
}

#[test]
fn when_the_power_is_off_every_call_fails_until_the_cut() {
    let storage = MemoryStorage::new();
    let file = storage.open(Path::new("/r/f"), OpenHow::Write).unwrap();
    storage.fail_at(storage.events());
    let write = FileWrite { file, offset: 0, bytes: b"x" };
    assert_eq!(storage.write_batch(&[write], Duration::MAX).unwrap_err().kind, ErrorKind::Io);
    assert!(storage.is_off() && storage.sync(&[file]).is_err() && get(&*storage, file, 1).is_err());
    storage.cut(1);
    assert!(storage.open(Path::new("/r/g"), OpenHow::Write).is_ok());
}

#[test]
fn a_full_drive_is_out_of_space_and_a_failing_one_is_io() {
    let plan = FaultPlan { space_bytes: Some(100), ..FaultPlan::default() };
    let full = Faults::new(MemoryStorage::new(), plan);
    let file = full.open(Path::new("/f"), OpenHow::Write).unwrap();
    put(&*full, file, 0, &[1; 100]);
    let write = FileWrite { file, offset: 100, bytes: b"x" };
    assert_eq!(full.write_batch(&[write], Duration::MAX).unwrap_err().kind, ErrorKind::OutOfSpace);
    assert_eq!(full.publish(Path::new("/g"), b"x").unwrap_err().kind, ErrorKind::OutOfSpace);
    assert_eq!(get(&*full, file, 100).unwrap(), [1; 100]);

    full.set(FaultPlan { reads_before_eio: Some(2), ..FaultPlan::default() });
    assert!(get(&*full, file, 1).is_ok() && get(&*full, file, 1).is_ok());
    assert_eq!(get(&*full, file, 1).unwrap_err().kind, ErrorKind::Io);
    full.set(FaultPlan { writes_before_eio: Some(0), ..FaultPlan::default() });
    let write = FileWrite { file, offset: 0, bytes: b"x" };
    assert_eq!(full.write_batch(&[write], Duration::MAX).unwrap_err().kind, ErrorKind::Io);
    full.set(FaultPlan { syncs_before_eio: Some(1), ..FaultPlan::default() });
    assert!(full.sync(&[file]).is_ok());
    assert_eq!(full.sync(&[file]).unwrap_err().kind, ErrorKind::Io);
}

#[test]
fn short_reads_are_errors_and_flipped_bits_are_silent() {
    let faults = Faults::new(MemoryStorage::new(), FaultPlan::default());
    let file = faults.open(Path::new("/f"), OpenHow::Write).unwrap();
    put(&*faults, file, 0, &[0; 64]);
    faults.set(FaultPlan { seed: 3, short_one_in: 1, ..FaultPlan::default() });
    let error = get(&*faults, file, 64).unwrap_err();
    assert!(error.message.contains("asked for 64 bytes at offset 0, got 32"), "{}", error.message);
    faults.set(FaultPlan { seed: 3, flip_one_in: 1, ..FaultPlan::default() });
    let flipped = get(&*faults, file, 64).unwrap();
    assert_eq!(flipped.iter().map(|byte| byte.count_ones()).sum::<u32>(), 1);
    faults.set(FaultPlan { seed: 3, flip_one_in: 1, ..FaultPlan::default() });
    assert_eq!(get(&*faults, file, 64).unwrap(), flipped, "the same seed, the same harm");
}

#[test]
fn a_held_read_times_out_untouched_and_goes_on_once_released() {
    let plan = FaultPlan { hold_reads: true, ..FaultPlan::default() };
    let faults = Faults::new(MemoryStorage::new(), plan);
    let file = faults.open(Path::new("/f"), OpenHow::Write).unwrap();
    put(&*faults, file, 0, b"abcd");
    let mut bytes = [0x11; 4];
    let mut reads = [FileRead { file, offset: 0, into: &mut bytes, done: Ok(()) }];
    let error = faults.read_batch(&mut reads, Duration::from_millis(5)).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Timeout);
    assert_eq!(bytes, [0x11; 4]);
    let reader = {
        let faults = faults.clone();
        std::thread::spawn(move || get(&*faults, file, 4))
    };
    while faults.held() == 0 {
        std::thread::yield_now();
    }
    faults.release();
    assert_eq!(reader.join().unwrap().unwrap(), b"abcd");
}

#[test]
fn latency_past_the_deadline_is_a_timeout() {
    let nap = Duration::from_millis(20);
    let plan = FaultPlan { latency: Some((nap, nap)), ..FaultPlan::default() };
    let faults = Faults::new(MemoryStorage::new(), plan);
    let file = faults.open(Path::new("/f"), OpenHow::Write).unwrap();
    put(&*faults, file, 0, b"abcd");
    let mut bytes = [0x11; 4];
    let mut reads = [FileRead { file, offset: 0, into: &mut bytes, done: Ok(()) }];
    let error = faults.read_batch(&mut reads, Duration::from_millis(1)).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Timeout);
    assert_eq!(bytes, [0x11; 4]);
    assert_eq!(get(&*faults, file, 4).unwrap(), b"abcd");
}

#[test]
fn a_misdirected_write_lands_elsewhere_in_its_file_and_says_nothing() {
    let memory = MemoryStorage::new();
    let faults = Faults::new(memory.clone(), FaultPlan::default());
    let path = Path::new("/r/f");
    let file = faults.open(path, OpenHow::Write).unwrap();
    let mut places = BTreeSet::new();
    for seed in 0..40 {
        faults.set(FaultPlan { seed, misdirect_one_in: 2, ..FaultPlan::default() });
        memory.tamper(path, |bytes| *bytes = vec![0; 1 << 14]);
        put(&*faults, file, 4096, &[7; 512]);
        let left = memory.contents(path).unwrap();
        assert_eq!(left.iter().filter(|b| **b == 7).count(), 512, "it lands whole, once");
        let at = left.iter().position(|b| *b == 7).unwrap();
        assert_eq!(at % 512, 0);
        places.insert(at);
    }
    assert!(places.contains(&4096) && places.len() > 4, "{places:?}");
    assert!(places.first() < Some(&4096) && places.last() > Some(&4096), "{places:?}");
}

/// A file of two blocks, and a fill of one of them.
fn block(storage: &dyn Storage, how: OpenHow, region: &Arc<Region>, block: usize) -> Filling {
    let file = storage.open(Path::new("/m/weights"), how).unwrap();
    let into = region.lend(block * 4096, 4096).unwrap();
    let offset = block as u64 * 4096;
    storage.fill(vec![Fill { file, offset, into }], Priority::Next)
}

#[test]
fn a_fill_fails_once_or_twice_ends_early_or_flips_a_bit_as_it_is_told() {
    let memory = MemoryStorage::new();
    memory.publish(Path::new("/m/weights"), &[5; 8192]).unwrap();
    let region = Region::new(8192).unwrap();
    let fills = vec![
        (2, FillFault::Eio),
        (4, FillFault::Eio),
        (5, FillFault::Eio),
        (6, FillFault::Short),
        (7, FillFault::Flip),
    ];
    let faults = Faults::new(memory, FaultPlan { fills, ..FaultPlan::default() });
    let next = || {
        let done = block(&*faults, OpenHow::Read, &region, 1).wait(Duration::MAX).remove(0);
        done.map(|lease| lease.iter().map(|byte| u32::from(*byte != 5)).sum::<u32>())
    };
    assert_eq!(next(), Ok(0));
    assert_eq!(next(), Ok(0), "it was tried once more");
    let error = next().unwrap_err();
    let text = "/m/weights: input/output error at offset 4096, twice; check the drive";
    assert_eq!((error.kind, error.message.as_str()), (ErrorKind::Io, text));
    let error = next().unwrap_err();
    assert_eq!(error.kind, ErrorKind::Damaged);
    assert!(error.message.starts_with("/m/weights ends early: asked for 4096"), "{error}");
    assert_eq!(next(), Ok(1));
    assert_eq!(next(), Ok(0));
    assert_eq!(faults.counters().retries, 2);
}

#[test]
fn a_kept_fill_is_late_keeps_its_memory_and_comes_with_the_release() {
    let memory = MemoryStorage::new();
    memory.publish(Path::new("/m/weights"), &[5; 8192]).unwrap();
    let region = Region::new(8192).unwrap();
    let fills = vec![(1, FillFault::Hold)];
    let faults = Faults::new(memory, FaultPlan { fills, ..FaultPlan::default() });
    let held = block(&*faults, OpenHow::Read, &region, 1);
    let other = block(&*faults, OpenHow::Read, &region, 0);
    assert!(other.wait(Duration::MAX)[0].is_ok(), "others go on");
    let late = held.wait(Duration::from_millis(2));
    let text = late[0].as_ref().err().unwrap().to_string();
    assert!(text.contains("a read of /m/weights at offset 4096 was not answered"), "{text}");
    assert!(faults.kept() == 1 && region.leased_bytes() == 4096);
    faults.release();
    assert!(faults.kept() == 0 && region.leased_bytes() == 0);
    assert_eq!(region.lend(4096, 4096).unwrap()[..], [5; 4096], "it came late");
}

#[test]
fn a_strict_drive_takes_rounded_fills_alone_and_copies_urgent_ones() {
    let drive = MemoryStorage::direct(512);
    let path = Path::new("/m/weights");
    drive.publish(path, &[5; 1500]).unwrap();
    let file = drive.open(path, OpenHow::Direct).unwrap();
    let facts = drive.facts(file).unwrap();
    assert!(facts.direct && facts.align == 512);
    let region = Region::new(8192).unwrap();
    let fill = |file, offset, at, length, priority| {
        let into = region.lend(at, length).unwrap();
        drive.fill(vec![Fill { file, offset, into }], priority).wait(Duration::MAX).remove(0)
    };
    let next = Priority::Next;
    for (offset, at, length, fits) in [
        (0, 0, 1024, true),
        (512, 1024, 512, true),
        (1024, 0, 476, true),
        (1, 512, 511, false),
        (512, 8, 512, false),
        (512, 512, 100, false),
    ] {
        let done = fill(file, offset, at, length, next);
        let kind = done.err().map(|error| error.kind);
        let want = Some(ErrorKind::Invalid).filter(|_| !fits);
        assert_eq!(kind, want, "{length} at {offset} to {at}");
    }
    assert_eq!(drive.counters().direct_bytes, 1024 + 512 + 476);
    fill(file, 3, 5, 7, Priority::Urgent).unwrap();
    assert_eq!(drive.counters().copied_bytes, 7);
    let plain = drive.open(path, OpenHow::Read).unwrap();
    fill(plain, 3, 5, 7, next).unwrap();
    assert_eq!(drive.facts(plain).unwrap().align, 1);
}

#[test]
fn a_file_that_is_cut_written_or_replaced_after_it_was_opened_is_said_to_be() {
    let drive = MemoryStorage::new();
    let path = Path::new("/m/weights");
    let opened = || {
        drive.publish(path, &[5; 1500]).unwrap();
        let file = drive.open(path, OpenHow::Read).unwrap();
        drive.unchanged(file).unwrap();
        file
    };
    let said = |file| {
        let error = drive.unchanged(file).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Damaged);
        error.message
    };
    let file = opened();
    drive.tamper(path, |bytes| bytes.truncate(1000));
    assert!(said(file).contains("went from 1500 to 1000 bytes"));
    let file = opened();
    drive.tamper(path, |bytes| bytes[7] = 0);
    assert!(said(file).contains("was written to"));
    let file = opened();
    drive.publish(path, &[5; 1500]).unwrap();
    assert!(said(file).contains("was replaced by another file"));
    drive.remove(path).unwrap();
    assert_eq!(drive.unchanged(file).unwrap_err().kind, ErrorKind::NotFound);
    // Who writes a file changes it himself.
    let file = drive.open(path, OpenHow::Write).unwrap();
    put(&*drive, file, 0, b"x");
    drive.unchanged(file).unwrap();
}
