//! Sessions and the pages that make them, live and durable: what every persistent store keeps,
//! whatever its page files look like.

mod durable;
mod found;
mod history;
mod live;
mod record;

pub use found::ANSWERS_MAX;
pub use history::Entry;

use crate::fields::Fields;
use crate::frame::HEADER_BYTES;
use crate::journal::Journal;
use durable::Durable;
use found::{Answers, Source};
use history::{History, Layers};
use kvern_contract::*;
use live::Live;
use record::{DROPPED_BYTES, Record};
use std::collections::BTreeMap;
use std::fmt::Debug;

/// Bytes of the journal that drop one session.
const DROP_BYTES: u64 = (HEADER_BYTES + DROPPED_BYTES) as u64;

/// Where a format keeps the bytes of a page or state: an offset, an extent, a slot. The only part
/// of a record that is a format's own.
pub trait Place: Copy + Debug {
    /// Bytes of the stored form, always as many.
    const BYTES: usize;
    /// Appends the stored form.
    fn put(&self, out: &mut Vec<u8>);
    /// The reverse. *Errors* Damaged: no place of this format.
    fn take(fields: &mut Fields<'_>) -> Result<Self>;
}

/// A record that [`PageTable::flush`] is about to append.
pub struct Draft<'a, P> {
    /// Most bytes that the journal has from here on without another flush: with this record, and
    /// with one to drop each durable session, since `end` asks nobody.
    pub journal_bytes: u64,
    /// Pages and states that it names. From here on they may be found on the drive named, also
    /// where the flush fails: their bytes are never written again.
    pub entries: &'a [Entry<P>],
}

/// The sessions of one root: tokens, and for each layer and page an [`Entry`] that says where the
/// format put its bytes. It makes `find`, `begin`, `commit`, `rewind`, `flush` and `end` of a
/// [`KvStore`]; the format writes and reads page bytes and says where they lie.
///
/// It is for stores that keep the full history of what they take. It is told no window: it forgets
/// a page by a rewind or an end alone, and `find` counts a page only where all before it are stored
/// too, in layers with a window as in others. A store that drops what left a window, a ring say,
/// needs a table of its own: with this one its sessions would be found up to the first page that it
/// never took, and its records would name bytes that it writes again.
///
/// Sessions become durable in a journal, a record for each flush: the session's number, the token
/// from which on it speaks (its base), keys, entries, note. Each rule is here because a journal
/// without it lost flushed tokens or promised pages that never reached the drive, when power was
/// cut:
///
/// 1. A record names only bytes that were synced before it: [`PageTable::flush`] syncs the page
///    files itself.
/// 2. It names only entries that lie inside the committed tokens: a page ahead of its tokens may
///    never be of them.
/// 3. A session's first record has base 0 and lists everything, what it shares with a parent too,
///    so that no record needs another session's.
/// 4. A rewind writes nothing and lowers the base: until the next flush the old state is what is
///    recovered, and that flush's record cuts it there.
/// 5. Sessions have numbers of the table's own, one more than any record names. The engine's ids
///    start anew with each process.
/// 6. After a failed sync nothing is stored or flushed until the root is opened anew.
/// 7. Recovery takes records in order and ends at the first that is not whole; each cuts its
///    session at its base, then adds.
///
/// What the format must do: never write to bytes that a record names ([`PageTable::open`] and
/// [`Draft`] say which), nor to those that [`PageTable::live_entries`] holds.
pub struct PageTable<P> {
    host: HostRef,
    layers: Layers,
    read_only: bool,
    journal: Journal,
    /// A sync of page files failed.
    lost: bool,
    durable: Durable<P>,
    live: BTreeMap<SessionId, Live<P>>,
    next_number: u64,
    found: Answers,
}
impl<P: Place> PageTable<P> {
    /// Recovers the sessions that the journal `name` makes (creates it unless `read_only`). `each`
    /// gets every entry that any record names, of sessions that are gone too: none of their bytes
    /// may be written before.
    ///
    /// *Errors* Damaged: a whole record that is none of this format's, or an error of `each`; as
    /// [`Journal::open`].
    pub fn open(
        host: &HostRef,
        name: &str,
        shape: &KvShape,
        read_only: bool,
        mut each: impl FnMut(&Entry<P>) -> Result<()>,
    ) -> Result<Self> {
        let mut durable = Durable::default();
        let journal = Journal::open(host, name, read_only, |payload| {
            let record = Record::decode(payload)?;
            if let Record::Session { entries, .. } = &record {
                entries.iter().try_for_each(|(_, entry)| each(entry))?;
            }
            durable.apply(record)
        })?;
        Ok(PageTable {
            host: host.clone(),
            layers: Layers::of(shape),
            read_only,
            journal,
            lost: false,
            next_number: durable.last_number + 1,
            durable,
            live: BTreeMap::new(),
            found: Answers::default(),
        })
    }

