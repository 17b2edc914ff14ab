//! Sessions as a store sees them: where they start, what a step adds, what was found.

use crate::types::*;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// A prompt to look up.
pub struct Prefix<'a> {
    /// Every token of it.
    pub keys: &'a [TokenKey],
    /// After each whole page: enough for a store that is keyed by content.
    pub chains: &'a [ChainHash],
}

/// The longest stored history that starts a prompt; the default is none.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Found {
    /// For `Origin::Stored`; meaningless when `tokens` is 0.
    pub id: FoundId,
    /// Whole pages, or the whole stored session: tags name the tokens up to a page's end, so a page
    /// that is shared in part could not be checked. With recurrent layers: where a state is stored.
    pub tokens: TokenIndex,
    /// Bytes to load all of it.
    pub bytes: u64,
    /// Time to load all of it, where the store knows better than the host.
    pub cost: Option<Duration>,
    /// Of the session's last commit, though `tokens` be fewer; empty where pages are named by
    /// content.
    pub note: Vec<u8>,
}

/// Where a session starts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// With nothing.
    Fresh,
    /// With what `find` answered.
    Stored {
        /// The answer.
        found: FoundId,
        /// Length in tokens: at most what was found, and a multiple of 64 unless equal to it.
        at: TokenIndex,
    },
    /// With the past of a living session.
    ///
    /// Shares whole pages before `at`; the page that holds `at` is copied by the pager, not by the
    /// store. What was stored under `of` before is the child's too; what comes later comes under
    /// each key.
    Fork {
        /// The parent.
        of: SessionId,
        /// Length in tokens.
        at: TokenIndex,
    },
}

/// A step's end: these tokens are the session's.
pub struct Commit<'a> {
    /// Whose.
    pub session: SessionId,
    /// Length after the commit.
    pub tokens: TokenIndex,
    /// Keys since the last commit, rewind or beginning.
    pub keys: &'a [TokenKey],
    /// Chains of the pages that filled since.
    pub chains: &'a [ChainHash],
    /// Chain at `tokens`.
    pub chain: ChainHash,
    /// The host's own words (cold watermark, row maps, an attentive strategy's state); returned by
    /// `find`.
    pub note: &'a [u8],
}
