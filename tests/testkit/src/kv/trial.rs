//! An engine's side of a store: a root on a double, a host, and calls that check their answers.

use super::model::*;
use crate::Check;
use crate::double::{Faults, Frame, MemoryStorage, ThroughHost, Watch, Watched};
use kvern_contract::*;
use kvern_storage::{Budget, NoSink, RootHost, Storage};
use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

/// Long enough for everything that is there.
pub(super) const HOUR: Duration = Duration::from_secs(3600);
/// Where the root lies.
pub(super) const ROOT: &str = "/cache/root";

/// Why a test stopped.
#[derive(Debug)]
pub(super) enum Stop {
    /// A promise is broken.
    Wrong(String),
    /// A call failed; right where a fault was put in.
    Failed(&'static str, Error),
}

impl From<Stop> for String {
    fn from(stop: Stop) -> String {
        match stop {
            Stop::Wrong(line) => line,
            Stop::Failed(call, error) => format!("{call} fails ({:?}): {error}", error.kind),
        }
    }
}

/// What a step of a test answers.
pub(super) type Went<T = ()> = std::result::Result<T, Stop>;

/// A page that came, or the verdict that has none.
pub(super) type Loaded = std::result::Result<(PageTag, Vec<u8>), Verdict>;

/// Breaks a promise unless `holds`.
pub(super) fn need(holds: bool, line: impl FnOnce() -> String) -> Went {
    if holds { Ok(()) } else { Err(Stop::Wrong(line())) }
}

/// The answer of a call that must succeed.
pub(super) fn went<T>(call: &'static str, answer: Result<T>) -> Went<T> {
    answer.map_err(|error| Stop::Failed(call, error))
}

/// Ends a test.
pub(super) fn ended(answer: Went) -> Check {
    answer.map_err(String::from)
}

/// Whether an error is one of these kinds, and says something.
pub(super) fn refused<T>(call: &str, answer: &Result<T>, kinds: &[ErrorKind]) -> Went {
    match answer {
        Err(error) if kinds.contains(&error.kind) => {
            need(!error.message.trim().is_empty(), || format!("{call} fails without a word"))
        }
        Err(error) => {
            Err(Stop::Wrong(format!("{call} answers {:?} ({error}), not {kinds:?}", error.kind)))
        }
        Ok(_) => Err(Stop::Wrong(format!("{call} succeeds, and must answer {kinds:?}"))),
    }
}

/// What the engine asks for a policy.
pub(super) fn ask(strategy: &dyn KvStrategy) -> PolicyAsk {
    let description = strategy.describe();
    let lifecycle = match description.capabilities.persistent {
        true => Lifecycle::Persistent,
        false => Lifecycle::RuntimeScoped,
    };
    PolicyAsk {
        options: description.options,
        shape: shape(),
        accelerator: false,
        budget_bytes: 1 << 20,
        context_tokens: 8192,
        lifecycle,
    }
}

/// A root to open, for a model that is called `weights`.
pub(super) fn spec(strategy: &dyn KvStrategy) -> Went<StoreSpec> {
    let ask = ask(strategy);
    let policy = went("policy", strategy.policy(&ask))?;
    let identity = [("weights", "w1"), ("config", "c1"), ("dtype", "bf16"), ("format", "1")];
    Ok(StoreSpec {
        identity: identity.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec(),
        shape: ask.shape,
        cold: policy.cold,
        policy,
        lifecycle: ask.lifecycle,
        quota_bytes: None,
        io_align: 512,
        step_pages: STEP_PAGES,
        read_only: false,
        options: ask.options,
    })
}

/// A drive in memory, and the storage through which a root on it is opened.
#[derive(Clone)]
pub(super) struct Drive {
    pub(super) memory: Arc<MemoryStorage>,
    through: Arc<dyn Storage>,
}

impl From<Arc<MemoryStorage>> for Drive {
    fn from(memory: Arc<MemoryStorage>) -> Drive {
        Drive { through: memory.clone(), memory }
    }
}

impl From<(Arc<MemoryStorage>, Arc<Faults>)> for Drive {
    fn from((memory, through): (Arc<MemoryStorage>, Arc<Faults>)) -> Drive {
        Drive { memory, through }
    }
}

/// What a root says of a model on this drive: a store behind a network keeps what it has by
/// identity, and what one drive had must not be found on another, in this process or a later one.
fn of_its_own(spec: &StoreSpec, drive: &Drive) -> StoreSpec {
    static PROCESS: OnceLock<u128> = OnceLock::new();
    let process = PROCESS.get_or_init(|| {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        since.map_or(0, |since| since.as_nanos()) << 32 | u128::from(std::process::id())
    });
    let mut spec = spec.clone();
    if let Some((_, weights)) = spec.identity.first_mut() {
        weights.push_str(&format!("-{process:032x}-{:016x}", drive.memory.number()));
    }
    spec
}

/// A store that was opened, its root, and the host that can be taken from it.
pub(super) struct Trial {
    pub(super) storage: Arc<dyn Storage>,
    pub(super) root: Arc<RootHost>,
    pub(super) watch: Arc<Watch>,
    pub(super) store: Box<dyn KvStore>,
    pub(super) rules: Rules,
    pub(super) persistent: bool,
    /// Whether it names pages by content, and has no notes.
    pub(super) shared: bool,
    /// Frames of calls that came back; nobody writes into them any more.
    released: VecDeque<Frame>,
}

/// Released frames that are looked at.
const RELEASED: usize = 32;

impl Trial {
    /// Opens a root on a new drive in memory.
    pub(super) fn new(strategy: Box<dyn KvStrategy>) -> Went<Trial> {
        Trial::on(strategy, MemoryStorage::new())
    }

