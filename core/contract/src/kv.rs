//! Where history goes, and in what form. Policy is data that the pager enforces; a store moves
//! sealed pages; an attentive strategy looks at attention. Each is its own object, because a store
//! may block on its own thread while the engine's thread asks the attentive side between two ops.

mod attentive;
mod codec;
mod description;
mod page;
mod policy;
mod session;
mod store;

pub use {attentive::*, codec::*, description::*, page::*, policy::*, session::*, store::*};

use crate::host::HostRef;
use crate::types::*;
use serde::{Deserialize, Serialize};

/// A root to open: one directory, or one place in a network, for one model in one form.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct StoreSpec {
    /// Named parts: weights, config, dtype, encoding, layout, adapters, format. A store that finds
    /// others under the root answers Mismatch and names the part.
    pub identity: Vec<(String, String)>,
    /// What the model keeps.
    pub shape: KvShape,
    /// Encoding of cold pages.
    pub cold: KvEncoding,
    /// The policy that this plugin gave.
    pub policy: KvPolicy,
    /// Whether the root outlives the process.
    pub lifecycle: Lifecycle,
    /// Most bytes under the root; `None`: no limit.
    pub quota_bytes: Option<u64>,
    /// Offsets of pages that are multiples of this are read without a detour.
    pub io_align: u32,
    /// Most pages that one step adds to a layer and session: a ring's room beyond its window.
    pub step_pages: u32,
    /// Nothing may be written.
    pub read_only: bool,
    /// The manifest's options with the operator's changes.
    pub options: Options,
}

/// What [`KvStrategy::open`] gives: any of the three.
pub struct Opened {
    /// Moves sealed pages; lives on a store thread.
    pub store: Option<Box<dyn KvStore>>,
    /// Looks at attention; lives on the engine's thread.
    pub attentive: Option<Box<dyn KvAttentive>>,
    /// Encodes pages; shared by the pager's threads.
    pub codec: Option<Box<dyn KvCodec>>,
}

/// A strategy: policy, and what carries it out.
pub trait KvStrategy: Send {
    /// Says who it is.
    ///
    /// # Plugin must
    /// Answer a constant.
    ///
    /// # Cost
    /// Once a load.
    fn describe(&self) -> KvDescription;

    /// The policy under these facts.
    ///
    /// # Plugin must
    /// Give the same answer to the same ask.
    ///
    /// # Errors
    /// Invalid (names option and range).
    ///
    /// # Cost
    /// Once a root.
    fn policy(&self, ask: &PolicyAsk) -> Result<KvPolicy>;

    /// Opens a root and repairs what a crash left.
    ///
    /// # Caller guarantees
    /// `spec.policy` is this plugin's; the host holds the root's lock. An instance that does not
    /// answer is given up: from then on its `HostRef` answers Timeout to everything, and the root
    /// may be opened again while the lost call is still out.
    ///
    /// # Plugin must
    /// Find what was flushed; what was not is gone or whole.
    ///
    /// # Errors
    /// Mismatch, Damaged, OutOfSpace, Io.
    ///
    /// # Cost
    /// Once a root and instance.
    fn open(&mut self, spec: &StoreSpec, host: HostRef) -> Result<Opened>;
}
