//! A store around any store.

use kvern_contract::*;
use std::time::Duration;

/// What a store around another does with each call; the default hands it on.
pub trait StoreHook: Send {
    /// Around [`KvStore::find`].
    fn find(&mut self, inner: &mut dyn KvStore, prompts: &[Prefix<'_>]) -> Result<Vec<Found>> {
        inner.find(prompts)
    }
    /// Around [`KvStore::begin`].
    fn begin(&mut self, inner: &mut dyn KvStore, id: SessionId, from: Origin) -> Result<()> {
        inner.begin(id, from)
    }
    /// Around [`KvStore::store`].
    fn store(&mut self, inner: &mut dyn KvStore, pages: &[PageRef<'_>]) -> Result<()> {
        inner.store(pages)
    }
    /// Around [`KvStore::load`].
    fn load(
        &mut self,
        inner: &mut dyn KvStore,
        pages: &mut [PageLoad<'_>],
        within: Duration,
    ) -> Result<()> {
        inner.load(pages, within)
    }
    /// Around [`KvStore::commit`].
    fn commit(&mut self, inner: &mut dyn KvStore, commits: &[Commit<'_>]) -> Result<()> {
        inner.commit(commits)
    }
    /// Around [`KvStore::rewind`].
    fn rewind(
        &mut self,
        inner: &mut dyn KvStore,
        session: SessionId,
        to: TokenIndex,
    ) -> Result<TokenIndex> {
        inner.rewind(session, to)
    }
    /// Around [`KvStore::flush`].
    fn flush(&mut self, inner: &mut dyn KvStore, session: SessionId) -> Result<()> {
        inner.flush(session)
    }
    /// Around [`KvStore::end`].
    fn end(&mut self, inner: &mut dyn KvStore, session: SessionId, keep: bool) -> Result<()> {
        inner.end(session, keep)
    }
    /// Around [`KvStore::maintain`].
    fn maintain(&mut self, inner: &mut dyn KvStore, budget: Duration) -> Result<()> {
        inner.maintain(budget)
    }
    /// Around [`KvStore::report`].
    fn report(&self, inner: &dyn KvStore) -> KvReport {
        inner.report()
    }
}

/// A store that passes every call through a hook.
pub struct Through<H> {
    inner: Box<dyn KvStore>,
    hook: H,
}

impl<H: StoreHook> Through<H> {
    /// `hook` around `inner`.
    pub fn new(inner: Box<dyn KvStore>, hook: H) -> Self {
        Through { inner, hook }
    }
}

impl<H: StoreHook> KvStore for Through<H> {
    fn find(&mut self, prompts: &[Prefix<'_>]) -> Result<Vec<Found>> {
        self.hook.find(&mut *self.inner, prompts)
    }
    fn begin(&mut self, session: SessionId, from: Origin) -> Result<()> {
        self.hook.begin(&mut *self.inner, session, from)
    }
    fn store(&mut self, pages: &[PageRef<'_>]) -> Result<()> {
        self.hook.store(&mut *self.inner, pages)
    }
    fn load(&mut self, pages: &mut [PageLoad<'_>], within: Duration) -> Result<()> {
        self.hook.load(&mut *self.inner, pages, within)
    }
    fn commit(&mut self, commits: &[Commit<'_>]) -> Result<()> {
        self.hook.commit(&mut *self.inner, commits)
    }
    fn rewind(&mut self, session: SessionId, to: TokenIndex) -> Result<TokenIndex> {
        self.hook.rewind(&mut *self.inner, session, to)
    }
    fn flush(&mut self, session: SessionId) -> Result<()> {
        self.hook.flush(&mut *self.inner, session)
    }
    fn end(&mut self, session: SessionId, keep: bool) -> Result<()> {
        self.hook.end(&mut *self.inner, session, keep)
    }
    fn maintain(&mut self, budget: Duration) -> Result<()> {
        self.hook.maintain(&mut *self.inner, budget)
    }
    fn report(&self) -> KvReport {
        self.hook.report(&*self.inner)
    }
}
