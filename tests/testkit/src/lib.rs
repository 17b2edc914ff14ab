//! What a plugin must show. For each contract there is a suite of cases; a case names the promises
//! of the contract that it tries, in the contract's own words, and is skipped where a plugin
//! declares that it does without.
//!
//! A plugin's own test is one line:
//!
//! ```ignore
//! kvern_testkit::kv::hold(|| Box::new(Mine::default()));
//! ```
//!
//! `kvern plugins verify` runs the same cases on a library, through the border.

#![forbid(unsafe_code)]

mod case;
pub mod device;
pub mod double;
pub mod kv;
pub mod offload;
mod trace;

pub use case::{Case, Check, Outcome, Promise, Ran, Subject, hold, run, sweep};
pub use kvern_storage::double::Random;
pub use trace::{Trace, for_all};

/// Every promise that a suite tries, with the names of the cases that try it, in the order of the
/// suites: device, kv, offload.
pub fn promises() -> Vec<(Promise, Vec<&'static str>)> {
    let mut all: Vec<(Promise, Vec<&'static str>)> = Vec::new();
    let mut add = |name: &'static str, promises: &[Promise]| {
        for promise in promises {
            match all.iter_mut().find(|(other, _)| other == promise) {
                Some((_, cases)) => cases.push(name),
                None => all.push((*promise, vec![name])),
            }
        }
    };
    device::cases().iter().for_each(|case| add(case.name, case.promises));
    kv::cases().iter().for_each(|case| add(case.name, case.promises));
    offload::cases().iter().for_each(|case| add(case.name, case.promises));
    all
}
