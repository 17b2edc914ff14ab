//! Where history goes, and in what form. Policy is data that the pager enforces; a store moves sealed pages; an
//! attentive strategy looks at attention. Each is its own object, because a store may block on its own thread
//! while the engine's thread asks the attentive side between two ops.

use crate::host::HostRef;
use crate::types::*;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Whether a root outlives the process.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Lifecycle {
    RuntimeScoped, // removed at exit, or by the next start after a crash
    Persistent,    // found again by a new process
}
/// Reached by tokens or by bytes of K and V of one layer, whichever comes first.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Threshold {
    pub tokens: Option<u64>,
    pub bytes: Option<u64>,
}
/// A query at position p sees positions below `first` and those above p - `recent`; in prefill too.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct KvWindow {
    pub first: u32,
    pub recent: u32,
}

/// The axes of the report; spelled as the report spells them. Static: what the manifest must equal.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct KvDescription {
    pub name: String,
    pub version: String,
    pub persistence_format: String,
    pub residency_mode: String,
    pub window_policy: String,
    pub cold_tier_encoding: String,
    pub cold_store_format: Option<String>,
    pub eviction_policy: Option<String>,
    pub capabilities: KvCapabilities,
    pub options: Options, // defaults, every known name
}
/// What the engine may ask for. A capability that is off is never called.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct KvCapabilities {
    pub exact: bool, // full history, full precision: bit-identical to resident
    pub store: bool,
    pub persistent: bool,
    pub selects: bool, // `select` is called, with queries read back from the device at every layer
    pub observes: bool, // `observe` is called; costs a second pass over K of what is visible
    pub sees_pages: bool, // `sealed` is called with every full page, hot ones included
    pub codec: bool,
    pub shared: bool, // several hosts write one root at once: the host takes no lock, every file is published
}

/// Facts that a policy depends on.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct PolicyAsk {
    pub options: Options,
    pub shape: KvShape,
    pub accelerator: bool,
    pub budget_bytes: u64,
    pub context_tokens: TokenIndex,
    pub lifecycle: Lifecycle,
}
/// What the pager enforces. It depends on options, so it is asked for, not described.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct KvPolicy {
    pub policy_id: String,        // for the report, as `cpu-journal`
    pub flush: Option<Threshold>, // a layer's hot tail that starts a spill of whole pages; `None`: never
    /// What a spill leaves hot. A spilled page keeps its frame while the budget has room.
    /// At least `cold_after`, or pages are stored hot and encoded again after every load.
    pub retain: Threshold,
    pub window: Option<KvWindow>, // what queries see; the pager frees pages that no later query can see
    /// Rows that an attentive strategy promises to stay under, a layer and head, between steps.
    pub keep_rows: Option<u32>,
    /// Whole pages that end at least `cold_after` before the first row of any step are cold: a watermark of
    /// the session. Only a rewind lowers it, to where it lands; a fork inherits it, `Commit::note` keeps it.
    /// What is cold is read through this encoding, in memory or not, even where the store still has the hot
    /// bytes: so bits depend on the steps and never on the budget. A lost page of a lossy history is therefore
    /// recomputed from 0, by the recorded steps; of an exact one, from that page, by any.
    pub cold: KvEncoding,
    pub cold_after: u64,     // a multiple of 64. 0 for lossless encodings
    pub store_partial: bool, // whether `flush` and `end` store the page that is not full
}
/// A root to open.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct StoreSpec {
    /// Named parts: weights, config, dtype, encoding, layout, adapters, format. A store that finds others under
    /// the root answers Mismatch and names the part.
    pub identity: Vec<(String, String)>,
    pub shape: KvShape,
    pub cold: KvEncoding,
    pub policy: KvPolicy,
    pub lifecycle: Lifecycle,
    pub quota_bytes: Option<u64>,
    pub io_align: u32, // offsets of pages that are multiples of this are read without a detour
    pub step_pages: u32, // most that one step adds to a layer and session: a ring's room beyond its window
    pub read_only: bool,
    pub options: Options,
}
/// What `open` gives: any of the three.
pub struct Opened {
    pub store: Option<Box<dyn KvStore>>, // lives on a store thread
    pub attentive: Option<Box<dyn KvAttentive>>, // lives on the engine's thread
    pub codec: Option<Box<dyn KvCodec>>, // shared by the pager's threads
}
/// Which part of a session: a page of KV, or a recurrent layer's state after `at` tokens.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Part {
    Page(u32),
    State { at: TokenIndex },
}
/// Name of a stored piece. A session's key may be stored again after a rewind; the last one holds, once
/// committed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PageKey {
    pub session: SessionId,
    pub layer: LayerIndex,
    pub part: Part,
}
/// A sealed page on its way out.
pub struct PageRef<'a> {
    pub key: PageKey,
    pub tag: PageTag,
    pub bytes: &'a [u8],
}
/// A page on its way in.
pub struct PageLoad<'a> {
    pub key: PageKey, // which; the host believes its own copy
    /// A frame, as long as the longest form of a page, whatever it held before; the call's until it returns.
    pub into: &'a mut [u8],
    pub verdict: Verdict, // `Missing` when the call starts
}
/// A store's answer for one page. The host checks tag and bytes before anything reads them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// `tag.bytes` lie there: the host reads them, with its own queue, past this call's return.
    At {
        file: FileId,
        offset: u64,
        tag: PageTag,
    },
    /// The first `tag.bytes` of `into` hold it (a network, or pages not written yet).
    Filled {
        tag: PageTag,
    },
    Missing,           // not here: recompute
    Failed(ErrorKind), // here, and not readable
}
/// A prompt to look up.
pub struct Prefix<'a> {
    pub keys: &'a [TokenKey],
    pub chains: &'a [ChainHash], // after each whole page: enough for a store that is keyed by content
}

