//! How bytes move between memory and disk. Host side only: a plugin reaches it through
//! [`RootHost`], the engine through [`Storage`]. No plugin links this crate.
//!
//! - [`Storage`] is the promise; [`Service`] keeps it, by an io_uring or, where the kernel refuses
//!   one, by threads that sleep in `pread`.
//! - [`Fill`] is a read into memory that the service holds until the system is done with it.
//! - [`RootHost`] gives one plugin one directory, and can be taken away from it.
//! - [`Budget`] is memory as an object with named holders; [`Region`] is memory that is lent in
//!   pieces.
//! - [`give_back`] leaves room beside the budget for the program's own code.
//! - [`RootLock`] keeps a second process away from a root.
//! - [`double`] has storages that fail on purpose.
//!
//! Offsets and lengths are bytes. Nothing here looks at what the bytes mean.

mod born;
mod budget;
pub mod double;
mod fault;
mod files;
mod fill;
mod front;
mod lock;
mod mapped;
mod meter;
mod owner;
mod pace;
mod piece;
mod probe;
mod queue;
mod region;
mod registry;
mod ring;
mod root;
mod service;
mod spare;
mod trial;

pub use budget::Budget;
pub use fill::{Fill, FillClock, Filling, Priority};
pub use front::{PathChoice, Service, ServiceSpec};
pub use lock::{RootLock, remove_tree, tree_bytes};
pub use probe::{DriveRate, ProbeHow, drive_rate};
pub use region::{Lease, Region};
pub use root::{HostSink, NoSink, RootHost};
pub use service::{Counters, FileFacts, OpenHow, Storage};
pub use spare::give_back;
