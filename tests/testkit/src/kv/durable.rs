//! What is durable: through power cuts at every change of the drive, failed syncs, other models
//! and later processes.

use super::model::*;
use super::steps::{Step, choose};
use super::traces::Run;
use super::trial::*;
use super::{Strategy, kept};
use crate::double::{FaultPlan, MemoryStorage};
use crate::{Case, Check, Promise, Subject, for_all};
use kvern_contract::*;
use std::sync::Arc;
use std::time::Duration;

const DURABLE: Promise = Promise::new(
    "KvStore::flush",
    "Durable when it returns: the session's committed tokens and their pages, and none of tokens \
     that are not committed.",
);
const WRITES: Promise = Promise::new(
    "KvStore::flush",
    "Write page bytes, sync, then one checked record that names them, sync;",
);
const RECORD: Promise =
    Promise::new("KvStore::flush", "a record whole is a state, cut short nothing.");
const FIND: Promise = Promise::new("KvStrategy::open", "Find what was flushed;");
const GONE: Promise = Promise::new("KvStrategy::open", "what was not is gone or whole.");
const AGAIN: Promise = Promise::new(
    "KvCapabilities::persistent",
    "A root of lifecycle [`Persistent`](super::Lifecycle::Persistent) is found again by a new \
     process.",
);
const OLD: Promise = Promise::new(
    "KvStore::rewind",
    "Write nothing that recovery believes: until the next `flush` of the session the old state \
     survives a crash.",
);
const REUSE: Promise =
    Promise::new("KvStore::maintain", "Reuse no byte that a durable record names.");
const FAILED: Promise = Promise::new(
    "KvStore::flush",
    "Io: after a failed sync no `store` or `flush` succeeds until the root is opened anew.",
);
const IDS: Promise =
    Promise::new("KvStore::find", "Session ids of an earlier process mean nothing.");
const READ_ONLY: Promise = Promise::new("StoreSpec::read_only", "Nothing may be written.");
const IDENTITY: Promise = Promise::new(
    "StoreSpec::identity",
    "A store that finds others under the root answers Mismatch and names the part.",
);
const SHARED: Promise = Promise::new(
    "KvCapabilities::shared",
    "Several hosts write one root at once: the host takes no lock, every file is published.",
);
const ROOT_OF_ITS_OWN: Promise = Promise::new(
    "StoreSpec",
    "A root to open: one directory, or one place in a network, for one model in one form.",
);

pub(super) fn cases() -> Vec<Case<Strategy>> {
    vec![
        kept("what_was_flushed_is_found_by_the_next_process", &[FIND, AGAIN, IDS], reopened),
        kept(
            "a_power_cut_at_every_change_loses_nothing_flushed_and_makes_nothing_up",
            &[DURABLE, WRITES, RECORD, GONE],
            cuts,
        ),
        kept("a_rewind_is_durable_with_the_next_flush_and_not_before", &[OLD], rewound),
        kept("upkeep_reuses_nothing_that_is_durable", &[REUSE], upkeep),
        kept(
            "after_a_failed_sync_nothing_is_promised_until_the_root_is_opened_anew",
            &[FAILED],
            failed,
        ),
        kept("a_root_opened_to_read_is_read_and_not_written", &[READ_ONLY], read_only),
        kept("a_root_of_another_model_is_refused_by_the_part", &[IDENTITY], identity),
        kept("two_roots_do_not_mix", &[ROOT_OF_ITS_OWN], two_roots),
        Case {
            skip: |strategy| {
                (!strategy.describe().capabilities.shared).then_some("one host writes its root")
            },
            ..kept("two_hosts_write_one_root_at_once", &[SHARED], shared)
        },
    ]
}

const A: SessionId = SessionId(1);
const B: SessionId = SessionId(2);
const C: SessionId = SessionId(3);