/// The longest stored history that starts a prompt.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Found {
    pub id: FoundId, // for `Origin::Stored`; meaningless when `tokens` is 0
    /// Whole pages, or the whole stored session: tags name the tokens up to a page's end, so a page that is
    /// shared in part could not be checked. With recurrent layers: where a state is stored.
    pub tokens: TokenIndex,
    pub bytes: u64,             // to load all of it
    pub cost: Option<Duration>, // to load all of it, where the store knows better than the host
    /// Of the session's last commit, though `tokens` be fewer; empty where pages are named by content.
    pub note: Vec<u8>,
}
/// Where a session starts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    Fresh,
    /// `at` is at most what was found, and a multiple of 64 unless equal to it.
    Stored {
        found: FoundId,
        at: TokenIndex,
    },
    /// Shares whole pages before `at`; the page that holds `at` is copied by the pager, not by the store. What
    /// was stored under `of` before is the child's too; what comes later comes under each key.
    Fork {
        of: SessionId,
        at: TokenIndex,
    },
}
/// A step's end: these tokens are the session's.
pub struct Commit<'a> {
    pub session: SessionId,
    pub tokens: TokenIndex,      // length after the commit
    pub keys: &'a [TokenKey],    // keys since the last commit, rewind or beginning
    pub chains: &'a [ChainHash], // chains of the pages that filled since
    pub chain: ChainHash,        // chain at `tokens`
    /// The host's own words (cold watermark, row maps, an attentive strategy's state); returned by `find`.
    pub note: &'a [u8],
}
/// A store's share of `cache_state`; sums over layers. The host counts the rest itself: resident and hot
/// tokens, spills, window evictions, pages and bytes read and written, checksum failures.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct KvReport {
    pub persisted_layer_count: u64,
    pub persisted_tokens: u64,
    pub persisted_artifact_count: u64, // chunk, page-table entry, extent, journal entry, ring layer
    pub live_bytes: u64,
    pub dead_bytes: u64,
    pub compaction_count: u64,
    pub compacted_bytes: u64,
    pub quota_eviction_count: u64,
    pub quota_evicted_tokens: u64, // sessions removed for the quota
    pub foreign_read_bytes: u64,
    pub foreign_write_bytes: u64, // past the host's storage (network)
}

