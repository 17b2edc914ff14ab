//! The store. Pages go to `chunks` as they come, the index to memory; `flush` syncs the pages and
//! then appends one record that names them.
//!
//! 1. A record names only bytes that were synced before it.
//! 2. No byte that a record names, or named, is written again while this store is open or after it
//!    is opened anew.
//! 3. A session's first record has base 0 and lists all, so that no record needs another session's.
//! 4. A rewind writes nothing: it lowers the base, and the next record cuts there.
//! 5. Bytes behind all that a record names and a living session holds are used again, from the next
//!    rewind or end on: then no `At` is being read.

use crate::found::{Answers, Source};
use crate::history::{History, Layers, Piece, Spot, end_of};
use crate::index::Index;
use crate::record::Record;
use crate::report;
use kvern_contract::*;
use kvern_record::{HEADER_BYTES, Journal, claim_identity};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Form of the files; part of the identity.
const FORMAT: &str = "chunked-manifest 1";
const CHUNKS: &str = "chunks";
const MANIFEST: &str = "manifest";

/// A session that the engine has open.
struct Live {
    /// The store's own name for it.
    number: u64,
    history: History,
    /// Tokens before this are in the last record as they are here.
    base: u64,
    /// Stored since the last record, or listed in none yet.
    unlisted: BTreeSet<Spot>,
    /// Whether the last record says all there is.
    clean: bool,
    /// The stored session that this one contains, as long as it does.
    contains: Option<u64>,
}

/// The `KvStore` of the chunked strategy.
pub(crate) struct ChunkedStore {
    host: HostRef,
    layers: Layers,
    align: u64,
    quota: Option<u64>,
    /// Bytes of the root's other files, which do not grow.
    beside: u64,
    read_only: bool,
    chunks: FileId,
    manifest: Journal,
    /// Where the next chunk may start.
    tail: u64,
    /// Bytes of `chunks` that no sync has covered.
    unsynced: u64,
    /// A sync failed: nothing is stored or flushed until the root is opened anew.
    lost: bool,
    index: Index,
    live: BTreeMap<SessionId, Live>,
    next_number: u64,
    found: Answers,
}

fn error<T>(kind: ErrorKind, operation: &str, text: impl Into<String>) -> Result<T> {
    Err(Error::new(kind, operation, text))
}

impl ChunkedStore {
    /// Opens the root and reads its manifest.
    pub(crate) fn open(spec: &StoreSpec, host: HostRef) -> Result<Self> {
        let mut identity = spec.identity.clone();
        identity.push(("store".into(), FORMAT.into()));
        claim_identity(&host, &identity, spec.read_only)?;
        let how = if spec.read_only { Open::Read } else { Open::Write };
        let chunks = host.open(CHUNKS, how)?;
        let mut index = Index::default();
        let manifest = Journal::open(&host, MANIFEST, spec.read_only, |payload| {
            index.apply(Record::decode(payload)?)
        })?;
        let files = host.list()?;
        let beside = files.iter().filter(|(name, _)| name != CHUNKS && name != MANIFEST);
        let beside = beside.map(|(_, bytes)| bytes).sum();
        let align = u64::from(spec.io_align.max(1));
        Ok(ChunkedStore {
            layers: Layers::of(&spec.shape),
            align,
            quota: spec.quota_bytes,
            beside,
            read_only: spec.read_only,
            chunks,
            manifest,
            // The index refuses numbers for which this or the next session's would overflow.
            tail: index.named_end.next_multiple_of(align),
            unsynced: 0,
            lost: false,
            next_number: index.last_number + 1,
            index,
            live: BTreeMap::new(),
            found: Answers::default(),
            host,
        })
    }

    fn live_mut(&mut self, operation: &str, session: SessionId) -> Result<&mut Live> {
        let found = self.live.get_mut(&session);
        found.ok_or_else(|| no_session(operation, session))
    }

    fn may_write(&self, operation: &str) -> Result<()> {
        if self.read_only {
            return error(ErrorKind::Unsupported, operation, "the root is open to read");
        }
        if self.lost || self.manifest.is_lost() {
            let text = "a sync failed before: nothing is kept until the root is opened anew";
            return error(ErrorKind::Io, operation, text);
        }
        Ok(())
    }

