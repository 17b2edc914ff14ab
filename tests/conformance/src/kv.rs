//! kv strategies: policies that keep their word, and stores against a plain map of what was stored.

use crate::shipped::strategies;
use kvern_contract::*;
use kvern_storage::double::{MemoryStorage, Random};
use kvern_storage::{Budget, NoSink, RootHost, Storage};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const LAYERS: u32 = 3;
const HOUR: Duration = Duration::from_secs(3600);

fn shape() -> KvShape {
    let layer = KvLayer { kind: LayerKind::Full, key_dim: 16, value_dim: 8, kv_heads: 2 };
    KvShape { layers: vec![layer; LAYERS as usize], hot: KvEncoding::Bf16 }
}

fn ask(strategy: &dyn KvStrategy, budget_bytes: u64, accelerator: bool) -> PolicyAsk {
    let description = strategy.describe();
    let lifecycle = match description.capabilities.persistent {
        true => Lifecycle::Persistent,
        false => Lifecycle::RuntimeScoped,
    };
    PolicyAsk {
        options: description.options,
        shape: shape(),
        accelerator,
        budget_bytes,
        context_tokens: 8192,
        lifecycle,
    }
}

#[test]
fn a_policy_keeps_the_contract_and_the_same_facts_give_the_same_one() {
    for (name, open) in strategies() {
        let strategy = open();
        let capabilities = strategy.describe().capabilities;
        for (budget, accelerator) in [(1 << 16, false), (1 << 26, true), (1 << 40, false)] {
            let ask = ask(strategy.as_ref(), budget, accelerator);
            let policy = strategy.policy(&ask).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(strategy.policy(&ask), Ok(policy.clone()), "{name}");
            assert_eq!(policy.cold_after % u64::from(PAGE_TOKENS), 0, "{name}");
            assert!(!policy.policy_id.is_empty(), "{name}");
            if capabilities.exact {
                let (cold, window) = (policy.cold, policy.window);
                assert_eq!((cold, window), (KvEncoding::Bf16, None), "{name} says it is exact");
            }
            if policy.flush.is_some() {
                assert!(capabilities.store, "{name} spills to nowhere");
            }
        }
    }
}

/// A page as the host knows it.
#[derive(Clone, PartialEq, Debug)]
struct Page {
    tag: PageTag,
    bytes: Vec<u8>,
}

/// A history as the host knows it.
#[derive(Clone, Default)]
struct History {
    keys: Vec<TokenKey>,
    chains: Vec<ChainHash>,
    pages: BTreeMap<(u32, u32), Page>,
}

impl History {
    fn chain(&self, tokens: usize) -> ChainHash {
        let mut hash = [1u64, 2];
        for key in &self.keys[..tokens] {
            let word = u64::from(key.id) ^ key.content;
            hash[0] = (hash[0] ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
            hash[1] = (hash[1] ^ hash[0]).wrapping_mul(0xbf58_476d_1ce4_e5b9).rotate_left(31);
        }
        ChainHash(std::array::from_fn(|i| (hash[i / 8] >> (8 * (i % 8))) as u8))
    }

    /// Adds tokens; answers the pages that filled, by layer and number.
    fn grow(&mut self, tokens: usize, random: &mut Random) -> Vec<(u32, u32)> {
        let before = self.chains.len();
        for _ in 0..tokens {
            let id = random.below(50_000) as u32;
            self.keys.push(TokenKey { id, ..TokenKey::default() });
        }
        let pages = self.keys.len() / PAGE_TOKENS as usize;
        let mut filled = Vec::new();
        for page in before..pages {
            let chain = self.chain((page + 1) * PAGE_TOKENS as usize);
            self.chains.push(chain);
            for layer in 0..LAYERS {
                let length = shape().layers[0].page_bytes(KvEncoding::Bf16) as usize;
                let bytes: Vec<u8> = (0..length).map(|_| random.bits() as u8).collect();
                let tag = PageTag {
                    chain,
                    crc: random.bits(),
                    first: page as u64 * u64::from(PAGE_TOKENS),
                    layer,
                    tokens: PAGE_TOKENS,
                    bytes: length as u32,
                    encoding: encoding_word(KvEncoding::Bf16),
                };
                self.pages.insert((layer, page as u32), Page { tag, bytes });
                filled.push((layer, page as u32));
            }
        }
        filled
    }

    fn cut(&mut self, tokens: usize) {
        self.keys.truncate(tokens);
        self.chains.truncate(tokens / PAGE_TOKENS as usize);
        let pages = self.chains.len() as u32;
        self.pages.retain(|(_, page), _| *page < pages);
    }
}

/// A store, and what it must know.
struct Trial {
    name: String,
    storage: Arc<MemoryStorage>,
    host: Arc<RootHost>,
    store: Box<dyn KvStore>,
    living: BTreeMap<SessionId, History>,
    next: u64,
}

impl Trial {
    fn open(name: &str, mut strategy: Box<dyn KvStrategy>, storage: Arc<MemoryStorage>) -> Trial {
        let root = Path::new("/cache/root").to_path_buf();
        let host = RootHost::new(storage.clone(), root, Budget::new(None), Arc::new(NoSink));
        let ask = ask(strategy.as_ref(), 1 << 20, false);
        let policy = strategy.policy(&ask).expect("a policy");
        let spec = StoreSpec {
            identity: vec![("weights".into(), "w".into()), ("format".into(), "1".into())],
            shape: shape(),
            cold: policy.cold,
            policy,
            lifecycle: ask.lifecycle,
            quota_bytes: None,
            io_align: 4096,
            step_pages: 8,
            read_only: false,
            options: ask.options,
        };
        let opened = strategy.open(&spec, host.clone()).unwrap_or_else(|e| panic!("{name}: {e}"));
        let store = opened.store.unwrap_or_else(|| panic!("{name} says it has a store"));
        let living = BTreeMap::new();
        Trial { name: name.into(), storage, host, store, living, next: 1 }
    }