fn on(subject: &Subject<'_, Strategy>, storage: &Arc<MemoryStorage>) -> Went<Trial> {
    Trial::on(subject.instance().map_err(Stop::Wrong)?, storage.clone())
}

/// Everything that a flush made durable is found, whole.
fn must_find(trial: &mut Trial, known: &Known, when: &str) -> Went {
    let (found, flushed) =
        (trial.verified(SessionId(777), &known.keys)?, known.gives(&trial.rules, &known.keys));
    need(found >= flushed, || {
        format!("{when}: {found} tokens are found of {flushed} that were flushed")
    })
}

fn reopened(subject: &Subject<'_, Strategy>) -> Check {
    let storage = MemoryStorage::new();
    let mut trial = on(subject, &storage)?;
    let one = trial.fill(A, &text(1, 0, 300))?;
    let two = trial.fill(B, &text(2, 0, 192))?;
    went("flush", trial.store.flush(A))?;
    went("flush", trial.store.flush(B))?;
    let stale = trial.find(&one.keys)?;
    went("end", trial.store.end(B, true))?;
    trial.close();
    for _ in 0..3 {
        let mut trial = on(subject, &storage)?;
        // The ids of that process are free, and say nothing.
        let answer = trial.load(&[key(A, 0, 0)], HOUR)?.remove(0);
        need(answer == Err(Verdict::Missing), || {
            format!("a page of a session of an earlier process is {answer:?}")
        })?;
        let rewound = trial.store.rewind(B, 0);
        refused("a rewind of a session of an earlier process", &rewound, &[ErrorKind::NotFound])?;
        let begun = trial.store.begin(C, Origin::Stored { found: stale.id, at: stale.tokens });
        refused("begin from what an earlier process found", &begun, &[ErrorKind::NotFound])?;
        let fresh = trial.fill(A, &text(3, 0, 64))?;
        trial.check(A, &fresh)?;
        for known in [&one, &two] {
            must_find(&mut trial, known, "in a later process")?;
            let found = trial.find(&known.keys)?;
            noted(&trial, &found, &known.keys)?;
        }
        trial.close();
    }
    Ok(())
}

/// Runs a trace until the power goes at an event; recovers, goes on, and cuts the power again.
/// Whether it went at all.
fn cut_at(subject: &Subject<'_, Strategy>, steps: &[Step], event: u64, seed: u64) -> Went<bool> {
    let storage = MemoryStorage::new();
    storage.fail_at(event);
    let open = || on(subject, &storage);
    let started = Run::start(&open);
    let mut run = match started {
        Ok(mut run) => match run.run(steps) {
            Err(Stop::Wrong(line)) => return Err(Stop::Wrong(line)),
            Err(Stop::Failed(call, error)) if !storage.is_off() => {
                return Err(Stop::Failed(call, error));
            }
            Ok(()) if !storage.is_off() => return Ok(false),
            Ok(()) | Err(Stop::Failed(..)) => Some(run),
        },
        Err(Stop::Failed(..)) if storage.is_off() => None,
        Err(stop) => return Err(stop),
    };
    let trial = run.as_mut().and_then(|run| run.trial.take());
    trial.into_iter().for_each(Trial::close);
    storage.cut(seed ^ event);
    let mut trial = on(subject, &storage)?;
    let extra = text(20 + event % 7, 0, 100 + event % 90);
    if let Some(run) = &mut run {
        run.crashed();
        run.trial = Some(trial);
        let prompts = run.prompts.clone();
        run.survived()?;
        run.prompts = prompts;
        let Some(back) = run.trial.take() else { return Ok(true) };
        trial = back;
    }
    // The recovered root goes on: one session is flushed, another is not.
    let flushed = trial.fill(A, &extra)?;
    went("flush", trial.store.flush(A))?;
    let more = trial.fill(B, &text(11, 0, 130))?;
    trial.close();
    storage.cut(event ^ !seed);
    let mut trial = on(subject, &storage)?;
    must_find(&mut trial, &flushed, "after a second power cut")?;
    if let Some(run) = &mut run {
        run.trial = Some(trial);
        run.ghosts.extend([flushed, more]);
        run.survived()?;
    }
    Ok(true)
}

