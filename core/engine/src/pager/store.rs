//! The thread that calls a store, one call at a time, in the order in which it was asked. Frames
//! travel with a call as leases and come home with its answer; a call that never returns keeps
//! them, and nobody else can have them meanwhile.

use super::cold;
use super::queue::Queue;
use super::tag::{Damage, check};
use crate::events::{Recorder, Track, What};
use kvern_contract::{
    ChainHash, Commit, Error, ErrorKind, FileRead, KvEncoding, KvLayer, KvReport, KvStore, Origin,
    PageKey, PageLoad, PageRef, PageTag, Result, SessionId, TokenKey, Verdict, encoding_word,
};
use kvern_storage::{Lease, RootHost, Storage};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A page on its way out.
pub(crate) struct Out {
    pub key: PageKey,
    pub tag: PageTag,
    pub frame: Lease,
}

/// A page on its way in.
pub(crate) struct In {
    pub key: PageKey,
    pub want: PageTag,
    /// The form that attention reads: what was stored hot may be cold by now.
    pub read_as: KvEncoding,
    pub layer: KvLayer,
    pub frame: Lease,
}

/// What to call.
pub(crate) enum Ask {
    Begin(SessionId),
    Store {
        ticket: u64,
        pages: Vec<Out>,
    },
    Load {
        ticket: u64,
        pages: Vec<In>,
        within: Duration,
    },
    Commit {
        session: SessionId,
        tokens: u64,
        keys: Vec<TokenKey>,
        chains: Vec<ChainHash>,
        chain: ChainHash,
    },
    Rewind {
        session: SessionId,
        to: u64,
    },
    End(SessionId),
    Report,
}

/// What came of it.
pub(crate) enum Answer {
    Stored {
        ticket: u64,
        done: Result<()>,
    },
    Loaded {
        ticket: u64,
        pages: Vec<(PageKey, std::result::Result<(), Damage>)>,
    },
    Report(KvReport),
    /// A call without an answer of its own failed.
    Failed(Error),
}

/// A store, its thread and the two ways between.
pub(crate) struct StoreThread {
    queue: Arc<Queue<Ask>>,
    answer: Receiver<Answer>,
    host: Arc<RootHost>,
    thread: std::thread::JoinHandle<()>,
    doing: Doing,
}

/// What the thread called last, as `kv/load`.
type Doing = Arc<Mutex<&'static str>>;

fn said(doing: &Doing) -> std::sync::MutexGuard<'_, &'static str> {
    doing.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Ask {
    /// The call's name.
    fn operation(&self) -> &'static str {
        match self {
            Ask::Begin(_) => "kv/begin",
            Ask::Store { .. } => "kv/store",
            Ask::Load { .. } => "kv/load",
            Ask::Commit { .. } => "kv/commit",
            Ask::Rewind { .. } => "kv/rewind",
            Ask::End(_) => "kv/end",
            Ask::Report => "kv/report",
        }
    }
}

/// Why there is no answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Silence {
    /// Not yet.
    Pending,
    /// The thread has ended.
    Gone,
}

