//! A drive that is full, that says no, that lost or changed bytes: errors in kind, nothing counted
//! that is not there, nothing lost that was durable, and never a wrong page that passes for right.

use super::model::*;
use super::trial::*;
use super::{Strategy, kept, stored};
use crate::double::{FaultPlan, MemoryStorage};
use crate::{Case, Check, Promise, Random, Subject};
use kvern_contract::*;
use kvern_record::checksum;
use kvern_storage::Storage as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const NONE_COUNTS: Promise =
    Promise::new("KvStore::store", "OutOfSpace, Io: none of them counts as stored.");
const FLUSH: Promise = Promise::new("KvStore::flush", "OutOfSpace; Io");
const OPENS: Promise = Promise::new("KvStrategy::open", "Mismatch, Damaged, OutOfSpace, Io.");
const REPAIRS: Promise =
    Promise::new("KvStrategy::open", "Opens a root and repairs what a crash left.");
const FINDS: Promise = Promise::new("KvStore::find", "Io.");
const FAILS: Promise = Promise::new("Verdict::Failed", "Here, and not readable.");
const ENDS: Promise = Promise::new("KvStore::end", "NotFound, Io.");
const UPKEEP: Promise = Promise::new("KvStore::maintain", "OutOfSpace, Io.");
const QUOTA: Promise =
    Promise::new("StoreSpec::quota_bytes", "Most bytes under the root; `None`: no limit.");

pub(super) fn cases() -> Vec<Case<Strategy>> {
    vec![
        stored(
            "where_the_drive_is_full_or_fails_nothing_counts_as_stored",
            &[NONE_COUNTS, FLUSH],
            full,
        ),
        stored("a_root_stays_within_its_quota", &[QUOTA], quota),
        kept(
            "where_reads_fail_nothing_is_made_up_and_nothing_is_lost",
            &[FINDS, FAILS, OPENS],
            unreadable,
        ),
        kept(
            "where_writes_fail_ends_and_upkeep_say_so_in_kind",
            &[ENDS, UPKEEP, OPENS],
            unwritable,
        ),
        kept(
            "a_damaged_root_is_refused_or_gives_less_and_nothing_wrong",
            &[REPAIRS, OPENS],
            damaged,
        ),
    ]
}

const A: SessionId = SessionId(1);
const B: SessionId = SessionId(2);

/// The drive is full after so many bytes, or fails after so many writes.
fn full(subject: &Subject<'_, Strategy>) -> Check {
    for space in [true, false] {
        for n in 0..400 {
            let plan = match space {
                true => FaultPlan { space_bytes: Some(n * 700), ..FaultPlan::default() },
                false => FaultPlan { writes_before_eio: Some(n), ..FaultPlan::default() },
            };
            let kind = if space { ErrorKind::OutOfSpace } else { ErrorKind::Io };
            let more = filled_up(subject, plan, kind);
            if !more.map_err(|stop| format!("{} ({kind:?} number {n})", String::from(stop)))? {
                break;
            }
        }
    }
    Ok(())
}

/// A session is stored and flushed on a drive with this fault. Whether it was met.
fn filled_up(subject: &Subject<'_, Strategy>, plan: FaultPlan, kind: ErrorKind) -> Went<bool> {
    let instance = || subject.instance().map_err(Stop::Wrong);
    let (memory, faults) = faulty();
    let mut trial = Trial::on(instance()?, (memory.clone(), faults.clone()))?;
    let base = trial.fill(A, &text(1, 0, 200))?;
    went("flush", trial.store.flush(A))?;
    let keys = text(2, 0, 330);
    trial.begin(B, Origin::Fresh)?;
    let mut known = Known { keys: keys.clone(), ..Known::default() };
    went("commit", trial.commit(B, &keys, 0))?;
    let places = known.unstored(&trial.rules);
    faults.set(plan);
    let mut met = false;
    for part in places.chunks(places.len().div_ceil(2).max(1)) {
        let pages: Vec<_> = (part.iter())
            .map(|&(layer, page)| (key(B, layer, page), trial.rules.tag(&keys, layer, page)))
            .collect();
        let answer = trial.store(&pages);
        if answer.is_ok() {
            known.pages.extend(
                pages.iter().map(|(_, tag)| ((tag.layer, (tag.first / PAGE) as u32), *tag)),
            );
            continue;
        }
        met = true;
        refused("store on such a drive", &answer, &[kind])?;
        let asked: Vec<PageKey> = pages.iter().map(|(key, _)| *key).collect();
        for (key, got) in asked.iter().zip(trial.load(&asked, HOUR)?) {
            need(got.is_err(), || format!("{key:?} was refused and counts as stored"))?;
        }
        let found = trial.find(&keys)?.tokens;
        let most = most(&trial.rules, [&known, &base].into_iter(), &keys);
        need(found <= most, || format!("{found} tokens are found, and {most} are stored"))?;
    }
    let flushed = if met { Ok(()) } else { trial.store.flush(B) };
    if flushed.is_err() {
        met = true;
        refused("flush on such a drive", &flushed, &[kind])?;
    }
    faults.set(FaultPlan::default());
    trial.check(A, &base)?;
    trial.check(B, &known)?;
    // Once there is room again it goes on. A drive that said no may have taken the root with it.
    let more = trial.put_all(B, &mut known, trial.rules.partial);
    let more = more.and_then(|()| went("flush", trial.store.flush(B)));
    let durable = match more {
        Err(Stop::Failed(_, error)) if kind == ErrorKind::Io && error.kind == ErrorKind::Io => {
            false
        }
        other => other.map(|()| true)?,
    };
    let persistent = trial.persistent;
    trial.close();
    if persistent {
        memory.cut(1);
        let mut trial = Trial::on(instance()?, memory)?;
        for known in [Some(&base), Some(&known).filter(|_| durable)].into_iter().flatten() {
            let (found, flushed) = (
                trial.verified(SessionId(9), &known.keys)?,
                known.gives(&trial.rules, &known.keys),
            );
            need(found >= flushed, || format!("{found} of {flushed} flushed tokens are found"))?;
        }
    }
    Ok(met)
}