    /// Refuses what would pass the quota.
    fn has_room(&self, operation: &str, chunks_end: u64, manifest_more: u64) -> Result<()> {
        let files = [chunks_end, self.manifest.bytes(), manifest_more, self.beside];
        let total = files.into_iter().fold(0, u64::saturating_add);
        match self.quota {
            Some(quota) if total > quota => {
                let text = format!(
                    "the root would take {total} bytes and its quota is {quota}; raise the quota \
                     or use a fresh root"
                );
                error(ErrorKind::OutOfSpace, operation, text)
            }
            _ => Ok(()),
        }
    }

    /// Places for pages: those of a session and layer side by side, each chunk and page aligned.
    /// Answers them in the pages' order, and where the next chunk may start.
    fn place(&self, pages: &[PageRef<'_>]) -> Result<(Vec<Piece>, u64)> {
        let mut order: Vec<usize> = (0..pages.len()).collect();
        order.sort_by_key(|&at| (pages[at].key.session, pages[at].key.layer, pages[at].key.part));
        let empty = Piece { offset: 0, chunk: 0, tag: PageTag::default() };
        let mut pieces = vec![empty; pages.len()];
        let (mut at, mut chunk, mut before) = (self.tail, self.tail, None);
        for page in order {
            let PageRef { key, tag, bytes } = &pages[page];
            if !self.live.contains_key(&key.session) {
                return Err(no_session("kv/store", key.session));
            }
            if bytes.len() as u64 != u64::from(tag.bytes) || tag.tokens > PAGE_TOKENS {
                let text = format!(
                    "layer {} {:?}: {} bytes and a tag of {} bytes and {} tokens",
                    key.layer.0,
                    key.part,
                    bytes.len(),
                    tag.bytes,
                    tag.tokens
                );
                return error(ErrorKind::Invalid, "kv/store", text);
            }
            if before.replace((key.session, key.layer)) != Some((key.session, key.layer)) {
                chunk = at;
            }
            pieces[page] = Piece { offset: at, chunk, tag: *tag };
            at = (at + bytes.len() as u64).next_multiple_of(self.align);
        }
        Ok((pieces, at))
    }

    fn source(&self, source: Source) -> Option<&History> {
        match source {
            Source::Live(session) => self.live.get(&session).map(|live| &live.history),
            Source::Stored(number) => self.index.sessions.get(&number),
        }
    }

    /// The longest start of a prompt that is stored, and in which history.
    fn longest(&self, prompt: &[TokenKey]) -> Option<(Source, TokenIndex)> {
        let live = self.live.keys().map(|&session| Source::Live(session));
        let stored = self.index.sessions.keys().rev().map(|&number| Source::Stored(number));
        let mut best = None;
        let mut most = 0;
        for source in stored.chain(live) {
            let Some(history) = self.source(source) else { continue };
            let common = history.common(prompt);
            if common <= most {
                continue;
            }
            let tokens = history.reusable(&self.layers, common);
            if tokens > most {
                (best, most) = (Some(source), tokens);
            }
        }
        best.map(|source| (source, most))
    }

    /// Lets the next chunk start behind what records name and living sessions hold.
    fn reclaim(&mut self) {
        let held = self.live.values().flat_map(|live| live.history.pieces.values());
        let end = held.map(Piece::end).fold(self.index.named_end, u64::max);
        self.tail = self.tail.min(end.next_multiple_of(self.align));
    }

    /// The record that makes a session durable as it is, and which spots it lists.
    fn record_of(&self, live: &Live) -> (Record, Vec<Spot>) {
        let History { keys, pieces, note } = &live.history;
        let tokens = live.history.tokens();
        let inside = |spot: &&Spot| {
            pieces.get(spot).is_some_and(|piece| end_of(spot.1, &piece.tag) <= tokens)
        };
        let spots: Vec<Spot> = live.unlisted.iter().filter(inside).copied().collect();
        let listed = spots.iter().filter_map(|spot| Some((*spot, *pieces.get(spot)?))).collect();
        let record = Record::Session {
            number: live.number,
            base: live.base,
            keys: keys[usize::try_from(live.base).unwrap_or(usize::MAX).min(keys.len())..].to_vec(),
            pieces: listed,
            note: note.clone(),
        };
        (record, spots)
    }

    /// The stored session that nobody would find any more: `live`, which is ending, is durable and
    /// has all of it.
    fn contained_in(&self, live: &Live) -> Option<u64> {
        let number = live.contains?;
        let (stored, durable) =
            (self.index.sessions.get(&number)?, self.index.sessions.get(&live.number)?);
        let owned = self.live.values().any(|other| other.number == number);
        let tokens = stored.tokens();
        let gives = |history: &History| history.reusable(&self.layers, tokens);
        let has_all = durable.common(&stored.keys) == tokens && gives(durable) >= gives(stored);
        (!owned && has_all).then_some(number)
    }

    /// Takes a durable session away; durable when it returns.
    fn drop_stored(&mut self, number: u64) -> Result<()> {
        self.found.cut(Source::Stored(number), 0);
        self.index.sessions.remove(&number);
        if self.read_only {
            return Ok(());
        }
        self.manifest.append(&Record::Dropped { number }.encode()?)
    }
}

fn no_session(operation: &str, session: SessionId) -> Error {
    Error::new(ErrorKind::NotFound, operation, format!("no session {} was begun", session.0))
}

impl KvStore for ChunkedStore {
    fn find(&mut self, prompts: &[Prefix<'_>]) -> Result<Vec<Found>> {
        let mut answers = Vec::with_capacity(prompts.len());
        for prompt in prompts {
            let best = self.longest(prompt.keys);
            let id = self.found.add(best);
            let history = best.and_then(|(source, tokens)| Some((self.source(source)?, tokens)));
            answers.push(match history {
                Some((history, tokens)) => Found {
                    id,
                    tokens,
                    bytes: history.load_bytes(tokens),
                    cost: None,
                    note: history.note.clone(),
                },
                None => Found { id, tokens: 0, bytes: 0, cost: None, note: Vec::new() },
            });
        }
        self.found.forget_oldest(prompts.len());
        Ok(answers)
    }

    fn begin(&mut self, session: SessionId, from: Origin) -> Result<()> {
        if self.live.contains_key(&session) {
            let text = format!("session {} was begun already", session.0);
            return error(ErrorKind::Invalid, "kv/begin", text);
        }
        let mut contains = None;
        let history = match from {
            Origin::Fresh => History::default(),
            Origin::Stored { found, at } => {
                let known = self.found.take(found);
                let known =
                    known.and_then(|(source, most)| Some((source, most, self.source(source)?)));
                let Some((source, most, history)) = known else {
                    let text = "what was found is gone; start fresh";
                    return error(ErrorKind::NotFound, "kv/begin", text);
                };
                if at > most || (at % u64::from(PAGE_TOKENS) != 0 && at != most) {
                    let text = format!("{at} tokens of {most} found: take all, or whole pages");
                    return error(ErrorKind::Invalid, "kv/begin", text);
                }
                if let Source::Stored(number) = source
                    && at == history.tokens()
                {
                    contains = Some(number);
                }
                history.before(at, true)
            }
            Origin::Fork { of, at } => {
                let live = self.live.get(&of).ok_or_else(|| no_session("kv/begin", of))?;
                let tokens = live.history.tokens();
                if at > tokens {
                    let text = format!("a fork at {at} of a session of {tokens} tokens");
                    return error(ErrorKind::Invalid, "kv/begin", text);
                }
                live.history.before(at, false)
            }
        };
        let number = self.next_number;
        self.next_number += 1;
        let unlisted = history.pieces.keys().copied().collect();
        let live = Live { number, history, base: 0, unlisted, clean: false, contains };
        self.live.insert(session, live);
        Ok(())
    }

    fn store(&mut self, pages: &[PageRef<'_>]) -> Result<()> {
        self.may_write("kv/store")?;
        let (pieces, end) = self.place(pages)?;
        self.has_room("kv/store", end, 0)?;
        let file = self.chunks;
        let writes: Vec<FileWrite<'_>> = (pages.iter().zip(&pieces))
            .map(|(page, piece)| FileWrite { file, offset: piece.offset, bytes: page.bytes })
            .collect();
        self.host.write_batch(&writes, Duration::MAX)?;
        self.unsynced += end - self.tail;
        self.tail = end;
        for (page, piece) in pages.iter().zip(pieces) {
            let spot = (page.key.layer.0, page.key.part);
            let live = self.live_mut("kv/store", page.key.session)?;
            live.history.pieces.insert(spot, piece);
            live.unlisted.insert(spot);
            live.clean = false;
        }
        Ok(())
    }

    fn load(&mut self, pages: &mut [PageLoad<'_>], _within: Duration) -> Result<()> {
        for page in pages {
            let spot = (page.key.layer.0, page.key.part);
            let live = self.live.get(&page.key.session);
            page.verdict = match live.and_then(|live| live.history.pieces.get(&spot)) {
                Some(Piece { offset, tag, .. }) => {
                    Verdict::At { file: self.chunks, offset: *offset, tag: *tag }
                }
                None => Verdict::Missing,
            };
        }
        Ok(())
    }

    fn commit(&mut self, commits: &[Commit<'_>]) -> Result<()> {
        let mut lengths: BTreeMap<SessionId, u64> = BTreeMap::new();
        for commit in commits {
            let tokens = self.live_mut("kv/commit", commit.session)?.history.tokens();
            let length = lengths.entry(commit.session).or_insert(tokens);
            *length += commit.keys.len() as u64;
            if *length != commit.tokens {
                let text = format!(
                    "session {} has {} tokens with {} new keys, and the commit says {}",
                    commit.session.0,
                    length,
                    commit.keys.len(),
                    commit.tokens
                );
                return error(ErrorKind::Invalid, "kv/commit", text);
            }
        }
        for commit in commits {
            let live = self.live_mut("kv/commit", commit.session)?;
            live.history.keys.extend_from_slice(commit.keys);
            live.history.note.clear();
            live.history.note.extend_from_slice(commit.note);
            live.clean = false;
        }
        Ok(())
    }

    fn rewind(&mut self, session: SessionId, to: TokenIndex) -> Result<TokenIndex> {
        let layers = self.layers.clone();
        let live = self.live_mut("kv/rewind", session)?;
        let tokens = live.history.tokens();
        let mut landed = to.min(tokens);
        if !layers.recurrent.is_empty() && landed < tokens {
            landed = live.history.last_state(&layers, |at| at <= landed);
        }
        let pieces = live.history.pieces.len();
        live.history.cut(landed);
        let freed = live.history.pieces.len() < pieces;
        live.base = live.base.min(landed);
        live.unlisted.retain(|spot| live.history.pieces.contains_key(spot));
        live.clean = false;
        // From here on the session may say something else than the stored one it began from.
        if landed < tokens {
            live.contains = None;
        }
        self.found.cut(Source::Live(session), landed);
        if freed {
            self.reclaim();
        }
        Ok(landed)
    }

    fn flush(&mut self, session: SessionId) -> Result<()> {
        self.may_write("kv/flush")?;
        let live = self.live.get(&session).ok_or_else(|| no_session("kv/flush", session))?;
        let nothing =
            live.history.keys.is_empty() && !self.index.sessions.contains_key(&live.number);
        if live.clean || nothing {
            return Ok(());
        }
        let start = self.host.now();
        let (record, listed) = self.record_of(live);
        let (number, base, tokens) = (live.number, live.base, live.history.tokens());
        let payload = record.encode()?;
        self.has_room("kv/flush", self.tail, (HEADER_BYTES + payload.len()) as u64)?;
        if self.unsynced > 0 {
            if let Err(failed) = self.host.sync(&[self.chunks]) {
                self.lost = true;
                return Err(failed);
            }
            self.unsynced = 0;
        }
        // Before the append: one that fails may be found whole later.
        self.index.name(&record)?;
        self.manifest.append(&payload)?;
        self.found.cut(Source::Stored(number), base);
        self.index.apply(record)?;
        let live = self.live_mut("kv/flush", session)?;
        live.base = tokens;
        listed.iter().for_each(|spot| {
            live.unlisted.remove(spot);
        });
        live.clean = true;
        let took = self.host.now().saturating_sub(start);
        self.host.event("chunked/flush", took, payload.len() as u64);
        Ok(())
    }

    fn end(&mut self, session: SessionId, keep: bool) -> Result<()> {
        let live = self.live.remove(&session).ok_or_else(|| no_session("kv/end", session))?;
        let stored = self.index.sessions.get(&live.number).map(History::tokens);
        // What was found in the session is found in its durable form, where that is the same.
        let durable = stored.filter(|_| keep).map(|_| live.base);
        let durable = durable.map(|base| (live.number, base));
        self.found.end(session, durable);
        self.reclaim();
        match (keep, stored) {
            (false, Some(_)) => self.drop_stored(live.number),
            (true, Some(_)) => self.contained_in(&live).map_or(Ok(()), |old| self.drop_stored(old)),
            (_, None) => Ok(()),
        }
    }

    fn maintain(&mut self, _budget: Duration) -> Result<()> {
        // Nothing is moved; answers of `find` end here all the same.
        self.found.clear();
        self.reclaim();
        Ok(())
    }

    fn report(&self) -> KvReport {
        let live = self.live.values().map(|live| &live.history);
        report::report(self.index.sessions.values().chain(live), self.tail)
    }
}
impl Drop for ChunkedStore {
    fn drop(&mut self) {
        self.host.close(self.chunks);
    }
}
