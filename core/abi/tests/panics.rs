//! A panic never crosses the border: on either side it becomes an error, the process lives, and
//! only what panicked is poisoned.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Notes, library, policy_ask, store_spec};
use kvern_abi::{Plugin, open};
use kvern_contract::*;
use std::time::Duration;

fn strategy(package: &str) -> Box<dyn KvStrategy> {
    match open(&library(package)).unwrap() {
        Plugin::Kv(strategy) => strategy,
        other => panic!("{other:?}"),
    }
}

fn store_that_panics_in(place: &str) -> Box<dyn KvStore> {
    let mut strategy = strategy("kvern-fixture-bad-panics");
    strategy.open(&store_spec(&[("panic_in", place)]), Notes::new()).unwrap().store.unwrap()
}

/// A call that can be named.
type Call = fn(&mut dyn KvStore) -> Result<()>;

const CALLS: [(&str, Call); 9] = [
    ("find", |store| store.find(&[]).map(drop)),
    ("begin", |store| store.begin(SessionId(1), Origin::Fresh)),
    ("store", |store| store.store(&[])),
    ("load", |store| store.load(&mut [], Duration::ZERO)),
    ("commit", |store| store.commit(&[])),
    ("rewind", |store| store.rewind(SessionId(1), 0).map(drop)),
    ("flush", |store| store.flush(SessionId(1))),
    ("end", |store| store.end(SessionId(1), true)),
    ("maintain", |store| store.maintain(Duration::ZERO)),
];

#[test]
fn a_panic_in_any_call_is_an_error_and_poisons_the_instance() {
    for (place, call) in CALLS {
        let mut store = store_that_panics_in(place);
        for (_, before) in CALLS.iter().filter(|(name, _)| *name != place) {
            assert_eq!(before(&mut *store), Ok(()), "before the panic in {place}");
        }
        let error = call(&mut *store).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Panicked, "{error}");
        assert_eq!(error.operation, format!("kv/{place}"));
        assert!(error.message.contains(&format!("told to panic in {place}")), "{error}");
        let (_, at) = error.context.iter().find(|(name, _)| name == "at").unwrap();
        assert!(at.contains("bad-panics/src/lib.rs:"), "{at}");
        for (name, after) in CALLS {
            let later = after(&mut *store).unwrap_err();
            assert_eq!((later.kind, later.operation), (ErrorKind::Panicked, format!("kv/{name}")));
            assert!(later.message.contains(&format!("told to panic in {place}")));
        }
        assert_eq!(store.report(), KvReport::default());
    }
}

#[test]
fn a_panic_in_policy_and_in_open_is_an_error_and_the_next_instance_is_well() {
    for place in ["policy", "open"] {
        let mut poisoned = strategy("kvern-fixture-bad-panics");
        let option = (String::from("panic_in"), OptionValue::Text(place.into()));
        let ask = PolicyAsk { options: Options::from([option]), ..policy_ask() };
        let error = match place {
            "policy" => poisoned.policy(&ask).err(),
            _ => poisoned.open(&store_spec(&[("panic_in", place)]), Notes::new()).err(),
        };
        assert_eq!(error.unwrap().kind, ErrorKind::Panicked);
        assert_eq!(poisoned.policy(&policy_ask()).unwrap_err().kind, ErrorKind::Panicked);
        assert_eq!(poisoned.describe().name, "bad-panics", "who it is was read before");
        let well = strategy("kvern-fixture-bad-panics");
        assert_eq!(well.policy(&policy_ask()).unwrap().policy_id, "bad-panics");
    }
}

#[test]
fn a_panic_while_an_object_is_dropped_ends_there() {
    drop(store_that_panics_in("drop"));
}

#[test]
fn what_a_plugin_opened_is_poisoned_with_it() {
    let mut strategy = strategy("kvern-fixture-echo-kv");
    let opened = strategy.open(&store_spec(&[]), Notes::new()).unwrap();
    let (mut store, mut attentive) = (opened.store.unwrap(), opened.attentive.unwrap());
    assert_eq!(store.flush(SessionId(666)).unwrap_err().kind, ErrorKind::Panicked);
    assert_eq!(attentive.rewind(SessionId(1), 0).unwrap_err().kind, ErrorKind::Panicked);
    assert_eq!(strategy.policy(&policy_ask()).unwrap_err().kind, ErrorKind::Panicked);
}

#[test]
fn a_poisoned_plugin_gives_the_host_back() {
    let mut strategy = strategy("kvern-fixture-bad-panics");
    let notes = Notes::new();
    for _ in 0..3 {
        let error = strategy.open(&store_spec(&[("panic_in", "open")]), notes.clone()).err();
        assert_eq!(error.unwrap().kind, ErrorKind::Panicked);
    }
    assert_eq!(std::sync::Arc::strong_count(&notes), 1);
}

#[test]
fn the_message_of_a_panic_is_one_line() {
    let mut strategy = strategy("kvern-fixture-echo-kv");
    let opened = strategy.open(&store_spec(&[]), Notes::new()).unwrap();
    let error = opened.store.unwrap().flush(SessionId(666)).unwrap_err();
    assert!(!error.message.contains('\n') && error.message.contains("session 666 was too much"));
}

#[test]
fn a_host_panic_under_a_plugins_frame_is_internal_and_poisons_nobody() {
    let notes = Notes::new();
    let mut strategy = strategy("kvern-fixture-echo-kv");
    let mut store = strategy.open(&store_spec(&[]), notes.clone()).unwrap().store.unwrap();
    for _ in 0..2 {
        let error = store.flush(SessionId(99)).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Internal);
        assert_eq!(error.operation, "host/reserve");
        assert!(error.message.contains("the host panicked: the budget overflowed"), "{error}");
        assert_eq!(store.flush(SessionId(1)), Ok(()), "the plugin is well");
    }
    notes.log(1, "and so is the host");
}