fn quota(subject: &Subject<'_, Strategy>) -> Check {
    // A root may ask for room before it holds a page.
    for scale in [1, 16, 256] {
        let strategy = subject.instance()?;
        let mut spec = spec(&*strategy)?;
        spec.quota_bytes = Some(scale * 60_000);
        match Trial::open(strategy, &spec, MemoryStorage::new()) {
            Ok(trial) => return within(trial, scale * 60_000, 40 * scale),
            Err(Stop::Failed(_, error)) if error.kind == ErrorKind::OutOfSpace => {}
            Err(stop) => return Err(stop.into()),
        }
    }
    Err("an empty root has no room in 15 MB".into())
}

/// Fills a root with more sessions than its quota of `most` bytes holds.
fn within(mut trial: Trial, most: u64, sessions: u64) -> Check {
    let mut refusals = 0;
    for n in 1..sessions {
        let tried = trial.fill(SessionId(n), &text(n, 0, 200));
        let tried = tried.map(drop).and_then(|()| went("flush", trial.store.flush(SessionId(n))));
        match tried {
            Ok(()) => went("end", trial.store.end(SessionId(n), true))?,
            Err(Stop::Failed(_, error)) if error.kind == ErrorKind::OutOfSpace => {
                refusals += 1;
                went("end", trial.store.end(SessionId(n), true))?;
            }
            Err(stop) => return Err(stop.into()),
        }
        let files = went("list", trial.root.list())?;
        let bytes: u64 = files.iter().map(|(_, bytes)| bytes).sum();
        need(bytes <= most, || format!("the root has {bytes} bytes, and its quota is {most}"))?;
    }
    let report = trial.store.report();
    need(refusals > 0 || report.quota_eviction_count > 0 || report.live_bytes < most / 2, || {
        "nothing was refused and nothing evicted".into()
    })?;
    Ok(())
}

/// A root with two flushed sessions.
fn rooted(subject: &Subject<'_, Strategy>) -> Went<(Arc<MemoryStorage>, Vec<Known>)> {
    let storage = MemoryStorage::new();
    let strategy = subject.instance().map_err(Stop::Wrong)?;
    let mut trial = Trial::on(strategy, storage.clone())?;
    let all = vec![trial.fill(A, &text(1, 0, 200))?, trial.fill(B, &text(2, 0, 256))?];
    went("flush", trial.store.flush(A))?;
    went("flush", trial.store.flush(B))?;
    went("end", trial.store.end(B, true))?;
    trial.close();
    Ok((storage, all))
}

/// Errors of opening that are answers.
const OPEN_KINDS: [ErrorKind; 4] =
    [ErrorKind::Mismatch, ErrorKind::Damaged, ErrorKind::OutOfSpace, ErrorKind::Io];

/// Everything is found again, once the drive is well.
fn whole(subject: &Subject<'_, Strategy>, storage: Arc<MemoryStorage>, all: &[Known]) -> Went {
    let mut trial = Trial::on(subject.instance().map_err(Stop::Wrong)?, storage)?;
    for known in all {
        let (found, flushed) =
            (trial.verified(SessionId(9), &known.keys)?, known.gives(&trial.rules, &known.keys));
        need(found >= flushed, || {
            format!("the drive is well again, and {found} of {flushed} flushed tokens are found")
        })?;
    }
    Ok(())
}

