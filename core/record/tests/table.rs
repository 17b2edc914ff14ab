//! One promise of the page table a test, on the least store that is built on it.
#![allow(clippy::unwrap_used)]

mod kit;
mod shelf;

use kit::drive::*;
use kvern_contract::*;
use kvern_record::ANSWERS_MAX;
use kvern_storage::Storage;
use kvern_storage::double::{FaultPlan, Faults, MemoryStorage};
use shelf::{Shelf, open};
use std::time::Duration;

const A: SessionId = SessionId(1);
const B: SessionId = SessionId(2);
const C: SessionId = SessionId(3);

#[test]
fn what_was_not_stored_is_missing_and_an_unknown_session_is_too() {
    let storage = MemoryStorage::new();
    let mut store = open(storage.clone()).unwrap();
    store.begin(A, Origin::Fresh).unwrap();
    let key = PageKey { session: A, layer: LayerIndex(0), part: Part::Page(0) };
    assert!(load(&mut *store, &*storage, key).is_none());
    assert!(load(&mut *store, &*storage, PageKey { session: B, ..key }).is_none());
    let keys = tokens(1, 64);
    let both = [Sealed::new(A, 0, 0, &keys), Sealed::new(B, 0, 0, &keys)];
    let unknown = kit::drive::store(&mut *store, &both);
    assert_eq!(unknown.unwrap_err().kind, ErrorKind::NotFound);
    assert!(load(&mut *store, &*storage, key).is_none(), "none of the call counts as stored");
    assert_eq!(store.begin(A, Origin::Fresh).unwrap_err().kind, ErrorKind::Invalid);
}

#[test]
fn find_counts_whole_pages_that_every_layer_has_or_a_whole_session() {
    let storage = MemoryStorage::new();
    let mut store = open(storage).unwrap();
    let keys = tokens(1, 200);
    store.begin(A, Origin::Fresh).unwrap();
    commit(&mut *store, A, &keys, 0).unwrap();
    let found = |store: &mut dyn KvStore, keys: &[TokenKey]| find(store, keys).unwrap().tokens;
    assert_eq!(found(&mut *store, &keys), 0, "committed, and no page is stored");
    kit::drive::store(&mut *store, &sealed(A, &keys, 0..2)).unwrap();
    kit::drive::store(&mut *store, &[Sealed::new(A, 0, 2, &keys)]).unwrap();
    assert_eq!(found(&mut *store, &keys), 128, "one layer has the third page");
    kit::drive::store(&mut *store, &[Sealed::new(A, 2, 2, &keys)]).unwrap();
    assert_eq!(found(&mut *store, &keys), 192);
    kit::drive::store(&mut *store, &[Sealed::new(A, 0, 3, &keys)]).unwrap();
    assert_eq!(found(&mut *store, &keys), 192, "one layer has the last page");
    kit::drive::store(&mut *store, &sealed(A, &keys, 3..4)).unwrap();
    assert_eq!(found(&mut *store, &keys), 200, "the whole session");
    let longer: Vec<_> = keys.iter().copied().chain(tokens(9, 30)).collect();
    let answer = find(&mut *store, &longer).unwrap();
    assert_eq!((answer.tokens, answer.bytes), (200, 8 * 1280));
    assert_eq!(answer.note, 200u64.to_le_bytes());
    assert_eq!(found(&mut *store, &keys[..199]), 192, "a page shared in part does not count");
    assert_eq!(found(&mut *store, &keys[..63]), 0);
    let mut other = keys.clone();
    other[70].content ^= 1;
    assert_eq!(found(&mut *store, &other), 64, "the same id, another clip");
}

#[test]
fn what_was_flushed_is_found_by_the_next_process_and_what_was_not_is_gone() {
    let storage = MemoryStorage::new();
    let keys = tokens(1, 300);
    let mut store = open(storage.clone()).unwrap();
    filled(&mut *store, A, &keys[..200]);
    store.flush(A).unwrap();
    kit::drive::store(&mut *store, &sealed(A, &keys, 3..5)).unwrap();
    commit(&mut *store, A, &keys, 200).unwrap();
    assert_eq!(find(&mut *store, &keys).unwrap().tokens, 300);
    drop(store);
    storage.cut(1);
    let mut store = open(storage.clone()).unwrap();
    let found = find(&mut *store, &keys).unwrap();
    assert_eq!((found.tokens, found.note), (200, 200u64.to_le_bytes().to_vec()));
    store.begin(A, Origin::Stored { found: found.id, at: 200 }).unwrap();
    assert!(all_right(&mut *store, &*storage, A, &keys[..200]));
}

