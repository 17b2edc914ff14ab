//! One page of one layer, and a session's tables of them.

use super::frames::Frame;
use crate::chain::Chain;
use kvern_contract::{ChainHash, KvEncoding, PAGE_TOKENS, PageTag, SessionId, TokenKey};

/// Whether a page's bytes are with the store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kept {
    /// Only the frame holds it.
    Here,
    /// Given to the store, which has not answered.
    Going,
    /// The store has it: its frame may be taken.
    Stored,
}

/// A page.
#[derive(Clone, Debug)]
pub(crate) struct Page {
    /// Its frame; none: it must be loaded to be read.
    pub frame: Option<Frame>,
    /// Rows written, by the device's fence.
    pub rows: u32,
    /// The form that attention reads.
    pub encoding: KvEncoding,
    pub kept: Kept,
    /// Of the stored form.
    pub tag: Option<PageTag>,
    /// Fell out of the window: no query sees it again.
    pub gone: bool,
}

impl Page {
    pub(crate) fn new(frame: Frame, encoding: KvEncoding) -> Self {
        let kept = Kept::Here;
        Page { frame: Some(frame), rows: 0, encoding, kept, tag: None, gone: false }
    }
    pub(crate) fn is_sealed(&self) -> bool {
        self.rows == PAGE_TOKENS
    }
}

/// A history of tokens and where its pages are.
pub(crate) struct Session {
    pub id: SessionId,
    /// Every token, those of the step that runs included.
    pub keys: Vec<TokenKey>,
    pub chain: Chain,
    /// Tokens that are the session's; what follows is a step's that runs.
    pub committed: usize,
    /// Pages of each layer, ascending.
    pub layers: Vec<Vec<Page>>,
    /// Tokens before this are cold.
    pub cold: u64,
    /// Where committed steps ended, kept for lossy histories alone: they are computed again by the
    /// same steps, or other bits would come.
    pub steps: Vec<u64>,
}

impl Session {
    pub(crate) fn new(id: SessionId, seed: ChainHash, layers: usize) -> Self {
        let layers = std::iter::repeat_with(Vec::new).take(layers).collect();
        let chain = Chain::new(seed);
        Session { id, keys: Vec::new(), chain, committed: 0, layers, cold: 0, steps: Vec::new() }
    }
    pub(crate) fn append(&mut self, ids: &[u32]) {
        let key = |id: &u32| TokenKey { id: *id, ..TokenKey::default() };
        self.keys.extend(ids.iter().map(key));
        self.chain.extend(&self.keys);
    }
}

/// The first position of a page.
pub(crate) fn first_of(page: usize) -> u64 {
    page as u64 * u64::from(PAGE_TOKENS)
}

/// Rows of one session in a step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rows {
    pub session: SessionId,
    /// Of the first row, in the session.
    pub position: u64,
    pub rows: u32,
}

impl Rows {
    /// Pages that these rows are written to.
    pub(crate) fn pages(&self) -> std::ops::Range<usize> {
        let page = u64::from(PAGE_TOKENS);
        let end = self.position + u64::from(self.rows);
        (self.position / page) as usize..end.div_ceil(page) as usize
    }
    /// Rows that a page holds once these are written.
    pub(crate) fn filled(&self, page: usize) -> u32 {
        let end = self.position + u64::from(self.rows);
        end.saturating_sub(first_of(page)).min(u64::from(PAGE_TOKENS)) as u32
    }
}
