//! The suite of kv plugins: who a strategy says it is, the policies that it gives, and its store
//! beside a model that keeps everything in memory, through random traces, power cuts and faults.
//!
//! A case of the store is skipped where no store is declared, one of what outlives the process
//! where nothing does, and those of the extensions where they are not declared.

mod attentive;
mod codec;
mod description;
mod durable;
mod faults;
mod hostile;
mod model;
mod pages;
mod policy;
mod recurrent;
mod sessions;
mod steps;
mod traces;
mod trial;

use crate::{Case, Check, Promise, Subject};
use kvern_contract::KvStrategy;

type Strategy = dyn KvStrategy;

/// Every case, in the order in which they run.
pub fn cases() -> Vec<Case<Strategy>> {
    let mut all = description::cases();
    all.extend(policy::cases());
    all.extend(pages::cases());
    all.extend(sessions::cases());
    all.extend(durable::cases());
    all.extend(faults::cases());
    all.extend(hostile::cases());
    all.extend(attentive::cases());
    all.extend(codec::cases());
    all
}

/// Runs every case on what `make` makes, for a plugin's own test.
///
/// # Panics
/// Where a promise is broken.
pub fn hold(make: impl Fn() -> Box<Strategy>) {
    crate::hold(&cases(), &Subject::new(&|| Ok(make())));
}

/// A case for every strategy.
fn always(
    name: &'static str,
    promises: &'static [Promise],
    check: fn(&Subject<'_, Strategy>) -> Check,
) -> Case<Strategy> {
    Case { name, promises, skip: |_| None, check }
}

/// A case for strategies with a store.
fn stored(
    name: &'static str,
    promises: &'static [Promise],
    check: fn(&Subject<'_, Strategy>) -> Check,
) -> Case<Strategy> {
    let skip = |strategy: &Strategy| {
        (!strategy.describe().capabilities.store).then_some("it declares no store")
    };
    Case { name, promises, skip, check }
}

/// A case for strategies whose roots outlive the process.
fn kept(
    name: &'static str,
    promises: &'static [Promise],
    check: fn(&Subject<'_, Strategy>) -> Check,
) -> Case<Strategy> {
    let skip = |strategy: &Strategy| {
        let able = strategy.describe().capabilities;
        match (able.store, able.persistent) {
            (false, _) => Some("it declares no store"),
            (true, false) => Some("it declares no root that outlives the process"),
            (true, true) => None,
        }
    };
    Case { name, promises, skip, check }
}
