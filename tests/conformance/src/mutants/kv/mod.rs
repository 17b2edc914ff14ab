//! kv strategies that break a promise, around one that ships: chosen by what it declares.

mod drive;
mod extensions;
mod forms;
mod pages;
mod records;
mod sessions;
mod strategy;

use super::{Mutant, all_turn_red};
use crate::shipped::{Shipped, of};
use crate::suite::{as_kv, opened};
use kvern_abi::PluginKind;
use kvern_contract::*;
use kvern_testkit::double::{HostHook, StoreHook, Through, ThroughHost, Wrapped};
use kvern_testkit::kv::cases;
use kvern_testkit::{Outcome, Promise, Subject, run};
use std::sync::{Arc, Mutex};
use std::time::Duration;

type Strategy = dyn KvStrategy;

/// A mutant from what it breaks and how.
fn mutant(
    of: &'static str,
    text: &'static str,
    what: &'static str,
    wrap: fn(Box<Strategy>) -> Box<Strategy>,
) -> Mutant<Strategy> {
    Mutant { what, breaks: Promise::new(of, text), wrap }
}

/// A hook around every store that is opened.
fn hooked<H: StoreHook + 'static>(inner: Box<Strategy>, hook: fn() -> H) -> Box<Strategy> {
    Box::new(Wrapped::new(inner).with_store(move |store| Box::new(Through::new(store, hook()))))
}

/// A hook around every host that is given.
fn hosted<H: HostHook + 'static>(inner: Box<Strategy>, hook: fn() -> H) -> Box<Strategy> {
    Box::new(
        Wrapped::new(inner)
            .with_open(move |inner, spec, host| inner.open(spec, ThroughHost::new(host, hook()))),
    )
}

/// A hook around every store that is opened, with a host of its own.
fn beside<H: StoreHook + 'static>(inner: Box<Strategy>, hook: fn(HostRef) -> H) -> Box<Strategy> {
    Box::new(Wrapped::new(inner).with_open(move |inner, spec, host| {
        let mut opened = inner.open(spec, host.clone())?;
        let around = |store| Box::new(Through::new(store, hook(host))) as Box<dyn KvStore>;
        opened.store = opened.store.map(around);
        Ok(opened)
    }))
}

/// A strategy that keeps what it is given across processes: the one that mutants wrap.
fn persistent() -> Shipped {
    let able = |shipped: &Shipped| {
        opened(shipped, as_kv).is_ok_and(|strategy| {
            let able = strategy.describe().capabilities;
            able.store && able.persistent && able.exact && !able.shared
        })
    };
    of(PluginKind::Kv).into_iter().find(able).expect("a strategy with a root that is found again")
}

#[test]
fn every_promise_of_a_kv_strategy_is_tried() {
    let shipped = persistent();
    let mut mutants = strategy::mutants();
    mutants.extend(pages::mutants());
    mutants.extend(sessions::mutants());
    mutants.extend(drive::mutants());
    mutants.extend(extensions::mutants());
    mutants.extend(records::mutants().into_iter().map(|(mutant, _)| mutant));
    all_turn_red(&cases(), &mutants, &|| opened(&shipped, as_kv));
}
