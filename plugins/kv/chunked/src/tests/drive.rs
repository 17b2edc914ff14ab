//! A small model's pages, and an engine's side of the store.

use crate::Chunked;
use kvern_contract::*;
use kvern_record::checksum;
use kvern_storage::double::Random;
use kvern_storage::{Budget, NoSink, RootHost, Storage};
use std::sync::Arc;
use std::time::Duration;

pub(super) const PAGE: usize = PAGE_TOKENS as usize;
/// Layers with pages; layer 1 keeps nothing.
pub(super) const PAGED: [u32; 2] = [0, 2];

pub(super) fn shape() -> KvShape {
    let full = KvLayer { kind: LayerKind::Full, key_dim: 2, value_dim: 3, kv_heads: 1 };
    let none = KvLayer { kind: LayerKind::Transient, ..full };
    KvShape { layers: vec![full, none, full], hot: KvEncoding::F32 }
}
pub(super) fn ask(options: Options, accelerator: bool) -> PolicyAsk {
    PolicyAsk {
        options,
        shape: shape(),
        accelerator,
        budget_bytes: 1 << 20,
        context_tokens: 4096,
        lifecycle: Lifecycle::Persistent,
    }
}
pub(super) fn spec() -> StoreSpec {
    StoreSpec {
        identity: vec![("weights".into(), "aa".into())],
        shape: shape(),
        cold: KvEncoding::F32,
        policy: Chunked.policy(&ask(Options::new(), false)).unwrap(),
        lifecycle: Lifecycle::Persistent,
        quota_bytes: None,
        io_align: 512,
        step_pages: 4,
        read_only: false,
        options: Options::new(),
    }
}
pub(super) fn host(storage: Arc<dyn Storage>) -> HostRef {
    RootHost::new(storage, "/root".into(), Budget::new(None), Arc::new(NoSink))
}
pub(super) fn open_as(spec: &StoreSpec, storage: Arc<dyn Storage>) -> Result<Box<dyn KvStore>> {
    let opened = Chunked.open(spec, host(storage))?;
    Ok(opened.store.unwrap())
}
pub(super) fn open(storage: Arc<dyn Storage>) -> Result<Box<dyn KvStore>> {
    open_as(&spec(), storage)
}

/// Tokens that differ from seed to seed.
pub(super) fn tokens(seed: u64, count: usize) -> Vec<TokenKey> {
    let mut random = Random::new(seed);
    (0..count)
        .map(|_| TokenKey { id: random.below(5) as u32, reserved: 0, content: random.below(2) })
        .collect()
}
pub(super) fn chain(keys: &[TokenKey]) -> ChainHash {
    let mut bytes = Vec::new();
    for key in keys {
        bytes.extend(key.id.to_le_bytes());
        bytes.extend(key.content.to_le_bytes());
    }
    let mut hash = [0; 16];
    hash[..8].copy_from_slice(&checksum(&bytes).to_le_bytes());
    bytes.push(1);
    hash[8..].copy_from_slice(&checksum(&bytes).to_le_bytes());
    ChainHash(hash)
}
pub(super) fn chains(keys: &[TokenKey]) -> Vec<ChainHash> {
    (1..=keys.len() / PAGE).map(|page| chain(&keys[..page * PAGE])).collect()
}

/// A page as the pager would hand it out.
pub(super) struct Sealed {
    pub(super) key: PageKey,
    pub(super) tag: PageTag,
    pub(super) bytes: Vec<u8>,
}
impl Sealed {
    /// Page `page` of a layer with as many rows as `keys` has; its bytes follow from tokens and
    /// layer alone.
    pub(super) fn new(session: SessionId, layer: u32, page: usize, keys: &[TokenKey]) -> Self {
        let end = keys.len().min((page + 1) * PAGE);
        let chain = chain(&keys[..end]);
        let seed = checksum(&chain.0) ^ u64::from(layer);
        let mut random = Random::new(seed);
        let bytes: Vec<u8> = (0..PAGE * 5 * 4).map(|_| random.bits() as u8).collect();
        let tag = PageTag {
            chain,
            crc: checksum(&bytes),
            first: (page * PAGE) as u64,
            layer,
            tokens: (end - page * PAGE) as u32,
            bytes: bytes.len() as u32,
            encoding: 0,
        };
        let key = PageKey { session, layer: LayerIndex(layer), part: Part::Page(page as u32) };
        Sealed { key, tag, bytes }
    }
    pub(super) fn page(&self) -> PageRef<'_> {
        PageRef { key: self.key, tag: self.tag, bytes: &self.bytes }
    }
}
/// Every layer's pages `from..to` of a session with these tokens.
pub(super) fn sealed(
    session: SessionId,
    keys: &[TokenKey],
    pages: std::ops::Range<usize>,
) -> Vec<Sealed> {
    let each = |page| PAGED.map(|layer| Sealed::new(session, layer, page, keys));
    pages.flat_map(each).collect()
}
pub(super) fn store(store: &mut dyn KvStore, pages: &[Sealed]) -> Result<()> {
    let pages: Vec<_> = pages.iter().map(Sealed::page).collect();
    store.store(&pages)
}
pub(super) fn commit(
    store: &mut dyn KvStore,
    session: SessionId,
    keys: &[TokenKey],
    from: usize,
) -> Result<()> {
    let all = chains(keys);
    store.commit(&[Commit {
        session,
        tokens: keys.len() as u64,
        keys: &keys[from..],
        chains: &all[from / PAGE..],
        chain: chain(keys),
        note: &(keys.len() as u64).to_le_bytes(),
    }])
}
pub(super) fn find(store: &mut dyn KvStore, keys: &[TokenKey]) -> Result<Found> {
    let chains = chains(keys);
    let mut found = store.find(&[Prefix { keys, chains: &chains }])?;
    Ok(found.remove(0))
}

/// What loading a page gave, read as the host reads it: the bytes, with the tag that came with
/// them.
pub(super) fn load(
    store: &mut dyn KvStore,
    storage: &dyn Storage,
    key: PageKey,
) -> Option<(PageTag, Vec<u8>)> {
    let mut frame = vec![0; 4096];
    let mut loads = [PageLoad { key, into: &mut frame, verdict: Verdict::Missing }];
    store.load(&mut loads, Duration::MAX).unwrap();
    let Verdict::At { file, offset, tag } = loads[0].verdict else { return None };
    let mut bytes = vec![0; tag.bytes as usize];
    let mut reads = [FileRead { file, offset, into: &mut bytes, done: Ok(()) }];
    storage.read_batch(&mut reads, Duration::MAX).ok()?;
    Some((tag, bytes))
}
/// Whether every page of the first `tokens` tokens of a session comes back as its tokens say.
pub(super) fn all_right(
    store: &mut dyn KvStore,
    storage: &dyn Storage,
    session: SessionId,
    keys: &[TokenKey],
) -> bool {
    let expected = sealed(session, keys, 0..keys.len().div_ceil(PAGE));
    expected.iter().all(|page| {
        load(store, storage, page.key)
            .is_some_and(|(tag, bytes)| tag == page.tag && bytes == page.bytes)
    })
}
