//! From a strategy and facts to a pager: its policy, and how many frames there are.

use super::Pager;
use super::frames::Frames;
use super::home::StoreHome;
use crate::chain;
use crate::events::Recorder;
use crate::spec::CacheFacts;
use kvern_contract::{
    Error, ErrorKind, KvDescription, KvEncoding, KvLayer, KvPolicy, KvReport, KvShape, KvStrategy,
    Lifecycle, Options, PAGE_TOKENS, PolicyAsk, Result,
};
use kvern_storage::{Budget, Storage};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Most pages that stream at once; two batches of half of them alternate.
const RING_MOST: u64 = 64;
/// Fewest: one loads while one is read.
const RING_LEAST: u64 = 2;

/// What a pager is made from.
pub(crate) struct Opening {
    pub options: Options,
    pub layers: Vec<KvLayer>,
    pub hot: KvEncoding,
    pub context_tokens: u64,
    /// Most rows of a step.
    pub chunk_tokens: u32,
    /// Sessions that are in memory at once.
    pub sessions: u32,
    /// Named parts of what makes KV comparable.
    pub identity: Vec<(String, String)>,
    pub cache_dir: PathBuf,
    pub deadline: Duration,
    pub storage: Arc<dyn Storage>,
    pub budget: Arc<Budget>,
    pub events: Arc<Recorder>,
    pub description: KvDescription,
    pub policy: KvPolicy,
}

/// How many frames a strategy needs, in bytes and pages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frugality {
    pub frame_bytes: u64,
    /// Frames that hold a whole context of every session.
    pub full: u64,
    /// Frames that hold that of one.
    one: u64,
    /// Frames without which no step can run.
    pub least: u64,
    has_store: bool,
    layers: u64,
}

impl Opening {
    /// Asks the strategy for its policy, and refuses what this engine does not do.
    pub(crate) fn ask(
        strategy: &dyn KvStrategy,
        options: &Options,
        layers: &[KvLayer],
        hot: KvEncoding,
        context_tokens: u64,
        budget_bytes: u64,
        accelerator: bool,
    ) -> Result<(KvDescription, KvPolicy)> {
        let description = strategy.describe();
        let refuse = |text: String| {
            Err(Error::new(
                ErrorKind::Unsupported,
                "kv/open",
                format!("kv strategy `{}` {text}", description.name),
            ))
        };
        let c = description.capabilities;
        if c.selects || c.observes || c.sees_pages {
            return refuse("looks at attention, which this engine does not show yet".into());
        }
        let policy = strategy.policy(&PolicyAsk {
            options: options.clone(),
            shape: KvShape { layers: layers.to_vec(), hot },
            accelerator,
            budget_bytes,
            context_tokens,
            lifecycle: Lifecycle::RuntimeScoped,
        })?;
        if !super::cold::is_known(policy.cold) || c.codec {
            return refuse("keeps cold pages in a codec of its own, which is not supported".into());
        }
        let whole = policy.window.is_none() && policy.keep_rows.is_none();
        if c.exact && !(whole && policy.cold == hot) {
            return refuse(format!("says that it is exact, and {}", inexact(&policy, hot)));
        }
        if policy.window.is_some_and(|w| w.recent == 0) {
            return refuse("asks for a window of 0 recent tokens; expected 1 at least".into());
        }
        if policy.cold_after % u64::from(PAGE_TOKENS) != 0 {
            let text = format!(
                "says cold_after {}; expected a multiple of {PAGE_TOKENS}",
                policy.cold_after
            );
            return refuse(text);
        }
        Ok((description, policy))
    }

    /// Frames that this strategy needs.
    pub(crate) fn frugality(&self) -> Frugality {
        let page = u64::from(PAGE_TOKENS);
        let longest = |l: &KvLayer| l.page_bytes(self.hot).max(l.page_bytes(self.policy.cold));
        let frame_bytes = self.layers.iter().map(longest).max().unwrap_or(0).max(64).div_ceil(64);
        let layers = self.layers.iter().filter(|l| l.kv_heads > 0).count() as u64;
        let chunk = u64::from(self.chunk_tokens).div_ceil(page) + 1;
        let seen = match self.policy.window {
            Some(w) => {
                let pages = u64::from(w.first).div_ceil(page) + u64::from(w.recent).div_ceil(page);
                (pages + chunk + 1).min(self.context_tokens.div_ceil(page))
            }
            None => self.context_tokens.div_ceil(page),
        };
        let has_store = self.description.capabilities.store;
        let one = layers * seen;
        let full = one.saturating_mul(u64::from(self.sessions));
        // One session at least can run; others wait for their turn.
        let least = match has_store {
            true => (layers + 2 + RING_LEAST).min(one),
            false => one,
        };
        Frugality { frame_bytes: frame_bytes * 64, full, one, least, has_store, layers }
    }

