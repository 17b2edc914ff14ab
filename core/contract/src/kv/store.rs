//! The store: sealed pages go in, and come back with their tags.

use super::{Commit, Found, Origin, PageLoad, PageRef, Prefix};
use crate::types::*;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// A store's share of `cache_state`; sums over layers. The host counts the rest itself: resident
/// and hot tokens, spills, window evictions, pages and bytes read and written, checksum failures.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct KvReport {
    /// Layers with something stored.
    pub persisted_layer_count: u64,
    /// Tokens stored, summed over layers.
    pub persisted_tokens: u64,
    /// Chunk, page-table entry, extent, journal entry, ring layer: what the format counts by.
    pub persisted_artifact_count: u64,
    /// Bytes under the root that something names.
    pub live_bytes: u64,
    /// Bytes under the root that nothing names any more.
    pub dead_bytes: u64,
    /// Compactions done.
    pub compaction_count: u64,
    /// Bytes that they rewrote.
    pub compacted_bytes: u64,
    /// Sessions removed for the quota.
    pub quota_eviction_count: u64,
    /// Tokens of sessions removed for the quota.
    pub quota_evicted_tokens: u64,
    /// Bytes read past the host's storage (network).
    pub foreign_read_bytes: u64,
    /// Bytes written past the host's storage (network).
    pub foreign_write_bytes: u64,
}

impl KvReport {
    /// The counters of pages that are stored, an artifact each.
    pub fn of<'a>(tags: impl Iterator<Item = &'a PageTag>) -> KvReport {
        let mut layers = std::collections::BTreeSet::new();
        let mut report = KvReport::default();
        for tag in tags {
            layers.insert(tag.layer);
            report.persisted_tokens += u64::from(tag.tokens);
            report.persisted_artifact_count += 1;
            report.live_bytes += u64::from(tag.bytes);
        }
        report.persisted_layer_count = layers.len() as u64;
        report
    }
}

/// Sealed pages of one root.
///
/// One thread calls it, in the order in which the host asked: a `load` sees what was stored before
/// it, a `rewind` takes it away. It may block on host storage, not on the engine. A call is not
/// cancelled: the host stops waiting, recomputes, and forgets the answer; every frame lent to the
/// call comes home with it and is used by nobody before. Calls not begun are the host's, and a lost
/// instance gets none.
pub trait KvStore: Send {
    /// Looks prompts up, living sessions too; an answer for each, in order. A store that is not
    /// `persistent` may find nothing, ever.
    ///
    /// # Caller guarantees
    /// `chains` has one hash for each whole page of `keys`.
    ///
    /// # Plugin must
    /// Count only tokens whose pages are all stored, in every layer; a commit runs ahead of them.
    /// Session ids of an earlier process mean nothing.
    ///
    /// # Errors
    /// Io.
    ///
    /// # Cost
    /// Once a batch of new sessions.
    fn find(&mut self, prompts: &[Prefix<'_>]) -> Result<Vec<Found>>;

    /// Starts a session.
    ///
    /// # Caller guarantees
    /// The id is new.
    ///
    /// # Errors
    /// NotFound when evicted since: start fresh.
    ///
    /// # Cost
    /// Once a session.
    fn begin(&mut self, session: SessionId, from: Origin) -> Result<()>;

    /// Takes pages of many layers and sessions.
    ///
    /// # Caller guarantees
    /// They are encoded, in no order; every row is written, by the fence and not by the count; they
    /// stay unchanged until it returns, so a page that is not full goes as a copy. Tokens may not
    /// be committed yet, and may never be.
    ///
    /// # Plugin must
    /// Copy or write before it returns; pages are visible to `load` at once, to `find` once
    /// committed.
    ///
    /// # Errors
    /// OutOfSpace, Io: none of them counts as stored.
    ///
    /// # Cost
    /// Once a spill.
    fn store(&mut self, pages: &[PageRef<'_>]) -> Result<()>;

    /// Answers for each page.
    ///
    /// # Caller guarantees
    /// It finishes the reads of every `At` before it calls `rewind`, `end` or `maintain`.
    ///
    /// # Plugin must
    /// Keep `At` true until then, and while the page is in the policy's window. One call at a time:
    /// a far store hides its latency by the batch, which the host sizes by `Found::cost`. Past
    /// `within`: `Failed(Timeout)` for what is not there.
    ///
    /// # Errors
    /// In verdicts; a call that fails counts for all.
    ///
    /// # Cost
    /// Once a batch.
    fn load(&mut self, pages: &mut [PageLoad<'_>], within: Duration) -> Result<()>;

    /// Makes tokens part of sessions, each whole or not at all.
    ///
    /// # Caller guarantees
    /// Every page that fell out of memory was stored before; hot pages were not; it does not wait
    /// for the answer.
    ///
    /// # Plugin must
    /// Not sync. It may buffer until `flush`.
    ///
    /// # Errors
    /// NotFound (the session), Invalid.
    ///
    /// # Cost
    /// Once a step: no sync.
    fn commit(&mut self, commits: &[Commit<'_>]) -> Result<()>;

    /// Forgets pages that end past `to`; answers where it landed: earlier only with recurrent
    /// layers.
    ///
    /// # Caller guarantees
    /// It has the rows it needs of the page that holds `to`, and will store that page again.
    ///
    /// # Plugin must
    /// Write nothing that recovery believes: until the next `flush` of the session the old state
    /// survives a crash.
    ///
    /// # Errors
    /// NotFound (the session).
    ///
    /// # Cost
    /// Once a rollback of a session.
    fn rewind(&mut self, session: SessionId, to: TokenIndex) -> Result<TokenIndex>;

    /// Durable when it returns: the session's committed tokens and their pages, and none of tokens
    /// that are not committed.
    ///
    /// # Caller guarantees
    /// It stored every sealed page, and the partial one if the policy says so.
    ///
    /// # Plugin must
    /// Write page bytes, sync, then one checked record that names them, sync; a record whole is a
    /// state, cut short nothing.
    ///
    /// # Errors
    /// NotFound (the session); OutOfSpace; Io: after a failed sync no `store` or `flush` succeeds
    /// until the root is opened anew.
    ///
    /// # Cost
    /// Once a session's end, and whenever durability is asked for.
    fn flush(&mut self, session: SessionId) -> Result<()>;

    /// Ends a session; `keep` leaves what is durable for `find`. One not kept may come back after a
    /// crash.
    ///
    /// # Caller guarantees
    /// No later call names the session.
    ///
    /// # Errors
    /// NotFound, Io.
    ///
    /// # Cost
    /// Once a session.
    fn end(&mut self, session: SessionId, keep: bool) -> Result<()>;

    /// Compacts for at most about `budget`.
    ///
    /// # Caller guarantees
    /// The drive is idle, no `At` is being read.
    ///
    /// # Plugin must
    /// Reuse no byte that a durable record names.
    ///
    /// # Errors
    /// OutOfSpace, Io.
    ///
    /// # Cost
    /// When the drive is idle.
    fn maintain(&mut self, budget: Duration) -> Result<()>;

    /// Reads the counters.
    ///
    /// # Cost
    /// Once a request.
    fn report(&self) -> KvReport;
}