impl StoreThread {
    pub(crate) fn start(
        store: Box<dyn KvStore>,
        host: Arc<RootHost>,
        storage: Arc<dyn Storage>,
        events: Arc<Recorder>,
    ) -> Result<Self> {
        let queue = Arc::new(Queue::<Ask>::new());
        let calls = Arc::clone(&queue);
        let (reply, answer) = channel();
        let host_of = Arc::clone(&host);
        let mut worker = Worker { store, host: host_of, storage, events, panicked: false };
        let doing: Doing = Arc::new(Mutex::new("kv/begin"));
        let does = Arc::clone(&doing);
        let run = move || {
            while let Some(ask) = calls.next() {
                let (operation, began) = (ask.operation(), worker.events.clock());
                *said(&does) = operation;
                let answer = worker.call(ask);
                worker.events.span(operation, began, || What::new(Track::Store, operation));
                let heard = answer.is_none_or(|answer| reply.send(answer).is_ok());
                // A plugin that panicked answers nothing any more: its thread ends, and that shows.
                if !heard || worker.panicked {
                    break;
                }
            }
            // The store first: while its drop hangs, the way back stays open, so that nobody joins.
            if !worker.panicked {
                *said(&does) = "kv/drop";
            }
            drop(worker);
            drop(reply);
        };
        let thread = std::thread::Builder::new()
            .name("kvern-store".into())
            .spawn(run)
            .map_err(|e| Error::new(ErrorKind::Internal, "kv/open", e.to_string()))?;
        Ok(StoreThread { queue, answer, host, thread, doing })
    }
    /// Asks; an ended thread shows when its answer is waited for.
    pub(crate) fn ask(&self, ask: Ask) {
        self.queue.push(ask);
    }
    pub(crate) fn answer(&self, within: Duration) -> std::result::Result<Answer, Silence> {
        self.answer.recv_timeout(within).map_err(|e| match e {
            RecvTimeoutError::Timeout => Silence::Pending,
            RecvTimeoutError::Disconnected => Silence::Gone,
        })
    }
    /// Gives a lost instance up: every service of its host fails from now on, and it gets none of
    /// the calls that have not begun. The call that it has, which this answers, keeps the frames
    /// that it was lent.
    pub(crate) fn give_up(self) -> &'static str {
        self.host.revoke();
        self.queue.abandon();
        *said(&self.doing)
    }
    /// Lets the thread end after the calls that it has, and waits at most `within`; answers the
    /// call in which it stays.
    pub(crate) fn finish(self, within: Duration) -> Option<&'static str> {
        let StoreThread { queue, answer, host, thread, doing } = self;
        queue.close();
        let until = Instant::now() + within;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match answer.recv_timeout(left) {
                Ok(_) => continue,
                Err(RecvTimeoutError::Disconnected) => {
                    let _panicked = thread.join();
                    return None;
                }
                Err(RecvTimeoutError::Timeout) => {
                    host.revoke();
                    queue.abandon();
                    return Some(*said(&doing));
                }
            }
        }
    }
}

struct Worker {
    store: Box<dyn KvStore>,
    host: Arc<RootHost>,
    storage: Arc<dyn Storage>,
    events: Arc<Recorder>,
    panicked: bool,
}

impl Worker {
    fn call(&mut self, ask: Ask) -> Option<Answer> {
        match ask {
            Ask::Begin(session) => {
                let done = self.store.begin(session, Origin::Fresh);
                self.quiet(done)
            }
            Ask::Store { ticket, pages } => Some(self.save(ticket, &pages)),
            Ask::Load { ticket, pages, within } => Some(self.load(ticket, pages, within)),
            Ask::Commit { session, tokens, keys, chains, chain } => {
                let commit =
                    Commit { session, tokens, keys: &keys, chains: &chains, chain, note: &[] };
                let done = self.store.commit(&[commit]);
                self.quiet(done)
            }
            Ask::Rewind { session, to } => {
                let done = self.store.rewind(session, to).map(|_| ());
                self.quiet(done)
            }
            Ask::End(session) => {
                let done = self.store.end(session, false);
                self.quiet(done)
            }
            Ask::Report => Some(Answer::Report(self.store.report())),
        }
    }

    /// An answer only where there is something to say.
    fn quiet(&mut self, done: Result<()>) -> Option<Answer> {
        let error = done.err()?;
        self.panicked |= error.kind == ErrorKind::Panicked;
        Some(Answer::Failed(error))
    }

    fn save(&mut self, ticket: u64, pages: &[Out]) -> Answer {
        let bytes = |p: &Out| p.tag.bytes as usize;
        let refs: Vec<_> = pages
            .iter()
            .map(|p| PageRef { key: p.key, tag: p.tag, bytes: &p.frame[..bytes(p)] })
            .collect();
        let start = Instant::now();
        let done = self.store.store(&refs);
        self.panicked |= done.as_ref().is_err_and(|e| e.kind == ErrorKind::Panicked);
        let total = pages.iter().map(|p| bytes(p) as u64).sum();
        let what = || moved("save", pages.iter().map(|p| &p.key));
        self.events.operation("kvsave", (start, start.elapsed()), total, what);
        Answer::Stored { ticket, done }
    }

