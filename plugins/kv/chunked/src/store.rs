//! The store: where page bytes lie. Pages go to `chunks` as they come; the page table says which
//! make which session, and makes them durable.
//!
//! 1. No byte that a record names, or named, is written again while this store is open or after it
//!    is opened anew.
//! 2. Bytes behind all that a record names and a living session holds are used again, from the next
//!    rewind or end on: then no `At` is being read.

use crate::report;
use kvern_contract::*;
use kvern_record::{Entry, Fields, PageTable, Place, claim_identity, put_u64};
use std::time::Duration;

/// Form of the files; part of the identity.
const FORMAT: &str = "chunked-manifest 1";
const CHUNKS: &str = "chunks";
const MANIFEST: &str = "manifest";
/// Largest end of a page: as far as a file goes, with room to count on.
const END_MAX: u64 = i64::MAX as u64;

/// A page's place in `chunks`, and the start of the chunk that it came with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Spot {
    pub(crate) offset: u64,
    pub(crate) chunk: u64,
}
impl Place for Spot {
    const BYTES: usize = 16;
    fn put(&self, out: &mut Vec<u8>) {
        put_u64(out, self.offset);
        put_u64(out, self.chunk);
    }
    fn take(fields: &mut Fields<'_>) -> Result<Self> {
        Ok(Spot { offset: fields.u64()?, chunk: fields.u64()? })
    }
}

/// Where a page's bytes end.
fn end_of(entry: &Entry<Spot>) -> u64 {
    entry.place.offset.saturating_add(u64::from(entry.tag.bytes))
}

/// The `KvStore` of the chunked strategy.
pub(crate) struct ChunkedStore {
    host: HostRef,
    align: u64,
    room: Room,
    chunks: FileId,
    table: PageTable<Spot>,
    /// Where the next chunk may start.
    tail: u64,
    /// Bytes that `chunks` has at most: more than `tail` where sessions ended, or a process did.
    length: u64,
    /// Where the bytes end that any record names, of sessions that are gone too.
    named_end: u64,
    /// Whether `chunks` has bytes that no sync has covered.
    unsynced: bool,
}

/// What the root may take.
struct Room {
    quota: Option<u64>,
    /// Bytes of the root's other files, which do not grow.
    beside: u64,
}
impl Room {
    /// Refuses what would pass the quota: files of these lengths, whatever of them is used.
    fn check(&self, operation: &str, chunks: u64, manifest: u64) -> Result<()> {
        let total = chunks.saturating_add(manifest).saturating_add(self.beside);
        match self.quota {
            Some(quota) if total > quota => {
                let text = format!(
                    "the root would take {total} bytes and its quota is {quota}; raise the quota \
                     or use a fresh root"
                );
                Err(Error::new(ErrorKind::OutOfSpace, operation, text))
            }
            _ => Ok(()),
        }
    }
}

impl ChunkedStore {
    /// Opens the root and reads its manifest.
    pub(crate) fn open(spec: &StoreSpec, host: HostRef) -> Result<Self> {
        let mut identity = spec.identity.clone();
        identity.push(("store".into(), FORMAT.into()));
        claim_identity(&host, &identity, spec.read_only)?;
        let how = if spec.read_only { Open::Read } else { Open::Write };
        let chunks = host.open(CHUNKS, how)?;
        let mut named_end = 0;
        let table = PageTable::open(&host, MANIFEST, &spec.shape, spec.read_only, |entry| {
            let end = end_of(entry);
            if end > END_MAX {
                let text = format!("the manifest names bytes up to {end}, past {END_MAX}");
                return Err(Error::new(ErrorKind::Damaged, "kv/open", text));
            }
            named_end = named_end.max(end);
            Ok(())
        })?;
        let files = host.list()?;
        let length = files.iter().find(|(name, _)| name == CHUNKS).map_or(0, |(_, bytes)| *bytes);
        let beside = files.iter().filter(|(name, _)| name != CHUNKS && name != MANIFEST);
        let beside = beside.map(|(_, bytes)| bytes).sum();
        let align = u64::from(spec.io_align.max(1));
        Ok(ChunkedStore {
            align,
            room: Room { quota: spec.quota_bytes, beside },
            chunks,
            table,
            tail: named_end.next_multiple_of(align),
            length,
            named_end,
            unsynced: false,
            host,
        })
    }