    /// For each prompt the longest start that can be loaded: whole pages or a whole history, every
    /// layer's page stored, and with recurrent layers a state of each. An answer is good for one
    /// [`PageTable::begin`], as long as its history has the tokens; the latest [`ANSWERS_MAX`] are
    /// kept, or a whole batch.
    pub fn find(&mut self, prompts: &[Prefix<'_>]) -> Vec<Found> {
        let mut answers = Vec::with_capacity(prompts.len());
        for prompt in prompts {
            let best = self.longest(prompt.keys);
            let id = self.found.add(best);
            let history = best.and_then(|(source, tokens)| Some((self.source(source)?, tokens)));
            answers.push(match history {
                Some((history, tokens)) => Found {
                    id,
                    tokens,
                    bytes: history.load_bytes(tokens),
                    cost: None,
                    note: history.note.clone(),
                },
                None => Found { id, ..Found::default() },
            });
        }
        self.found.forget_oldest(prompts.len());
        answers
    }

    /// Starts a session; no page is copied. A fork has the whole pages before its start. *Errors*
    /// Invalid: the id is taken, or the start is none that may be; NotFound: what was found is
    /// gone, or the parent was not begun.
    pub fn begin(&mut self, session: SessionId, from: Origin) -> Result<()> {
        if self.live.contains_key(&session) {
            let text = format!("session {} was begun already", session.0);
            return refuse(ErrorKind::Invalid, "kv/begin", text);
        }
        let mut took = None;
        let history = match from {
            Origin::Fresh => History::default(),
            Origin::Stored { found, at } => {
                let known = self.found.take(found);
                let known =
                    known.and_then(|(source, most)| Some((source, most, self.source(source)?)));
                let Some((source, most, history)) = known else {
                    let text = "what was found is gone; start fresh";
                    return refuse(ErrorKind::NotFound, "kv/begin", text);
                };
                if at > most || (at % u64::from(PAGE_TOKENS) != 0 && at != most) {
                    let text = format!("{at} tokens of {most} found: take all, or whole pages");
                    return refuse(ErrorKind::Invalid, "kv/begin", text);
                }
                if let Source::Stored(number) = source
                    && at == history.tokens()
                {
                    took = Some(number);
                }
                history.before(at, true)
            }
            Origin::Fork { of, at } => {
                let live = self.live.get(&of).ok_or_else(|| no_session("kv/begin", of))?;
                let tokens = live.history.tokens();
                if at > tokens {
                    let text = format!("a fork at {at} of a session of {tokens} tokens");
                    return refuse(ErrorKind::Invalid, "kv/begin", text);
                }
                live.history.before(at, false)
            }
        };
        let live = Live::new(self.next_number, history, took);
        self.next_number += 1;
        self.live.insert(session, live);
        Ok(())
    }

    /// Whether these pages may be stored: ask before a byte of them is written. *Errors*
    /// Unsupported: the root is open to read; Io: a sync failed; NotFound: a session; Invalid: a
    /// tag that does not fit its bytes.
    pub fn may_store(&self, pages: &[PageRef<'_>]) -> Result<()> {
        self.may_write("kv/store")?;
        for PageRef { key, tag, bytes } in pages {
            if !self.live.contains_key(&key.session) {
                return Err(no_session("kv/store", key.session));
            }
            if bytes.len() as u64 != u64::from(tag.bytes) || tag.tokens > PAGE_TOKENS {
                let text = format!(
                    "layer {} {:?}: {} bytes and a tag of {} bytes and {} tokens",
                    key.layer.0,
                    key.part,
                    bytes.len(),
                    tag.bytes,
                    tag.tokens
                );
                return refuse(ErrorKind::Invalid, "kv/store", text);
            }
        }
        Ok(())
    }

    /// Says where a page's bytes are, now that they are written; the last word on a key holds.
    /// *Errors* NotFound (the session).
    pub fn insert(&mut self, key: PageKey, entry: Entry<P>) -> Result<()> {
        self.live_mut("kv/store", key.session)?.insert((key.layer.0, key.part), entry);
        Ok(())
    }

    /// A page of a living session, committed or not.
    pub fn entry(&self, key: PageKey) -> Option<&Entry<P>> {
        self.live.get(&key.session)?.history.entries.get(&(key.layer.0, key.part))
    }

    /// Makes tokens part of sessions, all of these or none. In memory: nothing is written. Entries
    /// that were stored ahead and end inside these tokens stay where their tags' chains are these
    /// tokens', and are forgotten where not: what was given up without a rewind. *Errors* NotFound
    /// (a session); Invalid: a commit that does not follow.
    pub fn commit(&mut self, commits: &[Commit<'_>]) -> Result<()> {
        let mut lengths: BTreeMap<SessionId, u64> = BTreeMap::new();
        for commit in commits {
            let tokens = self.live_mut("kv/commit", commit.session)?.history.tokens();
            let length = lengths.entry(commit.session).or_insert(tokens);
            *length += commit.keys.len() as u64;
            if *length != commit.tokens {
                let text = format!(
                    "session {} has {} tokens with {} new keys, and the commit says {}",
                    commit.session.0,
                    length,
                    commit.keys.len(),
                    commit.tokens
                );
                return refuse(ErrorKind::Invalid, "kv/commit", text);
            }
        }
        for commit in commits {
            self.live_mut("kv/commit", commit.session)?.commit(commit);
        }
        Ok(())
    }

    /// Forgets tokens from `to` on and entries that end past it. In memory: until the next flush
    /// the old state survives. Answers where it landed, with recurrent layers at a state, and how
    /// many entries went: their bytes are free unless something else names them. *Errors* NotFound.
    pub fn rewind(&mut self, session: SessionId, to: TokenIndex) -> Result<(TokenIndex, usize)> {
        let live = self.live.get_mut(&session);
        let live = live.ok_or_else(|| no_session("kv/rewind", session))?;
        let (landed, gone) = live.rewind(&self.layers, to);
        self.found.cut(Source::Live(session), landed);
        Ok((landed, gone))
    }

    /// Makes a session's committed tokens and their pages durable: asks `admit`, syncs `pages`
    /// (the files written to since they were last synced), then appends one record and syncs it.
    /// Answers the bytes that the journal grew by; 0: nothing was new and nothing was done.
    ///
    /// *Errors* what `admit` answers: nothing was done; Unsupported, NotFound; OutOfSpace, Io: the
    /// old state is there, or the new one; after a failed sync nothing more is taken.
    pub fn flush(
        &mut self,
        session: SessionId,
        pages: &[FileId],
        admit: impl FnOnce(&Draft<'_, P>) -> Result<()>,
    ) -> Result<u64> {
        self.may_write("kv/flush")?;
        let live = self.live.get(&session).ok_or_else(|| no_session("kv/flush", session))?;
        let nothing =
            live.history.keys.is_empty() && !self.durable.sessions.contains_key(&live.number);
        if live.clean || nothing {
            return Ok(0);
        }
        let (number, base) = (live.number, live.base);
        let (record, listed, entries) = live.record();
        let payload = record.encode()?;
        let bytes = (HEADER_BYTES + payload.len()) as u64;
        // Before the append: one that fails may be found whole later.
        self.durable.name(&record)?;
        let stored = self.durable.sessions.contains_key(&number);
        let drops = self.drop_bytes().saturating_add(if stored { 0 } else { DROP_BYTES });
        let journal_bytes = self.journal.bytes_with(bytes.saturating_add(drops));
        admit(&Draft { journal_bytes, entries: &entries })?;
        if !pages.is_empty()
            && let Err(failed) = self.host.sync(pages)
        {
            self.lost = true;
            return Err(failed);
        }
        self.journal.append(&payload)?;
        self.found.cut(Source::Stored(number), base);
        self.durable.apply(record)?;
        self.live_mut("kv/flush", session)?.flushed(&listed);
        Ok(bytes)
    }

    /// Ends a session. With `keep` its durable form stays for [`PageTable::find`], in place of the
    /// stored one that it began from and still contains; without, it is dropped. *Errors* NotFound;
    /// Io, OutOfSpace: the session has ended, and what was to be dropped may come back.
    pub fn end(&mut self, session: SessionId, keep: bool) -> Result<()> {
        let live = self.live.remove(&session).ok_or_else(|| no_session("kv/end", session))?;
        let stored = self.durable.sessions.contains_key(&live.number);
        // What was found in the session is found in its durable form, where that is the same.
        self.found.end(session, (keep && stored).then_some((live.number, live.base)));
        match (keep, stored) {
            (false, true) => self.drop_stored(live.number),
            (true, true) => self.contained_in(&live).map_or(Ok(()), |old| self.drop_stored(old)),
            (_, false) => Ok(()),
        }
    }

    /// Forgets all answers of [`PageTable::find`]: they end with a `maintain`.
    pub fn forget_found(&mut self) {
        self.found.clear();
    }

    /// Entries of living sessions with their layers, shared ones once for each session.
    pub fn live_entries(&self) -> impl Iterator<Item = (LayerIndex, &Entry<P>)> {
        layered(self.live.values().map(|live| &live.history))
    }
    /// Entries of durable sessions with their layers, shared ones once for each session.
    pub fn stored_entries(&self) -> impl Iterator<Item = (LayerIndex, &Entry<P>)> {
        layered(self.durable.sessions.values())
    }
    /// Most bytes that the journal has without another flush: as [`Draft::journal_bytes`].
    pub fn journal_bytes(&self) -> u64 {
        self.journal.bytes_with(self.drop_bytes())
    }

    /// Bytes of the records that would drop every durable session.
    fn drop_bytes(&self) -> u64 {
        (self.durable.sessions.len() as u64).saturating_mul(DROP_BYTES)
    }

    fn may_write(&self, operation: &str) -> Result<()> {
        if self.read_only {
            return refuse(ErrorKind::Unsupported, operation, "the root is open to read");
        }
        if self.lost || self.journal.is_lost() {
            let text = "a sync failed before: nothing is kept until the root is opened anew";
            return refuse(ErrorKind::Io, operation, text);
        }
        Ok(())
    }

    fn live_mut(&mut self, operation: &str, session: SessionId) -> Result<&mut Live<P>> {
        let found = self.live.get_mut(&session);
        found.ok_or_else(|| no_session(operation, session))
    }

    fn source(&self, source: Source) -> Option<&History<P>> {
        match source {
            Source::Live(session) => self.live.get(&session).map(|live| &live.history),
            Source::Stored(number) => self.durable.sessions.get(&number),
        }
    }

    /// The longest start of a prompt that is stored, and in which history.
    fn longest(&self, prompt: &[TokenKey]) -> Option<(Source, TokenIndex)> {
        let live = self.live.keys().map(|&session| Source::Live(session));
        let stored = self.durable.sessions.keys().rev().map(|&number| Source::Stored(number));
        let mut best = None;
        let mut most = 0;
        for source in stored.chain(live) {
            let Some(history) = self.source(source) else { continue };
            let common = history.common(prompt);
            if common <= most {
                continue;
            }
            let tokens = history.reusable(&self.layers, common);
            if tokens > most {
                (best, most) = (Some(source), tokens);
            }
        }
        best.map(|source| (source, most))
    }

    /// The stored session that nobody would find any more: `live`, which is ending, is durable and
    /// has all of it.
    fn contained_in(&self, live: &Live<P>) -> Option<u64> {
        let number = live.took?;
        let sessions = &self.durable.sessions;
        let (stored, durable) = (sessions.get(&number)?, sessions.get(&live.number)?);
        let owned = self.live.values().any(|other| other.number == number);
        let tokens = stored.tokens();
        let gives = |history: &History<P>| history.reusable(&self.layers, tokens);
        let has_all = durable.common(&stored.keys) == tokens && gives(durable) >= gives(stored);
        (!owned && has_all).then_some(number)
    }

    /// Takes a durable session away; durable when it returns.
    fn drop_stored(&mut self, number: u64) -> Result<()> {
        self.durable.sessions.remove(&number);
        if self.read_only {
            return Ok(());
        }
        self.journal.append(&Record::<P>::Dropped { number }.encode()?)
    }
}

fn layered<'a, P: Place + 'a>(
    histories: impl Iterator<Item = &'a History<P>>,
) -> impl Iterator<Item = (LayerIndex, &'a Entry<P>)> {
    let entries = histories.flat_map(|history| &history.entries);
    entries.map(|(&(layer, _), entry)| (LayerIndex(layer), entry))
}

fn refuse<T>(kind: ErrorKind, operation: &str, text: impl Into<String>) -> Result<T> {
    Err(Error::new(kind, operation, text))
}

fn no_session(operation: &str, session: SessionId) -> Error {
    Error::new(ErrorKind::NotFound, operation, format!("no session {} was begun", session.0))
}
