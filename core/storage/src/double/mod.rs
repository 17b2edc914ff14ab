//! Storages that fail on purpose, for tests: [`MemoryStorage`] loses what was not synced when its
//! power is cut, [`Faults`] spoils any other storage by a seed, or
//! as it is told.

mod disk;
mod faults;
mod fills;
mod memory;
mod random;

pub use faults::{FaultPlan, Faults};
pub use fills::FillFault;
pub use memory::MemoryStorage;
pub use random::Random;