fn unreadable(subject: &Subject<'_, Strategy>) -> Check {
    for n in 0..12 {
        let (storage, all) = rooted(subject)?;
        let plan = FaultPlan { reads_before_eio: Some(n), ..FaultPlan::default() };
        let faults = crate::double::Faults::new(storage.clone(), plan);
        match Trial::on(subject.instance()?, (storage.clone(), faults)) {
            Err(Stop::Failed(_, error)) => need(OPEN_KINDS.contains(&error.kind), || {
                format!("open answers {:?} where reads fail: {error}", error.kind)
            })?,
            Err(stop) => return Err(stop.into()),
            Ok(mut trial) => unread(&mut trial, &all)?,
        }
        whole(subject, storage, &all)?;
    }
    Ok(())
}

/// Asks for everything on a drive whose reads fail.
fn unread(trial: &mut Trial, all: &[Known]) -> Went {
    for (n, known) in (1..).zip(all) {
        let chains = chains(&known.keys);
        let found = trial.store.find(&[Prefix { keys: &known.keys, chains: &chains }]);
        let found = match found {
            Ok(mut found) => found.remove(0),
            failed => return refused("find where reads fail", &failed, &[ErrorKind::Io]),
        };
        let from = Origin::Stored { found: found.id, at: found.tokens };
        if found.tokens == 0 || trial.store.begin(SessionId(n), from).is_err() {
            continue;
        }
        let expected = trial.known(&known.keys, found.tokens);
        for ((layer, page), tag) in &expected.pages {
            let key = key(SessionId(n), *layer, *page);
            match trial.load(&[key], HOUR) {
                Ok(mut got) => match got.remove(0) {
                    Err(Verdict::Failed(_) | Verdict::Missing) => {}
                    came => right(key, tag, came)?,
                },
                // The host's own read of an `At`, or a call that fails for all.
                Err(Stop::Wrong(_)) if trial.watch.count("read") > 0 => {}
                Err(Stop::Wrong(_) | Stop::Failed(..)) => {}
            }
        }
        let answer = trial.store.end(SessionId(n), true);
        if answer.is_err() {
            refused("end where reads fail", &answer, &[ErrorKind::Io])?;
        }
    }
    Ok(())
}

fn unwritable(subject: &Subject<'_, Strategy>) -> Check {
    for space in [true, false] {
        let plan = match space {
            true => FaultPlan { space_bytes: Some(0), ..FaultPlan::default() },
            false => FaultPlan {
                writes_before_eio: Some(0),
                syncs_before_eio: Some(0),
                ..FaultPlan::default()
            },
        };
        // A new root, on a drive that takes nothing.
        let (memory, faults) = faulty();
        faults.set(plan.clone());
        if let Err(stop) = Trial::on(subject.instance()?, (memory, faults)) {
            let Stop::Failed(_, error) = stop else { return Err(stop.into()) };
            let kinds = [ErrorKind::OutOfSpace, ErrorKind::Io];
            need(kinds.contains(&error.kind), || {
                format!("open answers {:?} on a drive that takes nothing: {error}", error.kind)
            })?;
        }
        let (storage, all) = rooted(subject)?;
        let faults = crate::double::Faults::new(storage.clone(), FaultPlan::default());
        let drive = (storage.clone(), faults.clone());
        let mut trial = Trial::on(subject.instance()?, drive)?;
        for (n, tokens) in [(3, 128), (4, 128)] {
            trial.fill(SessionId(n), &text(n, 0, tokens))?;
            went("flush", trial.store.flush(SessionId(n)))?;
        }
        faults.set(plan);
        let kinds = [ErrorKind::OutOfSpace, ErrorKind::Io];
        for _ in 0..2 {
            let kept = trial.store.maintain(Duration::from_secs(1));
            if kept.is_err() {
                refused("maintain on such a drive", &kept, &kinds)?;
            }
        }
        for (n, keep) in [(3, true), (4, false)] {
            let ended = trial.store.end(SessionId(n), keep);
            if ended.is_err() {
                refused("end on such a drive", &ended, &kinds)?;
            }
            let again = trial.store.end(SessionId(n), keep);
            refused("a second end", &again, &[ErrorKind::NotFound, ErrorKind::Io])?;
        }
        trial.close();
        storage.cut(7);
        whole(subject, storage, &all)?;
    }
    Ok(())
}

