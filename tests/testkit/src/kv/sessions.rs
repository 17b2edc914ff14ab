//! Sessions: looked up, begun, shared, committed, rewound and ended; and random traces of it all.

use super::model::*;
use super::recurrent::recurrent;
use super::steps::choose;
use super::traces::Run;
use super::trial::*;
use super::{Strategy, stored};
use crate::{Case, Check, Promise, Subject, for_all};
use kvern_contract::*;
use std::time::Duration;

const STORED: Promise =
    Promise::new("KvStore::find", "Count only tokens whose pages are all stored, in every layer;");
const AHEAD: Promise = Promise::new("KvStore::find", "a commit runs ahead of them.");
const EACH: Promise = Promise::new(
    "KvStore::find",
    "Looks prompts up, living sessions too; an answer for each, in order.",
);
const WHOLE: Promise = Promise::new("Found::tokens", "Whole pages, or the whole stored session");
const BYTES: Promise = Promise::new("Found::bytes", "Bytes to load all of it.");
const NOTE: Promise = Promise::new(
    "Found::note",
    "Of the session's last commit, though `tokens` be fewer; empty where pages are named by \
     content.",
);
const SHARES: Promise = Promise::new(
    "Origin::Fork",
    "What was stored under `of` before is the child's too; what comes later comes under each key.",
);
const PARTS: Promise = Promise::new("Origin::Fork", "Shares whole pages before `at`;");
const EVICTED: Promise =
    Promise::new("KvStore::begin", "NotFound when evicted since: start fresh.");
const NO_SYNC: Promise = Promise::new("KvStore::commit", "Not sync.");
const BUFFER: Promise = Promise::new("KvStore::commit", "It may buffer until `flush`.");
const ALL: Promise =
    Promise::new("KvStore::commit", "Makes tokens part of sessions, each whole or not at all.");
const COMMITS: Promise = Promise::new("KvStore::commit", "NotFound (the session), Invalid.");
const FORGETS: Promise =
    Promise::new("KvStore::rewind", "Forgets pages that end past `to`; answers where it landed");
const REWINDS: Promise = Promise::new("KvStore::rewind", "NotFound (the session).");
const FLUSHES: Promise = Promise::new("KvStore::flush", "NotFound (the session);");
const ENDS: Promise = Promise::new("KvStore::end", "NotFound, Io.");
const KEEP: Promise = Promise::new("KvStore::end", "`keep` leaves what is durable for `find`.");
const ORDER: Promise =
    Promise::new("KvStore", "a `load` sees what was stored before it, a `rewind` takes it away.");
const LAYERS: Promise =
    Promise::new("KvReport::persisted_layer_count", "Layers with something stored.");
const TOKENS: Promise =
    Promise::new("KvReport::persisted_tokens", "Tokens stored, summed over layers.");
const ARTIFACTS: Promise = Promise::new(
    "KvReport::persisted_artifact_count",
    "Chunk, page-table entry, extent, journal entry, ring layer: what the format counts by.",
);
const LIVE: Promise =
    Promise::new("KvReport::live_bytes", "Bytes under the root that something names.");
const DEAD: Promise =
    Promise::new("KvReport::dead_bytes", "Bytes under the root that nothing names any more.");
const STATES: Promise = Promise::new("KvStore::rewind", "earlier only with recurrent layers.");
const STATE: Promise =
    Promise::new("Found::tokens", "With recurrent layers: where a state is stored.");

pub(super) fn cases() -> Vec<Case<Strategy>> {
    vec![
        stored("find_counts_what_every_layer_has_stored", &[STORED, AHEAD, WHOLE, BYTES], counts),
        stored("every_prompt_has_its_answer_living_sessions_too", &[EACH], each),
        stored("a_note_is_the_last_commits_or_none", &[NOTE], notes),
        stored("a_fork_has_its_parents_past_and_goes_its_own_way", &[SHARES, PARTS], fork),
        stored("what_was_never_found_is_not_begun_from", &[EVICTED], evicted),
        stored("a_commit_syncs_nothing", &[NO_SYNC, BUFFER], no_sync),
        stored("a_commit_is_whole_or_not_at_all_and_refused_in_kind", &[ALL, COMMITS], commits),
        stored("a_rewind_forgets_and_lands_where_it_is_told", &[FORGETS, REWINDS], rewind),
        stored("a_session_ends_once_and_is_kept_or_not", &[ENDS, KEEP, FLUSHES], end),
        stored(
            "the_counters_are_of_what_is_stored",
            &[LAYERS, TOKENS, ARTIFACTS, LIVE, DEAD],
            report,
        ),
        stored("recurrent_layers_land_where_a_state_is_stored", &[STATES, STATE], recurrent),
        stored("random_traces_are_answered_as_the_model_answers", &[ORDER], traces),
    ]
}

