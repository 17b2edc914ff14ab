//! Stores and hosts that break a promise of what is durable, or of a drive that fails.

use super::*;
use std::sync::atomic::{AtomicU64, Ordering};

/// Syncs say that they did.
struct NoSync;
impl HostHook for NoSync {
    fn sync(&self, _: &dyn Host, _: &[FileId]) -> Result<()> {
        Ok(())
    }
}

/// Syncs in the wrong place: the record is written before the pages are synced.
#[derive(Default)]
struct OneSync(AtomicU64);
impl HostHook for OneSync {
    fn sync(&self, inner: &dyn Host, files: &[FileId]) -> Result<()> {
        match self.0.fetch_add(1, Ordering::Relaxed).is_multiple_of(2) {
            true => Ok(()),
            false => inner.sync(files),
        }
    }
}

/// A failed sync is tried again, and then it is well.
struct Retries;
impl HostHook for Retries {
    fn sync(&self, inner: &dyn Host, files: &[FileId]) -> Result<()> {
        inner.sync(files).or(Ok(()))
    }
}

/// Reads that fail give zeros.
struct Zeros;
impl HostHook for Zeros {
    fn read_batch(
        &self,
        inner: &dyn Host,
        reads: &mut [FileRead<'_>],
        within: Duration,
    ) -> Result<()> {
        if inner.read_batch(reads, within).is_err() {
            for read in reads {
                read.into.fill(0);
                read.done = Ok(());
            }
        }
        Ok(())
    }
}

/// Writes that fail say that they did not.
struct Writes;
impl HostHook for Writes {
    fn write_batch(
        &self,
        inner: &dyn Host,
        writes: &[FileWrite<'_>],
        within: Duration,
    ) -> Result<()> {
        inner.write_batch(writes, within).or(Ok(()))
    }
}

/// Writes have a millisecond.
struct Hasty;
impl HostHook for Hasty {
    fn write_batch(&self, inner: &dyn Host, writes: &[FileWrite<'_>], _: Duration) -> Result<()> {
        inner.write_batch(writes, Duration::from_millis(1))
    }
}

/// Bends the calls of a store that end something.
struct Calls {
    flush: fn(&mut dyn KvStore, SessionId) -> Result<()>,
    rewind: fn(&mut dyn KvStore, SessionId, u64) -> Result<u64>,
    end: fn(&mut dyn KvStore, SessionId, bool) -> Result<()>,
    maintain: fn(&mut dyn KvStore, Duration) -> Result<()>,
    find: fn(&mut dyn KvStore, &[Prefix<'_>]) -> Result<Vec<Found>>,
    store: fn(&mut dyn KvStore, &[PageRef<'_>]) -> Result<()>,
}
impl Calls {
    fn new() -> Self {
        Calls {
            flush: |inner, id| inner.flush(id),
            rewind: |inner, id, to| inner.rewind(id, to),
            end: |inner, id, keep| inner.end(id, keep),
            maintain: |inner, budget| inner.maintain(budget),
            find: |inner, prompts| inner.find(prompts),
            store: |inner, pages| inner.store(pages),
        }
    }
}
impl StoreHook for Calls {
    fn flush(&mut self, inner: &mut dyn KvStore, id: SessionId) -> Result<()> {
        (self.flush)(inner, id)
    }
    fn rewind(&mut self, inner: &mut dyn KvStore, id: SessionId, to: u64) -> Result<TokenIndex> {
        (self.rewind)(inner, id, to)
    }
    fn end(&mut self, inner: &mut dyn KvStore, id: SessionId, keep: bool) -> Result<()> {
        (self.end)(inner, id, keep)
    }
    fn maintain(&mut self, inner: &mut dyn KvStore, budget: Duration) -> Result<()> {
        (self.maintain)(inner, budget)
    }
    fn find(&mut self, inner: &mut dyn KvStore, prompts: &[Prefix<'_>]) -> Result<Vec<Found>> {
        (self.find)(inner, prompts)
    }
    fn store(&mut self, inner: &mut dyn KvStore, pages: &[PageRef<'_>]) -> Result<()> {
        (self.store)(inner, pages)
    }
}

fn internal<T>(answer: Result<T>) -> Result<T> {
    answer.map_err(|error| Error { kind: ErrorKind::Internal, ..error })
}

/// Upkeep that writes over the start of a file.
struct Eats(HostRef);
impl StoreHook for Eats {
    fn maintain(&mut self, inner: &mut dyn KvStore, budget: Duration) -> Result<()> {
        let files = self.0.list()?;
        let longest = files.iter().max_by_key(|(_, bytes)| *bytes);
        if let Some((name, bytes)) = longest {
            let part = vec![0x3c; (*bytes as usize).min(1 << 14)];
            self.0.publish(name, &part)?;
        }
        inner.maintain(budget)
    }
}

/// An instance that says well to a flush that failed.
struct Forever;
impl StoreHook for Forever {
    fn flush(&mut self, inner: &mut dyn KvStore, id: SessionId) -> Result<()> {
        inner.flush(id).or(Ok(()))
    }
}

pub(super) fn mutants() -> Vec<Mutant<Strategy>> {
    vec![
        mutant(
            "KvStore::flush",
            "Durable when it returns: the session's committed tokens and their pages, and none of \
             tokens that are not committed.",
            "nothing is synced",
            |inner| hosted(inner, || NoSync),
        ),
        mutant(
            "KvStore::flush",
            "Write page bytes, sync, then one checked record that names them, sync;",
            "every other sync is left out",
            |inner| hosted(inner, OneSync::default),
        ),
        mutant("KvStrategy::open", "Find what was flushed;", "it starts anew", |inner| {
            Box::new(Wrapped::new(inner).with_open(|inner, spec, host| {
                for (name, _) in host.list()? {
                    host.remove(&name)?;
                }
                inner.open(spec, host)
            }))
        }),
        mutant(
            "KvCapabilities::persistent",
            "A root of lifecycle [`Persistent`](super::Lifecycle::Persistent) is found again by a \
             new process.",
            "nothing is found again",
            |inner| {
                hooked(inner, || Calls {
                    find: |_, prompts| Ok(vec![Found::default(); prompts.len()]),
                    ..Calls::new()
                })
            },
        ),
        mutant(
            "KvStore::rewind",
            "Write nothing that recovery believes: until the next `flush` of the session the old \
             state survives a crash.",
            "a rewind is flushed",
            |inner| {
                hooked(inner, || Calls {
                    rewind: |inner, id, to| {
                        let landed = inner.rewind(id, to)?;
                        inner.flush(id).map(|()| landed)
                    },
                    ..Calls::new()
                })
            },
        ),
        mutant(
            "KvStore::maintain",
            "Reuse no byte that a durable record names.",
            "it writes over what is durable",
            |inner| beside(inner, Eats),
        ),
        mutant(
            "KvStore::flush",
            "Io: after a failed sync no `store` or `flush` succeeds until the root is opened anew.",
            "a failed sync is well",
            |inner| hosted(inner, || Retries),
        ),
        mutant(
            "KvStore::store",
            "OutOfSpace, Io: none of them counts as stored.",
            "a failed write is well",
            |inner| hosted(inner, || Writes),
        ),
        mutant("KvStore::flush", "OutOfSpace; Io", "it is internal", |inner| {
            hooked(inner, || Calls { flush: |inner, id| internal(inner.flush(id)), ..Calls::new() })
        }),
        mutant("Verdict::Failed", "Here, and not readable.", "zeros are made up", |inner| {
            hosted(inner, || Zeros)
        }),
        mutant("KvStore::maintain", "OutOfSpace, Io.", "it is internal", |inner| {
            hooked(inner, || Calls {
                maintain: |inner, budget| {
                    inner.maintain(budget)?;
                    Err(Error::new(ErrorKind::Internal, "kv/maintain", "no drive to compact"))
                },
                ..Calls::new()
            })
        }),
        mutant(
            "KvStrategy::open",
            "An instance that does not answer is given up: from then on its `HostRef` answers \
             Timeout to everything, and the root may be opened again while the lost call is still \
             out.",
            "a flush is well without a host",
            |inner| hooked(inner, || Forever),
        ),
        mutant(
            "KvStore",
            "It may block on host storage, not on the engine.",
            "a write that takes its time has failed",
            |inner| hosted(inner, || Hasty),
        ),
        mutant(
            "ErrorKind::Invalid",
            "The caller broke a guarantee, or an option is out of range.",
            "a page without a session is a panic",
            |inner| {
                hooked(inner, || Calls {
                    store: |inner, pages| {
                        let answer = inner.store(pages);
                        assert!(answer.is_ok() || pages.len() > 1, "a page that is wrong");
                        answer
                    },
                    ..Calls::new()
                })
            },
        ),
    ]
}