fn cuts(subject: &Subject<'_, Strategy>) -> Check {
    for seed in subject.seeds(6) {
        let every = |steps: &[Step]| {
            let mut event = 0;
            while cut_at(subject, steps, event, seed).map_err(|stop| {
                format!("{} (the power went at event {event})", String::from(stop))
            })? {
                event += 1;
            }
            Ok(())
        };
        for_all([seed], |random| choose(random, 24), every)?;
    }
    Ok(())
}

fn rewound(subject: &Subject<'_, Strategy>) -> Check {
    let (first, second) = (text(3, 0, 250), text(4, 0, 330));
    let keys = [&first[..130], &second[130..]].concat();
    for seed in subject.seeds(8) {
        let storage = MemoryStorage::new();
        let mut trial = on(subject, &storage)?;
        let old = trial.fill(A, &first)?;
        went("flush", trial.store.flush(A))?;
        let mut new = old.clone();
        went("rewind", trial.store.rewind(A, 130))?;
        new.cut(130);
        // Some cuts come at once, some after the new text is stored.
        if seed % 2 == 0 {
            trial.grow(A, &mut new, &keys)?;
        }
        let flushes = seed % 4 == 0;
        if flushes {
            went("flush", trial.store.flush(A))?;
        }
        trial.close();
        storage.cut(seed);
        let mut trial = on(subject, &storage)?;
        if flushes {
            must_find(&mut trial, &new, "after a rewind and a flush")?;
        } else {
            must_find(&mut trial, &old, "after a rewind without a flush")?;
        }
        trial.verified(B, &old.keys)?;
        trial.verified(C, &new.keys)?;
    }
    Ok(())
}

fn upkeep(subject: &Subject<'_, Strategy>) -> Check {
    for seed in subject.seeds(2) {
        let mut event = 0;
        while upkept(subject, event, seed).map_err(|stop| {
            format!("{} (seed {seed}, the power went at event {event})", String::from(stop))
        })? {
            event += 1;
        }
    }
    Ok(())
}

/// Sessions come and go, some kept, and the power goes some events after upkeep began. Whether it
/// went.
fn upkept(subject: &Subject<'_, Strategy>, event: u64, seed: u64) -> Went<bool> {
    let storage = MemoryStorage::new();
    let mut trial = on(subject, &storage)?;
    let mut durable = Vec::new();
    for n in 0..6 {
        let known = trial.fill(SessionId(n), &text(n + seed % 3, 0, 150 + 40 * n))?;
        if n != 4 {
            went("flush", trial.store.flush(SessionId(n)))?;
        }
        if n == 2 {
            // Flushed, rewound, and not flushed again: the flushed state is the durable one.
            went("rewind", trial.store.rewind(SessionId(n), 64))?;
        }
        match n {
            0 | 3 => went("end", trial.store.end(SessionId(n), false))?,
            1 => went("end", trial.store.end(SessionId(n), true))?,
            _ => {}
        }
        if [1, 2, 5].contains(&n) {
            durable.push(known);
        }
    }
    storage.fail_at(storage.events() + event);
    let mut rest = || -> Went {
        went("maintain", trial.store.maintain(Duration::from_secs(1)))?;
        trial.fill(SessionId(20), &text(9, 0, 400))?;
        went("maintain", trial.store.maintain(Duration::from_secs(1)))?;
        trial.fill(SessionId(21), &text(10, 0, 200))?;
        went("flush", trial.store.flush(SessionId(21)))?;
        went("end", trial.store.end(SessionId(20), false))?;
        went("maintain", trial.store.maintain(Duration::ZERO))
    };
    match rest() {
        Err(Stop::Failed(..)) if storage.is_off() => {}
        other => other?,
    }
    let was_off = storage.is_off();
    trial.close();
    storage.cut(seed ^ event);
    let mut trial = on(subject, &storage)?;
    for known in &durable {
        must_find(&mut trial, known, "after upkeep")?;
    }
    Ok(was_off)
}

