//! The journal and the identity over a drive that loses power, fails to sync and rots.
#![allow(clippy::unwrap_used)]

use kvern_contract::{ErrorKind, FileWrite, HostRef, Result};
use kvern_record::{Journal, claim_identity};
use kvern_storage::double::{FaultPlan, Faults, MemoryStorage, Random};
use kvern_storage::{Budget, NoSink, OpenHow, RootHost, Storage};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

fn host(storage: Arc<dyn Storage>) -> HostRef {
    RootHost::new(storage, "/root".into(), Budget::new(None), Arc::new(NoSink))
}
fn open(host: &HostRef) -> Result<(Journal, Vec<Vec<u8>>)> {
    let mut records = Vec::new();
    let journal = Journal::open(host, "log", false, |payload| {
        records.push(payload.to_vec());
        Ok(())
    })?;
    Ok((journal, records))
}
fn payload(random: &mut Random) -> Vec<u8> {
    let most = if random.one_in(5) { 3000 } else { 40 };
    let bytes = 1 + random.below(most);
    (0..bytes).map(|_| random.bits() as u8).collect()
}

#[test]
fn records_come_back_in_order_and_the_journal_goes_on_behind_them() {
    let storage = MemoryStorage::new();
    let mut random = Random::new(1);
    let mut all = Vec::new();
    for _ in 0..4 {
        let (mut journal, records) = open(&host(storage.clone())).unwrap();
        assert_eq!(records, all);
        for _ in 0..10 {
            all.push(payload(&mut random));
            journal.append(all.last().unwrap()).unwrap();
        }
    }
}

#[test]
fn what_a_failed_append_leaves_counts_until_records_lie_over_it() {
    let memory = MemoryStorage::new();
    let faults = Faults::new(memory.clone(), FaultPlan::default());
    let length = || memory.contents(Path::new("/root/log")).unwrap().len() as u64;
    let (mut journal, _) = open(&host(faults.clone())).unwrap();
    journal.append(b"whole").unwrap();
    let whole = journal.bytes();
    assert_eq!((journal.bytes_with(0), journal.bytes_with(10)), (whole, whole + 10));
    // The host says that any of a failed write may be there.
    faults.set(FaultPlan { writes_before_eio: Some(0), ..FaultPlan::default() });
    journal.append(&[7; 500]).unwrap_err();
    faults.set(FaultPlan::default());
    assert_eq!((journal.bytes(), journal.bytes_with(0)), (whole, whole + 516));
    assert_eq!((journal.bytes_with(516), journal.bytes_with(517)), (whole + 516, whole + 517));
    drop(journal);
    let file = memory.open(Path::new("/root/log"), OpenHow::Write).unwrap();
    let write = FileWrite { file, offset: whole, bytes: &[9; 300] };
    memory.write_batch(&[write], Duration::MAX).unwrap();
    let (journal, records) = open(&host(faults)).unwrap();
    assert_eq!((records.len(), journal.bytes_with(0)), (1, length()));
    assert_eq!(length(), whole + 300);
}

#[test]
fn a_record_longer_than_the_window_comes_back() {
    let storage = MemoryStorage::new();
    let (mut journal, _) = open(&host(storage.clone())).unwrap();
    let long = vec![7; 3 << 20];
    for payload in [&b"short"[..], &long, b"end"] {
        journal.append(payload).unwrap();
    }
    drop(journal);
    let (_, records) = open(&host(storage)).unwrap();
    assert_eq!(records, [b"short".to_vec(), long, b"end".to_vec()]);
}

#[test]
fn a_power_cut_at_every_event_loses_no_appended_record_and_invents_none() {
    let mut cuts = 0;
    for seed in 0..24 {
        for event in 0.. {
            let storage = MemoryStorage::new();
            let mut random = Random::new(seed);
            let mut acknowledged = Vec::new();
            let mut doubtful = None;
            storage.fail_at(event);
            // Two lives of the process, so that opening is cut too.
            for _ in 0..2 {
                let Ok((mut journal, records)) = open(&host(storage.clone())) else { break };
                assert_eq!(records, acknowledged);
                for _ in 0..5 {
                    let record = payload(&mut random);
                    match journal.append(&record) {
                        Ok(()) => acknowledged.push(record),
                        Err(_) => {
                            doubtful = Some(record);
                            break;
                        }
                    }
                }
            }
            if !storage.is_off() {
                break;
            }
            storage.cut(seed * 1000 + event);
            cuts += 1;
            let (mut journal, records) = open(&host(storage.clone())).unwrap();
            let with_doubtful: Vec<_> = acknowledged.iter().cloned().chain(doubtful).collect();
            assert!(
                records == acknowledged || records == with_doubtful,
                "seed {seed} event {event}"
            );
            // And it goes on.
            journal.append(b"after").unwrap();
            drop(journal);
            storage.cut(seed);
            let (_, again) = open(&host(storage.clone())).unwrap();
            assert_eq!(again.last().unwrap(), b"after");
            assert_eq!(&again[..again.len() - 1], records);
        }
    }
    assert!(cuts >= 500, "{cuts} cuts");
}