    /// Opens the root, if there is one, and makes the frames: `kept` for pages, `ring` to stream.
    pub(crate) fn open(
        self,
        strategy: Box<dyn KvStrategy>,
        kept: u64,
        ring: u64,
        frame_bytes: u64,
    ) -> Result<Pager> {
        let (kept, ring) = (count(kept)?, count(ring)?);
        let frames = Frames::new(kept, ring, frame_bytes as usize, Arc::clone(&self.budget))?;
        let seed = chain::seed(&self.identity);
        let (hot, policy) = (self.hot, self.policy.clone());
        let (layers, deadline) = (self.layers.clone(), self.deadline);
        let chunk_tokens = self.chunk_tokens;
        let events = Arc::clone(&self.events);
        let mut home = match self.description.capabilities.store {
            true => Some(StoreHome::new(self, strategy)?),
            false => None,
        };
        let store = home.as_mut().map(StoreHome::open).transpose()?;
        Ok(Pager {
            frames,
            layers,
            hot,
            policy,
            chunk_tokens,
            seed,
            sessions: BTreeMap::new(),
            next_session: 0,
            next_ticket: 0,
            void: 0,
            evictable: Vec::new(),
            going: BTreeMap::new(),
            came: BTreeMap::new(),
            store,
            home,
            live: BTreeMap::new(),
            lent: Vec::new(),
            reports: 0,
            refused: None,
            patience: 0,
            deadline,
            events,
            counts: CacheFacts::default(),
            report: KvReport::default(),
        })
    }
}

/// What makes a policy's history another than the model's.
fn inexact(policy: &KvPolicy, hot: KvEncoding) -> String {
    match (policy.window, policy.keep_rows) {
        (Some(w), _) => format!("keeps a window of {} and {} tokens", w.first, w.recent),
        (None, Some(rows)) => format!("keeps {rows} rows of each head"),
        (None, None) => {
            format!("keeps cold pages in {}, hot ones in {}", word(policy.cold), word(hot))
        }
    }
}

/// An encoding in a word.
fn word(encoding: KvEncoding) -> &'static str {
    match encoding {
        KvEncoding::F32 => "f32",
        KvEncoding::F16 => "f16",
        KvEncoding::Bf16 => "bf16",
        KvEncoding::Int8 { .. } => "int8",
        KvEncoding::Codec => "a codec of its own",
    }
}

fn count(frames: u64) -> Result<u32> {
    u32::try_from(frames).map_err(|_| {
        let text = format!("{frames} kv frames are more than can be counted: lower the context");
        Error::new(ErrorKind::Invalid, "kv/open", text)
    })
}

impl Frugality {
    /// Bytes of a number of frames.
    pub(crate) fn bytes(&self, frames: u64) -> u64 {
        frames.saturating_mul(self.frame_bytes)
    }

    /// Frames where no budget says how many: a whole context, and a few more, or one for every
    /// session. Memory is touched when used.
    pub(crate) fn unlimited(&self) -> u64 {
        const SPARE_BYTES: u64 = 4 << 30;
        const SPARE_CONTEXTS: u64 = 7;
        let more = SPARE_CONTEXTS.max((self.full / self.one.max(1)).saturating_sub(1));
        self.one * (1 + (SPARE_BYTES / self.bytes(self.one).max(1)).min(more))
    }

    /// How a number of frames is used: for pages that stay, and to stream the others.
    pub(crate) fn split(&self, frames: u64) -> (u64, u64) {
        if !self.has_store || frames >= self.full {
            return (frames, 0);
        }
        let spare = frames.saturating_sub(self.least);
        let ring = (RING_LEAST + spare / 4).min(RING_MOST) / 2 * 2;
        (frames - ring, ring)
    }

    /// Most rows that a step may add when this many frames are for pages that stay.
    pub(crate) fn chunk(&self, asked: u32, kept: u64) -> u32 {
        if !self.has_store || kept >= self.full {
            return asked;
        }
        let pages = kept.saturating_sub(self.layers + 1).max(1);
        u32::try_from(pages * u64::from(PAGE_TOKENS)).unwrap_or(u32::MAX).min(asked)
    }
}
