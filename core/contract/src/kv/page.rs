//! Pages on their way to a store and back.

use crate::types::*;

/// Which part of a session: a page of KV, or a recurrent layer's state after `at` tokens.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Part {
    /// The page with this number: tokens from 64 times it on.
    Page(u32),
    /// A recurrent layer's state.
    State {
        /// Tokens that it has seen.
        at: TokenIndex,
    },
}

/// Name of a stored piece. A session's key may be stored again after a rewind; the last one holds,
/// once committed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PageKey {
    /// Whose.
    pub session: SessionId,
    /// Of which layer.
    pub layer: LayerIndex,
    /// Which piece of it.
    pub part: Part,
}

/// A sealed page on its way out.
pub struct PageRef<'a> {
    /// Its name.
    pub key: PageKey,
    /// What the host will check.
    pub tag: PageTag,
    /// Its encoded bytes, `tag.bytes` of them.
    pub bytes: &'a [u8],
}

/// A page on its way in.
pub struct PageLoad<'a> {
    /// Which; the host believes its own copy.
    pub key: PageKey,
    /// A frame, as long as the longest form of a page, whatever it held before; the call's until it
    /// returns.
    pub into: &'a mut [u8],
    /// The store's answer; `Missing` when the call starts.
    pub verdict: Verdict,
}

/// A store's answer for one page. The host checks tag and bytes before anything reads them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// `tag.bytes` lie there: the host reads them, with its own queue, past this call's return.
    At {
        /// In which file, opened by the store.
        file: FileId,
        /// From which byte on.
        offset: u64,
        /// The tag that came with the page.
        tag: PageTag,
    },
    /// The first `tag.bytes` of `into` hold it (a network, or pages not written yet).
    Filled {
        /// The tag that came with the page.
        tag: PageTag,
    },
    /// Not here: recompute.
    Missing,
    /// Here, and not readable.
    Failed(ErrorKind),
}

/// A full page in the encoding it has; kvern-record has the one reader of the encodings.
pub struct PageView<'a> {
    /// Its name.
    pub key: PageKey,
    /// Shape of its layer.
    pub layer: KvLayer,
    /// Form of `bytes`.
    pub encoding: KvEncoding,
    /// Rows filled.
    pub tokens: u32,
    /// The page, as [`KvEncoding`] lays it out.
    pub bytes: &'a [u8],
}
