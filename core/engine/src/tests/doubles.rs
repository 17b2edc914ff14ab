//! Doubles: a strategy whose store keeps pages in memory and fails as told, and a policy that keeps
//! the layers it is told to.

use kvern_contract::{
    Commit, Error, ErrorKind, Found, HostRef, KvCapabilities, KvDescription, KvEncoding, KvPolicy,
    KvReport, KvStore, KvStrategy, KvWindow, OffloadDescription, OffloadPolicy, Opened, Options,
    Origin, PageKey, PageLoad, PageRef, PageTag, Placed, Placement, PlanAsk, PolicyAsk, Prefix,
    Result, SessionId, StoreSpec, Threshold, Tier, TokenIndex, Unit, Verdict,
};
use kvern_testkit::double::{Far, Lying, Through};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What goes wrong with a page that is loaded.
pub(super) use kvern_testkit::double::Lie as Fault;

/// A strategy of these tests.
#[derive(Clone)]
pub(super) struct Keep {
    pub has_store: bool,
    pub cold: Option<(KvEncoding, u64)>,
    pub window: Option<KvWindow>,
    /// Told at the n-th page that is loaded, counted from 1.
    pub faults: Vec<(u64, Fault)>,
    /// What every call takes longer.
    pub latency: Duration,
    /// Whether `store` says that there is no space, from the n-th page on.
    pub full_after: Option<u64>,
    pub loads: Arc<Mutex<u64>>,
    /// How often it can be opened.
    pub opens: Arc<Mutex<u32>>,
}

impl Keep {
    pub(super) fn resident() -> Self {
        Keep {
            has_store: false,
            cold: None,
            window: None,
            faults: Vec::new(),
            latency: Duration::ZERO,
            full_after: None,
            loads: Arc::default(),
            opens: Arc::new(Mutex::new(u32::MAX)),
        }
    }
    pub(super) fn store() -> Self {
        Keep { has_store: true, ..Keep::resident() }
    }
    pub(super) fn with(faults: &[(u64, Fault)]) -> Self {
        Keep { faults: faults.to_vec(), ..Keep::store() }
    }
}

impl KvStrategy for Keep {
    fn describe(&self) -> KvDescription {
        let word = |s: &str| s.to_string();
        KvDescription {
            name: word("test-keep"),
            version: word("0"),
            persistence_format: word("memory"),
            residency_mode: word("buffered-tail"),
            window_policy: word("full-history"),
            cold_tier_encoding: word("full-precision"),
            cold_store_format: None,
            eviction_policy: None,
            capabilities: KvCapabilities {
                exact: self.cold.is_none() && self.window.is_none(),
                store: self.has_store,
                ..KvCapabilities::default()
            },
            options: Options::new(),
        }
    }
    fn policy(&self, ask: &PolicyAsk) -> Result<KvPolicy> {
        let (cold, cold_after) = self.cold.unwrap_or((ask.shape.hot, 0));
        let flush = Threshold { tokens: Some(128), bytes: None };
        Ok(KvPolicy {
            policy_id: "test".into(),
            flush: self.has_store.then_some(flush),
            retain: Threshold { tokens: Some(cold_after), bytes: None },
            window: self.window,
            keep_rows: None,
            cold,
            cold_after,
            store_partial: false,
        })
    }
    fn open(&mut self, _: &StoreSpec, _: HostRef) -> Result<Opened> {
        let mut opens = self.opens.lock().expect("opens");
        if *opens == 0 {
            return Err(Error::new(ErrorKind::Io, "kv/open", "the double does not open"));
        }
        *opens -= 1;
        let store: Option<Box<dyn KvStore>> = match self.has_store {
            true => {
                let lies = Lying::new(&self.faults).counting(self.loads.clone());
                let lying = Box::new(Through::new(Box::new(Memory::new(self)), lies));
                match self.latency {
                    Duration::ZERO => Some(lying),
                    latency => Some(Box::new(Through::new(lying, Far { latency }))),
                }
            }
            false => None,
        };
        Ok(Opened { store, attentive: None, codec: None })
    }
}