    fn id(&mut self) -> SessionId {
        self.next += 1;
        SessionId(self.next - 1)
    }

    fn begin(&mut self) {
        let id = self.id();
        self.store.begin(id, Origin::Fresh).expect("a fresh session");
        self.living.insert(id, History::default());
    }

    /// Grows a session, stores what filled, commits.
    fn step(&mut self, id: SessionId, tokens: usize, random: &mut Random) {
        let history = self.living.get_mut(&id).expect("it lives");
        let (keys, chains) = (history.keys.len(), history.chains.len());
        let filled = history.grow(tokens, random);
        let pages: Vec<PageRef<'_>> = filled
            .iter()
            .map(|(layer, page)| {
                let Page { tag, bytes } = &history.pages[&(*layer, *page)];
                PageRef { key: key(id, *layer, *page), tag: *tag, bytes }
            })
            .collect();
        self.store.store(&pages).expect("there is room");
        let commit = Commit {
            session: id,
            tokens: history.keys.len() as u64,
            keys: &history.keys[keys..],
            chains: &history.chains[chains..],
            chain: history.chain(history.keys.len()),
            note: b"note",
        };
        self.store.commit(&[commit]).expect("it lives");
    }

    /// Loads every page of a history under a session's name, and compares.
    fn check(&mut self, id: SessionId, history: &History) {
        let length = shape().layers[0].page_bytes(KvEncoding::Bf16) as usize;
        let mut frames = vec![vec![0xaa; length]; history.pages.len()];
        let mut loads: Vec<PageLoad<'_>> = history
            .pages
            .keys()
            .zip(&mut frames)
            .map(|((layer, page), into)| PageLoad {
                key: key(id, *layer, *page),
                into,
                verdict: Verdict::Missing,
            })
            .collect();
        self.store.load(&mut loads, HOUR).expect("loads answer in verdicts");
        let verdicts: Vec<Verdict> = loads.iter().map(|load| load.verdict).collect();
        for (((place, page), frame), verdict) in history.pages.iter().zip(&mut frames).zip(verdicts)
        {
            let tag = match verdict {
                Verdict::Filled { tag } => tag,
                Verdict::At { file, offset, tag } => {
                    let file = self.host.file_of(file).expect("a file of this root");
                    let into = &mut frame[..tag.bytes as usize];
                    let mut reads = [FileRead { file, offset, into, done: Ok(()) }];
                    self.storage.read_batch(&mut reads, HOUR).expect("the bytes are there");
                    tag
                }
                other => panic!("{}: page {place:?} of {id:?} is {other:?}", self.name),
            };
            assert_eq!(tag, page.tag, "{}: page {place:?} of {id:?}", self.name);
            assert_eq!(*frame, page.bytes, "{}: page {place:?} of {id:?}", self.name);
        }
    }