    fn load(&mut self, ticket: u64, mut pages: Vec<In>, within: Duration) -> Answer {
        let start = Instant::now();
        let verdicts = self.ask_where(&mut pages, within);
        let mut found: Vec<_> = Vec::new();
        let mut reads = Vec::new();
        for (page, verdict) in pages.iter_mut().zip(verdicts) {
            let at = verdict.and_then(|(tag, at)| match at {
                Some(_) if tag.bytes as usize > page.frame.len() => Err(Damage::Tag),
                at => Ok((tag, at)),
            });
            if let Ok((tag, Some((file, offset)))) = at {
                let into = &mut page.frame[..tag.bytes as usize];
                reads.push(FileRead { file, offset, into, done: Ok(()) });
            }
            found.push(at);
        }
        let left = within.saturating_sub(start.elapsed());
        // Each read has its own verdict; what the batch returns is the first of them again.
        let _first = self.storage.read_batch(&mut reads, left);
        let mut done = reads.into_iter().map(|r| r.done.err());
        let came: Vec<_> = found
            .into_iter()
            .map(|at| match at? {
                (tag, None) => Ok(tag),
                (tag, Some(_)) => match done.next().flatten() {
                    Some(error) => Err(Damage::Failed(error.kind)),
                    None => Ok(tag),
                },
            })
            .collect();
        drop(done);
        let bytes = pages.iter().map(|p| u64::from(p.want.bytes)).sum();
        let pages: Vec<_> =
            pages.into_iter().zip(came).map(|(page, came)| settle(page, came)).collect();
        let what = || moved("load", pages.iter().map(|(key, _)| key));
        self.events.operation("kvload", (start, start.elapsed()), bytes, what);
        Answer::Loaded { ticket, pages }
    }

    /// Where each page is: in its frame already, or at a place in a file.
    #[allow(clippy::type_complexity)] // one private answer, read once, right below its call
    fn ask_where(
        &mut self,
        pages: &mut [In],
        within: Duration,
    ) -> Vec<std::result::Result<(PageTag, Option<(kvern_contract::FileId, u64)>), Damage>> {
        let mut loads: Vec<_> = pages
            .iter_mut()
            .map(|p| PageLoad { key: p.key, into: &mut p.frame[..], verdict: Verdict::Missing })
            .collect();
        let failed = self.store.load(&mut loads, within).err();
        self.panicked |= failed.as_ref().is_some_and(|e| e.kind == ErrorKind::Panicked);
        let verdict = |load: &PageLoad<'_>| match (&failed, load.verdict) {
            (Some(error), _) => Err(Damage::Failed(error.kind)),
            (None, Verdict::At { file, offset, tag }) => match self.host.file_of(file) {
                Ok(file) => Ok((tag, Some((file, offset)))),
                Err(error) => Err(Damage::Failed(error.kind)),
            },
            (None, Verdict::Filled { tag }) => Ok((tag, None)),
            (None, Verdict::Missing) => Err(Damage::Missing),
            (None, Verdict::Failed(kind)) => Err(Damage::Failed(kind)),
        };
        loads.iter().map(verdict).collect()
    }
}

/// Pages that a store was given or gave.
fn moved<'a>(word: &str, pages: impl ExactSizeIterator<Item = &'a PageKey> + Clone) -> What {
    let layers = || pages.clone().map(|key| key.layer.0);
    let (first, last) = (layers().min().unwrap_or(0), layers().max().unwrap_or(0));
    let name = match first == last {
        true => format!("{word} layer {first} pages"),
        false => format!("{word} layer {first} to {last} pages"),
    };
    What::new(Track::Pages, name).arg("pages", pages.len() as u64)
}

/// Checks a page where it came, and gives it the form that attention reads.
fn settle(
    mut page: In,
    came: std::result::Result<PageTag, Damage>,
) -> (PageKey, std::result::Result<(), Damage>) {
    let checked = came.and_then(|tag| check(&page.want, &tag, &page.frame));
    if checked.is_ok() && page.want.encoding != encoding_word(page.read_as) {
        cold::encode_in_place(&mut page.frame, &page.layer, page.want.encoding, page.read_as);
    }
    (page.key, checked)
}
