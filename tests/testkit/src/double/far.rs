//! A store behind a network: every call takes its time.

use super::StoreHook;
use kvern_contract::*;
use std::time::Duration;

/// A hook that waits before each call, as a network would.
#[derive(Clone, Copy, Debug)]
pub struct Far {
    /// What a call takes longer.
    pub latency: Duration,
}

impl Far {
    fn travel(&self) {
        std::thread::sleep(self.latency);
    }
}

impl StoreHook for Far {
    fn find(&mut self, inner: &mut dyn KvStore, prompts: &[Prefix<'_>]) -> Result<Vec<Found>> {
        self.travel();
        inner.find(prompts)
    }
    fn begin(&mut self, inner: &mut dyn KvStore, id: SessionId, from: Origin) -> Result<()> {
        self.travel();
        inner.begin(id, from)
    }
    fn store(&mut self, inner: &mut dyn KvStore, pages: &[PageRef<'_>]) -> Result<()> {
        self.travel();
        inner.store(pages)
    }
    fn load(
        &mut self,
        inner: &mut dyn KvStore,
        pages: &mut [PageLoad<'_>],
        within: Duration,
    ) -> Result<()> {
        self.travel();
        inner.load(pages, within)
    }
    fn commit(&mut self, inner: &mut dyn KvStore, commits: &[Commit<'_>]) -> Result<()> {
        self.travel();
        inner.commit(commits)
    }
    fn rewind(
        &mut self,
        inner: &mut dyn KvStore,
        session: SessionId,
        to: TokenIndex,
    ) -> Result<TokenIndex> {
        self.travel();
        inner.rewind(session, to)
    }
    fn flush(&mut self, inner: &mut dyn KvStore, session: SessionId) -> Result<()> {
        self.travel();
        inner.flush(session)
    }
    fn end(&mut self, inner: &mut dyn KvStore, session: SessionId, keep: bool) -> Result<()> {
        self.travel();
        inner.end(session, keep)
    }
    fn maintain(&mut self, inner: &mut dyn KvStore, budget: Duration) -> Result<()> {
        self.travel();
        inner.maintain(budget)
    }
    fn report(&self, inner: &dyn KvStore) -> KvReport {
        self.travel();
        inner.report()
    }
}