    /// Opens the root on `storage`.
    pub(super) fn on(strategy: Box<dyn KvStrategy>, storage: impl Into<Drive>) -> Went<Trial> {
        let spec = spec(&*strategy)?;
        Trial::open(strategy, &spec, storage)
    }

    /// Opens the root as `spec` says.
    pub(super) fn open(
        strategy: Box<dyn KvStrategy>,
        spec: &StoreSpec,
        storage: impl Into<Drive>,
    ) -> Went<Trial> {
        Trial::at(strategy, spec, storage, ROOT)
    }

    /// Opens another root.
    pub(super) fn at(
        mut strategy: Box<dyn KvStrategy>,
        spec: &StoreSpec,
        drive: impl Into<Drive>,
        path: &str,
    ) -> Went<Trial> {
        let drive = drive.into();
        let spec = &of_its_own(spec, &drive);
        let (storage, path) = (drive.through, PathBuf::from(path));
        let shared = strategy.describe().capabilities.shared;
        let root = RootHost::new(storage.clone(), path, Budget::new(None), Arc::new(NoSink));
        let watch = Arc::<Watch>::default();
        let host = ThroughHost::new(root.clone(), Watched(watch.clone()));
        let store = went("open", strategy.open(spec, host))?.store;
        let store =
            store.ok_or_else(|| Stop::Wrong("it declares a store and opens none".into()))?;
        let persistent = spec.lifecycle == Lifecycle::Persistent;
        let rules = Rules::of(&spec.policy, persistent);
        let released = VecDeque::new();
        Ok(Trial { storage, root, watch, store, rules, persistent, shared, released })
    }

    pub(super) fn begin(&mut self, id: SessionId, from: Origin) -> Went {
        went("begin", self.store.begin(id, from))
    }

    /// Stores pages of sessions, each with its tokens; the caller's bytes change as soon as the
    /// call returns.
    pub(super) fn store(&mut self, pages: &[(PageKey, PageTag)]) -> Result<()> {
        let mut bytes: Vec<Vec<u8>> =
            pages.iter().map(|(_, tag)| bytes_of(tag.chain, tag.layer, tag.bytes)).collect();
        let refs: Vec<PageRef<'_>> = (pages.iter().zip(&bytes))
            .map(|((key, tag), bytes)| PageRef { key: *key, tag: *tag, bytes })
            .collect();
        let answer = self.store.store(&refs);
        bytes.iter_mut().for_each(|bytes| bytes.fill(crate::double::POISON));
        answer
    }

    /// Stores these places of a session's tokens, and knows them from then on.
    pub(super) fn put(
        &mut self,
        id: SessionId,
        known: &mut Known,
        keys: &[TokenKey],
        places: &[(u32, u32)],
    ) -> Went {
        let pages: Vec<_> = (places.iter())
            .map(|&(layer, page)| (key(id, layer, page), self.rules.tag(keys, layer, page)))
            .collect();
        went("store", self.store(&pages))?;
        known.pages.extend(pages.iter().map(|(key, tag)| (place(key), *tag)));
        Ok(())
    }

