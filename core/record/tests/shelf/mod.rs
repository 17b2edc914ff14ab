//! The least store on a page table: page bytes one behind another in a file, nothing used again.

use crate::kit::drive::{host, shape};
use kvern_contract::*;
use kvern_record::{Entry, Fields, PageTable, Place, claim_identity, put_u64};
use kvern_storage::Storage;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Longest file, in bytes: no test needs more.
const END_MAX: u64 = 1 << 24;

/// An offset in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Slot(pub u64);
impl Place for Slot {
    const BYTES: usize = 8;
    fn put(&self, out: &mut Vec<u8>) {
        put_u64(out, self.0);
    }
    fn take(fields: &mut Fields<'_>) -> Result<Self> {
        Ok(Slot(fields.u64()?))
    }
}

pub struct Shelf {
    host: HostRef,
    pub table: PageTable<Slot>,
    pages: FileId,
    tail: u64,
}
impl Shelf {
    pub fn open(shape: &KvShape, read_only: bool, storage: Arc<dyn Storage>) -> Result<Self> {
        let host = host(storage);
        claim_identity(&host, &[("store".into(), "shelf".into())], read_only)?;
        let pages = host.open("pages", if read_only { Open::Read } else { Open::Write })?;
        let mut tail = 0;
        let table = PageTable::open(&host, "log", shape, read_only, |entry: &Entry<Slot>| {
            let end = entry.place.0.saturating_add(u64::from(entry.tag.bytes));
            if end > END_MAX {
                let text = format!("the log names bytes up to {end}, past {END_MAX}");
                return Err(Error::new(ErrorKind::Damaged, "kv/open", text));
            }
            tail = tail.max(end);
            Ok(())
        })?;
        Ok(Shelf { host, table, pages, tail })
    }
}
/// A shelf of the small model's shape, as its next process opens it.
pub fn open(storage: Arc<dyn Storage>) -> Result<Box<dyn KvStore>> {
    Ok(Box::new(Shelf::open(&shape(), false, storage)?))
}

impl KvStore for Shelf {
    fn find(&mut self, prompts: &[Prefix<'_>]) -> Result<Vec<Found>> {
        Ok(self.table.find(prompts))
    }
    fn begin(&mut self, session: SessionId, from: Origin) -> Result<()> {
        self.table.begin(session, from)
    }
    fn store(&mut self, pages: &[PageRef<'_>]) -> Result<()> {
        self.table.may_store(pages)?;
        for PageRef { key, tag, bytes } in pages {
            let write = FileWrite { file: self.pages, offset: self.tail, bytes };
            self.host.write_batch(&[write], Duration::MAX)?;
            self.table.insert(*key, Entry { place: Slot(self.tail), tag: *tag })?;
            self.tail += bytes.len() as u64;
        }
        Ok(())
    }
    fn load(&mut self, pages: &mut [PageLoad<'_>], _within: Duration) -> Result<()> {
        for page in pages {
            let entry = self.table.entry(page.key);
            page.verdict = entry.map_or(Verdict::Missing, |&Entry { place, tag }| Verdict::At {
                file: self.pages,
                offset: place.0,
                tag,
            });
        }
        Ok(())
    }
    fn commit(&mut self, commits: &[Commit<'_>]) -> Result<()> {
        self.table.commit(commits)
    }
    fn rewind(&mut self, session: SessionId, to: TokenIndex) -> Result<TokenIndex> {
        Ok(self.table.rewind(session, to)?.0)
    }
    fn flush(&mut self, session: SessionId) -> Result<()> {
        self.table.flush(session, &[self.pages], |_| Ok(())).map(|_| ())
    }
    fn end(&mut self, session: SessionId, keep: bool) -> Result<()> {
        self.table.end(session, keep)
    }
    fn maintain(&mut self, _budget: Duration) -> Result<()> {
        self.table.forget_found();
        Ok(())
    }
    fn report(&self) -> KvReport {
        let entries = self.table.stored_entries().chain(self.table.live_entries());
        let pages: BTreeMap<u64, u32> =
            entries.map(|(_, entry)| (entry.place.0, entry.tag.tokens)).collect();
        let persisted_tokens = pages.into_values().map(u64::from).sum();
        KvReport { persisted_tokens, ..KvReport::default() }
    }
}