#[test]
fn commit_and_rewind_write_nothing_and_flush_syncs_pages_before_the_record() {
    let storage = MemoryStorage::new();
    let mut store = open(storage.clone()).unwrap();
    let keys = tokens(1, 200);
    filled(&mut *store, A, &keys);
    let (events, syncs) = (storage.events(), storage.counters().syncs);
    commit(&mut *store, A, &[&keys[..], &keys[..10]].concat(), 200).unwrap();
    assert_eq!(store.rewind(A, 200).unwrap(), 200);
    assert_eq!(storage.events(), events);
    store.flush(A).unwrap();
    // Sync of the pages, the record, its sync.
    assert_eq!((storage.events() - events, storage.counters().syncs - syncs), (3, 2));
    store.flush(A).unwrap();
    assert_eq!(storage.events() - events, 3, "nothing new, nothing written");
}

#[test]
fn a_rewind_keeps_the_old_state_until_the_next_flush() {
    let storage = MemoryStorage::new();
    let (old, new) = (tokens(1, 200), [&tokens(1, 200)[..130], &tokens(2, 90)].concat());
    let mut store = open(storage.clone()).unwrap();
    filled(&mut *store, A, &old);
    store.flush(A).unwrap();
    assert_eq!(store.rewind(A, 130).unwrap(), 130);
    let key = PageKey { session: A, layer: LayerIndex(0), part: Part::Page(2) };
    assert!(load(&mut *store, &*storage, key).is_none(), "it ended past the rewind");
    kit::drive::store(&mut *store, &sealed(A, &new, 2..4)).unwrap();
    commit(&mut *store, A, &new, 130).unwrap();
    let snapshot = |store: Box<dyn KvStore>| {
        drop(store);
        storage.cut(1);
        open(storage.clone()).unwrap()
    };
    let mut store = snapshot(store);
    assert_eq!(find(&mut *store, &old).unwrap().tokens, 200);
    assert_eq!(find(&mut *store, &new).unwrap().tokens, 128);
    let found = find(&mut *store, &old).unwrap().id;
    store.begin(B, Origin::Stored { found, at: 200 }).unwrap();
    store.rewind(B, 130).unwrap();
    kit::drive::store(&mut *store, &sealed(B, &new, 2..4)).unwrap();
    commit(&mut *store, B, &new, 130).unwrap();
    store.flush(B).unwrap();
    store.end(B, true).unwrap();
    let mut store = snapshot(store);
    let found = find(&mut *store, &new).unwrap();
    assert_eq!(found.tokens, 220);
    store.begin(B, Origin::Stored { found: found.id, at: 220 }).unwrap();
    assert!(all_right(&mut *store, &*storage, B, &new));
}

#[test]
fn a_fork_shares_whole_pages_and_goes_its_own_way() {
    let storage = MemoryStorage::new();
    let mut store = open(storage.clone()).unwrap();
    let (keys, other) = (tokens(1, 200), [&tokens(1, 200)[..150], &tokens(2, 100)].concat());
    filled(&mut *store, A, &keys);
    store.begin(B, Origin::Fork { of: A, at: 150 }).unwrap();
    let key = |page| PageKey { session: B, layer: LayerIndex(2), part: Part::Page(page) };
    assert!(load(&mut *store, &*storage, key(1)).is_some());
    assert!(
        load(&mut *store, &*storage, key(2)).is_none(),
        "the pager copies the page in the middle"
    );
    store.begin(C, Origin::Fork { of: A, at: 200 }).unwrap();
    let partial = PageKey { session: C, ..key(3) };
    assert!(load(&mut *store, &*storage, partial).is_none(), "nor is the one at the end shared");
    store.end(C, false).unwrap();
    kit::drive::store(&mut *store, &sealed(B, &other, 2..4)).unwrap();
    commit(&mut *store, B, &other, 150).unwrap();
    assert!(all_right(&mut *store, &*storage, A, &keys));
    assert!(all_right(&mut *store, &*storage, B, &other));
    assert_eq!(store.report().persisted_tokens, 2 * (128 + 72 + 122), "shared pages count once");
    store.flush(B).unwrap();
    drop(store);
    storage.cut(3);
    let mut store = open(storage.clone()).unwrap();
    assert_eq!(find(&mut *store, &keys).unwrap().tokens, 128, "the parent was never flushed");
    let found = find(&mut *store, &other).unwrap();
    assert_eq!(found.tokens, 250, "the child needs no record of its parent");
    store.begin(C, Origin::Stored { found: found.id, at: 250 }).unwrap();
    assert!(all_right(&mut *store, &*storage, C, &other));
    let past = store.begin(A, Origin::Fork { of: C, at: 251 });
    assert_eq!(past.unwrap_err().kind, ErrorKind::Invalid);
}