    /// A session's whole pages that are not stored, and with `partial` the last.
    pub(super) fn put_all(&mut self, id: SessionId, known: &mut Known, partial: bool) -> Went {
        let mut places = known.unstored(&self.rules);
        let rest = known.tokens() % PAGE;
        if partial && rest > 0 {
            places.extend(PAGED.map(|layer| (layer, (known.tokens() / PAGE) as u32)));
        }
        let keys = known.keys.clone();
        if places.is_empty() { Ok(()) } else { self.put(id, known, &keys, &places) }
    }

    /// Commits a session's tokens from `from` on.
    pub(super) fn commit(&mut self, id: SessionId, keys: &[TokenKey], from: u64) -> Result<()> {
        let all = chains(keys);
        let commit = Commit {
            session: id,
            tokens: keys.len() as u64,
            keys: &keys[from as usize..],
            chains: &all[((from / PAGE) as usize).min(all.len())..],
            chain: chain(keys),
            note: &note(keys),
        };
        self.store.commit(&[commit])
    }

    /// A fresh session of these tokens, all committed and all stored, the partial page if the
    /// policy says so.
    pub(super) fn fill(&mut self, id: SessionId, keys: &[TokenKey]) -> Went<Known> {
        self.begin(id, Origin::Fresh)?;
        let mut known = Known::default();
        self.grow(id, &mut known, keys)?;
        Ok(known)
    }

    /// Lets a session go on to `keys` in steps of a page or two, all committed and stored.
    pub(super) fn grow(&mut self, id: SessionId, known: &mut Known, keys: &[TokenKey]) -> Went {
        while known.tokens() < keys.len() as u64 {
            let from = known.tokens();
            let to = (from + 100).min(keys.len() as u64);
            known.keys = keys[..to as usize].to_vec();
            went("commit", self.commit(id, &known.keys, from))?;
            known.slide(&self.rules);
            self.put_all(id, known, false)?;
        }
        let partial = self.rules.partial;
        self.put_all(id, known, partial)
    }

    /// One prompt looked up.
    pub(super) fn find(&mut self, keys: &[TokenKey]) -> Went<Found> {
        let chains = chains(keys);
        let found = went("find", self.store.find(&[Prefix { keys, chains: &chains }]))?;
        let [found] = <[Found; 1]>::try_from(found).map_err(|all: Vec<Found>| {
            Stop::Wrong(format!("find gives {} answers for one prompt", all.len()))
        })?;
        let (tokens, most) = (found.tokens, keys.len() as u64);
        need(tokens <= most, || format!("find answers {tokens} tokens of a prompt of {most}"))?;
        Ok(found)
    }

    /// Loads pages as the host does; the tag and bytes of each, or the verdict that has none.
    pub(super) fn load(&mut self, keys: &[PageKey], within: Duration) -> Went<Vec<Loaded>> {
        let length = longest(&self.rules);
        let mut frames: Vec<Frame> = keys.iter().map(|_| Frame::new(length)).collect();
        let mut loads: Vec<PageLoad<'_>> = (keys.iter().zip(&mut frames))
            .map(|(key, frame)| PageLoad {
                key: *key,
                into: frame.lent(),
                verdict: Verdict::Missing,
            })
            .collect();
        went("load", self.store.load(&mut loads, within))?;
        let verdicts: Vec<Verdict> = loads.iter().map(|load| load.verdict).collect();
        let mut out = Vec::with_capacity(keys.len());
        for ((key, frame), verdict) in keys.iter().zip(&frames).zip(verdicts) {
            out.push(self.answered(*key, frame, verdict)?);
        }
        let late = self.released.iter().any(|frame| !frame.untouched());
        need(!late, || "a frame of an earlier load is written after it returned".into())?;
        frames.iter_mut().for_each(Frame::release);
        self.released.extend(frames);
        self.released.drain(..self.released.len().saturating_sub(RELEASED));
        Ok(out)
    }

    fn answered(&self, key: PageKey, frame: &Frame, verdict: Verdict) -> Went<Loaded> {
        let tag = match verdict {
            Verdict::At { tag, .. } | Verdict::Filled { tag } => tag,
            other => return Ok(Err(other)),
        };
        let length = tag.bytes as usize;
        need(length <= frame.bytes().len(), || {
            format!("{key:?}: a tag of {length} bytes, longer than any form of a page")
        })?;
        if let Verdict::At { .. } = verdict {
            return Ok(Ok((tag, self.read(key, verdict)?)));
        }
        need(frame.guarded(), || format!("{key:?}: bytes behind the frame are written"))?;
        Ok(Ok((tag, frame.bytes()[..length].to_vec())))
    }

