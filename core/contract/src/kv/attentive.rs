//! Extension: strategies that look at attention, as Quest (Tang and others, 2024), H2O (Zhang and
//! others, 2023) and SnapKV (Li and others, 2024) do.

use super::PageView;
use crate::types::*;

/// The queries of one session at one layer.
pub struct QueryAsk<'a> {
    /// Whose.
    pub session: SessionId,
    /// At which layer.
    pub layer: LayerIndex,
    /// Query heads.
    pub heads: u32,
    /// Channels of a query.
    pub key_dim: u32,
    /// f32 `[row][head][key_dim]`, after rope.
    pub queries: &'a [f32],
}

/// A bit for each page of the session's layer; all set when the call starts.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PageMask {
    /// Page n is bit n % 64 of word n / 64; set: attention reads it.
    pub words: Vec<u64>,
    /// Pages there are.
    pub pages: u32,
}

/// What one kv head's live rows received in a step: probabilities summed over queries and over the
/// query heads that share it.
pub struct HeadMass<'a> {
    /// Ascending; dropped rows are gone from it.
    pub positions: &'a [u32],
    /// f32, one for each position.
    pub mass: &'a [f32],
}

/// Attention mass of one session at one layer.
pub struct AttentionMass<'a> {
    /// Whose.
    pub session: SessionId,
    /// At which layer.
    pub layer: LayerIndex,
    /// Queries that were summed over.
    pub queries: u32,
    /// One for each kv head.
    pub heads: &'a [HeadMass<'a>],
}

/// Rows to forget; the pager masks them and packs pages when it pays.
#[derive(Clone, Debug, Default)]
pub struct RowEdits {
    /// A kv head and a position each.
    pub drops: Vec<(u32, u32)>,
}

/// Extension: strategies that look at attention. Lossy. Engine's thread, between two ops: be quick.
///
/// `select` asks before pages are chosen, as Quest does; `observe` after attention ran, as H2O and
/// SnapKV do. Sinks with a recent window need neither: [`KvWindow`](super::KvWindow) has them.
pub trait KvAttentive: Send {
    /// A session starts; `saved` is what `save` gave for its past, empty when fresh.
    ///
    /// # Caller guarantees
    /// `from` is the living parent of a fork, or `None`.
    ///
    /// # Errors
    /// Damaged (`saved` is not what `save` gave).
    ///
    /// # Cost
    /// Once a session.
    fn begin(&mut self, session: SessionId, from: Option<SessionId>, saved: &[u8]) -> Result<()>;

    /// A page filled.
    ///
    /// # Cost
    /// Once a page, if `sees_pages`.
    fn sealed(&mut self, page: &PageView<'_>) -> Result<()>;

    /// Clears pages that this step need not read.
    ///
    /// # Plugin must
    /// Only clear bits.
    ///
    /// # Cost
    /// Once a layer and session, if `selects`.
    fn select(&mut self, ask: &QueryAsk<'_>, visible: &mut PageMask) -> Result<()>;

    /// Sees what attention used.
    ///
    /// # Plugin must
    /// Drop only positions it was shown; edits hold from the next step.
    ///
    /// # Cost
    /// Once a layer and session, if `observes`.
    fn observe(&mut self, mass: &AttentionMass<'_>, edits: &mut RowEdits) -> Result<()>;

    /// Forgets positions from `to` on. A row dropped before stays dropped.
    ///
    /// # Cost
    /// Once a rollback of a session.
    fn rewind(&mut self, session: SessionId, to: TokenIndex) -> Result<()>;

    /// What `begin` needs to go on.
    ///
    /// # Cost
    /// Once a flush.
    fn save(&self, session: SessionId) -> Result<Vec<u8>>;

    /// A session ends.
    ///
    /// # Cost
    /// Once a session.
    fn end(&mut self, session: SessionId);
}
