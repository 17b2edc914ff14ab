//! What the store takes: bytes of files, places in them, and answers in memory.

use super::kit::drive::*;
use super::{open, open_as, spec};
use crate::store::Spot;
use kvern_contract::*;
use kvern_record::{Entry, PageTable};
use kvern_storage::double::{FaultPlan, Faults, MemoryStorage, Random};
use std::path::Path;
use std::time::Duration;

const A: SessionId = SessionId(1);
const B: SessionId = SessionId(2);
const C: SessionId = SessionId(3);

fn length(storage: &MemoryStorage, name: &str) -> u64 {
    storage.contents(&Path::new("/root").join(name)).unwrap().len() as u64
}
fn offset(store: &mut dyn KvStore, session: SessionId) -> u64 {
    let key = PageKey { session, layer: LayerIndex(0), part: Part::Page(0) };
    let mut frame = vec![0; 4096];
    let mut loads = [PageLoad { key, into: &mut frame, verdict: Verdict::Missing }];
    store.load(&mut loads, Duration::MAX).unwrap();
    let Verdict::At { offset, .. } = loads[0].verdict else { panic!("not stored") };
    offset
}

#[test]
fn sessions_that_end_unflushed_and_rewinds_leave_their_space_to_the_next() {
    let storage = MemoryStorage::new();
    let mut store = open(storage.clone()).unwrap();
    for round in 0..50 {
        let keys = tokens(round, 300);
        filled(&mut *store, SessionId(round), &keys);
        for _ in 0..3 {
            store.rewind(SessionId(round), 64).unwrap();
            let pages = sealed(SessionId(round), &keys, 1..5);
            super::kit::drive::store(&mut *store, &pages).unwrap();
            commit(&mut *store, SessionId(round), &keys, 64).unwrap();
        }
        assert!(all_right(&mut *store, &*storage, SessionId(round), &keys));
        store.end(SessionId(round), round % 2 == 0).unwrap();
    }
    // Five pages of two layers; a rewind keeps the first page of the second, which lies behind the
    // rest of the first layer.
    let most = length(&storage, "chunks");
    assert!(most <= 2 * 10 * 1536, "{most} bytes");
    let report = store.report();
    assert_eq!((report.live_bytes, report.dead_bytes), (0, most));
}

#[test]
fn space_that_a_record_names_or_a_living_session_holds_is_never_used_again() {
    let storage = MemoryStorage::new();
    let mut store = open(storage.clone()).unwrap();
    let (parent, durable, new) = (tokens(1, 128), tokens(2, 200), tokens(3, 256));
    filled(&mut *store, B, &durable);
    store.flush(B).unwrap();
    store.end(B, true).unwrap();
    filled(&mut *store, A, &parent);
    store.begin(C, Origin::Fork { of: A, at: 128 }).unwrap();
    store.end(A, false).unwrap();
    filled(&mut *store, SessionId(4), &new);
    assert!(all_right(&mut *store, &*storage, C, &parent), "the child has its parent's pages");
    store.end(C, false).unwrap();
    store.end(SessionId(4), false).unwrap();
    filled(&mut *store, SessionId(5), &new);
    let found = find(&mut *store, &durable).unwrap();
    store.begin(SessionId(6), Origin::Stored { found: found.id, at: 200 }).unwrap();
    assert!(all_right(&mut *store, &*storage, SessionId(6), &durable));
    assert!(all_right(&mut *store, &*storage, SessionId(5), &new));
}

#[test]
fn space_that_a_record_in_doubt_names_is_not_used_again() {
    let faults = Faults::new(MemoryStorage::new(), FaultPlan::default());
    let mut store = open(faults.clone()).unwrap();
    filled(&mut *store, A, &tokens(1, 128));
    let end = offset(&mut *store, A) + 4 * 1536;
    // The host says that any of a failed write may be on disk.
    faults.set(FaultPlan { writes_before_eio: Some(0), ..FaultPlan::default() });
    assert_eq!(store.flush(A).unwrap_err().kind, ErrorKind::Io);
    faults.set(FaultPlan::default());
    store.end(A, false).unwrap();
    filled(&mut *store, B, &tokens(2, 128));
    assert!(offset(&mut *store, B) >= end);
}

#[test]
fn the_quota_counts_every_byte_under_the_root() {
    let keys = tokens(1, 128);
    let flush = |quota_bytes| {
        let storage = MemoryStorage::new();
        let mut store = open_as(&StoreSpec { quota_bytes, ..spec() }, storage.clone()).unwrap();
        filled(&mut *store, A, &keys);
        (storage, store.flush(A))
    };
    let (storage, flushed) = flush(None);
    flushed.unwrap();
    let total = ["identity", "chunks", "manifest"].map(|name| length(&storage, name));
    // The record that would drop the session counts too.
    let total = total.into_iter().sum::<u64>() + 28;
    flush(Some(total)).1.unwrap();
    assert_eq!(flush(Some(total - 1)).1.unwrap_err().kind, ErrorKind::OutOfSpace);
}

