//! What a table makes of records that it did not write: each is a session, or damage, and never a
//! panic.
#![allow(clippy::unwrap_used)]

mod kit;
mod shelf;

use kit::drive::*;
use kvern_contract::*;
use kvern_record::{Journal, put_bytes, put_u32, put_u64};
use kvern_storage::double::MemoryStorage;
use proptest::prelude::*;
use std::sync::Arc;

const A: SessionId = SessionId(1);

fn session(number: u64, base: u64, kind: u32) -> Vec<u8> {
    let mut out = Vec::new();
    put_u32(&mut out, 1);
    for word in [number, base, 0, 1] {
        put_u64(&mut out, word);
    }
    put_u32(&mut out, 0);
    put_u32(&mut out, kind);
    put_u64(&mut out, 0);
    put_u64(&mut out, 4096);
    out.extend(PageTag { tokens: 64, bytes: 1280, ..PageTag::default() }.to_bytes());
    put_bytes(&mut out, b"note").unwrap();
    out
}
fn dropped(number: u64) -> Vec<u8> {
    let mut out = Vec::new();
    put_u32(&mut out, 2);
    put_u64(&mut out, number);
    out
}
/// A root whose log has these records.
fn root(payloads: &[Vec<u8>]) -> Arc<MemoryStorage> {
    let storage = MemoryStorage::new();
    drop(shelf::open(storage.clone()).unwrap());
    let host = host(storage.clone());
    let mut log = Journal::open(&host, "log", false, |_| Ok(())).unwrap();
    payloads.iter().filter(|p| !p.is_empty()).for_each(|p| log.append(p).unwrap());
    storage
}
/// Opens a root of these records and uses it.
fn used(payloads: &[Vec<u8>]) -> Result<()> {
    let storage = root(payloads);
    let mut store = shelf::open(storage.clone())?;
    let keys = tokens(1, 100);
    find(&mut *store, &keys)?;
    filled(&mut *store, A, &keys);
    store.flush(A)?;
    drop(store);
    let mut store = shelf::open(storage)?;
    assert_eq!(find(&mut *store, &keys)?.tokens, 100, "what was flushed is found");
    store.begin(A, Origin::Fresh)?;
    store.end(A, false)
}
fn damage(payload: Vec<u8>) {
    let error = used(std::slice::from_ref(&payload)).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Damaged, "{payload:?}: {error:?}");
}

#[test]
fn a_record_that_nobody_could_have_written_is_damage() {
    for payload in [session(7, 0, 0), session(i64::MAX as u64 - 1, 0, 1), dropped(9)] {
        used(&[payload]).unwrap();
    }
    for number in [u64::MAX, u64::MAX - 1, i64::MAX as u64 + 1] {
        damage(session(number, 0, 0));
        damage(dropped(number));
    }
    damage(session(7, 1, 0));
    damage(session(7, 0, 2));
    let mut kind = dropped(7);
    kind[0] = 3;
    damage(kind);
    let whole = session(7, 0, 0);
    damage([&whole[..], &[0]].concat());
    for bytes in 1..whole.len() {
        damage(whole[..bytes].to_vec());
    }
}

#[test]
fn numbers_that_are_used_up_write_no_record_that_would_be_damage() {
    let storage = root(&[session(i64::MAX as u64, 0, 0)]);
    let mut store = shelf::open(storage.clone()).unwrap();
    filled(&mut *store, A, &tokens(1, 100));
    assert_eq!(store.flush(A).unwrap_err().kind, ErrorKind::Damaged);
    drop(store);
    shelf::open(storage).unwrap();
}

fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases(400))]

    #[test]
    fn records_of_strangers_never_panic(
        changes in prop::collection::vec((0usize..3, 0u64..3, any::<(usize, u8)>()), 0..6),
    ) {
        let payloads: Vec<_> = changes.into_iter().map(|(form, number, (at, byte))| {
            let mut payload = match form {
                2 => dropped(number),
                kind => session(number, 0, kind as u32),
            };
            let at = at % payload.len();
            payload[at] ^= byte;
            payload
        }).collect();
        if let Err(error) = used(&payloads) {
            prop_assert_eq!(error.kind, ErrorKind::Damaged);
        }
    }
}
