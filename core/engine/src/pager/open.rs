//! From a strategy and facts to a pager: how many frames there are, where the root is, how it is
//! opened, and opened anew when an instance is lost.

use super::Pager;
use super::frames::Frames;
use super::store::StoreThread;
use crate::chain;
use crate::events::Recorder;
use crate::spec::CacheFacts;
use kvern_contract::{
    Error, ErrorKind, KvDescription, KvEncoding, KvLayer, KvPolicy, KvReport, KvShape, KvStrategy,
    Lifecycle, Options, PAGE_TOKENS, PolicyAsk, Result, StoreSpec,
};
use kvern_storage::{Budget, RootHost, RootLock, Storage, remove_tree};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Offsets of pages in a store that are multiples of this are read without a detour.
const IO_ALIGN: u32 = 4096;
/// Most pages that stream at once; two batches of half of them alternate.
const RING_MOST: u64 = 64;
/// Fewest: one loads while one is read.
const RING_LEAST: u64 = 2;
/// How often a store that does not answer is opened anew.
const REOPENINGS: usize = 3;
/// Names of roots that are tried.
const ROOT_TRIES: u32 = 64;

/// What a pager is made from.
pub(crate) struct Opening {
    pub options: Options,
    pub layers: Vec<KvLayer>,
    pub hot: KvEncoding,
    pub context_tokens: u64,
    pub chunk_tokens: u32,
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
    /// Frames that hold a whole context.
    pub full: u64,
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
                format!("{} {text}", description.name),
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
        let full = layers * seen;
        let least = match has_store {
            true => (layers + 2 + RING_LEAST).min(full),
            false => full,
        };
        Frugality { frame_bytes: frame_bytes * 64, full, least, has_store, layers }
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
            ghosts: Vec::new(),
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

    /// Frames where no budget says how many: a few whole contexts. Memory is touched when used.
    pub(crate) fn unlimited(&self) -> u64 {
        const SPARE_BYTES: u64 = 4 << 30;
        self.full * (1 + (SPARE_BYTES / self.bytes(self.full).max(1)).min(7))
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

/// Where a strategy's root is, and how it is opened.
pub(crate) struct StoreHome {
    /// Away while a call of it has not returned.
    strategy: Option<Box<dyn KvStrategy>>,
    spec: StoreSpec,
    base: PathBuf,
    root: Option<RootLock>,
    roots: Vec<PathBuf>,
    deadline: Duration,
    storage: Arc<dyn Storage>,
    budget: Arc<Budget>,
    events: Arc<Recorder>,
}

impl StoreHome {
    fn new(from: Opening, strategy: Box<dyn KvStrategy>) -> Result<Self> {
        let name = from.description.name.replace('-', "_");
        let base = from.cache_dir.join(format!("kv_cache_{name}"));
        sweep(&base);
        let chunk = from.chunk_tokens.div_ceil(PAGE_TOKENS) + 1;
        let spec = StoreSpec {
            identity: from.identity,
            shape: KvShape { layers: from.layers, hot: from.hot },
            cold: from.policy.cold,
            policy: from.policy,
            lifecycle: Lifecycle::RuntimeScoped,
            quota_bytes: None,
            io_align: IO_ALIGN,
            step_pages: chunk,
            read_only: false,
            options: from.options,
        };
        Ok(StoreHome {
            strategy: Some(strategy),
            spec,
            base,
            root: None,
            roots: Vec::new(),
            deadline: from.deadline,
            storage: from.storage,
            budget: from.budget,
            events: from.events,
        })
    }

    /// Opens a root that nobody has used. *Errors* the strategy's; Timeout when it does not come
    /// back, and it is never called again.
    fn open(&mut self) -> Result<StoreThread> {
        let lock = self.take_root()?;
        let host = RootHost::new(
            Arc::clone(&self.storage),
            lock.dir().to_path_buf(),
            Arc::clone(&self.budget),
            Arc::clone(&self.events) as Arc<dyn kvern_storage::HostSink>,
        );
        self.root = Some(lock);
        let Some(mut strategy) = self.strategy.take() else {
            return Err(self.silent());
        };
        let (reply, answer) = std::sync::mpsc::channel();
        let (spec, for_plugin) = (self.spec.clone(), Arc::clone(&host));
        std::thread::Builder::new()
            .name("kvern-open".into())
            .spawn(move || {
                let opened = strategy.open(&spec, for_plugin as kvern_contract::HostRef);
                let _given_up = reply.send((strategy, opened));
            })
            .map_err(|e| Error::new(ErrorKind::Internal, "kv/open", e.to_string()))?;
        let Ok((strategy, opened)) = answer.recv_timeout(self.deadline) else {
            host.revoke();
            return Err(self.silent());
        };
        self.strategy = Some(strategy);
        let store = opened?.store.ok_or_else(|| {
            let text = "the strategy says that it has a store and opened none";
            Error::new(ErrorKind::Invalid, "kv/open", text)
        })?;
        let (storage, events) = (Arc::clone(&self.storage), Arc::clone(&self.events));
        StoreThread::start(store, host, storage, events)
    }

    fn silent(&self) -> Error {
        let text = format!("the strategy did not open its root in {:?}", self.deadline);
        Error::new(ErrorKind::Timeout, "kv/open", text)
    }

    /// A root of a name that this process has not used. Another process may sweep it away before it
    /// is locked; then the next name is tried.
    fn take_root(&mut self) -> Result<RootLock> {
        static OPENED: AtomicU32 = AtomicU32::new(0);
        for _ in 0..ROOT_TRIES {
            let number = OPENED.fetch_add(1, Ordering::Relaxed);
            let root = self.base.join(format!("{}-{number}", std::process::id()));
            match RootLock::take(&root) {
                Err(e) if matches!(e.kind, ErrorKind::Busy | ErrorKind::NotFound) => continue,
                taken => {
                    self.roots.push(root);
                    return taken;
                }
            }
        }
        let text = format!("no free directory under {}", self.base.display());
        Err(Error::new(ErrorKind::Busy, "kv/open", text))
    }

    /// After an instance was lost: a new one, on a root of its own. *Errors* Timeout when this has
    /// happened too often.
    pub(super) fn reopen(&mut self) -> Result<StoreThread> {
        if self.roots.len() > REOPENINGS {
            let text = format!(
                "the store was lost {} times and is not opened again: check its drive",
                self.roots.len()
            );
            return Err(Error::new(ErrorKind::Timeout, "kv/open", text));
        }
        self.open()
    }

    /// The directory that this process uses.
    pub(crate) fn root(&self) -> Option<&Path> {
        self.root.as_ref().map(RootLock::dir)
    }

    /// Removes what this process stored.
    pub(super) fn remove(mut self) {
        for root in &self.roots {
            let _gone = remove_tree(root);
        }
        drop(self.root.take());
        let _not_empty = std::fs::remove_dir(&self.base);
    }
}

/// Removes roots that processes left behind: those that nobody holds.
fn sweep(base: &Path) {
    let Ok(roots) = std::fs::read_dir(base) else { return };
    for root in roots.flatten().map(|entry| entry.path()).filter(|p| p.is_dir()) {
        if let Ok(lock) = RootLock::take(&root) {
            let _gone = remove_tree(&root);
            drop(lock);
        }
    }
}
