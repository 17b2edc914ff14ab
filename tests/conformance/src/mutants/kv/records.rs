//! Stores whose records say what is not so, each with the words that tell it from other faults.

use super::*;
use std::collections::{BTreeMap, BTreeSet};

/// What a file of the root holds, if it is there.
fn contents(host: &dyn Host, name: &str) -> Vec<u8> {
    let files = host.list().unwrap_or_default();
    let there = files.into_iter().find(|(file, _)| file == name);
    there.map_or_else(Vec::new, |(_, length)| {
        let mut bytes = vec![0; length as usize];
        let file = host.open(name, Open::Read).expect("a file that is listed");
        let mut reads = [FileRead { file, offset: 0, into: &mut bytes, done: Ok(()) }];
        host.read_batch(&mut reads, Duration::MAX).expect("a file that is there");
        bytes
    })
}

/// Pages that are stored count with the next flush of their session, committed or not.
struct Ahead {
    host: HostRef,
    old: BTreeSet<ChainHash>,
    new: BTreeMap<SessionId, BTreeSet<ChainHash>>,
}
impl Ahead {
    fn new(host: HostRef) -> Self {
        let old = contents(&*host, "ahead");
        let old = old.chunks_exact(16).map(|hash| ChainHash(hash.try_into().expect("16 bytes")));
        Ahead { old: old.collect(), host, new: BTreeMap::new() }
    }
}
impl StoreHook for Ahead {
    fn store(&mut self, inner: &mut dyn KvStore, pages: &[PageRef<'_>]) -> Result<()> {
        inner.store(pages)?;
        for page in pages {
            self.new.entry(page.key.session).or_default().insert(page.tag.chain);
        }
        Ok(())
    }
    fn flush(&mut self, inner: &mut dyn KvStore, session: SessionId) -> Result<()> {
        inner.flush(session)?;
        let new = self.new.get(&session).into_iter().flatten();
        let all: Vec<u8> = self.old.iter().chain(new).flat_map(|chain| chain.0).collect();
        self.host.publish("ahead", &all)
    }
    fn find(&mut self, inner: &mut dyn KvStore, prompts: &[Prefix<'_>]) -> Result<Vec<Found>> {
        let mut found = inner.find(prompts)?;
        for (prompt, found) in prompts.iter().zip(&mut found) {
            let pages = prompt.chains.iter().take_while(|chain| self.old.contains(chain)).count();
            found.tokens = found.tokens.max(pages as u64 * 64);
        }
        Ok(found)
    }
}

/// A record of the state that a flush makes, which is believed as soon as its first part is there,
/// before all of it is: its chain, and how many pages it has.
struct Unchecked {
    host: HostRef,
    old: Vec<u8>,
    last: BTreeMap<SessionId, Vec<ChainHash>>,
}
impl Unchecked {
    fn new(host: HostRef) -> Self {
        let old = contents(&*host, "state");
        Unchecked { host, old, last: BTreeMap::new() }
    }
    fn write(&self, chain: ChainHash, pages: u64) -> Result<()> {
        let mut bytes = vec![0; 1024];
        bytes[..16].copy_from_slice(&chain.0);
        bytes[512..520].copy_from_slice(&pages.to_le_bytes());
        let file = self.host.open("state", Open::Write)?;
        let write = FileWrite { file, offset: 0, bytes: &bytes };
        let written = self.host.write_batch(&[write], Duration::MAX);
        let synced = written.and_then(|()| self.host.sync(&[file]));
        self.host.close(file);
        synced
    }
}
impl StoreHook for Unchecked {
    fn commit(&mut self, inner: &mut dyn KvStore, commits: &[Commit<'_>]) -> Result<()> {
        inner.commit(commits)?;
        for commit in commits {
            let all = self.last.entry(commit.session).or_default();
            all.extend(commit.chains);
        }
        Ok(())
    }
    fn rewind(&mut self, inner: &mut dyn KvStore, id: SessionId, to: u64) -> Result<TokenIndex> {
        self.write(ChainHash([0; 16]), 0)?;
        self.last.remove(&id);
        inner.rewind(id, to)
    }
    fn end(&mut self, inner: &mut dyn KvStore, id: SessionId, keep: bool) -> Result<()> {
        self.write(ChainHash([0; 16]), 0)?;
        inner.end(id, keep)
    }
    fn flush(&mut self, inner: &mut dyn KvStore, session: SessionId) -> Result<()> {
        let last = self.last.get(&session).and_then(|all| Some((*all.last()?, all.len())));
        if let Some((chain, pages)) = last {
            self.write(chain, pages as u64)?;
        }
        inner.flush(session)
    }
    fn find(&mut self, inner: &mut dyn KvStore, prompts: &[Prefix<'_>]) -> Result<Vec<Found>> {
        let mut found = inner.find(prompts)?;
        let (Some(chain), Some(pages)) = (self.old.get(..16), self.old.get(512..520)) else {
            return Ok(found);
        };
        let pages = u64::from_le_bytes(pages.try_into().expect("8 bytes"));
        for (prompt, found) in prompts.iter().zip(&mut found) {
            if prompt.chains.iter().any(|known| known.0 == chain) {
                let most = prompt.chains.len() as u64;
                found.tokens = found.tokens.max(pages.min(most) * 64);
            }
        }
        Ok(found)
    }
}

/// Files into which much was written are not synced, those with a record are.
#[derive(Default)]
struct RecordsAlone(Mutex<BTreeMap<FileId, usize>>);
impl HostHook for RecordsAlone {
    fn write_batch(
        &self,
        inner: &dyn Host,
        writes: &[FileWrite<'_>],
        within: Duration,
    ) -> Result<()> {
        let mut written = self.0.lock().expect("what was written");
        for write in writes {
            *written.entry(write.file).or_default() += write.bytes.len();
        }
        inner.write_batch(writes, within)
    }
    fn sync(&self, inner: &dyn Host, files: &[FileId]) -> Result<()> {
        let mut written = self.0.lock().expect("what was written");
        let most = written.values().copied().max().unwrap_or_default();
        let small: Vec<FileId> = (files.iter().copied())
            .filter(|file| written.get(file).is_none_or(|bytes| *bytes < most || most < 2048))
            .collect();
        small.iter().for_each(|file| {
            written.remove(file);
        });
        inner.sync(&small)
    }
}

/// Looks a prompt up on the drive, and is at a loss where that fails.
struct Probes(HostRef);
impl StoreHook for Probes {
    fn find(&mut self, inner: &mut dyn KvStore, prompts: &[Prefix<'_>]) -> Result<Vec<Found>> {
        let files = self.0.list()?;
        if let Some((name, _)) = files.iter().find(|(_, bytes)| *bytes > 0) {
            let file = self.0.open(name, Open::Read)?;
            let mut byte = [0];
            let mut reads = [FileRead { file, offset: 0, into: &mut byte, done: Ok(()) }];
            let read = self.0.read_batch(&mut reads, Duration::MAX);
            read.map_err(|error| Error { kind: ErrorKind::Internal, ..error })?;
        }
        inner.find(prompts)
    }
}

/// Mutants, each with words of the line that finds it.
pub(super) fn mutants() -> Vec<(Mutant<Strategy>, &'static str)> {
    let ahead = mutant(
        "KvStore::flush",
        "Durable when it returns: the session's committed tokens and their pages, and none of \
         tokens that are not committed.",
        "pages that are stored ahead count with the flush",
        |inner| beside(inner, Ahead::new),
    );
    let unchecked = mutant(
        "KvStore::flush",
        "a record whole is a state, cut short nothing.",
        "a record cut short is a state",
        |inner| beside(inner, Unchecked::new),
    );
    let named = mutant(
        "KvStrategy::open",
        "what was not is gone or whole.",
        "pages are named and not there",
        |inner| hosted(inner, RecordsAlone::default),
    );
    let probes = mutant("KvStore::find", "Io.", "it is internal", |inner| beside(inner, Probes));
    let one_place = mutant(
        "StoreSpec",
        "A root to open: one directory, or one place in a network, for one model in one form.",
        "every root is the same one",
        |inner| {
            static PLACE: Mutex<Option<HostRef>> = Mutex::new(None);
            Box::new(Wrapped::new(inner).with_open(|inner, spec, host| {
                let mut place = PLACE.lock().expect("a place");
                let there = place.take().filter(|host| host.list().is_ok()).unwrap_or(host);
                *place = Some(there.clone());
                let identity = vec![("weights".into(), "any".into())];
                inner.open(&StoreSpec { identity, ..spec.clone() }, there)
            }))
        },
    );
    vec![
        (ahead, "were ever committed"),
        (unchecked, "begin fails"),
        (named, "the bytes are not where At says"),
        (probes, "find where reads fail answers Internal"),
        (one_place, "root"),
    ]
}

#[test]
fn a_record_that_is_not_so_is_found_for_what_it_is() {
    let shipped = persistent();
    let mut wrong = Vec::new();
    for (mutant, words) in mutants() {
        let make = || opened(&shipped, as_kv).map(mutant.wrap);
        let cases = cases();
        let named = cases.iter().filter(|case| case.promises.contains(&mutant.breaks));
        let lines: Vec<String> = named
            .filter_map(|case| match run(case, &Subject::new(&make)).outcome {
                Outcome::Broken(line) => Some(format!("{}: {line}", case.name)),
                Outcome::Kept | Outcome::Skipped(_) => None,
            })
            .collect();
        if !lines.iter().any(|line| line.contains(words)) {
            wrong.push(format!("{}: {lines:#?}", mutant.what));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