/// A strategy: policy, and what carries it out.
pub trait KvStrategy: Send {
    /// Who it is. *Plugin*: constant. *Cost* once a load.
    fn describe(&self) -> KvDescription;
    /// The policy under these facts. *Errors* Invalid (names option and range). *Cost* once a root.
    fn policy(&self, ask: &PolicyAsk) -> Result<KvPolicy>;
    /// Opens a root and repairs what a crash left. *Caller*: `spec.policy` is this plugin's; the host holds the
    /// root's lock. An instance that does not answer is given up: from then on its `HostRef` answers Timeout to
    /// everything, and the root may be opened again while the lost call is still out. *Plugin*: what was
    /// flushed is there; what was not is gone or whole. *Errors* Mismatch, Damaged, OutOfSpace, Io. *Cost* once
    /// a root and instance.
    fn open(&mut self, spec: &StoreSpec, host: HostRef) -> Result<Opened>;
}

/// Sealed pages of one root. One thread calls it, in the order in which the host asked: a `load` sees what was
/// stored before it, a `rewind` takes it away. It may block on host storage, not on the engine. A call is not
/// cancelled: the host stops waiting, recomputes, and forgets the answer; every frame lent to the call comes
/// home with it and is used by nobody before. Calls not begun are the host's, and a lost instance gets none.
pub trait KvStore: Send {
    /// Looks prompts up, living sessions too; an answer for each. *Plugin*: counts only tokens whose pages are
    /// all stored, in every layer; a commit runs ahead of them. Session ids of an earlier process mean nothing.
    /// *Errors* Io. *Cost* once a batch of new sessions.
    fn find(&mut self, prompts: &[Prefix<'_>]) -> Result<Vec<Found>>;
    /// Starts a session. *Caller*: the id is new. *Errors* NotFound when evicted since: start fresh.
    fn begin(&mut self, session: SessionId, from: Origin) -> Result<()>;
    /// Takes pages of many layers and sessions. *Caller*: encoded, in no order; every row written, by the fence
    /// and not by the count; unchanged until it returns, so a page that is not full goes as a copy. Tokens may
    /// not be committed yet, and may never be. *Plugin*: copies or writes before it returns; visible to `load`
    /// at once, to `find` once committed. *Errors* OutOfSpace, Io: none of them counts as stored. *Cost* once a
    /// spill.
    fn store(&mut self, pages: &[PageRef<'_>]) -> Result<()>;
    /// Answers for each page. *Caller*: finishes the reads of every `At` before it calls `rewind`, `end` or
    /// `maintain`. *Plugin*: until then, and while the page is in the policy's window, `At` stays true. One
    /// call at a time: a far store hides its latency by the batch, which the host sizes by `Found::cost`. Past
    /// `within`: `Failed(Timeout)` for what is not there. *Errors* in verdicts; a call that fails counts for
    /// all. *Cost* once a batch.
    fn load(&mut self, pages: &mut [PageLoad<'_>], within: Duration) -> Result<()>;
    /// Makes tokens part of sessions, each whole or not at all. *Caller*: every page that fell out of memory
    /// was stored before; hot pages were not; it does not wait for the answer. *Plugin*: may buffer until
    /// `flush`. *Cost* once a step: no sync.
    fn commit(&mut self, commits: &[Commit<'_>]) -> Result<()>;
    /// Forgets pages that end past `to`; answers where it landed: earlier only with recurrent layers. *Caller*:
    /// has the rows it needs of the page that holds `to`, and will store that page again. *Plugin*: writes
    /// nothing that recovery believes: until the next `flush` of the session the old state survives a crash.
    fn rewind(&mut self, session: SessionId, to: TokenIndex) -> Result<TokenIndex>;
    /// Durable when it returns: the session's committed tokens and their pages, and none of tokens that are not
    /// committed. *Caller*: stored every sealed page, and the partial one if the policy says so. *Plugin*: page
    /// bytes, sync, then one checked record that names them, sync; a record whole is a state, cut short nothing.
    /// *Errors* OutOfSpace; Io: after a failed sync no `store` or `flush` succeeds until the root is opened anew.
    fn flush(&mut self, session: SessionId) -> Result<()>;
    /// Ends a session; `keep` leaves what is durable for `find`. One not kept may come back after a crash.
    fn end(&mut self, session: SessionId, keep: bool) -> Result<()>;
    /// Compacts for at most about `budget`. *Caller*: the drive is idle, no `At` is being read. *Plugin*: reuses
    /// no byte that a durable record names.
    fn maintain(&mut self, budget: Duration) -> Result<()>;
    /// Counters. *Cost* once a request.
    fn report(&self) -> KvReport;
}
/// The queries of one session at one layer.
pub struct QueryAsk<'a> {
    pub session: SessionId,
    pub layer: LayerIndex,
    pub heads: u32,
    pub key_dim: u32,
    pub queries: &'a [f32], // `[row][head][key_dim]`, after rope
}
/// A bit for each page of the session's layer; all set when the call starts.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PageMask {
    pub words: Vec<u64>,
    pub pages: u32,
}
/// What one kv head's live rows received in a step: probabilities summed over queries and over the query heads
/// that share it. `positions` ascends; dropped rows are gone from it.
pub struct HeadMass<'a> {
    pub positions: &'a [u32],
    pub mass: &'a [f32],
}
/// Attention mass of one session at one layer.
pub struct AttentionMass<'a> {
    pub session: SessionId,
    pub layer: LayerIndex,
    pub queries: u32,
    pub heads: &'a [HeadMass<'a>],
}
/// Rows to forget, a kv head and position each; the pager masks them and packs pages when it pays.
#[derive(Clone, Debug, Default)]
pub struct RowEdits {
    pub drops: Vec<(u32, u32)>,
}
/// A full page in the encoding it has; kvern-record has the one reader of the encodings.
pub struct PageView<'a> {
    pub key: PageKey,
    pub layer: KvLayer,
    pub encoding: KvEncoding,
    pub tokens: u32,
    pub bytes: &'a [u8],
}

/// Extension: strategies that look at attention. Lossy. Engine's thread, between two ops: be quick.
pub trait KvAttentive: Send {
    /// A session starts; `saved` is what `save` gave for its past, empty when fresh.
    fn begin(&mut self, session: SessionId, from: Option<SessionId>, saved: &[u8]) -> Result<()>;
    /// A page filled. *Cost* once a page, if `sees_pages`.
    fn sealed(&mut self, page: &PageView<'_>) -> Result<()>;
    /// Clears pages that this step need not read. *Cost* once a layer and session, if `selects`.
    fn select(&mut self, ask: &QueryAsk<'_>, visible: &mut PageMask) -> Result<()>;
    /// Sees what attention used. *Plugin*: drops only positions it was shown; edits hold from the next step.
    /// *Cost* once a layer and session, if `observes`.
    fn observe(&mut self, mass: &AttentionMass<'_>, edits: &mut RowEdits) -> Result<()>;
    /// Forgets positions from `to` on. A row dropped before stays dropped.
    fn rewind(&mut self, session: SessionId, to: TokenIndex) -> Result<()>;
    /// What `begin` needs to go on. *Cost* once a flush.
    fn save(&self, session: SessionId) -> Result<Vec<u8>>;
    /// A session ends.
    fn end(&mut self, session: SessionId);
}

/// Extension: an encoding that the contract does not know. Pure; called from several threads.
pub trait KvCodec: Send + Sync {
    /// Most bytes that a page of this layer takes.
    fn page_bytes(&self, layer: &KvLayer) -> u64;
    /// Encodes a full page; answers the length. *Plugin*: the same page gives the same bytes.
    fn encode(&self, page: &PageView<'_>, out: &mut [u8]) -> Result<usize>;
    /// Decodes into `out`, a page in `encoding`. *Errors* Damaged.
    fn decode(
        &self,
        bytes: &[u8],
        layer: &KvLayer,
        encoding: KvEncoding,
        out: &mut [u8],
    ) -> Result<()>;
}
