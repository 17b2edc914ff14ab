//! How many sessions there is memory for, and how much a step may add to them.

use super::Pager;
use kvern_contract::{KvLayer, PAGE_TOKENS, SessionId};

const PAGE: u64 = PAGE_TOKENS as u64;

impl Pager {
    /// Frames that a session of so many tokens must be able to have: all of its pages, or, where a
    /// store takes pages, in each layer the one that fills and the next.
    pub(crate) fn need(&self, tokens: u64) -> u64 {
        let all = tokens.max(1).div_ceil(PAGE);
        let pages = match self.policy.window {
            _ if self.home.is_some() => all.min(2),
            Some(w) => {
                let seen = u64::from(w.first).div_ceil(PAGE) + u64::from(w.recent).div_ceil(PAGE);
                // What a step adds is there before what it no longer sees is dropped.
                all.min(seen + u64::from(self.chunk_tokens).div_ceil(PAGE) + 2)
            }
            None => all,
        };
        self.kv_layers() * pages
    }

    /// Frames that pages may keep, less those of sessions that are not among these.
    pub(crate) fn frames_for(&self, sessions: &[SessionId]) -> u64 {
        let others = self.sessions.values().filter(|s| !sessions.contains(&s.id));
        let pages = others.flat_map(|s| s.layers.iter().flatten());
        let taken = pages.filter(|p| p.frame.is_some()).count() as u64;
        u64::from(self.frames.kept()).saturating_sub(taken)
    }

    /// Most pages that prompts may add to a layer in one step, each beyond the last one of its
    /// session: a store takes what is whole, but what is not needs its frame. `None`: any number.
    pub(crate) fn pages_of_step(&self) -> Option<u64> {
        self.home.as_ref().filter(|_| !self.frames.all_stay())?;
        let tails = self.kv_layers() * self.sessions.len() as u64;
        Some(u64::from(self.frames.kept()).saturating_sub(tails + 1).max(1))
    }

    fn kv_layers(&self) -> u64 {
        let has_pages = |l: &&KvLayer| l.kv_heads > 0;
        self.layers.iter().filter(has_pages).count() as u64
    }
}