fn failed(subject: &Subject<'_, Strategy>) -> Check {
    // The first sync of a flush fails, then the second, until a flush has no more of them.
    for count in 0..20 {
        let (memory, faults) = faulty();
        let drive = (memory.clone(), faults.clone());
        let mut trial = Trial::on(subject.instance()?, drive)?;
        let base = trial.fill(A, &text(1, 0, 200))?;
        went("flush", trial.store.flush(A))?;
        let known = trial.fill(B, &text(2, 0, 200))?;
        faults.set(FaultPlan { syncs_before_eio: Some(count), ..FaultPlan::default() });
        let syncs = |trial: &Trial| trial.watch.count("sync") + 2 * trial.watch.count("publish");
        let before = syncs(&trial);
        let flushed = trial.store.flush(B);
        faults.set(FaultPlan::default());
        if flushed.is_ok() {
            let syncs = syncs(&trial) - before;
            need(syncs <= count, || format!("{count} of {syncs} syncs succeed, and the flush"))?;
            return ended(need(count > 0, || "a flush syncs nothing".into()));
        }
        refused("a flush whose sync fails", &flushed, &[ErrorKind::Io])?;
        for _ in 0..2 {
            let again = trial.store.flush(B);
            refused("a flush after a failed sync", &again, &[ErrorKind::Io])?;
            let tag = trial.rules.tag(&known.keys, 0, 2);
            let stored = trial.store(&[(key(B, 0, 2), tag)]);
            refused("a store after a failed sync", &stored, &[ErrorKind::Io])?;
        }
        trial.check(A, &base)?;
        trial.close();
        memory.cut(u64::from(count as u32));
        let mut trial = Trial::on(subject.instance()?, memory.clone())?;
        must_find(&mut trial, &base, "after a failed sync of another session")?;
        let known = trial.fill(B, &known.keys)?;
        went("flush once the root is opened anew", trial.store.flush(B))?;
        trial.close();
        memory.cut(1);
        must_find(&mut Trial::on(subject.instance()?, memory)?, &known, "opened anew")?;
    }
    Err("a flush syncs twenty times".into())
}

fn read_only(subject: &Subject<'_, Strategy>) -> Check {
    let storage = MemoryStorage::new();
    let strategy = subject.instance()?;
    let mut reader = spec(&*strategy)?;
    reader.read_only = true;
    // Of an empty place nothing is made.
    let empty = Trial::open(strategy, &reader, storage.clone());
    need(storage.events() == 0, || "opening an empty root to read writes".into())?;
    drop(empty);
    let mut trial = on(subject, &storage)?;
    let known = trial.fill(A, &text(1, 0, 200))?;
    went("flush", trial.store.flush(A))?;
    trial.close();
    let events = storage.events();
    let mut trial = Trial::open(subject.instance()?, &reader, storage.clone())?;
    must_find(&mut trial, &known, "opened to read")?;
    trial.begin(B, Origin::Fresh)?;
    let stored = trial.store(&[(key(B, 0, 0), trial.rules.tag(&known.keys, 0, 2))]);
    need(stored.is_err(), || "a root that is open to read stores a page".into())?;
    went("commit", trial.commit(B, &known.keys[..10], 0))?;
    let flushed = trial.store.flush(B);
    need(flushed.is_err(), || "a root that is open to read flushes".into())?;
    let found = trial.find(&known.keys)?;
    trial.begin(C, Origin::Stored { found: found.id, at: found.tokens })?;
    went("rewind", trial.store.rewind(C, 64))?;
    // Whatever these answer, they write nothing.
    let _ = (trial.store.end(C, false), trial.store.end(B, true));
    let _ = trial.store.maintain(Duration::from_secs(1));
    let wrote = (storage.events() - events, trial.watch.changes());
    need(wrote == (0, 0), || format!("a root that is open to read is written: {wrote:?}"))?;
    Ok(())
}