#[test]
fn a_session_that_is_not_kept_is_gone_for_good() {
    let storage = MemoryStorage::new();
    let mut store = open(storage.clone()).unwrap();
    let (kept, gone) = (tokens(1, 130), tokens(2, 130));
    filled(&mut *store, A, &kept);
    filled(&mut *store, B, &gone);
    store.flush(A).unwrap();
    store.flush(B).unwrap();
    let stale = find(&mut *store, &gone).unwrap();
    store.end(A, true).unwrap();
    store.end(B, false).unwrap();
    let begun = store.begin(C, Origin::Stored { found: stale.id, at: 64 });
    assert_eq!(begun.unwrap_err().kind, ErrorKind::NotFound);
    for _ in 0..2 {
        assert_eq!(find(&mut *store, &kept).unwrap().tokens, 130);
        assert_eq!(find(&mut *store, &gone).unwrap().tokens, 0);
        drop(store);
        store = open(storage.clone()).unwrap();
    }
    assert_eq!(store.end(A, true).unwrap_err().kind, ErrorKind::NotFound, "ids start anew");
}

#[test]
fn a_session_that_goes_on_takes_the_place_of_the_stored_one_when_it_ends() {
    let storage = MemoryStorage::new();
    let keys = tokens(1, 128 * 6);
    let mut sizes = Vec::new();
    for turn in 1..=6 {
        let mut store = open(storage.clone()).unwrap();
        let found = find(&mut *store, &keys).unwrap();
        assert_eq!(found.tokens, 128 * (turn - 1));
        let from = match found.tokens {
            0 => Origin::Fresh,
            at => Origin::Stored { found: found.id, at },
        };
        store.begin(A, from).unwrap();
        let (before, now) = (found.tokens as usize, 128 * turn as usize);
        kit::drive::store(&mut *store, &sealed(A, &keys[..now], before / PAGE..now / PAGE))
            .unwrap();
        commit(&mut *store, A, &keys[..now], before).unwrap();
        store.flush(A).unwrap();
        store.end(A, true).unwrap();
        sizes.push(store.report().persisted_tokens);
    }
    assert_eq!(sizes, (1..=6).map(|turn| 2 * 128 * turn).collect::<Vec<u64>>());
}

#[test]
fn a_commit_that_does_not_follow_changes_nothing() {
    let mut store = open(MemoryStorage::new()).unwrap();
    let keys = tokens(1, 64);
    filled(&mut *store, A, &keys);
    let gap = Commit {
        session: A,
        tokens: 70,
        keys: &keys[..5],
        chains: &[],
        chain: ChainHash::default(),
        note: &[],
    };
    assert_eq!(store.commit(&[gap]).unwrap_err().kind, ErrorKind::Invalid);
    assert_eq!(find(&mut *store, &keys).unwrap().tokens, 64);
    assert_eq!(store.rewind(A, 1000).unwrap(), 64);
}

#[test]
fn pages_of_tokens_that_never_came_are_nobodys_once_others_are_committed() {
    let storage = MemoryStorage::new();
    let (start, other) = (tokens(1, 100), tokens(2, 100));
    let (given_up, came) = ([&start[..], &other].concat(), [&start[..], &start].concat());
    let mut store = open(storage.clone()).unwrap();
    filled(&mut *store, A, &start);
    kit::drive::store(&mut *store, &sealed(A, &given_up, 1..4)).unwrap();
    commit(&mut *store, A, &came[..150], 100).unwrap();
    assert_eq!(find(&mut *store, &came).unwrap().tokens, 64, "page 1 is of other tokens");
    for page in 1..4 {
        let key = PageKey { session: A, layer: LayerIndex(0), part: Part::Page(page) };
        let gone = load(&mut *store, &*storage, key).is_none();
        // Those that no commit has reached may still be of tokens that come.
        assert_eq!(gone, page == 1, "page {page}");
    }
    commit(&mut *store, A, &came, 150).unwrap();
    store.flush(A).unwrap();
    store.end(A, true).unwrap();
    drop(store);
    let mut store = open(storage.clone()).unwrap();
    assert_eq!(find(&mut *store, &came).unwrap().tokens, 64, "no record names them");
    // Of tokens that do come they are found.
    filled(&mut *store, B, &start);
    kit::drive::store(&mut *store, &sealed(B, &given_up, 1..4)).unwrap();
    commit(&mut *store, B, &given_up[..150], 100).unwrap();
    assert_eq!(find(&mut *store, &given_up).unwrap().tokens, 128);
    commit(&mut *store, B, &given_up, 150).unwrap();
    assert_eq!(find(&mut *store, &given_up).unwrap().tokens, 200);
    assert!(all_right(&mut *store, &*storage, B, &given_up));
}

