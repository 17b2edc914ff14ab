//! The suite of kv plugins: who a strategy says it is, the policies that it gives, and its store
//! beside a model that keeps everything in memory, through random traces, power cuts and faults.
//!
//! A case of the store is skipped where no store is declared, one of what outlives the process
//! where nothing does, and those of the extensions where they are not declared.

mod description;
mod model;
mod pages;
mod policy;
mod sessions;
mod traces;
mod trial;

use crate::{Case, Check, Promise, Subject};
use kvern_contract::KvStrategy;

type Strategy = dyn KvStrategy;

/// Every case, in the order in which they run.
pub fn cases() -> Vec<Case<Strategy>> {
    let parts = [description::cases(), policy::cases(), pages::cases(), sessions::cases()];
    parts.into_iter().flatten().collect()
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