const A: SessionId = SessionId(1);
const B: SessionId = SessionId(2);
const C: SessionId = SessionId(3);
const NOBODY: SessionId = SessionId(999);

/// What is found of a prompt must be all that a history gives, and no more.
fn finds(trial: &mut Trial, known: &Known, prompt: &[TokenKey], when: &str) -> Went<Found> {
    let found = trial.find(prompt)?;
    let wanted = known.gives(&trial.rules, prompt);
    let most = most(&trial.rules, [known].into_iter(), prompt);
    need((wanted..=most).contains(&found.tokens), || {
        let (found, of) = (found.tokens, prompt.len());
        format!("{when}: {found} of {of} tokens are found, and {wanted} are stored")
    })?;
    Ok(found)
}

fn counts(subject: &Subject<'_, Strategy>) -> Check {
    let mut trial = Trial::new(subject.instance()?)?;
    let keys = text(1, 0, 200);
    trial.begin(A, Origin::Fresh)?;
    let mut known = Known { keys: keys.clone(), ..Known::default() };
    went("commit", trial.commit(A, &keys, 0))?;
    finds(&mut trial, &known, &keys, "committed, and no page is stored")?;
    let all = known.unstored(&trial.rules);
    for place in [(0, 0), (2, 0), (0, 1), (0, 2), (2, 2), (2, 1)] {
        if all.contains(&place) {
            trial.put(A, &mut known, &keys, &[place])?;
            finds(&mut trial, &known, &keys, "one page after another is stored")?;
        }
    }
    let partial = trial.rules.partial;
    trial.put_all(A, &mut known, partial)?;
    let longer = text(1, 0, 290);
    for prompt in [&keys[..], &longer, &keys[..199], &keys[..128], &keys[..63], &keys[..1], &[]] {
        let found = finds(&mut trial, &known, prompt, "all is stored")?;
        need((found.tokens == 0) == (found.bytes == 0), || {
            format!("{} tokens are found, of {} bytes", found.tokens, found.bytes)
        })?;
    }
    // The same ids with another clip behind one of them.
    let mut other = keys.clone();
    other[70].content ^= 1;
    finds(&mut trial, &known, &other, "another clip")?;
    Ok(())
}

fn each(subject: &Subject<'_, Strategy>) -> Check {
    let mut trial = Trial::new(subject.instance()?)?;
    let mut all = Vec::new();
    for (n, tokens) in [(1, 128), (2, 64), (3, 320)] {
        all.push(trial.fill(SessionId(n), &text(n, 0, tokens))?);
    }
    let prompts: Vec<Vec<TokenKey>> =
        [(3, 320), (9, 10), (1, 128), (2, 64)].map(|(n, tokens)| text(n, 0, tokens)).into();
    let chains: Vec<_> = prompts.iter().map(|keys| chains(keys)).collect();
    let asked: Vec<Prefix<'_>> =
        prompts.iter().zip(&chains).map(|(keys, chains)| Prefix { keys, chains }).collect();
    let found = went("find", trial.store.find(&asked))?;
    need(found.len() == 4, || format!("find gives {} answers for 4 prompts", found.len()))?;
    for (prompt, found) in prompts.iter().zip(&found) {
        let least = all.iter().map(|known| known.gives(&trial.rules, prompt)).max();
        let most = most(&trial.rules, all.iter(), prompt);
        need((least.unwrap_or(0)..=most).contains(&found.tokens), || {
            format!("{} tokens are found of a prompt of {}", found.tokens, prompt.len())
        })?;
    }
    // Answers of one batch are begun from in any order, each once.
    for (n, (prompt, found)) in (10u32..14).zip(prompts.iter().zip(&found)).rev() {
        let n = u64::from(n);
        if found.tokens > 0 {
            trial.begin(SessionId(n), Origin::Stored { found: found.id, at: found.tokens })?;
            let known = trial.known(prompt, found.tokens);
            trial.check(SessionId(n), &known)?;
        }
    }
    let none = went("find", trial.store.find(&[]))?;
    need(none.is_empty(), || format!("no prompt has {} answers", none.len()))?;
    Ok(())
}