    /// Finds a prompt, begins from what was found, and compares it.
    fn reopen(&mut self, history: &History, at_least: u64) {
        let prefix = Prefix { keys: &history.keys, chains: &history.chains };
        let found = self.store.find(&[prefix]).expect("an answer").remove(0);
        let name = self.name.clone();
        assert!(found.tokens >= at_least, "{name}: {} of {at_least} tokens", found.tokens);
        assert!(found.tokens <= history.keys.len() as u64, "{name}: more than was asked for");
        if found.tokens == 0 {
            return;
        }
        let id = self.id();
        self.store.begin(id, Origin::Stored { found: found.id, at: found.tokens }).expect("found");
        let mut known = history.clone();
        known.cut(found.tokens as usize);
        self.check(id, &known);
        self.store.end(id, true).expect("it lives");
    }
}

fn key(session: SessionId, layer: u32, page: u32) -> PageKey {
    PageKey { session, layer: LayerIndex(layer), part: Part::Page(page) }
}

/// One random thing on a random session.
fn act(trial: &mut Trial, random: &mut Random) {
    let ids: Vec<SessionId> = trial.living.keys().copied().collect();
    if ids.is_empty() || (ids.len() < 5 && random.one_in(8)) {
        return trial.begin();
    }
    let id = ids[random.below(ids.len() as u64) as usize];
    match random.below(10) {
        0 => {
            let length = trial.living[&id].keys.len() as u64;
            let to = random.below(length + 1);
            let landed = trial.store.rewind(id, to).expect("it lives");
            assert_eq!(landed, to, "{}: full layers land where they are told", trial.name);
            // The host has what it needs of the page that holds `to`, and starts it anew.
            trial.living.get_mut(&id).expect("it lives").cut(to as usize);
        }
        1 => {
            let whole = trial.living[&id].chains.len() as u64;
            let at = random.below(whole + 1) * u64::from(PAGE_TOKENS);
            let child = trial.id();
            trial.store.begin(child, Origin::Fork { of: id, at }).expect("the parent lives");
            let mut history = trial.living[&id].clone();
            history.cut(at as usize);
            trial.living.insert(child, history);
        }
        2 => trial.store.flush(id).expect("there is room"),
        3 => {
            let history = trial.living.remove(&id).expect("it lives");
            trial.store.flush(id).expect("there is room");
            trial.store.end(id, true).expect("it lives");
            let whole = history.chains.len() as u64 * u64::from(PAGE_TOKENS);
            trial.reopen(&history, whole);
        }
        4 => {
            let history = trial.living[&id].clone();
            trial.check(id, &history);
        }
        5 => trial.store.maintain(Duration::from_millis(1)).expect("idle"),
        _ => trial.step(id, 1 + random.below(150) as usize, random),
    }
}

#[test]
fn a_store_gives_back_what_it_took_through_rewinds_forks_and_ends() {
    for (name, open) in strategies() {
        if !open().describe().capabilities.store {
            continue;
        }
        for seed in 0..6 {
            let mut random = Random::new(seed);
            let mut trial = Trial::open(&name, open(), MemoryStorage::new());
            for _ in 0..120 {
                act(&mut trial, &mut random);
            }
            for (id, history) in trial.living.clone() {
                trial.check(id, &history);
            }
        }
    }
}

#[test]
fn what_was_flushed_is_found_after_a_power_cut_and_is_right() {
    for (name, open) in strategies() {
        let capabilities = open().describe().capabilities;
        if !(capabilities.store && capabilities.persistent) {
            continue;
        }
        for seed in 0..6 {
            let mut random = Random::new(100 + seed);
            let storage = MemoryStorage::new();
            let mut trial = Trial::open(&name, open(), storage.clone());
            let mut flushed = Vec::new();
            for _ in 0..4 {
                trial.begin();
                let id = *trial.living.keys().next_back().expect("just begun");
                trial.step(id, 1 + random.below(400) as usize, &mut random);
                trial.store.flush(id).expect("there is room");
                flushed.push(trial.living[&id].clone());
                // Beyond the flush: it may be lost, and it may not be wrong.
                trial.step(id, random.below(200) as usize, &mut random);
            }
            let Trial { living, store, host, .. } = trial;
            host.revoke();
            drop(store);
            storage.cut(seed);
            let mut trial = Trial::open(&name, open(), storage);
            for history in &flushed {
                let whole = history.chains.len() as u64 * u64::from(PAGE_TOKENS);
                trial.reopen(history, whole);
            }
            for history in living.values() {
                trial.reopen(history, 0);
            }
        }
    }
}