#[test]
fn after_a_failed_sync_nothing_is_appended_until_the_journal_is_opened_anew() {
    // The drive loses what it could not sync, and the system still shows it: so does the double.
    let storage = MemoryStorage::new();
    let (mut journal, _) = open(&host(storage.clone())).unwrap();
    journal.append(b"one").unwrap();
    storage.fail_sync_at(storage.events() + 1);
    assert_eq!(journal.append(b"two").unwrap_err().kind, ErrorKind::Io);
    assert!(journal.is_lost());
    assert_eq!(journal.append(b"three").unwrap_err().kind, ErrorKind::Io);
    drop(journal);
    let (mut journal, records) = open(&host(storage.clone())).unwrap();
    assert_eq!(records, [b"one", b"two"], "shown, though the sync failed");
    journal.append(b"four").unwrap();
    drop(journal);
    storage.cut(0);
    let (_, records) = open(&host(storage)).unwrap();
    assert_eq!(records, [&b"one"[..], b"two", b"four"]);
}

#[test]
fn a_full_drive_refuses_a_record_and_takes_it_later() {
    let faults = Faults::new(MemoryStorage::new(), FaultPlan::default());
    let (mut journal, _) = open(&host(faults.clone())).unwrap();
    faults.set(FaultPlan { space_bytes: Some(0), ..FaultPlan::default() });
    assert_eq!(journal.append(b"one").unwrap_err().kind, ErrorKind::OutOfSpace);
    faults.set(FaultPlan::default());
    journal.append(b"one").unwrap();
    drop(journal);
    assert_eq!(open(&host(faults)).unwrap().1, [b"one"]);
}

#[test]
fn a_read_that_fails_is_no_end_of_the_journal() {
    let faults = Faults::new(MemoryStorage::new(), FaultPlan::default());
    open(&host(faults.clone())).unwrap().0.append(b"one").unwrap();
    faults.set(FaultPlan { reads_before_eio: Some(0), ..FaultPlan::default() });
    assert_eq!(open(&host(faults.clone())).err().unwrap().kind, ErrorKind::Io);
    faults.set(FaultPlan::default());
    assert_eq!(open(&host(faults)).unwrap().1, [b"one"]);
}

#[test]
fn read_only_repairs_nothing_and_appends_nothing() {
    let storage = MemoryStorage::new();
    open(&host(storage.clone())).unwrap().0.append(b"one").unwrap();
    let before = storage.events();
    let mut journal = Journal::open(&host(storage.clone()), "log", true, |_| Ok(())).unwrap();
    assert_eq!(journal.append(b"two").unwrap_err().kind, ErrorKind::Invalid);
    assert_eq!(storage.events(), before);
    let none = Journal::open(&host(storage), "none", true, |_| Ok(()));
    assert_eq!(none.err().unwrap().kind, ErrorKind::NotFound);
}

fn parts(weights: &str) -> Vec<(String, String)> {
    vec![("dtype".into(), "bf16".into()), ("weights".into(), weights.into())]
}

#[test]
fn another_identity_is_refused_with_the_part_and_both_values() {
    let storage = MemoryStorage::new();
    let host = host(storage.clone());
    assert!(claim_identity(&host, &parts("aa"), false).unwrap());
    assert!(!claim_identity(&host, &parts("aa"), false).unwrap());
    let error = claim_identity(&host, &parts("bb"), false).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Mismatch);
    assert_eq!(
        error.message,
        "the root belongs to another weights: it says aa, this run bb; choose another root"
    );
    let error = claim_identity(&host, &parts("aa")[..1], false).unwrap_err();
    assert!(error.message.contains("it says aa, this run nothing"), "{}", error.message);
    storage.tamper(Path::new("/root/identity"), |bytes| bytes[20] ^= 1);
    assert_eq!(claim_identity(&host, &parts("aa"), false).unwrap_err().kind, ErrorKind::Damaged);
}

#[test]
fn a_root_with_files_and_no_identity_is_not_taken() {
    let host = host(MemoryStorage::new());
    assert_eq!(claim_identity(&host, &parts("aa"), true).unwrap_err().kind, ErrorKind::NotFound);
    host.publish("manifest", b"something").unwrap();
    assert_eq!(claim_identity(&host, &parts("aa"), false).unwrap_err().kind, ErrorKind::Damaged);
}
