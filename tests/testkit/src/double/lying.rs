//! A store around any store that keeps everything and lies about it when it is asked.

use super::{POISON, StoreHook};
use kvern_contract::*;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// What goes wrong with a page that is loaded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lie {
    /// One bit of it is flipped.
    Flip,
    /// Another page of the session at the same layer, with its tag.
    OtherPage,
    /// The page of another layer, with its tag.
    OtherLayer,
    /// A page of another session, with its tag.
    OtherSession,
    /// Two pages of a batch come in each other's place: this one and the next that is like it.
    Swap,
    /// The bytes of another page under the right tag.
    OtherBytes,
    /// What the key held before it was stored the last time; as it is where it held nothing.
    OldGeneration,
    /// A tag whose chain is off by a bit.
    OldTag,
    /// A tag with another sum.
    OtherSum,
    /// A tag with another encoding.
    OtherEncoding,
    /// A tag that says another length than there is.
    WrongLength,
    /// `Filled`, and the frame was not touched.
    Unwritten,
    /// `Filled`, and only half of the frame was.
    HalfWritten,
    /// `At` in a file that nobody opened.
    NoFile,
    /// It is not there.
    Missing,
    /// It is there and not readable.
    Failed,
    /// The call fails.
    Refuse,
    /// The call takes so long.
    Sleep(Duration),
    /// The call never returns.
    Never,
    /// The call sleeps that long, then writes over its frames, fills the rest and returns.
    Overwrite(Duration),
    /// The call panics.
    Panic,
    /// The plugin panicked behind a border: everything answers so from now on.
    Poison,
}

impl Lie {
    /// Lies about the bytes or the tag: what the host finds by its own check.
    pub const FALSE: [Lie; 14] = [
        Lie::Flip,
        Lie::OtherPage,
        Lie::OtherLayer,
        Lie::OtherSession,
        Lie::Swap,
        Lie::OtherBytes,
        Lie::OldGeneration,
        Lie::OldTag,
        Lie::OtherSum,
        Lie::OtherEncoding,
        Lie::WrongLength,
        Lie::Unwritten,
        Lie::HalfWritten,
        Lie::NoFile,
    ];
}

/// A piece as it was stored.
type Piece = (PageTag, Vec<u8>);

/// A hook that lies about the n-th page that is loaded, counted from 1 over all its instances.
/// It answers from copies of its own, in `Filled`: what is stored goes on to the store too.
#[derive(Clone, Default)]
pub struct Lying {
    lies: Vec<(u64, Lie)>,
    loads: Arc<Mutex<u64>>,
    pages: BTreeMap<PageKey, Vec<Piece>>,
    poisoned: bool,
}

impl Lying {
    /// Tells these lies, each at the load with its number.
    pub fn new(lies: &[(u64, Lie)]) -> Self {
        Lying { lies: lies.to_vec(), ..Lying::default() }
    }

    /// Counts the pages that are loaded in `loads`, where other instances count theirs too.
    pub fn counting(self, loads: Arc<Mutex<u64>>) -> Self {
        Lying { loads, ..self }
    }

    fn alive(&self) -> Result<()> {
        match self.poisoned {
            true => Err(Error::new(ErrorKind::Panicked, "kv", "the double is poisoned")),
            false => Ok(()),
        }
    }

    fn next(&self) -> Option<Lie> {
        let mut loads = self.loads.lock().unwrap_or_else(PoisonError::into_inner);
        *loads += 1;
        self.lies.iter().find(|(at, _)| *at == *loads).map(|(_, lie)| *lie)
    }

    /// A stored piece whose key is like that.
    fn other(&self, key: PageKey, like: impl Fn(&PageKey) -> bool) -> Option<Piece> {
        let mut others = self.pages.iter().filter(|(other, _)| **other != key && like(other));
        others.next().and_then(|(_, versions)| versions.last().cloned())
    }
}

/// Fills a frame; as much as it has.
fn fill(page: &mut PageLoad<'_>, tag: PageTag, bytes: &[u8]) {
    let length = bytes.len().min(page.into.len());
    page.into[..length].copy_from_slice(&bytes[..length]);
    page.verdict = Verdict::Filled { tag };
}

