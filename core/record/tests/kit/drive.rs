//! A small model's pages, and an engine's side of the store.

use kvern_contract::*;
use kvern_record::checksum;
use kvern_storage::double::Random;
use kvern_storage::{Budget, NoSink, RootHost, Storage};
use std::sync::Arc;
use std::time::Duration;

pub const PAGE: usize = PAGE_TOKENS as usize;
/// Layers with pages; layer 1 keeps nothing.
pub const PAGED: [u32; 2] = [0, 2];

pub fn shape() -> KvShape {
    let full = KvLayer { kind: LayerKind::Full, key_dim: 2, value_dim: 3, kv_heads: 1 };
    let none = KvLayer { kind: LayerKind::Transient, ..full };
    KvShape { layers: vec![full, none, full], hot: KvEncoding::F32 }
}
pub fn host(storage: Arc<dyn Storage>) -> HostRef {
    RootHost::new(storage, "/root".into(), Budget::new(None), Arc::new(NoSink))
}
/// How a store is opened on a drive, as its next process would.
pub type Opener = fn(Arc<dyn Storage>) -> Result<Box<dyn KvStore>>;

/// Tokens that differ from seed to seed.
pub fn tokens(seed: u64, count: usize) -> Vec<TokenKey> {
    let mut random = Random::new(seed);
    (0..count)
        .map(|_| TokenKey { id: random.below(5) as u32, reserved: 0, content: random.below(2) })
        .collect()
}
pub fn chain(keys: &[TokenKey]) -> ChainHash {
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
pub fn chains(keys: &[TokenKey]) -> Vec<ChainHash> {
    (1..=keys.len() / PAGE).map(|page| chain(&keys[..page * PAGE])).collect()
}

/// A page as the pager would hand it out.
pub struct Sealed {
    pub key: PageKey,
    pub tag: PageTag,
    pub bytes: Vec<u8>,
}
impl Sealed {
    /// Page `page` of a layer with as many rows as `keys` has; its bytes follow from tokens and
    /// layer alone.
    pub fn new(session: SessionId, layer: u32, page: usize, keys: &[TokenKey]) -> Self {
        let end = keys.len().min((page + 1) * PAGE);
        let chain = chain(&keys[..end]);
        let seed = checksum(&chain.0) ^ u64::from(layer);
        let mut random = Random::new(seed);
        let words = (0..PAGE * 5 / 2).map(|_| random.bits().to_le_bytes());
        let bytes: Vec<u8> = words.flatten().collect();
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
    pub fn page(&self) -> PageRef<'_> {
        PageRef { key: self.key, tag: self.tag, bytes: &self.bytes }
    }
}
/// Every layer's pages `from..to` of a session with these tokens.
pub fn sealed(session: SessionId, keys: &[TokenKey], pages: std::ops::Range<usize>) -> Vec<Sealed> {
    let each = |page| PAGED.map(|layer| Sealed::new(session, layer, page, keys));
    pages.flat_map(each).collect()
}
pub fn store(store: &mut dyn KvStore, pages: &[Sealed]) -> Result<()> {
    let pages: Vec<_> = pages.iter().map(Sealed::page).collect();
    store.store(&pages)
}
pub fn commit(
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
pub fn find(store: &mut dyn KvStore, keys: &[TokenKey]) -> Result<Found> {
    let chains = chains(keys);
    let mut found = store.find(&[Prefix { keys, chains: &chains }])?;
    Ok(found.remove(0))
}

/// What loading a page gave, read as the host reads it: the bytes, with the tag that came with
/// them.
pub fn load(
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
/// Tokens of a session whose pages do not come back as the tokens say, byte for byte and tag for
/// tag.
pub fn wrong_tokens(
    store: &mut dyn KvStore,
    storage: &dyn Storage,
    session: SessionId,
    keys: &[TokenKey],
) -> usize {
    let expected = sealed(session, keys, 0..keys.len().div_ceil(PAGE));
    let is_wrong = |page: &Sealed| {
        let found = load(store, storage, page.key);
        found.is_none_or(|(tag, bytes)| tag != page.tag || bytes != page.bytes)
    };
    expected.into_iter().filter(is_wrong).map(|page| page.tag.tokens as usize).sum()
}
/// Whether every page of these tokens of a session comes back as they say.
pub fn all_right(
    store: &mut dyn KvStore,
    storage: &dyn Storage,
    session: SessionId,
    keys: &[TokenKey],
) -> bool {
    wrong_tokens(store, storage, session, keys) == 0
}
/// A session with all its pages, the partial one too, stored and committed.
pub fn filled(store: &mut dyn KvStore, session: SessionId, keys: &[TokenKey]) {
    store.begin(session, Origin::Fresh).unwrap();
    self::store(store, &sealed(session, keys, 0..keys.len().div_ceil(PAGE))).unwrap();
    commit(store, session, keys, 0).unwrap();
}
