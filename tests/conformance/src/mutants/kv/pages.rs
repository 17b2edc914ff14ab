//! Stores that break a promise of a page.

use super::*;
use std::collections::BTreeMap;

/// Bends verdicts after the load.
struct Loads(fn(&mut PageLoad<'_>));
impl StoreHook for Loads {
    fn load(
        &mut self,
        inner: &mut dyn KvStore,
        pages: &mut [PageLoad<'_>],
        within: Duration,
    ) -> Result<()> {
        inner.load(pages, within)?;
        pages.iter_mut().for_each(self.0);
        Ok(())
    }
}

/// Drops pages on their way in.
struct Stores(fn(&PageRef<'_>) -> bool);
impl StoreHook for Stores {
    fn store(&mut self, inner: &mut dyn KvStore, pages: &[PageRef<'_>]) -> Result<()> {
        let keep: Vec<PageRef<'_>> = pages.iter().filter(|page| (self.0)(page)).map(same).collect();
        inner.store(&keep)
    }
}

fn same<'a>(page: &PageRef<'a>) -> PageRef<'a> {
    PageRef { key: page.key, tag: page.tag, bytes: page.bytes }
}

/// Keeps pages, and hands them over at the next other call: what the caller lent is looked at
/// late, as far as memory safety allows it, by way of a copy of its length.
#[derive(Default)]
struct Late(Vec<(PageKey, PageTag, Vec<u8>)>);
impl Late {
    fn settle(&mut self, inner: &mut dyn KvStore) -> Result<()> {
        let pages = std::mem::take(&mut self.0);
        let refs: Vec<PageRef<'_>> =
            pages.iter().map(|(key, tag, bytes)| PageRef { key: *key, tag: *tag, bytes }).collect();
        inner.store(&refs)
    }
}
impl StoreHook for Late {
    fn store(&mut self, _: &mut dyn KvStore, pages: &[PageRef<'_>]) -> Result<()> {
        let poisoned = |page: &PageRef<'_>| {
            (page.key, page.tag, vec![kvern_testkit::double::POISON; page.bytes.len()])
        };
        self.0.extend(pages.iter().map(poisoned));
        Ok(())
    }
    fn load(
        &mut self,
        inner: &mut dyn KvStore,
        pages: &mut [PageLoad<'_>],
        within: Duration,
    ) -> Result<()> {
        self.settle(inner)?;
        inner.load(pages, within)
    }
}

/// Pages are there from the next commit on.
#[derive(Default)]
struct Hidden(Vec<PageKey>);
impl StoreHook for Hidden {
    fn store(&mut self, inner: &mut dyn KvStore, pages: &[PageRef<'_>]) -> Result<()> {
        self.0.extend(pages.iter().map(|page| page.key));
        inner.store(pages)
    }
    fn commit(&mut self, inner: &mut dyn KvStore, commits: &[Commit<'_>]) -> Result<()> {
        self.0.clear();
        inner.commit(commits)
    }
    fn load(
        &mut self,
        inner: &mut dyn KvStore,
        pages: &mut [PageLoad<'_>],
        within: Duration,
    ) -> Result<()> {
        inner.load(pages, within)?;
        let hidden = pages.iter_mut().filter(|page| self.0.contains(&page.key));
        hidden.for_each(|page| page.verdict = Verdict::Missing);
        Ok(())
    }
}

/// Answers the first page that a key had.
#[derive(Default)]
struct First(BTreeMap<PageKey, (PageTag, Vec<u8>)>);
impl StoreHook for First {
    fn store(&mut self, inner: &mut dyn KvStore, pages: &[PageRef<'_>]) -> Result<()> {
        inner.store(pages)?;
        for page in pages {
            self.0.entry(page.key).or_insert((page.tag, page.bytes.to_vec()));
        }
        Ok(())
    }
    fn load(
        &mut self,
        inner: &mut dyn KvStore,
        pages: &mut [PageLoad<'_>],
        within: Duration,
    ) -> Result<()> {
        inner.load(pages, within)?;
        for page in pages {
            if let (Some((tag, bytes)), false) =
                (self.0.get(&page.key), page.verdict == Verdict::Missing)
            {
                page.into[..bytes.len()].copy_from_slice(bytes);
                page.verdict = Verdict::Filled { tag: *tag };
            }
        }
        Ok(())
    }
}

/// At every sync, the first bytes of the first file are written over.
struct Overwrites(std::sync::Mutex<Option<FileId>>);
impl HostHook for Overwrites {
    fn open(&self, inner: &dyn Host, name: &str, how: Open) -> Result<FileId> {
        let file = inner.open(name, how)?;
        let mut first = self.0.lock().expect("the first file");
        first.get_or_insert(file);
        Ok(file)
    }
    fn sync(&self, inner: &dyn Host, files: &[FileId]) -> Result<()> {
        let file = *self.0.lock().expect("the first file");
        if let Some(file) = file {
            let bytes = &[0x3c; 64];
            inner.write_batch(&[FileWrite { file, offset: 0, bytes }], Duration::MAX)?;
        }
        inner.sync(files)
    }
}

/// Loads page by page, each by a read of its own.
struct OneByOne(HostRef);
impl StoreHook for OneByOne {
    fn load(
        &mut self,
        inner: &mut dyn KvStore,
        pages: &mut [PageLoad<'_>],
        within: Duration,
    ) -> Result<()> {
        inner.load(pages, within)?;
        for page in pages {
            if let Verdict::At { file, offset, tag } = page.verdict {
                let into = &mut page.into[..tag.bytes as usize];
                self.0.read_batch(&mut [FileRead { file, offset, into, done: Ok(()) }], within)?;
                page.verdict = Verdict::Filled { tag };
            }
        }
        Ok(())
    }
}

/// Fills a page's frame with what it should not have, as a store with a copy would.
fn filled(page: &mut PageLoad<'_>) {
    if let Verdict::At { tag, .. } = page.verdict {
        page.verdict = Verdict::Filled { tag };
    }
}

pub(super) fn mutants() -> Vec<Mutant<Strategy>> {
    vec![
        mutant(
            "KvStore::store",
            "Copy or write before it returns;",
            "the caller's bytes are looked at later",
            |inner| hooked(inner, Late::default),
        ),
        mutant(
            "KvStore::store",
            "pages are visible to `load` at once, to `find` once committed.",
            "they are visible once committed",
            |inner| hooked(inner, Hidden::default),
        ),
        mutant(
            "KvStore::store",
            "Takes pages of many layers and sessions.",
            "pages of the last layer are dropped where there are many",
            |inner| hooked(inner, || Stores(|page| page.key.session.0 != 4)),
        ),
        mutant(
            "PageTag",
            "A store keeps it with the page and gives it back unchanged.",
            "the sum is left out",
            |inner| {
                hooked(inner, || {
                    Loads(|page| {
                        if let Verdict::At { tag, .. } | Verdict::Filled { tag } = &mut page.verdict
                        {
                            tag.crc = 0;
                        }
                    })
                })
            },
        ),
        mutant("Verdict::At", "In which file, opened by the store.", "another file", |inner| {
            hooked(inner, || {
                Loads(|page| {
                    if let Verdict::At { file, .. } = &mut page.verdict {
                        file.0 += 1000;
                    }
                })
            })
        }),
        mutant(
            "Verdict::Filled",
            "The first `tag.bytes` of `into` hold it",
            "nothing is filled",
            |inner| hooked(inner, || Loads(filled)),
        ),
        mutant("Verdict::Missing", "Not here: recompute.", "it is unreadable", |inner| {
            hooked(inner, || {
                Loads(|page| {
                    if page.verdict == Verdict::Missing {
                        page.verdict = Verdict::Failed(ErrorKind::NotFound);
                    }
                })
            })
        }),
        mutant(
            "PageKey",
            "A session's key may be stored again after a rewind; the last one holds, once committed.",
            "the first one holds",
            |inner| hooked(inner, First::default),
        ),
        mutant(
            "KvStore::load",
            "Keep `At` true until then, and while the page is in the policy's window.",
            "a flush writes over the first page",
            |inner| hosted(inner, || Overwrites(Default::default())),
        ),
        mutant(
            "KvStore::load",
            "One call at a time: a far store hides its latency by the batch, which the host sizes \
             by `Found::cost`.",
            "a read for each page",
            |inner| beside(inner, OneByOne),
        ),
        mutant(
            "KvStore::load",
            "Past `within`: `Failed(Timeout)` for what is not there.",
            "what is late is unreadable",
            |inner| hooked(inner, || Short(|page| page.verdict = Verdict::Failed(ErrorKind::Io))),
        ),
        mutant(
            "KvStore::load",
            "In verdicts; a call that fails counts for all.",
            "what is late panics",
            |inner| hooked(inner, || Short(|_| panic!("late"))),
        ),
    ]
}

/// Bends verdicts of a load with little time.
struct Short(fn(&mut PageLoad<'_>));
impl StoreHook for Short {
    fn load(
        &mut self,
        inner: &mut dyn KvStore,
        pages: &mut [PageLoad<'_>],
        within: Duration,
    ) -> Result<()> {
        inner.load(pages, within)?;
        if within < Duration::from_secs(1) {
            pages.iter_mut().for_each(self.0);
        }
        Ok(())
    }
}