fn notes(subject: &Subject<'_, Strategy>) -> Check {
    let mut trial = Trial::new(subject.instance()?)?;
    let keys = text(1, 0, 256);
    let mut known = trial.fill(A, &keys[..128])?;
    trial.grow(A, &mut known, &keys)?;
    went("flush", trial.store.flush(A))?;
    let shorter = |trial: &mut Trial, keys: &[TokenKey]| -> Went {
        for to in [keys.len(), keys.len() - 1, 128] {
            let found = trial.find(&keys[..to])?;
            noted(trial, &found, keys)?;
        }
        Ok(())
    };
    shorter(&mut trial, &keys)?;
    // What lives has its note before a flush; the state of the last flush has its own until then.
    let longer = text(1, 0, 320);
    trial.grow(A, &mut known, &longer)?;
    let found = trial.find(&longer)?;
    if found.tokens == 320 {
        noted(&trial, &found, &longer)?;
    }
    went("flush", trial.store.flush(A))?;
    shorter(&mut trial, &longer)?;
    Ok(())
}

fn fork(subject: &Subject<'_, Strategy>) -> Check {
    let mut trial = Trial::new(subject.instance()?)?;
    let parent = trial.fill(A, &text(1, 0, 300))?;
    let mut children = Vec::new();
    for (id, at) in [(B, 150), (C, 192), (SessionId(4), 0), (SessionId(5), 300)] {
        trial.begin(id, Origin::Fork { of: A, at })?;
        let mut known = parent.clone();
        known.cut(at);
        known.pages.retain(|_, tag| tag.tokens == PAGE_TOKENS);
        trial.check(id, &known)?;
        children.push((id, known));
    }
    // Each goes on alone, and none sees another's pages.
    for (n, (id, known)) in (2..).zip(&mut children) {
        let at = known.tokens();
        let keys = [&known.keys[..], &text(n, at, at + 130)].concat();
        trial.grow(*id, known, &keys)?;
    }
    let mut parent = parent;
    let keys = [&parent.keys[..], &text(6, 300, 400)].concat();
    trial.grow(A, &mut parent, &keys)?;
    trial.check(A, &parent)?;
    for (id, known) in &children {
        trial.check(*id, known)?;
    }
    // A page that came later, under the parent's key alone, is none of the child's.
    let answer = trial.load(&[key(SessionId(4), 0, 5)], HOUR)?.remove(0);
    need(answer == Err(Verdict::Missing), || {
        format!("a page that its parent stored after the fork is {answer:?} to the child")
    })?;
    // A child outlives its parent.
    went("end", trial.store.end(A, false))?;
    children.iter().try_for_each(|(id, known)| trial.check(*id, known))?;
    let gone = trial.store.begin(SessionId(6), Origin::Fork { of: A, at: 0 });
    refused("a fork of a session that ended", &gone, &[ErrorKind::NotFound, ErrorKind::Invalid])?;
    Ok(())
}

fn evicted(subject: &Subject<'_, Strategy>) -> Check {
    let mut trial = Trial::new(subject.instance()?)?;
    trial.fill(A, &text(1, 0, 128))?;
    for (n, id) in [(2, 0), (3, 77), (4, u64::MAX)] {
        let origin = Origin::Stored { found: FoundId(id), at: 64 };
        let begun = trial.store.begin(SessionId(n), origin);
        refused("begin from what was never found", &begun, &[ErrorKind::NotFound])?;
        // Start fresh.
        trial.fill(SessionId(n), &text(n, 0, 64))?;
    }
    // What was found may have gone since, or be kept for who found it: all of it.
    let keys = text(11, 0, 192);
    trial.fill(SessionId(11), &keys)?;
    went("flush", trial.store.flush(SessionId(11)))?;
    let found = trial.find(&keys)?;
    went("end", trial.store.end(SessionId(11), false))?;
    upkeep(&mut trial)?;
    if found.tokens > 0 {
        let from = Origin::Stored { found: found.id, at: found.tokens };
        let begun = trial.store.begin(SessionId(12), from);
        match begun {
            Ok(()) => {
                let known = trial.known(&keys, found.tokens);
                trial.check(SessionId(12), &known)?;
            }
            gone => refused("begin from what is evicted", &gone, &[ErrorKind::NotFound])?,
        }
    }
    Ok(())
}

fn no_sync(subject: &Subject<'_, Strategy>) -> Check {
    let mut trial = Trial::new(subject.instance()?)?;
    let keys = text(1, 0, 1000);
    trial.begin(A, Origin::Fresh)?;
    let mut known = Known::default();
    let syncs = |trial: &Trial| trial.watch.count("sync") + trial.watch.count("publish");
    for to in (50..=1000).step_by(50) {
        let before = syncs(&trial);
        went("commit", trial.commit(A, &keys[..to], known.tokens()))?;
        known.keys = keys[..to].to_vec();
        known.slide(&trial.rules);
        let synced = syncs(&trial) - before;
        need(synced == 0, || format!("a commit syncs {synced} times"))?;
        trial.put_all(A, &mut known, false)?;
    }
    // What is buffered is answered all the same.
    finds(&mut trial, &known, &keys, "committed and not flushed")?;
    trial.check(A, &known)?;
    Ok(())
}

