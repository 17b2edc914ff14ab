//! Storages that fail on purpose, for tests: [`MemoryStorage`] loses what was not synced when its
//! power is cut, [`Faults`] spoils any other storage by a seed. First versions, built to be
//! extended.

mod faults;
mod memory;
mod random;

pub use faults::{FaultPlan, Faults};
pub use memory::MemoryStorage;
pub use random::Random;
