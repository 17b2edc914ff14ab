//! The border between Kvern's host and its plugins: the only crate that names abi_stable, and the
//! only unsafe code between the two.
//!
//! A plugin implements a safe trait of `kvern_contract` and writes one line:
//!
//! ```
//! # use kvern_contract::*;
//! #[derive(Default)]
//! struct Everything;
//!
//! impl OffloadPolicy for Everything {
//!     fn describe(&self) -> OffloadDescription {
//!         let (name, version) = ("everything".into(), "0.1.0".into());
//!         OffloadDescription { name, version, options: Options::new(), observes: false }
//!     }
//!     fn plan(&self, ask: &PlanAsk) -> Result<Placement> {
//!         let reason = || "all fits".to_string();
//!         let place = |u: &Unit| Placed { unit: u.id, tier: Tier::Host, reason: reason() };
//!         let units = ask.units.iter().map(place).collect();
//!         Ok(Placement { units, expert_cache_bytes: 0, read_ahead_units: 0 })
//!     }
//! }
//! kvern_abi::export_offload_policy!(Everything);
//! ```
//!
//! The host calls [`open`] and gets the same trait back, over the border: cold calls as one JSON
//! document each, hot calls as fixed structs with views that live as long as the call, errors
//! whole, panics caught on either side. docs/ABI.md has the rules by which this may change.

mod border;
mod count;
mod device;
mod elf;
pub mod export;
mod guard;
mod host;
mod kv;
mod lists;
mod load;
mod offload;
mod root;
mod stamp;
pub mod trail;
mod views;
mod wire;

/// The contract, so that a plugin needs one dependency.
pub use kvern_contract as contract;

pub use count::crossings;
pub use load::{open, read_stamp};
pub use stamp::{EPOCH, Stamp};

use kvern_contract::{DeviceBackend, KvStrategy, OffloadPolicy};

/// What a plugin decides.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u32)]
pub enum PluginKind {
    /// Where history goes, and in what form.
    Kv = 1,
    /// Which weights stay in which memory.
    Offload = 2,
    /// Who does the arithmetic.
    Device = 3,
}

impl PluginKind {
    /// All kinds.
    pub const ALL: [PluginKind; 3] = [PluginKind::Kv, PluginKind::Offload, PluginKind::Device];

    /// As a sentence says it.
    pub fn title(self) -> &'static str {
        match self {
            PluginKind::Kv => "kv strategy",
            PluginKind::Offload => "offload policy",
            PluginKind::Device => "device",
        }
    }
}

impl std::fmt::Display for PluginKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            PluginKind::Kv => "kv",
            PluginKind::Offload => "offload",
            PluginKind::Device => "device",
        })
    }
}

/// An instance of a plugin.
pub enum Plugin {
    /// A kv strategy.
    Kv(Box<dyn KvStrategy>),
    /// An offload policy.
    Offload(Box<dyn OffloadPolicy>),
    /// A device backend.
    Device(Box<dyn DeviceBackend>),
}

impl Plugin {
    /// Which it is.
    pub fn kind(&self) -> PluginKind {
        match self {
            Plugin::Kv(_) => PluginKind::Kv,
            Plugin::Offload(_) => PluginKind::Offload,
            Plugin::Device(_) => PluginKind::Device,
        }
    }
}

impl std::fmt::Debug for Plugin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Plugin::{:?}", self.kind())
    }
}