#[test]
fn after_a_failed_sync_nothing_is_stored_or_flushed_until_the_root_is_opened_anew() {
    let keys = tokens(1, 128);
    // The pages' sync, then the record's.
    for syncs in [0, 1] {
        let faults = Faults::new(MemoryStorage::new(), FaultPlan::default());
        let mut store = open(faults.clone()).unwrap();
        filled(&mut *store, A, &keys);
        faults.set(FaultPlan { syncs_before_eio: Some(syncs), ..FaultPlan::default() });
        assert_eq!(store.flush(A).unwrap_err().kind, ErrorKind::Io);
        faults.set(FaultPlan::default());
        assert_eq!(store.flush(A).unwrap_err().kind, ErrorKind::Io);
        let stored = kit::drive::store(&mut *store, &sealed(A, &keys, 0..1));
        assert_eq!(stored.unwrap_err().kind, ErrorKind::Io);
        assert!(all_right(&mut *store, &*faults, A, &keys), "what is there stays readable");
        drop(store);
        let mut store = open(faults.clone()).unwrap();
        filled(&mut *store, A, &keys);
        store.flush(A).unwrap();
    }
}

#[test]
fn a_root_opened_to_read_answers_and_writes_nothing() {
    let storage = MemoryStorage::new();
    let keys = tokens(1, 128);
    let reader = || Shelf::open(&shape(), true, storage.clone());
    assert_eq!(reader().err().unwrap().kind, ErrorKind::NotFound);
    let mut store = open(storage.clone()).unwrap();
    filled(&mut *store, A, &keys);
    store.flush(A).unwrap();
    drop(store);
    let events = storage.events();
    let mut store = reader().unwrap();
    let found = find(&mut store, &keys).unwrap();
    store.begin(B, Origin::Stored { found: found.id, at: 128 }).unwrap();
    assert!(all_right(&mut store, &*storage, B, &keys));
    assert_eq!(store.flush(B).unwrap_err().kind, ErrorKind::Unsupported);
    let stored = kit::drive::store(&mut store, &sealed(B, &keys, 0..1));
    assert_eq!(stored.unwrap_err().kind, ErrorKind::Unsupported);
    store.end(B, false).unwrap();
    assert_eq!(storage.events(), events);
}

#[test]
fn recurrent_layers_are_found_and_rewound_where_a_state_is_stored() {
    let storage = MemoryStorage::new();
    let mut shape = shape();
    shape.layers[1].kind = LayerKind::Recurrent { state_bytes: 16, conv_bytes: 0 };
    let mut store = Shelf::open(&shape, false, storage.clone()).unwrap();
    let keys = tokens(1, 200);
    filled(&mut store, A, &keys);
    assert_eq!(find(&mut store, &keys).unwrap().tokens, 0, "pages alone do not make a recurrence");
    let state = |at| PageKey { session: A, layer: LayerIndex(1), part: Part::State { at } };
    let bytes = [7; 16];
    for at in [64, 100, 200] {
        let tag = PageTag { first: at, layer: 1, bytes: 16, ..PageTag::default() };
        store.store(&[PageRef { key: state(at), tag, bytes: &bytes }]).unwrap();
    }
    assert_eq!(find(&mut store, &keys).unwrap().tokens, 200);
    assert_eq!(find(&mut store, &keys[..190]).unwrap().tokens, 64);
    assert_eq!(store.rewind(A, 150).unwrap(), 100);
    assert!(load(&mut store, &*storage, state(100)).is_some());
    assert!(load(&mut store, &*storage, state(200)).is_none());
    store.flush(A).unwrap();
    drop(store);
    let mut store = Shelf::open(&shape, false, storage.clone()).unwrap();
    assert_eq!(find(&mut store, &keys).unwrap().tokens, 64);
}
#[test]
fn old_answers_of_find_are_gone_and_the_latest_are_not() {
    let mut store = open(MemoryStorage::new()).unwrap();
    let keys = tokens(1, 64);
    filled(&mut *store, A, &keys);
    let ids: Vec<_> = (0..=ANSWERS_MAX).map(|_| find(&mut *store, &keys).unwrap().id).collect();
    let gone = store.begin(B, Origin::Stored { found: ids[0], at: 64 });
    assert_eq!(gone.unwrap_err().kind, ErrorKind::NotFound);
    store.begin(B, Origin::Stored { found: ids[1], at: 64 }).unwrap();
    let chains = chains(&keys);
    let batch: Vec<_> =
        (0..2 * ANSWERS_MAX).map(|_| Prefix { keys: &keys, chains: &chains }).collect();
    let first = store.find(&batch).unwrap()[0].id;
    store.begin(C, Origin::Stored { found: first, at: 64 }).unwrap();
}

