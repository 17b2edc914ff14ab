//! Stores that break a promise of a session.

use super::*;
use std::collections::{BTreeMap, BTreeSet};

/// Bends what is found.
struct Finds(fn(&Prefix<'_>, &mut Found));
impl StoreHook for Finds {
    fn find(&mut self, inner: &mut dyn KvStore, prompts: &[Prefix<'_>]) -> Result<Vec<Found>> {
        let mut found = inner.find(prompts)?;
        prompts.iter().zip(&mut found).for_each(|(prompt, found)| (self.0)(prompt, found));
        Ok(found)
    }
}

/// Remembers what was committed, and counts it as stored.
#[derive(Default)]
struct Committed(BTreeSet<ChainHash>);
impl StoreHook for Committed {
    fn commit(&mut self, inner: &mut dyn KvStore, commits: &[Commit<'_>]) -> Result<()> {
        inner.commit(commits)?;
        self.0.extend(commits.iter().flat_map(|commit| commit.chains));
        Ok(())
    }
    fn find(&mut self, inner: &mut dyn KvStore, prompts: &[Prefix<'_>]) -> Result<Vec<Found>> {
        let mut found = inner.find(prompts)?;
        for (prompt, found) in prompts.iter().zip(&mut found) {
            let pages = prompt.chains.iter().take_while(|chain| self.0.contains(chain)).count();
            found.tokens = found.tokens.max(pages as u64 * 64);
        }
        Ok(found)
    }
}

/// What only the first layer has counts as stored.
#[derive(Default)]
struct OneLayer(BTreeSet<ChainHash>);
impl StoreHook for OneLayer {
    fn store(&mut self, inner: &mut dyn KvStore, pages: &[PageRef<'_>]) -> Result<()> {
        inner.store(pages)?;
        self.0.extend(pages.iter().map(|page| page.tag.chain));
        Ok(())
    }
    fn find(&mut self, inner: &mut dyn KvStore, prompts: &[Prefix<'_>]) -> Result<Vec<Found>> {
        let mut found = inner.find(prompts)?;
        for (prompt, found) in prompts.iter().zip(&mut found) {
            let pages = prompt.chains.iter().take_while(|chain| self.0.contains(chain)).count();
            found.tokens = found.tokens.max(pages as u64 * 64);
        }
        Ok(found)
    }
}

/// Bends where a session begins.
struct Begins(fn(SessionId, Origin) -> Origin);
impl StoreHook for Begins {
    fn begin(&mut self, inner: &mut dyn KvStore, id: SessionId, from: Origin) -> Result<()> {
        inner.begin(id, (self.0)(id, from))
    }
}

/// Answers NotFound as if all were well, or the reverse.
struct Kinds(fn(&'static str, &mut Error));
impl Kinds {
    fn bent<T>(&self, call: &'static str, answer: Result<T>) -> Result<T> {
        answer.map_err(|mut error| {
            (self.0)(call, &mut error);
            error
        })
    }
}
impl StoreHook for Kinds {
    fn commit(&mut self, inner: &mut dyn KvStore, commits: &[Commit<'_>]) -> Result<()> {
        self.bent("commit", inner.commit(commits))
    }
    fn rewind(&mut self, inner: &mut dyn KvStore, id: SessionId, to: u64) -> Result<TokenIndex> {
        self.bent("rewind", inner.rewind(id, to))
    }
    fn flush(&mut self, inner: &mut dyn KvStore, id: SessionId) -> Result<()> {
        self.bent("flush", inner.flush(id))
    }
    fn end(&mut self, inner: &mut dyn KvStore, id: SessionId, keep: bool) -> Result<()> {
        self.bent("end", inner.end(id, keep))
    }
    fn begin(&mut self, inner: &mut dyn KvStore, id: SessionId, from: Origin) -> Result<()> {
        self.bent("begin", inner.begin(id, from))
    }
}

/// A child shares what its parent stores after the fork.
#[derive(Default)]
struct Linked(BTreeMap<SessionId, SessionId>);
impl StoreHook for Linked {
    fn begin(&mut self, inner: &mut dyn KvStore, id: SessionId, from: Origin) -> Result<()> {
        if let Origin::Fork { of, .. } = from {
            self.0.insert(id, of);
        }
        inner.begin(id, from)
    }
    fn load(
        &mut self,
        inner: &mut dyn KvStore,
        pages: &mut [PageLoad<'_>],
        within: Duration,
    ) -> Result<()> {
        inner.load(pages, within)?;
        for page in pages.iter_mut().filter(|page| page.verdict == Verdict::Missing) {
            if let Some(&session) = self.0.get(&page.key.session) {
                let key = PageKey { session, ..page.key };
                let mut asked = [PageLoad { key, into: page.into, verdict: Verdict::Missing }];
                inner.load(&mut asked, within)?;
                page.verdict = asked[0].verdict;
            }
        }
        Ok(())
    }
}

/// Flushes at every commit.
struct Eager;
impl StoreHook for Eager {
    fn commit(&mut self, inner: &mut dyn KvStore, commits: &[Commit<'_>]) -> Result<()> {
        inner.commit(commits)?;
        commits.iter().try_for_each(|commit| inner.flush(commit.session))
    }
}

/// Commits reach the store with the flush, and nothing before knows of them.
#[derive(Default)]
struct Lazy(Vec<Kept>);
type Kept = (SessionId, u64, Vec<TokenKey>, Vec<ChainHash>, ChainHash, Vec<u8>);
impl StoreHook for Lazy {
    fn commit(&mut self, inner: &mut dyn KvStore, commits: &[Commit<'_>]) -> Result<()> {
        inner.commit(&[])?;
        self.0.extend(commits.iter().map(|c| {
            (c.session, c.tokens, c.keys.to_vec(), c.chains.to_vec(), c.chain, c.note.to_vec())
        }));
        Ok(())
    }
    fn flush(&mut self, inner: &mut dyn KvStore, session: SessionId) -> Result<()> {
        for (session, tokens, keys, chains, chain, note) in std::mem::take(&mut self.0) {
            let (session, tokens, chain) = (session, tokens, chain);
            let (keys, chains, note) = (&keys[..], &chains[..], &note[..]);
            inner.commit(&[Commit { session, tokens, keys, chains, chain, note }])?;
        }
        inner.flush(session)
    }
}

/// A batch stops at the first commit that is refused, and half of that one is made.
struct Halves;
impl StoreHook for Halves {
    fn commit(&mut self, inner: &mut dyn KvStore, commits: &[Commit<'_>]) -> Result<()> {
        for &Commit { session, tokens, keys, chains, chain, note } in commits {
            let answer = inner.commit(&[Commit { session, tokens, keys, chains, chain, note }]);
            if answer.is_err() {
                let before = tokens.wrapping_sub(keys.len() as u64 + 8);
                let tokens = before.wrapping_add(keys.len() as u64);
                let _ = inner.commit(&[Commit { session, tokens, keys, chains, chain, note }]);
                return answer;
            }
        }
        Ok(())
    }
}

/// A rewind that does too little.
struct Rewinds(fn(&mut dyn KvStore, SessionId, u64) -> Result<u64>);
impl StoreHook for Rewinds {
    fn rewind(&mut self, inner: &mut dyn KvStore, id: SessionId, to: u64) -> Result<TokenIndex> {
        (self.0)(inner, id, to)
    }
}

/// Ends otherwise than asked.
struct EndsAs(bool);
impl StoreHook for EndsAs {
    fn end(&mut self, inner: &mut dyn KvStore, id: SessionId, _: bool) -> Result<()> {
        inner.end(id, self.0)
    }
}

/// Bends the counters.
struct Counts(fn(&mut KvReport));
impl StoreHook for Counts {
    fn report(&self, inner: &dyn KvStore) -> KvReport {
        let mut report = inner.report();
        (self.0)(&mut report);
        report
    }
}

pub(super) fn mutants() -> Vec<Mutant<Strategy>> {
    vec![
        mutant(
            "KvStore::find",
            "Count only tokens whose pages are all stored, in every layer;",
            "one layer is enough",
            |inner| hooked(inner, OneLayer::default),
        ),
        mutant(
            "KvStore::find",
            "a commit runs ahead of them.",
            "what is committed counts as stored",
            |inner| hooked(inner, Committed::default),
        ),
        mutant(
            "KvStore::find",
            "Looks prompts up, living sessions too; an answer for each, in order.",
            "an answer for the first alone",
            |inner| {
                hooked(inner, || {
                    Finds(|prompt, found| {
                        if prompt.keys.len() == 320 {
                            found.tokens = 0;
                        }
                    })
                })
            },
        ),
        mutant(
            "Found::tokens",
            "Whole pages, or the whole stored session",
            "part of a page",
            |inner| hooked(inner, || Finds(|_, found| found.tokens -= found.tokens.min(1))),
        ),
        mutant(
            "Found::tokens",
            "With recurrent layers: where a state is stored.",
            "without a state too",
            |inner| hooked(inner, OneLayer::default),
        ),
        mutant("Found::bytes", "Bytes to load all of it.", "none", |inner| {
            hooked(inner, || Finds(|_, found| found.bytes = 0))
        }),
        mutant(
            "Found::note",
            "Of the session's last commit, though `tokens` be fewer; empty where pages are named \
             by content.",
            "the words of nobody",
            |inner| hooked(inner, || Finds(|_, found| found.note = b"nobody".to_vec())),
        ),
        mutant(
            "Found::note",
            "Of the session's last commit, though `tokens` be fewer; empty where pages are named \
             by content.",
            "it is lost",
            |inner| hooked(inner, || Finds(|_, found| found.note.clear())),
        ),
        mutant(
            "KvStore::find",
            "Session ids of an earlier process mean nothing.",
            "a rewind of any session is well",
            |inner| hooked(inner, || Rewinds(|inner, id, to| inner.rewind(id, to).or(Ok(to)))),
        ),
        mutant(
            "Origin::Fork",
            "What was stored under `of` before is the child's too; what comes later comes under \
             each key.",
            "what comes later is the child's too",
            |inner| hooked(inner, Linked::default),
        ),
        mutant(
            "Origin::Fork",
            "Shares whole pages before `at`;",
            "it shares a page less",
            |inner| {
                hooked(inner, || {
                    Begins(|_, from| match from {
                        Origin::Fork { of, at } => Origin::Fork { of, at: at.saturating_sub(64) },
                        other => other,
                    })
                })
            },
        ),
        mutant(
            "KvStore::begin",
            "NotFound when evicted since: start fresh.",
            "it begins with nothing",
            |inner| {
                hooked(inner, || {
                    Begins(|_, from| match from {
                        Origin::Stored { .. } => Origin::Fresh,
                        other => other,
                    })
                })
            },
        ),
        mutant("KvStore::commit", "Not sync.", "every commit is flushed", |inner| {
            hooked(inner, || Eager)
        }),
        mutant(
            "KvStore::commit",
            "It may buffer until `flush`.",
            "what is buffered is not answered",
            |inner| hooked(inner, Lazy::default),
        ),
        mutant(
            "KvStore::commit",
            "Makes tokens part of sessions, each whole or not at all.",
            "what is refused is made in part",
            |inner| hooked(inner, || Halves),
        ),
        mutant(
            "KvStore::commit",
            "NotFound (the session), Invalid.",
            "a gap is an error of the drive",
            |inner| {
                hooked(inner, || {
                    Kinds(|call, error| {
                        if call == "commit" {
                            error.kind = ErrorKind::Io;
                        }
                    })
                })
            },
        ),
        mutant(
            "KvStore::rewind",
            "Forgets pages that end past `to`; answers where it landed",
            "it answers, and forgets a page less",
            |inner| {
                hooked(inner, || {
                    Rewinds(|inner, id, to| {
                        inner.rewind(id, to.saturating_add(64)).map(|landed| landed.min(to))
                    })
                })
            },
        ),
        mutant("KvStore::rewind", "NotFound (the session).", "it is invalid", |inner| {
            hooked(inner, || {
                Kinds(|call, error| {
                    if call == "rewind" {
                        error.kind = ErrorKind::Invalid;
                    }
                })
            })
        }),
        mutant(
            "KvStore::rewind",
            "earlier only with recurrent layers.",
            "it lands where it is told, state or not",
            |inner| hooked(inner, || Rewinds(|inner, id, to| inner.rewind(id, to).map(|_| to))),
        ),
        mutant("KvStore::flush", "NotFound (the session);", "it is of the drive", |inner| {
            hooked(inner, || {
                Kinds(|call, error| {
                    if call == "flush" {
                        error.kind = ErrorKind::Io;
                    }
                })
            })
        }),
        mutant("KvStore::end", "NotFound, Io.", "it ends what is not there", |inner| {
            hooked(inner, || {
                Kinds(|call, error| {
                    if call == "end" {
                        error.kind = ErrorKind::Internal;
                    }
                })
            })
        }),
        mutant(
            "KvStore::end",
            "`keep` leaves what is durable for `find`.",
            "nothing is kept",
            |inner| hooked(inner, || EndsAs(false)),
        ),
        mutant(
            "KvStore::end",
            "`keep` leaves what is durable for `find`.",
            "everything is kept",
            |inner| hooked(inner, || EndsAs(true)),
        ),
        mutant(
            "KvStore",
            "a `load` sees what was stored before it, a `rewind` takes it away.",
            "a rewind takes nothing away",
            |inner| {
                hooked(inner, || Rewinds(|inner, id, to| inner.rewind(id, u64::MAX).map(|_| to)))
            },
        ),
        mutant(
            "KvReport::persisted_layer_count",
            "Layers with something stored.",
            "all layers",
            |inner| hooked(inner, || Counts(|r| r.persisted_layer_count = 3)),
        ),
        mutant(
            "KvReport::persisted_tokens",
            "Tokens stored, summed over layers.",
            "of one layer",
            |inner| hooked(inner, || Counts(|r| r.persisted_tokens /= 2)),
        ),
        mutant(
            "KvReport::persisted_artifact_count",
            "Chunk, page-table entry, extent, journal entry, ring layer: what the format counts by.",
            "none",
            |inner| hooked(inner, || Counts(|r| r.persisted_artifact_count = 0)),
        ),
        mutant(
            "KvReport::live_bytes",
            "Bytes under the root that something names.",
            "none",
            |inner| hooked(inner, || Counts(|r| r.live_bytes = 0)),
        ),
        mutant(
            "KvReport::dead_bytes",
            "Bytes under the root that nothing names any more.",
            "more than there are",
            |inner| hooked(inner, || Counts(|r| r.dead_bytes += 1 << 40)),
        ),
    ]
}