    /// What lies where an `At` says, read by the host.
    pub(super) fn read(&self, key: PageKey, verdict: Verdict) -> Went<Vec<u8>> {
        let Verdict::At { file, offset, tag } = verdict else {
            return Err(Stop::Wrong(format!("{key:?}: {verdict:?} is no place")));
        };
        let file = self.root.file_of(file).map_err(|_| {
            Stop::Wrong(format!("{key:?}: {file:?} is no file that the store opened"))
        })?;
        let mut bytes = vec![0; tag.bytes as usize];
        let mut reads = [FileRead { file, offset, into: &mut bytes, done: Ok(()) }];
        self.storage.read_batch(&mut reads, HOUR).map_err(|error| {
            Stop::Wrong(format!("{key:?}: the bytes are not where At says: {error}"))
        })?;
        Ok(bytes)
    }

    /// Loads a session's pages that are seen, and compares each with what was stored.
    pub(super) fn check(&mut self, id: SessionId, known: &Known) -> Went {
        let seen: BTreeMap<_, _> = (known.pages.iter())
            .filter(|((_, page), _)| self.rules.sees(*page, known.tokens()))
            .map(|(&(layer, page), tag)| (key(id, layer, page), *tag))
            .collect();
        let keys: Vec<PageKey> = seen.keys().copied().collect();
        for ((key, tag), got) in seen.iter().zip(self.load(&keys, HOUR)?) {
            right(*key, tag, got)?;
        }
        Ok(())
    }

    /// Looks a prompt up, begins from what was found as `id`, and loads all of it. `id` has ended
    /// again when it returns. How many tokens were found.
    pub(super) fn verified(&mut self, id: SessionId, prompt: &[TokenKey]) -> Went<u64> {
        let found = self.find(prompt)?;
        if found.tokens > 0 {
            self.begin(id, Origin::Stored { found: found.id, at: found.tokens })?;
            let known = self.known(prompt, found.tokens);
            self.check(id, &known)?;
            went("end", self.store.end(id, true))?;
        }
        Ok(found.tokens)
    }

    /// What a session has that began with the first `at` tokens of a prompt.
    pub(super) fn known(&self, prompt: &[TokenKey], at: u64) -> Known {
        let keys = prompt[..at as usize].to_vec();
        let mut known = Known { keys, ..Known::default() };
        known.pages = known.expected(&self.rules, at);
        known
    }

    /// Takes the host away and drops the store, as the engine does at its end.
    pub(super) fn close(self) {
        self.root.revoke();
    }
}

/// Whether a page came as it was stored.
pub(super) fn right(key: PageKey, tag: &PageTag, got: Loaded) -> Went {
    let (came, bytes) =
        got.map_err(|verdict| Stop::Wrong(format!("{key:?} was stored and is {verdict:?}")))?;
    need(came == *tag, || format!("{key:?} comes with {came:?}, and went with {tag:?}"))?;
    need(bytes == bytes_of(tag.chain, tag.layer, tag.bytes), || {
        format!("{key:?} comes with its tag and other bytes")
    })
}

/// The name of a page.
pub(super) fn key(session: SessionId, layer: u32, page: u32) -> PageKey {
    PageKey { session, layer: LayerIndex(layer), part: Part::Page(page) }
}

/// Layer and page of a name.
fn place(key: &PageKey) -> (u32, u32) {
    match key.part {
        Part::Page(page) => (key.layer.0, page),
        Part::State { .. } => (key.layer.0, u32::MAX),
    }
}

/// Whether what was found has the note of the last commit, which made these tokens.
pub(super) fn noted(trial: &Trial, found: &Found, last: &[TokenKey]) -> Went {
    let last = note(last);
    let none = found.tokens == 0 || (trial.shared && found.note.is_empty());
    need(none || found.note == last, || {
        format!("the note {:?} was not the last commit's {last:?}", found.note)
    })
}

/// What a commit of these tokens says in its note.
pub(super) fn note(keys: &[TokenKey]) -> Vec<u8> {
    [&b"note "[..], &(keys.len() as u64).to_le_bytes(), &chain(keys).0].concat()
}

/// A storage that fails as it is told, on a drive in memory.
pub(super) fn faulty() -> (Arc<MemoryStorage>, Arc<Faults>) {
    let memory = MemoryStorage::new();
    (memory.clone(), Faults::new(memory, crate::double::FaultPlan::default()))
}