#[test]
fn an_answer_of_find_is_good_while_its_history_has_the_tokens() {
    let (keys, other) = (tokens(1, 200), [&tokens(1, 200)[..64], &tokens(2, 136)].concat());
    let mut store = open(MemoryStorage::new()).unwrap();
    filled(&mut *store, A, &keys);
    let gone = |store: &mut dyn KvStore, id| {
        let begun = store.begin(C, Origin::Stored { found: id, at: 200 });
        assert_eq!(begun.unwrap_err().kind, ErrorKind::NotFound);
    };
    let used = find(&mut *store, &keys).unwrap().id;
    store.begin(B, Origin::Stored { found: used, at: 200 }).unwrap();
    gone(&mut *store, used);
    store.end(B, false).unwrap();

    let living = find(&mut *store, &keys).unwrap().id;
    store.rewind(A, 64).unwrap();
    gone(&mut *store, living);

    kit::drive::store(&mut *store, &sealed(A, &keys, 1..4)).unwrap();
    commit(&mut *store, A, &keys, 64).unwrap();
    store.flush(A).unwrap();
    let stored = find(&mut *store, &keys).unwrap().id;
    let short = find(&mut *store, &keys[..64]).unwrap().id;
    store.rewind(A, 64).unwrap();
    kit::drive::store(&mut *store, &sealed(A, &other, 1..4)).unwrap();
    commit(&mut *store, A, &other, 64).unwrap();
    store.flush(A).unwrap();
    gone(&mut *store, stored);
    store.begin(B, Origin::Stored { found: short, at: 64 }).unwrap();
    let last = find(&mut *store, &other).unwrap().id;
    store.maintain(Duration::ZERO).unwrap();
    gone(&mut *store, last);
}

#[test]
fn answers_found_in_a_session_go_on_in_what_it_leaves_and_end_with_the_rest() {
    let storage = MemoryStorage::new();
    let keys = tokens(1, 200);
    let mut store = open(storage.clone()).unwrap();
    filled(&mut *store, A, &keys[..128]);
    let [kept, dropped] = [0; 2].map(|_| find(&mut *store, &keys[..128]).unwrap().id);
    store.flush(A).unwrap();
    kit::drive::store(&mut *store, &sealed(A, &keys, 2..4)).unwrap();
    commit(&mut *store, A, &keys, 128).unwrap();
    let longer = find(&mut *store, &keys).unwrap();
    assert_eq!(longer.tokens, 200);
    store.end(A, true).unwrap();
    let begun = store.begin(B, Origin::Stored { found: longer.id, at: 200 });
    assert_eq!(begun.unwrap_err().kind, ErrorKind::NotFound, "it was never flushed");
    store.begin(B, Origin::Stored { found: kept, at: 128 }).unwrap();
    assert!(all_right(&mut *store, &*storage, B, &keys[..128]));
    store.begin(C, Origin::Stored { found: dropped, at: 128 }).unwrap();
}

#[test]
fn a_durable_session_that_is_still_open_is_not_replaced_by_one_that_began_from_it() {
    let storage = MemoryStorage::new();
    let mut store = open(storage.clone()).unwrap();
    let (keys, more) = (tokens(1, 128), tokens(1, 192));
    let more = [&keys[..], &more[128..]].concat();
    filled(&mut *store, A, &keys);
    store.flush(A).unwrap();
    let found = find(&mut *store, &keys).unwrap().id;
    store.begin(B, Origin::Stored { found, at: 128 }).unwrap();
    store.flush(B).unwrap();
    store.end(B, true).unwrap();
    kit::drive::store(&mut *store, &sealed(A, &more, 2..3)).unwrap();
    commit(&mut *store, A, &more, 128).unwrap();
    store.flush(A).unwrap();
    drop(store);
    let mut store = open(storage).unwrap();
    assert_eq!(find(&mut *store, &more).unwrap().tokens, 192);
}