/// Changes a file in one of many ways.
fn spoil(random: &mut Random, bytes: &mut Vec<u8>) {
    let length = bytes.len() as u64;
    let at = random.below(length.max(1)) as usize;
    match random.below(9) {
        0 => bytes.truncate(at),
        1 => bytes.clear(),
        2 => bytes.fill(0),
        3 => bytes.extend((0..1 + random.below(600)).map(|_| random.bits() as u8)),
        4 => bytes.iter_mut().skip(at).take(64).for_each(|byte| *byte = random.bits() as u8),
        5 => bytes.iter_mut().for_each(|byte| *byte = random.bits() as u8),
        // A part of it once more, elsewhere.
        6 => {
            let part: Vec<u8> = bytes.iter().skip(at).take(512).copied().collect();
            let to = random.below(length.max(1)) as usize;
            bytes.iter_mut().skip(to).zip(part).for_each(|(byte, other)| *byte = other);
        }
        _ => {
            for _ in 0..1 + random.below(4) {
                let at = random.below(length.max(1)) as usize;
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << random.below(8);
                }
            }
        }
    }
}

fn damaged(subject: &Subject<'_, Strategy>) -> Check {
    for seed in subject.seeds(120) {
        let mut random = Random::new(seed);
        let misdirected = seed % 8 == 0;
        let (storage, all) = if misdirected { lost_aim(subject, seed)? } else { rooted(subject)? };
        let files = storage.list(Path::new(ROOT)).map_err(|error| error.to_string())?;
        if let (false, false) = (misdirected, files.is_empty()) {
            let (name, _) = &files[random.below(files.len() as u64) as usize];
            let path = Path::new(ROOT).join(name);
            match random.one_in(12) {
                true => storage.remove(&path).map_err(|error| error.to_string())?,
                false => storage.tamper(&path, |bytes| spoil(&mut random, bytes)),
            }
        }
        opened_anyway(subject, storage, &all)
            .map_err(|stop| format!("{} (seed {seed})", String::from(stop)))?;
    }
    Ok(())
}

/// A root that was written by a drive some of whose writes land elsewhere.
fn lost_aim(
    subject: &Subject<'_, Strategy>,
    seed: u64,
) -> std::result::Result<(Arc<MemoryStorage>, Vec<Known>), String> {
    let (memory, faults) = faulty();
    let mut trial = Trial::on(subject.instance()?, (memory.clone(), faults.clone()))?;
    faults.set(FaultPlan { seed, misdirect_one_in: 4, ..FaultPlan::default() });
    let mut all = Vec::new();
    for (id, keys) in [(A, text(1, 0, 200)), (B, text(2, 0, 256))] {
        // What they answer is theirs; the drive lied.
        if let Ok(known) = trial.fill(id, &keys) {
            let _ = trial.store.flush(id);
            all.push(known);
        }
    }
    trial.close();
    Ok((memory, all))
}

/// Opens a root whose files are not as they were. What is answered passes the host's check only if
/// it is right.
fn opened_anyway(
    subject: &Subject<'_, Strategy>,
    storage: Arc<MemoryStorage>,
    all: &[Known],
) -> Went {
    let mut trial = match Trial::on(subject.instance().map_err(Stop::Wrong)?, storage) {
        Ok(trial) => trial,
        Err(Stop::Failed(call, error)) => {
            let refused = Err::<(), Error>(error);
            return self::refused(call, &refused, &OPEN_KINDS);
        }
        Err(stop) => return Err(stop),
    };
    for (n, known) in (10..).zip(all) {
        let chains = chains(&known.keys);
        let found = match trial.store.find(&[Prefix { keys: &known.keys, chains: &chains }]) {
            Ok(mut found) => found.remove(0),
            Err(_) => continue,
        };
        need(found.tokens <= known.tokens(), || "more is found than was asked for".into())?;
        let from = Origin::Stored { found: found.id, at: found.tokens };
        if found.tokens == 0 || trial.store.begin(SessionId(n), from).is_err() {
            continue;
        }
        let expected = trial.known(&known.keys, found.tokens);
        for ((layer, page), tag) in &expected.pages {
            let key = key(SessionId(n), *layer, *page);
            let Ok(mut got) = trial.load(&[key], HOUR) else { continue };
            if let Ok((came, bytes)) = got.remove(0) {
                // What the host checks of a page that was found.
                let passes = (came.chain, came.first, came.layer)
                    == (tag.chain, tag.first, tag.layer)
                    && bytes.len() == came.bytes as usize
                    && checksum(&bytes) == came.crc;
                need(!passes || bytes == bytes_of(tag.chain, tag.layer, tag.bytes), || {
                    format!("{key:?} comes wrong, and passes the host's check")
                })?;
            }
        }
    }
    // It is a root to work with, or says why not.
    let keys = text(3, 0, 150);
    if let Ok(known) = trial.fill(SessionId(30), &keys) {
        trial.check(SessionId(30), &known)?;
        let _ = trial.store.flush(SessionId(30));
        let _ = trial.store.maintain(Duration::from_millis(10));
        trial.check(SessionId(30), &known)?;
        let _ = trial.store.end(SessionId(30), true);
    }
    Ok(())
}