fn identity(subject: &Subject<'_, Strategy>) -> Check {
    let storage = MemoryStorage::new();
    let mut trial = on(subject, &storage)?;
    let known = trial.fill(A, &text(1, 0, 200))?;
    went("flush", trial.store.flush(A))?;
    trial.close();
    let own = spec(&*subject.instance()?)?;
    for part in 0..own.identity.len() {
        let mut other = own.clone();
        other.identity[part].1 = "quite-other".into();
        let name = &own.identity[part].0;
        match Trial::open(subject.instance()?, &other, storage.clone()) {
            Err(Stop::Failed(_, error)) => need(
                error.kind == ErrorKind::Mismatch && error.message.contains(name.as_str()),
                || format!("{name} differs, and open answers {:?}: {error}", error.kind),
            )?,
            Err(stop) => return Err(stop.into()),
            Ok(_) => return Err(format!("{name} differs, and the root is opened")),
        }
    }
    must_find(&mut on(subject, &storage)?, &known, "after others tried to open the root")?;
    Ok(())
}

fn two_roots(subject: &Subject<'_, Strategy>) -> Check {
    let storage = MemoryStorage::new();
    let open = |root: &str| -> Went<Trial> {
        let strategy = subject.instance().map_err(Stop::Wrong)?;
        let mut spec = spec(&*strategy)?;
        spec.identity[0].1 = root.into();
        Trial::at(strategy, &spec, storage.clone(), root)
    };
    let (mut one, mut two) = (open("/cache/one")?, open("/cache/two")?);
    let (here, there) = (one.fill(A, &text(5, 0, 192))?, two.fill(A, &text(6, 0, 192))?);
    one.check(A, &here)?;
    two.check(A, &there)?;
    went("flush", one.store.flush(A))?;
    went("flush", two.store.flush(A))?;
    one.close();
    two.close();
    let (mut one, mut two) = (open("/cache/one")?, open("/cache/two")?);
    for (root, own, other) in [(&mut one, &here, &there), (&mut two, &there, &here)] {
        must_find(root, own, "beside another root")?;
        let shared = own.keys.iter().zip(&other.keys).take_while(|(a, b)| a == b).count() as u64;
        let found = root.find(&other.keys)?.tokens;
        need(found <= shared, || format!("{found} tokens of another root's session are found"))?;
    }
    Ok(())
}

fn shared(subject: &Subject<'_, Strategy>) -> Check {
    let storage = MemoryStorage::new();
    let (mut one, mut two) = (on(subject, &storage)?, on(subject, &storage)?);
    let mut durable = Vec::new();
    for n in 0..4 {
        // The same text by both, and one that each has alone.
        for (host, own) in [(&mut one, 2 * n + 20), (&mut two, 2 * n + 21)] {
            for (id, text_of) in [(SessionId(2 * n), n), (SessionId(2 * n + 1), own)] {
                let known = host.fill(id, &text(text_of, 0, 150 + 20 * n))?;
                went("flush", host.store.flush(id))?;
                host.check(id, &known)?;
                durable.push(known);
            }
        }
        let mut third = on(subject, &storage)?;
        for known in &durable {
            must_find(&mut third, known, "while two others write the root")?;
        }
    }
    let writes = one.watch.count("write") + two.watch.count("write");
    need(writes == 0, || format!("{writes} writes into files that others may write"))?;
    went("maintain", one.store.maintain(Duration::from_secs(1)))?;
    two.close();
    storage.cut(1);
    let mut third = on(subject, &storage)?;
    durable.iter().try_for_each(|known| must_find(&mut third, known, "after a power cut"))?;
    Ok(())
}