fn commits(subject: &Subject<'_, Strategy>) -> Check {
    let mut trial = Trial::new(subject.instance()?)?;
    let keys = text(1, 0, 400);
    let known = trial.fill(A, &keys[..192])?;
    let other = trial.fill(B, &text(2, 0, 128))?;
    let refusals = [ErrorKind::NotFound, ErrorKind::Invalid];
    let unknown = trial.commit(NOBODY, &keys[..64], 0);
    refused("a commit of no session", &unknown, &[ErrorKind::NotFound])?;
    let (all, end) = (chains(&keys[..256]), chain(&keys[..256]));
    let one = |session, tokens, from: usize, to: usize| Commit {
        session,
        tokens,
        keys: &keys[from..to],
        chains: &all[3..4],
        chain: end,
        note: b"new",
    };
    // Fewer keys than the length says, more, and a length that goes back.
    for (tokens, from, to) in [(256, 200, 256), (256, 180, 256), (100, 192, 256)] {
        // Where nothing is found later, keys may be nobody's concern.
        if !trial.persistent {
            continue;
        }
        let gap = trial.store.commit(&[one(A, tokens, from, to)]);
        refused("a commit whose keys do not make its length", &gap, &[ErrorKind::Invalid])?;
        finds(&mut trial, &known, &keys, "after a commit that was refused")?;
    }
    // Among commits one of which is refused, each is whole or not at all.
    let mixed = trial.store.commit(&[one(A, 256, 192, 256), one(NOBODY, 64, 0, 64)]);
    refused("a batch with a commit of no session", &mixed, &refusals)?;
    trial.check(A, &known)?;
    trial.check(B, &other)?;
    let more = trial.store.commit(&[one(A, 256, 192, 256)]);
    if more.is_err() {
        // Then the batch had made it so.
        refused("a commit that was made", &more, &[ErrorKind::Invalid])?;
    }
    let mut known = Known { keys: keys[..256].to_vec(), ..known };
    trial.put_all(A, &mut known, false)?;
    finds(&mut trial, &known, &keys, "after the commit was made once")?;
    trial.grow(A, &mut known, &keys)?;
    finds(&mut trial, &known, &keys, "after it went on")?;
    trial.check(A, &known)?;
    Ok(())
}

fn rewind(subject: &Subject<'_, Strategy>) -> Check {
    let mut trial = Trial::new(subject.instance()?)?;
    let keys = text(1, 0, 330);
    let mut known = trial.fill(A, &keys)?;
    let other = trial.fill(B, &keys)?;
    let unknown = trial.store.rewind(NOBODY, 0);
    refused("a rewind of no session", &unknown, &[ErrorKind::NotFound])?;
    for to in [330, 320, 319, 130, 64, 63, 0] {
        let gone: Vec<_> = known.pages.iter().filter(|(_, tag)| tag.end() > to).collect();
        let gone: Vec<_> = gone.into_iter().map(|((l, p), _)| key(A, *l, *p)).collect();
        let landed = went("rewind", trial.store.rewind(A, to))?;
        need(landed == to, || format!("a rewind to {to} lands at {landed}"))?;
        for (key, answer) in gone.iter().zip(trial.load(&gone, HOUR)?) {
            need(answer == Err(Verdict::Missing), || {
                format!("{key:?} ends past a rewind to {to} and is {answer:?}, not Missing")
            })?;
        }
        known.cut(to);
        trial.check(A, &known)?;
    }
    trial.check(B, &other)?;
    // It goes on, as another text.
    let keys = text(3, 0, 200);
    trial.grow(A, &mut known, &keys)?;
    trial.check(A, &known)?;
    finds(&mut trial, &known, &keys, "after a rewind and another text")?;
    Ok(())
}

