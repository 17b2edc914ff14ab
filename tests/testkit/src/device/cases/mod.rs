//! The cases, by what they are about.

mod invariance;
mod memory;
mod ops;
mod queue;
mod refusal;

use super::bench::{Device, Make, runs};
use super::desk::Desk;
use crate::{Case, Check, Promise, Subject};

/// Every case, in the order in which they run.
pub fn all() -> Vec<Case<Device>> {
    let parts = [memory::cases(), queue::cases(), ops::cases(), refusal::cases()];
    parts.into_iter().flatten().chain(invariance::cases()).collect()
}

/// A case for every device.
fn always(
    name: &'static str,
    promises: &'static [Promise],
    check: fn(&Subject<'_, Device>) -> Check,
) -> Case<Device> {
    Case { name, promises, skip: |_| None, check }
}

/// Why an op's cases are skipped: the device runs none of its samples.
fn declined(device: &Device, make: Make, count: u32, reason: &'static str) -> Option<&'static str> {
    let mut desk = Desk::new(&device.describe());
    let runs = (0..u64::from(count)).any(|n| runs(device, &mut desk, make, n, n));
    if runs { None } else { Some(reason) }
}
