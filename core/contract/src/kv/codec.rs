//! Extension: an encoding that the contract does not know.

use super::PageView;
use crate::types::*;

/// Extension: an encoding that the contract does not know. Pure; called from several threads.
pub trait KvCodec: Send + Sync {
    /// Most bytes that a page of this layer takes.
    ///
    /// # Plugin must
    /// Answer the same every time.
    ///
    /// # Cost
    /// Once a layer and root.
    fn page_bytes(&self, layer: &KvLayer) -> u64;

    /// Encodes a full page; answers the length.
    ///
    /// # Caller guarantees
    /// `out` has `page_bytes` of the page's layer.
    ///
    /// # Plugin must
    /// Give the same bytes for the same page.
    ///
    /// # Errors
    /// Unsupported (the page's encoding).
    ///
    /// # Cost
    /// Once a page that goes cold.
    fn encode(&self, page: &PageView<'_>, out: &mut [u8]) -> Result<usize>;

    /// Decodes into `out`, a page in `encoding`.
    ///
    /// # Caller guarantees
    /// `bytes` passed its checksum; `out` has `KvLayer::page_bytes` of `encoding`.
    ///
    /// # Plugin must
    /// Fill all of `out`.
    ///
    /// # Errors
    /// Damaged.
    ///
    /// # Cost
    /// Once a load of a cold page.
    fn decode(
        &self,
        bytes: &[u8],
        layer: &KvLayer,
        encoding: KvEncoding,
        out: &mut [u8],
    ) -> Result<()>;
}