fn total(storage: &MemoryStorage) -> u64 {
    ["identity", "chunks", "manifest"].into_iter().map(|name| length(storage, name)).sum()
}

#[test]
fn the_quota_counts_files_as_long_as_they_are_and_a_flush_gives_back_what_is_unused() {
    const QUOTA: u64 = 60_000;
    let storage = MemoryStorage::new();
    let spec = StoreSpec { quota_bytes: Some(QUOTA), ..spec() };
    let mut store = open_as(&spec, storage.clone()).unwrap();
    filled(&mut *store, A, &tokens(1, 16 * 64));
    store.end(A, false).unwrap();
    let (most, report) = (length(&storage, "chunks"), store.report());
    assert!(most > 48_000 && report.live_bytes == 0 && report.dead_bytes == most, "{report:?}");
    // Of some the tokens alone are kept, so that the manifest grows most.
    let mut flushed = 0;
    let full = loop {
        let session = SessionId(10 + flushed);
        store.begin(session, Origin::Fresh).unwrap();
        commit(&mut *store, session, &tokens(flushed, 60), 0).unwrap();
        if let Err(full) = store.flush(session) {
            break full;
        }
        store.end(session, true).unwrap();
        assert!(total(&storage) <= QUOTA, "{} bytes after {flushed} flushes", total(&storage));
        flushed += 1;
    };
    assert_eq!(full.kind, ErrorKind::OutOfSpace);
    assert!(length(&storage, "chunks") == 0 && total(&storage) > QUOTA - 4000, "all is used");
}

#[test]
fn no_end_and_no_cut_takes_the_root_past_its_quota() {
    for seed in 0..60 {
        let storage = MemoryStorage::new();
        let mut random = Random::new(seed);
        let quota = 20_000 + random.below(60_000);
        let spec = StoreSpec { quota_bytes: Some(quota), ..spec() };
        let within = |what: &str| {
            let total = total(&storage);
            assert!(total <= quota, "seed {seed}: {total} bytes of {quota} after {what}");
        };
        let (mut refused, mut next) = (0, 0);
        let mut store = open_as(&spec, storage.clone()).unwrap();
        let mut open: Vec<(SessionId, bool)> = Vec::new();
        for _ in 0..60 {
            next += 1;
            let (id, keys) = (SessionId(next), tokens(next, 1 + random.below(500) as usize));
            store.begin(id, Origin::Fresh).unwrap();
            commit(&mut *store, id, &keys, 0).unwrap();
            let stored = match random.one_in(3) {
                true => Ok(()),
                false => {
                    let pages = sealed(id, &keys, 0..keys.len().div_ceil(64));
                    super::kit::drive::store(&mut *store, &pages)
                }
            };
            within("a store");
            let answer = stored.and_then(|()| match random.one_in(3) {
                true => Ok(()),
                false => store.flush(id),
            });
            within("a flush");
            if let Err(error) = answer {
                assert_eq!(error.kind, ErrorKind::OutOfSpace);
                refused += 1;
            }
            open.push((id, random.one_in(2)));
            if random.one_in(2) {
                let (id, keep) = open.swap_remove(random.below(open.len() as u64) as usize);
                store.end(id, keep).unwrap();
                within("an end");
            }
        }
        for (id, _) in open {
            store.end(id, false).unwrap();
            within("the last ends");
        }
        assert!(refused > 0, "seed {seed}: nothing was refused");
        drop(store);
        storage.cut(seed);
        within("a cut");
        open_as(&spec, storage.clone()).unwrap();
        within("opening anew");
    }
}

#[test]
fn a_record_that_names_what_no_file_could_hold_is_damage() {
    let keys = tokens(1, 64);
    let opened = |offset| {
        let storage = MemoryStorage::new();
        drop(open(storage.clone()).unwrap());
        let host = host(storage.clone());
        let mut table: PageTable<Spot> =
            PageTable::open(&host, "manifest", &shape(), false, |_| Ok(())).unwrap();
        table.begin(A, Origin::Fresh).unwrap();
        let page = Sealed::new(A, 0, 0, &keys);
        let place = Spot { offset, chunk: 0 };
        table.insert(page.key, Entry { place, tag: page.tag }).unwrap();
        table
            .commit(&[Commit {
                session: A,
                tokens: 64,
                keys: &keys,
                chains: &chains(&keys),
                chain: chain(&keys),
                note: &[],
            }])
            .unwrap();
        table.flush(A, &[], |_| Ok(())).unwrap();
        drop(table);
        open(storage).map(|mut store| filled(&mut *store, A, &tokens(2, 64)))
    };
    for offset in [u64::MAX, u64::MAX - 1280, i64::MAX as u64] {
        assert_eq!(opened(offset).unwrap_err().kind, ErrorKind::Damaged);
    }
    opened(1 << 20).unwrap();
}