fn end(subject: &Subject<'_, Strategy>) -> Check {
    let mut trial = Trial::new(subject.instance()?)?;
    let (kept, gone, never) = (text(5, 0, 192), text(6, 0, 192), text(7, 0, 192));
    for (id, keys) in [(A, &kept), (B, &gone), (C, &never)] {
        let known = trial.fill(id, keys)?;
        finds(&mut trial, &known, keys, "before its end")?;
        if id != C {
            went("flush", trial.store.flush(id))?;
        }
    }
    let unknown = trial.store.flush(NOBODY);
    refused("a flush of no session", &unknown, &[ErrorKind::NotFound])?;
    for keep in [true, false] {
        let unknown = trial.store.end(NOBODY, keep);
        refused("an end of no session", &unknown, &[ErrorKind::NotFound])?;
    }
    for (id, keep) in [(A, true), (B, false), (C, false)] {
        went("end", trial.store.end(id, keep))?;
        let again = trial.store.end(id, keep);
        refused("a second end", &again, &[ErrorKind::NotFound])?;
        let page = trial.load(&[key(id, 0, 0)], HOUR)?.remove(0);
        need(page == Err(Verdict::Missing), || format!("a page of an ended session is {page:?}"))?;
    }
    // Texts 5, 6 and 7 share nothing that counts with each other.
    for (prompt, what) in [(&gone, "flushed and not kept"), (&never, "neither flushed nor kept")] {
        let (found, shared) = (trial.find(prompt)?.tokens, common(prompt, &kept));
        need(found <= shared, || format!("{found} tokens of a session {what} are found"))?;
    }
    if trial.persistent {
        let known = trial.known(&kept, 192);
        finds(&mut trial, &known, &kept, "flushed and kept")?;
        trial.verified(SessionId(9), &kept)?;
    }
    Ok(())
}

fn common(a: &[TokenKey], b: &[TokenKey]) -> u64 {
    a.iter().zip(b).take_while(|(a, b)| a == b).count() as u64
}

/// As much upkeep as a store may put off what it counts.
fn upkeep(trial: &mut Trial) -> Went {
    (0..4).try_for_each(|_| went("maintain", trial.store.maintain(Duration::from_secs(1))))
}

fn report(subject: &Subject<'_, Strategy>) -> Check {
    let mut trial = Trial::new(subject.instance()?)?;
    let empty = trial.store.report();
    need((empty.persisted_layer_count, empty.persisted_tokens) == (0, 0), || {
        format!("an empty root reports {empty:?}")
    })?;
    let known = trial.fill(A, &text(1, 0, 300))?;
    went("flush", trial.store.flush(A))?;
    let one = trial.store.report();
    let seen = known.pages.iter().filter(|((_, page), _)| trial.rules.sees(*page, 300));
    let tags: Vec<PageTag> = seen.map(|(_, tag)| *tag).collect();
    let tokens: u64 = tags.iter().map(|tag| u64::from(tag.tokens)).sum();
    // What left a window may be stored still.
    let all = PAGED.len() as u64 * 300;
    need(one.persisted_layer_count == 2, || format!("pages of 2 layers are stored: {one:?}"))?;
    need((tokens..=all).contains(&one.persisted_tokens), || {
        format!("{tokens} tokens are stored, summed over layers: {one:?}")
    })?;
    need(one.persisted_artifact_count >= 1, || format!("nothing is counted: {one:?}"))?;
    let bytes: u64 = tags.iter().map(|tag| u64::from(tag.bytes)).sum();
    need(one.live_bytes >= bytes / 8 && one.live_bytes + one.dead_bytes >= one.live_bytes, || {
        format!("{bytes} bytes of pages are stored: {one:?}")
    })?;
    need(trial.store.report() == one, || "two reports differ and nothing came between".into())?;
    trial.fill(B, &text(8, 0, 128))?;
    let two = trial.store.report();
    need(two.persisted_tokens > one.persisted_tokens, || {
        format!("another session is stored: {one:?}, then {two:?}")
    })?;
    went("end", trial.store.end(B, false))?;
    upkeep(&mut trial)?;
    let back = trial.store.report();
    need(back.persisted_tokens < two.persisted_tokens, || {
        format!("a session is forgotten: {two:?}, then {back:?}")
    })?;
    went("end", trial.store.end(A, false))?;
    upkeep(&mut trial)?;
    let none = trial.store.report();
    need(none.live_bytes < one.live_bytes, || {
        format!("nothing is named any more: {one:?}, then {none:?}")
    })?;
    // What is on the drive is at least what is named.
    let files = went("list", trial.root.list())?;
    let files: u64 = files.iter().map(|(_, bytes)| bytes).sum();
    need(one.dead_bytes <= files, || {
        format!("{} bytes are dead, and the root has {files}", one.dead_bytes)
    })?;
    Ok(())
}

fn traces(subject: &Subject<'_, Strategy>) -> Check {
    for_all(
        subject.seeds(80),
        |random| choose(random, 60),
        |steps| {
            let storage = crate::double::MemoryStorage::new();
            let open = || Trial::on(subject.instance().map_err(Stop::Wrong)?, storage.clone());
            ended(Run::start(&open)?.run(steps))
        },
    )
}
