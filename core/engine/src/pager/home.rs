//! Where a strategy's root is, how it is opened, and opened anew when an instance is lost.

use super::open::Opening;
use super::store::StoreThread;
use crate::events::Recorder;
use kvern_contract::{
    Error, ErrorKind, KvShape, KvStrategy, Lifecycle, PAGE_TOKENS, Result, StoreSpec,
};
use kvern_storage::{Budget, RootHost, RootLock, Storage, remove_tree};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Names of roots that are tried.
const ROOT_TRIES: u32 = 16;
/// How often a store that does not answer is opened anew.
const REOPENINGS: usize = 3;
/// Offsets of pages in a store that are multiples of this are read without a detour.
const IO_ALIGN: u32 = 4096;

/// An error that says whose it is, as those that cross the border do.
trait Of {
    fn of(self, strategy: &str) -> Error;
}

impl Of for Error {
    fn of(mut self, strategy: &str) -> Error {
        self.context.push(("plugin".into(), format!("kv strategy `{strategy}`")));
        self
    }
}

/// Where a strategy's root is, and how it is opened.
pub(crate) struct StoreHome {
    /// The strategy's.
    name: String,
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
    pub(super) fn new(from: Opening, strategy: Box<dyn KvStrategy>) -> Result<Self> {
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
            name: from.description.name,
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
    pub(super) fn open(&mut self) -> Result<StoreThread> {
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
            let text = "it says that it has a store and opened none";
            Error::new(ErrorKind::Invalid, "kv/open", text).of(&self.name)
        })?;
        let (storage, events) = (Arc::clone(&self.storage), Arc::clone(&self.events));
        StoreThread::start(store, host, storage, events)
    }

    fn silent(&self) -> Error {
        let text = format!("it did not open its root in {:?}", self.deadline);
        Error::new(ErrorKind::Timeout, "kv/open", text).of(&self.name)
    }

    /// A root of a name that this process has not used. Another process may sweep it away before it
    /// is locked; then the next name is tried.
    fn take_root(&mut self) -> Result<RootLock> {
        static OPENED: AtomicU32 = AtomicU32::new(0);
        let mut tries = 0;
        loop {
            tries += 1;
            let number = OPENED.fetch_add(1, Ordering::Relaxed);
            let root = self.base.join(format!("{}-{number}", std::process::id()));
            let taken = RootLock::take(&root);
            let swept = |e: &Error| matches!(e.kind, ErrorKind::Busy | ErrorKind::NotFound);
            if tries < ROOT_TRIES && taken.as_ref().is_err_and(swept) {
                continue;
            }
            self.roots.extend(taken.is_ok().then_some(root));
            return taken;
        }
    }

    /// After an instance was lost: a new one, on a root of its own. *Errors* Timeout when this has
    /// happened too often.
    pub(super) fn reopen(&mut self) -> Result<StoreThread> {
        if self.roots.len() > REOPENINGS {
            let text = format!(
                "its store was lost {} times and is not opened again: check its drive",
                self.roots.len()
            );
            return Err(Error::new(ErrorKind::Timeout, "kv/open", text).of(&self.name));
        }
        self.open()
    }

    /// The strategy's name.
    pub(super) fn name(&self) -> &str {
        &self.name
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
