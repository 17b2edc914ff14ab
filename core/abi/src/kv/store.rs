//! A store over the border: pages out and in.
#![allow(unsafe_code)]

use super::rows::{
    CommitRow, FoundRow, KeyRow, LoadRow, OriginRow, PageRow, PrefixRow, VerdictRow,
};
use crate::border::{Foreign, border, cross};
use crate::guard::{Handle, enter, retire};
use crate::wire::{AbiResult, duration, nanos, read_doc, write_doc};
use abi_stable::std_types::{RSlice, RSliceMut, RVec};
use kvern_contract::*;
use std::time::Duration;

border! {
    /// A store, as the host's side calls it.
    StoreTable, StoreTableRef, StoreTableFields, StoreOperations,
        &mut (dyn KvStore + 'static), enter, retire::<dyn KvStore>, "kv/drop-store";
    "kv/find" find(prompts: RSlice<'_, PrefixRow<'_>>) -> RVec<FoundRow> = |store| {
        let prompts: Vec<_> = prompts.as_slice().iter().map(PrefixRow::prefix).collect();
        Ok(store.find(&prompts)?.into_iter().map(FoundRow::out).collect())
    };
    "kv/begin" begin(session: u64, from: OriginRow) -> () = |store| {
        store.begin(SessionId(session), from.origin("kv/begin")?)
    };
    "kv/store" store(pages: RSlice<'_, PageRow<'_>>) -> () = |store| {
        let pages: Vec<_> = pages.as_slice().iter().map(PageRow::page).collect::<Result<_>>()?;
        store.store(&pages)
    };
    "kv/load" load(pages: RSliceMut<'_, LoadRow<'_>>, within: u64) -> () = |store| {
        load_rows(store, pages.into_mut_slice(), duration(within))
    };
    "kv/commit" commit(commits: RSlice<'_, CommitRow<'_>>) -> () = |store| {
        let commits: Vec<_> = commits.as_slice().iter().map(CommitRow::commit).collect();
        store.commit(&commits)
    };
    "kv/rewind" rewind(session: u64, to: u64) -> u64 = |store| {
        store.rewind(SessionId(session), to)
    };
    "kv/flush" flush(session: u64) -> () = |store| store.flush(SessionId(session));
    "kv/end" end(session: u64, keep: bool) -> () = |store| store.end(SessionId(session), keep);
    "kv/maintain" maintain(budget: u64) -> () = |store| store.maintain(duration(budget));
    "kv/report" report() -> RVec<u8> = |store| {
        write_doc("kv/report", &store.report()).map(RVec::from)
    };
}

fn load_rows(store: &mut dyn KvStore, rows: &mut [LoadRow<'_>], within: Duration) -> Result<()> {
    let mut verdicts = Vec::with_capacity(rows.len());
    let mut pages = Vec::with_capacity(rows.len());
    for LoadRow { key, into, verdict } in rows {
        let key = key.key("kv/load")?;
        let into = into.as_mut_slice();
        pages.push(PageLoad { key, into, verdict: Verdict::Missing });
        verdicts.push(verdict);
    }
    let result = store.load(&mut pages, within);
    for (page, verdict) in pages.iter().zip(verdicts) {
        *verdict = VerdictRow::out(&page.verdict);
    }
    result
}

/// A plugin's store.
pub type ForeignStore = Foreign<StoreTableRef>;

impl KvStore for ForeignStore {
    fn find(&mut self, prompts: &[Prefix<'_>]) -> Result<Vec<Found>> {
        let rows: Vec<_> = prompts.iter().map(PrefixRow::out).collect();
        let found = cross!(self, find, RSlice::from_slice(&rows))?;
        if found.len() != prompts.len() {
            let (got, asked) = (found.len(), prompts.len());
            let line = format!("the plugin found {got} answers for {asked} prompts");
            return Err(Error::new(ErrorKind::Invalid, "kv/find", line));
        }
        Ok(found.into_iter().map(FoundRow::found).collect())
    }

    fn begin(&mut self, session: SessionId, from: Origin) -> Result<()> {
        cross!(self, begin, session.0, OriginRow::out(&from))
    }

    fn store(&mut self, pages: &[PageRef<'_>]) -> Result<()> {
        let rows: Vec<_> = pages.iter().map(PageRow::out).collect();
        cross!(self, store, RSlice::from_slice(&rows))
    }

    fn load(&mut self, pages: &mut [PageLoad<'_>], within: Duration) -> Result<()> {
        let mut rows = Vec::with_capacity(pages.len());
        let mut verdicts = Vec::with_capacity(pages.len());
        for PageLoad { key, into, verdict } in pages {
            rows.push(LoadRow {
                key: KeyRow::out(key),
                into: RSliceMut::from_mut_slice(into),
                verdict: VerdictRow::out(&Verdict::Missing),
            });
            verdicts.push(verdict);
        }
        let within = nanos(within);
        let rows_out = RSliceMut::from_mut_slice(&mut rows);
        let result = cross!(self, load within within, rows_out, within);
        for (row, verdict) in rows.iter().zip(verdicts) {
            *verdict = row.verdict.verdict();
        }
        result
    }

    fn commit(&mut self, commits: &[Commit<'_>]) -> Result<()> {
        let rows: Vec<_> = commits.iter().map(CommitRow::out).collect();
        cross!(self, commit, RSlice::from_slice(&rows))
    }

    fn rewind(&mut self, session: SessionId, to: TokenIndex) -> Result<TokenIndex> {
        cross!(self, rewind, session.0, to)
    }

    fn flush(&mut self, session: SessionId) -> Result<()> {
        cross!(self, flush, session.0)
    }

    fn end(&mut self, session: SessionId, keep: bool) -> Result<()> {
        cross!(self, end, session.0, keep)
    }

    fn maintain(&mut self, budget: Duration) -> Result<()> {
        let budget = nanos(budget);
        cross!(self, maintain within budget, budget)
    }

    fn report(&self) -> KvReport {
        let doc = cross!(self, report);
        doc.and_then(|doc| read_doc("kv/report", &doc)).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::border::Object;
    use crate::guard::{Poison, expose};
    use crate::trail::Maker;

    /// Finds so many things, whatever is asked.
    struct Finds(usize);

    impl KvStore for Finds {
        fn find(&mut self, _: &[Prefix<'_>]) -> Result<Vec<Found>> {
            let found = Found { id: FoundId(1), tokens: 0, bytes: 0, cost: None, note: Vec::new() };
            Ok(vec![found; self.0])
        }
        fn begin(&mut self, _: SessionId, _: Origin) -> Result<()> {
            Ok(())
        }
        fn store(&mut self, _: &[PageRef<'_>]) -> Result<()> {
            Ok(())
        }
        fn load(&mut self, _: &mut [PageLoad<'_>], _: Duration) -> Result<()> {
            Ok(())
        }
        fn commit(&mut self, _: &[Commit<'_>]) -> Result<()> {
            Ok(())
        }
        fn rewind(&mut self, _: SessionId, to: TokenIndex) -> Result<TokenIndex> {
            Ok(to)
        }
        fn flush(&mut self, _: SessionId) -> Result<()> {
            Ok(())
        }
        fn end(&mut self, _: SessionId, _: bool) -> Result<()> {
            Ok(())
        }
        fn maintain(&mut self, _: Duration) -> Result<()> {
            Ok(())
        }
        fn report(&self) -> KvReport {
            KvReport::default()
        }
    }

    #[test]
    fn a_find_without_one_answer_a_prompt_is_refused() {
        let prompts = [Prefix { keys: &[], chains: &[] }, Prefix { keys: &[], chains: &[] }];
        for count in 0..4 {
            let inner: Box<dyn KvStore> = Box::new(Finds(count));
            let handle = expose(inner, std::sync::Arc::<Poison>::default());
            let mut foreign =
                ForeignStore::new(Object { handle, table: StoreTable::REF }, Maker::NONE);
            match (count, foreign.find(&prompts)) {
                (2, found) => assert_eq!(found.map(|found| found.len()), Ok(2)),
                (_, found) => assert_eq!(found.unwrap_err().kind, ErrorKind::Invalid),
            }
        }
    }
}
