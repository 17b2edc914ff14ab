//! Doubles: storages that fail on purpose, stores and hosts around others that bend one call, and
//! frames that show what was written into them.

mod far;
mod frame;
mod host;
mod lying;
mod store;
mod strategy;

pub use far::Far;
pub use frame::{Frame, POISON};
pub use host::{HostHook, ThroughHost, Watch, Watched};
pub use kvern_storage::double::{FaultPlan, Faults, MemoryStorage, Random};
pub use lying::{Lie, Lying};
pub use store::{StoreHook, Through};
pub use strategy::Wrapped;