    /// Places for pages: those of a session and layer side by side, each chunk and page aligned.
    /// Answers them in the pages' order, and where the next chunk may start.
    fn place(&self, pages: &[PageRef<'_>]) -> (Vec<Entry<Spot>>, u64) {
        let mut order: Vec<usize> = (0..pages.len()).collect();
        order.sort_by_key(|&at| (pages[at].key.session, pages[at].key.layer, pages[at].key.part));
        let nowhere = Spot { offset: 0, chunk: 0 };
        let placed = |page: &PageRef<'_>| Entry { place: nowhere, tag: page.tag };
        let mut entries: Vec<_> = pages.iter().map(placed).collect();
        let (mut at, mut chunk, mut before) = (self.tail, self.tail, None);
        for page in order {
            let PageRef { key, bytes, .. } = &pages[page];
            if before.replace((key.session, key.layer)) != Some((key.session, key.layer)) {
                chunk = at;
            }
            entries[page].place = Spot { offset: at, chunk };
            at = (at + bytes.len() as u64).next_multiple_of(self.align);
        }
        (entries, at)
    }

    /// Lets the next chunk start behind what records name and living sessions hold.
    fn reclaim(&mut self) {
        let held = self.table.live_entries().map(|(_, entry)| end_of(entry));
        let end = held.fold(self.named_end, u64::max);
        self.tail = self.tail.min(end.next_multiple_of(self.align));
    }

    /// Flushes, if the root has room for it.
    fn flush_within(&mut self, session: SessionId) -> Result<u64> {
        let written = if self.unsynced { &[self.chunks][..] } else { &[] };
        let length = self.length;
        self.table.flush(session, written, |draft| {
            self.room.check("kv/flush", length, draft.journal_bytes)?;
            self.named_end = draft.entries.iter().map(end_of).fold(self.named_end, u64::max);
            Ok(())
        })
    }

    /// Gives back what `chunks` has behind all that is in use. The next flush syncs that before its
    /// record, so that no cut leaves the old length beside it.
    fn shrink(&mut self) -> Result<()> {
        self.unsynced = true;
        self.host.truncate(self.chunks, self.tail)?;
        self.length = self.tail;
        Ok(())
    }
}

impl KvStore for ChunkedStore {
    fn find(&mut self, prompts: &[Prefix<'_>]) -> Result<Vec<Found>> {
        Ok(self.table.find(prompts))
    }

    fn begin(&mut self, session: SessionId, from: Origin) -> Result<()> {
        self.table.begin(session, from)
    }

    fn store(&mut self, pages: &[PageRef<'_>]) -> Result<()> {
        self.table.may_store(pages)?;
        let (entries, end) = self.place(pages);
        let length = entries.iter().map(end_of).fold(self.length, u64::max);
        self.room.check("kv/store", length, self.table.journal_bytes())?;
        let file = self.chunks;
        let writes: Vec<FileWrite<'_>> = (pages.iter().zip(&entries))
            .map(|(page, entry)| FileWrite { file, offset: entry.place.offset, bytes: page.bytes })
            .collect();
        // Before the writes: any of a batch that fails may be there.
        self.length = length;
        self.host.write_batch(&writes, Duration::MAX)?;
        self.unsynced |= end > self.tail;
        self.tail = end;
        let mut placed = pages.iter().zip(entries);
        placed.try_for_each(|(page, entry)| self.table.insert(page.key, entry))
    }

    fn load(&mut self, pages: &mut [PageLoad<'_>], _within: Duration) -> Result<()> {
        for page in pages {
            page.verdict = match self.table.entry(page.key) {
                Some(&Entry { place, tag }) => {
                    Verdict::At { file: self.chunks, offset: place.offset, tag }
                }
                None => Verdict::Missing,
            };
        }
        Ok(())
    }

    fn commit(&mut self, commits: &[Commit<'_>]) -> Result<()> {
        self.table.commit(commits)
    }

    fn rewind(&mut self, session: SessionId, to: TokenIndex) -> Result<TokenIndex> {
        let (landed, gone) = self.table.rewind(session, to)?;
        if gone > 0 {
            self.reclaim();
        }
        Ok(landed)
    }

    fn flush(&mut self, session: SessionId) -> Result<()> {
        let start = self.host.now();
        let bytes = match self.flush_within(session) {
            Err(full) if full.kind == ErrorKind::OutOfSpace && self.length > self.tail => {
                self.shrink()?;
                self.flush_within(session)
            }
            other => other,
        }?;
        if bytes > 0 {
            self.unsynced = false;
            let took = self.host.now().saturating_sub(start);
            self.host.event("chunked/flush", took, bytes);
        }
        Ok(())
    }

    fn end(&mut self, session: SessionId, keep: bool) -> Result<()> {
        let ended = self.table.end(session, keep);
        self.reclaim();
        ended
    }

    fn maintain(&mut self, _budget: Duration) -> Result<()> {
        // Nothing is moved; answers of `find` end here all the same.
        self.table.forget_found();
        self.reclaim();
        Ok(())
    }

    fn report(&self) -> KvReport {
        let entries = self.table.stored_entries().chain(self.table.live_entries());
        report::report(entries, self.length)
    }
}
impl Drop for ChunkedStore {
    fn drop(&mut self) {
        self.host.close(self.chunks);
    }
}
