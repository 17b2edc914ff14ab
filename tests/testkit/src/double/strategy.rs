//! A strategy around any strategy.

use kvern_contract::*;

type Describe = Box<dyn Fn(&mut KvDescription) + Send>;
type Policy = Box<dyn Fn(&dyn KvStrategy, &PolicyAsk) -> Result<KvPolicy> + Send>;
type Open = Box<dyn FnMut(&mut dyn KvStrategy, &StoreSpec, HostRef) -> Result<Opened> + Send>;

/// A strategy whose description, policy and opening may be bent.
pub struct Wrapped {
    inner: Box<dyn KvStrategy>,
    describe: Describe,
    policy: Policy,
    open: Open,
}

impl Wrapped {
    /// `inner` as it is.
    pub fn new(inner: Box<dyn KvStrategy>) -> Self {
        Wrapped {
            inner,
            describe: Box::new(|_| ()),
            policy: Box::new(|inner, ask| inner.policy(ask)),
            open: Box::new(|inner, spec, host| inner.open(spec, host)),
        }
    }

    /// Changes what it says of itself.
    pub fn with_description(mut self, bend: impl Fn(&mut KvDescription) + Send + 'static) -> Self {
        self.describe = Box::new(bend);
        self
    }

    /// Answers for the policy.
    pub fn with_policy(
        mut self,
        bend: impl Fn(&dyn KvStrategy, &PolicyAsk) -> Result<KvPolicy> + Send + 'static,
    ) -> Self {
        self.policy = Box::new(bend);
        self
    }

    /// Opens instead of it.
    pub fn with_open<F>(mut self, bend: F) -> Self
    where
        F: FnMut(&mut dyn KvStrategy, &StoreSpec, HostRef) -> Result<Opened> + Send + 'static,
    {
        self.open = Box::new(bend);
        self
    }

    /// Puts a store around every store that it opens.
    pub fn with_store(
        self,
        mut bend: impl FnMut(Box<dyn KvStore>) -> Box<dyn KvStore> + Send + 'static,
    ) -> Self {
        self.with_open(move |inner, spec, host| {
            let mut opened = inner.open(spec, host)?;
            opened.store = opened.store.map(&mut bend);
            Ok(opened)
        })
    }
}

impl KvStrategy for Wrapped {
    fn describe(&self) -> KvDescription {
        let mut description = self.inner.describe();
        (self.describe)(&mut description);
        description
    }
    fn policy(&self, ask: &PolicyAsk) -> Result<KvPolicy> {
        (self.policy)(&*self.inner, ask)
    }
    fn open(&mut self, spec: &StoreSpec, host: HostRef) -> Result<Opened> {
        (self.open)(&mut *self.inner, spec, host)
    }
}
