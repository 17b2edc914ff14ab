//! Who a strategy is: what the report calls it, and what the engine may ask of it.

use crate::types::*;
use serde::{Deserialize, Serialize};

/// The axes of the report; spelled as the report spells them. Static: what the manifest must equal.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct KvDescription {
    /// The plugin's name.
    pub name: String,
    /// The plugin's version.
    pub version: String,
    /// As `resident-only`, `chunked-manifest`, `log-structured-journal`.
    pub persistence_format: String,
    /// As `fully-resident`, `buffered-tail`, `tiered-write-back`.
    pub residency_mode: String,
    /// As `full-history`, `sliding-window`.
    pub window_policy: String,
    /// As `full-precision`, `quantized`.
    pub cold_tier_encoding: String,
    /// As `kvern-kv-journal`; `None` where the strategy has no format of its own.
    pub cold_store_format: Option<String>,
    /// As `drop-oldest`; `None` where nothing is evicted.
    pub eviction_policy: Option<String>,
    /// What the engine may ask for.
    pub capabilities: KvCapabilities,
    /// Defaults, every known name.
    pub options: Options,
}

/// What the engine may ask for. A capability that is off is never called.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct KvCapabilities {
    /// Full history, full precision: bit-identical to resident.
    pub exact: bool,
    /// `open` gives a store.
    pub store: bool,
    /// A root of lifecycle [`Persistent`](super::Lifecycle::Persistent) is found again by a new
    /// process.
    pub persistent: bool,
    /// `select` is called, with queries read back from the device at every layer.
    pub selects: bool,
    /// `observe` is called; costs a second pass over K of what is visible.
    pub observes: bool,
    /// `sealed` is called with every full page, hot ones included.
    pub sees_pages: bool,
    /// `open` gives a codec.
    pub codec: bool,
    /// Several hosts write one root at once: the host takes no lock, every file is published.
    pub shared: bool,
}

impl KvDescription {
    /// An exact strategy with a store that ends with the process, in `persistence_format`: the
    /// newest tokens are hot, nothing is dropped or rounded.
    pub fn exact(
        name: &str,
        version: &str,
        persistence_format: &str,
        options: Options,
    ) -> KvDescription {
        KvDescription {
            name: name.into(),
            version: version.into(),
            persistence_format: persistence_format.into(),
            residency_mode: "buffered-tail".into(),
            window_policy: "full-history".into(),
            cold_tier_encoding: "full-precision".into(),
            cold_store_format: None,
            eviction_policy: None,
            capabilities: KvCapabilities { exact: true, store: true, ..KvCapabilities::default() },
            options,
        }
    }
}