struct Memory {
    pages: BTreeMap<PageKey, (PageTag, Vec<u8>)>,
    stored: u64,
    full_after: Option<u64>,
}

impl Memory {
    fn new(keep: &Keep) -> Self {
        Memory { pages: BTreeMap::new(), stored: 0, full_after: keep.full_after }
    }
}

impl KvStore for Memory {
    fn find(&mut self, prompts: &[Prefix<'_>]) -> Result<Vec<Found>> {
        Ok(vec![Found::default(); prompts.len()])
    }
    fn begin(&mut self, _: SessionId, _: Origin) -> Result<()> {
        Ok(())
    }
    fn store(&mut self, pages: &[PageRef<'_>]) -> Result<()> {
        if self.full_after.is_some_and(|most| self.stored >= most) {
            let text = "the double has no space left";
            return Err(Error::new(ErrorKind::OutOfSpace, "kv/store", text));
        }
        for page in pages {
            self.stored += 1;
            self.pages.insert(page.key, (page.tag, page.bytes.to_vec()));
        }
        Ok(())
    }
    fn load(&mut self, pages: &mut [PageLoad<'_>], _: Duration) -> Result<()> {
        for page in pages {
            let Some((tag, bytes)) = self.pages.get(&page.key) else { continue };
            page.into[..bytes.len()].copy_from_slice(bytes);
            page.verdict = Verdict::Filled { tag: *tag };
        }
        Ok(())
    }
    fn commit(&mut self, _: &[Commit<'_>]) -> Result<()> {
        Ok(())
    }
    fn rewind(&mut self, session: SessionId, to: TokenIndex) -> Result<TokenIndex> {
        self.pages.retain(|k, (tag, _)| k.session != session || tag.first + 64 <= to);
        Ok(to)
    }
    fn flush(&mut self, _: SessionId) -> Result<()> {
        Ok(())
    }
    fn end(&mut self, session: SessionId, _: bool) -> Result<()> {
        self.pages.retain(|k, _| k.session != session);
        Ok(())
    }
    fn maintain(&mut self, _: Duration) -> Result<()> {
        Ok(())
    }
    fn report(&self) -> KvReport {
        KvReport { persisted_artifact_count: self.pages.len() as u64, ..KvReport::default() }
    }
}

/// A policy that keeps the layers it is told to, and the head if told to.
pub(super) struct Policy {
    pub layers: Option<Vec<u32>>,
    pub head: bool,
    pub read_ahead: u32,
    pub seen: Arc<Mutex<Vec<Unit>>>,
    /// Keeps what fits, in the order of the units, but for the head where it is not kept.
    pub by_budget: bool,
}

impl Policy {
    pub(super) fn everything() -> Self {
        Policy { layers: None, head: true, read_ahead: 1, seen: Arc::default(), by_budget: false }
    }
}

impl OffloadPolicy for Policy {
    fn describe(&self) -> OffloadDescription {
        OffloadDescription {
            name: "test-policy".into(),
            version: "0".into(),
            options: Options::new(),
            observes: false,
        }
    }
    fn plan(&self, ask: &PlanAsk) -> Result<Placement> {
        *self.seen.lock().expect("units") = ask.units.clone();
        let host = ask.tiers.iter().find(|t| t.tier == Tier::Host);
        let mut room = host.map_or(0, |t| t.budget_bytes);
        let mut place = |unit: &Unit| {
            let stays = match (unit.layer, &self.layers) {
                _ if self.by_budget => {
                    let fits = (self.head || unit.layer.is_some()) && unit.bytes <= room;
                    room -= if fits { unit.bytes } else { 0 };
                    fits
                }
                (None, _) => self.head,
                (Some(_), None) => true,
                (Some(layer), Some(layers)) => layers.contains(&layer.0),
            };
            let tier = if stays { Tier::Host } else { Tier::Disk };
            Placed { unit: unit.id, tier, reason: "told so".into() }
        };
        Ok(Placement {
            units: ask.units.iter().map(&mut place).collect(),
            expert_cache_bytes: 0,
            read_ahead_units: self.read_ahead,
        })
    }
}