impl StoreHook for Lying {
    fn find(&mut self, inner: &mut dyn KvStore, prompts: &[Prefix<'_>]) -> Result<Vec<Found>> {
        self.alive()?;
        inner.find(prompts)
    }

    fn store(&mut self, inner: &mut dyn KvStore, pages: &[PageRef<'_>]) -> Result<()> {
        self.alive()?;
        inner.store(pages)?;
        for page in pages {
            self.pages.entry(page.key).or_default().push((page.tag, page.bytes.to_vec()));
        }
        Ok(())
    }

    fn load(
        &mut self,
        inner: &mut dyn KvStore,
        pages: &mut [PageLoad<'_>],
        within: Duration,
    ) -> Result<()> {
        self.alive()?;
        let mut swapped: Option<(Piece, PageKey)> = None;
        let mut overwrites = None;
        inner.load(pages, within)?;
        for page in pages.iter_mut() {
            let key = page.key;
            let Some(versions) = self.pages.get(&key) else { continue };
            let Some((mut tag, mut bytes)) = versions.last().cloned() else { continue };
            if page.verdict == Verdict::Missing {
                continue;
            }
            let like = |other: &PageKey| match key.part {
                Part::Page(_) => matches!(other.part, Part::Page(_)),
                Part::State { .. } => matches!(other.part, Part::State { .. }),
            };
            match self.next() {
                None => (),
                Some(Lie::Flip) => bytes[tag.bytes as usize / 2] ^= 8,
                Some(Lie::OtherPage) => {
                    let same =
                        |k: &PageKey| (k.session, k.layer) == (key.session, key.layer) && like(k);
                    (tag, bytes) = self.other(key, same).unwrap_or((tag, bytes));
                }
                Some(Lie::OtherLayer) => {
                    let same = |k: &PageKey| (k.session, k.part) == (key.session, key.part);
                    (tag, bytes) = self.other(key, same).unwrap_or((tag, bytes));
                }
                Some(Lie::OtherSession) => {
                    let same = |k: &PageKey| k.session != key.session && k.layer == key.layer;
                    (tag, bytes) = self.other(key, same).unwrap_or((tag, bytes));
                }
                Some(Lie::Swap) => swapped = Some(((tag, bytes.clone()), key)),
                Some(Lie::OtherBytes) => {
                    let same = |k: &PageKey| k.layer == key.layer && like(k);
                    bytes = self.other(key, same).map_or(bytes, |(_, bytes)| bytes);
                }
                Some(Lie::OldGeneration) => {
                    (tag, bytes) = versions.first().cloned().unwrap_or((tag, bytes));
                }
                Some(Lie::OldTag) => tag.chain.0[3] ^= 1,
                Some(Lie::OtherSum) => tag.crc ^= 1 << 40,
                Some(Lie::OtherEncoding) => tag.encoding ^= 1,
                Some(Lie::WrongLength) => tag.bytes /= 2,
                // The store had written the frame.
                Some(Lie::Unwritten) => {
                    page.into.fill(POISON);
                    bytes.truncate(0);
                }
                Some(Lie::HalfWritten) => {
                    page.into.fill(POISON);
                    bytes.truncate(bytes.len() / 2);
                }
                Some(Lie::NoFile) => {
                    page.verdict = Verdict::At { file: FileId(u32::MAX), offset: 0, tag };
                    continue;
                }
                Some(Lie::Missing) => {
                    page.verdict = Verdict::Missing;
                    continue;
                }
                Some(Lie::Failed) => {
                    page.verdict = Verdict::Failed(ErrorKind::Io);
                    continue;
                }
                Some(Lie::Refuse) => {
                    return Err(Error::new(ErrorKind::Io, "kv/load", "the double refuses"));
                }
                Some(Lie::Sleep(time)) => std::thread::sleep(time),
                Some(Lie::Never) => loop {
                    std::thread::sleep(Duration::from_secs(1));
                },
                Some(Lie::Overwrite(time)) => overwrites = Some(time),
                Some(Lie::Panic) => panic!("the double panics"),
                Some(Lie::Poison) => {
                    self.poisoned = true;
                    return self.alive();
                }
            }
            fill(page, tag, &bytes);
        }
        if let Some(((tag, bytes), key)) = swapped {
            // The next of the batch with a page of that layer, else any other.
            let at = pages.iter().position(|page| page.key == key).unwrap_or_default();
            let mate = pages
                .iter()
                .skip(at + 1)
                .position(|page| page.key.layer == key.layer && self.pages.contains_key(&page.key));
            if let Some(mate) = mate.map(|mate| at + 1 + mate) {
                let versions = &self.pages[&pages[mate].key];
                let (other, theirs) = versions.last().cloned().unwrap_or((tag, bytes.clone()));
                fill(&mut pages[at], other, &theirs);
                fill(&mut pages[mate], tag, &bytes);
            } else if let Some((other, theirs)) = self.other(key, |k| k.layer == key.layer) {
                fill(&mut pages[at], other, &theirs);
            }
        }
        if let Some(time) = overwrites {
            std::thread::sleep(time);
            pages.iter_mut().for_each(|page| page.into.fill(0x3c));
        }
        Ok(())
    }

    fn rewind(
        &mut self,
        inner: &mut dyn KvStore,
        session: SessionId,
        to: TokenIndex,
    ) -> Result<TokenIndex> {
        self.alive()?;
        inner.rewind(session, to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::double::{Frame, Through};

    /// Keeps pages, and fills frames.
    #[derive(Default)]
    struct Plain(BTreeMap<PageKey, Piece>);
    impl KvStore for Plain {
        fn find(&mut self, prompts: &[Prefix<'_>]) -> Result<Vec<Found>> {
            Ok(vec![Found::default(); prompts.len()])
        }
        fn begin(&mut self, _: SessionId, _: Origin) -> Result<()> {
            Ok(())
        }
        fn store(&mut self, pages: &[PageRef<'_>]) -> Result<()> {
            self.0.extend(pages.iter().map(|page| (page.key, (page.tag, page.bytes.to_vec()))));
            Ok(())
        }
        fn load(&mut self, pages: &mut [PageLoad<'_>], _: Duration) -> Result<()> {
            for page in pages {
                if let Some((tag, bytes)) = self.0.get(&page.key) {
                    fill(page, *tag, bytes);
                }
            }
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

    fn key(session: u64, layer: u32, page: u32) -> PageKey {
        let (session, layer) = (SessionId(session), LayerIndex(layer));
        PageKey { session, layer, part: Part::Page(page) }
    }

    /// What a lie makes of the second of three pages: verdict and frame.
    fn told(lie: Option<Lie>) -> Vec<(Verdict, Vec<u8>)> {
        let lies: Vec<_> = lie.into_iter().map(|lie| (2, lie)).collect();
        let mut store = Through::new(Box::new(Plain::default()), Lying::new(&lies));
        let keys = [key(1, 0, 0), key(1, 0, 1), key(1, 0, 2), key(1, 1, 1), key(2, 0, 1)];
        for (generation, keys) in [(0, &keys[1..2]), (1, &keys[..])] {
            for (n, key) in (1..).zip(keys) {
                let tag = PageTag { crc: n + generation, bytes: 64, ..PageTag::default() };
                let bytes = [(n + 10 * generation) as u8; 64];
                store.store(&[PageRef { key: *key, tag, bytes: &bytes }]).unwrap();
            }
        }
        let mut frames: Vec<Frame> = (0..3).map(|_| Frame::new(100)).collect();
        let mut loads: Vec<PageLoad<'_>> = (keys.iter().zip(&mut frames))
            .map(|(key, frame)| PageLoad {
                key: *key,
                into: frame.lent(),
                verdict: Verdict::Missing,
            })
            .collect();
        store.load(&mut loads, Duration::MAX).unwrap();
        let verdicts: Vec<Verdict> = loads.iter().map(|load| load.verdict).collect();
        verdicts.into_iter().zip(frames.iter().map(|frame| frame.bytes().to_vec())).collect()
    }

    #[test]
    fn every_lie_is_told_once_and_of_its_page_alone() {
        let truth = told(None);
        for lie in Lie::FALSE {
            let told = told(Some(lie));
            assert_ne!(told[1], truth[1], "{lie:?}");
            assert_eq!(told[0], truth[0], "{lie:?}");
            assert_eq!(told[2] == truth[2], lie != Lie::Swap, "{lie:?}");
        }
        for (lie, verdict) in
            [(Lie::Missing, Verdict::Missing), (Lie::Failed, Verdict::Failed(ErrorKind::Io))]
        {
            assert_eq!(told(Some(lie))[1].0, verdict);
        }
    }
}
